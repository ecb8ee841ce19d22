"""InfluxDB's line protocol: one point from text, or the place and the reason why not. Begin at `read_point`.

    measurement[,tag=value…] field=value[,field=value…] [time]

This is the whole grammar, and slow; `line_batches.py` reads lines of a known shape faster, and everything else here.
A backslash before comma, space or equals sign (in names and tags), before quote or backslash (in strings) takes it as
it is; before anything else it is a backslash. Strings may hold line breaks. A field that is given twice has its last
value, as in InfluxDB; a tag that is given twice is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from dataplane.tsdb.schema.tables import ColumnType
from providers.base.errors import Invalid

PRECISIONS = {
    "ns": 1,
    "n": 1,
    "nanosecond": 1,
    "us": 1_000,
    "u": 1_000,
    "µ": 1_000,
    "microsecond": 1_000,
    "ms": 1_000_000,
    "millisecond": 1_000_000,
    "s": 1_000_000_000,
    "second": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
"""Nanoseconds of a time's unit, by its names in versions 1, 2 and 3 of the write API."""

INT64_MIN, INT64_MAX, UINT64_MAX = -(2**63), 2**63 - 1, 2**64 - 1

_BLANK = re.compile(r"[ \t]*")
_MEASUREMENT = re.compile(r"(?:\\.|[^\\, \n]|\\(?=\n|\Z))*")
_NAME = re.compile(r"(?:\\.|[^\\,= \n]|\\(?=\n|\Z))*")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_BARE = re.compile(r"[^, \r\n]*")
_SPACES = re.compile(r" *")
_END = re.compile(r" *\r?(?:\n|\Z)")
_ESCAPED = re.compile(r"\\([,= ])")
_ESCAPED_MEASUREMENT = re.compile(r"\\([, ])")
_ESCAPED_STRING = re.compile(r'\\(["\\])')
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INT = re.compile(r"[+-]?[0-9]+")
_UINT = re.compile(r"\+?[0-9]+")
_TIME = re.compile(r"-?[0-9]+")
DIGITS_MAX = 400
"""Of one number; Python takes time by the square of their count."""
TRUE = frozenset({"t", "T", "true", "True", "TRUE"})
FALSE = frozenset({"f", "F", "false", "False", "FALSE"})

Value = float | int | bool | str


class Field(NamedTuple):
    """A field's value; `at`: where it begins in the text."""

    key: str
    type: ColumnType
    value: Value
    at: int


class Point(NamedTuple):
    """One line. `time` in nanoseconds since the epoch; None: the server's. `end`: where the next line begins."""

    measurement: str
    tags: tuple[tuple[str, str], ...]
    fields: tuple[Field, ...]
    time: int | None
    end: int


class Bad(Exception):
    """A line that is none. `at`: the offending character in the text; `end`: where the next line begins."""

    def __init__(self, at: int, reason: str, end: int) -> None:
        super().__init__(reason)
        self.at = at
        self.reason = reason
        self.end = end


@dataclass(frozen=True, slots=True)
class LineError:
    """A line that was refused. `line` and `column` count from 1, the column in characters."""

    line: int
    column: int
    reason: str
    text: str
    """The line, cut where it is long."""


def unit_ns(precision: str | None) -> int:
    """Nanoseconds of a precision as clients say it; None and nothing: nanoseconds. Raises Invalid."""
    if not precision:
        return 1
    if precision not in PRECISIONS:
        raise Invalid(f"precision {precision!r} is none", hint="one of ns, us, ms, s, m, h")
    return PRECISIONS[precision]


def read_point(text: str, at: int, unit: int) -> Point | int:
    """The point whose line begins at `at`; or, of a blank line or a comment, where the next one begins. `unit`:
    nanoseconds of a time's unit.

    Raises:
        Bad: it is none.
    """
    begin = _end(_BLANK, text, at)
    if (blank := _END.match(text, begin)) or text.startswith("#", begin):
        return blank.end() if blank else _next_line(text, begin)
    try:
        return _point(text, begin, unit)
    except _Wrong as wrong:
        raise Bad(wrong.at, wrong.reason, max(_next_line(text, wrong.at), _next_line(text, at))) from None


class _Wrong(Exception):
    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at
        self.reason = reason


def _point(text: str, at: int, unit: int) -> Point:
    end = _end(_MEASUREMENT, text, at)
    if end == at:
        raise _Wrong(at, "the measurement is missing")
    measurement = _ESCAPED_MEASUREMENT.sub(r"\1", text[at:end])
    tags: dict[str, str] = {}
    at = end
    while text.startswith(",", at):
        key, at = _name(text, at + 1, "tag")
        end = _end(_NAME, text, at)
        if end == at:
            raise _Wrong(at, f"tag {key!r} has no value")
        if key in tags:
            raise _Wrong(at, f"tag {key!r} is given twice")
        tags[key] = _ESCAPED.sub(r"\1", text[at:end])
        at = end
    if not text.startswith(" ", at):
        raise _Wrong(at, "the fields are missing" if _END.match(text, at) else "a comma or a space should be here")
    at = _end(_SPACES, text, at)
    if _END.match(text, at):
        raise _Wrong(at, "the fields are missing")
    fields: dict[str, Field] = {}
    while True:
        key, at = _name(text, at, "field")
        kind, value, end = _value(text, at, key)
        fields[key] = Field(key, kind, value, at)
        at = end
        if not text.startswith(",", at):
            break
        at += 1
    time, at = _time(text, at, unit)
    return Point(measurement, tuple(tags.items()), tuple(fields.values()), time, at)


def _name(text: str, at: int, what: str) -> tuple[str, int]:
    """A tag's or field's name, and where its value begins."""
    end = _end(_NAME, text, at)
    if end == at:
        raise _Wrong(at, f"the name of a {what} is missing")
    name = _ESCAPED.sub(r"\1", text[at:end])
    if not text.startswith("=", end):
        raise _Wrong(end, f"an equals sign should follow {what} {name!r}")
    return name, end + 1


def _value(text: str, at: int, key: str) -> tuple[ColumnType, Value, int]:
    if text.startswith('"', at):
        string = _STRING.match(text, at)
        if string is None:
            raise _Wrong(at, f"the string of field {key!r} has no end")
        return ColumnType.STRING, _ESCAPED_STRING.sub(r"\1", string[1]), string.end()
    end = _end(_BARE, text, at)
    raw = text[at:end]
    if not raw:
        raise _Wrong(at, f"field {key!r} has no value")
    if raw in TRUE or raw in FALSE:
        return ColumnType.BOOL, raw in TRUE, end
    if len(raw) <= DIGITS_MAX:
        if _FLOAT.fullmatch(raw):
            if not math.isfinite(value := float(raw)):
                raise _Wrong(at, f"field {key!r} is out of a float's range")
            return ColumnType.FLOAT64, value, end
        if raw[-1] == "i" and _INT.fullmatch(raw, 0, len(raw) - 1):
            if not INT64_MIN <= (whole := int(raw[:-1])) <= INT64_MAX:
                raise _Wrong(at, f"field {key!r} is out of an integer's range")
            return ColumnType.INT64, whole, end
        if raw[-1] == "u" and _UINT.fullmatch(raw, 0, len(raw) - 1):
            if (whole := int(raw[:-1])) > UINT64_MAX:
                raise _Wrong(at, f"field {key!r} is out of an unsigned integer's range")
            return ColumnType.UINT64, whole, end
    shown = raw if len(raw) <= 40 else raw[:40] + "…"
    raise _Wrong(at, f"field {key!r} is {shown!r}: no number, boolean or quoted string")


def _time(text: str, at: int, unit: int) -> tuple[int | None, int]:
    """The time, where there is one, and where the next line begins."""
    if end := _END.match(text, at):
        return None, end.end()
    if not text.startswith(" ", at):
        raise _Wrong(at, "a comma, a space or the line's end should be here")
    at = _end(_SPACES, text, at)
    found = _TIME.match(text, at)
    end = _END.match(text, found.end()) if found else None
    if found is None or end is None or len(found[0]) > DIGITS_MAX:
        raise _Wrong(at, "the time is no whole number that ends the line")
    time = int(found[0]) * unit
    if not INT64_MIN <= time <= INT64_MAX:
        raise _Wrong(at, "the time is out of range: nanoseconds since 1970 have 64 bits")
    return time, end.end()


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where what `pattern` takes at `at` ends; it takes nothing at all where it must."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _next_line(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1
