"""What protocols see of a database, whichever side it is: `edge/database.py` and `cloud/database.py` implement it.

Rows travel as Arrow tables that hold columns of one database table by name: its tags and time index whole, of its
fields any; what is left out is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions, TableSchema


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows for one table."""

    table: str
    data: pa.Table


class Database(Protocol):
    """A database. Obligations, by number:

    1. *An ack is what the table's WAL policy says*: after `write` returns, the rows survive a power cut if the policy
       is `always`, and are in every later `query`.
    2. *All or nothing, a table*: of a table's rows in a `write` that raises none are shown by a later query. An outcome
       that cannot be known is `OutcomeUnknown`; writing the same rows again is harmless but in tables that append.
    3. *A query reads one moment*: of a batch of imported files all or none, of a `write` all or none of each table.
    4. *Bounded*: `write` waits while memory is full (back-pressure), then raises `Full`; it never drops rows.

    Every method may raise `Invalid` (one clear sentence; nothing was changed), `Unavailable`, or `Fenced`: another node
    owns this database now.
    """

    @property
    def name(self) -> str: ...

    @property
    def role(self) -> str:
        """`edge` or `cloud`."""
        ...

    def tables(self) -> Sequence[TableSchema]:
        """All tables, by name."""
        ...

    def table(self, name: str) -> TableSchema | None: ...

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        """Ids of `columns` count from 1 in their order, whatever they say.

        Raises:
            AlreadyExists: the name is taken, and `if_not_exists` is false.
        """
        ...

    async def drop_table(self, name: str, *, if_exists: bool = False) -> bool:
        """Whether there was one.

        Raises:
            NotFound: there is none, and `if_exists` is false.
        """
        ...

    async def truncate_table(self, name: str) -> None:
        """Remove all its rows. Raises NotFound."""
        ...

    async def add_columns(self, name: str, columns: Sequence[Column]) -> TableSchema:
        """Nullable fields, under fresh ids. A column that is there already with the same type is passed over.

        Raises:
            NotFound: no such table.
        """
        ...

    async def widen_column(self, name: str, column: str, wider: ColumnType) -> TableSchema:
        """Raises NotFound: no such table or column."""
        ...

    async def set_options(self, name: str, options: TableOptions) -> TableSchema:
        """Raises NotFound."""
        ...

    async def write(self, rows: Sequence[Rows]) -> int:
        """Store rows of existing tables; returns how many.

        Raises:
            NotFound: no such table. Full: memory stayed full.
        """
        ...

    async def delete(self, table: str, keys: pa.Table) -> int:
        """Delete the rows with these tags and times; returns how many keys there were.

        Raises:
            NotFound: no such table. Invalid: the table appends.
        """
        ...

    async def query(self, select: str) -> pa.Table:
        """Run one SELECT or EXPLAIN (DuckDB's dialect, over this database's tables).

        Raises:
            Invalid: it cannot be understood, names what is not there, or reads anything but this database's tables.
        """
        ...

    async def flush(self, table: str | None = None) -> None:
        """Put what is in memory into files; of one table, or of all."""
        ...
