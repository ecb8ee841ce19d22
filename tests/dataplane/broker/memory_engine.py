"""Brokers in memory under simulated time, for coordinators: partitions that can be moved, markers that can be lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Appended, BrokerView, KafkaError, Message, PartitionView, PeerHandler, TopicView
from dataplane.stream.batch import parse_header, patch
from dataplane.stream.partition import OutOfRange
from dataplane.stream.producers import ProducerTable

APPEND_MS = 1.0


class Records:
    """What is durable of one partition, whoever owns it."""

    def __init__(self) -> None:
        self.start = 0
        self.batches: list[bytes] = []
        self.epoch = 1
        self.producers = ProducerTable()

    @property
    def end(self) -> int:
        if not self.batches:
            return self.start
        header = parse_header(self.batches[-1])
        return header.base_offset + header.last_offset_delta + 1


class Log:
    """`PartitionLog` of one ownership."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.leader_epoch = records.epoch
        self.appends = 0
        self.lose_next = False

    def _check(self) -> None:
        if self._records.epoch != self.leader_epoch:
            raise KafkaError(ErrorCode.not_leader_or_follower.value, "moved")

    @property
    def start_offset(self) -> int:
        return self._records.start

    @property
    def high_watermark(self) -> int:
        return self._records.end

    last_stable_offset = high_watermark

    @property
    def producers(self) -> ProducerTable:
        return self._records.producers

    async def append(self, batch: bytes) -> Appended:
        self._check()
        header = parse_header(batch)
        earlier = self._records.producers.check(header, batch)
        if earlier is not None:
            return Appended(earlier.base_offset, earlier.last_offset, 0, True)
        await asyncio.sleep(APPEND_MS / 1000)
        self._check()
        base = self._records.end
        made = bytearray(batch)
        patch(made, base, self.leader_epoch)
        self._records.batches.append(bytes(made))
        self._records.producers.record(header, base, batch)
        self.appends += 1
        return Appended(base, base + header.last_offset_delta, self._records.start)

    async def read(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> bytes:
        self._check()
        if offset < self._records.start:
            raise OutOfRange(str(offset))
        return b"".join(b for b in self._records.batches if parse_header(b).base_offset >= offset)


class MemoryCell:
    """The cell that all brokers share."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], Records] = {}
        self.leaders: dict[tuple[str, int], int] = {}
        self.internal: set[str] = set()
        self.brokers: dict[int, MemoryBroker] = {}
        self.producer_ids = 0
        self.unheard: Callable[[int, Message], bool] = lambda node, message: False
        """Requests that get no answer, though they may have been carried out."""

    def broker(self, node: int) -> MemoryBroker:
        made = self.brokers[node] = MemoryBroker(self, node)
        return made

    def create(self, topic: str, partitions: int, leader: int, *, internal: bool = False) -> None:
        if internal:
            self.internal.add(topic)
        for p in range(partitions):
            self.records[topic, p] = Records()
            self.leaders[topic, p] = leader
            self.brokers[leader].opened(topic, p)

    def move(self, topic: str, partition: int, to: int) -> None:
        """A new owner opens the partition; the old one finds out as it is closed."""
        before = self.brokers.get(self.leaders[topic, partition])
        self.records[topic, partition].epoch += 1
        self.leaders[topic, partition] = to
        if before is not None:
            before.closed(topic, partition)
        self.brokers[to].opened(topic, partition)


class MemoryBroker:
    """`Engine` of one broker, as far as coordinators use it."""

    def __init__(self, cell: MemoryCell, node_id: int) -> None:
        self._cell = cell
        self.node_id = node_id
        self._callbacks: list[Callable[[str, int, Any], None]] = []
        self.answers: dict[str, PeerHandler] = {}
        self.logs: dict[tuple[str, int], Log] = {}

    def opened(self, topic: str, partition: int) -> None:
        log = self.logs[topic, partition] = Log(self._cell.records[topic, partition])
        if topic in self._cell.internal:
            for callback in self._callbacks:
                callback(topic, partition, log)

    def closed(self, topic: str, partition: int) -> None:
        del self.logs[topic, partition]
        if topic in self._cell.internal:
            for callback in self._callbacks:
                callback(topic, partition, None)

    def brokers(self) -> Sequence[BrokerView]:
        return [BrokerView(n, "h", n, "z") for n in self._cell.brokers]

    def topics(self) -> Mapping[str, TopicView]:
        return {name: view for name, _ in self._cell.records if (view := self.topic(name)) is not None}

    def topic(self, name: str) -> TopicView | None:
        count = sum(1 for topic, _ in self._cell.records if topic == name)
        views = [PartitionView(p, p, self._cell.leaders[name, p], 1) for p in range(count)]
        return TopicView(name, "0" * 32, views) if views else None

    def topic_name(self, topic_id: uuid.UUID) -> str | None:
        return next((name for name, view in self.topics().items() if view.topic_id == topic_id.hex), None)

    def partition(self, topic: str, partition: int) -> Log:
        log = self.logs.get((topic, partition))
        if log is None:
            raise KafkaError(ErrorCode.not_leader_or_follower.value, "elsewhere")
        return log

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        records = self._cell.records[topic, partition]
        records.batches = [b for b in records.batches if parse_header(b).base_offset >= before_offset]
        records.start = before_offset
        return before_offset

    async def allocate_producer_ids(self, count: int) -> int:
        self._cell.producer_ids += count
        return self._cell.producer_ids

    def on_partitions_changed(self, callback: Callable[[str, int, Any], None]) -> None:
        self._callbacks.append(callback)

    def answer(self, op: str, handler: PeerHandler) -> None:
        self.answers[op] = handler

    async def ask(self, node: int, message: Message, timeout_ms: float) -> Message:
        await asyncio.sleep(0.001)
        answer = await self._cell.brokers[node].answers[message["op"]](message)
        if self._cell.unheard(node, message):
            await asyncio.sleep(timeout_ms / 1000)
            raise KafkaError(ErrorCode.request_timed_out.value, "no answer")
        return answer
