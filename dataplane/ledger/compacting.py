"""Compaction in the ledger: one object takes the place of several consecutive extents of a stream.

The owner says which objects it has read, in order. If anything about them has changed meanwhile (trimmed, deleted,
moved, compacted under another epoch), the command is refused and the new object is an orphan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dataplane.ledger.commands import CommittedObject, NodeEpoch
from dataplane.ledger.entry import Command, Entry
from dataplane.ledger.object_names import check_names, note_names
from dataplane.ledger.rules import broker_of, drop_extents, node_of, owned_stream, require
from dataplane.ledger.state import BrokerStatus, CellState, Extent


def extents_compacted(
    stream: int, epoch: int, node: NodeEpoch, replaced: Sequence[Extent], name: str, size: int
) -> Command:
    """The stream's extents `replaced`, consecutive and without a gap, are in object `name` of `size` bytes now."""
    return {
        "kind": "extents-compacted",
        "stream": stream,
        "stream_epoch": epoch,
        "node": node.node,
        "epoch": node.epoch,
        "start": replaced[0].start,
        "end": replaced[-1].end,
        "replaced": [extent.object for extent in replaced],
        "name": name,
        "size": size,
    }


def stream_cleaned(stream: int, epoch: int, node: NodeEpoch, end: int) -> Command:
    """Below `end` no record of the stream is superseded by another below `end`."""
    who = {"node": node.node, "epoch": node.epoch}
    return {"kind": "stream-cleaned", "stream": stream, "stream_epoch": epoch, **who, "end": end}


def lane_passed(node: NodeEpoch, lane: str, number: int) -> Command:
    """No object of the lane up to `number` is committed any more: those that were not are orphans now."""
    return {"kind": "lane-passed", "node": node.node, "epoch": node.epoch, "lane": lane, "number": number}


def _extents_compacted(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    stream = owned_stream(state, command, broker.id)
    start, end, name = command["start"], command["end"], command["name"]
    found = [e for e in stream.extents if e.start < end and e.end > start]
    require(
        bool(found) and [e.object for e in found] == command["replaced"],
        f"stream {stream.id} does not hold [{start}, {end}) in these objects",
    )
    ends = [start, *(e.end for e in found)]
    require(
        all(e.start == before for e, before in zip(found, ends, strict=False)) and ends[-1] == end,
        f"stream {stream.id} does not hold [{start}, {end}) without a gap",
    )
    made = [CommittedObject(name, command["size"], ())]
    check_names(state, broker.id, made)
    at = stream.extents.index(found[0])
    stream.extents[at : at + len(found)] = [Extent(start, end, name, command["size"])]
    state.objects[name] = 1
    drop_extents(state, found)
    note_names(broker, made)


def _stream_cleaned(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    stream = owned_stream(state, command, broker.id)
    require(command["end"] > stream.cleaned, f"stream {stream.id} is clean below {stream.cleaned} already")
    stream.cleaned = command["end"]


def _lane_passed(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    lane, number, last = command["lane"], command["number"], broker.lanes.get(command["lane"], 0)
    require(number > last, f"lane {lane} is at {last} already")
    broker.lanes[lane] = number


FOLDS: Mapping[str, Callable[[CellState, Command, Entry], None]] = {
    "extents-compacted": _extents_compacted,
    "stream-cleaned": _stream_cleaned,
    "lane-passed": _lane_passed,
}
