"""What an application hands over, as batches of a table's own columns: checked once a shape, not once a batch."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.memtable import MESSAGE_OVERHEAD_BYTES, size_of, with_operation
from dataplane.tsdb.sst.order import DELETE, OP_TYPE, key_columns
from dataplane.tsdb.sst.writer import arrow_schema, conformed
from providers.base.errors import Invalid

SHAPES_MAX = 8
"""Shapes of one table that are remembered: columns that came in, their types and order."""


@dataclass(frozen=True, slots=True)
class Put:
    """Rows for one table. `deletes`: the rows with these tags and times are deleted; other columns are passed over."""

    table: str
    data: pa.Table
    deletes: bool = False


@dataclass(frozen=True, slots=True)
class _Shape:
    """`places`: of each column of the table, where it is in what comes in, or None."""

    comes: pa.Schema
    places: tuple[int | None, ...]

    @property
    def fits(self) -> bool:
        """Whether the columns are the table's, in its order."""
        return self.places == tuple(range(len(self.comes)))


class Intake:
    """Of one version of one table."""

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.fingerprint = schema.fingerprint
        self._target = arrow_schema(schema)
        self._deleting = arrow_schema(schema, deletes=True)
        self._row_bits = _row_bits(self._target)
        self._never_null = [at for at, field in enumerate(self._target) if not field.nullable]
        self._shapes: list[_Shape] = []
        self._fitting: pa.Schema | None = None
        """Of the last batch that was taken as it is."""

    def columns(self, *, deletes: bool) -> pa.Schema:
        """Of messages of this table."""
        return self._deleting if deletes else self._target

    def size(self, batch: pa.RecordBatch) -> int:
        """Bytes that the batch's message will hold in memory, or somewhat more."""
        if self._row_bits is None or batch.num_columns != len(self._target):
            return size_of(batch)
        columns, rows = int(batch.num_columns), int(batch.num_rows)
        return MESSAGE_OVERHEAD_BYTES + 64 * (columns + 1) + (rows * self._row_bits + 7) // 8

    def batch(self, put: Put) -> pa.RecordBatch:
        """All rows as one batch of the table's columns, and `__op_type` if they delete. Its schema may say otherwise
        which of them can be null.

        Raises:
            Invalid: no rows, a column that the table does not have or of another type, a tag or the time index missing,
                null where the table has no null, or a delete in a table that appends.
        """
        if put.deletes:
            return self._deletes(put.data)
        comes, count = put.data.schema, len(put.data)
        batches = put.data.to_batches()
        if self._fitting is not None and count and len(batches) == 1 and comes.equals(self._fitting):
            [batch] = batches
            if not any(batch.column(at).null_count for at in self._never_null):
                return batch
        shape = next((known for known in self._shapes if known.comes.equals(comes)), None)
        if shape is None or not count:
            return self._slow(put.data)
        if len(batches) != 1:
            batches = put.data.combine_chunks().to_batches()
        found = batches[0].columns
        columns = [
            pa.nulls(count, field.type) if at is None else found[at]
            for at, field in zip(shape.places, self._target, strict=True)
        ]
        if any(columns[at].null_count for at in self._never_null):
            return self._slow(put.data)  # which says what is wrong
        return pa.RecordBatch.from_arrays(columns, schema=self._target)

    def _slow(self, data: pa.Table) -> pa.RecordBatch:
        if OP_TYPE in data.column_names:
            raise Invalid(f"{OP_TYPE!r} is the database's own column")
        if len(set(data.column_names)) < data.num_columns:
            raise Invalid(f"rows for table {self.schema.name!r} name a column twice")
        [batch] = conformed(self.schema, data).combine_chunks().to_batches()
        places = {name: at for at, name in enumerate(data.column_names)}
        shape = _Shape(data.schema, tuple(places.get(field.name) for field in self._target))
        self._shapes = [shape, *self._shapes][:SHAPES_MAX]
        if shape.fits:
            self._fitting = shape.comes
        return batch

    def _deletes(self, data: pa.Table) -> pa.RecordBatch:
        if self.schema.options.append_mode:
            raise Invalid(f"table {self.schema.name!r} appends: none of its rows can be deleted")
        data = data.select([name for name in data.column_names if name in key_columns(self.schema)])
        [batch] = conformed(self.schema, with_operation(data, DELETE)).combine_chunks().to_batches()
        return batch


def _row_bits(schema: pa.Schema) -> int | None:
    """Of a row with all its bitmaps; None: it has text, and so no size of its own."""
    try:
        return sum(int(kind.bit_width) + 1 for kind in schema.types)
    except ValueError:
        return None
