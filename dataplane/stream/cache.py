"""The log cache of a broker: recent batches of all its partitions, in memory.

Batches that are not yet in object storage stay (the WAL's bound limits them); of the others the oldest are evicted when
the budget is exceeded, so that
consumers near the end never touch object storage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.stream.batch import Buffer

PASSED_OVER_MAX = 1_024
"""Batches that may not go, and that one search for some that may looks past."""
SHRINK_AT = 1_024
"""Evicted places that a partition's lists keep before they are cut off."""


@dataclass(slots=True)
class CachedBatch:
    """One record batch, offsets [base, end). `block`: number of the WAL block that holds it, 0 until acked."""

    base: int
    end: int
    max_timestamp: int
    data: Buffer
    block: int = 0


class PartitionCache:
    """The batches of one partition, contiguous, oldest first."""

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._batches: list[CachedBatch | None] = []
        self._bases: list[int] = []
        self._dropped = 0  # how many of the lists' first items are evicted already
        self._uploaded = 0

    def __len__(self) -> int:
        return len(self._batches) - self._dropped

    @property
    def uploaded(self) -> int:
        """Offsets below are in object storage: their batches may be evicted."""
        return self._uploaded

    @uploaded.setter
    def uploaded(self, offset: int) -> None:
        self._uploaded = offset
        self._budget.may_evict()

    @property
    def first(self) -> int | None:
        """First offset held, None when empty."""
        return self._bases[self._dropped] if self._dropped < len(self._bases) else None

    def add(self, batch: CachedBatch) -> None:
        self._batches.append(batch)
        self._bases.append(batch.base)
        self._budget.added(self, len(batch.data))

    def from_offset(self, offset: int) -> Iterator[CachedBatch]:
        """Batches from the one that holds `offset`; nothing when it was evicted or is not there yet."""
        first = self.first
        if first is None or offset < first:
            return
        at = bisect_right(self._bases, offset, self._dropped) - 1
        batch = self._batches[at]
        if batch is None or batch.end <= offset:
            return
        for i in range(at, len(self._batches)):
            batch = self._batches[i]
            if batch is not None:
                yield batch

    def evict_one(self) -> int:
        """Drop the oldest batch if it is in object storage; its bytes, or 0."""
        batch = self._batches[self._dropped] if self._dropped < len(self._batches) else None
        if batch is None or batch.end > self._uploaded:
            return 0
        self._batches[self._dropped] = None
        self._dropped += 1
        if self._dropped > SHRINK_AT and self._dropped * 2 > len(self._bases):
            del self._bases[: self._dropped], self._batches[: self._dropped]
            self._dropped = 0
        return len(batch.data)

    def clear(self) -> None:
        """Forget everything (the partition is closed here)."""
        self._budget.removed(self, sum(len(b.data) for b in self._batches if b is not None))
        self._batches.clear()
        self._bases.clear()
        self._dropped = 0


class CacheBudget:
    """Bytes held by all partitions' caches of a broker, and who gives some back."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self._order: deque[PartitionCache] = deque()  # one item a batch added, oldest first
        self._stuck = False

    def added(self, cache: PartitionCache, size: int) -> None:
        self.bytes_held += size
        self._order.append(cache)
        if self.bytes_held > self.bytes_max and not self._stuck:
            self.evict()

    def removed(self, cache: PartitionCache, size: int) -> None:
        self.bytes_held -= size
        self._order = deque(c for c in self._order if c is not cache)
        self._stuck = False

    def may_evict(self) -> None:
        """More is in object storage than before: the oldest batches go now, for nothing may be added for long. Stops at
        the first that has to stay; the next one added looks past it."""
        self._stuck = False
        while self.bytes_held > self.bytes_max and self._order and (freed := self._order[0].evict_one()):
            self._order.popleft()
            self.bytes_held -= freed

    def evict(self) -> None:
        """Evict the oldest batches that may go, until within the budget. Batches still in the WAL alone are passed
        over.
        """
        kept: list[PartitionCache] = []
        while self.bytes_held > self.bytes_max and self._order and len(kept) < PASSED_OVER_MAX:
            cache = self._order.popleft()
            freed = cache.evict_one()
            self.bytes_held -= freed
            if not freed:
                kept.append(cache)
        self._order.extendleft(reversed(kept))
        # Searching again before anything was uploaded would find the same, at every append.
        self._stuck = self.bytes_held > self.bytes_max
