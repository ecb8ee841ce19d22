"""Tables: tags name a series, one time index orders it, fields are what was measured.

A table's columns carry ids that are never used again, so that a file written under an older schema is read by id. A
schema grows by new nullable columns and by wider types; nothing else is an evolution. Rows of one series and one time
are one row: the last one written wins, unless the table appends.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import pyarrow as pa

from dataplane.contract.codec import LEFT_OUT, to_json
from providers.base.errors import Invalid, NotFound

COLUMNS_MAX = 2_000
DECIMALS_MAX = 9
"""Of a column: with `DIGITS` it leaves six before the point, and a value of 32 bits times its power of ten is exact."""
DIGITS = 15
"""That every value of 64 bits holds: as many are stored of a column with decimals."""
NAME_BYTES_MAX = 200
_NAME = re.compile(r"[^\x00-\x1f\"`/\\]+")


class ColumnType(StrEnum):
    """The types of both sides, by Arrow's names."""

    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"
    BINARY = "binary"
    TIMESTAMP_S = "timestamp[s]"
    TIMESTAMP_MS = "timestamp[ms]"
    TIMESTAMP_US = "timestamp[us]"
    TIMESTAMP_NS = "timestamp[ns]"

    @property
    def arrow(self) -> pa.DataType:
        """Arrow's type. Timestamps have no zone: they count from the Unix epoch, in UTC."""
        return _ARROW[self]

    @property
    def is_timestamp(self) -> bool:
        return self.value.startswith("timestamp")

    @property
    def unit(self) -> str:
        """Of a timestamp: s, ms, us or ns."""
        return self.value.removeprefix("timestamp[").removesuffix("]")


_ARROW: dict[ColumnType, pa.DataType] = {
    **{kind: pa.type_for_alias(kind.value) for kind in ColumnType if not kind.is_timestamp},
    **{kind: pa.timestamp(kind.unit) for kind in ColumnType if kind.is_timestamp},
}

_T = ColumnType
_WIDER: dict[ColumnType, frozenset[ColumnType]] = {
    _T.INT8: frozenset({_T.INT16, _T.INT32, _T.INT64, _T.FLOAT32, _T.FLOAT64}),
    _T.INT16: frozenset({_T.INT32, _T.INT64, _T.FLOAT32, _T.FLOAT64}),
    _T.INT32: frozenset({_T.INT64, _T.FLOAT64}),
    _T.UINT8: frozenset({_T.UINT16, _T.UINT32, _T.UINT64, _T.INT16, _T.INT32, _T.INT64, _T.FLOAT32, _T.FLOAT64}),
    _T.UINT16: frozenset({_T.UINT32, _T.UINT64, _T.INT32, _T.INT64, _T.FLOAT32, _T.FLOAT64}),
    _T.UINT32: frozenset({_T.UINT64, _T.INT64, _T.FLOAT64}),
    _T.FLOAT32: frozenset({_T.FLOAT64}),
}
"""Each type's wider ones: those that hold every value of it exactly."""


def widens(narrow: ColumnType, wide: ColumnType) -> bool:
    """Whether every value of `narrow` is exactly a value of `wide` (the same type included)."""
    return narrow is wide or wide in _WIDER.get(narrow, frozenset())


class ColumnRole(StrEnum):
    """What a column is to its table. GreptimeDB's semantic types."""

    TAG = "tag"
    FIELD = "field"
    TIME = "time"


class WalSync(StrEnum):
    """What a table's writes wait for before they are acked.

    `always`: until the log is on stable storage. `periodic`: the log is written, and synced within
    `TableOptions.wal_sync_interval_ms`; a power cut loses what came since. `off`: no log; a power cut loses everything
    that is not flushed.
    """

    ALWAYS = "always"
    PERIODIC = "periodic"
    OFF = "off"


class MergeMode(StrEnum):
    """Of rows with the same series and time: the last row whole, or of each field the last that is not null."""

    LAST_ROW = "last_row"
    LAST_NON_NULL = "last_non_null"


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `id` is its place in files, unique in its table for ever."""

    id: int
    name: str
    type: ColumnType
    role: ColumnRole = ColumnRole.FIELD
    nullable: bool = True
    decimals: int | None = field(default=None, metadata=LEFT_OUT)
    """Of a floating-point field: values are rounded to so many digits behind the point when they are taken in
    (`sst/decimals.py`), and files have them as decimals. None: they are kept as they are."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What a user may say of a table besides its columns."""

    append_mode: bool = False
    """true: rows are never merged, and none can be deleted."""
    merge_mode: MergeMode = MergeMode.LAST_ROW
    ttl_ms: int | None = None
    """Rows older than this by their time index are removed; None: kept for ever."""
    wal: WalSync = WalSync.ALWAYS
    wal_sync_interval_ms: int = 5_000
    """Of `periodic`: how long a written record may stay unsynced."""
    memtable_bytes_max: int = 1 << 20
    """Edge: bytes in memory at which the table pushes back. It is flushed at half of them and refuses at twice."""
    flush_interval_ms: int = 60_000
    """Longest time that a row stays in memory only."""
    upload_priority: int = 0
    """Edge: files of a higher one are sent first."""
    greptime_columns: bool = False
    """true: SSTs carry GreptimeDB's internal columns, for a real GreptimeDB to read."""


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table as of one version. `columns` in the order in which they are shown."""

    name: str
    columns: tuple[Column, ...]
    version: int = 1
    options: TableOptions = TableOptions()

    def __post_init__(self) -> None:
        """Raises Invalid: what is wrong with the table, in one sentence."""
        for what, name in (("table", self.name), *(("column", column.name) for column in self.columns)):
            if not _NAME.fullmatch(name) or len(name.encode()) > NAME_BYTES_MAX or name.startswith("__"):
                raise Invalid(
                    f"{what} name {name!r} is not allowed",
                    hint=f"1 to {NAME_BYTES_MAX} bytes without quotes, slashes or control characters; "
                    "names that begin with two underscores are the database's own",
                )
        if len(self.columns) > COLUMNS_MAX:
            raise Invalid(f"table {self.name!r} has {len(self.columns)} columns, more than {COLUMNS_MAX}")
        if len({column.name for column in self.columns}) < len(self.columns):
            raise Invalid(f"table {self.name!r} names a column twice")
        if len({column.id for column in self.columns}) < len(self.columns):
            raise Invalid(f"table {self.name!r} has two columns of one id")
        times = [column for column in self.columns if column.role is ColumnRole.TIME]
        if len(times) != 1 or not times[0].type.is_timestamp:
            raise Invalid(f"table {self.name!r} needs exactly one time index, of a timestamp type")
        if any(c.role is ColumnRole.TAG and c.type in (_T.FLOAT32, _T.FLOAT64, _T.BINARY) for c in self.columns):
            raise Invalid(f"table {self.name!r} has a tag of a type that names no series: floats and bytes are fields")
        for column in self.columns:
            if column.decimals is not None and (
                not 0 <= column.decimals <= DECIMALS_MAX
                or column.role is not ColumnRole.FIELD
                or column.type not in (_T.FLOAT32, _T.FLOAT64)
            ):
                raise Invalid(
                    f"column {column.name!r} of table {self.name!r} cannot have {column.decimals} decimals",
                    hint=f"0 to {DECIMALS_MAX}, of fields of type {_T.FLOAT32} or {_T.FLOAT64}",
                )

    @property
    def time(self) -> Column:
        """The time index."""
        return next(column for column in self.columns if column.role is ColumnRole.TIME)

    @property
    def tags(self) -> list[str]:
        """Names of the tags, in the table's order."""
        return [column.name for column in self.columns if column.role is ColumnRole.TAG]

    def column(self, name: str) -> Column | None:
        """The column of that name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def fingerprint(self) -> str:
        """Names this version's columns, and nothing else of the table: 16 hex digits of SHA-256 over their JSON. Two
        sides with the same one agree on every byte of a file's columns."""
        return _fingerprint(self.columns)


@functools.lru_cache(maxsize=1_024)
def _fingerprint(columns: tuple[Column, ...]) -> str:
    canonical = b"\n".join(to_json(column) for column in sorted(columns, key=lambda column: column.id))
    return hashlib.sha256(canonical).hexdigest()[:16]


def why_not_older(older: TableSchema, newer: TableSchema) -> str | None:
    """None when files written under `older` can be read as `newer`: each of its columns is still there by id, with the
    same name, role and decimals and the same or a wider type, and what is new is nullable fields. Else one sentence."""
    later = {column.id: column for column in newer.columns}
    for column in older.columns:
        now = later.pop(column.id, None)
        if now is None:
            return f"column {column.name!r} (id {column.id}) is not in version {newer.version} of table {newer.name!r}"
        if now.name != column.name or now.role is not column.role:
            return f"column id {column.id} is {now.role} {now.name!r} now, and was {column.role} {column.name!r}"
        if not widens(column.type, now.type):
            return f"column {column.name!r} is {now.type} now, which does not hold every {column.type}"
        if now.decimals != column.decimals:
            had, has = said_decimals(column), said_decimals(now)
            return f"column {column.name!r} has {has} now, and had {had}: that cannot change"
        if now.decimals is not None and now.type is not column.type:
            # The nearest value of 32 bits to a decimal is not that of 64.
            return f"column {column.name!r} has decimals, and so a type that cannot change"
        if column.nullable and not now.nullable:
            return f"column {column.name!r} was nullable, and is not now"
        if now.role is not ColumnRole.FIELD and now.type is not column.type:
            return f"column {column.name!r} is a {now.role}, whose type cannot change"
    for column in later.values():
        if column.role is not ColumnRole.FIELD or not column.nullable:
            return f"new column {column.name!r} is not a nullable field"
    return None


def said_decimals(column: Column) -> str:
    """How many it has, in words."""
    return "no decimals" if column.decimals is None else f"{column.decimals} decimal{'s' * (column.decimals != 1)}"


def with_columns(schema: TableSchema, added: tuple[Column, ...]) -> TableSchema:
    """The next version of `schema`, with nullable fields added under fresh ids (the ids of `added` are not looked at).

    Raises:
        Invalid: a name is taken, or an added column is not a nullable field.
    """
    first = max(column.id for column in schema.columns) + 1
    numbered = tuple(replace(column, id=first + at) for at, column in enumerate(added))
    grown = replace(schema, columns=schema.columns + numbered, version=schema.version + 1)
    if why := why_not_older(schema, grown):
        raise Invalid(f"table {schema.name!r} cannot grow so: {why}")
    return grown


def grown(schema: TableSchema, columns: Sequence[Column]) -> TableSchema:
    """The next version of `schema`, with those of `columns` that are not there yet; itself, if all are. One that says
    no decimals is there whatever decimals it has.

    Raises:
        Invalid: one is there with another type, other decimals or as something else than a field, or is no nullable
            field.
    """
    added = []
    for column in columns:
        there = schema.column(column.name)
        if there is None:
            added.append(column)
        elif there.type is not column.type or there.role is not column.role:
            raise Invalid(f"column {column.name!r} of table {schema.name!r} is a {there.role} of type {there.type}")
        elif column.decimals not in (None, there.decimals):
            raise Invalid(f"column {column.name!r} of table {schema.name!r} has {said_decimals(there)}")
    return with_columns(schema, tuple(added)) if added else schema


def widened(schema: TableSchema, name: str, wider: ColumnType) -> TableSchema:
    """The next version of `schema`, with field `name` of type `wider`.

    Raises:
        Invalid: no such column, or a type that does not hold every value of the present one.
    """
    column = schema.column(name)
    if column is None:
        raise Invalid(f"table {schema.name!r} has no column {name!r}")
    columns = tuple(replace(c, type=wider) if c is column else c for c in schema.columns)
    grown = replace(schema, columns=columns, version=schema.version + 1)
    if why := why_not_older(schema, grown):
        raise Invalid(f"column {name!r} cannot become {wider}: {why}")
    return grown


def at_least(schema: TableSchema, name: str, wider: ColumnType) -> TableSchema:
    """`schema` with field `name` of type `wider`: its next version, or itself where it is that already.

    Raises:
        NotFound: no such column. Invalid: as `widened`.
    """
    column = schema.column(name)
    if column is None:
        raise NotFound(f"table {schema.name!r} has no column {name!r}")
    return schema if column.type is wider else widened(schema, name, wider)
