"""What the Kafka protocol handlers need of the node below them. `node.py` implements it; tests of the protocol may use
a small one in memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dataplane.broker.connected import ConnectedProducers
from dataplane.stream.batch import BatchHeader, Buffer
from dataplane.stream.producers import ProducerTable
from dataplane.stream.transactions import Aborted


@dataclass(frozen=True, slots=True)
class BrokerView:
    """A live broker as metadata shows it."""

    node_id: int
    host: str
    port: int
    rack: str


@dataclass(frozen=True, slots=True)
class PartitionView:
    """A partition as metadata shows it. `leader` is None while nobody serves it (between a fence and the takeover)."""

    partition: int
    stream: int
    leader: int | None
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class TopicView:
    """A topic; `topic_id` is a UUID's 32 hex digits."""

    name: str
    topic_id: str
    partitions: Sequence[PartitionView]
    configs: Mapping[str, str] = field(default_factory=dict)
    internal: bool = False


@dataclass(frozen=True, slots=True)
class Appended:
    """Outcome of an append: offsets [base_offset, last_offset]; `duplicate` when an idempotent producer had sent this
    batch before.
    """

    base_offset: int
    last_offset: int
    log_start_offset: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class LogDir:
    """A place where partitions' bytes are, by (topic, partition). -1: a size that has no bound, or is not known."""

    path: str
    sizes: Mapping[tuple[str, int], int]
    total_bytes: int = -1
    usable_bytes: int = -1


@dataclass(frozen=True, slots=True)
class Quorum:
    """The ledger: the controller's term, and how many entries there are."""

    term: int
    entries: int


class KafkaError(Exception):
    """A refusal with the protocol's own error code (`kio.schema.errors.ErrorCode` value) and one sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Busy(KafkaError):
    """There is no room for the append now, and there will be: try again, or refuse when that takes too long."""


Message = dict[str, Any]
"""What brokers of one cell say to each other: a JSON object, and bytes as "data"."""
PeerHandler = Callable[[Message], Awaitable[Message]]


class Done(Protocol):
    """The end of an append: its first offset once it is acked, or why it failed. `moved`: the client is to be told who
    leads the partition now."""

    def __call__(self, base_offset: int, error: KafkaError | None, moved: bool = False, /) -> None: ...


class AppendLog(Protocol):
    """Where a client's batches for a partition go."""

    @property
    def start_offset(self) -> int: ...

    @property
    def producers(self) -> ProducerTable | None:
        """Producers and transactions at the end of what was begun; None where only another node knows."""
        ...

    def begin(self, batch: bytearray | memoryview, header: BatchHeader, done: Done) -> None:
        """`append` without a wait: `done` is called once the outcome is known. The batch's memory becomes the log's
        own.

        Raises:
            Busy: the WAL pushes back.
            KafkaError: as `append`. In both cases `done` is not called.
        """
        ...


class PartitionLog(AppendLog, Protocol):
    """An open partition on this node. All calls run on the broker's one event loop."""

    @property
    def leader_epoch(self) -> int: ...

    @property
    def high_watermark(self) -> int:
        """One past the last acked offset: what consumers may see."""
        ...

    @property
    def last_stable_offset(self) -> int:
        """Every transaction with offsets below is decided: what consumers of committed records may see."""
        ...

    @property
    def producers(self) -> ProducerTable: ...

    async def append(self, batch: bytes) -> Appended:
        """Append one v2 record batch whose header and CRC the caller has verified; returns once it is acked (durable).
        Appends of one partition are ordered by the
        moment of the call: the offsets are assigned before the first await.

        Raises:
            KafkaError: OUT_OF_ORDER_SEQUENCE_NUMBER, INVALID_PRODUCER_EPOCH (idempotence), INVALID_TXN_STATE,
            NOT_LEADER_OR_FOLLOWER (moved, fenced, or frozen too long),
                KAFKA_STORAGE_ERROR, THROTTLING_QUOTA_EXCEEDED-like push-back as REQUEST_TIMED_OUT (WAL full).
        """
        ...

    def read_cached(
        self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False
    ) -> Sequence[Buffer] | None:
        """What `read` would return, in pieces, if it is in memory; None if it is not.

        Raises:
            KafkaError: as `read`.
        """
        ...

    async def read(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> bytes:
        """Whole record batches from the one that holds `offset`, up to `bytes_max` (at least one batch if
        `minimum_one`), never beyond the high watermark (the last stable offset, if `committed`); b"" at the end.

        Raises:
            KafkaError: OFFSET_OUT_OF_RANGE, NOT_LEADER_OR_FOLLOWER, KAFKA_STORAGE_ERROR (corrupt or unreachable object:
            never served).
        """
        ...

    def aborted_known(self, start: int, end: int) -> Sequence[Aborted] | None:
        """Transactions that were aborted of the offsets [start, end), if memory knows."""
        ...

    async def aborted(self, start: int, end: int) -> Sequence[Aborted]:
        """The same, whoever knows.

        Raises:
            KafkaError: KAFKA_STORAGE_ERROR.
        """
        ...

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever the high watermark rises, and when the partition is closed, until `unwatch`."""
        ...

    def unwatch(self, wake: Callable[[], None]) -> None: ...

    async def wait_for_data(self, offset: int, timeout_ms: float) -> None:
        """Return when the high watermark is above `offset`, the partition is closed, or the time is over."""
        ...

    async def offset_for_timestamp(self, timestamp_ms: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first batch whose max timestamp is at or after `timestamp_ms`, at batch precision;
        None when there is none.
        """
        ...

    async def newest(self) -> tuple[int, int] | None:
        """(offset, timestamp) of the record with the greatest timestamp, as exactly as that can be told without opening
        a compressed batch; None when there is none.

        Raises:
            KafkaError: as `read`.
        """
        ...

    @property
    def tiered_offset(self) -> int:
        """Everything below is in object storage; from here on records are in the WAL."""
        ...

    def end_offset_of_epoch(self, leader_epoch: int) -> tuple[int, int]:
        """(epoch, end offset) of the greatest epoch at or below `leader_epoch`: OffsetForLeaderEpoch. (-1, -1) if there
        is none.
        """
        ...


class ReplicaLog(Protocol):
    """What this node can read of a partition, whoever leads it: what is in object storage. See `stream/replica.py`."""

    @property
    def stream(self) -> int: ...

    @property
    def leader_epoch(self) -> int: ...

    @property
    def start_offset(self) -> int: ...

    @property
    def high_watermark(self) -> int:
        """Everything below is acked; more may be."""
        ...

    def end(self, offset: int) -> int:
        """The offsets [offset, end) can be read here; `offset` itself if it cannot."""
        ...

    async def stable_end(self, offset: int) -> int:
        """The same for readers of committed records.

        Raises:
            KafkaError: KAFKA_STORAGE_ERROR.
        """
        ...

    async def read(self, offset: int, bytes_max: int, end: int, *, minimum_one: bool) -> bytes:
        """Whole record batches from the one that holds `offset`, up to offset `end` and `bytes_max`; b"" where nothing
        is left of what was there.

        Raises:
            KafkaError: OFFSET_OUT_OF_RANGE, KAFKA_STORAGE_ERROR.
        """
        ...

    async def aborted(self, start: int, end: int) -> Sequence[Aborted]:
        """Transactions that were aborted of the offsets [start, end), below a stable end.

        Raises:
            KafkaError: KAFKA_STORAGE_ERROR.
        """
        ...

    async def bytes_ahead(self, offset: int, enough: int) -> int:
        """About how many bytes can be read here from `offset` on; no more than `enough` are counted.

        Raises:
            KafkaError: KAFKA_STORAGE_ERROR.
        """
        ...

    async def refresh(self) -> None:
        """Look into the ledger for more, as far as it can be reached."""
        ...


class Engine(Protocol):
    """The node under the protocol: metadata from the ledger, partitions that it owns, and admin commands that go
    through the ledger.
    """

    @property
    def node_id(self) -> int: ...

    @property
    def connected(self) -> ConnectedProducers:
        """Producers that have a connection to this node."""
        ...

    @property
    def zone(self) -> str:
        """Where this node is."""
        ...

    @property
    def zone_reads(self) -> bool:
        """Whether consumers read in their own zone where they can."""
        ...

    @property
    def cluster_id(self) -> str: ...

    @property
    def controller_id(self) -> int | None: ...

    def brokers(self) -> Sequence[BrokerView]: ...

    def topics(self) -> Mapping[str, TopicView]:
        """Every topic by name."""
        ...

    def topic(self, name: str) -> TopicView | None:
        """One topic, None when it does not exist. Cheap, unlike `topics`: heartbeats and commits ask."""
        ...

    def topic_name(self, topic_id: uuid.UUID) -> str | None:
        """The name of the topic with this id, None when there is none. As cheap as `topic`."""
        ...

    def leader(self, topic: str, partition: int) -> tuple[BrokerView, int] | None:
        """Who leads a partition, and its epoch; None when nobody does, or it is not known."""
        ...

    def partition(self, topic: str, partition: int) -> PartitionLog:
        """The open log.

        Raises:
            KafkaError: UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, LEADER_NOT_AVAILABLE.
        """
        ...

    def writable(self, topic: str, partition: int) -> AppendLog:
        """The open log; for a moment after the partition was handed over, the way to its new owner.

        Raises:
            KafkaError: as `partition`.
        """
        ...

    def replica(self, topic: str, partition: int) -> ReplicaLog:
        """What this node can read of a partition, whoever leads it.

        Raises:
            KafkaError: UNKNOWN_TOPIC_OR_PARTITION; NOT_LEADER_OR_FOLLOWER: this node may have been fenced.
        """
        ...

    async def create_topic(
        self,
        name: str,
        partitions: int,
        configs: Mapping[str, str],
        *,
        internal: bool = False,
        owners: Sequence[int] | None = None,
    ) -> TopicView:
        """Create; returns when the ledger has accepted it and (bounded wait) the owners serve it. `owners`: the broker
        of each partition; None: the least loaded ones.

        Raises:
            KafkaError: TOPIC_ALREADY_EXISTS, INVALID_TOPIC_EXCEPTION, INVALID_PARTITIONS, INVALID_CONFIG,
            INVALID_REPLICA_ASSIGNMENT (an owner is not live), REQUEST_TIMED_OUT.
        """
        ...

    async def delete_topic(self, name: str) -> None: ...

    async def configure_topic(self, name: str, configs: Mapping[str, str]) -> None:
        """Give a topic these configs and no others."""
        ...

    async def add_partitions(self, name: str, total: int, owners: Sequence[int] | None = None) -> None:
        """Grow a topic to `total` partitions; `owners` of the new ones as in `create_topic`."""
        ...

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        """Raise the log start; returns the new one."""
        ...

    async def move_partition(self, topic: str, partition: int, target: int) -> None:
        """Planned migration to node `target`; returns when the ledger shows the outcome. Any node may be asked.

        Raises:
            KafkaError: INVALID_REPLICA_ASSIGNMENT (unknown or fenced target), NOT_LEADER_OR_FOLLOWER,
            REQUEST_TIMED_OUT.
        """
        ...

    async def log_dirs(self, wanted: Collection[tuple[str, int]] | None) -> Sequence[LogDir]:
        """Bytes of the partitions that this node serves, by place; `wanted`: only those."""
        ...

    def quorum(self) -> Quorum:
        """How far the cell's ledger is, as this node knows it."""
        ...

    async def allocate_producer_ids(self, count: int) -> int:
        """First of `count` consecutive producer ids that nobody else ever gets."""
        ...

    async def ask(self, node: int, message: Message, timeout_ms: float) -> Message:
        """The answer of broker `node`, this one too, to a request whose "op" its `answer` serves.

        Raises:
            KafkaError: REQUEST_TIMED_OUT: no answer; the request may have been carried out.
        """
        ...

    def answer(self, op: str, handler: PeerHandler) -> None:
        """Serve what other brokers `ask`; an error is {"code": Kafka's, "error": a sentence}."""
        ...

    def on_partitions_changed(self, callback: Callable[[str, int, PartitionLog | None], None]) -> None:
        """`callback(topic, partition, log_or_None)` after a partition of an *internal* topic is opened (log) or closed
        (None) here: how the group coordinator loads and unloads.
        """
        ...
