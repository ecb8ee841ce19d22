"""An Arrow table becomes a Postgres result: its description, and rows whose cells are text or binary.

Timestamps travel without a zone, in UTC, with at most microseconds: what is finer is cut. Unsigned integers travel in
the next larger type, 64-bit ones as numeric. Lists, structs and maps travel as JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.protocols.postgres_messages import COLUMNS_MAX, message, string
from dataplane.tsdb.protocols.postgres_types import SIZES, Oid
from dataplane.tsdb.protocols.row_batches import Cells, as_text, batches, micros
from providers.base.errors import Invalid

_EPOCH_2000 = date(2000, 1, 1)
_EPOCH_2000_US = int((datetime(2000, 1, 1) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
_NULL = b"\xff\xff\xff\xff"
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an answer: how it is announced and encoded."""

    name: str
    oid: Oid
    text: Callable[[pa.Array], Cells]
    binary: Callable[[pa.Array], Cells]
    modifier: int = -1
    """Of its type: of numeric precision and scale, of timestamp digits."""


def columns(schema: pa.Schema) -> list[Column]:
    """The columns of an answer with this schema. Raises Invalid: too many."""
    if len(schema) > COLUMNS_MAX:
        raise Invalid(f"an answer of {len(schema)} columns, more than {COLUMNS_MAX}")
    return [_column(field.name, field.type) for field in schema]


def row_description(shown: Sequence[Column], formats: Sequence[int]) -> bytes:
    """RowDescription. `formats`: one a column."""
    fields = []
    for column, form in zip(shown, formats, strict=True):
        size = SIZES.get(column.oid, -1)
        fields.append(string(column.name) + struct.pack("!IhIhih", 0, 0, column.oid, size, column.modifier, form))
    return message(b"T", len(shown).to_bytes(2, "big"), *fields)


def data_rows(data: pa.Table, shown: Sequence[Column], formats: Sequence[int]) -> Iterator[bytes]:
    """DataRow messages, some rows at a time. Raises Invalid: a value that its type has no form for."""
    count = len(shown).to_bytes(2, "big")
    encoders = [column.binary if form else column.text for column, form in zip(shown, formats, strict=True)]
    for batch in batches(data):
        cells = [_with_lengths(encode(array)) for encode, array in zip(encoders, batch, strict=True)]
        rows = (count + b"".join(row) for row in zip(*cells, strict=True)) if cells else _empty_rows(len(data))
        yield b"".join([b"D" + (len(row) + 4).to_bytes(4, "big") + row for row in rows])


def _with_lengths(cells: Cells) -> list[bytes]:
    return [_NULL if cell is None else len(cell).to_bytes(4, "big") + cell for cell in cells]


def _empty_rows(count: int) -> Iterator[bytes]:
    yield from (b"\0\0" for _ in range(count))


def _column(name: str, kind: pa.DataType) -> Column:
    types = pa.types
    if types.is_dictionary(kind):
        return _column(name, kind.value_type)
    if types.is_boolean(kind):
        return Column(name, Oid.BOOL, _bool_text, _packed("?"))
    if kind == pa.uint64():
        return Column(name, Oid.NUMERIC, as_text, _numeric_binary)
    if types.is_integer(kind):
        oid, form = _INTEGERS[kind]
        return Column(name, oid, as_text, _packed(form))
    if types.is_float32(kind):
        return Column(name, Oid.FLOAT4, _float_text, _packed("f"))
    if types.is_floating(kind):
        return Column(name, Oid.FLOAT8, _float_text, _packed("d"))
    if types.is_decimal(kind):
        modifier = (kind.precision << 16 | kind.scale) + 4 if kind.scale >= 0 else -1
        return Column(name, Oid.NUMERIC, as_text, _numeric_binary, modifier)
    if types.is_timestamp(kind):
        oid = Oid.TIMESTAMP if kind.tz is None else Oid.TIMESTAMPTZ
        text = _moment_text if kind.tz is None else _zoned_text
        return Column(name, oid, text, _moment_binary, {"s": 0, "ms": 3}.get(kind.unit, 6))
    if types.is_date(kind):
        return Column(name, Oid.DATE, as_text, _date_binary)
    if types.is_time(kind):
        return Column(name, Oid.TIME, _time_text, _time_binary)
    if types.is_interval(kind):
        return Column(name, Oid.INTERVAL, _interval_text, _interval_binary)
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return Column(name, Oid.BYTEA, _bytes_text, pa.Array.to_pylist)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return Column(name, Oid.TEXT, as_text, as_text)
    return Column(name, Oid.JSON, _json, _json)


_INTEGERS: dict[pa.DataType, tuple[Oid, str]] = {
    pa.int8(): (Oid.INT2, "h"),
    pa.int16(): (Oid.INT2, "h"),
    pa.int32(): (Oid.INT4, "i"),
    pa.int64(): (Oid.INT8, "q"),
    pa.uint8(): (Oid.INT2, "h"),
    pa.uint16(): (Oid.INT4, "i"),
    pa.uint32(): (Oid.INT8, "q"),
}


# ── cells ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bool_text(array: pa.Array) -> Cells:
    return [None if value is None else b"t" if value else b"f" for value in array.to_pylist()]


def _packed(form: str) -> Callable[[pa.Array], Cells]:
    pack = struct.Struct("!" + form).pack

    def binary(array: pa.Array) -> Cells:
        return [None if value is None else pack(value) for value in array.to_pylist()]

    return binary


_ODD_FLOATS = {b"nan": b"NaN", b"-nan": b"NaN", b"inf": b"Infinity", b"-inf": b"-Infinity"}


def _float_text(array: pa.Array) -> Cells:
    cells = as_text(array)
    if pc.all(pc.is_finite(array)).as_py() is False:
        return [None if cell is None else _ODD_FLOATS.get(cell, cell) for cell in cells]
    return cells


def _bytes_text(array: pa.Array) -> Cells:
    return [None if value is None else b"\\x" + value.hex().encode() for value in array.to_pylist()]


def _json(array: pa.Array) -> Cells:
    """What JSON has not, as Python shows it."""
    return [None if value is None else json.dumps(value, default=str).encode() for value in array.to_pylist()]


def _numeric_binary(array: pa.Array) -> Cells:
    return [None if value is None else numeric(Decimal(value)) for value in array.to_pylist()]


def numeric(number: Decimal) -> bytes:
    """A finite number in Postgres's binary form: digits of base 10,000, the first one's weight, sign, scale."""
    sign, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):
        raise Invalid(f"{number} has no form in a numeric")
    scale = max(0, -exponent)
    text = "".join(map(str, digits)) + "0" * max(0, exponent)
    whole, fraction = (text[:-scale], text[-scale:].rjust(scale, "0")) if scale else (text, "")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    fraction = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((whole + fraction)[at : at + 4]) for at in range(0, len(whole) + len(fraction), 4)]
    weight = len(whole) // 4 - 1
    while groups and not groups[0]:
        del groups[0]
        weight -= 1
    while groups and not groups[-1]:
        del groups[-1]
    head = struct.pack("!hhHH", len(groups), weight if groups else 0, 0x4000 if sign and groups else 0, scale)
    return head + struct.pack(f"!{len(groups)}h", *groups)


def _moment_text(array: pa.Array) -> Cells:
    numbers, null = micros(array)
    moments: np.ndarray[Any, np.dtype[np.datetime64]] = numbers.view("datetime64[us]")
    if array.type.unit == "s":
        shown = np.datetime_as_string(moments, unit="s").tolist()
    else:
        shown = np.datetime_as_string(moments, unit="ms" if array.type.unit == "ms" else "us").tolist()
    return [None if gone else _era(moment).encode() for moment, gone in zip(shown, null.tolist(), strict=True)]


def _era(moment: str) -> str:
    """NumPy's year 0 is Postgres's year 1 BC."""
    if not moment.startswith(("-", "0000")):
        return moment.replace("T", " ")
    at = moment.index("-", 1)
    return f"{1 - int(moment[:at]):04}{moment[at:].replace('T', ' ')} BC"


def _zoned_text(array: pa.Array) -> Cells:
    return [None if cell is None else cell + b"+00" for cell in _moment_text(array)]


def _moment_binary(array: pa.Array) -> Cells:
    numbers, null = micros(array)
    pack = struct.Struct("!q").pack
    cells: Cells = []
    for number, gone in zip(numbers.tolist(), null.tolist(), strict=True):
        since_2000 = number - _EPOCH_2000_US
        if since_2000 not in _INT64:
            raise Invalid("a time of the answer is beyond what a timestamp counts")
        cells.append(None if gone else pack(since_2000))
    return cells


def _date_binary(array: pa.Array) -> Cells:
    days = array.cast(pa.date32()).cast(pa.int32()).to_pylist()
    first = (_EPOCH_2000 - date(1970, 1, 1)).days
    return [None if day is None else struct.pack("!i", day - first) for day in days]


def _time_us(array: pa.Array) -> list[int | None]:
    unit = array.type.unit
    per = {"s": 1_000_000, "ms": 1_000, "us": 1}.get(unit)
    numbers = array.cast(pa.int32() if unit in ("s", "ms") else pa.int64()).to_pylist()
    return [None if n is None else n * per if per else n // 1_000 for n in numbers]


def _time_text(array: pa.Array) -> Cells:
    cells: Cells = []
    for number in _time_us(array):
        if number is None:
            cells.append(None)
            continue
        cells.append(_clock(number).encode())
    return cells


def _clock(us: int) -> str:
    seconds, fraction = divmod(us, 1_000_000)
    shown = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{shown}.{fraction:06}" if fraction else shown


def _time_binary(array: pa.Array) -> Cells:
    return [None if number is None else struct.pack("!q", number) for number in _time_us(array)]


def _interval_text(array: pa.Array) -> Cells:
    cells: Cells = []
    for value in array.to_pylist():
        if value is None:
            cells.append(None)
            continue
        us = value.nanoseconds // 1_000
        shown = [f"{value.months} mons"] * bool(value.months) + [f"{value.days} days"] * bool(value.days)
        if us or not shown:
            shown.append(("-" if us < 0 else "") + _clock(abs(us)))
        cells.append(" ".join(shown).encode())
    return cells


def _interval_binary(array: pa.Array) -> Cells:
    return [
        None if value is None else struct.pack("!qii", value.nanoseconds // 1_000, value.days, value.months)
        for value in array.to_pylist()
    ]
