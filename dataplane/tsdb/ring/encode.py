"""From Arrow to the ring's bytes: the writing side of `records.py`, and the inverse of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from crc32c import crc32c

from dataplane.tsdb.ring.layout import HAS_NULLS, RECORD, ROWS, Shapes, aligned, dtype, has_text
from dataplane.tsdb.schema.tables import Column, ColumnType
from providers.base.errors import Invalid

_CRC = struct.Struct("<I")


def record_of(columns: Sequence[Column], shapes: Shapes, table: int, number: int, batch: pa.RecordBatch) -> bytes:
    """A record of the batch's rows, which are in `columns`, in their order."""
    rows = batch.num_rows
    flags = HAS_NULLS if any(array.null_count for array in batch.columns) else 0
    shape = shapes.of(rows, flags)
    texts = [_text_of(batch.column(at)) if has_text(c.type) else None for at, c in enumerate(columns)]
    text = sum(len(found[1]) for found in texts if found is not None)
    record = bytearray(shape.record_bytes(text))
    RECORD.pack_into(record, 0, len(record), 0, ROWS, flags, table, rows, text, number)
    end = RECORD.size + shape.fixed
    for at, column in enumerate(columns):
        array = batch.column(at)
        if flags:
            there = np.packbits(array.is_valid().to_numpy(zero_copy_only=False), bitorder="little")
            begin = RECORD.size + at * shape.bitmap_bytes
            record[begin : begin + shape.bitmap_bytes] = there.tobytes()
        found = texts[at]
        if found is not None:
            values = found[0]
            record[end : end + len(found[1])] = found[1]
            end += len(found[1])
        else:
            values = _values_of(array, column.type)
        begin = RECORD.size + shape.values[at]
        record[begin : begin + values.nbytes] = values.tobytes()
    _CRC.pack_into(record, 4, crc32c(memoryview(record)[8:]))
    return bytes(record)


def _values_of(array: pa.Array, kind: ColumnType) -> np.ndarray:
    if kind.is_timestamp:
        array = array.cast(pa.int64())
    elif kind is ColumnType.BOOL:
        array = array.cast(pa.uint8())
    if array.null_count:
        array = pc.fill_null(array, 0)
    values: np.ndarray = array.to_numpy(zero_copy_only=False).astype(dtype(kind), copy=False)
    return values


def _text_of(array: pa.Array) -> tuple[np.ndarray, bytes]:
    """Offsets from 0 on, and the text."""
    _, offsets, text = array.buffers()
    found = np.frombuffer(offsets, dtype=np.int32, count=len(array) + 1, offset=array.offset * 4)
    if text is None:
        return np.zeros(len(array) + 1, dtype=np.uint32), b""
    return (found - found[0]).astype(np.uint32), text.slice(int(found[0]), int(found[-1] - found[0])).to_pybytes()


class RowForm:
    """Records of one row without nulls and without text: packed by one call, for those who write row by row."""

    def __init__(self, columns: Sequence[Column], shapes: Shapes, table: int) -> None:
        """Raises Invalid: a column of text has no such form."""
        if any(has_text(column.type) for column in columns):
            raise Invalid("a table with columns of text takes batches, not single rows of numbers")
        shape = shapes.of(1, 0)
        form, at = "<IIHHIIIQ", 0
        for column, begin in zip(columns, shape.values, strict=True):
            kind = dtype(column.type)
            form += f"{begin - at}x{_CODES[kind.str[1:]]}"
            at = begin + kind.itemsize
        self.bytes = shape.record_bytes(0)
        self._struct = struct.Struct(form + f"{aligned(at, 8) - at}x")
        self._table = table

    def pack(self, number: int, values: Sequence[Any]) -> bytearray:
        """The record.

        Raises:
            Invalid: values that are not of the columns' types.
        """
        record = bytearray(self.bytes)
        try:
            self._struct.pack_into(record, 0, self.bytes, 0, ROWS, 0, self._table, 1, 0, number, *values)
        except struct.error as error:
            raise Invalid(f"a row that does not fit its table: {error}") from error
        _CRC.pack_into(record, 4, crc32c(memoryview(record)[8:]))
        return record


_CODES = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f4": "f", "f8": "d"}
