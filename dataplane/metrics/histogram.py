"""Counts of durations by fixed bounds."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_MS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0)
"""From a fast volume's write to a client's patience; milliseconds."""


class Histogram:
    """How many durations were at most each of BOUNDS_MS, and how long all of them took."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        """By bound, not added up; the last is of those beyond all."""
        self.sum_ms = 0.0

    @property
    def count(self) -> int:
        """How many in all."""
        return sum(self.counts)

    def observe(self, duration_ms: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS_MS, duration_ms)] += 1
        self.sum_ms += duration_ms
