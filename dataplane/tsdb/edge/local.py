"""The edge database inside a Python application, without a process or a socket: Arrow in, Arrow out.

    with open_edge("/data/db") as db:
        db.create_table("engine", {"ts": "timestamp[ms]", "rpm": "float32"}, time="ts", decimals={"rpm": 1})
        db.write("engine", {"ts": [1_760_000_000_000], "rpm": [3_200.0]})
        db.query("SELECT max(rpm) FROM engine")           # a pyarrow.Table

Calls may come from any thread. A write returns when the rows are as durable as the table's log promises: several
threads' writes share one sync, so that many small writes go faster from several threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pyarrow as pa

from dataplane.tsdb.edge.database import EdgeDatabase, EdgeSettings
from dataplane.tsdb.edge.opening import DEFAULT_SETTINGS, opened
from dataplane.tsdb.edge.store import MEMORY_BYTES_MAX
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, TableSchema
from dataplane.tsdb.sst.writer import arrow_schema
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, NotFound

T = TypeVar("T")
DEFAULT_OPTIONS = TableOptions()
NO_DECIMALS: Mapping[str, int] = MappingProxyType({})


class LocalEdge:
    """An open edge database; see the module. Errors are those of `providers/base/errors.py`."""

    def __init__(self, database: EdgeDatabase, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._loop = loop

    def create_table(
        self,
        name: str,
        columns: Mapping[str, str],
        *,
        time: str,
        tags: Sequence[str] = (),
        decimals: Mapping[str, int] = NO_DECIMALS,
        options: TableOptions = DEFAULT_OPTIONS,
        if_not_exists: bool = True,
    ) -> TableSchema:
        """Make a table. `columns`: types by name, as `ColumnType` names them; `time`, the time index, is never null.
        `decimals`: to how many digits behind the point values of which columns are rounded.

        Raises:
            Invalid: a type that is none, or columns that make no table. AlreadyExists: `if_not_exists` is false.
        """
        found = []
        for strange in {time, *tags, *decimals} - columns.keys():
            raise Invalid(f"table {name!r} has no column {strange!r}")
        for at, (column, kind) in enumerate(columns.items(), 1):
            role = ColumnRole.TIME if column == time else ColumnRole.TAG if column in tags else ColumnRole.FIELD
            try:
                type_ = ColumnType(kind)
            except ValueError as error:
                hint = f"one of: {', '.join(ColumnType)}"
                raise Invalid(f"column {column!r} of table {name!r}: {kind!r} is no type", hint=hint) from error
            nullable = role is not ColumnRole.TIME
            found.append(Column(at, column, type_, role, nullable, decimals.get(column)))
        return self._wait(self._database.create_table(name, found, options, if_not_exists=if_not_exists))

    def tables(self) -> Sequence[TableSchema]:
        """All tables, by name."""
        return self._database.tables()

    def write(self, table: str, rows: pa.Table | pa.RecordBatch | Mapping[str, Sequence[Any]]) -> int:
        """Store rows, or columns of Python values; returns how many, once they are as durable as the table promises.

        Raises:
            NotFound: no such table. Invalid: not rows of it. Full: memory stayed full, or the flash is; nothing was
                taken.
        """
        return self._wait(self._database.write([Rows(table, self._arrow(table, rows))]))

    def delete(self, table: str, keys: pa.Table | pa.RecordBatch | Mapping[str, Sequence[Any]]) -> int:
        """Delete the rows with these tags and times; returns how many keys there were."""
        return self._wait(self._database.delete(table, self._arrow(table, keys)))

    def query(self, select: str) -> pa.Table:
        """Run one SELECT or EXPLAIN, in DuckDB's dialect."""
        return self._wait(self._database.query(select))

    def flush(self, table: str | None = None) -> None:
        """Put what is in memory into files; of one table, or of all."""
        self._wait(self._database.flush(table))

    def _arrow(self, table: str, rows: pa.Table | pa.RecordBatch | Mapping[str, Sequence[Any]]) -> pa.Table:
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, pa.RecordBatch):
            return pa.Table.from_batches([rows])
        schema = self._database.table(table)
        if schema is None:
            raise NotFound(f"there is no table {table!r}")
        types = arrow_schema(schema)
        try:
            return pa.table(
                {name: pa.array(v, types.field(name).type if name in types.names else None) for name, v in rows.items()}
            )
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise Invalid(f"these are no rows of table {table!r}: {error}") from error

    def _wait(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()


@contextlib.contextmanager
def open_edge(
    folder: str | Path,
    name: str = "edge",
    *,
    memory_bytes_max: int = MEMORY_BYTES_MAX,
    settings: EdgeSettings = DEFAULT_SETTINGS,
    uploads: bool = True,
) -> Iterator[LocalEdge]:
    """Open the database in `folder`, made if need be; at the end of the block it is closed cleanly. `uploads`: false,
    if nobody ever uploads its files: what is older than its table's `ttl` then leaves the flash unsent.

    Raises:
        Unavailable: another process has it open. Corrupt: it is damaged. Full: no room.
    """
    path = Path(folder)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="edge-loop", daemon=True)
    thread.start()
    context = opened(
        path,
        name,
        clock=SystemClock(),
        rng=SystemRng(),
        memory_bytes_max=memory_bytes_max,
        settings=settings,
        uploads=uploads,
    )

    def wait(what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, loop).result()

    try:
        database = wait(_entered(context))
        try:
            yield LocalEdge(database, loop)
        finally:
            wait(_left(context))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _entered(context: contextlib.AbstractAsyncContextManager[T]) -> T:
    return await context.__aenter__()


async def _left(context: contextlib.AbstractAsyncContextManager[Any]) -> None:
    await context.__aexit__(None, None, None)
