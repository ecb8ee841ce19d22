"""What clients still send to a partition's old owner is taken on to the new one, for a moment after a planned move.

    held while frozen, or sent to the old owner a moment later
      ──► handed on, in order ──► new owner: open, append, durable ──► acked, and the client told who leads now
               └── not taken ──► refused, as all that comes behind it: clients ask the new owner themselves

A client that is refused comes back no sooner than after its back-off (librdkafka: 100 ms); one whose request is acked
loses no time. librdkafka takes the leader that an ack names (KIP-951's field), and sends nothing to it before all that
is under way to the old one is answered; Kafka's own client looks for it in refusals alone, and then comes at once. An
ack names the leader only to a producer that has a connection to it: librdkafka (2.15) may otherwise think of connecting
a second later (`rd_kafka_toppar_producer_serve` asks for a connection only once nothing is under way to the old leader,
and nothing wakes it then). The others are refused when the moment is over.

Only batches of idempotent producers are forwarded: a lost answer leaves open whether they were appended, and their
sequences make sending them again harmless, and an overtaking one refused. They travel once; who repeats them is the
client.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from kio.schema.errors import ErrorCode

from dataplane.broker.connected import ConnectedProducers
from dataplane.broker.engine import Done, KafkaError, Message
from dataplane.broker.node_log import LogOwner, NodeLog
from dataplane.broker.partitions import PartitionSet
from dataplane.broker.peers import Peers
from dataplane.ledger.state import CellState, Stream
from dataplane.stream.batch import TRANSACTIONAL, BatchHeader, Buffer, parse_header, verify
from dataplane.stream.partition import Partition
from providers.base.errors import Corrupt, Unavailable

OP = "append"
MESSAGE_BYTES_MAX = 1 << 20
"""Of batches in one message, unless it is one larger batch."""
WAITING_BYTES_MAX = 32 << 20
"""Of all batches that wait here to be taken on, or for their answers."""
MESSAGES_MAX = 8
"""Under way to other brokers at the same time."""
ANSWER_MS = 3_000
"""After this long without an answer the clients are told that it is not known."""
OPEN_MS = 1_000
"""How long the new owner lets batches wait until it has heard of the move and opened the partition."""

TRY_ELSEWHERE: int = ErrorCode.not_leader_or_follower.value
UNKNOWN: int = ErrorCode.request_timed_out.value
NOT_TAKEN = (TRY_ELSEWHERE, UNKNOWN, ErrorCode.kafka_storage_error.value)
"""Codes after which nothing more of that partition is forwarded: it would overtake what the client sends again."""

Outcome = tuple[int, int, str, bool]
"""Kafka's code (0: acked), the first offset, why not, and whether the producer has a connection to the new owner."""


@dataclass(slots=True)
class _Route:
    """From a partition's old owner, this node, to its owner under `epoch`."""

    stream: int
    epoch: int
    address: tuple[str, int]
    waiting: deque[tuple[Buffer, Done]] = field(default_factory=deque)
    broken: bool = False
    task: asyncio.Task[None] | None = None


class Forwarder:
    """The old owner's side."""

    def __init__(
        self, node: int, *, state: Callable[[], CellState], partitions: Callable[[], PartitionSet], peers: Peers
    ) -> None:
        self._node = node
        self._state = state
        self._partitions = partitions
        self._peers = peers
        self._routes: dict[int, _Route] = {}
        self._bytes = 0
        self.forwarded = 0
        """Batches taken on so far."""
        self._limit = asyncio.Semaphore(MESSAGES_MAX)

    def way(self, stream: Stream) -> MovedLog | None:
        """Where batches of this partition go on to; None when it is not one that was handed over a moment ago."""
        route = self._route(stream.id)
        return None if route is None or route.broken else MovedLog(stream, self)

    def under_way(self, stream: int) -> bool:
        """Batches of this partition have been taken on, and not been answered."""
        route = self._routes.get(stream)
        return route is not None and route.task is not None

    def forward(self, stream: int, batch: Buffer, header: BatchHeader, done: Done) -> bool:
        """Take a batch on; `done` is told the outcome. False when that cannot be: nothing was done with it."""
        if header.producer_id < 0:
            return False
        route = self._route(stream)
        if route is None or route.broken:
            return False
        if self._bytes + len(batch) > WAITING_BYTES_MAX:
            route.broken = True
            return False
        self._bytes += len(batch)
        self.forwarded += 1
        route.waiting.append((batch, done))
        if route.task is None:
            route.task = asyncio.create_task(self._run(route))
        return True

    async def settle(self) -> None:
        """Return once everything that was taken on is answered, which is bounded in time."""
        tasks = [route.task for route in self._routes.values() if route.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _route(self, stream_id: int) -> _Route | None:
        partitions = self._partitions()
        if not partitions.moved_lately(stream_id):
            return None  # each request asks
        state = self._state()
        stream = state.streams.get(stream_id)
        if stream is None:
            return None
        route = self._routes.get(stream_id)
        if route is not None and route.epoch == stream.epoch:
            return route
        owner = state.owner_of(stream)
        if owner is None or owner.node == self._node or (route is not None and route.task is not None):
            return None
        self._routes = {s: r for s, r in self._routes.items() if r.task is not None or partitions.moved_lately(s)}
        route = self._routes[stream_id] = _Route(stream_id, stream.epoch, (owner.host, owner.peer_port))
        return route

    async def _run(self, route: _Route) -> None:
        try:
            while route.waiting:
                batches = list(self._next(route.waiting))
                outcomes = [(TRY_ELSEWHERE, -1, "the partition has moved", False)] * len(batches)
                if not route.broken:
                    async with self._limit:
                        outcomes = await self._send(route, [batch for batch, _ in batches])
                route.broken = route.broken or any(code in NOT_TAKEN for code, *_ in outcomes)
                for (batch, done), (code, base_offset, why, connected) in zip(batches, outcomes, strict=True):
                    self._bytes -= len(batch)
                    done(base_offset, KafkaError(code, why) if code else None, connected)
        finally:
            route.task = None

    def _next(self, waiting: deque[tuple[Buffer, Done]]) -> Iterator[tuple[Buffer, Done]]:
        size = 0
        while waiting and (not size or size + len(waiting[0][0]) <= MESSAGE_BYTES_MAX):
            size += len(waiting[0][0])
            yield waiting.popleft()

    async def _send(self, route: _Route, batches: Sequence[Buffer]) -> list[Outcome]:
        message = {
            "op": OP,
            "stream": route.stream,
            "epoch": route.epoch,
            "sizes": [len(batch) for batch in batches],
            "data": b"".join(batches),
        }
        try:
            answer = await self._peers.request(route.address, message, ANSWER_MS)
            told = answer.get("outcomes", ())
            outcomes = [(int(code), int(base), str(why), bool(connected)) for code, base, why, connected in told]
        except Unavailable as error:
            return [(UNKNOWN, -1, error.message, False)] * len(batches)
        except (TypeError, ValueError):
            return [(UNKNOWN, -1, "the new owner's answer cannot be read", False)] * len(batches)
        if len(outcomes) != len(batches):  # a broker that does not know of forwarding
            return [(TRY_ELSEWHERE, -1, "the partition has moved", False)] * len(batches)
        return outcomes


class MovedLog:
    """`AppendLog` of a partition that this node has handed over a moment ago."""

    producers = None

    def __init__(self, stream: Stream, forwarder: Forwarder) -> None:
        self._stream = stream
        self._forwarder = forwarder

    @property
    def start_offset(self) -> int:
        return self._stream.start

    def begin(self, batch: bytearray | memoryview, header: BatchHeader, done: Done) -> None:
        if not self._forwarder.forward(self._stream.id, batch, header, done):
            raise KafkaError(TRY_ELSEWHERE, f"{self._stream.topic}-{self._stream.partition} has moved")


async def take(message: Message, partitions: PartitionSet, engine: LogOwner, connected: ConnectedProducers) -> Message:
    """The new owner's side: append what another broker took from its clients, which it has let in, and answer with the
    `Outcome` of each batch. After the first that cannot be begun none is.
    """
    sizes = [int(size) for size in message["sizes"]]
    partition = await partitions.opened(int(message["stream"]), int(message["epoch"]), OPEN_MS)
    outcomes: list[Outcome] = [(TRY_ELSEWHERE, -1, "not open here", False)] * len(sizes)
    if partition is None:
        return {"outcomes": outcomes}
    log = NodeLog(partition, engine)
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = begun = 0

    def over(number: int, producer_id: int, base_offset: int, error: KafkaError | None, moved: bool = False) -> None:
        nonlocal left
        code, why = (0, "") if error is None else (error.code, error.message)
        outcomes[number] = code, base_offset, why, producer_id in connected
        left -= 1
        if left == 0 and begun == len(sizes) and not answered.done():
            answered.set_result(None)

    at = 0
    for number, size in enumerate(sizes):
        left += 1
        try:
            header = _check(partition, batch := message["data"][at : at + size])
            log.begin(bytearray(batch), header, functools.partial(over, number, header.producer_id))
        except KafkaError as error:
            over(number, -1, -1, error)
            break
        at += size
    begun = len(sizes)
    if left:
        await answered
    return {"outcomes": outcomes}


def _check(partition: Partition, batch: bytes) -> BatchHeader:
    """
    Raises:
        KafkaError: it cannot be taken.
    """
    try:
        header = parse_header(batch)
        verify(batch, header)
    except Corrupt as error:
        raise KafkaError(ErrorCode.corrupt_message.value, error.message) from error
    if header.attributes & TRANSACTIONAL and partition.admitted_producers().begins_unasked(header):
        # The client names its transaction when it comes itself, and the coordinator can be asked.
        raise KafkaError(TRY_ELSEWHERE, "a transaction's first batch here is taken of its own client only")
    return header
