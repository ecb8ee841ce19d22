"""Ranges of a field's values that a condition leaves, and whether a file's statistics lie outside: pure.

As `Bounds`, a span is a necessary condition: it may be too wide, and never too narrow. Both ends are included whatever
the condition says, and those of floating-point values are moved outwards, since DuckDB compares in the column's own
precision, and shows a literal in another. It orders NaN above every number, so that one meets `v > 200`; Parquet's
statistics leave NaN out. A null meets no comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane.tsdb.schema.tables import ColumnType

_RELATIVE, _ABSOLUTE = 1e-6, 1e-37
"""More than a literal can differ by from what is compared, of 32 bits' precision too."""
_FLOATS = {ColumnType.FLOAT32, ColumnType.FLOAT64}
_NUMBERS = {
    *_FLOATS,
    *(ColumnType.INT8, ColumnType.INT16, ColumnType.INT32, ColumnType.INT64),
    *(ColumnType.UINT8, ColumnType.UINT16, ColumnType.UINT32, ColumnType.UINT64),
}
_INTEGER_CASTS = {"SMALLINT", "INTEGER", "BIGINT", "HUGEINT"}
_FLOAT_CASTS = {"FLOAT", "DOUBLE"}


@dataclass(frozen=True, slots=True)
class Span:
    """Of numbers, or of texts. None: open."""

    low: Any = None
    high: Any = None

    def both(self, other: Span) -> Span:
        """Of values in both."""
        low = max((end for end in (self.low, other.low) if end is not None), default=None)
        high = min((end for end in (self.high, other.high) if end is not None), default=None)
        return Span(low, high)

    def either(self, other: Span) -> Span:
        """Of values in one of them."""
        low = None if self.low is None or other.low is None else min(self.low, other.low)
        return Span(low, None if self.high is None or other.high is None else max(self.high, other.high))


def both(one: Mapping[str, Span], other: Mapping[str, Span]) -> dict[str, Span]:
    """By field, of rows that meet both."""
    shared = {name: one[name].both(other[name]) for name in one if name in other}
    return {**one, **other, **shared}


def either(one: Mapping[str, Span], other: Mapping[str, Span]) -> dict[str, Span]:
    """By field, of rows that meet one of them."""
    joined = {name: one[name].either(other[name]) for name in one if name in other}
    return {name: span for name, span in joined.items() if span != Span()}


def span_of(literal: Any, casts: tuple[str | None, str | None], kind: ColumnType, ends: tuple[bool, bool]) -> Span:
    """What a comparison with `literal` (DuckDB's constant) leaves of a column of type `kind`. `casts`: of the column,
    and of the literal; `ends`: whether it bounds them below, and above. Open where it is not understood."""
    if literal.get("class") != "CONSTANT":
        return Span()
    written, text = literal["literal"]["kind"], literal["literal"]["text"]
    of_column, of_literal = casts
    low: Any
    high: Any
    if kind is ColumnType.STRING and written == "STRING" and casts == (None, None):
        low = high = str(text)
    elif kind not in _NUMBERS or written not in ("INTEGER", "NUMERIC") or of_literal not in {None, *_FLOAT_CASTS}:
        return Span()
    elif of_column not in {None, *_FLOAT_CASTS, *(_INTEGER_CASTS if kind not in _FLOATS else ())}:
        return Span()  # a number with a fraction is rounded by a cast to integers
    elif written == "INTEGER" and kind not in _FLOATS and {of_column, of_literal}.isdisjoint(_FLOAT_CASTS):
        low = high = int(text)
    else:
        value = float(text)
        slack = 0.0 if math.isinf(value) else abs(value) * _RELATIVE + _ABSOLUTE
        low, high = value - slack, value + slack
    return Span(low if ends[0] else None, high if ends[1] else None)


def outside(span: Span, kind: pa.DataType, chunk: pq.ColumnChunkMetaData, no_nan: bool) -> bool:
    """Whether no value of a column chunk, of that type in the file, is in the span. `no_nan`: none of its values is."""
    found = chunk.statistics
    if found is None:
        return False
    if found.has_null_count and found.null_count == chunk.num_values:
        return True  # nothing but nulls
    if not found.has_min_max:
        return False
    text = pa.types.is_string(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return False
    try:
        lowest, highest = found.min, found.max
    except (UnicodeDecodeError, pa.ArrowException):
        return False
    if pa.types.is_decimal(kind):  # the nearest values of 64 bits; a column of 32 is within what spans are widened by
        lowest, highest = float(lowest), float(highest)
    if any(isinstance(end, str) != text for end in (span.low, span.high) if end is not None):
        return False
    if span.high is not None and lowest > span.high:
        return True
    nan = pa.types.is_floating(kind) and span.high is None and not no_nan
    return span.low is not None and not nan and bool(highest < span.low)
