"""A small honest database in memory: rows are kept by DuckDB, which also merges them and answers queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from dataplane.tsdb.engine import Database, Rows
from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions, TableSchema, widened, with_columns
from dataplane.tsdb.sst.decimals import taken_in
from dataplane.tsdb.sst.writer import conformed
from providers.base.errors import AlreadyExists, Invalid, NotFound

LOCKED = {
    "enable_external_access": "false",
    "lock_configuration": "true",
    "python_enable_replacements": "false",
    "threads": "1",
}


def arrow_schema(schema: TableSchema) -> pa.Schema:
    return pa.schema([(column.name, column.type.arrow) for column in schema.columns])


class FakeDatabase:
    role = "cloud"

    def __init__(self, name: str = "fleet") -> None:
        self.name = name
        self.schemas: dict[str, TableSchema] = {}
        self.rows: dict[str, pa.Table] = {}
        self.queries: list[str] = []

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(":memory:", config=dict(LOCKED))

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
        if name in self.schemas:
            if if_not_exists:
                return self.schemas[name]
            raise AlreadyExists(f"table {name!r} exists")
        numbered = tuple(replace(column, id=at) for at, column in enumerate(columns, start=1))
        self.schemas[name] = TableSchema(name, numbered, options=options)
        self.rows[name] = arrow_schema(self.schemas[name]).empty_table()
        return self.schemas[name]

    async def drop_table(self, name: str, *, if_exists: bool = False) -> bool:
        if name not in self.schemas and if_exists:
            return False
        self._table(name)
        del self.schemas[name], self.rows[name]
        return True

    async def truncate_table(self, name: str) -> None:
        self.rows[name] = arrow_schema(self._table(name)).empty_table()

    async def add_columns(self, name: str, columns: Sequence[Column]) -> TableSchema:
        self.schemas[name] = with_columns(self._table(name), tuple(columns))
        for column in columns:
            self.rows[name] = self.rows[name].append_column(
                column.name, pa.nulls(len(self.rows[name]), column.type.arrow)
            )
        return self.schemas[name]

    async def widen_column(self, name: str, column: str, wider: ColumnType) -> TableSchema:
        self.schemas[name] = widened(self._table(name), column, wider)
        self.rows[name] = self.rows[name].cast(arrow_schema(self.schemas[name]))
        return self.schemas[name]

    async def set_options(self, name: str, options: TableOptions) -> TableSchema:
        self.schemas[name] = replace(self._table(name), options=options)
        return self.schemas[name]

    async def write(self, rows: Sequence[Rows]) -> int:
        for each in rows:
            schema = self._table(each.table)
            plain = arrow_schema(schema)
            added = taken_in(schema, conformed(schema, each.data)).cast(plain)
            together = pa.concat_tables([self.rows[each.table], added])
            self.rows[each.table] = together if schema.options.append_mode else self._merged(schema, together)
        return sum(len(each.data) for each in rows)

    def _merged(self, schema: TableSchema, rows: pa.Table) -> pa.Table:
        with self.connection.cursor() as connection:
            connection.register("r", rows.append_column("__n", pa.array(range(len(rows)), pa.int64())))
            keys = ", ".join('"' + name.replace('"', '""') + '"' for name in [*schema.tags, schema.time.name])
            last = f"SELECT __n FROM r QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY __n DESC) = 1"
            kept = connection.sql(f"{last} ORDER BY __n").to_arrow_table().column(0)
        return rows.take(kept)

    async def delete(self, table: str, keys: pa.Table) -> int:
        schema = self._table(table)
        if schema.options.append_mode:
            raise Invalid(f"table {table!r} appends")
        names = [*schema.tags, schema.time.name]
        gone = {tuple(row) for row in zip(*(plain(keys, name) for name in names), strict=True)}
        there = list(zip(*(plain(self.rows[table], name) for name in names), strict=True))
        self.rows[table] = self.rows[table].filter(pa.array([row not in gone for row in there], pa.bool_()))
        return len(keys)

    async def query(self, select: str) -> pa.Table:
        self.queries.append(select)
        with self.connection.cursor() as connection:
            for name, rows in self.rows.items():
                connection.register(name, rows)
            try:
                return connection.sql(select).to_arrow_table()
            except duckdb.Error as error:
                raise Invalid(str(error).splitlines()[0]) from None

    async def flush(self, table: str | None = None) -> None:
        pass


def plain(table: pa.Table, name: str) -> list[Any]:
    """Values; of timestamps the numbers."""
    column = table.column(name)
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()


def _is_a_database(fake: FakeDatabase) -> Database:
    return fake
