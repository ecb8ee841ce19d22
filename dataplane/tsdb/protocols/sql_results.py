"""Answers of SQL over HTTP, in GreptimeDB's formats. Begin at `rendered`.

Timestamps are whole numbers in their column's unit, dates days; what is no number in JSON (NaN, infinity) is null.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from dataplane.tsdb.protocols.sql_types import GREPTIME_NAMES
from dataplane.tsdb.schema.tables import ColumnType
from providers.base.errors import Invalid

ROWS_MAX = 1_000_000
"""Of an answer that is text; Arrow's have no bound but memory's."""

_JSON = "application/json"
_CSV = "text/csv; charset=utf-8"
_ARROW = "application/arrow"
FORMATS = {
    "greptimedb_v1": _JSON,
    "json": _JSON,
    "table": "text/plain; charset=utf-8",
    "csv": _CSV,
    "csvwithnames": _CSV,
    "csvwithnamesandtypes": _CSV,
    "arrow": _ARROW,
    "arrow_stream": "application/vnd.apache.arrow.stream",
}
"""Content types by name in lower case. `arrow` is Arrow's file format, as GreptimeDB's; `arrow_stream` is our own."""

_NAMES = {kind.arrow: GREPTIME_NAMES[kind] for kind in ColumnType}
_UNITS = {"s": "Second", "ms": "Millisecond", "us": "Microsecond", "ns": "Nanosecond"}


class Outcome(Protocol):
    """Of one statement: its rows, or how many it touched."""

    @property
    def data(self) -> pa.Table | None: ...

    @property
    def affected(self) -> int: ...


def checked_format(name: str | None) -> str:
    """The format by any of its spellings. Raises Invalid: there is no such format."""
    wanted = (name or "greptimedb_v1").lower()
    if wanted not in FORMATS:
        raise Invalid(
            f"format {name!r} is not there",
            hint="one of greptimedb_v1, json, table, csv, csvWithNames, csvWithNamesAndTypes, arrow, arrow_stream",
        )
    return wanted


def rendered(
    outcomes: Sequence[Outcome], form: str, took_ms: int, *, limit: int | None = None, compression: str | None = None
) -> bytes:
    """The body. `limit`: rows of an answer that are shown at most; `compression` of Arrow's formats: zstd or lz4.

    Raises:
        Invalid: too many rows, or several statements in a format of one.
    """
    if form != "greptimedb_v1" and len(outcomes) != 1:
        raise Invalid(f"format {form!r} shows one statement's answer, and these are {len(outcomes)}")
    outputs = [outcome if limit is None else _Limited(outcome, limit) for outcome in outcomes]
    if form == "greptimedb_v1":
        body = {"output": [_output(one) for one in outputs], "execution_time_ms": took_ms}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    [one] = outputs
    if form.startswith("arrow"):
        return b"" if one.data is None else _arrow(one.data, form, compression)
    if form == "json":
        return _objects(one, took_ms)
    if one.data is None:
        return f"{one.affected}\n".encode()
    return _table(one.data) if form == "table" else _csv(one.data, form)


class _Limited:
    def __init__(self, outcome: Outcome, limit: int) -> None:
        self.data = None if outcome.data is None else outcome.data.slice(0, limit)
        self.affected = outcome.affected


def _output(one: Outcome) -> dict[str, Any]:
    if one.data is None:
        return {"affectedrows": one.affected}
    columns = [{"name": field.name, "data_type": type_name(field.type)} for field in one.data.schema]
    found = rows(one.data)
    return {"records": {"schema": {"column_schemas": columns}, "rows": found, "total_rows": len(found)}}


def _objects(one: Outcome, took_ms: int) -> bytes:
    body: dict[str, Any] = {"data": [], "execution_time_ms": took_ms}
    if one.data is None:
        body["affected_rows"] = one.affected
    else:
        names = one.data.column_names
        body["data"] = [dict(zip(names, row, strict=True)) for row in rows(one.data)]
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _csv(data: pa.Table, form: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if form != "csv":
        writer.writerow(data.column_names)
    if form == "csvwithnamesandtypes":
        writer.writerow([type_name(field.type) for field in data.schema])
    for row in rows(data):
        writer.writerow([_cell(value) for value in row])
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _table(data: pa.Table) -> bytes:
    cells = [[json.dumps(value, ensure_ascii=False) for value in row] for row in rows(data)]
    widths = [max([len(name), *(len(row[at]) for row in cells)]) for at, name in enumerate(data.column_names)]
    heads = [f"─{name:─<{width}}─" for name, width in zip(data.column_names, widths, strict=True)]
    lines = ["┌" + "┬".join(heads) + "┐"]
    lines += ["│" + "│".join(f" {c:<{w}} " for c, w in zip(row, widths, strict=True)) + "│" for row in cells]
    lines.append("└" + "┴".join("─" * (width + 2) for width in widths) + "┘")
    return ("\n".join(lines) + "\n").encode()


def _arrow(data: pa.Table, form: str, compression: str | None) -> bytes:
    if compression not in (None, "", "zstd", "lz4"):
        raise Invalid(f"compression {compression!r} is not there", hint="zstd or lz4")
    options = pa.ipc.IpcWriteOptions(compression=compression or None)
    sink = io.BytesIO()
    opened = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
    with opened(sink, data.schema, options=options) as writer:
        writer.write_table(data)
    return sink.getvalue()


def type_name(kind: pa.DataType) -> str:
    """GreptimeDB's name of a type."""
    if kind in _NAMES:
        return _NAMES[kind]
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_timestamp(kind):
        return f"Timestamp{_UNITS[kind.unit]}"
    if pa.types.is_decimal(kind):
        return f"Decimal128({kind.precision}, {kind.scale})"
    if pa.types.is_null(kind):
        return "Null"
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "String"
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "Binary"
    if pa.types.is_date(kind):
        return "Date"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "List"
    return str(kind)


def rows(data: pa.Table) -> list[list[Any]]:
    """As JSON holds them. Raises Invalid: too many."""
    if len(data) > ROWS_MAX:
        raise Invalid(
            f"the answer has {len(data)} rows, more than {ROWS_MAX}", hint="add a LIMIT, or ask with format=arrow"
        )
    columns = [_column(column) for column in data.columns]
    return [list(row) for row in zip(*columns, strict=True)] if columns else []


def _column(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_date64(kind):
        return column.cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_date32(kind):
        return column.cast(pa.int32()).to_pylist()  # type: ignore[no-any-return]
    values: list[Any] = column.to_pylist()
    if pa.types.is_floating(kind):
        return [None if value is None else _number(value) for value in values]
    plain = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    return values if plain or pa.types.is_string(kind) else [_plain(value) for value in values]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return str(value)
