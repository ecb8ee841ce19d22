"""A table's rows that are in no file yet: Arrow batches, in the order in which they were written.

Sorting and merging wait for the flush, which sees all rows at once. Small batches are joined as they come, eight at a
time, each row a logarithmic number of times, for a batch of one row costs many times its values.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.order import OP_TYPE, PUT
from dataplane.tsdb.sst.writer import arrow_schema

BATCH_OVERHEAD_BYTES = 512
"""A column's own cost in a batch, measured: buffers are rounded up to 64 bytes, and described by several objects."""
JOINED = 8
"""So many batches of a level become one of the next."""
LARGE_BYTES = 128 << 10
"""A batch from this size on is joined no more."""

_Sized = tuple[pa.RecordBatch, int]


class Memtable:
    """Rows, counted in bytes."""

    def __init__(self) -> None:
        self._settled: list[pa.RecordBatch] = []
        """Older than all in `_levels`."""
        self._levels: list[list[_Sized]] = [[]]
        """Newest in the first; in each, oldest first."""
        self._schema: pa.Schema | None = None
        """Of what is in `_levels`."""
        self.bytes = 0
        self.first_sequence: int | None = None
        """Of the WAL: the oldest record whose rows are here."""
        self.last_sequence: int | None = None

    def add(self, batch: pa.RecordBatch, sequence: int | None, size: int | None = None) -> None:
        """`sequence`: of the WAL's record; None: it is in none. `size`: as `size_of`, where it is known."""
        size = size_of(batch) if size is None else size
        if self.first_sequence is None:
            self.first_sequence = sequence
        self.last_sequence = sequence if sequence is not None else self.last_sequence
        self.bytes += size
        if self._schema is not None and not self._schema.equals(batch.schema):
            self._settle()  # rows that delete have a column more
        self._schema = batch.schema
        self._levels[0].append((batch, size))
        for level, batches in enumerate(self._levels):
            if len(batches) < JOINED:
                break
            whole = pa.concat_batches([found for found, _ in batches])
            whole_size = size_of(whole)
            self.bytes += whole_size - sum(each for _, each in batches)
            self._levels[level] = []
            if whole_size >= LARGE_BYTES:
                for older in reversed(self._levels[level + 1 :]):
                    self._settled += [found for found, _ in older]
                    older.clear()
                self._settled.append(whole)
                break
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append((whole, whole_size))

    def batches(self) -> list[pa.RecordBatch]:
        """All rows, oldest first."""
        return [*self._settled, *(batch for level in reversed(self._levels) for batch, _ in level)]

    def _settle(self) -> None:
        self._settled = self.batches()
        self._levels = [[]]


def size_of(batch: pa.RecordBatch) -> int:
    """Bytes that the batch holds in memory, about: as a message, for asking each buffer takes ten times as long."""
    return int(pa.ipc.get_record_batch_size(batch)) + BATCH_OVERHEAD_BYTES * int(batch.num_columns)


def joined(schema: TableSchema, parts: Sequence[pa.Table]) -> pa.Table:
    """All rows in the table's columns, with `__op_type` if some of them may delete. Parts may be of older versions of
    the table: names stay, types widen, and what has been added since is null."""
    target = arrow_schema(schema, deletes=any(OP_TYPE in part.column_names for part in parts))
    return pa.concat_tables([target.empty_table(), *(_as_of(target, part) for part in parts)])


def _as_of(target: pa.Schema, part: pa.Table) -> pa.Table:
    for name in target.names:
        if name == OP_TYPE and name not in part.column_names:
            part = with_operation(part, PUT)
        elif name not in part.column_names:
            part = part.append_column(name, pa.nulls(len(part), target.field(name).type))
    return part.select(target.names).cast(target)


def with_operation(rows: pa.Table, operation: int) -> pa.Table:
    """`rows`, all of them put or all of them deleted (`order.PUT`, `order.DELETE`)."""
    return rows.append_column(OP_TYPE, pa.repeat(pa.scalar(operation, pa.uint8()), len(rows)))
