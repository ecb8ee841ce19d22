"""What servers of a database's binary wires (MySQL, Postgres) have in common: who may listen, the connections, and
an end that lets commands under way end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from providers.base.errors import Invalid, Unavailable
from providers.base.hosts import is_loopback


@dataclass(frozen=True, slots=True)
class WireSettings:
    """Of one server."""

    connections_max: int = 200
    """More are told so, and closed."""
    rows_max: int = 1_000_000
    """Of one answer. It is in memory once as Arrow; rows are encoded as the client reads them."""
    login_s: float = 10.0
    """For a client to begin, and to log in."""
    close_s: float = 10.0
    """How long `close` waits for commands under way."""


SETTINGS = WireSettings()


class _Serving(Protocol):
    """A connection: `busy` while a command is under way, and told by `closing` to end after it."""

    closing: bool

    @property
    def busy(self) -> bool: ...


C = TypeVar("C", bound=_Serving)


class WireServer(Generic[C]):
    """See the module. A subclass listens (`_listen`), and enters each connection's task in `_serving`, with None while
    it has not begun."""

    wire: str
    """Its name in messages."""

    def __init__(self, host: str, port: int, *, open_to_all: bool, settings: WireSettings) -> None:
        """`port` 0: a free one. `open_to_all`: nobody has to log in.

        Raises:
            Invalid: open to all, at an address that others reach.
        """
        if open_to_all and not is_loopback(host):
            raise Invalid(
                f"the {self.wire} wire on {host} without users would let everyone in",
                hint="name users, or use 127.0.0.1",
            )
        self._host = host
        self._port = port
        self._settings = settings
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], C | None] = {}
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
        try:
            self._server = await self._listen()
        except OSError as error:
            raise Unavailable(f"the {self.wire} wire cannot listen on {self._host}:{self._port}: {error}") from error
        self._port = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        """Raises OSError: the port is taken."""
        raise NotImplementedError

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
