"""Parameters of the extended query, as text or binary, become literals: what is in one stays a value, whatever it is.

In an INSERT a parameter is a bare literal, which its column checks; in a query its type is said with it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from dataplane.tsdb.protocols.lexer import Kind
from dataplane.tsdb.protocols.postgres_messages import Body, Violation
from dataplane.tsdb.protocols.postgres_types import ARRAYS, DUCKDB, Oid, known
from providers.base.errors import Invalid

ELEMENTS_MAX = 100_000
"""Of an array."""
Words = list[tuple[Kind, str]]
"""Tokens without a place."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")
_TRUE, _FALSE = ("t", "true", "y", "yes", "on", "1"), ("f", "false", "n", "no", "off", "0")
_ZONED = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d(?::?\d\d)?)", re.IGNORECASE
)
_OPEN, _CLOSE, _COMMA = (Kind.PUNCTUATION, "["), (Kind.PUNCTUATION, "]"), (Kind.PUNCTUATION, ",")
_NULL: tuple[Kind, str] = (Kind.WORD, "NULL")
_2000 = datetime(2000, 1, 1)


def words(oid: int, data: bytes | None, binary: bool, *, bare: bool) -> Words:
    """A parameter of that type as tokens. `bare`: one literal, for an INSERT.

    Raises:
        Invalid: it is none of its type.
    """
    if data is None:
        return [_NULL]
    if oid in ARRAYS:
        if bare:
            raise _wrong("an array cannot be in an INSERT")
        return _array(ARRAYS[oid], data, binary)
    kind = known(oid) or Oid.TEXT
    try:
        value = _value(kind, data, binary)
    except (ValueError, struct.error, OverflowError, Violation):
        shown = data.hex() if binary else data.decode("utf-8", "replace")
        raise _wrong(f"{shown[:60]!r} is not a value of type {kind.name.lower()}") from None
    return [value] if bare else typed(kind, [value])


def typed(kind: Oid, value: Words) -> Words:
    """A literal with its type beside it, where a query would take it for something else."""
    if value[0][0] in (Kind.BYTES, Kind.WORD) or kind not in DUCKDB or kind in _BARE_IN_QUERIES:
        return value
    return cast(value, DUCKDB[kind])


_BARE_IN_QUERIES = (Oid.INT2, Oid.INT4, Oid.INT8, Oid.OID, Oid.NUMERIC)


def cast(value: Words, to: str) -> Words:
    """`CAST(value AS to)`."""
    return [
        (Kind.WORD, "CAST"),
        (Kind.PUNCTUATION, "("),
        *value,
        (Kind.WORD, "AS"),
        (Kind.WORD, to),
        (Kind.PUNCTUATION, ")"),
    ]


def absent(oid: int) -> Words:
    """What stands for a parameter whose value is not known yet: a null of its type."""
    if oid in ARRAYS:
        return [(Kind.WORD, "CAST"), (Kind.PUNCTUATION, "("), _NULL, (Kind.WORD, "AS"), *_list_of(ARRAYS[oid])]
    return cast([_NULL], DUCKDB.get(known(oid) or Oid.TEXT, "VARCHAR"))


def _list_of(element: Oid) -> Words:
    return [(Kind.WORD, DUCKDB.get(element, "VARCHAR")), _OPEN, _CLOSE, (Kind.PUNCTUATION, ")")]


def _wrong(message: str) -> Invalid:
    return Invalid(message, sqlstate="22P02")


# ── one value ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _value(kind: Oid, data: bytes, binary: bool) -> tuple[Kind, str]:
    if binary and kind in _BINARY:
        return _BINARY[kind](data)
    return _from_text(kind, data.decode())


def _from_text(kind: Oid, text: str) -> tuple[Kind, str]:
    if kind in (Oid.INT2, Oid.INT4, Oid.INT8, Oid.OID):
        return _number(text.strip(), _WHOLE)
    if kind in (Oid.FLOAT4, Oid.FLOAT8, Oid.NUMERIC):
        if text.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return Kind.STRING, text.strip().lower()
        return _number(text.strip(), _NUMBER)
    if kind is Oid.BOOL:
        if text.strip().lower() not in (*_TRUE, *_FALSE):
            raise ValueError
        return Kind.WORD, "TRUE" if text.strip().lower() in _TRUE else "FALSE"
    if kind is Oid.BYTEA:
        return Kind.BYTES, bytea(text).hex()
    if kind in (Oid.TIMESTAMP, Oid.TIMESTAMPTZ):
        return Kind.STRING, utc(text)  # a zone that is said counts, as it does in an INSERT's literals
    return Kind.STRING, text


def _number(text: str, form: re.Pattern[str]) -> tuple[Kind, str]:
    if not form.fullmatch(text):
        raise ValueError
    return Kind.NUMBER, text.removeprefix("+")


def utc(text: str) -> str:
    """A time with a zone as the same moment in UTC, without one; any other text as it is."""
    match = _ZONED.fullmatch(text.strip())
    if match is None:
        return text
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in "zZ" else zone if len(zone) > 3 else f"{zone}:00"
    try:
        at = datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        return text
    return f"{at:%Y-%m-%d %H:%M:%S}".rjust(19, "0") + (f".{fraction}" if fraction else "")


def bytea(text: str) -> bytes:
    """Bytes as Postgres writes them: `\\x00ff`, or with `\\000` and `\\\\`. Raises ValueError."""
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    escaped = re.compile(rb"\\(\\|[0-3][0-7]{2})")
    data = text.encode()
    if b"\\" in escaped.sub(b"", data):
        raise ValueError
    return escaped.sub(lambda m: b"\\" if m[1] == b"\\" else bytes([int(m[1], 8)]), data)


def _float(form: str) -> Callable[[bytes], tuple[Kind, str]]:
    def read(data: bytes) -> tuple[Kind, str]:
        (number,) = struct.unpack(form, data)
        return (Kind.NUMBER, repr(number)) if math.isfinite(number) else (Kind.STRING, str(number))

    return read


def _integer(form: str) -> Callable[[bytes], tuple[Kind, str]]:
    return lambda data: (Kind.NUMBER, str(struct.unpack(form, data)[0]))


def _bool(data: bytes) -> tuple[Kind, str]:
    if len(data) != 1:
        raise ValueError
    return Kind.WORD, "TRUE" if data != b"\0" else "FALSE"


def _moment(data: bytes) -> tuple[Kind, str]:
    at = _2000 + timedelta(microseconds=struct.unpack("!q", data)[0])
    return Kind.STRING, at.isoformat(" ", "microseconds")


def _day(data: bytes) -> tuple[Kind, str]:
    return Kind.STRING, (date(2000, 1, 1) + timedelta(days=struct.unpack("!i", data)[0])).isoformat()


def _time(data: bytes) -> tuple[Kind, str]:
    us = struct.unpack("!q", data)[0]
    return Kind.STRING, (_2000 + timedelta(microseconds=us)).time().isoformat("microseconds")


def _interval(data: bytes) -> tuple[Kind, str]:
    us, days, months = struct.unpack("!qii", data)
    return Kind.STRING, f"{months} months {days} days {us} microseconds"


def _numeric(data: bytes) -> tuple[Kind, str]:
    count, weight, sign, scale = struct.unpack_from("!HhHH", data)
    if sign in (0xC000, 0xD000, 0xF000):
        return Kind.STRING, {0xC000: "nan", 0xD000: "inf", 0xF000: "-inf"}[sign]
    if count > 1_000:
        raise ValueError
    groups = struct.unpack(f"!{count}H", data[8:])
    if sign not in (0, 0x4000) or any(group > 9_999 for group in groups) or not -2_000 < weight < 2_000:
        raise ValueError
    digits = "".join(f"{group:04}" for group in groups) or "0"
    number = Decimal((sign == 0x4000, tuple(map(int, digits)), 4 * (weight - count + 1) if groups else 0))
    shown = f"{number:f}"
    if "." in shown:  # groups of four digits say more than there are
        shown = shown[: shown.index(".") + scale + bool(scale)]
    whole, point, fraction = shown.removeprefix("-").partition(".")
    return Kind.NUMBER, "-" * bool(sign) + (whole.lstrip("0") or "0") + point + fraction


def _uuid(data: bytes) -> tuple[Kind, str]:
    if len(data) != 16:
        raise ValueError
    digits = data.hex()
    return Kind.STRING, "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _jsonb(data: bytes) -> tuple[Kind, str]:
    if data[:1] != b"\1":
        raise ValueError
    return Kind.STRING, data[1:].decode()


_BINARY: dict[Oid, Callable[[bytes], tuple[Kind, str]]] = {
    Oid.BOOL: _bool,
    Oid.BYTEA: lambda data: (Kind.BYTES, data.hex()),
    Oid.INT2: _integer("!h"),
    Oid.INT4: _integer("!i"),
    Oid.INT8: _integer("!q"),
    Oid.OID: _integer("!I"),
    Oid.FLOAT4: _float("!f"),
    Oid.FLOAT8: _float("!d"),
    Oid.NUMERIC: _numeric,
    Oid.TIMESTAMP: _moment,
    Oid.TIMESTAMPTZ: _moment,
    Oid.DATE: _day,
    Oid.TIME: _time,
    Oid.INTERVAL: _interval,
    Oid.UUID: _uuid,
    Oid.JSONB: _jsonb,
}
"""Those whose binary form is not their text."""


# ── arrays ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _array(element: Oid, data: bytes, binary: bool) -> Words:
    try:
        values = _elements_binary(data) if binary else _elements_text(data.decode())
        found: Words = []
        for value in values:
            word = _NULL if value is None else _value(element, value, binary)
            found += [_COMMA] * bool(found) + typed(element, [word])
    except (ValueError, struct.error, OverflowError, Violation):
        raise _wrong(f"that is no array of type {element.name.lower()} with one dimension") from None
    listed = [_OPEN, *found, _CLOSE]
    return (
        listed
        if found
        else [(Kind.WORD, "CAST"), (Kind.PUNCTUATION, "("), *listed, (Kind.WORD, "AS"), *_list_of(element)]
    )


def _elements_binary(data: bytes) -> Sequence[bytes | None]:
    fields = Body(data)
    dimensions, _, _ = fields.int32(), fields.int32(), fields.int32()
    if dimensions == 0:
        return []
    count, _ = fields.int32(), fields.int32()
    if dimensions != 1 or not 0 <= count <= ELEMENTS_MAX:
        raise ValueError
    found = [fields.value() for _ in range(count)]
    fields.end()
    return found


_ELEMENT = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*+)"|((?:[^,{}"\\\s]|\\.|\s(?!\s*[,}]))++))\s*(,|\}$)', re.DOTALL)


def _elements_text(text: str) -> Sequence[bytes | None]:
    """Of `{a,"b c",NULL}`."""
    text = text.strip()
    if not text.startswith("{") or not text.endswith("}"):
        raise ValueError
    if not text[1:-1].strip():
        return []
    found: list[bytes | None] = []
    at = 1
    while at < len(text):
        match = _ELEMENT.match(text, at)
        if match is None or len(found) >= ELEMENTS_MAX:
            raise ValueError
        quoted, plain, after = match.groups()
        if quoted is None and plain.upper() == "NULL":
            found.append(None)
        else:
            found.append(re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL).encode())
        at = match.end()
        if (after == "}") != (at == len(text)):
            raise ValueError
    return found
