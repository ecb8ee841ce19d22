"""One statement of a Postgres client: its own words here (transactions, settings, cursors, the catalog), all others by
`statements.run`.

    BEGIN ──► in a transaction ──error──► failed: nothing but its end is taken
                     └──COMMIT, ROLLBACK──┴──► none

A transaction is the client's belief: each statement is its own, and holds once it is answered. A ROLLBACK after writes
says so by a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols import postgres_catalog, postgres_settings, statements
from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.lexer import Kind, Token
from dataplane.tsdb.protocols.postgres_macros import Said
from dataplane.tsdb.protocols.postgres_settings import SCHEMA, Settings
from dataplane.tsdb.protocols.postgres_sql import first_word, placed
from dataplane.tsdb.protocols.session import Session
from providers.base.clock import Clock
from providers.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Fenced,
    Full,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)

CURSORS_MAX = 100
CURSOR_BYTES_MAX = 256 << 20
"""Of one connection's cursors, together: their rows are in memory."""
_READS = ("SELECT", "WITH", "VALUES", "(")
_ROWS = (*_READS, "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "FETCH")
_ENDS = ("COMMIT", "END", "ROLLBACK", "ABORT")
_PLAN = pa.schema([("plan_type", pa.string()), ("plan", pa.string())])


def state_of(error: YunheError) -> str:
    """The SQLSTATE of an error."""
    if "sqlstate" in error.fields:
        return str(error.fields["sqlstate"])
    if isinstance(error, NotFound):
        return "3D000" if "database" in error.fields else "42P01"
    for kind, state in _STATES:
        if isinstance(error, kind):
            return state
    return "XX000"


_STATES: tuple[tuple[type[YunheError], str], ...] = (
    (Unsupported, "0A000"),
    (Invalid, "42601"),
    (AlreadyExists, "42P07"),
    (Conflict, "40001"),
    (Full, "53200"),
    (Fenced, "25006"),  # clients that know several nodes take it for one that only reads
    (OutcomeUnknown, "08007"),
    (Unavailable, "57P03"),
    (Corrupt, "XX001"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one statement."""

    tag: str
    data: pa.Table | None = None
    """Rows, if it is one that answers with rows; `tag` is then without their number."""
    warning: str | None = None
    changed: tuple[str, ...] = ()
    """Settings whose values the client may have to be told."""


def returns_rows(statement: Sequence[Token]) -> bool:
    return bool(statement) and first_word(statement) in _ROWS


def only_reads(statement: Sequence[Token]) -> bool:
    """Whether it may be given up half-way."""
    return bool(statement) and first_word(statement) in (*_ROWS, "DECLARE")


@dataclass(slots=True)
class _Held:
    """A cursor: rows, and how many were fetched."""

    rows: pa.Table
    at: int = 0


@dataclass(slots=True)
class Executor:
    """Of one connection. Statements come without what only Postgres has (`postgres_sql.adapted`)."""

    database: Database
    settings: Settings
    session: Session
    clock: Clock
    status: bytes = b"I"
    """I: in no transaction; T: in one; E: in one that failed."""
    _wrote: bool = False
    _cursors: dict[str, _Held] = field(default_factory=dict)

    def failed(self) -> None:
        """A statement raised."""
        if self.status == b"T":
            self.status = b"E"

    async def run(self, statement: Sequence[Token], sql: str) -> Answer:
        """Do it. Raises as `statements.run`; Invalid: the transaction has failed before."""
        word, cursor = first_word(statement), Cursor(statement, sql)
        if self.status == b"E" and word not in _ENDS:
            raise Invalid(
                "current transaction is aborted, commands ignored until end of transaction block", sqlstate="25P02"
            )
        if word in ("BEGIN", "START", *_ENDS):
            return self._transaction(word, cursor)
        if word in ("SET", "RESET", "DISCARD", "DEALLOCATE", "UNLISTEN", "CLOSE", "DECLARE", "FETCH"):
            cursor.at = 1
            return await self._own(word, cursor, sql)
        if word == "SHOW":
            cursor.at = 1
            if (found := postgres_settings.shown(cursor, self.settings)) is not None:
                return Answer("SHOW", _settings_table(found))
        if word in _READS and postgres_catalog.concerns(statement, self.database.tables()):
            return Answer("SELECT", await postgres_catalog.ask(statement, self._said, self.database.tables()))
        outcome = await statements.run(self.database, statement, sql, session=self.session, clock=self.clock)
        if outcome.data is not None:
            return Answer("SELECT" if word in _READS else word, outcome.data)
        self._wrote = self._wrote or self.status == b"T"
        return Answer(_tag(word, statement, outcome.affected))

    async def described(self, statement: Sequence[Token], sql: str) -> pa.Schema | None:
        """The columns that it would answer with, its parameters being nulls; None: it answers without rows.

        Raises:
            YunheError: as its run would.
        """
        if not returns_rows(statement):
            return None
        word = first_word(statement)
        if word == "EXPLAIN" and any(token.text.upper() in _READS for token in statement[1:4]):
            return _PLAN
        if word == "FETCH":
            return self._cursor_of(Cursor(statement, sql))[0].rows.schema
        if word in _READS:
            opens, ends = statement[0], statement[-1]
            limit = [(Kind.PUNCTUATION, ")"), (Kind.WORD, "LIMIT"), (Kind.NUMBER, "0")]
            statement = [*placed([(Kind.PUNCTUATION, "(")], opens), *statement, *placed(limit, ends)]
        answer = await self.run(statement, sql)
        return None if answer.data is None else answer.data.schema

    def cursor_schema(self, name: str) -> pa.Schema | None:
        """What a cursor's rows look like; None: there is none of that name."""
        return self._cursors[name].rows.schema if name in self._cursors else None

    @property
    def _said(self) -> Said:
        session = self.session
        database = str(session.functions["CURRENT_DATABASE"])
        return Said(session.user, database, session.connection_id, self.settings.values)

    # ── transactions and settings ───────────────────────────────────────────────────────────────────────────────────

    def _transaction(self, word: str, cursor: Cursor) -> Answer:
        if any(token.text.upper() in ("TO", "PREPARED") for token in cursor.tokens[1:3]):
            raise Unsupported("savepoints and two phases are not there: each statement is its own transaction")
        if word in ("BEGIN", "START"):
            warning = None if self.status == b"I" else "there is already a transaction in progress"
            self.status, self._wrote = b"T", self._wrote and self.status != b"I"
            return Answer("BEGIN", warning=warning)
        failed, wrote = self.status == b"E", self._wrote
        self.status, self._wrote = b"I", False
        self._cursors.clear()
        if word in ("COMMIT", "END") and not failed:
            return Answer("COMMIT")
        taken = "ROLLBACK takes nothing back: each statement is its own transaction, and those before it hold"
        return Answer("ROLLBACK", warning=taken if wrote else None)

    async def _own(self, word: str, cursor: Cursor, sql: str) -> Answer:
        if word == "SET":
            name = postgres_settings.read_set(cursor, self.settings)
            return Answer("SET", changed=() if name is None else (name,))
        if word == "RESET":
            name = postgres_settings.read_reset(cursor, self.settings)
            return Answer("RESET", changed=tuple(self.settings.values) if name is None else (name,))
        if word == "DISCARD":
            what = cursor.name("what to discard").upper()
            if what == "ALL":
                self.settings.reset()
                self._cursors.clear()
            return Answer(f"DISCARD {what}", changed=tuple(self.settings.values) if what == "ALL" else ())
        if word == "DECLARE":
            return await self._declare(cursor, sql)
        if word == "FETCH":
            cursor.at = 0
            held, count = self._cursor_of(cursor)
            rows = held.rows.slice(held.at, count)
            held.at += len(rows)
            return Answer("FETCH", rows)
        if word == "CLOSE":
            name = cursor.name("a cursor's name")
            if name.upper() == "ALL":
                self._cursors.clear()
            elif self._cursors.pop(name, None) is None:
                raise _no_cursor(name)
            return Answer("CLOSE CURSOR")
        return Answer(word)  # DEALLOCATE is the connection's to do; nobody listens

    # ── cursors ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _declare(self, cursor: Cursor, sql: str) -> Answer:
        """DECLARE name [options] CURSOR [WITH HOLD] FOR a SELECT, which runs now."""
        if self.status != b"T":
            raise Invalid("DECLARE CURSOR can only be used in transaction blocks", sqlstate="25P01")
        name = cursor.name("a cursor's name")
        while not cursor.takes("CURSOR"):
            if cursor.takes("BINARY"):
                raise Unsupported("binary cursors are not there")
            if not any(cursor.takes(option) for option in ("NO", "SCROLL", "INSENSITIVE", "ASENSITIVE")):
                raise cursor.unexpected("CURSOR")
        if cursor.takes("WITH"):
            raise Unsupported("cursors WITH HOLD are not there: fetch within the transaction")
        cursor.takes("WITHOUT", "HOLD")
        cursor.expect("FOR")
        if name in self._cursors:
            raise Invalid(f"cursor {name!r} already exists", sqlstate="42P03")
        query = cursor.tokens[cursor.at :]
        if not query or first_word(query) not in _READS:
            raise cursor.unexpected("a SELECT")
        answer = await self.run(query, sql)
        data = answer.data if answer.data is not None else pa.table({})
        held = sum(one.rows.nbytes for one in self._cursors.values()) + data.nbytes
        if len(self._cursors) >= CURSORS_MAX or held > CURSOR_BYTES_MAX:
            raise Full(f"more than {CURSORS_MAX} cursors, or {CURSOR_BYTES_MAX} bytes in them", hint="close some")
        self._cursors[name] = _Held(data)
        return Answer("DECLARE CURSOR")

    def _cursor_of(self, cursor: Cursor) -> tuple[_Held, int]:
        """Of FETCH: the cursor, and how many rows. Raises Invalid."""
        cursor.expect("FETCH")
        count: int | None = 1
        if not cursor.takes("NEXT"):
            cursor.takes("FORWARD")
            token = cursor.peek()
            if cursor.takes("ALL"):
                count = None
            elif token is not None and token.kind is Kind.NUMBER and token.text.isdigit():
                count = int(cursor.next("a number").text)
            elif any(cursor.sees(word) for word in ("BACKWARD", "PRIOR", "FIRST", "LAST", "ABSOLUTE", "RELATIVE", "-")):
                raise Unsupported("a cursor goes forward only", sqlstate="55000")
        cursor.takes("FROM") or cursor.takes("IN")
        name = cursor.name("a cursor's name")
        cursor.end()
        if name not in self._cursors:
            raise _no_cursor(name)
        held = self._cursors[name]
        left = len(held.rows) - held.at
        return held, left if count is None else min(count, left)


def _no_cursor(name: str) -> NotFound:
    return NotFound(f"cursor {name[:60]!r} does not exist", sqlstate="34000")


def _settings_table(found: Sequence[tuple[str, str]]) -> pa.Table:
    if len(found) == 1:
        return pa.table({found[0][0]: [found[0][1]]})
    return pa.table({"name": [name for name, _ in found], "setting": [value for _, value in found]})


def _tag(word: str, statement: Sequence[Token], affected: int) -> str:
    if word == "INSERT":
        return f"INSERT 0 {affected}"
    if word == "DELETE":
        return f"DELETE {affected}"
    if word in ("CREATE", "ALTER", "DROP", "TRUNCATE"):
        other = len(statement) > 1 and statement[1].text.upper() in ("DATABASE", "SCHEMA")
        return f"{word} {'DATABASE' if other else 'TABLE'}"
    return word


def session_of(database: Database, user: str, named: str, process: int) -> Session:
    """A connection's session. Its tables are in schema `public`, whatever the database is called."""
    says: dict[str, str | int] = {
        "VERSION": postgres_settings.VERSION_TEXT,
        "PG_BACKEND_PID": process,
        **dict.fromkeys(("CURRENT_SCHEMA", "SCHEMA"), SCHEMA),
        **dict.fromkeys(("CURRENT_DATABASE", "CURRENT_CATALOG", "DATABASE"), named or database.name),
        **dict.fromkeys(("CURRENT_USER", "SESSION_USER", "CURRENT_ROLE", "USER"), user),
    }
    return Session(database=SCHEMA, user=user, connection_id=process, postgres=True, functions=says)
