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


@dataclass(slots=True)
class CachedBatch:
    """One record batch, offsets [base, end). `block`: number of the WAL block that holds it, 0 until acked."""

    base: int
    end: int
    max_timestamp: int
    data: bytes
    block: int = 0


class PartitionCache:
    """The batches of one partition, contiguous, oldest first."""

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._batches: deque[CachedBatch] = deque()
        self._bases: list[int] = []
        self._dropped = 0  # how many of _bases' first items are evicted already
        self.uploaded = 0
        """Offsets below are in object storage: their batches may be evicted."""

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def first(self) -> int | None:
        """First offset held, None when empty."""
        return self._batches[0].base if self._batches else None

    def add(self, batch: CachedBatch) -> None:
        self._batches.append(batch)
        self._bases.append(batch.base)
        self._budget.added(self, len(batch.data))

    def from_offset(self, offset: int) -> Iterator[CachedBatch]:
        """Batches from the one that holds `offset`; nothing when it was evicted or is not there yet."""
        first = self.first
        if first is None or offset < first:
            return
        at = bisect_right(self._bases, offset, self._dropped) - 1 - self._dropped
        if self._batches[at].end <= offset:
            return
        for i in range(at, len(self._batches)):
            yield self._batches[i]

    def evict_one(self) -> int:
        """Drop the oldest batch if it is in object storage; its bytes, or 0."""
        if not self._batches or self._batches[0].end > self.uploaded:
            return 0
        batch = self._batches.popleft()
        self._dropped += 1
        if self._dropped > 1024 and self._dropped * 2 > len(self._bases):
            del self._bases[: self._dropped]
            self._dropped = 0
        return len(batch.data)

    def clear(self) -> None:
        """Forget everything (the partition is closed here)."""
        self._budget.removed(self, sum(len(b.data) for b in self._batches))
        self._batches.clear()
        self._bases.clear()
        self._dropped = 0


class CacheBudget:
    """Bytes held by all partitions' caches of a broker, and who gives some back."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self._order: deque[PartitionCache] = deque()  # one item a batch added, oldest first

    def added(self, cache: PartitionCache, size: int) -> None:
        self.bytes_held += size
        self._order.append(cache)
        self.evict()

    def removed(self, cache: PartitionCache, size: int) -> None:
        self.bytes_held -= size
        self._order = deque(c for c in self._order if c is not cache)

    def evict(self) -> None:
        """Evict the oldest batches that may go, until within the budget. Batches still in the WAL alone are passed
        over.
        """
        kept: list[PartitionCache] = []
        while self.bytes_held > self.bytes_max and self._order and len(kept) < 64:
            cache = self._order.popleft()
            freed = cache.evict_one()
            self.bytes_held -= freed
            if not freed:
                kept.append(cache)
        self._order.extendleft(reversed(kept))
