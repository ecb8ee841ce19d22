"""Which files have to be merged with which, and the merge.

Rows of one series and time are one row, so files merge only where both their time ranges and their series ranges meet.
Inside a file rows are merged already: a file that meets no other is read as it is, column by column. Only groups of
files that do meet are read with their keys and put in order by `sst.order`. A group that would not fit into memory is
cut by time, which parts no row from another of its key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.query.bounds import Bounds
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import ColumnRole, ColumnType, MergeMode, TableSchema
from dataplane.tsdb.sst.order import OP_TYPE, PUT, key_columns, ordered

MEMORY_SERIES_MAX = 1_000
"""Distinct series of rows in memory that are looked at for their range; of more it is not known."""
_WIDTH = {
    **dict.fromkeys(ColumnType, 8),
    ColumnType.STRING: 32,
    ColumnType.BINARY: 64,
}
"""Bytes of a value in memory, about."""
Key = tuple[int, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A file, or the rows in memory (`meta` None), by what it spans. Both ends of a range are included."""

    meta: FileMeta | None
    rows: int
    time_min: int
    time_max: int
    series_min: Key = (0, "")
    series_max: Key = (2, "")
    """(1, text); from (0, …) to (2, …) where they are not known: they meet every other."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is read at once: a group of parts that may share rows, or one part. `low`, `high`: only its rows of these
    times; None: open."""

    parts: tuple[Part, ...]
    merge: bool
    low: int | None = None
    high: int | None = None

    @property
    def files(self) -> list[FileMeta]:
        """In the order of writing."""
        return sorted((part.meta for part in self.parts if part.meta is not None), key=lambda meta: meta.sequence)

    @property
    def memory(self) -> bool:
        return any(part.meta is None for part in self.parts)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


def row_bytes(schema: TableSchema, names: Iterable[str]) -> int:
    """Of a row with these columns in memory, about."""
    wanted = set(names)
    return sum(_WIDTH[column.type] for column in schema.columns if column.name in wanted) or 1


def units(
    schema: TableSchema, files: Sequence[FileMeta], memory: pa.Table | None, bounds: Bounds, *, rows_max: int
) -> list[Unit]:
    """What has to be read for rows within `bounds`, in pieces of about `rows_max` rows where they are merged."""
    text = _has_text(schema)
    parts = [_of_file(meta, text) for meta in bounds.holding(files, schema)]
    low, high = bounds.times(schema)
    if memory is not None and len(memory):
        parts.append(_of_memory(schema, memory))
    if schema.options.append_mode:
        return [Unit((part,), False) for part in parts]
    found: list[Unit] = []
    for group in _groups(parts):
        if len(group) == 1 and group[0].meta is not None:
            found.append(Unit(tuple(group), False))
        else:
            found += _slices(group, low, high, rows_max)
    return found


def needless(schema: TableSchema, unit: Unit, ruled_out: Sequence[frozenset[str]]) -> int:
    """How many of the unit's oldest files need not be read. `ruled_out`: of each file, the fields of which no value in
    it can be in an answer.

    A row replaces those of the same key in older files, so that a file that holds no row of an answer may yet keep an
    older one out of it: only the oldest can be left out, one after the other. Where rows are merged field by field, an
    older file also lends the rest of a row to a newer one: all of them can be, if the same field rules out every one.
    """
    if not unit.merge or schema.options.merge_mode is not MergeMode.LAST_NON_NULL:
        return next((at for at, fields in enumerate(ruled_out) if not fields), len(ruled_out))
    if unit.memory or not ruled_out:
        return 0
    return len(ruled_out) if frozenset.intersection(*ruled_out) else 0


def _of_file(meta: FileMeta, text: bool) -> Part:
    if not text or not (meta.series_min or meta.series_max):
        return Part(meta, meta.rows, meta.time_min, meta.time_max)
    return Part(meta, meta.rows, meta.time_min, meta.time_max, (1, meta.series_min), (1, meta.series_max))


def _has_text(schema: TableSchema) -> bool:
    """Whether its series' texts are the same whoever wrote them: of times they may not be."""
    return not any(column.type.is_timestamp for column in schema.columns if column.role is ColumnRole.TAG)


def _of_memory(schema: TableSchema, memory: pa.Table) -> Part:
    times = pc.min_max(memory.column(schema.time.name).cast(pa.int64())).as_py()
    unknown = Part(None, len(memory), times["min"], times["max"])
    if not schema.tags or not _has_text(schema):
        return unknown
    distinct = memory.select(schema.tags).group_by(schema.tags).aggregate([])
    if len(distinct) > MEMORY_SERIES_MAX:
        return unknown
    texts = [",".join("" if value is None else str(value) for value in row.values()) for row in distinct.to_pylist()]
    return Part(None, len(memory), times["min"], times["max"], (1, min(texts)), (1, max(texts)))


def _groups(parts: list[Part]) -> list[list[Part]]:
    """Parts of different groups share no row. Clusters of one dimension are split by the other, until neither splits:
    n log n a level, where looking at every pair would be n²."""
    done: list[list[Part]] = []
    waiting = [(parts, 0, 0)] if parts else []
    ways: list[Callable[[Part], tuple[Any, Any]]] = [
        lambda part: (part.time_min, part.time_max),
        lambda part: (part.series_min, part.series_max),
    ]
    while waiting:
        group, way, failed = waiting.pop()
        if len(group) == 1 or failed == len(ways):
            done.append(group)
            continue
        clusters = _clusters(group, ways[way])
        failed = failed + 1 if len(clusters) == 1 else 0
        waiting += [(cluster, (way + 1) % len(ways), failed) for cluster in clusters]
    return done


def _clusters(parts: list[Part], span: Callable[[Part], tuple[Any, Any]]) -> list[list[Part]]:
    """Parts whose ranges meet, directly or through others."""
    found: list[list[Part]] = []
    end: Any = None
    for part in sorted(parts, key=lambda part: span(part)[0]):
        low, high = span(part)
        if end is None or low > end:
            found.append([])
            end = high
        found[-1].append(part)
        end = max(end, high)
    return found


def _slices(group: list[Part], low: int | None, high: int | None, rows_max: int) -> list[Unit]:
    """The group, by time if it is too large. Each slice reads the files that it meets anew: bounded memory for more
    reading."""
    first = max([min(part.time_min for part in group), *([low] if low is not None else [])])
    last = min([max(part.time_max for part in group), *([high] if high is not None else [])])
    if first > last:
        return []
    count = max(1, math.ceil(sum(part.rows for part in group) / rows_max))
    width = -(-(last - first + 1) // count)
    found = []
    for begin in range(first, last + 1, width):
        end = min(begin + width - 1, last)
        met = tuple(part for part in group if part.time_min <= end and part.time_max >= begin)
        if met:
            found.append(Unit(met, True, begin, end))
    return found


def visible(schema: TableSchema, unit: Unit, tables: Sequence[pa.Table], keep_from: int | None) -> pa.Table:
    """The rows that a query sees of a unit whose tables, oldest first, these are, each `clipped`. `keep_from`: rows of
    earlier times have expired."""
    [first, *_] = tables
    if unit.merge:
        rows = ordered(schema, joined(tables))
    else:
        rows = first if len(tables) == 1 else joined(tables)
    if OP_TYPE in rows.column_names:
        rows = rows.filter(pc.equal(rows.column(OP_TYPE), PUT))
    if keep_from is not None:
        rows = clipped(schema, rows, keep_from, None)
    return rows


def clipped(schema: TableSchema, rows: pa.Table, low: int | None, high: int | None) -> pa.Table:
    """The rows of these times. Needs the time index where a bound is given."""
    for bound, compare in ((low, pc.greater_equal), (high, pc.less_equal)):
        if bound is not None and len(rows):
            times = rows.column(schema.time.name).cast(pa.int64())
            rows = rows.filter(compare(times, pa.scalar(bound, pa.int64())))
    return rows


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows, in the first one's columns, with `__op_type` if one of them has it."""
    if any(OP_TYPE in table.column_names for table in tables):
        tables = [table if OP_TYPE in table.column_names else _with_puts(table) for table in tables]
    names = tables[0].column_names
    target = pa.schema([pa.field(field.name, field.type) for field in tables[0].schema])
    return pa.concat_tables([table.select(names).cast(target) for table in tables])


def _with_puts(rows: pa.Table) -> pa.Table:
    return rows.append_column(OP_TYPE, pa.repeat(pa.scalar(PUT, pa.uint8()), len(rows)))


def columns_read(schema: TableSchema, unit: Unit, names: Sequence[str], keep_from: int | None) -> list[str]:
    """Which columns a unit has to be read with, so that `visible` can do its work."""
    needed = set(names)
    if unit.merge:
        needed |= set(key_columns(schema))
    if unit.low is not None or unit.high is not None or keep_from is not None:
        needed.add(schema.time.name)
    return [column.name for column in schema.columns if column.name in needed]
