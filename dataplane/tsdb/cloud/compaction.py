"""Which files of a table are to become one: pure functions of what the manifest knows of them.

    window (by time)   │  seq 3  5  8  9  12  │      a run of files that follow each other by sequence, all inside one
                       │     └──run──┘         │      window, becomes one file with the greatest sequence of the run

A run may take a file's place in the order of writing only if no other file comes between: none with a sequence in the
run's range may overlap it in time. Files inside a window follow each other in the run; a file that reaches over a
window's border is never in a run, and ends one that it overlaps and that it comes between. Of a table that appends the
order says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.retention import UNITS_PER_S, overlap
from dataplane.tsdb.schema.tables import TableSchema


@dataclass(frozen=True, slots=True)
class CompactionSettings:
    """Of one compactor."""

    window_s: int = 7_200
    """Length of a time window: files of two windows never become one."""
    files_min: int = 4
    """Files from which a run is worth writing its rows once more."""
    files_max: int = 64
    """Files of a run."""
    run_bytes_max: int = 64 << 20
    """Bytes of a run's files: what is rewritten at once, and with its decoded rows what is held in memory."""


@dataclass(frozen=True, slots=True)
class Run:
    """Files, by sequence, that become one. `deletes_end`: nothing older is left that a delete among them could hide."""

    files: tuple[FileMeta, ...]
    deletes_end: bool

    @property
    def sequence(self) -> int:
        """Of the file that takes their place."""
        return self.files[-1].sequence


def runs(schema: TableSchema, files: Sequence[FileMeta], settings: CompactionSettings) -> list[Run]:
    """Runs that are worth it now, at most one a window, the one with the most files first. `files`: the table's, in the
    manifest's order."""
    window = settings.window_s * UNITS_PER_S[schema.time.type.unit]
    inside: dict[int, list[FileMeta]] = {}
    across: list[FileMeta] = []
    for meta in files:
        if meta.time_min // window == meta.time_max // window:
            inside.setdefault(meta.time_min // window, []).append(meta)
        else:
            across.append(meta)
    found = []
    for number, some in inside.items():
        if len(some) < settings.files_min:
            continue
        near = [meta for meta in across if overlap(meta, number * window, (number + 1) * window - 1)]
        blocking = [] if schema.options.append_mode else near
        best = max(_runs_of(some, blocking, settings), key=len, default=[])
        if len(best) >= settings.files_min:
            found.append(Run(tuple(best), _oldest(best, [*some, *near])))
    return sorted(found, key=lambda run: -len(run.files))


def _runs_of(
    files: Iterable[FileMeta], blocking: Sequence[FileMeta], settings: CompactionSettings
) -> Iterable[list[FileMeta]]:
    """All runs of a window, one after the other. Files of one sequence came at once and stay together."""
    run: list[FileMeta] = []
    for _, group in groupby(sorted(files, key=lambda meta: meta.sequence), key=lambda meta: meta.sequence):
        unit = list(group)
        joined = [*run, *unit]
        if run and (_too_much(joined, settings) or _between(joined, blocking)):
            yield _worth(run)
            joined = unit
        run = [] if _too_much(joined, settings) or _between(joined, blocking) else joined
    yield _worth(run)


def _too_much(run: Sequence[FileMeta], settings: CompactionSettings) -> bool:
    return len(run) > settings.files_max or sum(meta.size for meta in run) > settings.run_bytes_max


def _between(run: Sequence[FileMeta], blocking: Iterable[FileMeta]) -> bool:
    first, last = run[0].sequence, run[-1].sequence
    low, high = min(meta.time_min for meta in run), max(meta.time_max for meta in run)
    return any(first <= meta.sequence <= last and overlap(meta, low, high) for meta in blocking)


def _worth(run: list[FileMeta]) -> list[FileMeta]:
    """Without large files at its beginning: a file is written again only with at least as much beside it, so that each
    row is a logarithmic number of times."""
    left = sum(meta.size for meta in run)
    at = 0
    for _, group in groupby(run, key=lambda meta: meta.sequence):
        unit = list(group)
        size = sum(meta.size for meta in unit)
        left -= size
        if size <= left or len(unit) > 1:
            return run[at:]
        at += len(unit)
    return []


def _oldest(run: Sequence[FileMeta], near: Iterable[FileMeta]) -> bool:
    """Whether no file outside the run, and older than its newest, could hold a row of a key that the run deletes."""
    ids = {meta.file_id for meta in run}
    low, high = min(meta.time_min for meta in run), max(meta.time_max for meta in run)
    return not any(
        meta.file_id not in ids and meta.sequence <= run[-1].sequence and overlap(meta, low, high) for meta in near
    )
