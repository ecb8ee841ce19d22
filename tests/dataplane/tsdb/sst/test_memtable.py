"""Rows in memory: none is lost or out of its place, however small the batches they come in."""

from __future__ import annotations

import random

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataplane.tsdb.sst.memtable import (
    JOINED,
    LARGE_BYTES,
    PACKED_COLUMN_BYTES,
    Memtable,
    message_of,
    with_operation,
)
from dataplane.tsdb.sst.order import DELETE, OP_TYPE


def rows(first: int, count: int, *, deletes: bool = False) -> pa.RecordBatch:
    table = pa.table({"n": pa.array(range(first, first + count), pa.int64())})
    if deletes:
        table = with_operation(table, DELETE)
    [batch] = table.combine_chunks().to_batches()
    return batch


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=300), st.booleans())
def test_rows_come_out_as_they_were_written(writes: list[tuple[int, bool]], packs: bool) -> None:
    memtable, written = Memtable(packs=packs), 0
    for at, (count, deletes) in enumerate(writes, 1):
        memtable.add(message_of(rows(written, count, deletes=deletes)), at)
        written += count
    parts = memtable.parts()
    assert [n for part in parts for n in part.column("n").to_pylist()] == list(range(written))
    deleted = [OP_TYPE in part.column_names for part in parts for _ in range(len(part))]
    assert deleted == [deletes for count, deletes in writes for _ in range(count)]
    assert memtable.bytes == sum(message.bytes for message in memtable.messages())
    assert (memtable.first_sequence, memtable.last_sequence) == ((1, len(writes)) if writes else (None, None))


def test_many_small_batches_cost_little_beside_their_values() -> None:
    """A row a batch: each of them alone costs some hundred bytes."""
    memtable, count = Memtable(), JOINED**3
    for at in range(count):
        memtable.add(message_of(rows(at, 1)), None)
    assert memtable.bytes < 2 * 8 * count
    assert sum(len(part) for part in memtable.parts()) == count


def test_what_is_large_is_copied_no_more() -> None:
    memtable = Memtable()
    large = message_of(rows(0, LARGE_BYTES // 8))
    memtable.add(large, None)
    memtable.add(large, None)
    [whole] = memtable.messages()
    for _ in range(JOINED**2):
        memtable.add(message_of(rows(0, 1)), None)
    assert memtable.messages()[0] is whole
    larger = message_of(rows(0, LARGE_BYTES // 4))
    memtable.add(larger, None)
    assert memtable.messages()[-1] is larger


def test_what_is_joined_is_packed_once_and_only_where_that_makes_it_smaller() -> None:
    memtable, count = Memtable(packs=True), 40
    for at in range(count):
        memtable.add(message_of(rows(at * 100, 100)), None)
    assert memtable.bytes < 8 * 100 * count / 2
    [first, *_] = memtable.messages()
    assert first.packed() is first and first.bytes < PACKED_COLUMN_BYTES
    rng = random.Random(1)
    noise = pa.record_batch({"n": pa.array([rng.getrandbits(63) for _ in range(1_000)])})
    memtable = Memtable(packs=True)
    memtable.add(message_of(noise), None)
    [whole] = memtable.messages()
    assert whole.unpacked is None and whole.batch().equals(noise)
