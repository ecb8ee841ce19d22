"""The commands of a cell's ledger, one builder each. `state.py` accepts or rejects them.

Each says who acts and under which epoch or term, so that the fold can refuse whoever has been deposed or fenced in the
meantime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataplane.ledger.entry import Command


@dataclass(frozen=True, slots=True)
class NodeEpoch:
    """One life of a broker: its node id and the epoch under which it joined."""

    node: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets [start, end) of one stream, written under one stream epoch, that an object now holds."""

    stream: int
    epoch: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CommittedObject:
    """A stream-set object and what it holds. `size` in bytes."""

    name: str
    size: int
    ranges: tuple[Range, ...]


def broker_joined(
    node: NodeEpoch,
    *,
    name: str,
    zone: str,
    host: str,
    kafka_port: int,
    peer_port: int,
    wal: Mapping[str, Any],
) -> Command:
    """A broker starts epoch `node.epoch`. Implies that the epoch before is fenced and recovered; refused otherwise.
    `wal`: mode, sides, volume, volume_zones, express.
    """
    return {
        "kind": "broker-joined",
        "node": node.node,
        "epoch": node.epoch,
        "name": name,
        "zone": zone,
        "host": host,
        "kafka_port": kafka_port,
        "peer_port": peer_port,
        "wal": dict(wal),
    }


def broker_fenced(node: NodeEpoch, *, by: NodeEpoch, reason: str) -> Command:
    """`node` is out. By the controller (the entry's term must be the current one), or by the next life of the same node
    (`by.node == node.node`).
    """
    return {"kind": "broker-fenced", **_who(node), "by": _who(by), "reason": reason}


def broker_recovered(
    node: NodeEpoch,
    *,
    by: NodeEpoch,
    objects: Sequence[CommittedObject],
    owners: Mapping[int, int],
    rejoin: Command | None = None,
) -> Command:
    """All that the fenced epoch had acked is in `objects` or was before; its streams go to `owners` (stream → node),
    each with its epoch + 1.

    `rejoin`: the `broker-joined` of the same node's next epoch, when it is that one which recovers. It is accepted
    together with the recovery or not at all, so that
    the node may name itself as an owner, even when no other broker is alive.
    """
    return {
        "kind": "broker-recovered",
        **_who(node),
        "by": _who(by),
        "objects": [_object(o) for o in objects],
        "owners": {str(stream): owner for stream, owner in sorted(owners.items())},
        "rejoin": rejoin,
    }


def broker_closed(
    node: NodeEpoch, *, by: NodeEpoch, streams: Sequence[tuple[int, int, int, Any]], tail: str | None
) -> Command:
    """The fenced epoch's WAL was read: each of its open streams (stream, end, owner, producers) ends there and goes on
    under its new owner. What is below the end and not in object storage is owed. `producers`: the idempotent producers
    at the end; None where nothing is owed, and they are found in object storage. `tail`: the object with the last
    blocks, which another recoverer may not find on the side that it reads.
    """
    return {"kind": "broker-closed", **_who(node), "by": _who(by), "streams": [list(s) for s in streams], "tail": tail}


def broker_left(node: NodeEpoch) -> Command:
    """A clean shutdown: nothing owned, nothing owed, nothing in the WAL."""
    return {"kind": "broker-left", **_who(node)}


def controller_elected(term: int, node: NodeEpoch) -> Command:
    return {"kind": "controller-elected", "term": term, **_who(node)}


def membership_changed(node: NodeEpoch, sides: Sequence[str], start: int) -> Command:
    """From block `start` on, appends of this epoch are durable when `sides` have them."""
    return {"kind": "membership-changed", **_who(node), "sides": list(sides), "start": start}


def side_returned(node: NodeEpoch, side: str, instance: int, start: int) -> Command:
    """`side`, which the membership had lost, is in it again as a new instance, empty before block `start`: refused
    unless all below that is in object storage. A kind of its own, so that a version that does not know it stops."""
    return {"kind": "side-returned", **_who(node), "side": side, "instance": instance, "start": start}


def topic_created(
    name: str, topic_id: str, owners: Sequence[int], configs: Mapping[str, str], *, internal: bool = False
) -> Command:
    """One partition for each of `owners`, which are node ids."""
    return {
        "kind": "topic-created",
        "name": name,
        "topic_id": topic_id,
        "owners": list(owners),
        "configs": dict(configs),
        "internal": internal,
    }


def topic_deleted(name: str, topic_id: str) -> Command:
    return {"kind": "topic-deleted", "name": name, "topic_id": topic_id}


def topic_configured(name: str, topic_id: str, configs: Mapping[str, str]) -> Command:
    """Replaces the topic's configs as a whole."""
    return {"kind": "topic-configured", "name": name, "topic_id": topic_id, "configs": dict(configs)}


def partitions_added(name: str, topic_id: str, first: int, owners: Sequence[int]) -> Command:
    """Partitions `first`, `first` + 1, …; `first` must be the present count, so that a repeated request adds
    nothing.
    """
    return {"kind": "partitions-added", "name": name, "topic_id": topic_id, "first": first, "owners": list(owners)}


def objects_committed(node: NodeEpoch, objects: Sequence[CommittedObject], floor: int) -> Command:
    """Uploaded by the living owner. Blocks of its WAL below number `floor` are not needed any more."""
    return {"kind": "objects-committed", **_who(node), "objects": [_object(o) for o in objects], "floor": floor}


def partition_moved(stream: int, epoch: int, *, source: NodeEpoch, target: int, end: int, producers: Any) -> Command:
    """The owner closes its epoch at `end` and hands over to node `target` with epoch + 1, and with the idempotent
    producers' state at `end` (`ProducerTable.dump`).
    """
    return {
        "kind": "partition-moved",
        "stream": stream,
        "stream_epoch": epoch,
        **_who(source),
        "target": target,
        "end": end,
        "producers": producers,
    }


def stream_trimmed(
    stream: int, epoch: int, node: NodeEpoch, start: int, producers: tuple[int, Any] | None = None
) -> Command:
    """Offsets below `start` are gone (DeleteRecords, retention). `producers`: an offset, and the state of the
    idempotent producers there; needed unless records that tell it stay."""
    command = {"kind": "stream-trimmed", "stream": stream, "stream_epoch": epoch, **_who(node), "start": start}
    if producers is not None:
        command |= {"producers_offset": producers[0], "producers": producers[1]}
    return command


def objects_removed(names: Sequence[str], term: int) -> Command:
    """The controller has deleted these objects, which nothing referred to."""
    return {"kind": "objects-removed", "names": list(names), "term": term}


def producer_ids_allocated(node: NodeEpoch, count: int) -> Command:
    return {"kind": "producer-ids-allocated", **_who(node), "count": count}


def _who(node: NodeEpoch) -> dict[str, int]:
    return {"node": node.node, "epoch": node.epoch}


def _object(committed: CommittedObject) -> dict[str, Any]:
    return {
        "name": committed.name,
        "size": committed.size,
        "ranges": [[r.stream, r.epoch, r.start, r.end] for r in committed.ranges],
    }
