"""A table as DuckDB reads it: an Arrow dataset of which DuckDB says the columns and the filter when it runs.

    DuckDB's thread ── scanner(columns, filter) ──► units of `merge.py`, each a future on the loop ──► batches
                          at most `ahead_bytes_max` of columns are being read ahead of what DuckDB has taken

Nothing of a table is held but that, and the groups that are merged: a scan of any length needs the same memory.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from dataplane.tsdb.query.bounds import NS, Bounds
from dataplane.tsdb.query.merge import Unit, clipped, columns_read, joined, needless, row_bytes, units, visible
from dataplane.tsdb.query.plan import column_name
from dataplane.tsdb.query.spans import Span
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.order import OP_TYPE
from providers.base.errors import Unavailable

READS_AHEAD_MAX = 16
FILES_A_READ = 16
"""Files that are read by one call where none of them has to be merged."""
HANDED_ROWS = 1 << 16
"""Rows that are handed to DuckDB at a time, if there are as many: a batch costs it some 70 µs, as much as ten thousand
rows of a column do."""
HANDED_BYTES = 4 << 20
"""Of those, about."""


class FileReader(Protocol):
    """Where files' columns come from. Every byte that it hands out has passed its checksum."""

    async def columns(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table:
        """The rows in the file's order, with the columns `names` of `schema`, and `__op_type` where the file has it.

        Raises:
            Corrupt: a byte is not what was written. NotFound: the file is gone. Unavailable: it cannot be read now.
        """
        ...

    async def ruled_out(
        self, meta: FileMeta, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str]:
        """The fields among `spans` of which the file, by the statistics in its footer, has no value in its span.
        `names`: the columns that would be read, those fields among them.

        Raises: as `columns`.
        """
        ...


@runtime_checkable
class NearReader(FileReader, Protocol):
    """A `FileReader` that may have columns at hand on this machine: those are read where they are used, without a hop
    to the loop and back, which would cost as much as the reading."""

    def at_hand(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table | None:
        """As `columns`, or None: they have to be fetched. Blocks as long as a disk does; from any thread."""
        ...

    def ruled_out_at_hand(
        self, meta: FileMeta, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str] | None:
        """As `ruled_out`, or None: the footer has to be fetched. Blocks likewise."""
        ...


@dataclass(frozen=True, slots=True)
class TableView:
    """One moment of a table. `memory`: rows newer than every file's, oldest first, in the table's columns, with
    `__op_type` where some delete."""

    schema: TableSchema
    files: Sequence[FileMeta] = ()
    memory: Sequence[pa.Table] = ()


@dataclass(slots=True)
class Read:
    """What a query has read of a table, all scans together."""

    files: int = 0
    ruled_out: int = 0
    """By the statistics of fields."""
    merged: int = 0
    rows: int = 0


class TableScan(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """See the module. `number`: the table's in the query."""

    def __init__(
        self,
        view: TableView,
        number: int,
        reader: FileReader,
        loop: asyncio.AbstractEventLoop,
        now_ms: int,
        *,
        ahead_bytes_max: int,
        merge_bytes_max: int,
    ) -> None:
        self._view = view
        self._number = number
        self._reader = reader
        self._near = reader if isinstance(reader, NearReader) else None
        self._loop = loop
        self._ahead_max = ahead_bytes_max
        self._merge_max = merge_bytes_max
        self._names = {column_name(number, at): c.name for at, c in enumerate(view.schema.columns)}
        self._memory = _in_memory(view)
        self._keep_from_ns: int | None = None
        if view.schema.options.ttl_ms is not None:
            self._keep_from_ns = (now_ms - view.schema.options.ttl_ms) * NS["ms"]
        self._stopped = threading.Event()
        self.bounds = Bounds()
        self.error: BaseException | None = None
        self.read = Read()

    @property
    def schema(self) -> pa.Schema:
        columns = self._view.schema.columns
        return pa.schema([pa.field(column_name(self._number, at), c.type.arrow) for at, c in enumerate(columns)])

    def scanner(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None, **_: Any) -> Any:
        """DuckDB's call, as it begins a scan: anything with `to_reader`."""
        names = list(self._names) if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        return _Scanner(pa.RecordBatchReader.from_batches(schema, self._batches(schema, filter)))

    def stop(self) -> None:
        """End scans that are running; from any thread."""
        self._stopped.set()

    def pruned(self) -> str:
        """What a scan within the present bounds would read, in one sentence."""
        schema = self._view.schema
        found = self._units([column.name for column in schema.columns])
        files = {meta.file_id for unit in found for meta in unit.files}
        merged = {meta.file_id for unit in found if unit.merge for meta in unit.files}
        fields = ", ".join(sorted(self.bounds.fields))
        return f"{len(files)} of {len(self._view.files)} files would be read, {len(merged)} of them merged" + (
            f"; less those that statistics of {fields} rule out" if fields else ""
        )

    def done(self) -> str:
        """What its scans have read, in one sentence."""
        return (
            f"{self.read.files} of {len(self._view.files)} files were read, {self.read.merged} of them merged, "
            f"{self.read.ruled_out} ruled out by statistics, {self.read.rows} rows handed out"
        )

    def _units(self, names: Sequence[str]) -> list[Unit]:
        bounds = self.bounds
        if self._keep_from_ns is not None:
            bounds = bounds.since(self._keep_from_ns)
        rows_max = max(1, self._merge_max // row_bytes(self._view.schema, names))
        return units(self._view.schema, self._view.files, self._memory, bounds, rows_max=rows_max)

    def _batches(self, schema: pa.Schema, condition: pc.Expression | None) -> Iterator[pa.RecordBatch]:
        try:
            for rows in _gathered(self._rows(schema, condition)):
                self.read.rows += len(rows)
                yield from rows.to_batches()
        except BaseException as error:
            self.error = self.error or error
            raise

    def _rows(self, schema: pa.Schema, condition: pc.Expression | None) -> Iterator[pa.Table]:
        table = self._view.schema
        asked = set(schema.names) | (_columns_of(condition) if condition is not None else set())
        names = [name for safe, name in self._names.items() if safe in asked]
        for unit, tables in self._read_ahead(self._units(names), names, row_bytes(table, names)):
            keep = self._expires(unit)
            rows = visible(table, unit, tables, keep)
            rows = rows.select(names).rename_columns([safe for safe, name in self._names.items() if name in names])
            if condition is not None:
                rows = rows.filter(condition)
            rows = rows.select(schema.names)
            yield rows if rows.schema.equals(schema) else rows.cast(schema)

    def _expires(self, unit: Unit) -> int | None:
        """The first time that has not expired, where the unit has earlier ones."""
        if self._keep_from_ns is None:
            return None
        keep, _ = Bounds(low=self._keep_from_ns).times(self._view.schema)
        return keep if keep is not None and any(part.time_min < keep for part in unit.parts) else None

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _read_ahead(
        self, found: Sequence[Unit], names: Sequence[str], per_row: int
    ) -> Iterator[tuple[Unit, list[pa.Table]]]:
        """Each unit with its tables, clipped; what is at hand first."""
        far: list[Unit] = []
        for unit in found:
            near = self._at_hand(unit, names)
            if near is None:
                far.append(unit)
            elif near:
                yield unit, near
        waiting = deque(_packed(far, per_row, self._ahead_max // READS_AHEAD_MAX))
        running: deque[tuple[list[Unit], int, Future[list[list[pa.Table]]]]] = deque()
        ahead = 0
        try:
            while waiting or running:
                while waiting and len(running) < READS_AHEAD_MAX and (not running or ahead < self._ahead_max):
                    pack = waiting.popleft()
                    size = sum(unit.rows for unit in pack) * per_row
                    ahead += size
                    future = asyncio.run_coroutine_threadsafe(self._read(pack, names), self._loop)
                    running.append((pack, size, future))
                pack, size, future = running.popleft()
                for unit, tables in zip(pack, self._outcome(future), strict=True):
                    if tables:
                        yield unit, tables
                ahead -= size
        finally:
            for _, _, future in running:
                future.cancel()

    def _outcome(self, future: Future[list[list[pa.Table]]]) -> list[list[pa.Table]]:
        while not self._stopped.is_set():
            try:
                return future.result(timeout=0.1)
            except TimeoutError:
                if future.done():
                    raise  # the reader's own
        future.cancel()
        raise Unavailable("the query was ended")

    async def _read(self, pack: Sequence[Unit], names: Sequence[str]) -> list[list[pa.Table]]:
        return list(await asyncio.gather(*(self._read_unit(unit, names) for unit in pack)))

    async def _read_unit(self, unit: Unit, names: Sequence[str]) -> list[pa.Table]:
        table = self._view.schema
        wanted = columns_read(table, unit, names, self._expires(unit))
        spans = self._spans(wanted)
        ruled_out = [await self._reader.ruled_out(meta, table, wanted, spans) for meta in unit.files if spans]
        skipped = needless(table, unit, ruled_out)
        tables = []
        # One after the other: of a group that is cut by time no more than one file is whole in memory.
        for meta in unit.files[skipped:]:
            rows = await self._reader.columns(meta, table, wanted)
            tables.append(clipped(table, rows, unit.low, unit.high))
        return self._whole(unit, tables, wanted, skipped)

    def _at_hand(self, unit: Unit, names: Sequence[str]) -> list[pa.Table] | None:
        near = self._near
        if near is None and unit.files:
            return None
        if self._stopped.is_set():
            raise Unavailable("the query was ended")
        table = self._view.schema
        wanted = columns_read(table, unit, names, self._expires(unit))
        spans = self._spans(wanted)
        ruled_out = []
        for meta in unit.files if spans else ():
            found = near.ruled_out_at_hand(meta, table, wanted, spans) if near is not None else None
            if found is None:
                return None
            ruled_out.append(found)
        skipped = needless(table, unit, ruled_out)
        tables = []
        for meta in unit.files[skipped:]:
            rows = near.at_hand(meta, table, wanted) if near is not None else None
            if rows is None:
                return None
            tables.append(clipped(table, rows, unit.low, unit.high))
        return self._whole(unit, tables, wanted, skipped)

    def _spans(self, wanted: Sequence[str]) -> dict[str, Span]:
        return {name: span for name, span in self.bounds.fields.items() if name in wanted}

    def _whole(self, unit: Unit, tables: list[pa.Table], wanted: Sequence[str], skipped: int) -> list[pa.Table]:
        """With the rows in memory, which are the newest."""
        self.read.ruled_out += skipped
        self.read.files += len(tables)
        self.read.merged += len(tables) if unit.merge else 0
        if unit.memory and self._memory is not None:
            own = [OP_TYPE] if OP_TYPE in self._memory.column_names else []
            tables.append(clipped(self._view.schema, self._memory.select([*wanted, *own]), unit.low, unit.high))
        return tables


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer, larger tables."""
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        held.append(table)
        rows, size = rows + len(table), size + table.nbytes
        if rows >= HANDED_ROWS or size >= HANDED_BYTES:
            yield _joined(held)
            held, rows, size = [], 0, 0
    if held:
        yield _joined(held)


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks() if len(tables) > 1 else tables[0]


@dataclass(frozen=True, slots=True)
class _Scanner:
    """What DuckDB asks of a scanner."""

    reader: pa.RecordBatchReader

    def to_reader(self) -> pa.RecordBatchReader:
        return self.reader


def _in_memory(view: TableView) -> pa.Table | None:
    tables = [table for table in view.memory if len(table)]
    if not tables:
        return None
    names = [column.name for column in view.schema.columns]
    target = pa.schema([pa.field(c.name, c.type.arrow) for c in view.schema.columns])
    whole = []
    for table in tables:
        rows = table.select(names).cast(target)
        whole.append(rows.append_column(OP_TYPE, table.column(OP_TYPE)) if OP_TYPE in table.column_names else rows)
    return joined(whole)


def _columns_of(condition: pc.Expression) -> set[str]:
    """The columns that a filter may look at: their names occur in its text."""
    return set(re.findall(r"t\d+c\d+", str(condition)))


def _packed(found: Sequence[Unit], per_row: int, size_max: int) -> list[list[Unit]]:
    """Units to be read by one call: several small ones that are not merged, or one."""
    packs: list[list[Unit]] = []
    size = 0
    for unit in found:
        weight = unit.rows * per_row
        if not packs or unit.merge or packs[-1][-1].merge or len(packs[-1]) == FILES_A_READ or size + weight > size_max:
            packs.append([])
            size = 0
        packs[-1].append(unit)
        size += weight
    return packs
