"""One client of the MySQL wire: login, then commands one after the other until it leaves.

mysql-mimic frames, parses and makes the packets. Its session and connection are not used: there a client whose login
failed may go on, parameters are pasted into SQL unescaped, and neither affected rows nor unsigned columns are told.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from mysql_mimic import packets
from mysql_mimic.charset import CharacterSet
from mysql_mimic.prepared import PreparedStatement
from mysql_mimic.stream import ConnectionClosed, MysqlStream
from mysql_mimic.types import Capabilities, ColumnType, Commands, ServerStatus

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols import mysql_login, mysql_rows, statements
from dataplane.tsdb.protocols.cursor import Unsupported
from dataplane.tsdb.protocols.lexer import split, tokens
from dataplane.tsdb.protocols.mysql_prepared import PARAMETERS_MAX, STATEMENTS_MAX, Prepared
from dataplane.tsdb.protocols.session import VERSION, Session
from providers.base.clock import Clock, Rng
from providers.base.errors import (
    AlreadyExists,
    Fenced,
    Full,
    Internal,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)

log = logging.getLogger(__name__)

ROW_BYTES_SPLIT = 0xFFFFFF
"""A longer row travels in several packets."""
CAPABILITIES = (
    Capabilities.CLIENT_PROTOCOL_41
    | Capabilities.CLIENT_DEPRECATE_EOF
    | Capabilities.CLIENT_CONNECT_WITH_DB
    | Capabilities.CLIENT_CONNECT_ATTRS
    | Capabilities.CLIENT_PLUGIN_AUTH
    | Capabilities.CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA
    | Capabilities.CLIENT_SECURE_CONNECTION
    | Capabilities.CLIENT_LONG_PASSWORD
    | Capabilities.CLIENT_LONG_FLAG
    | Capabilities.CLIENT_TRANSACTIONS
    | Capabilities.CLIENT_MULTI_STATEMENTS
    | Capabilities.CLIENT_MULTI_RESULTS
    | Capabilities.CLIENT_PS_MULTI_RESULTS
    | Capabilities.CLIENT_IGNORE_SPACE
)
_UTF8 = CharacterSet.utf8mb4


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection."""

    rows_max: int = 1_000_000
    """Of one answer; more are refused, not cut."""
    login_s: float = 10.0
    """From the greeting to the end of the login."""


class Refused(Exception):
    """The login failed; the client was told."""


def error_code(error: YunheError) -> tuple[int, bytes]:
    """MySQL's error code and SQL state."""
    if isinstance(error, Unsupported):
        return 1235, b"42000"
    if isinstance(error, NotFound):
        return (1049, b"42000") if "database" in error.fields else (1146, b"42S02")
    if isinstance(error, AlreadyExists):
        return 1050, b"42S01"
    if isinstance(error, Invalid):
        return 1064, b"42000"
    if isinstance(error, Full):
        return 1114, b"HY000"
    if isinstance(error, Fenced):
        return 1836, b"HY000"
    if isinstance(error, Unavailable) and not isinstance(error, OutcomeUnknown):
        return 1205, b"HY000"  # clients know it as one to try again
    return 1105, b"HY000"


def error_packet(code: int, state: bytes, message: str) -> bytes:
    return b"\xff" + code.to_bytes(2, "little") + b"#" + state + message.encode("utf-8", "replace")


async def start_tls(stream: MysqlStream, context: ssl.SSLContext) -> None:
    """Go on over TLS. A client begins its handshake without waiting for an answer: what came of that together with its
    request is handed to TLS, which would wait for it in vain."""
    reader, transport = stream.reader, stream.writer.transport
    early = bytes(reader._buffer)
    reader._buffer.clear()
    upgrading = asyncio.ensure_future(stream.start_tls(context))
    await asyncio.sleep(0)  # the transport's protocol is TLS's now, and is told of its connection next
    if early and not upgrading.done():
        asyncio.get_running_loop().call_soon(_feed, transport.get_protocol(), early)
    await upgrading


def _feed(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    while data:
        room = memoryview(protocol.get_buffer(len(data))).cast("B")
        part = data[: len(room)]
        room[: len(part)] = part
        protocol.buffer_updated(len(part))
        data = data[len(part) :]


class Connection:
    """See the module. `serve` runs it; `busy` tells whether a command is under way."""

    def __init__(
        self,
        stream: MysqlStream,
        database: Database,
        *,
        connection_id: int,
        users: mysql_login.Users | None,
        tls: ssl.SSLContext | None,
        clock: Clock,
        rng: Rng,
        limits: Limits,
    ) -> None:
        self._stream = stream
        self._database = database
        self._users = users
        self._tls = tls
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._capabilities = Capabilities(0)
        self._session = Session(connection_id=connection_id, backslash_escapes=True)
        self._prepared: dict[int, Prepared] = {}
        self._prepared_ids = 0
        self._commands: dict[int, Callable[[bytes], Awaitable[None]]] = {
            Commands.COM_QUERY: self._query,
            Commands.COM_PING: self._ping,
            Commands.COM_INIT_DB: self._init_db,
            Commands.COM_STMT_PREPARE: self._prepare,
            Commands.COM_STMT_EXECUTE: self._execute,
            Commands.COM_STMT_SEND_LONG_DATA: self._long_data,
            Commands.COM_STMT_RESET: self._reset_statement,
            Commands.COM_STMT_CLOSE: self._close_statement,
            Commands.COM_RESET_CONNECTION: self._reset,
            Commands.COM_CHANGE_USER: self._change_user,
            Commands.COM_FIELD_LIST: self._field_list,
            Commands.COM_SET_OPTION: self._set_option,
        }
        self.busy = False
        self.closing = False

    async def serve(self) -> None:
        """Until the client leaves, its login fails, or `closing` is set and no command is under way."""
        try:
            async with asyncio.timeout(self._limits.login_s):
                await self._login()
        except (Refused, TimeoutError):
            return
        while not self.closing:
            try:
                self._stream.reset_seq()
                data = await self._stream.read()
            except ConnectionClosed:
                return
            if not data or data[0] == Commands.COM_QUIT:
                return
            self.busy = True
            try:
                await self._command(data[0], data[1:])
            except Refused:
                return
            finally:
                self.busy = False

    async def _command(self, command: int, data: bytes) -> None:
        handler = self._commands.get(command)
        try:
            if handler is None:
                await self._send(error_packet(1047, b"08S01", f"command {command} is not there"))
            else:
                await handler(data)
        except YunheError as error:
            code, state = error_code(error)
            if isinstance(error, Internal):
                log.exception("mysql-internal-error")
            hint = f" (hint: {error.hint})" if error.hint else ""
            await self._send(error_packet(code, state, error.message + hint))
        except (ConnectionError, Refused):
            raise
        except Exception:
            log.exception("mysql-internal-error")
            await self._send(error_packet(1105, b"HY000", "an internal error; the server's log has it"))

    # ── login ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _login(self) -> None:
        challenge = mysql_login.challenge(self._rng)
        offered = CAPABILITIES | (Capabilities.CLIENT_SSL if self._tls else Capabilities(0))
        await self._send(
            packets.make_handshake_v10(
                capabilities=offered,
                server_charset=_UTF8,
                server_version=VERSION,
                connection_id=self._session.connection_id,
                auth_data=challenge + b"\0",
                status_flags=self._status(),
                auth_plugin_name=mysql_login.PLUGIN,
            )
        )
        try:
            response = packets.parse_handshake_response(capabilities=offered, data=await self._stream.read())
            if isinstance(response, packets.SSLRequest):
                if self._tls is None:
                    raise Refused
                await start_tls(self._stream, self._tls)
                response = packets.parse_handshake_response_41(capabilities=offered, data=await self._stream.read())
            elif self._tls is not None:
                await self._send(error_packet(3159, b"HY000", "Connections using insecure transport are prohibited"))
                raise Refused
        except (ValueError, KeyError, AssertionError, IndexError) as error:  # mimic's, of packets that are none
            await self._send(error_packet(1043, b"08S01", "Bad handshake"))
            raise Refused from error
        self._capabilities = response.capabilities
        if Capabilities.CLIENT_PROTOCOL_41 not in self._capabilities:
            await self._send(error_packet(1043, b"08S01", "the client is older than MySQL 4.1"))
            raise Refused
        await self._authenticate(response.username, response.auth_response, response.client_plugin, challenge)
        await self._enter(response.username, response.database)

    async def _enter(self, user: str, database: str | None) -> None:
        self._session.user = user
        if database:
            try:
                self._use(database)
            except NotFound as error:
                await self._send(error_packet(1049, b"42000", f"{error.message} ({error.hint})"))
                raise Refused from error
        else:
            self._session.database = None
        await self._send(self._ok())

    async def _authenticate(self, user: str, answer: bytes, plugin: str | None, challenge: bytes) -> None:
        """Raises Refused: told, and never to go on."""
        if self._users is None:
            return
        if plugin != mysql_login.PLUGIN:
            challenge = mysql_login.challenge(self._rng)
            await self._send(
                packets.make_auth_switch_request(
                    server_charset=_UTF8, plugin_name=mysql_login.PLUGIN, plugin_provided_data=challenge + b"\0"
                )
            )
            answer = await self._stream.read()
        if not self._users.admits(user, answer, challenge):
            log.warning("mysql-login-refused user=%r", user)
            await self._send(error_packet(1045, b"28000", f"Access denied for user {user!r}"))
            raise Refused
        await self._send(packets.make_auth_more_data(mysql_login.FAST_AUTH_SUCCESS))

    async def _change_user(self, data: bytes) -> None:
        try:
            change = packets.parse_com_change_user(capabilities=self._capabilities, client_charset=_UTF8, data=data)
        except (ValueError, KeyError, IndexError) as error:
            raise Refused from error
        # The answer in it is to a challenge that was used: whoever changes is asked anew.
        await self._authenticate(change.username, b"", None, b"")
        connection_id = self._session.connection_id
        self._session = Session(connection_id=connection_id, backslash_escapes=True)
        self._prepared.clear()
        await self._enter(change.username, change.database)

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ping(self, data: bytes) -> None:
        await self._send(self._ok())

    async def _init_db(self, data: bytes) -> None:
        self._use(data.decode("utf-8", "replace"))
        await self._send(self._ok())

    def _use(self, name: str) -> None:
        statements.use(self._database, self._session, name)

    async def _reset(self, data: bytes) -> None:
        self._session = Session(
            database=self._session.database,
            user=self._session.user,
            connection_id=self._session.connection_id,
            backslash_escapes=True,
        )
        self._prepared.clear()
        await self._send(self._ok())

    async def _set_option(self, data: bytes) -> None:
        if data[:2] == b"\0\0":
            self._capabilities |= Capabilities.CLIENT_MULTI_STATEMENTS
        elif data[:2] == b"\1\0":
            self._capabilities &= ~Capabilities.CLIENT_MULTI_STATEMENTS
        await self._send(self._ok_or_eof())

    async def _field_list(self, data: bytes) -> None:
        name = data.partition(b"\0")[0].decode("utf-8", "replace")
        schema = self._database.table(name)
        if schema is None:
            raise NotFound(f"there is no table {name!r}")
        arrow = pa.schema([(column.name, column.type.arrow) for column in schema.columns])
        for column in mysql_rows.columns(arrow):
            await self._send(column.definition(name) + b"\xfb", drain=False)
        await self._send(self._ok_or_eof())

    async def _query(self, data: bytes) -> None:
        sql = data.decode("utf-8", "surrogateescape")
        found = await statements.read(sql, self._session)
        if len(found) > 1 and Capabilities.CLIENT_MULTI_STATEMENTS not in self._capabilities:
            raise Invalid("several statements in one query", hint="the client can ask for multi-statements")
        for at, statement in enumerate(found):
            outcome = await statements.run(self._database, statement, sql, session=self._session, clock=self._clock)
            more = at + 1 < len(found)
            if outcome.data is None:
                await self._send(self._ok(affected=outcome.affected, more=more))
            else:
                await self._answer(outcome.data, mysql_rows.text_rows, more=more)

    # ── prepared statements ─────────────────────────────────────────────────────────────────────────────────────────

    async def _prepare(self, data: bytes) -> None:
        if len(self._prepared) >= STATEMENTS_MAX:
            raise Full(f"a connection has at most {STATEMENTS_MAX} prepared statements", hint="close some")
        sql = data.decode("utf-8", "surrogateescape")
        found = split(tokens(sql, backslash_escapes=True))
        if len(found) != 1:
            raise Invalid("one statement is prepared at a time")
        self._prepared_ids += 1
        prepared = Prepared(self._prepared_ids, sql, found[0])
        count = prepared.parameters
        if count > PARAMETERS_MAX:
            raise Invalid(f"{count} parameters, more than {PARAMETERS_MAX}")
        self._prepared[prepared.id] = prepared
        answer = PreparedStatement(stmt_id=prepared.id, sql="", num_params=count)
        await self._send(packets.make_com_stmt_prepare_ok(answer), drain=False)
        for _ in range(count):
            definition = packets.make_column_definition_41(
                server_charset=_UTF8, name="?", column_type=ColumnType.VAR_STRING
            )
            await self._send(definition, drain=False)
        if count and not self._eof_is_deprecated:
            await self._send(self._eof(), drain=False)
        await self._stream.drain()

    def _statement(self, data: bytes) -> Prepared:
        statement = self._prepared.get(int.from_bytes(data[:4], "little"))
        if statement is None:
            raise Invalid("no such prepared statement")
        return statement

    async def _execute(self, data: bytes) -> None:
        prepared = self._statement(data)
        flags = data[4] if len(data) > 4 else 0
        if flags & 0x07:
            raise Unsupported("cursors on the server are not there", hint="fetch the whole answer")
        try:
            bound = prepared.bound(data[9:])
        finally:
            prepared.long_data.clear()
        outcome = await statements.run(self._database, bound, prepared.sql, session=self._session, clock=self._clock)
        if outcome.data is None:
            await self._send(self._ok(affected=outcome.affected))
        else:
            await self._answer(outcome.data, mysql_rows.binary_rows)

    async def _long_data(self, data: bytes) -> None:
        """Has no answer, also when it fails: the execution then finds no parameter."""
        statement = self._prepared.get(int.from_bytes(data[:4], "little"))
        if statement is not None:
            try:
                statement.append(int.from_bytes(data[4:6], "little"), data[6:])
            except Invalid as error:
                log.warning("mysql-long-data-refused: %s", error)

    async def _reset_statement(self, data: bytes) -> None:
        self._statement(data).long_data.clear()
        await self._send(self._ok())

    async def _close_statement(self, data: bytes) -> None:
        self._prepared.pop(int.from_bytes(data[:4], "little"), None)

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, data: pa.Table, rows: mysql_rows.Encoding, *, more: bool = False) -> None:
        if len(data) > self._limits.rows_max:
            raise Invalid(
                f"the answer has {len(data)} rows, more than {self._limits.rows_max} of one answer",
                hint="aggregate, or ask with LIMIT; HTTP gives large answers as Arrow",
            )
        shown = mysql_rows.columns(data.schema)
        await self._send(packets.make_column_count(capabilities=self._capabilities, column_count=len(shown)), False)
        for column in shown:
            await self._send(column.definition(), drain=False)
        if not self._eof_is_deprecated:
            await self._send(self._eof(more=more), drain=False)
        batches = rows(data, shown)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            await self._rows(batch)
        await self._send(self._ok_or_eof(more=more))

    async def _rows(self, batch: Sequence[bytes]) -> None:
        if max(map(len, batch), default=0) < ROW_BYTES_SPLIT:
            self._stream.write_many(batch)
        else:
            for row in batch:
                await self._send(row, drain=False)
        await self._stream.drain()  # a client that reads slowly holds up its own answer only

    async def _send(self, packet: bytes, drain: bool = True) -> None:
        await self._stream.write(packet, drain=drain)

    def _status(self, more: bool = False) -> ServerStatus:
        status = ServerStatus.SERVER_STATUS_AUTOCOMMIT
        return status | ServerStatus.SERVER_MORE_RESULTS_EXISTS if more else status

    @property
    def _eof_is_deprecated(self) -> bool:
        return Capabilities.CLIENT_DEPRECATE_EOF in self._capabilities

    def _ok(self, *, affected: int = 0, more: bool = False, eof: bool = False) -> bytes:
        packet: bytes = packets.make_ok(
            capabilities=self._capabilities, status_flags=self._status(more), eof=eof, affected_rows=affected
        )
        return packet

    def _eof(self, *, more: bool = False) -> bytes:
        packet: bytes = packets.make_eof(capabilities=self._capabilities, status_flags=self._status(more))
        return packet

    def _ok_or_eof(self, *, more: bool = False) -> bytes:
        return self._ok(more=more, eof=True) if self._eof_is_deprecated else self._eof(more=more)
