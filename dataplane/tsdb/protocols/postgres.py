"""The Postgres wire: GreptimeDB's SQLAlchemy dialect, psql, Grafana and every Postgres client connect here.

    client ──► accept (bounded) ──► TLS, if it asks ──► login (bounded time) ──► messages ──► statements ──► rows
      another ──► CancelRequest ──► the statement under way is given up, if it only reads

What is spoken is GreptimeDB's SQL (`statements.py`) with Postgres's strings, casts and parameters. Messages in
`postgres_messages.py`, a connection's life in `postgres_connection.py`, prepared statements in `postgres_extended.py`,
results in `postgres_rows.py`, what tools ask of the catalog in `postgres_catalog.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
from collections.abc import Mapping

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols import postgres_messages as messages
from dataplane.tsdb.protocols.postgres_connection import SECRET_BYTES, Connection, Limits
from dataplane.tsdb.protocols.postgres_login import Users
from dataplane.tsdb.protocols.wire_server import SETTINGS, WireServer, WireSettings
from providers.base.clock import Clock, Rng, SystemClock, SystemRng

log = logging.getLogger(__name__)

_FIRSTS_MAX = 4
"""Messages before the StartupMessage: a client asks once for GSSAPI and once for TLS."""
_CLOCK = SystemClock()
_RNG = SystemRng()


class PostgresServer(WireServer[Connection]):
    """See the module."""

    wire = "Postgres"

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
        """`users`: passwords by name; None lets everyone in, on the loopback only. `port` 0: a free one. `tls`: clients
        have to ask for it.

        Raises:
            Invalid: no users, and an address that others reach.
        """
        super().__init__(host, port, open_to_all=users is None, settings=settings)
        self._database = database
        self._passwords = users
        self._users: Users | None = None
        self._tls = tls
        self._clock = clock
        self._rng = rng
        self._processes = 0

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            Invalid: a user without a password. Unavailable: the port is taken.
        """
        if self._passwords is not None:
            self._users = await asyncio.to_thread(Users, self._passwords, self._rng)
        await super().start()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accepted, self._host, self._port)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._closing:
            writer.close()
            return
        self._serving[task] = None
        try:
            first = await self._first(reader, writer)
            if first is not None:
                await self._serve(task, first, reader, writer)
        except messages.Violation as error:
            writer.write(messages.error("FATAL", error.state, str(error)))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:  # SSLError is an OSError
            log.info("postgres-connection-lost: %s", error or type(error).__name__)
        except asyncio.CancelledError:
            pass  # by `close`, which waits for this task only
        finally:
            self._serving.pop(task, None)
            writer.close()

    async def _serve(
        self,
        task: asyncio.Task[None],
        first: messages.First,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if len(self._serving) > self._settings.connections_max:
            raise messages.Violation("sorry, too many clients already", "53300")
        self._processes = self._processes % 0x7FFF_FFFF + 1
        connection = Connection(
            reader,
            writer,
            self._database,
            process=self._processes,
            users=self._users,
            clock=self._clock,
            rng=self._rng,
            limits=Limits(rows_max=self._settings.rows_max, login_s=self._settings.login_s),
        )
        self._serving[task] = connection
        await connection.serve(first)

    async def _first(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> messages.First | None:
        """The StartupMessage, over TLS if that was asked for and is there; None: it was another's to cancel.

        Raises:
            Violation: what comes is none. TimeoutError: nothing comes.
        """
        secure = False
        async with asyncio.timeout(self._settings.login_s):
            for _ in range(_FIRSTS_MAX):
                first = await messages.read_first(reader)
                if first.code == messages.CANCEL_REQUEST:
                    self._cancel(first.body)
                    return None
                if first.code == messages.SSL_REQUEST and self._tls is not None and not secure:
                    if reader._buffer:  # type: ignore[attr-defined]
                        # It would be taken for what came over TLS.
                        raise messages.Violation("received unencrypted data after SSL request")
                    writer.write(b"S")
                    await writer.start_tls(self._tls)
                    secure = True
                elif first.code in (messages.SSL_REQUEST, messages.GSSENC_REQUEST):
                    writer.write(b"N")
                elif self._tls is not None and not secure:
                    raise messages.Violation("connections without TLS are refused: use sslmode=require", "28000")
                else:
                    return first
        raise messages.Violation("too many requests before the startup packet")

    def _cancel(self, body: bytes) -> None:
        """Without an answer, whether there was such a one or not."""
        if len(body) != 4 + SECRET_BYTES:
            return
        process, secret = int.from_bytes(body[:4], "big"), body[4:]
        for connection in self._serving.values():
            if connection is not None and connection.process == process:
                if hmac.compare_digest(connection.secret, secret):
                    connection.cancel()
                return
