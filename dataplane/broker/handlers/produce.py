"""Produce: from a frame to appends, and from their acks to the answer, without a task in between."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

from kio.schema.errors import ErrorCode

from dataplane.broker.authorize import Access
from dataplane.broker.engine import Busy, Engine, KafkaError
from dataplane.broker.groups import OFFSETS_TOPIC
from dataplane.broker.request_meter import PRODUCE
from dataplane.broker.transactions import TRANSACTIONS_TOPIC
from dataplane.broker.txn_verify import Verifier, Writer
from dataplane.broker.wire_leaders import Leader
from dataplane.broker.wire_produce import Part, ProduceRequest
from dataplane.broker.wire_repeated import ProduceDecoder, encode_answer
from dataplane.stream.batch import (
    CONTROL,
    LENGTH_AFTER,
    TRANSACTIONAL,
    BatchHeader,
    iter_batches,
    parse_header,
    verify,
)
from dataplane.stream.producers import ProducerTable
from providers.base.clock import Clock
from providers.base.errors import Corrupt

BATCH_BYTES_MAX = 1_048_588
"""Kafka's own default of `message.max.bytes`."""

INTERNAL_TOPICS = (OFFSETS_TOPIC, TRANSACTIONS_TOPIC)

NOT_LEADER = ErrorCode.not_leader_or_follower.value

KEEP_FROM_BYTES = 8 << 10
"""Batches from this size on stay in the frame that brought them; of smaller ones a copy costs less than a frame kept
for one of them."""

WAIT_FOR_ROOM_MAX_MS = 30_000
"""How long a request waits for room in the WAL, if the client waits that long."""

Send = Callable[[bytes | None], None]


class Produce:
    """Handler over an engine."""

    def __init__(
        self, engine: Engine, clock: Clock, verifier: Verifier, refused: Counter[tuple[int, int]] | None = None
    ) -> None:
        """`refused` counts refused partitions, by api key and error code."""
        self._engine = engine
        self._clock = clock
        self._verifier = verifier
        self._refused = Counter() if refused is None else refused

    def gone(self, decoder: ProduceDecoder) -> None:
        """The connection is closed whose `decoder` this is."""
        self._engine.connected.gone(decoder.producers)

    def begin(
        self,
        frame: memoryview,
        decoder: ProduceDecoder,
        *,
        kept: bool,
        send: Send,
        access: Access | None = None,
        throttle_ms: int = 0,
    ) -> Appending:
        """Decode a request with its connection's `decoder`; `Appending.go` begins its appends. `kept`: the frame's
        memory may be kept, and changed. `send` gets the answer, or None when none is wanted (acks=0). Every acks level
        waits until the records are durable: there is no weaker promise to give. `access`: what the client may do, None
        for everything. `throttle_ms`: what the answer says of it.

        Raises:
            Malformed: not a request.
        """
        request = decoder.decode(frame)
        request.throttle_ms = throttle_ms
        return Appending(
            self._engine,
            self._clock,
            self._verifier,
            self._refused,
            request,
            decoder.producers,
            kept=kept,
            send=send,
            access=access,
        )


class Appending:
    """A request whose appends are begun one after the other, so that those of one connection keep their order."""

    __slots__ = (
        *("_access", "_answered", "_begun", "_clock", "_engine", "_kept"),
        *("_producers", "_refused", "_request", "_send", "_until_ms", "_verifier"),
    )

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        verifier: Verifier,
        refused: Counter[tuple[int, int]],
        request: ProduceRequest,
        producers: set[int],
        *,
        kept: bool,
        send: Send,
        access: Access | None,
    ) -> None:
        self._access = access
        self._engine = engine
        self._clock = clock
        self._verifier = verifier
        self._refused = refused
        self._request = request
        self._producers = producers
        self._kept = kept
        self._send = send
        self._begun = self._answered = 0
        self._until_ms: float | None = None

    def go(self) -> bool:
        """Begin what can be begun; False when there is no room now: nothing else of the connection may be handled until
        a later call has returned True.
        """
        parts = self._request.parts
        while self._begun < len(parts):
            part = parts[self._begun]
            try:
                self._append(part)
            except Busy as busy:
                now_ms = self._clock.monotonic_ms()
                if self._until_ms is None:
                    self._until_ms = now_ms + min(max(self._request.timeout_ms, 0), WAIT_FOR_ROOM_MAX_MS)
                if now_ms < self._until_ms:
                    return False
                self._over(part, -1, busy)
            except KafkaError as error:
                self._over(part, -1, error)
            self._begun += 1
        if self._answered == len(parts):
            self._answer()
        return True

    def throttle(self, wait_ms: int) -> None:
        """What the answer says of how long the client is to wait, if it has not been given."""
        self._request.throttle_ms = max(self._request.throttle_ms, wait_ms)

    def keep(self) -> None:
        """The frame's memory will be used again: what has not begun yet gets its own."""
        for part in self._request.parts[self._begun :]:
            if part.records is not None:
                part.records = memoryview(bytearray(part.records))

    def _append(self, part: Part) -> None:
        if self._access is not None:
            self._permit(part.topic, self._access)
        if part.topic in INTERNAL_TOPICS:
            raise KafkaError(ErrorCode.invalid_topic_exception.value, "an internal topic is written by brokers only")
        log = self._engine.writable(part.topic, part.partition)
        header = check_batch(part.records)
        assert part.records is not None
        if header.producer_id >= 0 and header.producer_id not in self._producers:
            self._engine.connected.note(header.producer_id, self._producers)
        if header.attributes & TRANSACTIONAL:
            self._check_transaction(log.producers, part, header)
        part.log_start_offset = log.start_offset
        kept = self._kept and len(part.records) >= KEEP_FROM_BYTES
        batch = part.records if kept else bytearray(part.records)
        log.begin(batch, header, functools.partial(self._over, part))
        part.records = None

    def _check_transaction(self, producers: ProducerTable | None, part: Part, header: BatchHeader) -> None:
        """The first batch of a transaction is taken once the coordinator has vouched for it."""
        transactional_id = self._request.transactional_id
        if not transactional_id or header.producer_id < 0:
            raise KafkaError(ErrorCode.invalid_record.value, "a transactional batch needs a producer and its id")
        if producers is not None and producers.begins_unasked(header):
            producer = header.producer_id, header.producer_epoch
            number = self._verifier.look(Writer(transactional_id, *producer, (part.topic, part.partition)))
            producers.transactions.allow(*producer, number)

    def _permit(self, topic: str, access: Access) -> None:
        """
        Raises:
            KafkaError: the client may not write there.
        """
        transaction = self._request.transactional_id
        if transaction is not None and not access.may_transact(transaction):
            raise KafkaError(ErrorCode.transactional_id_authorization_failed.value, "not allowed to use this id")
        if not access.may_write(topic):
            raise KafkaError(ErrorCode.topic_authorization_failed.value, "not allowed to write to this topic")

    def _over(self, part: Part, base_offset: int, error: KafkaError | None, moved: bool = False) -> None:
        if error is not None:
            part.error_code, part.error_message, part.log_start_offset = error.code, error.message, -1
            self._refused[PRODUCE, error.code] += 1
        if moved or (error is not None and error.code == NOT_LEADER):
            part.leader = elsewhere(self._engine, part.topic, part.partition)
        part.base_offset = base_offset
        self._answered += 1
        if self._answered == len(self._request.parts) and self._begun == self._answered:
            self._answer()

    def _answer(self) -> None:
        self._send(encode_answer(self._request) if self._request.acks != 0 else None)


def elsewhere(engine: Engine, topic: str, partition: int) -> Leader | None:
    """Who leads a partition that this broker does not, if that is known here."""
    found = engine.leader(topic, partition)
    if found is None or found[0].node_id == engine.node_id:
        return None
    broker, epoch = found
    return Leader(broker.node_id, epoch, broker.host, broker.port, broker.rack)


def check_batch(records: memoryview | None) -> BatchHeader:
    """The header of one whole v2 batch, as produce requests from version 3 on carry.

    Raises:
        KafkaError: CORRUPT_MESSAGE, INVALID_RECORD, MESSAGE_TOO_LARGE.
    """
    if not records:
        raise KafkaError(ErrorCode.invalid_record.value, "no records")
    if len(records) > BATCH_BYTES_MAX:
        raise KafkaError(
            ErrorCode.message_too_large.value, f"a batch of {len(records)} bytes; {BATCH_BYTES_MAX} at most"
        )
    try:
        header = parse_header(records)
        if header.length + LENGTH_AFTER < len(records):
            count = sum(1 for _ in iter_batches(records))
            raise KafkaError(ErrorCode.invalid_record.value, f"{count} batches for one partition; send one")
        verify(records, header)
    except Corrupt as error:
        raise KafkaError(ErrorCode.corrupt_message.value, error.message) from error
    if header.attributes & CONTROL:
        raise KafkaError(ErrorCode.invalid_record.value, "markers are written by brokers only")
    return header
