"""Which of a stream's extents become one object. A pure decision over how many bytes of the stream each of them holds.

Extents are merged when the result is much larger than the largest of them, so that a byte is rewritten only as often as
its object grows FANOUT-fold, or when it is final: half as large as an object may become, and never rewritten again.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.ledger.state import Extent

OBJECT_BYTES_MAX = 128 << 20
"""A merged object's bytes, about. Few enough that retention lets go in small steps, and enough that a stream of a
terabyte is some ten thousand extents in the ledger."""
FINAL_BYTES = OBJECT_BYTES_MAX // 2
"""An object of this size is left alone. Stream-set objects are smaller (`upload.OBJECT_BYTES_MAX`)."""
FANOUT = 16
BYTES_MIN = 4 << 20
"""A smaller object is not worth its requests, unless there are very many extents."""
EXTENTS_MAX = 256
"""Extents merged at once: each is a request to read, and a name in the ledger's entry."""


def small(extent: Extent) -> bool:
    """Whether it may be merged at all. An object's size is a bound of the stream's share."""
    return extent.size < FINAL_BYTES


def runs(extents: Sequence[Extent]) -> list[Sequence[Extent]]:
    """Runs of small extents without a gap: only within one of them may be merged. `extents` in offset order."""
    found: list[list[Extent]] = []
    before: Extent | None = None
    for extent in extents:
        if small(extent):
            if before is None or not small(before) or before.end != extent.start:
                found.append([])
            found[-1].append(extent)
        before = extent
    return [run for run in found if len(run) > 1]


def pick(sizes: Sequence[int]) -> slice | None:
    """Which part of a run to merge now, given how many bytes of the stream each of its extents holds; None: none yet.
    The oldest that are ripe, and as many at once as may be.
    """
    if len(sizes) < FANOUT and sum(sizes) < FINAL_BYTES:
        return None
    for first in range(len(sizes) - 1):
        total = largest = ripe = 0
        for i in range(first, min(first + EXTENTS_MAX, len(sizes))):
            total += sizes[i]
            largest = max(largest, sizes[i])
            if total > OBJECT_BYTES_MAX:
                break
            if i > first and _ripe(i - first + 1, total, largest):
                ripe = i + 1
        if ripe:
            return slice(first, ripe)
    return None


def _ripe(count: int, total: int, largest: int) -> bool:
    if total >= FINAL_BYTES or (total >= BYTES_MIN and total >= FANOUT * largest):
        return True
    return count == EXTENTS_MAX and total >= 4 * largest
