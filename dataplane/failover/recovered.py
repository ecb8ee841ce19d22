"""What this node has read from dead brokers' WALs and not yet written: consumers can have it from here meanwhile.

Only what the ledger says is there: ranges of closed spans, whose ends an accepted entry has stated. Of a span that is
still open another recoverer might state another end.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

from dataplane.failover.takeover import Replay
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import CellState
from dataplane.stream.batch import Buffer

_BASE = attrgetter("base_offset")


class Recovered:
    """By victim, for as long as each recovery lasts: its memory is the recovery's, no copy."""

    def __init__(self) -> None:
        self._held: dict[NodeEpoch, Mapping[tuple[int, int], Replay]] = {}

    @contextlib.contextmanager
    def holding(self, victim: NodeEpoch, state: CellState, replays: Iterable[Replay]) -> Iterator[None]:
        """Within, what `replays` have of closed spans can be read here."""
        self._held[victim] = {(r.stream, r.epoch): r for r in replays if _is_closed(state, r)}
        try:
            yield
        finally:
            del self._held[victim]

    def read(self, stream: int, epoch: int, offset: int) -> Iterator[tuple[int, Buffer]]:
        """Batches of that epoch of a stream from the one that holds `offset`, each with the offset behind it."""
        for held in self._held.values():
            replay = held.get((stream, epoch))
            if replay is None or not replay.start <= offset < replay.end:
                continue
            first = bisect_right(replay.records, offset, key=_BASE) - 1
            for i in range(first, len(replay.records)):
                record = replay.records[i]
                yield record.base_offset + record.offsets, record.payload
            return


def _is_closed(state: CellState, replay: Replay) -> bool:
    stream = state.streams.get(replay.stream)
    span = stream.span_of(replay.epoch) if stream is not None else None
    return span is not None and span.end is not None
