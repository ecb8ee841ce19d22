"""SQL as GreptimeDB speaks it, run against a `Database`. Begin at `execute`.

    text ── lexer ──► tokens ── split at ';' ──► by the first word:
      CREATE ALTER DROP TRUNCATE ── ddl ──► Database        INSERT ── insert ──► Database.write
      SELECT WITH EXPLAIN ── select ──► Database.query      DELETE ── keys by a SELECT ──► Database.delete
                               └─► information_schema       SHOW DESCRIBE ── show;  SET USE ── session

Statements run one after the other; each is its own transaction, and the first that fails ends the request. What is not
there is refused by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols import ddl, information_schema, show
from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.insert import found, read_insert, rows
from dataplane.tsdb.protocols.lexer import Token, quoted_name, split, tokens
from dataplane.tsdb.protocols.select import CATALOG, condition, rewritten
from dataplane.tsdb.protocols.session import DEFAULT_DATABASE, Session, read_set
from dataplane.tsdb.protocols.sql_types import with_options
from dataplane.tsdb.schema.tables import TableSchema, said_decimals
from providers.base.clock import Clock, SystemClock
from providers.base.errors import AlreadyExists, Invalid, NotFound, YunheError

STATEMENTS_MAX = 100
"""Of one request."""
DELETED_ROWS_MAX = 1_000_000
"""Of one DELETE: their keys are in memory at once."""
_IN_A_THREAD_CHARS = 1 << 14
"""A longer text is read in a thread: its tokens take more than a few milliseconds."""
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one statement."""

    data: pa.Table | None = None
    """Rows, if it is one that answers with rows."""
    affected: int = 0
    """Rows written or keys deleted."""


async def execute(
    database: Database, sql: str, *, session: Session | None = None, clock: Clock = _CLOCK
) -> list[Outcome]:
    """Run all statements of `sql`; one outcome each.

    Raises:
        Invalid: a statement cannot be understood or is not there (`Unsupported`). NotFound, AlreadyExists, Full,
            Unavailable, Fenced: as the database's. Of several statements, those before have taken effect: the message
            says which one it was.
    """
    session = session or Session(database=database.name)
    statements = await read(sql, session)
    outcomes: list[Outcome] = []
    for at, statement in enumerate(statements, start=1):
        try:
            outcomes.append(await run(database, statement, sql, session=session, clock=clock))
        except YunheError as error:
            if len(statements) > 1:
                error.message = f"statement {at} of {len(statements)}: {error.message}"
            raise
    return outcomes


async def read(sql: str, session: Session) -> list[list[Token]]:
    """The statements of a request. Raises Invalid: none, too many, or not SQL."""
    statements = await read_any(sql, session)
    if not statements:
        raise Invalid("no SQL statement")
    return statements


async def read_any(sql: str, session: Session) -> list[list[Token]]:
    """The same; none is no error."""
    written = {"backslash_escapes": session.backslash_escapes, "postgres": session.postgres}
    if len(sql) > _IN_A_THREAD_CHARS:
        words = await asyncio.to_thread(tokens, sql, **written)
    else:
        words = tokens(sql, **written)
    statements = split(words)
    if len(statements) > STATEMENTS_MAX:
        raise Invalid(f"{len(statements)} statements in one request, more than {STATEMENTS_MAX}")
    return statements


async def run(
    database: Database, statement: Sequence[Token], sql: str, *, session: Session, clock: Clock = _CLOCK
) -> Outcome:
    """Run one statement of `sql`. Raises as `execute`."""
    return await _Runner(database, session, clock.wall_ms(), Cursor(statement, sql)).run()


def names(database: Database) -> tuple[str, str]:
    """What it answers to."""
    return (database.name, DEFAULT_DATABASE)


def use(database: Database, session: Session, name: str) -> None:
    """What USE does. Raises NotFound: another database."""
    if name not in (*names(database), CATALOG):
        raise _no_database(database, name)
    session.database = name


def _no_database(database: Database, name: str) -> NotFound:
    return NotFound(f"there is no database {name!r}", hint=f"this one is {database.name!r}", database=name)


@dataclass(slots=True)
class _Runner:
    """One statement's."""

    database: Database
    session: Session
    now_ms: int
    cursor: Cursor

    async def run(self) -> Outcome:
        cursor = self.cursor
        if cursor.sees("(") or any(cursor.sees(word) for word in ("SELECT", "WITH", "VALUES")):
            return await self._select(cursor.tokens)
        word = cursor.next("a statement").text.upper()
        if word == "EXPLAIN" and not self._names_a_table():
            return await self._explain()
        if word == "INSERT":
            return await self._insert()
        if word == "DELETE":
            return await self._delete()
        if word == "SHOW":
            return Outcome(self._show())
        if word in ("DESCRIBE", "DESC", "EXPLAIN"):
            cursor.takes("TABLE")
            named = ddl.table_name(cursor)
            cursor.end()
            return Outcome(show.describe(self._table(named)))
        if word == "USE":
            use(self.database, self.session, cursor.name("a database"))
            cursor.end()
            return Outcome()
        if word == "SET":
            read_set(cursor, self.session)
            return Outcome()
        if word in ("BEGIN", "COMMIT", "ROLLBACK") or (word == "START" and cursor.sees("TRANSACTION")):
            return Outcome()  # each statement is its own transaction: clients send these unasked
        if word in _CHANGES:
            return await self._change(word)
        if word in _NOT_THERE:
            raise Unsupported(f"{word} is not there: {_NOT_THERE[word]}")
        raise Unsupported(f"statement {word[:40]!r} is not there", hint="docs/sql.md lists those that are")

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _databases(self) -> tuple[str, str]:
        return names(self.database)

    @property
    def _shown(self) -> str:
        """The database's name as this client uses it: one that connected to `public` finds its tables there."""
        named = self.session.database
        return named if named in self._databases and named is not None else self.database.name

    def _table(self, named: tuple[str | None, str]) -> TableSchema:
        """Raises NotFound."""
        name = self._here(named)
        schema = self.database.table(name)
        if schema is None:
            alike = [each for each in self.database.tables() if each.name.lower() == name.lower()]
            if len(alike) != 1:
                raise NotFound(f"there is no table {name!r} in database {self.database.name!r}")
            schema = alike[0]
        return schema

    def _here(self, named: tuple[str | None, str]) -> str:
        database, name = named
        if database is not None and database not in self._databases:
            raise _no_database(self.database, database)
        return name

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _select(self, statement: Sequence[Token], before: str = "") -> Outcome:
        select = rewritten(
            statement, self.cursor.sql, databases=self._databases, session=self.session, now_ms=self.now_ms
        )
        if not select.of_catalog:
            return Outcome(await self.database.query(before + select.sql))
        if before:
            raise Unsupported(f"EXPLAIN of a query of {CATALOG} is not there")
        shown, schemas = self._shown, self.database.tables()
        made = lambda: information_schema.prefixed(information_schema.catalog(shown, schemas))  # noqa: E731
        return Outcome(await information_schema.ask(made, select.sql))

    def _names_a_table(self) -> bool:
        """Whether EXPLAIN is MySQL's other word for DESCRIBE here."""
        after = self.cursor.peek()
        words = ("SELECT", "WITH", "ANALYZE", "VERBOSE", "FORMAT", "VALUES", "(")
        return after is not None and not any(self.cursor.sees(word) for word in words)

    async def _explain(self) -> Outcome:
        analyze = self.cursor.takes("ANALYZE")
        self.cursor.takes("VERBOSE")
        if self.cursor.sees("FORMAT") or self.cursor.sees("(", "FORMAT"):
            raise Unsupported("EXPLAIN FORMAT is not there: only EXPLAIN [ANALYZE]")
        statement = self.cursor.tokens[self.cursor.at :]
        if not any(self.cursor.sees(word) for word in ("SELECT", "WITH", "VALUES", "(")):
            raise self.cursor.unexpected("a SELECT")
        return await self._select(statement, "EXPLAIN ANALYZE " if analyze else "EXPLAIN ")

    def _show(self) -> pa.Table:
        cursor = self.cursor
        full = cursor.takes("FULL")
        cursor.takes("EXTENDED")
        cursor.takes("GLOBAL") or cursor.takes("SESSION")
        if cursor.takes("TABLES"):
            if cursor.takes("FROM") or cursor.takes("IN"):
                database = cursor.name("a database")
                schemas = [] if database == CATALOG else self.database.tables()
                if database != CATALOG:
                    self._here((database, ""))
            else:
                schemas = self.database.tables()
            table = show.table_names(self._shown, schemas, show.read_like(cursor), full)
        elif cursor.takes("DATABASES") or cursor.takes("SCHEMAS"):
            table = show.databases(self._shown, show.read_like(cursor))
        elif cursor.takes("CREATE", "TABLE"):
            schema = self._table(ddl.table_name(cursor))
            statement = show.create_statement(schema)
            table = pa.table({"Table": pa.array([schema.name]), "Create Table": pa.array([statement])})
        elif cursor.takes("COLUMNS") or cursor.takes("FIELDS"):
            schema = self._table(show.read_from(cursor))
            table = show.columns(schema, show.read_like(cursor), full)
        elif cursor.takes("INDEX") or cursor.takes("INDEXES") or cursor.takes("KEYS"):
            table = show.indexes(self._table(show.read_from(cursor)))
        elif cursor.takes("VARIABLES"):
            table = show.variables(self.session, show.read_like(cursor))
        elif cursor.takes("ENGINES") or cursor.takes("STORAGE", "ENGINES"):
            table = show.engines()
        elif cursor.takes("COLLATION"):
            show.read_like(cursor)
            table = show.character_sets("COLLATION")
        elif cursor.takes("CHARACTER", "SET") or cursor.takes("CHARSET"):
            show.read_like(cursor)
            table = show.character_sets("CHARSET")
        else:
            word = cursor.next("what to show").text.upper()
            empty = show.nothing(word)
            if empty is None:
                raise Unsupported(f"SHOW {word[:40]} is not there")
            show.read_like(cursor)
            return empty
        cursor.end()
        return table

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _insert(self) -> Outcome:
        insert = read_insert(self.cursor)
        schema = self._table(insert.table)
        if len(self.cursor.tokens) > _IN_A_THREAD_CHARS // 4:
            batch = await asyncio.to_thread(rows, insert, schema, self.cursor, now_ms=self.now_ms)
        else:
            batch = rows(insert, schema, self.cursor, now_ms=self.now_ms)
        return Outcome(affected=await self.database.write([batch]))

    async def _delete(self) -> Outcome:
        """The keys of what the condition holds for now, then those keys: a row written in between stays."""
        self.cursor.expect("FROM")
        schema = self._table(ddl.table_name(self.cursor))
        if self.cursor.ended:
            raise Invalid(
                f"a DELETE without WHERE would delete all of table {schema.name!r}",
                hint=f"TRUNCATE TABLE {schema.name}, if that is what you want",
            )
        self.cursor.expect("WHERE")
        if self.cursor.ended:
            raise self.cursor.unexpected("a condition")
        if schema.options.append_mode:
            raise Invalid(f"table {schema.name!r} appends: none of its rows can be deleted")
        where = condition(
            self.cursor.tokens[self.cursor.at :],
            self.cursor.sql,
            databases=self._databases,
            session=self.session,
            now_ms=self.now_ms,
        )
        keyed = [*schema.tags, schema.time.name]
        wanted = ", ".join(quoted_name(name) for name in keyed)
        matching = await self.database.query(
            f"SELECT {wanted} FROM {quoted_name(schema.name)} WHERE {where} LIMIT {DELETED_ROWS_MAX + 1}"
        )
        if len(matching) > DELETED_ROWS_MAX:
            raise Invalid(
                f"the DELETE holds for more than {DELETED_ROWS_MAX} rows; none was deleted",
                hint="narrow its time range, and repeat",
            )
        if not len(matching):
            return Outcome()
        types = {column.name: column.type.arrow for column in schema.columns}
        keys = pa.table([matching.column(at).cast(types[name]) for at, name in enumerate(keyed)], names=keyed)
        return Outcome(affected=await self.database.delete(schema.name, keys))

    # ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _change(self, word: str) -> Outcome:
        cursor, database = self.cursor, self.database
        if word == "CREATE":
            if cursor.takes("DATABASE") or cursor.takes("SCHEMA"):
                return self._create_database()
            create = ddl.read_create(cursor)
            name = self._here(create.table)
            alike = [s.name for s in database.tables() if s.name.lower() == name.lower() and s.name != name]
            if alike:
                raise AlreadyExists(f"table {name!r} differs from {alike[0]!r} by case only")
            await database.create_table(name, create.columns, create.options, if_not_exists=create.if_not_exists)
        elif word == "DROP":
            drop = ddl.read_drop(cursor)
            try:
                name = self._table(drop.table).name
            except NotFound:
                if drop.if_exists:
                    return Outcome()
                raise
            await database.drop_table(name, if_exists=drop.if_exists)
        elif word == "TRUNCATE":
            await database.truncate_table(self._table(ddl.read_truncate(cursor).table).name)
        else:
            await self._alter(ddl.read_alter(cursor))
        return Outcome()

    def _create_database(self) -> Outcome:
        """There is one; drivers make sure of it by IF NOT EXISTS."""
        if self.cursor.takes("IF", "NOT", "EXISTS") and self.cursor.name("a database") in self._databases:
            self.cursor.end()
            return Outcome()
        raise Unsupported("CREATE DATABASE is not there: a server has one", hint=f"this one is {self.database.name!r}")

    async def _alter(self, alter: ddl.AlterTable) -> None:
        schema = self._table(alter.table)
        if alter.set is not None:
            await self.database.set_options(schema.name, with_options(schema.options, alter.set.options))
        for modify in alter.modify:
            column = found(schema, modify.name)
            if column.decimals != modify.decimals:
                raise Invalid(f"column {column.name!r} of table {schema.name!r} has {said_decimals(column)}, for ever")
            await self.database.widen_column(schema.name, column.name, modify.type)
        if alter.add:
            added = []
            for each in alter.add:
                there = [c for c in schema.columns if c.name.lower() == each.column.name.lower()]
                if there and not each.if_not_exists:
                    raise AlreadyExists(f"table {schema.name!r} has a column {there[0].name!r}")
                if there and each.column.decimals not in (None, there[0].decimals):
                    raise Invalid(f"column {there[0].name!r} of table {schema.name!r} has {said_decimals(there[0])}")
                if there and there[0].type is not each.column.type:
                    raise Invalid(f"column {there[0].name!r} of table {schema.name!r} is {there[0].type}")
                if not there:
                    added.append(replace(each.column, id=0))
            if added:
                await self.database.add_columns(schema.name, added)


_CHANGES = ("CREATE", "DROP", "TRUNCATE", "ALTER")
_NOT_THERE = {
    "UPDATE": "INSERT a row with the same tags and time, and it replaces the one before",
    "REPLACE": "INSERT replaces a row with the same tags and time by itself",
    "TQL": "PromQL is not spoken here",
    "COPY": "rows leave by SELECT and come by INSERT, line protocol or Arrow",
    "LOAD": "rows come by INSERT, line protocol or Arrow",
    "ADMIN": "flushes and compaction run by themselves",
    "CALL": "there are no procedures",
    "GRANT": "users are in the server's configuration",
    "REVOKE": "users are in the server's configuration",
    "KILL": "close the connection, and its query ends",
    "LOCK": "each statement is its own transaction",
    "UNLOCK": "each statement is its own transaction",
    "PREPARE": "prepare by the protocol, as every client does",
    "EXECUTE": "prepare by the protocol, as every client does",
    "SAVEPOINT": "each statement is its own transaction",
    "ATTACH": "a server has one database",
    "PRAGMA": "settings are in the server's configuration",
    "INSTALL": "extensions are not loaded",
}
