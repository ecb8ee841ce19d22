"""What is in object storage leaves a full cache, whether more comes or not."""

from __future__ import annotations

from dataplane.stream.cache import CacheBudget, CachedBatch, PartitionCache


def fill(cache: PartitionCache, count: int) -> None:
    for base in range(count):
        cache.add(CachedBatch(base, base + 1, 0, b"0123456789"))


def test_what_was_uploaded_leaves_a_full_cache_though_nothing_is_added() -> None:
    budget = CacheBudget(50)
    cache = PartitionCache(budget)
    fill(cache, 20)
    assert budget.bytes_held == 200, "the WAL alone has them"
    cache.uploaded = 10
    assert (budget.bytes_held, cache.first) == (100, 10)
    cache.uploaded = 20
    assert (budget.bytes_held, cache.first) == (50, 15), "within its budget a cache keeps what it has"


def test_an_upload_of_several_partitions_frees_of_each_what_is_oldest() -> None:
    budget = CacheBudget(50)
    caches = [PartitionCache(budget) for _ in range(3)]
    for base in range(5):
        for cache in caches:
            cache.add(CachedBatch(base, base + 1, 0, b"0123456789"))
    for cache in reversed(caches):
        cache.uploaded = 5
    assert budget.bytes_held == 50
    assert [cache.first for cache in caches] == [4, 3, 3]


def test_batches_that_stay_hold_back_those_of_others_until_the_next_is_added() -> None:
    budget = CacheBudget(50)
    staying, going = PartitionCache(budget), PartitionCache(budget)
    fill(staying, 5)
    fill(going, 5)
    going.uploaded = 5
    assert budget.bytes_held == 100
    going.add(CachedBatch(5, 6, 0, b"0123456789"))
    assert budget.bytes_held == 60 and staying.first == 0
