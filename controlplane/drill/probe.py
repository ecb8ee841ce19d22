"""Numbered records through an ordinary Kafka client (librdkafka), and their reading back by another.

Each record says for itself where it belongs: its topic (a drill has one of its own), its partition and its number in
that partition. So whoever reads it back sees when a partition holds what was sent to another.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from controlplane.cli.kafka_login import HINT, OPEN, KafkaLogin
from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import Invalid, Unavailable

IN_FLIGHT_MAX = 50_000
"""Records waiting for their ack; while the brokers are away the probe stops adding at this bound."""
ERRORS_KEPT_MAX = 20
"""Sentences about failed produces; the rest are only counted."""
DELIVERY_TIMEOUT_MS = 60_000
TOPIC_TIMEOUT_MS = 30_000
METADATA_TIMEOUT_S = 10
WATERMARK_TIMEOUT_S = 30
ENDS_ATTEMPTS_MAX = 20
ENDS_PAUSE_MS = 250
READ_STALL_MS = 20_000
"""A reader that got nothing new for so long has read all that it will get."""
POLL_MS = 20
"""How often a condition over the acks is looked at."""


@dataclass(frozen=True, slots=True)
class Ack:
    """One acked record. `offset` is None where the client was not told it; `at_ms`: the monotonic clock when the ack
    arrived.
    """

    partition: int
    number: int
    offset: int | None
    at_ms: float


def create_topic(bootstrap: str, topic: str, partitions: int, login: KafkaLogin = OPEN) -> None:
    """Create a topic, and wait until every partition of it has a leader.

    Raises:
        Unavailable: the brokers did not do it in time. Invalid: they do not let this client in.
    """
    refused = Refusals()
    admin = AdminClient(login.client(bootstrap, {"error_cb": refused}))
    try:
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(timeout=TOPIC_TIMEOUT_MS / 1000)
        for _ in range(TOPIC_TIMEOUT_MS // POLL_MS):
            known = admin.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic].partitions
            if len(known) == partitions and all(p.leader >= 0 for p in known.values()):
                return
            sleep_blocking_ms(POLL_MS)
    except (KafkaException, TimeoutError) as error:
        admin.poll(0)
        refused.check(login)
        hint = "brokers that want a login: --command-config, see docs/security.md" if login is OPEN else None
        said = str(error) or "no answer in time"
        raise Unavailable(f"topic {topic} could not be created: {said}", hint=hint) from error
    raise Unavailable(f"topic {topic} was created, and has partitions without a leader")


class Refusals:
    """Hears of a client's errors: librdkafka tries again for ever, and says of a login that is refused only here."""

    def __init__(self) -> None:
        self._refused: str | None = None

    def __call__(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._refused = error.str()

    def check(self, login: KafkaLogin) -> None:
        """Raises Invalid if the brokers do not let the client in."""
        if self._refused is not None:
            hint = "--command-config FILE says how to log in" if login is OPEN else HINT
            raise Invalid(f"the brokers do not let this client in: {self._refused}", hint=hint)


def leaders(bootstrap: str, topic: str, login: KafkaLogin = OPEN) -> dict[int, int]:
    """Partition → node id of its leader, -1 while there is none.

    Raises:
        Unavailable: no broker answers.
    """
    admin = AdminClient(login.client(bootstrap))
    try:
        for _ in range(TOPIC_TIMEOUT_MS // POLL_MS):
            # Another broker than the one that created the topic may not have read of it yet.
            found = admin.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic].partitions
            if found:
                return {p: info.leader for p, info in found.items()}
            sleep_blocking_ms(POLL_MS)
    except KafkaException as error:
        raise Unavailable(f"nobody says who leads {topic}: {error}") from error
    raise Unavailable(f"nobody knows topic {topic}")


def delete_topic(bootstrap: str, topic: str, login: KafkaLogin = OPEN) -> None:
    """Remove the probe's topic; that it cannot be done is no reason to fail a drill."""
    admin = AdminClient(login.client(bootstrap))
    try:
        admin.delete_topics([topic])[topic].result(timeout=METADATA_TIMEOUT_S)
    except (KafkaException, TimeoutError):
        pass


class Probe:
    """Produces at a steady pace, one record a partition a tick, from a thread of its own, until stopped."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        partitions: int,
        *,
        clock: Clock,
        login: KafkaLogin = OPEN,
        ticks_a_second: int = 100,
        request_timeout_ms: int = 30_000,
        padding: int = 0,
        clings: bool = False,
    ) -> None:
        """`request_timeout_ms`: how long the client waits for a broker that keeps the connection and does not answer (a
        frozen one); librdkafka's own default. `padding`: bytes that each record is longer. `clings`: the client does
        not look for another leader and sends nothing again; its records fail, unless the broker that it knew acks them.
        """
        self._topic = topic
        self._partitions = partitions
        self._clock = clock
        self._pause_s = 1 / ticks_a_second
        self._padding = "x" * padding
        clinging = {"retries": 0, "topic.metadata.refresh.interval.ms": -1, "metadata.max.age.ms": 3_600_000}
        self._producer = Producer(
            {
                **login.client(bootstrap),
                **(clinging if clings else {"enable.idempotence": True}),
                "acks": "all",
                "linger.ms": 2,
                "message.timeout.ms": DELIVERY_TIMEOUT_MS,
                "request.timeout.ms": request_timeout_ms,
                "socket.timeout.ms": max(request_timeout_ms, 1_000),
                "queue.buffering.max.messages": IN_FLIGHT_MAX * 2,
            }
        )
        self._lock = threading.Lock()
        self._acks: list[Ack] = []
        self._next = [0] * partitions
        self.errors: list[str] = []
        """The first failures, as sentences."""
        self.failed = 0
        """Records that the client gave up, or did not take."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            if len(self._producer) < IN_FLIGHT_MAX:
                for partition in range(self._partitions):
                    self._send(partition)
            self._producer.poll(0)

    def _send(self, partition: int) -> None:
        number = self._next[partition]

        def done(error: KafkaError | None, message: Message) -> None:
            at_ms = self._clock.monotonic_ms()
            if error is not None:
                self._fail(f"partition {partition}, record {number}: {error}")
                return
            with self._lock:
                self._acks.append(Ack(partition, number, message.offset(), at_ms))

        try:
            self._producer.produce(
                self._topic,
                key=self._topic.encode(),
                value=_encode(self._topic, partition, number, self._clock.wall_ms(), self._padding),
                partition=partition,
                on_delivery=done,
            )
        except (BufferError, KafkaException) as error:
            self._fail(f"partition {partition}: {error}")
            return
        self._next[partition] += 1

    def _fail(self, sentence: str) -> None:
        with self._lock:
            self.failed += 1
            if len(self.errors) < ERRORS_KEPT_MAX:
                self.errors.append(sentence)

    def acks(self) -> list[Ack]:
        """The acks so far, in the order in which they arrived."""
        with self._lock:
            return list(self._acks)

    def wait_for(self, condition: Callable[[list[Ack]], bool], timeout_ms: float) -> bool:
        """Wait until the acks so far satisfy `condition`; False when the time is over."""
        deadline = self._clock.monotonic_ms() + timeout_ms
        while not condition(self.acks()):
            if self._clock.monotonic_ms() > deadline:
                return False
            sleep_blocking_ms(POLL_MS)
        return True

    def stop(self, flush_ms: float = DELIVERY_TIMEOUT_MS) -> list[Ack]:
        """Stop producing, wait up to `flush_ms` for what is under way, return every ack. Safe to call twice."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        left = self._producer.flush(flush_ms / 1000)
        if left:
            self._fail(f"{left} records have neither ack nor error")
        return self.acks()


def by_partition(acks: Sequence[Ack], partitions: int) -> dict[int, dict[int, int | None]]:
    """The acks as the judge takes them."""
    found: dict[int, dict[int, int | None]] = {p: {} for p in range(partitions)}
    for ack in acks:
        found[ack.partition][ack.number] = ack.offset
    return found


def read_back(
    bootstrap: str, topic: str, partitions: int, clock: Clock, login: KafkaLogin = OPEN
) -> dict[int, list[tuple[int, int | None]]]:
    """Every record of the topic from the beginning to the high watermarks as they are now: partition → (offset,
    number), the number None for bytes that fail their checksum or were not sent to that partition. What is not served
    though the brokers answer is not in it.

    Raises:
        Unavailable: the brokers do not answer.
    """
    consumer = Consumer(
        {
            **login.client(bootstrap),
            "group.id": f"{topic}-check",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "check.crcs": True,
        }
    )
    try:
        ends = _ends(consumer, topic, partitions)
        consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        found: dict[int, list[tuple[int, int | None]]] = {p: [] for p in range(partitions)}
        unreadable: set[tuple[int, int]] = set()
        missing = {p for p, end in ends.items() if end > 0}
        progress_ms = clock.monotonic_ms()
        while missing:
            for message in consumer.consume(10_000, timeout=0.5):
                partition, offset, error = message.partition(), message.offset(), message.error()
                if error is not None and error.code() == KafkaError._BAD_MSG:
                    # The client asks for a damaged batch again and again: it is noted once, and is no progress.
                    at = (-1 if partition is None else partition, -1 if offset is None else offset)
                    if at[0] in found and at not in unreadable:
                        unreadable.add(at)
                        found[at[0]].append((at[1], None))
                    continue
                if error is not None:
                    continue  # it tries again by itself; a stall ends it
                assert partition is not None and offset is not None  # no error: it is a record
                found[partition].append((offset, _decode(topic, partition, message)))
                progress_ms = clock.monotonic_ms()
                if offset + 1 >= ends[partition]:
                    missing.discard(partition)
            if missing and clock.monotonic_ms() - progress_ms > READ_STALL_MS:
                # Nothing comes any more. Where nobody answers, nothing is known; else, this is all that there is.
                _ends(consumer, topic, partitions)
                break
        return found
    except KafkaException as error:
        raise Unavailable(f"{topic} could not be read: {error}") from error
    finally:
        consumer.close()


def _ends(consumer: Consumer, topic: str, partitions: int) -> dict[int, int]:
    """The high watermarks, asked of the brokers now; again while a partition is on its way from one to another."""
    ends = {}
    for partition in range(partitions):
        for attempt in range(ENDS_ATTEMPTS_MAX):
            try:
                answer: Any = consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=WATERMARK_TIMEOUT_S
                )
                break
            except KafkaException as error:
                if attempt == ENDS_ATTEMPTS_MAX - 1:
                    raise Unavailable(f"nobody says where partition {partition} of {topic} ends: {error}") from error
                sleep_blocking_ms(ENDS_PAUSE_MS)
        if answer is None:
            raise Unavailable(f"nobody says where partition {partition} of {topic} ends")
        ends[partition] = int(answer[1])
    return ends


def _encode(topic: str, partition: int, number: int, sent_wall_ms: int, padding: str) -> bytes:
    plain = {"run": topic, "partition": partition, "number": number, "sent_wall_ms": sent_wall_ms}
    return json.dumps({**plain, "padding": padding} if padding else plain).encode()


def _decode(topic: str, partition: int, message: Message) -> int | None:
    """The record's number, None when it is not one that was sent to this partition in this run."""
    try:
        plain = json.loads(message.value() or b"")
        mine = plain["run"] == topic and plain["partition"] == partition and message.key() == topic.encode()
        return int(plain["number"]) if mine else None
    except (ValueError, KeyError, TypeError):
        return None
