"""A database in memory for the protocols' tests: it takes rows as both sides do (`conformed`), and DuckDB asks it.

Every call gives others a turn first, as a real one does, so that whoever decides on what it saw before is found out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import duckdb
import pyarrow as pa

from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions, TableSchema, widened, with_columns
from dataplane.tsdb.sst.order import DELETE, OP_TYPE, PUT, key_columns, ordered
from dataplane.tsdb.sst.writer import conformed
from providers.base.errors import AlreadyExists, Invalid, NotFound, YunheError


class MemoryDatabase:
    """A `Database`."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.role = "edge"
        self.schemas: dict[str, TableSchema] = {}
        self.batches: dict[str, list[pa.Table]] = {}
        self.writes = 0
        self.refuse: YunheError | None = None
        """What the next writes raise."""
        self.held: asyncio.Event | None = None
        """Writes wait for it."""
        self.waiting = 0

    def tables(self) -> Sequence[TableSchema]:
        return [self.schemas[name] for name in sorted(self.schemas)]

    def table(self, name: str) -> TableSchema | None:
        return self.schemas.get(name)

    def _table(self, name: str) -> TableSchema:
        if name not in self.schemas:
            raise NotFound(f"there is no table {name!r}")
        return self.schemas[name]

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        await asyncio.sleep(0)
        if name in self.schemas:
            if if_not_exists:
                return self.schemas[name]
            raise AlreadyExists(f"table {name!r} exists")
        numbered = tuple(replace(column, id=at) for at, column in enumerate(columns, 1))
        self.schemas[name] = TableSchema(name, numbered, options=options)
        self.batches[name] = []
        return self.schemas[name]

    async def drop_table(self, name: str, *, if_exists: bool = False) -> bool:
        await asyncio.sleep(0)
        if if_exists and name not in self.schemas:
            return False
        self._table(name)
        del self.schemas[name], self.batches[name]
        return True

    async def truncate_table(self, name: str) -> None:
        self._table(name)
        self.batches[name] = []

    async def add_columns(self, name: str, columns: Sequence[Column]) -> TableSchema:
        await asyncio.sleep(0)
        schema = self._table(name)
        fresh = []
        for column in columns:
            there = schema.column(column.name)
            if there is None:
                fresh.append(column)
            elif there.type is not column.type:
                raise Invalid(f"column {column.name!r} is {there.type} already")
        if fresh:
            self.schemas[name] = with_columns(schema, tuple(fresh))
        return self.schemas[name]

    async def widen_column(self, name: str, column: str, wider: ColumnType) -> TableSchema:
        self.schemas[name] = widened(self._table(name), column, wider)
        return self.schemas[name]

    async def set_options(self, name: str, options: TableOptions) -> TableSchema:
        self.schemas[name] = replace(self._table(name), options=options)
        return self.schemas[name]

    async def write(self, rows: Sequence[Rows]) -> int:
        self.waiting += 1
        await asyncio.sleep(0)
        if self.held is not None:
            await self.held.wait()
        self.waiting -= 1
        if self.refuse is not None:
            raise self.refuse
        taken = [(one.table, conformed(self._table(one.table), one.data)) for one in rows]
        for name, data in taken:
            data.validate(full=True)
            self.batches[name].append(data)
        self.writes += 1
        return sum(len(data) for _, data in taken)

    async def delete(self, table: str, keys: pa.Table) -> int:
        schema = self._table(table)
        keys = keys.select(key_columns(schema))
        self.batches[table].append(keys.append_column(OP_TYPE, pa.array([DELETE] * len(keys), pa.uint8())))
        return len(keys)

    def rows(self, name: str) -> pa.Table:
        """What a query sees of the table."""
        schema = self._table(name)
        parts = []
        for batch in self.batches[name]:
            if OP_TYPE not in batch.column_names:
                batch = batch.append_column(OP_TYPE, pa.array([PUT] * len(batch), pa.uint8()))
            parts.append(conformed(schema, batch))
        empty = pa.table({c.name: pa.array([], c.type.arrow) for c in schema.columns})
        if not parts:
            return empty
        merged = ordered(schema, pa.concat_tables(parts, promote_options="default"))
        puts = merged.filter(pa.compute.equal(merged.column(OP_TYPE), PUT)).drop_columns([OP_TYPE])
        return pa.table({c.name: puts.column(c.name) for c in schema.columns})

    async def query(self, select: str) -> pa.Table:
        with duckdb.connect() as connection:
            for name in self.schemas:
                connection.register(name, self.rows(name))
            try:
                return connection.sql(select).to_arrow_table()
            except (duckdb.Error, AttributeError) as error:
                raise Invalid(str(error).splitlines()[0]) from error

    async def flush(self, table: str | None = None) -> None:
        return None
