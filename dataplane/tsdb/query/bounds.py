"""What a WHERE demands of a table's rows by time, tags and fields: pure, and never more than is certain.

`Bounds` are necessary conditions: a row outside is in no answer. A condition that is not understood demands nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from dataplane.tsdb.query import spans
from dataplane.tsdb.query.spans import Span, span_of
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import ColumnRole, ColumnType, TableSchema

NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Nanoseconds of a time index's unit."""
_DAY_NS = 86_400 * NS["s"]
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?)?(?:\+00(?::00)?)?")
_CASTS = {
    "TIMESTAMP": NS["s"],
    "TIMESTAMP WITH TIME ZONE": NS["s"],
    "TIMESTAMP_S": NS["s"],
    "TIMESTAMP_MS": NS["s"],
    "TIMESTAMP_NS": NS["s"],
    "DATE": _DAY_NS,
}
"""Types of times that the time index may be cast to, and by how much that may move it at most: bounds are widened."""
SERIES_MAX = 1_000
"""Combinations of tag values that are looked for one by one; of more only the first and the last."""
_TEXT_TAGS = {t for t in ColumnType if not t.is_timestamp and t is not ColumnType.BOOL}
_INTERVAL = {
    "COMPARE_EQUAL": (True, True),
    "COMPARE_GREATERTHAN": (True, False),
    "COMPARE_GREATERTHANOREQUALTO": (True, False),
    "COMPARE_LESSTHAN": (False, True),
    "COMPARE_LESSTHANOREQUALTO": (False, True),
}
_MIRRORED = {
    "COMPARE_GREATERTHAN": "COMPARE_LESSTHAN",
    "COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
    "COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
    "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Times in nanoseconds since the epoch, both ends included; None: open. `tags`: of a tag, the only values' texts
    that can match. `fields`: of a field, the span of its values that can match; it is not null then."""

    low: int | None = None
    high: int | None = None
    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fields: Mapping[str, Span] = field(default_factory=dict)

    def both(self, other: Bounds) -> Bounds:
        """Of rows that meet both."""
        low = max((b for b in (self.low, other.low) if b is not None), default=None)
        high = min((b for b in (self.high, other.high) if b is not None), default=None)
        tags = dict(self.tags)
        for name, values in other.tags.items():
            tags[name] = tags[name] & values if name in tags else values
        return Bounds(low, high, tags, spans.both(self.fields, other.fields))

    def either(self, other: Bounds) -> Bounds:
        """Of rows that meet one of them."""
        low = None if self.low is None or other.low is None else min(self.low, other.low)
        high = None if self.high is None or other.high is None else max(self.high, other.high)
        tags = {name: self.tags[name] | other.tags[name] for name in self.tags if name in other.tags}
        return Bounds(low, high, tags, spans.either(self.fields, other.fields))

    def since(self, low: int) -> Bounds:
        """And not older than `low`."""
        return self.both(replace(Bounds(), low=low))

    def times(self, schema: TableSchema) -> tuple[int | None, int | None]:
        """First and last time in the unit of the table's time index: rows outside are in no answer."""
        scale = NS[schema.time.type.unit]
        low = None if self.low is None else -(-self.low // scale)
        return low, None if self.high is None else self.high // scale

    def holding(self, files: Iterable[FileMeta], schema: TableSchema) -> list[FileMeta]:
        """The files of which a row may be in an answer."""
        if any(not values for values in self.tags.values()):
            return []
        low, high = self.times(schema)
        texts, whole = self._series(schema)
        return [
            meta
            for meta in files
            if (low is None or meta.time_max >= low)
            and (high is None or meta.time_min <= high)
            and (not texts or _holds_series(meta, texts, whole))
        ]

    def _series(self, schema: TableSchema) -> tuple[list[str], bool]:
        """What the text of a series can be, or begin with (not `whole`); none: anything."""
        tags = schema.tags
        known = list(itertools.takewhile(lambda tag: tag in self.tags, tags))
        whole = len(known) == len(tags)
        # A series' text is its tags' joined by commas, so those of known first tags begin with theirs and a comma.
        sets = [sorted(self.tags[tag]) for tag in known]
        return [",".join(values) + ("" if whole else ",") for values in _combinations(sets)] if known else [], whole


def _holds_series(meta: FileMeta, texts: Sequence[str], whole: bool) -> bool:
    low, high = meta.series_min, meta.series_max
    if not low and not high:
        return True  # not known
    return any(text <= high and (low <= text or (not whole and low.startswith(text))) for text in texts)


def _combinations(sets: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    count = 1
    for values in sets:
        count *= len(values)
        if count > SERIES_MAX:
            return []
    return list(itertools.product(*sets))


def bounds_of(condition: Any, columns: Mapping[str, str], schema: TableSchema) -> Bounds:
    """What `condition`, an expression as `json_serialize_sql` gives it, demands. `columns`: the table's, by their names
    in the condition."""
    kind = condition.get("type")
    if kind in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
        found = [bounds_of(child, columns, schema) for child in condition["children"]]
        joined = found[0]
        for one in found[1:]:
            joined = joined.both(one) if kind == "CONJUNCTION_AND" else joined.either(one)
        return joined
    if kind == "COMPARE_BETWEEN":
        low = _comparison("COMPARE_GREATERTHANOREQUALTO", condition["input"], condition["lower"], columns, schema)
        return low.both(
            _comparison("COMPARE_LESSTHANOREQUALTO", condition["input"], condition["upper"], columns, schema)
        )
    if kind == "COMPARE_IN":
        subject, *values = condition["children"]
        joined = _comparison("COMPARE_EQUAL", subject, values[0], columns, schema)
        for value in values[1:]:
            joined = joined.either(_comparison("COMPARE_EQUAL", subject, value, columns, schema))
        return joined
    if kind in _INTERVAL:
        left, right = condition["left"], condition["right"]
        if right.get("class") == "COLUMN_REF" or _cast_of(right)[0].get("class") == "COLUMN_REF":
            left, right, kind = right, left, _MIRRORED.get(kind, kind)
        return _comparison(kind, left, right, columns, schema)
    return Bounds()


def _comparison(kind: str, subject: Any, value: Any, columns: Mapping[str, str], schema: TableSchema) -> Bounds:
    inner, cast = _cast_of(subject)
    parts = inner["column_names"] if inner.get("class") == "COLUMN_REF" else []
    name = columns.get(parts[0]) if len(parts) == 1 else None
    column = schema.column(name) if name is not None else None
    if column is None:
        return Bounds()
    if column.name == schema.time.name:
        at, slack = _time(value), 0 if cast is None else _CASTS.get(cast)
        if at is None or slack is None:
            return Bounds()
        bounds_low, bounds_high = _INTERVAL[kind]
        strict = 0 if slack or "OREQUAL" in kind or kind == "COMPARE_EQUAL" else 1
        return Bounds(at - slack + strict if bounds_low else None, at + slack - strict if bounds_high else None)
    if column.name in schema.tags and kind == "COMPARE_EQUAL" and cast is None and column.type in _TEXT_TAGS:
        text = _tag(value, column.type)
        return Bounds() if text is None else Bounds(tags={column.name: frozenset({text})})
    if column.role is ColumnRole.FIELD:
        literal, of_literal = _signed(value)
        span = span_of(literal, (cast, of_literal), column.type, _INTERVAL[kind])
        return Bounds() if span == Span() else Bounds(fields={column.name: span})
    return Bounds()


def _cast_of(node: Any) -> tuple[Any, str | None]:
    """What is cast, and to which type; itself and None where it is no cast."""
    if node.get("type") == "OPERATOR_CAST" and not node.get("try_cast"):
        return node["child"], node["type_expr"].get("type_name")
    return node, None


def _signed(value: Any) -> tuple[Any, str | None]:
    """As `_cast_of`: DuckDB shows a negative literal with a type as the minus of a cast, `-1.5::DOUBLE`."""
    arguments = value.get("arguments", []) if value.get("function_name") == "-" else []
    if len(arguments) == 1:
        inner, cast = _cast_of(arguments[0]["expression"])
        if inner.get("class") == "CONSTANT" and inner["literal"]["kind"] in ("INTEGER", "NUMERIC"):
            literal = inner["literal"]
            if not literal["text"].startswith("-"):
                return {**inner, "literal": {**literal, "text": f"-{literal['text']}"}}, cast
    return _cast_of(value)


def _time(value: Any) -> int | None:
    """A literal's time in nanoseconds."""
    inner, cast = _cast_of(value)
    if cast not in _CASTS or inner.get("class") != "CONSTANT" or inner["literal"]["kind"] != "STRING":
        return None
    found = _TIME.fullmatch(inner["literal"]["text"])
    if found is None:
        return None
    year, month, day, hour, minute, second, part = found.groups()
    try:
        whole = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
        )
    except ValueError:
        return None
    return int(whole.timestamp()) * NS["s"] + int((part or "0").ljust(9, "0"))


def _tag(value: Any, kind: ColumnType) -> str | None:
    """A literal as the text that it has in `FileMeta.series_min`."""
    if value.get("class") != "CONSTANT":
        return None
    literal = value["literal"]
    if kind is ColumnType.STRING:
        return str(literal["text"]) if literal["kind"] == "STRING" else None
    if literal["kind"] != "INTEGER":
        return None
    return str(int(literal["text"]))
