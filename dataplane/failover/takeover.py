"""What a takeover does, as pure functions: who recovers, which records are committed, who owns what afterwards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import Broker, CellState
from dataplane.wal.base import WalRecord
from providers.base.errors import Corrupt


def able(state: CellState, victim: Broker) -> list[Broker]:
    """Live brokers that reach a side of the victim's WAL by data-plane calls alone, in the order in which they are to
    try.

    A volume is reached where it was attached beforehand; an S3 Express bucket and the object WAL from anywhere in the
    cell. The order depends on who is known, not on loads: it stays the same while recoveries end one by one, so that no
    second survivor begins what a first one is at. It begins in another zone, and at another broker for each broker of
    the victim's zone: those of a zone that is lost as a whole are recovered side by side.
    """
    known = sorted(state.brokers.values(), key=lambda b: b.node)
    mates = [b for b in known if b.zone == victim.zone]
    others = [b for b in known if b.zone != victim.zone]
    turn = sum(b.node < victim.node for b in mates)
    first = turn % len(others) if others else 0
    order = [*others[first:], *others[:first], *mates[turn:], *mates[:turn]]
    anywhere = any(side != "volume" for side in victim.wal.sides)
    return [b for b in order if state.is_live(b.id) and (anywhere or b.zone in victim.wal.volume_zones)]


def taker(state: CellState, victim: Broker, turn: int) -> NodeEpoch | None:
    """Whose turn it is to recover: the next able survivor each time that patience ran out. Two may overlap: the first
    accepted entry wins.
    """
    candidates = able(state, victim)
    return candidates[turn % len(candidates)].id if candidates else None


def spread(state: CellState, victim: NodeEpoch, *, keep_on: int | None = None) -> dict[int, int]:
    """New owner of each stream of the victim: the live broker with the fewest streams, in turn. `keep_on`: the node
    that is recovering its own
    former epoch, and takes its streams back."""
    streams = state.owned(victim)
    if keep_on is not None:
        return {s.id: keep_on for s in streams}
    load = {b.node: len(state.owned(b.id)) for b in state.live()}
    owners: dict[int, int] = {}
    for stream in streams:
        node = min(load, key=lambda n: (load[n], n))
        owners[stream.id] = node
        load[node] += 1
    return owners


@dataclass(frozen=True, slots=True)
class Replay:
    """Records to commit of one stream under one epoch: consecutive from what is in object storage."""

    stream: int
    epoch: int
    start: int
    records: tuple[WalRecord, ...]

    @property
    def end(self) -> int:
        last = self.records[-1]
        return last.base_offset + last.offsets

    @property
    def size_bytes(self) -> int:
        return sum(len(record.payload) for record in self.records)


def select(state: CellState, victim: NodeEpoch, records: Iterable[WalRecord]) -> list[Replay]:
    """Of all that the victim's WAL holds, what object storage lacks: its open streams, and what it owes of closed ones,
    cut at their ends.

    Raises:
        Corrupt: a record is missing between what is in object storage and a later record, or an owed range is not
        wholly there.
    """
    wanted: dict[tuple[int, int], tuple[int, int | None]] = {}
    for stream in state.streams.values():
        for span in stream.spans:
            if span.owner == victim and (span.end is None or span.owed):
                wanted[stream.id, span.epoch] = (span.uploaded, span.end)
    found: dict[tuple[int, int], list[WalRecord]] = {key: [] for key in wanted}
    reached = {key: start for key, (start, _) in wanted.items()}
    for record in records:
        key = (record.stream, record.stream_epoch)
        if key not in wanted:
            continue
        end = wanted[key][1]
        last = record.base_offset + record.offsets
        if last <= reached[key] or (end is not None and record.base_offset >= end):
            continue  # in object storage already, or written past the close and never acked
        if record.base_offset != reached[key]:
            raise Corrupt(
                f"stream {record.stream} epoch {record.stream_epoch}: "
                f"offsets [{reached[key]}, {record.base_offset}) are missing from the WAL of node {victim.node}"
            )
        found[key].append(record)
        reached[key] = last
    for key, (_, end) in wanted.items():
        if end is not None and reached[key] != end:
            raise Corrupt(
                f"stream {key[0]} epoch {key[1]}: "
                f"owed offsets [{reached[key]}, {end}) are missing from the WAL of node {victim.node}"
            )
    return [Replay(s, e, wanted[s, e][0], tuple(rs)) for (s, e), rs in sorted(found.items()) if rs]


def ends(state: CellState, victim: NodeEpoch, replays: Iterable[Replay]) -> dict[int, int]:
    """Where each open stream of the victim ends: behind its last record."""
    reached = {(r.stream, r.epoch): r.end for r in replays}
    return {s.id: reached.get((s.id, s.epoch), s.open.uploaded) for s in state.owned(victim)}


def least_loaded(state: CellState, count: int, avoided: Collection[int] = ()) -> Sequence[int]:
    """Owners for `count` new partitions: live brokers with the fewest streams, in turn; `avoided` nodes only where
    there are no others. Empty when nobody lives."""
    load: Mapping[int, int] = {b.node: len(state.owned(b.id)) for b in state.live()}
    counts = {node: led for node, led in load.items() if node not in avoided} or dict(load)
    owners: list[int] = []
    for _ in range(count if counts else 0):
        node = min(counts, key=lambda n: (counts[n], n))
        owners.append(node)
        counts[node] += 1
    return owners
