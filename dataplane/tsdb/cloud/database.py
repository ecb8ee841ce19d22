"""The cloud side as protocols see it (`engine.Database`): of several nodes on one bucket, one owns the database.

    node.py         follows the manifest; takes over when the owner is silent (`ownership.py`), recovers (`recovery.py`)
    tenure.py       the owner's epoch: WAL, memory (`memory.py`), flush
    this file       writes and changes go to the tenure; queries see one moment of manifest and memory
    housekeeping.py import, compaction, retention, collection: by the owner

Writes and changes are taken by the owner alone; every other node answers `Fenced`, with the owner's name and address,
and nothing is passed on: a client goes there. Queries are answered by every node. The owner's see all that is acked;
another's see what is in files as of its last look at the manifest, `staleness_ms` ago at most, so without the rows that
the owner has in memory. An owner that is deposed without knowing (paused, cut off from the bucket) answers queries as
of then until its next turn; it acks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from dataplane.ledger.entry import Command
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import table_changed, table_created, table_dropped, table_truncated
from dataplane.tsdb.cloud.manifest_state import ManifestState, TableState
from dataplane.tsdb.cloud.node import Node
from dataplane.tsdb.cloud.ownership import hint_of
from dataplane.tsdb.cloud.tenure import TableRows, Tenure
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.query.scan import TableView
from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions, TableSchema, at_least, grown
from dataplane.tsdb.sst.memtable import with_operation
from dataplane.tsdb.sst.order import DELETE, key_columns
from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Conflict, Fenced, Invalid, NotFound, Unavailable

CHANGES_TRIED_MAX = 8
"""Tries of a change of a table whose schema importers change at the same time."""


class Queries(Protocol):
    """What answers a SELECT over moments of tables: the query engine, wrapped."""

    async def __call__(self, select: str, tables: Mapping[str, TableView], now_ms: int) -> pa.Table: ...


class CloudDatabase:
    """`engine.Database`; see the module."""

    def __init__(
        self,
        name: str,
        node: Node,
        *,
        clock: Clock,
        queries: Queries,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        """`addresses`: of the nodes by name, for clients that have come to the wrong one."""
        self._name = name
        self._node = node
        self._clock = clock
        self._queries = queries
        self._addresses = addresses or {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def role(self) -> str:
        return "cloud"

    @property
    def node(self) -> Node:
        return self._node

    @property
    def _manifest(self) -> Manifest:
        return self._node.manifest

    @property
    def owns(self) -> bool:
        """Whether this node takes writes."""
        return self._node.tenure is not None and self._node.tenure.dead is None

    @property
    def owner(self) -> tuple[str, str]:
        """Name and address of the owner, each empty where it is not known."""
        owner = self._manifest.state.owner
        return owner, self._addresses.get(owner, "")

    @property
    def staleness_ms(self) -> float:
        """How long ago the manifest was looked at; what came since is not in a query's answer, at a node that does not
        own the database."""
        return 0.0 if self.owns else self._clock.monotonic_ms() - self._manifest.last_read_ms

    # ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def tables(self) -> Sequence[TableSchema]:
        """All tables, by name."""
        return [table.schema for _, table in sorted(self._manifest.state.tables.items())]

    def table(self, name: str) -> TableSchema | None:
        found = self._manifest.state.tables.get(name)
        return found.schema if found is not None else None

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        """As `engine.Database`."""
        tenure = self._tenure()
        numbered = tuple(replace(column, id=at) for at, column in enumerate(columns, 1))
        schema = TableSchema(name, numbered, options=options)

        def decide(state: ManifestState) -> Command | None:
            if name not in state.tables:
                return table_created(tenure.epoch, schema)
            if if_not_exists:
                return None
            raise AlreadyExists(f"there is a table {name!r} already")

        await self._manifest.commit_one(decide)
        return self._there(name).schema

    async def drop_table(self, name: str, *, if_exists: bool = False) -> bool:
        """As `engine.Database`."""
        tenure = self._tenure()
        if name not in self._manifest.state.tables:
            if if_exists:
                return False
            raise NotFound(f"there is no table {name!r}")
        async with tenure.alone(name):
            logged, now = tenure.void(name), self._clock.wall_ms()
            return await self._manifest.commit_one(
                lambda state: table_dropped(tenure.epoch, name, now, logged) if name in state.tables else None
            )

    async def truncate_table(self, name: str) -> None:
        """As `engine.Database`."""
        tenure = self._tenure()
        self._there(name)
        async with tenure.alone(name):
            logged, now = tenure.void(name), self._clock.wall_ms()
            await self._manifest.commit_one(
                lambda state: table_truncated(tenure.epoch, name, now, logged) if name in state.tables else None
            )

    async def add_columns(self, name: str, columns: Sequence[Column]) -> TableSchema:
        """As `engine.Database`."""
        return await self._change(name, lambda schema: grown(schema, columns))

    async def widen_column(self, name: str, column: str, wider: ColumnType) -> TableSchema:
        """As `engine.Database`."""
        return await self._change(name, lambda schema: at_least(schema, column, wider))

    async def set_options(self, name: str, options: TableOptions) -> TableSchema:
        """As `engine.Database`."""

        def change(schema: TableSchema) -> TableSchema:
            if schema.options == options:
                return schema
            return replace(schema, version=schema.version + 1, options=options)

        return await self._change(name, change)

    async def _change(self, name: str, change: Callable[[TableSchema], TableSchema]) -> TableSchema:
        """Rows in memory are flushed under the present version first."""
        tenure = self._tenure()
        if change(self._there(name).schema) is self._there(name).schema:
            return self._there(name).schema

        def decide(state: ManifestState) -> Command | None:
            table = state.tables.get(name)
            if table is None:
                raise NotFound(f"there is no table {name!r}")
            changed = change(table.schema)
            return table_changed(tenure.epoch, changed) if changed is not table.schema else None

        async with tenure.alone(name):
            await tenure.flush_alone(name)
            for attempt in range(CHANGES_TRIED_MAX):
                try:
                    await self._manifest.commit_one(decide)
                    break
                except Conflict:
                    if attempt + 1 == CHANGES_TRIED_MAX:
                        raise
        return self._there(name).schema

    def _there(self, name: str) -> TableState:
        found = self._manifest.state.tables.get(name)
        if found is None:
            raise NotFound(f"there is no table {name!r}")
        return found

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, rows: Sequence[Rows]) -> int:
        """As `engine.Database`; of several tables all or none."""
        tenure = self._tenure()
        parts: dict[str, list[pa.Table]] = {}
        for item in rows:
            self._there(item.table)
            if len(item.data):
                parts.setdefault(item.table, []).append(item.data)
        if parts:
            await tenure.write([TableRows(name, self._one(name, some)) for name, some in parts.items()])
        return sum(len(item.data) for item in rows)

    def _one(self, name: str, parts: Sequence[pa.Table]) -> pa.Table:
        if len(parts) == 1:
            return parts[0]
        try:
            return pa.concat_tables(parts, promote_options="default")
        except pa.ArrowException as error:
            raise Invalid(f"rows of table {name!r} do not agree on a column's type: {str(error)[:200]}") from error

    async def delete(self, table: str, keys: pa.Table) -> int:
        """As `engine.Database`."""
        tenure = self._tenure()
        schema = self._there(table).schema
        if schema.options.append_mode:
            raise Invalid(f"table {table!r} appends: none of its rows can be deleted")
        missing = [name for name in key_columns(schema) if name not in keys.column_names]
        if missing:
            raise Invalid(f"a delete from table {table!r} needs its column {missing[0]!r}")
        if len(keys):
            rows = with_operation(keys.select(key_columns(schema)), DELETE)
            await tenure.write([TableRows(table, rows, deletes=True)])
        return len(keys)

    async def query(self, select: str) -> pa.Table:
        """As `engine.Database`; see the module for what another node than the owner answers."""
        return await self._queries(select, self.moment(), self._clock.wall_ms())

    def moment(self) -> dict[str, TableView]:
        """All tables at this moment. Files that a compaction replaces stay readable for a grace period."""
        state, tenure = self._manifest.state, self._node.tenure
        own = tenure if tenure is not None and tenure.epoch == state.epoch else None
        return {
            name: TableView(table.schema, list(table.files.values()), own.rows(table) if own is not None else ())
            for name, table in state.tables.items()
        }

    async def flush(self, table: str | None = None) -> None:
        """As `engine.Database`."""
        tenure = self._tenure()
        if table is not None:
            self._there(table)
        await tenure.flush(None if table is None else [table])

    def _tenure(self) -> Tenure:
        """Raises Fenced: another node owns the database. Unavailable: nobody serves it now."""
        tenure = self._node.tenure
        if tenure is not None and tenure.dead is None:
            return tenure
        owner, address = self.owner
        if owner and owner != self._node.name:
            raise Fenced(
                f"node {self._node.name!r} does not own database {self._name!r}",
                hint=hint_of(owner, self._addresses),
                owner=owner,
                address=address,
            )
        raise Unavailable(f"database {self._name!r} has no owner that serves yet", hint="try again in a moment")
