"""A database that keeps what it is given, and a ring before it: for tests, and as a process for other people's clients.

`python -m tests.dataplane.tsdb.ring.recorder SOCKET` serves until its standard input ends, then prints what it holds:
JSON, a list of rows a table, each row a list in the order of the table's columns.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataplane.tsdb.engine import Rows
from dataplane.tsdb.ring.server import RingServer, RingSettings
from dataplane.tsdb.schema.tables import Column, TableOptions, TableSchema
from dataplane.tsdb.sst.decimals import taken_in
from dataplane.tsdb.sst.writer import conformed
from providers.base.clock import SystemClock
from providers.base.errors import AlreadyExists, NotFound


class Recorder:
    """Of `Database` what the ring uses. Every row that it takes fits its table, as a real one demands."""

    def __init__(self) -> None:
        self.schemas: dict[str, TableSchema] = {}
        self.rows: dict[str, list[pa.Table]] = {}
        self.writes = 0
        self.failing: list[Exception] = []
        """Raised by the next writes, one each."""
        self.open = asyncio.Event()
        """Writes wait for it."""
        self.open.set()

    def table(self, name: str) -> TableSchema | None:
        return self.schemas.get(name)

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        if name in self.schemas and not if_not_exists:
            raise AlreadyExists(name)
        return self.schemas.setdefault(name, TableSchema(name, tuple(columns), options=options))

    async def add_columns(self, name: str, columns: Sequence[Column]) -> TableSchema:
        old = self.schemas[name]
        fresh = [
            Column(len(old.columns) + at, c.name, c.type, c.role, decimals=c.decimals)
            for at, c in enumerate(columns, 1)
        ]
        self.schemas[name] = TableSchema(name, (*old.columns, *fresh), old.version + 1, old.options)
        return self.schemas[name]

    async def write(self, rows: Sequence[Rows]) -> int:
        self.writes += 1
        await self.open.wait()
        if self.failing:
            raise self.failing.pop(0)
        for its in rows:
            if its.table not in self.schemas:
                raise NotFound(f"there is no table {its.table!r}")
        schemas = self.schemas
        conform = [(i.table, taken_in(schemas[i.table], conformed(schemas[i.table], i.data))) for i in rows]
        for name, data in conform:
            data.validate(full=True)
            self.rows.setdefault(name, []).append(data)
        return sum(len(data) for _, data in conform)

    def all(self, name: str) -> pa.Table:
        """All rows of a table, in the order in which they came."""
        schema = self.schemas[name]
        names = [column.name for column in schema.columns]
        parts = [part for part in self.rows.get(name, []) if len(part.column_names) == len(names)]
        older = [part for part in self.rows.get(name, []) if len(part.column_names) < len(names)]
        return pa.concat_tables([*older, *parts], promote_options="default") if parts or older else _nothing(schema)

    def plain(self, name: str) -> list[list[Any]]:
        """As `all`, as Python's values; times as numbers."""
        table = self.all(name)
        columns = [
            (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
            for column in table.columns
        ]
        return [list(row) for row in zip(*columns, strict=True)]


def _nothing(schema: TableSchema) -> pa.Table:
    return pa.schema([(column.name, column.type.arrow) for column in schema.columns]).empty_table()


async def until(holds: Callable[[], bool], within_s: float = 10) -> None:
    """Return once it holds."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)


QUICK = RingSettings(turn_ms=5)


@asynccontextmanager
async def served(folder: Path, settings: RingSettings = QUICK) -> AsyncIterator[tuple[Recorder, RingServer, Path]]:
    """A ring before a fresh recorder."""
    path = folder / "ring.sock"
    recorder = Recorder()
    server = RingServer(recorder, path, clock=SystemClock(), settings=settings)  # type: ignore[arg-type]
    await server.start()
    try:
        yield recorder, server, path
    finally:
        await server.close()


async def _main(path: Path) -> None:
    async with served(path.parent) as (recorder, server, _):
        path.with_name("ready").touch()
        await asyncio.to_thread(sys.stdin.read)
        await server.close()
        json.dump({name: recorder.plain(name) for name in sorted(recorder.schemas)}, sys.stdout, default=bytes.hex)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
