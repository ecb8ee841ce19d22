"""An Arrow table becomes a MySQL result set: column definitions, and rows as text or in binary.

Timestamps travel as DATETIME in UTC with at most microseconds: what is finer is cut. Floats that are no number travel
as `nan` and `inf`, which MySQL has not. Lists, structs and intervals travel as text.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from mysql_mimic import packets
from mysql_mimic.charset import CharacterSet
from mysql_mimic.types import ColumnDefinition, ColumnType, str_len

from dataplane.tsdb.protocols.row_batches import Cells, as_text, batches, micros
from providers.base.errors import Invalid

_INTEGERS: dict[pa.DataType, tuple[ColumnType, str, int]] = {
    pa.int8(): (ColumnType.TINY, "b", 4),
    pa.int16(): (ColumnType.SHORT, "h", 6),
    pa.int32(): (ColumnType.LONG, "i", 11),
    pa.int64(): (ColumnType.LONGLONG, "q", 20),
    pa.uint8(): (ColumnType.TINY, "B", 3),
    pa.uint16(): (ColumnType.SHORT, "H", 5),
    pa.uint32(): (ColumnType.LONG, "I", 10),
    pa.uint64(): (ColumnType.LONGLONG, "Q", 20),
}
"""Wire type, format, and digits to show."""
_TEXT_BYTES = 0xFFFF
_EPOCH = datetime(1970, 1, 1)
_NO_FLAGS = ColumnDefinition(0)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an answer: how it is announced and encoded."""

    name: str
    wire: ColumnType
    text: Callable[[pa.Array], Cells]
    binary: Callable[[pa.Array], Cells]
    length: int
    flags: ColumnDefinition = _NO_FLAGS
    decimals: int = 0
    character_set: CharacterSet = CharacterSet.binary

    def definition(self, table: str = "") -> bytes:
        """Its packet."""
        packet: bytes = packets.make_column_definition_41(
            server_charset=CharacterSet.utf8mb4,
            table=table,
            name=self.name,
            character_set=self.character_set,
            column_length=self.length,
            column_type=self.wire,
            flags=self.flags,
            decimals=self.decimals,
        )
        return packet


Encoding = Callable[[pa.Table, Sequence[Column]], Iterator[list[bytes]]]
"""`text_rows` or `binary_rows`."""


def columns(schema: pa.Schema) -> list[Column]:
    """The columns of an answer with this schema."""
    return [_column(field.name, field.type) for field in schema]


def _column(name: str, kind: pa.DataType) -> Column:
    if pa.types.is_dictionary(kind):
        return _column(name, kind.value_type)
    if kind in _INTEGERS:
        wire, form, digits = _INTEGERS[kind]
        flags = ColumnDefinition.NUM_FLAG | ColumnDefinition.BINARY_FLAG
        if form.isupper():
            flags |= ColumnDefinition.UNSIGNED_FLAG
        return Column(name, wire, as_text, _packed(form), digits, flags)
    if pa.types.is_boolean(kind):
        return Column(name, ColumnType.TINY, _bool_text, _packed("b"), 1, ColumnDefinition.NUM_FLAG)
    if pa.types.is_float32(kind):
        return Column(name, ColumnType.FLOAT, as_text, _packed("f"), 12, ColumnDefinition.NUM_FLAG, 31)
    if pa.types.is_floating(kind):
        return Column(name, ColumnType.DOUBLE, as_text, _packed("d"), 22, ColumnDefinition.NUM_FLAG, 31)
    if pa.types.is_decimal(kind):
        number = Column(name, ColumnType.NEWDECIMAL, as_text, _prefixed(as_text), kind.precision + 2)
        return _with(number, flags=ColumnDefinition.NUM_FLAG, decimals=max(kind.scale, 0))
    if pa.types.is_timestamp(kind):
        digits = {"s": 0, "ms": 3}.get(kind.unit, 6)
        moment = Column(name, ColumnType.DATETIME, _moments(digits), _moment_binary, 19 + digits + bool(digits))
        return _with(moment, flags=ColumnDefinition.BINARY_FLAG, decimals=digits)
    if pa.types.is_date(kind):
        return Column(name, ColumnType.DATE, as_text, _date_binary, 10, ColumnDefinition.BINARY_FLAG)
    if pa.types.is_time(kind):
        return Column(name, ColumnType.TIME, as_text, _time_binary, 15, ColumnDefinition.BINARY_FLAG, 6)
    if pa.types.is_null(kind):
        return Column(name, ColumnType.NULL, _nulls, _nulls, 0)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        flags = ColumnDefinition.BINARY_FLAG | ColumnDefinition.BLOB_FLAG
        return Column(name, ColumnType.BLOB, _as_is, _prefixed(_as_is), _TEXT_BYTES, flags)
    plain = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    encoded = as_text if plain else _described
    return Column(
        name,
        ColumnType.VAR_STRING,
        encoded,
        _prefixed(encoded),
        _TEXT_BYTES,
        character_set=CharacterSet.utf8mb4,
    )


def _with(column: Column, *, flags: ColumnDefinition, decimals: int) -> Column:
    return Column(
        column.name, column.wire, column.text, column.binary, column.length, flags, decimals, column.character_set
    )


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def text_rows(data: pa.Table, shown: Sequence[Column]) -> Iterator[list[bytes]]:
    """Packets, by batches."""
    for batch in batches(data):
        cells = [column.text(array) for column, array in zip(shown, batch, strict=True)]
        yield [
            b"".join([b"\xfb" if cell is None else str_len(cell) for cell in row]) for row in zip(*cells, strict=True)
        ]


def binary_rows(data: pa.Table, shown: Sequence[Column]) -> Iterator[list[bytes]]:
    """Packets, by batches. Raises Invalid: a time that the binary protocol has no form for."""
    bitmap_bytes = (len(shown) + 9) // 8
    for batch in batches(data):
        cells = [column.binary(array) for column, array in zip(shown, batch, strict=True)]
        found = []
        for row in zip(*cells, strict=True):
            nulls = 0
            for at, cell in enumerate(row):
                if cell is None:
                    nulls |= 1 << (at + 2)
            present = [cell for cell in row if cell is not None]
            found.append(b"".join([b"\0", nulls.to_bytes(bitmap_bytes, "little"), *present]))
        yield found


# ── cells ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _as_is(array: pa.Array) -> Cells:
    cells: Cells = array.to_pylist()
    return cells


def _nulls(array: pa.Array) -> Cells:
    return [None] * len(array)


def _bool_text(array: pa.Array) -> Cells:
    return as_text(array.cast(pa.int8()))


def _described(array: pa.Array) -> Cells:
    """Lists and structs as JSON; what JSON has not, as Python shows it."""
    return [None if value is None else json.dumps(value, default=str).encode() for value in array.to_pylist()]


def _prefixed(text: Callable[[pa.Array], Cells]) -> Callable[[pa.Array], Cells]:
    def binary(array: pa.Array) -> Cells:
        return [None if cell is None else str_len(cell) for cell in text(array)]

    return binary


def _packed(form: str) -> Callable[[pa.Array], Cells]:
    pack = struct.Struct("<" + form).pack

    def binary(array: pa.Array) -> Cells:
        return [None if value is None else pack(value) for value in array.to_pylist()]

    return binary


def _moments(digits: int) -> Callable[[pa.Array], Cells]:
    def text(array: pa.Array) -> Cells:
        moments_us, null = micros(array)
        moments: np.ndarray[Any, np.dtype[np.datetime64]] = moments_us.view("datetime64[us]")
        if digits == 0:
            shown = np.datetime_as_string(moments, unit="s")
        else:
            shown = np.datetime_as_string(moments, unit="ms" if digits == 3 else "us")
        return [
            None if is_null else moment.replace("T", " ").encode()
            for moment, is_null in zip(shown.tolist(), null.tolist(), strict=True)
        ]

    return text


def _moment_binary(array: pa.Array) -> Cells:
    moments_us, null = micros(array)
    cells: Cells = []
    for value, is_null in zip(moments_us.tolist(), null.tolist(), strict=True):
        if is_null:
            cells.append(None)
            continue
        try:
            at = _EPOCH + timedelta(microseconds=value)
        except OverflowError:
            raise Invalid("a time of the answer is outside the years 1 to 9999", hint="ask without preparing") from None
        day = struct.pack("<HBB", at.year, at.month, at.day)
        clock = bytes([at.hour, at.minute, at.second])
        if at.microsecond:
            cells.append(b"\x0b" + day + clock + struct.pack("<I", at.microsecond))
        else:
            cells.append(b"\x07" + day + clock)
    return cells


def _date_binary(array: pa.Array) -> Cells:
    return [
        None if day is None else b"\x04" + struct.pack("<HBB", day.year, day.month, day.day)
        for day in array.to_pylist()
    ]


def _time_binary(array: pa.Array) -> Cells:
    cells: Cells = []
    for at in array.to_pylist():
        if at is None:
            cells.append(None)
        else:
            cells.append(struct.pack("<BBIBBBI", 12, 0, 0, at.hour, at.minute, at.second, at.microsecond))
    return cells
