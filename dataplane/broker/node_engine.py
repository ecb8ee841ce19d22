"""`Engine` over a `Node`: the cell's state as Kafka metadata, own partitions as logs, admin commands as ledger entries.
Errors of the project's kinds become Kafka's codes here.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence

from kio.schema.errors import ErrorCode

from dataplane.broker import describing, forwarding, owed
from dataplane.broker.connected import ConnectedProducers
from dataplane.broker.engine import (
    AppendLog,
    BrokerView,
    Busy,
    Done,
    KafkaError,
    LogDir,
    Message,
    PartitionLog,
    PartitionView,
    PeerHandler,
    Quorum,
    ReplicaLog,
    TopicView,
)
from dataplane.broker.forwarding import Forwarder
from dataplane.broker.node import Node
from dataplane.broker.node_log import NodeLog, kafka_error
from dataplane.broker.node_replica import NodeReplica
from dataplane.broker.peers import Peers, ask_to_move
from dataplane.failover.takeover import least_loaded
from dataplane.ledger.commands import (
    partitions_added,
    producer_ids_allocated,
    stream_trimmed,
    topic_configured,
    topic_created,
    topic_deleted,
)
from dataplane.ledger.entry import Command
from dataplane.ledger.state import Broker, BrokerStatus, CellState, Stream, Topic
from dataplane.stream.partition import NotOwner, Partition
from dataplane.stream.producers import HANDOVER_PRODUCERS_MAX
from providers.base.clock import Clock, Rng
from providers.base.errors import Unavailable, YunheError

log = logging.getLogger(__name__)

ADMIN_TIMEOUT_MS = 15_000
OPEN_WAIT_MS = 5_000
"""How long creating a topic waits until this node serves its own part of it; other owners follow within a poll."""

PRODUCER_ID_BLOCK = 1_000
"""Producer ids taken from the ledger at once, so that most producers cost no entry."""

LogCallback = Callable[[str, int, PartitionLog | None], None]


class NodeEngine:
    """See `Engine`. `handle` answers what other brokers ask."""

    def __init__(self, node: Node, peers: Peers, *, clock: Clock, rng: Rng) -> None:
        self._node = node
        self._peers = peers
        self._clock = clock
        self._rng = rng
        self._ids_next = 0
        self._ids_end = 0
        self._allocating = asyncio.Lock()
        self._callbacks: list[LogCallback] = []
        self._confirming: set[asyncio.Task[None]] = set()
        self._answers: dict[str, PeerHandler] = {}
        self.forwarder = Forwarder(
            node.node_id, state=lambda: node.state, partitions=lambda: node.partitions, peers=peers
        )
        self.connected = ConnectedProducers()
        self.forward = self.forwarder.forward
        self.settle = self.forwarder.settle

    def attach(self) -> None:
        """Hear of partitions opened and closed from now on, and of those open already."""
        partitions = self._node.partitions
        partitions.on_changed = self._on_changed
        for partition in partitions.everything():
            if not partition.closed:
                self._on_changed(partition.stream, partition)

    # ── metadata ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def node_id(self) -> int:
        return self._node.node_id

    @property
    def zone(self) -> str:
        return self._node.config.broker.zone

    @property
    def zone_reads(self) -> bool:
        return self._node.config.settings.zone_reads

    @property
    def cluster_id(self) -> str:
        return f"{self._node.config.cell}.{self._node.config.cluster}"

    @property
    def controller_id(self) -> int | None:
        controller = self._node.state.controller
        return controller.node if controller is not None and self._node.state.is_live(controller) else None

    def brokers(self) -> Sequence[BrokerView]:
        return [_view_of(broker) for broker in self._node.state.live()]

    def topics(self) -> Mapping[str, TopicView]:
        state = self._node.state
        return {name: self._view(state, topic) for name, topic in state.topics.items()}

    def topic(self, name: str) -> TopicView | None:
        state = self._node.state
        found = state.topics.get(name)
        return self._view(state, found) if found is not None else None

    def _view(self, state: CellState, topic: Topic) -> TopicView:
        partitions = []
        for i, stream_id in enumerate(topic.streams):
            span = state.streams[stream_id].open
            leader = span.node if state.is_live(span.owner) else None
            partitions.append(PartitionView(i, stream_id, leader, span.epoch))
        return TopicView(topic.name, topic.topic_id, partitions, topic.configs, topic.internal)

    def topic_name(self, topic_id: uuid.UUID) -> str | None:
        return self._node.state.topic_names.get(topic_id.hex)

    def leader(self, topic: str, partition: int) -> tuple[BrokerView, int] | None:
        state = self._node.state
        found = state.topics.get(topic)
        if found is None or not 0 <= partition < len(found.streams):
            return None
        stream = state.streams[found.streams[partition]]
        broker = state.owner_of(stream)
        return (_view_of(broker), stream.epoch) if broker is not None else None

    def partition(self, topic: str, partition: int) -> PartitionLog:
        stream = self._stream(topic, partition)
        node = self._node
        self._check_ledger()
        opened = node.partitions.get(stream.id)
        if opened is None or opened.epoch != stream.epoch:
            if node.partitions.opens_soon(stream.id):
                raise Busy(ErrorCode.not_leader_or_follower.value, f"{topic}-{partition} is being opened")
            raise KafkaError(
                ErrorCode.not_leader_or_follower.value, f"{topic}-{partition} is not served by broker {self.node_id}"
            )
        return NodeLog(opened, self)

    def writable(self, topic: str, partition: int) -> AppendLog:
        stream = self._stream(topic, partition)
        if (way := self.forwarder.way(stream)) is not None:
            self._check_ledger()
            return way
        if self.forwarder.under_way(stream.id) and self._node.partitions.get(stream.id) is not None:
            # It has come back: what is still on its way from here to the other owner comes first.
            raise Busy(ErrorCode.not_leader_or_follower.value, f"{topic}-{partition} is being moved")
        return self.partition(topic, partition)

    def replica(self, topic: str, partition: int) -> ReplicaLog:
        stream = self._stream(topic, partition)
        self._check_ledger()
        return NodeReplica(stream, self._node)

    def _check_ledger(self) -> None:
        if self._node.failed.done() or self._node.ledger_is_stale():
            raise KafkaError(ErrorCode.not_leader_or_follower.value, "this broker may have been fenced")

    def confirm(self, partition: Partition, error: YunheError, done: Done) -> None:
        """Tell `done` of a refusal, once the ledger has confirmed that this node may refuse."""

        async def look() -> None:
            done(-1, kafka_error(await self.confirmed(partition, error)))

        task = asyncio.create_task(look())
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def confirmed(self, partition: Partition, error: YunheError) -> YunheError:
        """`error`, if the ledger as it is now still names this node as the partition's owner; otherwise what the client
        should hear instead.
        """
        try:
            await self._node.refresh()
        except Unavailable as unavailable:
            return unavailable
        return NotOwner("this broker is not the owner any more") if partition.closed else error

    def _stream(self, topic: str, partition: int) -> Stream:
        state = self._node.state
        found = state.topics.get(topic)
        if found is None or not 0 <= partition < len(found.streams):
            raise KafkaError(ErrorCode.unknown_topic_or_partition.value, f"{topic}-{partition} does not exist")
        return state.streams[found.streams[partition]]

    def on_partitions_changed(self, callback: LogCallback) -> None:
        self._callbacks.append(callback)

    def _on_changed(self, stream: Stream, partition: Partition | None) -> None:
        topic = self._node.state.topics.get(stream.topic)
        if topic is not None and topic.internal:
            for callback in self._callbacks:
                callback(stream.topic, stream.partition, NodeLog(partition, self) if partition is not None else None)

    # ── admin ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create_topic(
        self,
        name: str,
        partitions: int,
        configs: Mapping[str, str],
        *,
        internal: bool = False,
        owners: Sequence[int] | None = None,
    ) -> TopicView:
        topic_id = self._rng.token()
        await self._append(
            lambda state: (
                [
                    topic_created(
                        name, topic_id, owners or self._least_loaded(state, partitions), configs, internal=internal
                    )
                ]
                if name not in state.topics
                else None
            ),
            refused=ErrorCode.topic_already_exists,
        )
        await self._until_open(name)
        return self._view(self._node.state, self._node.state.topics[name])

    def _least_loaded(self, state: CellState, count: int) -> Sequence[int]:
        return least_loaded(state, count, self._node.slow_nodes())

    async def delete_topic(self, name: str) -> None:
        topic = self._topic(name)
        await self._append(
            lambda state: [topic_deleted(name, topic.topic_id)], refused=ErrorCode.unknown_topic_or_partition
        )

    async def configure_topic(self, name: str, configs: Mapping[str, str]) -> None:
        topic = self._topic(name)
        await self._append(
            lambda state: [topic_configured(name, topic.topic_id, configs)],
            refused=ErrorCode.unknown_topic_or_partition,
        )

    async def add_partitions(self, name: str, total: int, owners: Sequence[int] | None = None) -> None:
        topic = self._topic(name)
        present = len(topic.streams)
        await self._append(
            lambda state: [
                partitions_added(name, topic.topic_id, present, owners or self._least_loaded(state, total - present))
            ],
            refused=ErrorCode.invalid_partitions,
        )
        await self._until_open(name)

    async def log_dirs(self, wanted: Collection[tuple[str, int]] | None) -> Sequence[LogDir]:
        return await describing.log_dirs(self._node, wanted)

    def quorum(self) -> Quorum:
        return describing.quorum(self._node)

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        stream = self._stream(topic, partition)
        opened = self._node.partitions.get(stream.id)
        if opened is None:
            raise KafkaError(ErrorCode.not_leader_or_follower.value, f"{topic}-{partition} is not served here")
        start = opened.high_watermark if before_offset == -1 else before_offset
        if not 0 <= start <= opened.high_watermark:
            raise KafkaError(ErrorCode.offset_out_of_range.value, f"offset {start} is beyond {opened.high_watermark}")
        if start > opened.start_offset:
            me, epoch = self._node.me, opened.epoch
            # Whatever goes, the next owner has to know the producers.
            producers = opened.high_watermark, opened.acked_producers().dump(HANDOVER_PRODUCERS_MAX)
            await self._append(
                lambda state: [stream_trimmed(stream.id, epoch, me, start, producers)],
                refused=ErrorCode.not_leader_or_follower,
            )
        return opened.start_offset

    async def allocate_producer_ids(self, count: int) -> int:
        # One at a time: the state knows only a node's newest block.
        async with self._allocating:
            if self._ids_end - self._ids_next < count:
                me = self._node.me
                await self._append(
                    lambda state: [producer_ids_allocated(me, max(count, PRODUCER_ID_BLOCK))],
                    refused=ErrorCode.not_controller,
                )
                first, size = self._node.state.producer_blocks[me.node]
                self._ids_next, self._ids_end = first, first + size
            first = self._ids_next
            self._ids_next += count
            return first

    async def move_partition(self, topic: str, partition: int, target: int) -> None:
        broker = self._node.state.brokers.get(target)
        if broker is None or broker.status is not BrokerStatus.LIVE:
            raise KafkaError(ErrorCode.invalid_replica_assignment.value, f"broker {target} is not live")
        answer = await self._move(self._stream(topic, partition), target)
        if answer.get("error") is not None:
            raise KafkaError(int(answer["code"]), str(answer["error"]))

    async def _move(self, stream: Stream, target: int) -> Message:
        if stream.open.node == self.node_id:
            return await self._move_own(stream.id, target)
        owner = self._node.state.owner_of(stream)
        if owner is None:
            return _refusal(ErrorCode.leader_not_available, f"{stream.topic}-{stream.partition} has no live owner now")
        try:
            answer = await ask_to_move(self._peers, owner, stream.id, target, ADMIN_TIMEOUT_MS)
            await self._node.refresh()
        except Unavailable as error:
            return _refusal(ErrorCode.request_timed_out, error.message)
        return answer

    async def _move_own(self, stream: int, target: int) -> Message:
        try:
            refused = await self._node.move(stream, target)
        except YunheError as error:
            kafka = kafka_error(error)
            return {"error": kafka.message, "code": kafka.code}
        if refused is not None:
            return _refusal(ErrorCode.invalid_replica_assignment, refused)
        return {"error": None}

    async def handle(self, message: Message) -> Message | None:
        """Answer another broker; heartbeats have no answer."""
        match message.get("op"):
            case "beat":
                self._node.hear(message)
                return None
            case "move":
                return await self._move_own(int(message["stream"]), int(message["target"]))
            case forwarding.OP:
                return await forwarding.take(message, self._node.partitions, self, self.connected)
            case owed.OP:
                return self._node.owed.answer(message)
            case str(op) if op in self._answers:
                return await self._answers[op](message)
            case other:
                return _refusal(ErrorCode.invalid_request, f"unknown request {other!r}")

    def answer(self, op: str, handler: PeerHandler) -> None:
        self._answers[op] = handler

    async def ask(self, node: int, message: Message, timeout_ms: float) -> Message:
        if node == self.node_id:
            return await self._answers[message["op"]](message)
        broker = self._node.state.brokers.get(node)
        if broker is None or broker.status is not BrokerStatus.LIVE:
            raise KafkaError(ErrorCode.request_timed_out.value, f"broker {node} is not live")
        try:
            return await self._peers.request((broker.host, broker.peer_port), message, timeout_ms)
        except Unavailable as error:
            raise KafkaError(ErrorCode.request_timed_out.value, error.message) from error

    def _topic(self, name: str) -> Topic:
        topic = self._node.state.topics.get(name)
        if topic is None:
            raise KafkaError(ErrorCode.unknown_topic_or_partition.value, f"topic {name} does not exist")
        return topic

    async def _append(self, decide: Callable[[CellState], Sequence[Command] | None], *, refused: ErrorCode) -> None:
        try:
            why = await self._node.append(decide)
        except Unavailable as error:
            raise KafkaError(ErrorCode.request_timed_out.value, error.message) from error
        if why is not None:
            raise KafkaError(refused.value, why)

    async def _until_open(self, name: str) -> None:
        deadline = self._clock.monotonic_ms() + OPEN_WAIT_MS
        while not self._node.partitions.settled and self._clock.monotonic_ms() < deadline:
            await self._clock.sleep_ms(2)


def _view_of(broker: Broker) -> BrokerView:
    return BrokerView(broker.node, broker.host, broker.kafka_port, broker.zone)


def _refusal(code: ErrorCode, message: str) -> Message:
    return {"error": message, "code": code.value}
