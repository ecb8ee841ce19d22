"""One client of the Postgres wire: its login, then its messages one after the other until it leaves.

Query ──► each statement ──► rows, tag ──► ReadyForQuery
Parse, Bind, Describe, Execute, Close ──► `postgres_extended` ──error──► nothing is done until Sync ──► ReadyForQuery
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataplane import scram
from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols import postgres_messages as messages
from dataplane.tsdb.protocols import postgres_rows, postgres_sql, postgres_startup, statements
from dataplane.tsdb.protocols.lexer import Token
from dataplane.tsdb.protocols.postgres_extended import Extended, check_rows, formats, in_turn
from dataplane.tsdb.protocols.postgres_login import Login, Users
from dataplane.tsdb.protocols.postgres_settings import Settings, reported
from dataplane.tsdb.protocols.postgres_statements import Answer, Executor, only_reads, session_of, state_of
from providers.base.clock import Clock, Rng
from providers.base.errors import Internal, Invalid, Unavailable, YunheError

log = logging.getLogger(__name__)

SECRET_BYTES = 4
"""Of what a client names to have its statement given up: the protocol's own length."""
_LOGIN_BYTES_MAX = 8_192


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection."""

    rows_max: int = 1_000_000
    """Of one answer; more are refused, not cut."""
    login_s: float = 10.0
    """From its first byte to the end of the login."""


class Refused(Exception):
    """The client was told why, and the connection ends."""


class Connection:
    """See the module. `serve` runs it; `busy` tells whether a command is under way."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        database: Database,
        *,
        process: int,
        users: Users | None,
        clock: Clock,
        rng: Rng,
        limits: Limits,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._database = database
        self._users = users
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self.process = process
        self.secret = bytes.fromhex(rng.token())[:SECRET_BYTES]
        self._settings = Settings()
        self._executor = self._executor_of("", "")
        self._extended = Extended(self._executor, self._guarded, limits.rows_max)
        self._running: asyncio.Future[Answer] | None = None
        self._unsynced = self._skips = self._handles = False
        self.closing = False

    @property
    def busy(self) -> bool:
        """Whether the client waits for an answer."""
        return self._handles or self._unsynced

    def cancel(self) -> None:
        """Give up the statement under way, if it only reads."""
        if self._running is not None:
            self._running.cancel()

    async def serve(self, first: messages.First) -> None:
        """From its StartupMessage until it leaves, its login fails, or `closing` is set and it waits for nothing."""
        try:
            try:
                async with asyncio.timeout(self._limits.login_s):
                    await self._login(first)
            except TimeoutError:
                return
            while not (self.closing and not self.busy):
                kind, body = await messages.read(self._reader)
                if kind == b"X":
                    return
                self._handles = True
                try:
                    await self._message(kind, body)
                finally:
                    self._handles = False
            await self._farewell()
        except Refused:
            return
        except messages.Violation as error:
            await self._send(messages.error("FATAL", error.state, str(error)))
        except asyncio.CancelledError:
            if not self._handles:
                await self._farewell()
            raise

    async def _farewell(self) -> None:
        await self._send(
            messages.error("FATAL", "57P01", "terminating connection due to administrator command"), drain=False
        )

    # ── login ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _login(self, first: messages.First) -> None:
        started = postgres_startup.read(first)
        if started.unknown or first.code != messages.PROTOCOL:
            await self._send(messages.negotiate_protocol_version(started.unknown))
        if self._users is not None:
            await self._authenticate(started.user, self._users)
        await self._send(messages.AUTHENTICATION_OK, drain=False)
        if started.database and started.database not in statements.names(self._database):
            hint = f"this one is {self._database.name!r}"
            await self._refuse("3D000", f"database {started.database[:60]!r} does not exist", hint)
        self._settings = Settings(started.user)
        self._executor = self._executor_of(started.user, started.database)
        self._extended = Extended(self._executor, self._guarded, self._limits.rows_max)
        for name, value in started.settings:
            try:
                self._settings.set(name, value)
            except YunheError as error:
                if name.lower() != "timezone":  # drivers name their machine's, and go by the one that they are told
                    await self._refuse(state_of(error), error.message, error.hint)
        for name, told in reported().items():
            await self._send(messages.parameter_status(told, self._settings.get(name)), drain=False)
        await self._send(messages.backend_key_data(self.process, self.secret), drain=False)
        await self._ready()

    async def _authenticate(self, user: str, users: Users) -> None:
        login = Login(users, user, self._rng)
        await self._send(login.offer)
        try:
            while not login.done:
                kind, body = await messages.read(self._reader, _LOGIN_BYTES_MAX)
                if kind != b"p":
                    raise scram.Refused("no answer to the challenge")
                await self._send(login.step(body))
        except scram.Refused as error:
            log.warning("postgres-login-refused user=%r: %s", user, error)
            await self._refuse("28P01", f"password authentication failed for user {user[:60]!r}")

    async def _refuse(self, state: str, message: str, hint: str | None = None) -> None:
        """Raises Refused."""
        await self._send(messages.error("FATAL", state, message, hint))
        raise Refused

    def _executor_of(self, user: str, database: str) -> Executor:
        session = session_of(self._database, user, database, self.process)
        return Executor(self._database, self._settings, session, self._clock)

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _message(self, kind: bytes, body: bytes) -> None:
        if kind == b"S":
            self._skips = self._unsynced = False
            self._extended.synced()
            await self._ready()
        elif kind == b"Q":
            if not self._skips:
                await self._query(body)
        elif kind in (b"H", b"d", b"c", b"f"):
            await self._writer.drain()  # Flush; of a COPY there is none, and what is left of one is passed over
        elif kind in (b"P", b"B", b"D", b"E", b"C", b"F"):
            self._unsynced = True
            if not self._skips:
                try:
                    await self._one(kind, body)
                except Exception as error:
                    self._skips = True
                    await self._failed(error)
        else:
            raise messages.Violation(f"invalid frontend message type {kind[0]}")

    async def _one(self, kind: bytes, body: bytes) -> None:
        """Of the extended query. Raises whatever goes wrong."""
        extended = self._extended
        if kind == b"P":
            await self._send(await extended.parse(body))
        elif kind == b"B":
            await self._send(await extended.bind(body))
        elif kind == b"D":
            await self._send(await extended.describe(body))
        elif kind == b"C":
            await self._send(extended.close(body))
        elif kind == b"F":
            raise Invalid("function calls are not there: use SELECT", sqlstate="0A000")
        else:
            done = await extended.execute(body)
            if isinstance(done, bytes):
                await self._send(done)
                return
            portal, part, sent = done
            answer = portal.answer
            assert answer is not None
            if part is None:
                await self._complete(answer, portal.tokens)
                return
            shown = postgres_rows.columns(part.schema)
            await self._rows(part, shown, formats(portal.results, len(shown)))
            if answer.data is not None and sent < len(answer.data):
                await self._send(messages.PORTAL_SUSPENDED)
            else:
                portal.done = True
                await self._send(messages.command_complete(_counted(answer.tag, len(part))))

    async def _query(self, body: bytes) -> None:
        """The simple query: all statements, up to the first that fails."""
        self._extended.portals.pop("", None)
        try:
            sql = messages.Body(body).text()
            found = await statements.read_any(sql, self._executor.session)
            if not found:
                await self._send(messages.EMPTY_QUERY)
            for words in found:
                statement = await in_turn(len(words), postgres_sql.adapted, words)
                answer = await self._guarded(self._executor.run(statement, sql), only_reads(statement))
                if answer.data is None:
                    await self._complete(answer, statement)
                    continue
                check_rows(answer.data, self._limits.rows_max)
                shown = postgres_rows.columns(answer.data.schema)
                text = [0] * len(shown)
                await self._send(postgres_rows.row_description(shown, text), drain=False)
                await self._rows(answer.data, shown, text)
                await self._send(messages.command_complete(_counted(answer.tag, len(answer.data))))
        except Exception as error:
            await self._failed(error)
        self._extended.synced()
        await self._ready()

    async def _guarded(self, running: Awaitable[Answer], may_end: bool) -> Answer:
        """Await an answer. One that only reads is given up when its client, or `statement_timeout`, says so.

        Raises:
            YunheError: the statement's; Unavailable: it was given up.
        """
        task = asyncio.ensure_future(running)
        if may_end:
            self._running = task
        timeout_ms = self._settings.statement_ms if may_end else 0
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_ms / 1_000 if timeout_ms else None)
            if not done:
                raise Unavailable("canceling statement due to statement timeout", sqlstate="57014")
            if task.cancelled():
                raise Unavailable("canceling statement due to user request", sqlstate="57014")
            return task.result()
        finally:
            self._running = None
            if not task.done():  # its time is over, or this connection is ended
                task.cancel()
                await asyncio.wait({task})

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _complete(self, answer: Answer, statement: Sequence[Token]) -> None:
        """Of a statement without rows."""
        if answer.tag in ("DEALLOCATE", "DISCARD ALL"):
            named = statement[-1].text if answer.tag == "DEALLOCATE" else "ALL"
            self._extended.deallocate(None if named.upper() == "ALL" else named)
        if answer.warning:
            await self._send(messages.notice("WARNING", "25P01", answer.warning), drain=False)
        for name, told in reported().items():
            if name in answer.changed:
                await self._send(messages.parameter_status(told, self._settings.get(name)), drain=False)
        await self._send(messages.command_complete(answer.tag))

    async def _rows(self, data: pa.Table, shown: Sequence[postgres_rows.Column], forms: Sequence[int]) -> None:
        encoded = postgres_rows.data_rows(data, shown, forms)
        while (batch := await asyncio.to_thread(next, encoded, None)) is not None:
            await self._send(batch)  # a client that reads slowly holds up its own answer only

    async def _failed(self, error: Exception) -> None:
        """Tell the client. Raises ConnectionError again: there is nobody to tell."""
        if isinstance(error, ConnectionError):
            raise error
        if isinstance(error, messages.Violation):  # of one message, whose end is known: the next can be read
            error = Invalid(str(error), sqlstate=error.state)
        self._executor.failed()
        if not isinstance(error, YunheError):
            log.error("postgres-internal-error", exc_info=error)
            await self._send(messages.error("ERROR", "XX000", "an internal error; the server's log has it"))
            return
        if isinstance(error, Internal):
            log.error("postgres-internal-error", exc_info=error)
        await self._send(messages.error("ERROR", state_of(error), error.message, error.hint))

    async def _ready(self) -> None:
        await self._send(messages.ready_for_query(self._executor.status))

    async def _send(self, data: bytes, drain: bool = True) -> None:
        self._writer.write(data)
        if drain:
            await self._writer.drain()


def _counted(tag: str, rows: int) -> str:
    return f"{tag} {rows}" if tag in ("SELECT", "FETCH") else tag
