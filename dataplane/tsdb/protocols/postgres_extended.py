"""The extended query of the Postgres wire: statements that are prepared, portals that run them.

    Parse ──► Prepared ──Bind──► Portal ──Execute──► rows, as many as are asked for ──► … ──► done
                  └─Describe: a run without rows, its parameters nulls      └─Describe: runs it, if it only reads

A parameter takes the place of its `$1` among the statement's tokens, as the literal that it is (`postgres_parameters`).
No I/O here: what is to be sent is returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from dataplane.tsdb.protocols import postgres_messages as messages
from dataplane.tsdb.protocols import postgres_rows, postgres_sql
from dataplane.tsdb.protocols.lexer import Kind, Token
from dataplane.tsdb.protocols.postgres_parameters import absent, words
from dataplane.tsdb.protocols.postgres_sql import placed
from dataplane.tsdb.protocols.postgres_statements import Answer, Executor, only_reads, returns_rows
from dataplane.tsdb.protocols.postgres_types import Oid
from dataplane.tsdb.protocols.statements import read_any
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Full, Invalid

STATEMENTS_MAX = 1_000
SQL_CHARS_MAX = 8 << 20
"""Of one connection's prepared statements, together."""
PORTALS_MAX = 100
PORTAL_BYTES_MAX = 256 << 20
"""Of one connection's portals, together: their parameters, and the rows that they have not sent."""
PARAMETERS_MAX = 65_535
_IN_A_THREAD = 2_000
"""Tokens, or parameters: more are read in a thread."""

Run = Callable[[Awaitable[Answer], bool], Awaitable[Answer]]
"""Awaits a statement's answer; the flag: whether it may be given up."""
_R = TypeVar("_R")


@dataclass(slots=True)
class Prepared:
    """A prepared statement. Without tokens: an empty one."""

    sql: str
    tokens: list[Token]
    types: tuple[int, ...]
    described: pa.Schema | None = None
    """What the client was told that its answers look like."""


@dataclass(slots=True)
class Portal:
    """A statement with its parameters, and its answer as far as it was not sent."""

    prepared: Prepared
    tokens: list[Token]
    results: tuple[int, ...]
    size: int
    answer: Answer | None = None
    sent: int = 0
    done: bool = False

    @property
    def bytes(self) -> int:
        rows = self.answer.data if self.answer is not None else None
        return self.size + (rows.nbytes if rows is not None else 0)


@dataclass(slots=True)
class Extended:
    """Of one connection."""

    executor: Executor
    run: Run
    rows_max: int
    statements: dict[str, Prepared] = field(default_factory=dict)
    portals: dict[str, Portal] = field(default_factory=dict)

    async def parse(self, body: bytes) -> bytes:
        """Raises Invalid: it cannot be prepared. Full: there are too many."""
        asked = messages.parse(body)
        if asked.name and asked.name in self.statements:
            raise Invalid(f"prepared statement {asked.name[:60]!r} already exists", sqlstate="42P05")
        self.statements.pop(asked.name, None)
        held = sum(len(one.sql) for one in self.statements.values()) + len(asked.sql)
        if len(self.statements) >= STATEMENTS_MAX or held > SQL_CHARS_MAX:
            raise Full(
                f"more than {STATEMENTS_MAX} prepared statements, or {SQL_CHARS_MAX} characters in them",
                hint="deallocate some",
            )
        found = await read_any(asked.sql, self.executor.session)
        if len(found) > 1:
            raise Invalid("cannot insert multiple commands into a prepared statement")
        tokens = await in_turn(len(found[0]), postgres_sql.adapted, found[0]) if found else []
        self.statements[asked.name] = Prepared(asked.sql, tokens, self._types(tokens, asked.types))
        return messages.PARSE_COMPLETE

    def _types(self, tokens: Sequence[Token], said: Sequence[int]) -> tuple[int, ...]:
        count = max(postgres_sql.count(tokens), len(said))
        if count > PARAMETERS_MAX:
            raise Invalid(f"{count} parameters, more than {PARAMETERS_MAX}", sqlstate="54000")
        if not count:
            return ()
        found = postgres_sql.inferred(tokens, self._table)
        given = [*said, *[0] * (count - len(said))]
        return tuple(
            oid if oid not in (0, Oid.UNKNOWN) else int(found.get(number, Oid.TEXT))
            for number, oid in enumerate(given, start=1)
        )

    def _table(self, name: str) -> TableSchema | None:
        database = self.executor.database
        return database.table(name) or database.table(name.lower())

    async def bind(self, body: bytes) -> bytes:
        """Raises Invalid: no such statement, or a parameter is none of its type. Full: too many portals."""
        asked = messages.bind(body)
        prepared = self._prepared(asked.statement)
        if asked.portal and asked.portal in self.portals:
            raise Invalid(f"cursor {asked.portal[:60]!r} already exists", sqlstate="42P03")
        self.portals.pop(asked.portal, None)
        if len(asked.values) != len(prepared.types):
            wants = len(prepared.types)
            raise messages.Violation(f"bind message supplies {len(asked.values)} parameters, but {wants} are required")
        self._room(len(body))
        tokens = await in_turn(len(prepared.tokens), _bound, prepared, asked)
        self.portals[asked.portal] = Portal(prepared, tokens, asked.results, len(body))
        return messages.BIND_COMPLETE

    def _room(self, more: int) -> None:
        held = sum(portal.bytes for portal in self.portals.values()) + more
        if len(self.portals) >= PORTALS_MAX or held > PORTAL_BYTES_MAX:
            raise Full(f"more than {PORTALS_MAX} portals, or {PORTAL_BYTES_MAX} bytes in them", hint="close some")

    async def describe(self, body: bytes) -> bytes:
        """Raises as the statement's run."""
        kind, name = messages.named(body)
        if kind == b"P":
            if (declared := self.executor.cursor_schema(name)) is not None and name not in self.portals:
                shown = postgres_rows.columns(declared)  # a cursor is a portal, too
                return postgres_rows.row_description(shown, [0] * len(shown))
            portal = self._portal(name)
            if not returns_rows(portal.tokens):
                return messages.NO_DATA
            answer = await self._answer(portal)
            if answer.data is None:
                return messages.NO_DATA
            shown = postgres_rows.columns(answer.data.schema)
            return postgres_rows.row_description(shown, formats(portal.results, len(shown)))
        prepared = self._prepared(name)
        parameters = messages.parameter_description(prepared.types)
        if not returns_rows(prepared.tokens):
            return parameters + messages.NO_DATA
        nulls = [absent(oid) for oid in prepared.types]
        schema = await self.executor.described(_replaced(prepared.tokens, nulls), prepared.sql)
        prepared.described = schema
        if schema is None:
            return parameters + messages.NO_DATA
        shown = postgres_rows.columns(schema)
        return parameters + postgres_rows.row_description(shown, [0] * len(shown))

    async def execute(self, body: bytes) -> tuple[Portal, pa.Table | None, int] | bytes:
        """A portal, its rows to be sent now, and how many it has sent then; or bytes, when there are no rows.

        Raises:
            YunheError: as the statement's run.
        """
        fields = messages.Body(body)
        portal, most = self._portal(fields.text()), fields.int32()
        fields.end()
        if not portal.tokens:
            return messages.EMPTY_QUERY
        if portal.done:
            raise Invalid("portal has run already", sqlstate="55000")
        answer = await self._answer(portal)
        if answer.data is None:
            portal.done = True
            return portal, None, 0
        count = len(answer.data) - portal.sent
        part = answer.data.slice(portal.sent, min(count, most) if most > 0 else count)
        portal.sent += len(part)
        return portal, part, portal.sent

    def close(self, body: bytes) -> bytes:
        kind, name = messages.named(body)
        if kind == b"S":
            self.deallocate(name)
        else:
            self.portals.pop(name, None)
        return messages.CLOSE_COMPLETE

    def deallocate(self, name: str | None) -> None:
        """Forget a statement and its portals; None: all."""
        if name is None:
            self.statements.clear()
            self.portals.clear()
        elif (gone := self.statements.pop(name, None)) is not None:
            self.portals = {at: portal for at, portal in self.portals.items() if portal.prepared is not gone}

    def synced(self) -> None:
        """A transaction's end is its portals' end."""
        if self.executor.status == b"I":
            self.portals.clear()

    async def _answer(self, portal: Portal) -> Answer:
        if portal.answer is None:
            statement, sql = portal.tokens, portal.prepared.sql
            answer = await self.run(self.executor.run(statement, sql), only_reads(statement))
            if answer.data is not None:
                check_rows(answer.data, self.rows_max)
                answer = Answer(answer.tag, _as_described(answer.data, portal.prepared.described), answer.warning)
                self._room(answer.data.nbytes if answer.data is not None else 0)
            portal.answer = answer
        return portal.answer

    def _prepared(self, name: str) -> Prepared:
        if name not in self.statements:
            raise Invalid(f"prepared statement {name[:60]!r} does not exist", sqlstate="26000")
        return self.statements[name]

    def _portal(self, name: str) -> Portal:
        if name not in self.portals:
            raise Invalid(f"portal {name[:60]!r} does not exist", sqlstate="34000")
        return self.portals[name]


async def in_turn(size: int, work: Callable[..., _R], *arguments: object) -> _R:
    """In a thread, if it takes more than some milliseconds."""
    return await asyncio.to_thread(work, *arguments) if size > _IN_A_THREAD else work(*arguments)


def check_rows(data: pa.Table, rows_max: int) -> None:
    """Raises Invalid: more rows than one answer may have."""
    if len(data) > rows_max:
        raise Invalid(
            f"the answer has {len(data)} rows, more than {rows_max} of one answer",
            hint="aggregate, or ask with LIMIT; HTTP gives large answers as Arrow",
            sqlstate="54000",
        )


def formats(asked: Sequence[int], count: int) -> list[int]:
    """The format of each of `count` columns. Raises Violation: it was said for another number of them."""
    if len(asked) > 1 and len(asked) != count:
        raise messages.Violation(f"bind message has {len(asked)} result formats but query has {count} columns")
    return [messages.format_of(asked, at) for at in range(count)]


def _bound(prepared: Prepared, asked: messages.Bind) -> list[Token]:
    bare = bool(prepared.tokens) and postgres_sql.first_word(prepared.tokens) == "INSERT"
    found = []
    for at, (oid, value) in enumerate(zip(prepared.types, asked.values, strict=True)):
        try:
            found.append(words(oid, value, messages.format_of(asked.formats, at) == 1, bare=bare))
        except Invalid as error:
            raise Invalid(f"parameter ${at + 1}: {error.message}", sqlstate="22P02") from None
    return _replaced(prepared.tokens, found)


def _replaced(tokens: Sequence[Token], values: Sequence[list[tuple[Kind, str]]]) -> list[Token]:
    found: list[Token] = []
    for token in tokens:
        if token.kind is Kind.PARAMETER:
            found += placed(values[int(token.text[1:]) - 1], token)
        else:
            found.append(token)
    return found


def _as_described(data: pa.Table, schema: pa.Schema | None) -> pa.Table:
    """As the client was told: with its parameters' values a query's columns may be of other types.

    Raises:
        Invalid: they cannot be made so.
    """
    if schema is None or data.schema.types == schema.types:
        return data
    try:
        return data.rename_columns(schema.names).cast(schema)
    except (pa.ArrowException, ValueError):
        raise Invalid("cached plan must not change result type", sqlstate="0A000") from None
