"""What a cell has decided: the state that its ledger's entries fold into. Values only; `cell.py` is the fold.

A stream's offsets are covered by *spans*, one an epoch: who owned it then, where it began, how far it is in object
storage, and where it was closed.

      span (epoch 3, node 1)            span (epoch 4, node 2, open)
      start      uploaded    end        start = 3's end    uploaded
      |──────────────|─ owed ─|─────────|────────────────────|· · · in node 2's WAL
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.security_state import SecurityState, load_security


class BrokerStatus(StrEnum):
    """absent ──joined──► live ──fenced──► fenced ──recovered──► gone ──joined (epoch + 1)──► live

    A clean shutdown goes from live to gone at once (left).
    """

    LIVE = "live"
    FENCED = "fenced"
    GONE = "gone"


@dataclass(slots=True)
class WalState:
    """A broker epoch's WAL as recovery needs to know it."""

    mode: str
    sides: list[str]
    """The membership: what an ack means now. Any one of them suffices for recovery."""
    volume: str | None = None
    volume_zones: list[str] = field(default_factory=list)
    express: str | None = None
    floor: int = 1
    """Number of the first block that may hold something not in object storage."""
    tail: str | None = None
    """Of a broker that was closed before its recovery: the object with the last blocks that its WAL was read to hold,
    those that perhaps not every side has."""
    instances: dict[str, int] = field(default_factory=dict)
    """Which instance of a side counts, of those that were lost and came back within the epoch; of all others the first,
    0."""


@dataclass(slots=True)
class Broker:
    node: int
    epoch: int
    name: str
    zone: str
    host: str
    kafka_port: int
    peer_port: int
    wal: WalState
    status: BrokerStatus = BrokerStatus.LIVE
    fenced_reason: str = ""
    lanes: dict[str, int] = field(default_factory=dict)
    """Number of the last object that each lane of this epoch committed (`object_names.py`)."""

    @property
    def id(self) -> NodeEpoch:
        return NodeEpoch(self.node, self.epoch)


@dataclass(slots=True)
class Span:
    """What one epoch of a stream wrote. `end` is None while the epoch is open."""

    epoch: int
    node: int
    node_epoch: int
    start: int
    uploaded: int
    end: int | None = None

    @property
    def owner(self) -> NodeEpoch:
        return NodeEpoch(self.node, self.node_epoch)

    @property
    def owed(self) -> bool:
        """Closed, with acked records that are not yet in object storage."""
        return self.end is not None and self.uploaded < self.end


@dataclass(slots=True)
class Extent:
    """Offsets [start, end) of a stream are in this object."""

    start: int
    end: int
    object: str
    size: int


@dataclass(slots=True)
class Stream:
    id: int
    topic: str
    partition: int
    start: int
    spans: list[Span]
    extents: list[Extent] = field(default_factory=list)
    """Sorted by start; gaps only where a span is owed."""
    handover: dict[str, Any] | None = None
    """Idempotent producers and transactions at the moved end: {"offset", "producers"}."""
    cleaned: int = 0
    """Of a compacted topic: below this offset each key has one record, but for those above."""

    @property
    def open(self) -> Span:
        """The current owner's span."""
        return self.spans[-1]

    @property
    def epoch(self) -> int:
        return self.spans[-1].epoch

    def span_of(self, epoch: int) -> Span | None:
        """The span of that epoch, None when there is none."""
        for span in reversed(self.spans):
            if span.epoch == epoch:
                return span
        return None


@dataclass(slots=True)
class Topic:
    name: str
    topic_id: str
    configs: dict[str, str]
    internal: bool
    streams: list[int]
    """Stream of partition 0, 1, …"""


@dataclass(slots=True)
class CellState:
    term: int = 0
    controller: NodeEpoch | None = None
    brokers: dict[int, Broker] = field(default_factory=dict)
    topics: dict[str, Topic] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    next_stream: int = 1
    next_producer_id: int = 1
    producer_blocks: dict[int, list[int]] = field(default_factory=dict)
    """Newest allocation of each node: [first, count]."""
    objects: dict[str, int] = field(default_factory=dict)
    """How many extents refer to each object."""
    garbage: list[str] = field(default_factory=list)
    """Objects that nothing refers to any more, to be deleted by the controller."""
    security: SecurityState = field(default_factory=SecurityState)
    topic_names: dict[str, str] = field(default_factory=dict)
    """Each topic's name by its id: what follows from `topics`, for those who know only ids. Not stored."""

    def live(self) -> list[Broker]:
        """Live brokers by node id."""
        return [self.brokers[n] for n in sorted(self.brokers) if self.brokers[n].status is BrokerStatus.LIVE]

    def is_live(self, node: NodeEpoch) -> bool:
        broker = self.brokers.get(node.node)
        return broker is not None and broker.epoch == node.epoch and broker.status is BrokerStatus.LIVE

    def owner_of(self, stream: Stream) -> Broker | None:
        """The broker that owns the stream, None while that epoch of it is not live."""
        return self.brokers[stream.open.node] if self.is_live(stream.open.owner) else None

    def owned(self, node: NodeEpoch) -> list[Stream]:
        """Streams whose open span is this node's, by id."""
        return [s for _, s in sorted(self.streams.items()) if s.open.owner == node]

    def owes(self, node: NodeEpoch) -> list[tuple[Stream, Span]]:
        """Closed spans of this node that are not wholly in object storage."""
        return [(s, p) for _, s in sorted(self.streams.items()) for p in s.spans if p.owed and p.owner == node]


def dump(state: CellState) -> dict[str, Any]:
    """The state as plain JSON values."""
    plain = dataclasses.asdict(state)
    del plain["topic_names"]
    return plain


def load(plain: dict[str, Any]) -> CellState:
    """The inverse of `dump`."""
    return CellState(
        term=plain["term"],
        controller=NodeEpoch(**plain["controller"]) if plain["controller"] else None,
        brokers={
            int(n): Broker(**{**b, "wal": WalState(**b["wal"]), "status": BrokerStatus(b["status"])})
            for n, b in plain["brokers"].items()
        },
        topics={name: Topic(**t) for name, t in plain["topics"].items()},
        streams={
            int(i): Stream(
                **{
                    **s,
                    "spans": [Span(**p) for p in s["spans"]],
                    "extents": [Extent(**e) for e in s["extents"]],
                }
            )
            for i, s in plain["streams"].items()
        },
        next_stream=plain["next_stream"],
        next_producer_id=plain["next_producer_id"],
        producer_blocks={int(n): list(b) for n, b in plain["producer_blocks"].items()},
        objects=dict(plain["objects"]),
        garbage=list(plain["garbage"]),
        security=load_security(plain.get("security")),
        topic_names={t["topic_id"]: name for name, t in plain["topics"].items()},
    )
