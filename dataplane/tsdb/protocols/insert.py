"""INSERT INTO t [(columns)] VALUES (…), (…): literals become one Arrow table, a column at a time.

Values are literals: numbers, strings, x'…' bytes, TRUE, FALSE, NULL, DEFAULT (null) and now(). A value that its column
cannot hold exactly is refused with its row; only timestamps finer than their column are cut, as GreptimeDB cuts them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane.tsdb.engine import Rows
from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.ddl import table_name
from dataplane.tsdb.protocols.lexer import Kind, Token
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema
from providers.base.errors import Invalid

_T = ColumnType
_NOW = ("NOW", "CURRENT_TIMESTAMP", "LOCALTIMESTAMP", "UTC_TIMESTAMP")


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT whose VALUES are not read yet: what they mean is up to the table."""

    table: tuple[str | None, str]
    columns: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Value:
    """A literal. `text` of a number has its sign."""

    kind: Kind
    text: str


_NULL = _Value(Kind.WORD, "NULL")
_TRUE = _Value(Kind.WORD, "TRUE")
_FALSE = _Value(Kind.WORD, "FALSE")
_NOW_VALUE = _Value(Kind.WORD, "NOW")
_WORDS = {"NULL": _NULL, "DEFAULT": _NULL, "TRUE": _TRUE, "FALSE": _FALSE}


def read_insert(cursor: Cursor) -> Insert:
    """After INSERT, up to VALUES. Raises Invalid."""
    for other in ("IGNORE", "OVERWRITE", "LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY"):
        if cursor.sees(other):
            raise Unsupported(f"INSERT {other} is not there: only INSERT INTO … VALUES")
    cursor.takes("INTO")
    cursor.takes("TABLE")
    table = table_name(cursor)
    columns: list[str] | None = None
    if cursor.takes("("):
        columns = []
        while True:
            columns.append(cursor.name("a column's name"))
            if cursor.takes(")"):
                break
            cursor.expect(",")
        if len({name.lower() for name in columns}) < len(columns):
            raise Invalid("the INSERT names a column twice")
    if cursor.sees("SELECT") or cursor.sees("WITH") or cursor.sees("("):
        raise Unsupported("INSERT … SELECT is not there: only INSERT … VALUES")
    if not (cursor.takes("VALUES") or cursor.takes("VALUE")):
        raise cursor.unexpected("VALUES")
    return Insert(table, None if columns is None else tuple(columns))


def rows(insert: Insert, schema: TableSchema, cursor: Cursor, *, now_ms: int) -> Rows:
    """The rows after VALUES, for `schema`.

    Raises:
        Invalid: a column that is not there, too few or too many values, or a value that is not one of its column.
    """
    if insert.columns is None:
        columns = list(schema.columns)
    else:
        columns = [found(schema, name) for name in insert.columns]
    named = {column.name for column in columns}
    if schema.time.name not in named:
        raise Invalid(f"the INSERT leaves out {schema.time.name!r}, the time index of table {schema.name!r}")
    for column in schema.columns:
        if column.name not in named and not column.nullable:
            raise Invalid(f"the INSERT leaves out {column.name!r} of table {schema.name!r}, which is never null")
    values = _values(cursor, len(columns))
    count = len(values) // len(columns)
    arrays = {
        column.name: _array(schema, column, values[at :: len(columns)], now_ms) for at, column in enumerate(columns)
    }
    for column in schema.columns:  # tags travel whole; fields left out are null by themselves
        if column.role is ColumnRole.TAG and column.name not in arrays:
            arrays[column.name] = pa.nulls(count, column.type.arrow)
    return Rows(schema.name, pa.table(arrays))


def found(schema: TableSchema, name: str) -> Column:
    """The column of that name, or of the only one that differs by case.

    Raises:
        Invalid: there is none.
    """
    column = schema.column(name)
    if column is None:
        alike = [c for c in schema.columns if c.name.lower() == name.lower()]
        if len(alike) != 1:
            raise Invalid(f"table {schema.name!r} has no column {name!r}")
        column = alike[0]
    return column


def _values(cursor: Cursor, width: int) -> list[_Value]:
    """All values of all rows, one after the other."""
    values: list[_Value] = []
    row = 0
    while True:
        row += 1
        cursor.expect("(")
        before = len(values)
        while True:
            values.append(_value(cursor))
            token = cursor.peek()
            if token is not None and token.text == ")" and token.kind is Kind.PUNCTUATION:
                cursor.at += 1
                break
            if token is None or token.text != "," or token.kind is not Kind.PUNCTUATION:
                raise _not_literal(cursor)
            cursor.at += 1
        if len(values) - before != width:
            raise Invalid(f"row {row} has {len(values) - before} values for {width} columns")
        if not cursor.takes(","):
            break
    if cursor.sees("ON"):
        raise Unsupported("ON DUPLICATE KEY and ON CONFLICT are not there: the last row written wins by itself")
    cursor.end()
    return values


def _not_literal(cursor: Cursor) -> Invalid:
    error = cursor.unexpected("',' or ')' after a literal")
    error.hint = "values are literals: numbers, strings, x'…', TRUE, FALSE, NULL, now()"
    return error


def _value(cursor: Cursor) -> _Value:
    token = cursor.next("a value")
    if token.kind is Kind.OPERATOR and token.text in ("-", "+"):
        number = cursor.next("a number")
        if number.kind is not Kind.NUMBER:
            cursor.at -= 1
            raise cursor.unexpected("a number")
        return _Value(Kind.NUMBER, ("-" if token.text == "-" else "") + number.text)
    if token.kind in (Kind.NUMBER, Kind.STRING, Kind.BYTES):
        return _Value(token.kind, token.text)
    if token.kind is Kind.WORD:
        word = token.text.upper()
        if word in _WORDS:
            return _WORDS[word]
        if word in _NOW:
            if cursor.takes("(") and not cursor.takes(")"):
                cursor.next("a precision")
                cursor.expect(")")
            return _NOW_VALUE
        if word in ("DATE", "TIMESTAMP", "DATETIME") and (after := cursor.peek()) and after.kind is Kind.STRING:
            cursor.at += 1
            return _Value(Kind.STRING, after.text)
    cursor.at -= 1
    raise _unreadable(cursor, token)


def _unreadable(cursor: Cursor, token: Token) -> Invalid:
    error = cursor.unexpected("a literal")
    error.hint = "values are literals: numbers, strings, x'…', TRUE, FALSE, NULL, now()"
    return error


# ── columns ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _array(schema: TableSchema, column: Column, values: Sequence[_Value], now_ms: int) -> pa.Array:
    convert = _converter(column.type, now_ms)
    converted: list[Any] = []
    for at, value in enumerate(values):
        if value is _NULL:
            if not column.nullable:
                raise Invalid(f"row {at + 1}: column {column.name!r} of table {schema.name!r} is never null")
            converted.append(None)
            continue
        try:
            converted.append(convert(value))
        except (ValueError, InvalidOperation, OverflowError):
            shown = value.text if len(value.text) <= 60 else value.text[:60] + "…"
            raise Invalid(
                f"row {at + 1}: {shown!r} is not a value of column {column.name!r}, which is {column.type}"
            ) from None
    if column.type.is_timestamp:
        return pa.array(converted, pa.int64()).cast(column.type.arrow)
    return pa.array(converted, column.type.arrow)


def _converter(kind: ColumnType, now_ms: int) -> Callable[[_Value], Any]:
    """From a literal to what Arrow takes. Raises ValueError, OverflowError or InvalidOperation: not one."""
    if kind.is_timestamp:
        return _timestamps(kind.unit, now_ms)
    if kind in (_T.FLOAT32, _T.FLOAT64):
        return _float32 if kind is _T.FLOAT32 else _float
    if kind is _T.BOOL:
        return _bool
    if kind is _T.STRING:
        return _string
    if kind is _T.BINARY:
        return _bytes
    bits = int(kind.value.removeprefix("u").removeprefix("int"))
    low, high = (0, 1 << bits) if kind.value.startswith("u") else (-(1 << bits - 1), 1 << bits - 1)

    def integer(value: _Value) -> int:
        number = _whole(value)
        if not low <= number < high:
            raise OverflowError
        return number

    return integer


def _whole(value: _Value) -> int:
    if value.kind is not Kind.NUMBER:
        raise ValueError
    if value.text.lstrip("-").isdigit():
        if len(value.text) > 40:
            raise OverflowError
        return int(value.text)
    number = Decimal(value.text)
    if number.adjusted() > 40 or number != number.to_integral_value():
        raise ValueError
    return int(number)


def _float(value: _Value) -> float:
    if value.kind is Kind.STRING:  # the three that SQL has no number for
        if value.text.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
            raise ValueError
        return float(value.text)
    if value.kind is not Kind.NUMBER:
        raise ValueError
    number = float(value.text)
    if number in (float("inf"), float("-inf")):
        raise OverflowError
    return number


_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _float32(value: _Value) -> float:
    number = _float(value)
    if abs(number) > _FLOAT32_MAX and value.kind is Kind.NUMBER:
        raise OverflowError
    return number


def _bool(value: _Value) -> bool:
    if value is _TRUE or value is _FALSE:
        return value is _TRUE
    if value.kind is Kind.NUMBER and value.text in ("0", "1"):
        return value.text == "1"
    raise ValueError


def _string(value: _Value) -> str:
    if value.kind is Kind.BYTES:
        return bytes.fromhex(value.text).decode()
    if value.kind is not Kind.STRING:
        raise ValueError
    return value.text


def _bytes(value: _Value) -> bytes:
    if value.kind is Kind.BYTES:
        return bytes.fromhex(value.text)
    if value.kind is not Kind.STRING:
        raise ValueError
    return value.text.encode()


_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?)?\s*(Z|[+-]\d\d:?\d\d)?", re.IGNORECASE
)
_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_INT64 = range(-(1 << 63), 1 << 63)


def _timestamps(unit: str, now_ms: int) -> Callable[[_Value], int]:
    per_s = _PER_S[unit]

    def timestamp(value: _Value) -> int:
        if value is _NOW_VALUE:
            at = now_ms * per_s // 1_000
        elif value.kind is Kind.STRING:
            at = _parsed(value.text, per_s)
        else:
            at = _whole(value)
        if at not in _INT64:
            raise OverflowError
        return at

    return timestamp


def _parsed(text: str, per_s: int) -> int:
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise ValueError
    day, time, fraction, zone = match.groups()
    zone = "+00:00" if zone is None or zone in "zZ" else zone
    moment = datetime.fromisoformat(f"{day}T{time or '00:00'}{zone}")
    seconds = round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return seconds * per_s + int((fraction or "0").ljust(9, "0")) * per_s // 1_000_000_000
