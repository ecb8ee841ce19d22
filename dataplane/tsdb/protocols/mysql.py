"""The MySQL wire: Grafana, SQL tools and every MySQL client connect here.

    client ──► accept (bounded) ──► login (bounded time) ──► command ──► statements.run ──► rows, batch by batch

What is spoken is GreptimeDB's SQL (`statements.py`) with MySQL's escapes in strings. Results in `mysql_rows.py`,
prepared statements in `mysql_prepared.py`, a connection's life in `mysql_connection.py`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from mysql_mimic.errors import MysqlError
from mysql_mimic.stream import MysqlStream

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols.mysql_connection import Connection, Limits, error_packet
from dataplane.tsdb.protocols.mysql_login import Users
from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Invalid, Unavailable
from providers.base.hosts import is_loopback

log = logging.getLogger(__name__)

PACKET_BYTES_MAX = 16 << 20
"""Of one command, in however many packets: `max_allowed_packet`."""
_CLOCK = SystemClock()
_RNG = SystemRng()


@dataclass(frozen=True, slots=True)
class MySqlSettings:
    """Of one server."""

    connections_max: int = 200
    """More are told so (1040), and closed."""
    rows_max: int = 1_000_000
    """Of one answer. It is in memory once as Arrow; rows are encoded as the client reads them."""
    login_s: float = 10.0
    """For a client to log in."""
    close_s: float = 10.0
    """How long `close` waits for commands under way."""


class MySqlServer:
    """See the module."""

    def __init__(
        self,
        database: Database,
        host: str = "127.0.0.1",
        port: int = 0,
        users: Mapping[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        settings: MySqlSettings = MySqlSettings(),
        clock: Clock = _CLOCK,
        rng: Rng = _RNG,
    ) -> None:
        """`users`: passwords by name; None lets everyone in, on the loopback only. `port` 0: a free one.

        Raises:
            Invalid: no users, and an address that others reach; a user without a password.
        """
        if users is None and not is_loopback(host):
            raise Invalid(
                f"the MySQL wire on {host} without users would let everyone in", hint="name users, or use 127.0.0.1"
            )
        self._database = database
        self._host = host
        self._port = port
        self._users = None if users is None else Users(users)
        self._tls = tls
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], Connection | None] = {}
        self._connections = 0
        self._closing = False

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return self._port

    @property
    def connections(self) -> int:
        """Of clients, now."""
        return len(self._serving)

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            Unavailable: the port is taken.
        """
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_CommandReader(loop=loop), self._accepted, loop=loop)

        try:
            self._server = await loop.create_server(protocol, self._host, self._port)
        except OSError as error:
            raise Unavailable(f"the MySQL wire cannot listen on {self._host}:{self._port}: {error}") from error
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Accept no one, let commands under way end within `close_s`, and close all connections."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for task, connection in list(self._serving.items()):
            if connection is None or not connection.busy:
                task.cancel()
            else:
                connection.closing = True
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=self._settings.close_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._server is not None:
            await self._server.wait_closed()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._closing:
            writer.close()
            return
        stream = MysqlStream(reader, writer)
        connection: Connection | None = None
        self._serving[task] = None
        try:
            if len(self._serving) > self._settings.connections_max:
                await stream.write(error_packet(1040, b"08004", "Too many connections"))
                return
            self._connections = self._connections % 0xFFFF_FFFF + 1
            connection = Connection(
                stream,
                self._database,
                connection_id=self._connections,
                users=self._users,
                tls=self._tls,
                clock=self._clock,
                rng=self._rng,
                limits=Limits(rows_max=self._settings.rows_max, login_s=self._settings.login_s),
            )
            self._serving[task] = connection
            await connection.serve()
        except _TooLong:
            await stream.write(error_packet(1153, b"08S01", f"a command longer than {PACKET_BYTES_MAX} bytes"))
        except (ConnectionError, asyncio.IncompleteReadError, MysqlError, ssl.SSLError) as error:
            log.info("mysql-connection-lost: %s", error)
        except asyncio.CancelledError:
            pass  # by `close`, which waits for this task only
        finally:
            self._serving.pop(task, None)
            writer.close()


class _TooLong(Exception):
    """A command of more bytes than one may have."""


class _CommandReader(asyncio.StreamReader):
    """What mysql-mimic reads packets from. It reads a header by `read(4)`, which may come in pieces, and packets
    without a bound on their number: here a header is whole, and a command's bytes are counted."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._command_bytes = 0

    async def read(self, n: int = -1) -> bytes:
        try:
            header = await self.readexactly(n)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return b""
        length = int.from_bytes(header[:3], "little")
        self._command_bytes += length
        if self._command_bytes > PACKET_BYTES_MAX:
            raise _TooLong
        if length < 0xFFFFFF:
            self._command_bytes = 0
        return header
