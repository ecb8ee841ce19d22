"""GreptimeDB's names of column types, table options and durations, each way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.lexer import Kind
from dataplane.tsdb.schema.tables import DECIMALS_MAX, DIGITS, Column, ColumnType, MergeMode, TableOptions, WalSync
from providers.base.errors import Invalid

_T = ColumnType

NAMES: dict[ColumnType, str] = {
    _T.INT8: "TINYINT",
    _T.INT16: "SMALLINT",
    _T.INT32: "INT",
    _T.INT64: "BIGINT",
    _T.UINT8: "TINYINT UNSIGNED",
    _T.UINT16: "SMALLINT UNSIGNED",
    _T.UINT32: "INT UNSIGNED",
    _T.UINT64: "BIGINT UNSIGNED",
    _T.FLOAT32: "FLOAT",
    _T.FLOAT64: "DOUBLE",
    _T.BOOL: "BOOLEAN",
    _T.STRING: "STRING",
    _T.BINARY: "VARBINARY",
    _T.TIMESTAMP_S: "TIMESTAMP(0)",
    _T.TIMESTAMP_MS: "TIMESTAMP(3)",
    _T.TIMESTAMP_US: "TIMESTAMP(6)",
    _T.TIMESTAMP_NS: "TIMESTAMP(9)",
}
"""As `SHOW CREATE TABLE` writes them."""

GREPTIME_NAMES: dict[ColumnType, str] = {
    **{kind: NAMES[kind] for kind in ColumnType},
    _T.INT8: "Int8",
    _T.INT16: "Int16",
    _T.INT32: "Int32",
    _T.INT64: "Int64",
    _T.UINT8: "UInt8",
    _T.UINT16: "UInt16",
    _T.UINT32: "UInt32",
    _T.UINT64: "UInt64",
    _T.FLOAT32: "Float32",
    _T.FLOAT64: "Float64",
    _T.BOOL: "Boolean",
    _T.STRING: "String",
    _T.BINARY: "Binary",
    _T.TIMESTAMP_S: "TimestampSecond",
    _T.TIMESTAMP_MS: "TimestampMillisecond",
    _T.TIMESTAMP_US: "TimestampMicrosecond",
    _T.TIMESTAMP_NS: "TimestampNanosecond",
}
"""As `DESCRIBE` and the HTTP answers name them."""

MYSQL_NAMES: dict[ColumnType, str] = {
    **{kind: NAMES[kind].lower().removesuffix(" unsigned") for kind in ColumnType},
    _T.BOOL: "tinyint",
    _T.STRING: "varchar",
    **{kind: "timestamp" for kind in ColumnType if kind.is_timestamp},
}
"""As `information_schema` names them: tools choose a column's use by these (Grafana among them)."""

_INTEGERS = {
    **dict.fromkeys(("TINYINT", "INT8"), (_T.INT8, _T.UINT8)),
    **dict.fromkeys(("SMALLINT", "INT16"), (_T.INT16, _T.UINT16)),
    **dict.fromkeys(("INT", "INTEGER", "INT32"), (_T.INT32, _T.UINT32)),
    **dict.fromkeys(("BIGINT", "INT64"), (_T.INT64, _T.UINT64)),
}
_OTHERS: dict[str, ColumnType] = {
    "UINT8": _T.UINT8,
    "UINT16": _T.UINT16,
    "UINT32": _T.UINT32,
    "UINT64": _T.UINT64,
    **dict.fromkeys(("FLOAT", "FLOAT32", "REAL"), _T.FLOAT32),
    **dict.fromkeys(("DOUBLE", "FLOAT64"), _T.FLOAT64),
    **dict.fromkeys(("BOOLEAN", "BOOL"), _T.BOOL),
    **dict.fromkeys(("STRING", "TEXT", "VARCHAR", "CHAR", "TINYTEXT", "MEDIUMTEXT", "LONGTEXT"), _T.STRING),
    **dict.fromkeys(("BINARY", "VARBINARY", "BLOB", "BYTEA"), _T.BINARY),
    **dict.fromkeys(("TIMESTAMP_S", "TIMESTAMP_SEC", "TIMESTAMPSECOND"), _T.TIMESTAMP_S),
    **dict.fromkeys(("TIMESTAMP", "TIMESTAMP_MS", "TIMESTAMPMILLISECOND"), _T.TIMESTAMP_MS),
    **dict.fromkeys(("DATETIME", "TIMESTAMP_US", "TIMESTAMPMICROSECOND"), _T.TIMESTAMP_US),
    **dict.fromkeys(("TIMESTAMP_NS", "TIMESTAMPNANOSECOND"), _T.TIMESTAMP_NS),
}
MYSQL_DIGITS_MAX = 255
_PRECISIONS = {"0": _T.TIMESTAMP_S, "3": _T.TIMESTAMP_MS, "6": _T.TIMESTAMP_US, "9": _T.TIMESTAMP_NS}


def type_name(column: Column) -> str:
    """As `SHOW CREATE TABLE` writes it."""
    return NAMES[column.type] + shown_decimals(column)


def shown_decimals(column: Column) -> str:
    """`(15,2)`, as MySQL shows a floating-point column with decimals; of others nothing."""
    return "" if column.decimals is None else f"({DIGITS},{column.decimals})"


def read_type(cursor: Cursor) -> tuple[ColumnType, int | None]:
    """A type's name, and the decimals of `DOUBLE(M, D)` or `FLOAT(M, D)`. M is read and means nothing; nor does, as in
    GreptimeDB, the length of a string type.

    Raises:
        Invalid: no type's name, or one of GreptimeDB's that is not here (`Unsupported`).
    """
    written = cursor.name("a column type").upper()
    if written == "DOUBLE":
        cursor.takes("PRECISION")
    argument = None
    if cursor.takes("("):
        argument = _length(cursor, written)
        if cursor.takes(","):
            decimals = _length(cursor, written)
            cursor.expect(")")
            return _with_decimals(written, argument, decimals)
        cursor.expect(")")
    return _kind(cursor, written, argument), None


def _length(cursor: Cursor, written: str) -> str:
    token = cursor.next("a length")
    if token.kind is not Kind.NUMBER or not token.text.isdigit():
        raise Invalid(f"{written}({token.text}…: a length is a whole number")
    return token.text


def _with_decimals(written: str, digits: str, decimals: str) -> tuple[ColumnType, int]:
    kind = _OTHERS.get(written)
    if kind not in (_T.FLOAT32, _T.FLOAT64):
        if written in ("DECIMAL", "NUMERIC"):
            raise Unsupported(f"column type {written} is not there", hint=f"DOUBLE({DIGITS}, {decimals})")
        raise Invalid(f"{written}({digits}, {decimals}) is not a type: only FLOAT and DOUBLE have decimals")
    if len(decimals) > 2 or int(decimals) > DECIMALS_MAX or not int(decimals) <= int(digits[:9]) <= MYSQL_DIGITS_MAX:
        raise Invalid(
            f"{written}({digits}, {decimals}) is not a type",
            hint=f"(M, D): D digits behind the point, up to {DECIMALS_MAX}, of M, up to {MYSQL_DIGITS_MAX}",
        )
    return kind, int(decimals)


def _kind(cursor: Cursor, written: str, argument: str | None) -> ColumnType:
    if written in _INTEGERS:
        signed, unsigned = _INTEGERS[written]
        return unsigned if cursor.takes("UNSIGNED") else signed
    if written in ("TIMESTAMP", "DATETIME") and argument is not None:
        if argument not in _PRECISIONS:
            raise Invalid(f"{written}({argument}) is not a type", hint="precisions are 0, 3, 6 and 9")
        return _PRECISIONS[argument]
    if written in _OTHERS:
        kind = _OTHERS[written]
        if argument is not None and kind not in (_T.STRING, _T.BINARY):
            raise Invalid(f"{written}({argument}) is not a type: {written} has no length")
        return kind
    raise Unsupported(
        f"column type {written} is not there",
        hint="there are " + ", ".join(sorted({*_INTEGERS, *_OTHERS})) + ", integers also UNSIGNED",
    )


# ── durations and sizes ─────────────────────────────────────────────────────────────────────────────────────────────

_UNITS_MS = {
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86_400_000),
    **dict.fromkeys(("y", "year", "years"), 31_557_600_000),
}
"""A year as GreptimeDB counts it: 365.25 days. Its months are not here: 'M' and 'm' are too close."""
_DURATION = re.compile(r"\s*(?:\d+\s*[a-z]+\s*)+", re.IGNORECASE)
_SIZES = {"": 1, "b": 1, "kb": 1 << 10, "kib": 1 << 10, "mb": 1 << 20, "mib": 1 << 20, "gb": 1 << 30, "gib": 1 << 30}
_SHOWN_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_DURATION_MS_MAX = 1 << 53


def duration_ms(option: str, written: str) -> int:
    """Milliseconds of `7d`, `1h 30m`.

    Raises:
        Invalid: not so written.
    """
    total = 0
    if not _DURATION.fullmatch(written):
        raise _not_a_duration(option, written)
    for number, unit in re.findall(r"(\d+)\s*([a-zA-Z]+)", written):
        if unit == "M" or unit.lower() not in _UNITS_MS:
            raise _not_a_duration(option, written)
        total += int(number) * _UNITS_MS[unit.lower()]
    if total > _DURATION_MS_MAX:
        raise _not_a_duration(option, written)
    return total


def _not_a_duration(option: str, written: str) -> Invalid:
    return Invalid(f"{option} {written!r} is not a duration", hint="such as 90s, 1h 30m, 7d, 2 weeks, 1y")


def duration(ms: int) -> str:
    """`1d 30m`."""
    parts = []
    for unit, size in _SHOWN_MS:
        if ms >= size:
            parts.append(f"{ms // size}{unit}")
            ms %= size
    return " ".join(parts) or "0s"


def _size(option: str, written: str) -> int:
    match = re.fullmatch(r"(\d{1,15})\s*([a-zA-Z]*)", written.strip())
    if match is None or match.group(2).lower() not in _SIZES:
        raise Invalid(f"{option} {written!r} is not a size", hint="such as 512KB, 1MB")
    return int(match.group(1)) * _SIZES[match.group(2).lower()]


def _flag(option: str, written: str) -> bool:
    if written.lower() not in ("true", "false"):
        raise Invalid(f"{option} {written!r} is neither 'true' nor 'false'")
    return written.lower() == "true"


# ── table options ───────────────────────────────────────────────────────────────────────────────────────────────────

OPTIONS = (
    "append_mode",
    "merge_mode",
    "ttl",
    "skip_wal",
    "wal",
    "wal_sync_interval",
    "write_buffer_size",
    "auto_flush_interval",
    "upload_priority",
    "greptime_columns",
)
"""GreptimeDB's, and of our own `wal` (always, periodic, off), `wal_sync_interval`, `upload_priority`,
`greptime_columns`."""
FIXED_OPTIONS = ("append_mode", "merge_mode")
"""Said once, when the table is created: what is in files was merged by them."""


def with_options(options: TableOptions, written: Mapping[str, str]) -> TableOptions:
    """`options` changed by what a statement says.

    Raises:
        Invalid: an option that is not there, by name, or a value that is not one.
    """
    for name, value in written.items():
        if name not in OPTIONS:
            raise Unsupported(f"table option {name!r} is not there", hint="there are " + ", ".join(OPTIONS))
        options = _with_option(options, name, value)
    if options.append_mode and "merge_mode" in written and "append_mode" in written:
        raise Invalid("a table that appends has no merge_mode: its rows are never merged")
    return options


def _with_option(options: TableOptions, name: str, value: str) -> TableOptions:
    if name == "append_mode":
        return replace(options, append_mode=_flag(name, value))
    if name == "merge_mode":
        if value not in set(MergeMode):
            raise Invalid(f"merge_mode {value!r} is not one", hint="there are " + ", ".join(MergeMode))
        return replace(options, merge_mode=MergeMode(value))
    if name == "ttl":
        if value.lower() in ("forever", ""):
            return replace(options, ttl_ms=None)
        if value.lower() == "instant":
            raise Unsupported("ttl 'instant' is not there: it keeps nothing")
        return replace(options, ttl_ms=duration_ms(name, value) or None)  # 0 is GreptimeDB's way to say for ever
    if name == "skip_wal":
        if _flag(name, value):
            return replace(options, wal=WalSync.OFF)
        return replace(options, wal=WalSync.ALWAYS) if options.wal is WalSync.OFF else options
    if name == "wal":
        if value not in set(WalSync):
            raise Invalid(f"wal {value!r} is not one", hint="there are " + ", ".join(WalSync))
        return replace(options, wal=WalSync(value))
    if name == "wal_sync_interval":
        return replace(options, wal_sync_interval_ms=_positive(name, duration_ms(name, value)))
    if name == "write_buffer_size":
        return replace(options, memtable_bytes_max=_positive(name, _size(name, value)))
    if name == "auto_flush_interval":
        return replace(options, flush_interval_ms=_positive(name, duration_ms(name, value)))
    if name == "upload_priority":
        if not re.fullmatch(r"-?\d{1,9}", value):
            raise Invalid(f"upload_priority {value!r} is not a whole number")
        return replace(options, upload_priority=int(value))
    return replace(options, greptime_columns=_flag(name, value))


def _positive(option: str, value: int) -> int:
    if value <= 0:
        raise Invalid(f"{option} must be more than 0")
    return value


def shown_options(options: TableOptions) -> dict[str, str]:
    """What `SHOW CREATE TABLE` says of them: those that are not the default."""
    default = TableOptions()
    shown: dict[str, str] = {}
    if options.append_mode:
        shown["append_mode"] = "true"
    if options.merge_mode is not default.merge_mode and not options.append_mode:
        shown["merge_mode"] = options.merge_mode.value
    if options.ttl_ms is not None:
        shown["ttl"] = duration(options.ttl_ms)
    if options.wal is WalSync.OFF:
        shown["skip_wal"] = "true"
    elif options.wal is not default.wal:
        shown["wal"] = options.wal.value
    if options.wal_sync_interval_ms != default.wal_sync_interval_ms:
        shown["wal_sync_interval"] = duration(options.wal_sync_interval_ms)
    if options.memtable_bytes_max != default.memtable_bytes_max:
        shown["write_buffer_size"] = f"{options.memtable_bytes_max}B"
    if options.flush_interval_ms != default.flush_interval_ms:
        shown["auto_flush_interval"] = duration(options.flush_interval_ms)
    if options.upload_priority:
        shown["upload_priority"] = str(options.upload_priority)
    if options.greptime_columns:
        shown["greptime_columns"] = "true"
    return shown
