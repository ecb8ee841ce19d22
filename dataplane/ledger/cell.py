"""The fold of a cell's ledger: which commands are accepted, and what they change.

A rejected command changes nothing at all: every rule of a command is checked before its first change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dataplane.ledger.closing import broker_closed
from dataplane.ledger.commands import CommittedObject, NodeEpoch, Range
from dataplane.ledger.compacting import FOLDS as COMPACTING
from dataplane.ledger.entry import Command, Entry
from dataplane.ledger.membership import take_back, why_not_back
from dataplane.ledger.object_names import check_names, note_names
from dataplane.ledger.rules import Rejected, broker_of, drop_extents, live, node_of, open_span, owned_stream, require
from dataplane.ledger.security import SECURITY_FOLDS
from dataplane.ledger.state import Broker, BrokerStatus, CellState, Extent, Stream, Topic, WalState, dump, load
from providers.base.errors import Internal


class CellMachine:
    """`StateMachine[CellState]`."""

    level_max = 1

    def initial(self) -> CellState:
        return CellState()

    def apply(self, state: CellState, entry: Entry) -> Sequence[str | None]:
        outcomes: list[str | None] = []
        for command in entry.commands:
            fold = FOLDS.get(command["kind"])
            if fold is None:
                raise Internal(
                    f"ledger entry {entry.seq} has a command {command['kind']!r} that this version does not know",
                    hint="upgrade this broker; it must not skip what others have decided",
                )
            try:
                fold(state, command, entry)
                outcomes.append(None)
            except Rejected as rejected:
                outcomes.append(str(rejected))
        return outcomes

    def dump(self, state: CellState) -> Any:
        return dump(state)

    def load(self, plain: Any) -> CellState:
        return load(plain)


def _topic(state: CellState, command: Command) -> Topic:
    topic = state.topics.get(command["name"])
    if topic is None or topic.topic_id != command["topic_id"]:
        raise Rejected(f"topic {command['name']} with this id does not exist")
    return topic


# ── brokers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _broker_joined(state: CellState, command: Command, entry: Entry) -> None:
    node = node_of(command)
    before = state.brokers.get(node.node)
    if before is not None:
        require(
            node.epoch == before.epoch + 1,
            f"broker {node.node} joins with epoch {before.epoch + 1} next, not {node.epoch}",
        )
        require(
            before.status is BrokerStatus.GONE,
            f"broker {node.node} epoch {before.epoch} is {before.status}: it must be recovered first",
        )
    else:
        require(node.epoch == 1, f"broker {node.node} joins with epoch 1 first, not {node.epoch}")
    wal = command["wal"]
    state.brokers[node.node] = Broker(
        node=node.node,
        epoch=node.epoch,
        name=command["name"],
        zone=command["zone"],
        host=command["host"],
        kafka_port=command["kafka_port"],
        peer_port=command["peer_port"],
        wal=WalState(
            mode=wal["mode"],
            sides=list(wal["sides"]),
            volume=wal["volume"],
            volume_zones=list(wal["volume_zones"]),
            express=wal["express"],
        ),
    )


def _broker_fenced(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    by = node_of(command["by"])
    if by.node != broker.node:
        require(entry.term == state.term, f"term {entry.term} is over; the current one is {state.term}")
        require(by == state.controller, f"broker {by.node} epoch {by.epoch} is not the controller")
    broker.status = BrokerStatus.FENCED
    broker.fenced_reason = command["reason"]


def _broker_recovered(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.FENCED)
    by, rejoin = node_of(command["by"]), command["rejoin"]
    if rejoin is None:
        require(state.is_live(by), f"recoverer {by.node} epoch {by.epoch} is not live")
    else:
        require(node_of(rejoin) == by, "a recovery rejoins only its own recoverer")
        require(by == NodeEpoch(broker.node, broker.epoch + 1), "only the next epoch of the same node rejoins")
    objects = [_decode_object(o) for o in command["objects"]]
    uploaded = _check_commit(state, broker.id, objects, by=by, victim=broker.id)
    owners = {int(stream): owner for stream, owner in command["owners"].items()}
    streams = state.owned(broker.id)
    require({s.id for s in streams} == set(owners), "owners must name exactly the streams of the fenced broker")
    for owner in sorted(set(owners.values())):
        if rejoin is None or owner != by.node:
            live(state, owner)
    for stream, span in state.owes(broker.id):
        reached = uploaded.get((stream.id, span.epoch), span.uploaded)
        require(reached == span.end, f"stream {stream.id} epoch {span.epoch} still owes [{reached}, {span.end})")
    _apply_commit(state, broker.id, objects)
    broker.status = BrokerStatus.GONE
    if broker.wal.tail is not None:
        del state.objects[broker.wal.tail]
        state.garbage.append(broker.wal.tail)
    if rejoin is not None:
        _broker_joined(state, rejoin, entry)
    for stream in streams:
        span = stream.open
        span.end = span.uploaded
        open_span(stream, state.brokers[owners[stream.id]].id, span.end)


def _broker_left(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    require(not state.owned(broker.id), f"broker {broker.node} still owns streams")
    require(not state.owes(broker.id), f"broker {broker.node} still owes records to object storage")
    broker.status = BrokerStatus.GONE


def _controller_elected(state: CellState, command: Command, entry: Entry) -> None:
    node = node_of(command)
    require(command["term"] == state.term + 1, f"the next term is {state.term + 1}, not {command['term']}")
    broker_of(state, node, BrokerStatus.LIVE)
    state.term, state.controller = command["term"], node


def _membership_changed(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    sides = command["sides"]
    require(bool(sides) and set(sides) < set(broker.wal.sides), f"{sides} is no smaller part of {broker.wal.sides}")
    broker.wal.sides = list(sides)


def _side_returned(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    refusal = why_not_back(broker.wal, command)
    require(refusal is None, refusal or "")
    take_back(broker.wal, command)


# ── topics ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _topic_created(state: CellState, command: Command, entry: Entry) -> None:
    name = command["name"]
    require(name not in state.topics, f"topic {name} exists")
    require(bool(command["owners"]), f"topic {name} needs a partition")
    topic = Topic(name, command["topic_id"], dict(command["configs"]), command["internal"], [])
    _add_partitions(state, topic, command["owners"])
    state.topics[name] = topic
    state.topic_names[topic.topic_id] = name


def _partitions_added(state: CellState, command: Command, entry: Entry) -> None:
    topic = _topic(state, command)
    require(command["first"] == len(topic.streams), f"topic {topic.name} has {len(topic.streams)} partitions")
    _add_partitions(state, topic, command["owners"])


def _add_partitions(state: CellState, topic: Topic, owners: Sequence[int]) -> None:
    brokers = [live(state, owner) for owner in owners]
    for broker in brokers:
        stream = Stream(state.next_stream, topic.name, len(topic.streams), 0, [])
        open_span(stream, broker.id, 0)
        state.streams[stream.id] = stream
        topic.streams.append(stream.id)
        state.next_stream += 1


def _topic_deleted(state: CellState, command: Command, entry: Entry) -> None:
    topic = _topic(state, command)
    for stream in topic.streams:
        drop_extents(state, state.streams[stream].extents)
        del state.streams[stream]
    del state.topics[topic.name]
    state.topic_names.pop(topic.topic_id, None)


def _topic_configured(state: CellState, command: Command, entry: Entry) -> None:
    _topic(state, command).configs = dict(command["configs"])


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _objects_committed(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    require(command["floor"] >= broker.wal.floor, f"the WAL floor is {broker.wal.floor} already")
    objects = [_decode_object(o) for o in command["objects"]]
    _check_commit(state, broker.id, objects, by=broker.id)
    _apply_commit(state, broker.id, objects)
    note_names(broker, objects)
    broker.wal.floor = command["floor"]


def _partition_moved(state: CellState, command: Command, entry: Entry) -> None:
    source = broker_of(state, node_of(command), BrokerStatus.LIVE)
    stream = owned_stream(state, command, source.id)
    target = live(state, command["target"])
    end = command["end"]
    require(end >= stream.open.uploaded, f"end {end} is below what is in object storage, {stream.open.uploaded}")
    stream.open.end = end
    open_span(stream, target.id, end)
    stream.handover = {"offset": end, "producers": command["producers"]}


def _stream_trimmed(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    stream = owned_stream(state, command, broker.id)
    require(command["start"] > stream.start, f"stream {stream.id} starts at {stream.start} already")
    stream.start = command["start"]
    if command.get("producers") is not None:
        stream.handover = {"offset": command["producers_offset"], "producers": command["producers"]}
    drop_extents(state, [e for e in stream.extents if e.end <= stream.start])
    stream.extents = [e for e in stream.extents if e.end > stream.start]


def _objects_removed(state: CellState, command: Command, entry: Entry) -> None:
    require(command["term"] == state.term, f"term {command['term']} is over; the current one is {state.term}")
    removed = set(command["names"])
    state.garbage = [name for name in state.garbage if name not in removed]


def _producer_ids_allocated(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, node_of(command), BrokerStatus.LIVE)
    state.producer_blocks[broker.node] = [state.next_producer_id, command["count"]]
    state.next_producer_id += command["count"]


def _decode_object(plain: Mapping[str, Any]) -> CommittedObject:
    return CommittedObject(plain["name"], plain["size"], tuple(Range(*r) for r in plain["ranges"]))


def _check_commit(
    state: CellState,
    owner: NodeEpoch,
    objects: Sequence[CommittedObject],
    *,
    by: NodeEpoch,
    victim: NodeEpoch | None = None,
) -> dict[tuple[int, int], int]:
    """How far each (stream, epoch) would be uploaded; Rejected when a range is not the owner's next one, or a name is
    not for `by` to commit. Ranges of deleted streams are passed over.
    """
    check_names(state, by, objects, victim=victim)
    reached: dict[tuple[int, int], int] = {}
    for committed in objects:
        for r in committed.ranges:
            stream = state.streams.get(r.stream)
            if stream is None:
                continue
            span = stream.span_of(r.epoch)
            if span is None or span.owner != owner:
                raise Rejected(f"stream {r.stream} epoch {r.epoch} is not of broker {owner.node} epoch {owner.epoch}")
            at = reached.get((r.stream, r.epoch), span.uploaded)
            require(
                r.start == at and r.end > r.start,
                f"stream {r.stream} epoch {r.epoch} continues at {at}, not with [{r.start}, {r.end})",
            )
            require(
                span.end is None or r.end <= span.end, f"stream {r.stream} epoch {r.epoch} was closed at {span.end}"
            )
            reached[r.stream, r.epoch] = r.end
    return reached


def _apply_commit(state: CellState, owner: NodeEpoch, objects: Iterable[CommittedObject]) -> None:
    for committed in objects:
        kept = 0
        for r in committed.ranges:
            stream = state.streams.get(r.stream)
            if stream is None:
                continue
            span = stream.span_of(r.epoch)
            if span is None:
                raise Internal("a checked range lost its span")
            span.uploaded = r.end
            if r.end <= stream.start:
                continue  # trimmed before it was uploaded
            stream.extents.append(Extent(r.start, r.end, committed.name, committed.size))
            stream.extents.sort(key=lambda e: e.start)
            kept += 1
        if kept:
            state.objects[committed.name] = kept
        else:
            state.garbage.append(committed.name)


FOLDS: Mapping[str, Callable[[CellState, Command, Entry], None]] = {
    "broker-joined": _broker_joined,
    "broker-fenced": _broker_fenced,
    "broker-closed": broker_closed,
    "broker-recovered": _broker_recovered,
    "broker-left": _broker_left,
    "controller-elected": _controller_elected,
    "membership-changed": _membership_changed,
    "side-returned": _side_returned,
    "topic-created": _topic_created,
    "topic-deleted": _topic_deleted,
    "topic-configured": _topic_configured,
    "partitions-added": _partitions_added,
    "objects-committed": _objects_committed,
    "partition-moved": _partition_moved,
    "stream-trimmed": _stream_trimmed,
    "objects-removed": _objects_removed,
    "producer-ids-allocated": _producer_ids_allocated,
    **COMPACTING,
    **SECURITY_FOLDS,
}
