"""A table's rows that are in no file yet: Arrow batches, in the order in which they were written.

Sorting and merging wait for the flush, which sees all rows at once. Small batches are joined as they come, each byte a
logarithmic number of times, for a batch of one row costs many times its values.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

BATCH_OVERHEAD_BYTES = 256
"""A column's own cost in a batch: buffers are rounded up to 64 bytes, and described."""


class Memtable:
    """Rows, counted in bytes."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self.bytes = 0
        self.first_sequence: int | None = None
        """Of the WAL: the oldest record whose rows are here."""

    def add(self, batch: pa.RecordBatch, sequence: int | None) -> None:
        """`sequence`: of the WAL's record; None: it is in none."""
        self.bytes += size_of(batch)
        if self.first_sequence is None:
            self.first_sequence = sequence
        self._batches.append(batch)
        while len(self._batches) > 1 and self._joins(self._batches[-2], self._batches[-1]):
            newer, older = self._batches.pop(), self._batches.pop()
            joined = pa.concat_batches([older, newer])
            self.bytes += size_of(joined) - size_of(older) - size_of(newer)
            self._batches.append(joined)

    @staticmethod
    def _joins(older: pa.RecordBatch, newer: pa.RecordBatch) -> bool:
        return bool(older.num_rows < 2 * newer.num_rows and older.schema.equals(newer.schema))

    def batches(self) -> Sequence[pa.RecordBatch]:
        """All rows, oldest first."""
        return self._batches


def size_of(batch: pa.RecordBatch) -> int:
    """Bytes that the batch holds in memory, about."""
    return int(batch.nbytes) + BATCH_OVERHEAD_BYTES * int(batch.num_columns)
