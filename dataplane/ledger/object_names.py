"""Names of data objects. Part of the format: a name says by whose authority its object may be committed, so that the
fold can refuse all others, and so that it can be known of an object that it will never be committed any more.

    <cluster>/objects/<node>-<epoch>/<lane>/<number>                      an upload or compaction of that broker epoch
    <cluster>/objects/<node>-<epoch>/<lane>-for-<node>-<epoch>/<number>   the first recovers the second
                                                               …/tail     and keeps the end of its WAL till then

A lane is one uploader's own: its commits come in the order of their numbers. Names of other shapes (before there was
this one) are committed by anybody, once, and are never concluded upon.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dataplane.ledger.commands import CommittedObject, NodeEpoch
from dataplane.ledger.rules import require
from dataplane.ledger.state import Broker, BrokerStatus, CellState

_SHAPE = re.compile(r".*/objects/(\d+)-(\d+)/([0-9A-Za-z-]+?)(?:-for-(\d+)-(\d+))?/(\d{10}|tail)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ObjectName:
    """What a name says. `victim`: whose recovery the object belongs to, None when its committer uploads for itself."""

    by: NodeEpoch
    lane: str
    victim: NodeEpoch | None
    number: int


def objects_prefix(cluster: str) -> str:
    """All data objects of a cluster."""
    return f"{cluster}/objects/"


def lane_prefix(cluster: str, by: NodeEpoch, lane: str, victim: NodeEpoch | None = None) -> str:
    """What the names of a lane begin with; `object_key` adds the number."""
    recovery = "" if victim is None else f"-for-{victim.node}-{victim.epoch}"
    return f"{objects_prefix(cluster)}{by.node}-{by.epoch}/{lane}{recovery}"


def object_key(prefix: str, number: int) -> str:
    """Object `number` of a lane."""
    return f"{prefix}/{number:010d}"


def tail_key(prefix: str) -> str:
    """What a recoverer keeps of the end of its victim's WAL. `prefix`: of a lane that recovers."""
    return f"{prefix}/tail"


def parse(key: str) -> ObjectName | None:
    """What a name says, None when it has another shape."""
    found = _SHAPE.fullmatch(key)
    if found is None:
        return None
    node, epoch, lane, victim, victim_epoch, number = found.groups()
    recovered = None if victim is None else NodeEpoch(int(victim), int(victim_epoch))
    return ObjectName(NodeEpoch(int(node), int(epoch)), lane, recovered, int(number) if number != "tail" else 0)


def check_names(
    state: CellState, by: NodeEpoch, objects: Iterable[CommittedObject], *, victim: NodeEpoch | None = None
) -> None:
    """Whether `by` may commit these objects now, as the recovery of `victim` or for itself.

    Raises:
        Rejected: a name was used already, or is another's, or comes too late.
    """
    broker = state.brokers.get(by.node)
    last = dict(broker.lanes) if broker is not None and broker.id == by else {}
    seen: set[str] = set()
    for name in (o.name for o in objects):
        taken = name in state.objects or name in seen or name in state.garbage
        require(not taken, f"object {name} is committed already")
        seen.add(name)
        said = parse(name)
        if said is None:
            continue
        require(said.by == by, f"object {name} is not of broker {by.node} epoch {by.epoch}")
        require(said.victim == victim, f"object {name} is not of the recovery of {victim}")
        if victim is None:
            after = last.get(said.lane, 0)
            require(said.number > after, f"object {name} comes after number {after} of its lane")
            last[said.lane] = said.number


def note_names(broker: Broker, objects: Iterable[CommittedObject]) -> None:
    """The broker has committed these: earlier numbers of their lanes come too late from now on."""
    for said in (parse(o.name) for o in objects):
        if said is not None and said.victim is None:
            broker.lanes[said.lane] = said.number


def committed(state: CellState, by: NodeEpoch, objects: Sequence[CommittedObject]) -> bool:
    """Whether the ledger has taken these objects, which only `by` could commit and for itself. They may have become
    garbage since."""
    broker = state.brokers.get(by.node)
    names = [parse(o.name) for o in objects]
    return (
        broker is not None
        and broker.id == by
        and all(said is not None and broker.lanes.get(said.lane, 0) >= said.number for said in names)
    )


def committable(state: CellState, key: str) -> bool:
    """Whether the fold might still accept a commit of this name, now or after any further entries. Once False, always
    False: epochs do not come back, and numbers only grow.
    """
    name = parse(key)
    if name is None:
        return True
    broker = state.brokers.get(name.by.node)
    if broker is None or broker.epoch < name.by.epoch:
        return True  # it has not joined yet
    if not state.is_live(name.by):
        return False
    if name.victim is None:
        return name.number > broker.lanes.get(name.lane, 0)
    victim = state.brokers.get(name.victim.node)
    if victim is None or victim.epoch < name.victim.epoch:
        return True
    return victim.id == name.victim and victim.status is not BrokerStatus.GONE
