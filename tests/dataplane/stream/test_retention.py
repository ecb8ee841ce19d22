"""Which records retention lets go: Kafka's rules, on blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.stream.objects import IndexEntry
from dataplane.stream.retention import Retention, retention_of, start_by_age, start_by_size

DAY_MS = 86_400_000


def blocks(*shapes: tuple[int, int]) -> list[IndexEntry]:
    """Blocks of ten offsets each: (size, newest timestamp)."""
    return [IndexEntry(1, i * 10, i * 10 + 10, at, 0, size, 0, -1, 0) for i, (size, at) in enumerate(shapes)]


def test_topics_keep_everything_unless_they_say_otherwise() -> None:
    assert not retention_of({}).bounded and not retention_of({"retention.ms": "-1"}).bounded
    assert retention_of({"retention.ms": "5", "retention.bytes": "7"}) == Retention(5, 7)


def test_blocks_go_when_their_newest_record_is_too_old() -> None:
    held = blocks((100, 1 * DAY_MS), (100, 3 * DAY_MS), (100, 2 * DAY_MS), (100, 9 * DAY_MS))
    assert start_by_age(held, 0, 7 * DAY_MS, 9 * DAY_MS) == 10
    assert start_by_age(held, 0, 5 * DAY_MS, 9 * DAY_MS) == 30, "a later record that is older keeps nothing"
    assert start_by_age(held, 0, 9 * DAY_MS, 9 * DAY_MS) == 0


def test_records_without_a_timestamp_have_no_age() -> None:
    assert start_by_age(blocks((100, -1), (100, 1)), 0, 5, 1_000_000) == 0


@given(st.lists(st.integers(1, 500), max_size=20), st.integers(0, 500), st.integers(0, 4_000))
def test_what_is_left_holds_at_least_the_size_and_no_more_than_a_block_above_it(
    sizes: list[int], unuploaded: int, bound: int
) -> None:
    held = blocks(*((size, 0) for size in sizes))
    total = sum(sizes) + unuploaded
    start = start_by_size(held, 0, bound, total)
    left = total - sum(sizes[: start // 10])
    assert left >= min(bound, total)
    if start // 10 < len(sizes):
        assert left - sizes[start // 10] < bound
