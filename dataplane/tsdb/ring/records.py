"""From the bytes that a writer has published to Arrow tables, trusting none of them.

The bytes are a private copy by now: what is checked here is what is read here. A writer's records are taken up to the
first one that is not as the layout says; the sentence about that one ends the connection.

Records of one table, row count and flags are read together as a matrix: a strided view a column, however small the
records are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from crc32c import crc32c

from dataplane.tsdb.ring.layout import (
    HAS_NULLS,
    RECORD,
    ROWS,
    ROWS_MAX,
    WRAP,
    Shape,
    Shapes,
    has_text,
)
from dataplane.tsdb.schema.tables import Column, ColumnType
from providers.base.errors import Invalid

_CHECKED = 8
"""The CRC covers a record from here on, and so begins what is kept of it."""
_HEAD = RECORD.size - _CHECKED
_WRAPPED = WRAP.to_bytes(4, "little")
_TEXT = 20 - _CHECKED
_NUMBER = 24 - _CHECKED
_WORDS = {width: np.dtype(f"<u{width}") for width in (1, 2, 4, 8)}


@dataclass(slots=True)
class Declared:
    """A table as a connection has declared it: the columns that its records carry, in their order."""

    table: str
    columns: tuple[Column, ...]
    version: int = 0
    """Of the table's schema at that time."""
    shapes: Shapes = field(init=False)
    schema: pa.Schema = field(init=False)
    types: list[pa.DataType] = field(init=False)
    has_text: bool = field(init=False)

    def __post_init__(self) -> None:
        self.shapes = Shapes([column.type for column in self.columns])
        self.types = [column.type.arrow for column in self.columns]
        self.schema = pa.schema([(c.name, kind) for c, kind in zip(self.columns, self.types, strict=True)])
        self.has_text = any(has_text(column.type) for column in self.columns)


@dataclass(slots=True)
class _Group:
    """Records of one table, row count and flags: each from `_CHECKED` on."""

    shape: Shape
    length: int
    """Of each, where the table has no text; else 0."""
    records: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Taken:
    """What a writer's published bytes hold."""

    tables: list[tuple[str, int, pa.Table]] = field(default_factory=list)
    """Name, version of its schema when it was declared, and rows in the order in which they were written."""
    rows: int = 0
    records: int = 0
    broken: Invalid | None = None
    """What is wrong with the record after these."""


def take(pieces: Sequence[bytes], declared: Sequence[Declared], first: int) -> Taken:
    """The rows of `pieces`: whole records, the first of them numbered `first`. Each piece but the last reaches to the
    ring's end."""
    groups: dict[tuple[int, int, int], _Group] = {}
    taken = Taken()
    number = first
    try:
        for piece in pieces:
            number = _split(piece, declared, number, groups, ends_ring=piece is not pieces[-1])
    except _Broken as broken:
        number, taken.broken = broken.number, Invalid(f"record {broken.number} of the ring {broken}")
    taken.records = number - first
    by_table: dict[int, list[_Group]] = {}
    for (table, _, _), group in groups.items():
        if group.records:
            by_table.setdefault(table, []).append(group)
    for table, its in by_table.items():
        try:
            rows = _rows(declared[table], its)
        except Invalid as error:
            # Its head was in order and its values are not: nothing of this table is taken, and the writer is told.
            taken.broken = taken.broken or error
            continue
        taken.tables.append((declared[table].table, declared[table].version, rows))
        taken.rows += len(rows)
    return taken


class _Broken(Exception):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


def _split(
    piece: bytes, declared: Sequence[Declared], number: int, groups: dict[tuple[int, int, int], _Group], ends_ring: bool
) -> int:
    """Sort a piece's records into `groups`; the number after the last one. This loop is what a small record costs."""
    unpack, known, crc_of = RECORD.unpack_from, groups.get, crc32c
    at, end = 0, len(piece)
    while at < end:
        if end - at < RECORD.size:
            break
        length, crc, kind, flags, table, rows, text, its = unpack(piece, at)
        if length == WRAP:
            break
        group = known((table, rows, flags))
        if group is None:
            group = groups[table, rows, flags] = _begun(declared, number, kind, flags, table, rows)
        if length != (group.length or group.shape.record_bytes(text)) or length > end - at or (group.length and text):
            raise _Broken(number, f"says that it has {length} bytes, which is not so")
        record = piece[at + _CHECKED : at + length]
        if crc_of(record) != crc:
            raise _Broken(number, "is damaged: its checksum does not fit")
        if its != number or kind != ROWS:
            raise _Broken(number, f"is of kind {kind} and says that it is record {its}")
        group.records.append(record)
        number += 1
        at += length
    if at < end and not (ends_ring and piece[at : at + 4] == _WRAPPED):
        raise _Broken(number, "is cut off")
    return number


def _begun(declared: Sequence[Declared], number: int, kind: int, flags: int, table: int, rows: int) -> _Group:
    if kind != ROWS or flags & ~HAS_NULLS:
        raise _Broken(number, f"is of kind {kind} with flags {flags}, which this database does not know")
    if table >= len(declared):
        raise _Broken(number, f"is for table {table}, and {len(declared)} are declared")
    if not 0 < rows <= ROWS_MAX:
        raise _Broken(number, f"has {rows} rows, not 1 to {ROWS_MAX}")
    shape = declared[table].shapes.of(rows, flags)
    return _Group(shape, 0 if declared[table].has_text else shape.record_bytes(0))


def _rows(declared: Declared, groups: Sequence[_Group]) -> pa.Table:
    """A table's rows out of its groups.

    Raises:
        Invalid: values that are none of the column's type, or nulls where the table has none.
    """
    batches, numbers = [], []
    for group in groups:
        fixed = _HEAD + group.shape.fixed
        if declared.has_text:
            stride = fixed
            joined = b"".join([record[:fixed] for record in group.records])
        else:
            stride = len(group.records[0])
            joined = group.records[0] if len(group.records) == 1 else b"".join(group.records)
        batches.append(_batch(declared, group, _Matrix(joined, len(group.records), stride)))
        if len(groups) > 1:
            counted = _Matrix(joined, len(group.records), stride).column(_NUMBER, np.dtype("<u8"), 1)
            numbers.append(np.repeat(counted, group.shape.rows))
    rows = pa.Table.from_batches(batches)
    if len(groups) == 1:
        return rows
    # Rows of records that differ in size: back into the order in which they were written.
    return rows.take(pa.array(np.argsort(np.concatenate(numbers), kind="stable"))).combine_chunks()


@dataclass(slots=True)
class _Matrix:
    """Records of one shape, one a line."""

    data: bytes
    lines: int
    stride: int

    def column(self, at: int, kind: np.dtype, count: int) -> np.ndarray:
        """`count` values from offset `at` of each line, one line after the other."""
        view = np.ndarray((self.lines, count), kind, self.data, at, (self.stride, kind.itemsize))
        return np.ascontiguousarray(view).reshape(-1)

    def columns(self, at: int, width: int, columns: int, rows: int) -> np.ndarray:
        """Neighbouring columns of one width from offset `at` of each line: an array a column, in one copy."""
        strides = (rows * width, self.stride, width)
        view = np.ndarray((columns, self.lines, rows), _WORDS[width], self.data, at, strides)
        return np.ascontiguousarray(view)


def _batch(declared: Declared, group: _Group, matrix: _Matrix) -> pa.RecordBatch:
    shape = group.shape
    size = matrix.lines * shape.rows
    arrays: list[pa.Array] = []
    text_begins = np.full(matrix.lines, _HEAD + shape.fixed, dtype=np.int64)
    for at, width, first, count in shape.runs:
        column = declared.columns[first]
        if has_text(column.type):
            validity, nulls = _validity(declared, shape, matrix, first)
            found = _text(declared, column, group, matrix, _HEAD + at, text_begins)
            array = pa.Array.from_buffers(declared.types[first], size, [validity, *found], nulls)
            if column.type is ColumnType.STRING:
                _check_utf8(declared, column, array)
            arrays.append(array)
            continue
        values = matrix.columns(_HEAD + at, width, count, shape.rows)
        together = pa.py_buffer(values)
        for index in range(first, first + count):
            validity, nulls = _validity(declared, shape, matrix, index) if shape.bitmap_bytes else _ALL
            its = together.slice((index - first) * size * width, size * width)
            if declared.columns[index].type is ColumnType.BOOL:
                its = _bits(declared, declared.columns[index], values[index - first])
            arrays.append(pa.Array.from_buffers(declared.types[index], size, [validity, its], nulls))
    if declared.has_text and (text_begins - _HEAD - shape.fixed != matrix.column(_TEXT, np.dtype("<u4"), 1)).any():
        raise Invalid(f"a record of table {declared.table!r} has more text than its offsets tell of")
    return pa.RecordBatch.from_arrays(arrays, schema=declared.schema)


_ALL: tuple[pa.Buffer | None, int] = (None, 0)


def _check_utf8(declared: Declared, column: Column, array: pa.Array) -> None:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Invalid(f"column {column.name!r} of table {declared.table!r} got text, not UTF-8") from error


def _bits(declared: Declared, column: Column, values: np.ndarray) -> pa.Buffer:
    if values.max() > 1:
        raise Invalid(f"column {column.name!r} of table {declared.table!r} got a bool that is neither 0 nor 1")
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def _validity(declared: Declared, shape: Shape, matrix: _Matrix, index: int) -> tuple[pa.Buffer | None, int]:
    """A column's bitmap over all lines, and how many nulls it has; None: no nulls.

    Raises:
        Invalid: nulls in a column that has none.
    """
    if not shape.bitmap_bytes:
        return _ALL
    bits = matrix.column(_HEAD + index * shape.bitmap_bytes, np.dtype("u1"), shape.bitmap_bytes)
    there = np.unpackbits(bits.reshape(matrix.lines, -1), axis=1, count=shape.rows, bitorder="little").reshape(-1)
    nulls = len(there) - int(there.sum())
    if nulls and not declared.columns[index].nullable:
        name = declared.columns[index].name
        raise Invalid(f"column {name!r} of table {declared.table!r} has no nulls, and got {nulls}")
    return (pa.py_buffer(np.packbits(there, bitorder="little")), nulls) if nulls else (None, 0)


def _text(
    declared: Declared, column: Column, group: _Group, matrix: _Matrix, at: int, begins: np.ndarray
) -> list[pa.Buffer]:
    """Offsets and text of a column; `begins`, where its text lies in each record, is moved on to the next one's."""
    offsets = matrix.column(at, np.dtype("<u4"), group.shape.rows + 1).reshape(matrix.lines, -1).astype(np.int64)
    lengths = np.diff(offsets, axis=1)
    ends = begins + offsets[:, -1]
    sizes = np.fromiter(map(len, group.records), np.int64, matrix.lines)
    if (offsets[:, 0] != 0).any() or (lengths < 0).any() or (ends > sizes).any():
        raise Invalid(f"column {column.name!r} of table {declared.table!r} has offsets that lead out of its text")
    text = b"".join([r[b:e] for r, b, e in zip(group.records, begins.tolist(), ends.tolist(), strict=True)])
    all_offsets = np.zeros(lengths.size + 1, dtype=np.int32)
    np.cumsum(lengths.reshape(-1), out=all_offsets[1:])
    begins[:] = ends
    return [pa.py_buffer(all_offsets), pa.py_buffer(text)]
