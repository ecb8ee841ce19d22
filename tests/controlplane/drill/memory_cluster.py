"""Two brokers that speak Kafka and keep everything in memory, in a thread of their own: what drills are tried on.

They can be told to lie: to ack a batch and lose it, keep it twice, swap it with the next, or damage it. One can be
killed or frozen, after which the other takes over, or not; and what they write to can be away for a while.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.connected import ConnectedProducers
from dataplane.broker.engine import (
    Appended,
    BrokerView,
    Done,
    KafkaError,
    Message,
    PartitionView,
    PeerHandler,
    TopicView,
)
from dataplane.broker.net import KafkaServer
from dataplane.stream.batch import HEADER_BYTES, BatchHeader, parse_header, patch
from dataplane.stream.producers import ProducerTable
from dataplane.stream.transactions import Aborted
from providers.base.clock import LoopClock, SeededRng

SENT = b'"sent_wall_ms": '


def patched(batch: bytes, base_offset: int, leader_epoch: int) -> bytes:
    data = bytearray(batch)
    patch(data, base_offset, leader_epoch)
    return bytes(data)


ZONES = {1: "zone-a", 2: "zone-b"}
Waiting = tuple["Log", bytes, BatchHeader, Done]


class Log:
    """A partition: its batches in order. `lie`: what happens to the batch whose turn in this log is `lie_at`."""

    def __init__(self, lie: str, lie_at: int) -> None:
        self.leader_epoch = 0
        self.start_offset = 0
        self.high_watermark = 0
        self.batches: list[bytes] = []
        self.producers = ProducerTable()
        self.appended = 0
        self._lie, self._lie_at = lie, lie_at
        self._grown = asyncio.Event()
        self._watchers: set[Callable[[], None]] = set()

    def begin(self, batch: bytearray | memoryview, header: BatchHeader, done: Done) -> None:
        done(self._append(bytes(batch), header).base_offset, None)

    async def append(self, batch: bytes) -> Appended:
        return self._append(batch, parse_header(batch))

    def _append(self, batch: bytes, header: BatchHeader) -> Appended:
        if (known := self.producers.check(header, batch)) is not None:
            return Appended(known.base_offset, known.last_offset, 0, True)
        base = self.high_watermark
        last = base + header.last_offset_delta
        self.producers.record(header, base, batch)
        self._keep(patched(batch, base, 0), last - base + 1)
        self.appended += 1
        self._grown.set()
        for wake in list(self._watchers):
            wake()
        self._grown = asyncio.Event()
        return Appended(base, last, 0)

    def _keep(self, batch: bytes, count: int) -> None:
        kept = [batch]
        if self.appended == self._lie_at:
            match self._lie:
                case "lose":
                    kept = []
                case "twice":
                    kept = [batch, patched(batch, self.high_watermark + count, 0)]
                    self.high_watermark += count
                case "damage":
                    # One digit of a record's time of sending: only the batch's checksum tells.
                    at = batch.index(SENT, HEADER_BYTES) + len(SENT) + 5
                    kept = [batch[:at] + bytes([batch[at] ^ 1]) + batch[at + 1 :]]
        self.batches += kept
        self.high_watermark += count
        if self._lie == "swap" and self.appended == self._lie_at + 1:
            first, second = self.batches[-2:]
            at, size = parse_header(first).base_offset, parse_header(second).last_offset_delta + 1
            self.batches[-2:] = [patched(second, at, 0), patched(first, at + size, 0)]

    @property
    def last_stable_offset(self) -> int:
        first = self.producers.transactions.first_open
        return self.high_watermark if first is None else first

    def read_cached(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> None:
        return None

    def aborted_known(self, start: int, end: int) -> Sequence[Aborted]:
        return self.producers.transactions.aborted(start, end)

    async def aborted(self, start: int, end: int) -> Sequence[Aborted]:
        return self.aborted_known(start, end)

    def watch(self, wake: Callable[[], None]) -> None:
        self._watchers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        self._watchers.discard(wake)

    async def read(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> bytes:
        found = b""
        for batch in self.batches:
            header = parse_header(batch)
            if committed and header.base_offset >= self.last_stable_offset:
                break
            if header.base_offset + header.last_offset_delta < offset:
                continue
            if len(found) + len(batch) > bytes_max and (found or not minimum_one):
                break
            found += batch
        return found

    async def wait_for_data(self, offset: int, timeout_ms: float) -> None:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while self.high_watermark <= offset:
                    await self._grown.wait()
        except TimeoutError:
            pass

    async def offset_for_timestamp(self, timestamp_ms: int) -> tuple[int, int] | None:
        return None

    def end_offset_of_epoch(self, leader_epoch: int) -> tuple[int, int]:
        return (self.leader_epoch, self.high_watermark)


class Away:
    """A log whose writes wait: for what they are written to, or for a broker that stands still."""

    def __init__(self, log: Log, waiting: list[Waiting]) -> None:
        self._log = log
        self._waiting = waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def begin(self, batch: bytearray | memoryview, header: BatchHeader, done: Done) -> None:
        self._waiting.append((self._log, bytes(batch), header, done))


class Node:
    """`Engine` as one of the two brokers sees the shared state."""

    controller_id = 1
    cluster_id = "memory"
    zone_reads = False

    def __init__(self, cluster: MemoryCluster, node_id: int) -> None:
        self._cluster = cluster
        self.node_id = node_id

    def brokers(self) -> Sequence[BrokerView]:
        return [BrokerView(n, "127.0.0.1", port, ZONES[n]) for n, port in self._cluster.ports.items()]

    def topics(self) -> Mapping[str, TopicView]:
        return {
            name: TopicView(
                name,
                f"{index + 1:032x}",
                [PartitionView(p, 0, self._cluster.leader_of[p], log.leader_epoch) for p, log in enumerate(logs)],
            )
            for index, (name, logs) in enumerate(self._cluster.logs.items())
        }

    def topic(self, name: str) -> TopicView | None:
        return self.topics().get(name)

    def topic_name(self, topic_id: uuid.UUID) -> str | None:
        return next((name for name, view in self.topics().items() if view.topic_id == topic_id.hex), None)

    def leader(self, topic: str, partition: int) -> tuple[BrokerView, int] | None:
        view = self.topic(topic)
        node = view.partitions[partition].leader if view is not None else None
        return next(
            ((b, view.partitions[partition].leader_epoch) for b in self.brokers() if view and b.node_id == node), None
        )

    def partition(self, topic: str, partition: int) -> Log | Away:
        if topic not in self._cluster.logs:
            raise KafkaError(ErrorCode.unknown_topic_or_partition.value, "no such topic")
        if self._cluster.leader_of[partition] != self.node_id and self._cluster.frozen != self.node_id:
            raise KafkaError(ErrorCode.not_leader_or_follower.value, "another leads")
        log = self._cluster.logs[topic][self._cluster.served_as.get(partition, partition)]
        if self._cluster.away or self._cluster.frozen == self.node_id:
            return Away(log, self._cluster.waiting)
        return log

    writable = partition
    connected = ConnectedProducers()

    async def create_topic(
        self,
        name: str,
        partitions: int,
        configs: Mapping[str, str],
        *,
        internal: bool = False,
        owners: Sequence[int] | None = None,
    ) -> TopicView:
        self._cluster.logs[name] = [
            Log(self._cluster.lie if p == self._cluster.lying_partition else "", self._cluster.lie_at)
            for p in range(partitions)
        ]
        for p in range(partitions):
            self._cluster.leader_of.setdefault(p, 1 + p % 2)
        return self.topics()[name]

    async def delete_topic(self, name: str) -> None:
        self._cluster.deleted.append(name)
        del self._cluster.logs[name]

    async def allocate_producer_ids(self, count: int) -> int:
        self._cluster.producer_ids += count
        return self._cluster.producer_ids

    async def configure_topic(self, name: str, configs: Mapping[str, str]) -> None:
        raise NotImplementedError

    async def add_partitions(self, name: str, total: int) -> None:
        raise NotImplementedError

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        raise NotImplementedError

    async def move_partition(self, topic: str, partition: int, target: int) -> None:
        raise NotImplementedError

    def on_partitions_changed(self, callback: Callable[[str, int, Any], None]) -> None:
        pass

    def answer(self, op: str, handler: PeerHandler) -> None:
        pass

    async def ask(self, node: int, message: Message, timeout_ms: float) -> Message:
        raise NotImplementedError


class MemoryCluster:
    """A context manager; while it is open, `bootstrap` answers.

    `lie`: "", "lose", "twice", "swap" or "damage"; it happens to batch number `lie_at` of `lying_partition`.
    """

    def __init__(self, lie: str = "", *, lie_at: int = 20, lying_partition: int = 0) -> None:
        self.lie, self.lie_at, self.lying_partition = lie, lie_at, lying_partition
        self.logs: dict[str, list[Log]] = {}
        self.leader_of: dict[int, int | None] = {}
        self.served_as: dict[int, int] = {}
        """Partition → another whose log is served in its place."""
        self.ports: dict[int, int] = {}
        self.deleted: list[str] = []
        self.away = False
        """What the brokers write to does not answer."""
        self.frozen: int | None = None
        self.waiting: list[Waiting] = []
        self.producer_ids = 0
        self._servers: dict[int, KafkaServer] = {}
        self._home: dict[int, int | None] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> MemoryCluster:
        self._thread.start()
        for node in ZONES:
            self.call(self._start(node))
        return self

    def __exit__(self, *exc: object) -> None:
        for node in list(self._servers):
            self.call(self._stop(node))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def has_lied(self) -> bool:
        """It has done what it was told to, if that was to lie: how many records make a batch is the client's affair."""
        lying = [logs[self.lying_partition] for logs in self.logs.values() if len(logs) > self.lying_partition]
        return not self.lie or any(log.appended > self.lie_at + 1 for log in lying)

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports.values())

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(timeout=10)

    def kill(self, node: int, *, taken_over_after_s: float | None) -> None:
        """Cut a broker off; the other leads its partitions some time later, or nobody does (None)."""

        def take_over() -> None:
            for partition in [p for p, leader in self.leader_of.items() if leader is None]:
                self.leader_of[partition] = 3 - node

        async def die() -> None:
            self._home = dict(self.leader_of)
            for partition in [p for p, leader in self.leader_of.items() if leader == node]:
                self.leader_of[partition] = None
            await self._stop(node)
            if taken_over_after_s is not None:
                self._loop.call_later(taken_over_after_s, take_over)

        self.call(die())

    def freeze(self, node: int, *, taken_over_after_s: float) -> None:
        """Stop a broker from answering any write; the other leads its partitions some time later."""

        def take_over() -> None:
            for partition in [p for p, leader in self.leader_of.items() if leader == node]:
                self.leader_of[partition] = 3 - node

        async def stop() -> None:
            self.frozen = node
            self._loop.call_later(taken_over_after_s, take_over)

        self.call(stop())

    def thaw(self, *, acks: bool) -> None:
        """The frozen broker goes on: it refuses what waited, as one that was fenced, or acks what is kept nowhere."""

        async def go_on() -> None:
            self.frozen = None
            for _, _, _, done in self.waiting:
                if acks:
                    done(1_000_000, None)
                else:
                    done(-1, KafkaError(ErrorCode.not_leader_or_follower.value, "another leads"))
            self.waiting = []

        self.call(go_on())

    def set_away(self, away: bool) -> None:
        """Take away what the brokers write to, or bring it back: what waited is written then."""

        async def change() -> None:
            self.away = away
            waiting, self.waiting = self.waiting, []
            for log, batch, header, done in waiting:
                log.begin(bytearray(batch), header, done)

        self.call(change())

    def revive(self, node: int) -> None:
        """Start it again; it leads what nobody took over."""

        async def live() -> None:
            if node not in self._servers:
                await self._start(node)
            for partition in [p for p, leader in self.leader_of.items() if leader is None]:
                self.leader_of[partition] = self._home[partition]

        self.call(live())

    async def _start(self, node: int) -> None:
        server = KafkaServer(Node(self, node), clock=LoopClock(), rng=SeededRng(node))
        self.ports[node] = await server.start("127.0.0.1", self.ports.get(node, 0))
        self._servers[node] = server

    async def _stop(self, node: int) -> None:
        await self._servers.pop(node).close()
