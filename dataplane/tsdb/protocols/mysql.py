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

from mysql_mimic.errors import MysqlError
from mysql_mimic.stream import MysqlStream

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols.mysql_connection import Connection, Limits, error_packet
from dataplane.tsdb.protocols.mysql_login import Users
from dataplane.tsdb.protocols.wire_server import SETTINGS, WireServer, WireSettings
from providers.base.clock import Clock, Rng, SystemClock, SystemRng

log = logging.getLogger(__name__)

PACKET_BYTES_MAX = 16 << 20
"""Of one command, in however many packets: `max_allowed_packet`."""
_CLOCK = SystemClock()
_RNG = SystemRng()


class MySqlServer(WireServer[Connection]):
    """See the module."""

    wire = "MySQL"

    def __init__(
        self,
        database: Database,
        host: str = "127.0.0.1",
        port: int = 0,
        users: Mapping[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        settings: WireSettings = SETTINGS,
        clock: Clock = _CLOCK,
        rng: Rng = _RNG,
    ) -> None:
        """`users`: passwords by name; None lets everyone in, on the loopback only. `port` 0: a free one.

        Raises:
            Invalid: no users, and an address that others reach; a user without a password.
        """
        super().__init__(host, port, open_to_all=users is None, settings=settings)
        self._database = database
        self._users = None if users is None else Users(users)
        self._tls = tls
        self._clock = clock
        self._rng = rng
        self._connections = 0

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_CommandReader(loop=loop), self._accepted, loop=loop)

        return await loop.create_server(protocol, self._host, self._port)

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
