"""TLS of the Kafka listener: the door through which a connection comes in, a bounded number of handshakes at a time,
each with a time-out. The certificates are `dataplane/certificates.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from cryptography import x509

from dataplane.certificates import Tls
from providers.base.clock import Clock

log = logging.getLogger(__name__)

HANDSHAKES_MAX = 256
"""Connections that are not through the handshake yet; more are closed at once."""
HANDSHAKE_TIMEOUT_S = 10.0
SHUTDOWN_TIMEOUT_S = 5.0
"""How long a client that is said good-bye to may take to answer."""
ACCEPT_BACKLOG = 100
ACCEPT_AGAIN_MS = 100
"""After a connection could not be accepted."""


def principal_of(transport: asyncio.BaseTransport) -> str | None:
    """`User:` and the subject of the certificate that the client has shown (RFC 4514, as Kafka writes it); None when
    it showed none."""
    channel: Any = transport.get_extra_info("ssl_object")
    shown = channel.getpeercert(True) if channel is not None else None
    if not shown:
        return None
    return f"User:{x509.load_der_x509_certificate(shown).subject.rfc4514_string()}"


class TlsListener:
    """Accepts connections and lets those in whose handshake succeeds, a bounded number of them at a time; `connected`
    makes the protocol of one."""

    def __init__(self, tls: Tls, connected: Callable[[], asyncio.BufferedProtocol], clock: Clock) -> None:
        self._tls = tls
        self._connected = connected
        self._clock = clock
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.handshakes = 0
        """Under way now."""

    def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port.

        Raises:
            OSError: the port cannot be had.
        """
        self._socket = socket.create_server((host, port), backlog=ACCEPT_BACKLOG)
        self._socket.setblocking(False)
        self._begin(self._accept(self._socket))
        self._begin(self._tls.keep_fresh())
        bound: int = self._socket.getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening, and end what is not through the handshake."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:  # out of file descriptors, most often
                log.warning("accept-failed", extra={"error": str(error)})
                await self._clock.sleep_ms(ACCEPT_AGAIN_MS)
                continue
            if self.handshakes >= HANDSHAKES_MAX:
                accepted.close()
                continue
            self.handshakes += 1
            self._begin(self._shake_hands(accepted, peer[0]))

    async def _shake_hands(self, accepted: socket.socket, peer: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connected,
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except OSError as error:  # SSLError and time-outs are
            log.info("tls-handshake-failed", extra={"peer": peer, "error": str(error)})
            accepted.close()
        finally:
            self.handshakes -= 1
