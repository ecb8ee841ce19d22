"""Tables at random, as files and rows in memory, and what they hold by a few lines that share no code with the engine.

Rows are written one statement after another; each statement is a put or a delete of some keys. Statements are then
dealt out, in order, to files and memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dataplane.tsdb.query.engine import QueryEngine, QuerySettings, TableView
from dataplane.tsdb.query.files import LocalFiles
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, MergeMode, TableOptions, TableSchema
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.order import DELETE, OP_TYPE, PUT
from dataplane.tsdb.sst.writer import write_sst

EPOCH_MS = 1_760_000_000_000
COLUMNS = (
    Column(1, "car", ColumnType.STRING, ColumnRole.TAG),
    Column(2, "bus", ColumnType.INT32, ColumnRole.TAG),
    Column(3, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
    Column(4, "a.c", ColumnType.INT64),
    Column(5, "v", ColumnType.FLOAT64),
    Column(6, "ok", ColumnType.BOOL),
)
NAMES = [column.name for column in COLUMNS]


@dataclass(frozen=True)
class Put:
    """Rows as tuples in the order of `COLUMNS`."""

    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Delete:
    """Keys: tags and time."""

    keys: tuple[tuple[Any, ...], ...]


Statement = Put | Delete


def schema(
    mode: MergeMode = MergeMode.LAST_ROW,
    *,
    append: bool = False,
    ttl_ms: int | None = None,
    decimals: int | None = None,
) -> TableSchema:
    """`decimals`: of `v`."""
    columns = tuple(replace(c, decimals=decimals) if c.name == "v" else c for c in COLUMNS)
    return TableSchema("t", columns, options=TableOptions(append_mode=append, merge_mode=mode, ttl_ms=ttl_ms))


def expected(statements: Sequence[Statement], options: TableOptions, now_ms: int) -> list[tuple[Any, ...]]:
    """What a reader sees, row by row."""
    appended: list[tuple[Any, ...]] = []
    merged: dict[tuple[Any, ...], list[Any]] = {}
    for statement in statements:
        if isinstance(statement, Delete):
            for key in statement.keys:
                merged.pop(key, None)
            continue
        for row in statement.rows:
            appended.append(row)
            key, fields = row[:3], list(row[3:])
            if options.merge_mode is MergeMode.LAST_NON_NULL and key in merged:
                fields = [new if new is not None else old for new, old in zip(fields, merged[key], strict=True)]
            merged[key] = fields
    rows = appended if options.append_mode else [(*key, *fields) for key, fields in merged.items()]
    if options.ttl_ms is not None:
        rows = [row for row in rows if row[2] >= now_ms - options.ttl_ms]
    return rows


def arrow(rows: Sequence[tuple[Any, ...]], columns: Sequence[Column] = COLUMNS) -> pa.Table:
    return pa.table(
        {
            c.name: pa.array([row[at] for row in rows], pa.int64()).cast(c.type.arrow)
            if c.type.is_timestamp
            else pa.array([row[at] for row in rows], c.type.arrow)
            for at, c in enumerate(columns)
        }
    )


def as_rows(statements: Sequence[Statement]) -> pa.Table:
    """As the database's write path has them: with `__op_type` where one deletes."""
    deletes = any(isinstance(statement, Delete) for statement in statements)
    parts = []
    for statement in statements:
        if isinstance(statement, Put):
            rows = arrow(statement.rows)
        else:
            rows = arrow([(*key, None, None, None) for key in statement.keys])
        if deletes:
            operation = PUT if isinstance(statement, Put) else DELETE
            rows = rows.append_column(OP_TYPE, pa.array([operation] * len(rows), pa.uint8()))
        parts.append(rows)
    return pa.concat_tables(parts)


class Made:
    """Files in memory, for `LocalFiles`."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.reads = 0

    def add(self, table: TableSchema, rows: pa.Table) -> FileMeta:
        number = len(self.data) + 1
        sst = write_sst(table, rows, file_id=f"{number:032x}", origin="car-1", chooser=Chooser())
        self.data[sst.meta.file_id] = sst.data
        return replace(sst.meta, sequence=number)

    def read(self, meta: FileMeta, start: int, length: int) -> bytes:
        self.reads += 1
        return self.data[meta.file_id][start : start + length]


def dealt(
    made: Made, table: TableSchema, statements: Sequence[Statement], cuts: Sequence[int], memory: int
) -> TableView:
    """Statements up to each of `cuts` in a file of their own; of what is left, each in memory; at least `memory`."""
    last = len(statements) - memory
    ends = sorted({cut for cut in cuts if 0 < cut < last} | ({last} if last > 0 else set()))
    files = []
    for begin, end in zip([0, *ends], ends, strict=False):
        files.append(made.add(table, as_rows(statements[begin:end])))
    return TableView(table, files, [as_rows([statement]) for statement in statements[ends[-1] if ends else 0 :]])


def ask(
    made: Made, sql: str, view: TableView, now_ms: int = EPOCH_MS, settings: QuerySettings | None = None
) -> pa.Table:
    [answer] = ask_all(made, [sql], view, now_ms, settings)
    return answer


def ask_all(
    made: Made, queries: Sequence[str], view: TableView, now_ms: int = EPOCH_MS, settings: QuerySettings | None = None
) -> list[pa.Table]:
    """By one engine, which is most of what a small query costs."""

    async def main() -> list[pa.Table]:
        files = LocalFiles(made.read)
        engine = QueryEngine(files, settings=settings or QuerySettings(threads=1))
        try:
            return [await engine.query(sql, {view.schema.name: view}, now_ms) for sql in queries]
        finally:
            engine.close()
            files.close()

    return asyncio.run(main())
