"""TLS of the Kafka listener: certificates that are read again when their files change, and the door through which a
connection comes in: a bounded number of handshakes at a time, each with a time-out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cryptography import x509

from dataplane.contract.security import ClientAuth, TlsSpec
from providers.base.clock import Clock
from providers.base.errors import Invalid

log = logging.getLogger(__name__)

HANDSHAKES_MAX = 256
"""Connections that are not through the handshake yet; more are closed at once."""
HANDSHAKE_TIMEOUT_S = 10.0
SHUTDOWN_TIMEOUT_S = 5.0
"""How long a client that is said good-bye to may take to answer."""
RELOAD_INTERVAL_MS = 5_000
"""How often the certificate's files are looked at."""
ACCEPT_BACKLOG = 100
ACCEPT_AGAIN_MS = 100
"""After a connection could not be accepted."""


def load(spec: TlsSpec) -> ssl.SSLContext:
    """What the files make.

    Raises:
        Invalid: a file cannot be read, or is not what it should be, or key and certificate are of two minds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _use(spec.certificate_file, lambda: context.load_cert_chain(spec.certificate_file, spec.key_file, lambda: b""))
    if spec.client_auth is not ClientAuth.NONE:
        ca_file = spec.client_ca_file
        if ca_file is None:
            raise Invalid("clients are asked for certificates, and nobody is named who signs them")
        _use(ca_file, lambda: context.load_verify_locations(ca_file))
        required = spec.client_auth is ClientAuth.REQUIRED
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _use(file: str, what: Callable[[], None]) -> None:
    try:
        what()
    except (OSError, ValueError) as error:  # SSLError is an OSError
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise Invalid(f"TLS with {file} cannot be had: {why}", hint="PEM; an unencrypted key that fits") from error


class Tls:
    """The context that new connections get."""

    def __init__(self, spec: TlsSpec, clock: Clock) -> None:
        """
        Raises:
            Invalid: as `load`.
        """
        self._spec = spec
        self._clock = clock
        self._seen = self._look()
        self.context = load(spec)

    async def keep_fresh(self, interval_ms: float = RELOAD_INTERVAL_MS) -> None:
        """Load the files again whenever they have changed. What cannot be used is logged, and the old stays."""
        while True:
            await self._clock.sleep_ms(interval_ms)
            seen = self._look()
            if seen == self._seen:
                continue
            try:
                self.context = load(self._spec)
                log.info("certificate-reloaded", extra={"file": self._spec.certificate_file})
            except Invalid as error:  # half of a change, most often: the rest of it is seen next time
                log.warning("certificate-not-reloaded", extra={"error": str(error)})
            self._seen = seen

    def _look(self) -> tuple[object, ...]:
        seen: list[object] = []
        for file in (self._spec.certificate_file, self._spec.key_file, self._spec.client_ca_file):
            try:
                found = Path(file).stat() if file is not None else None
                seen.append(found and (found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                seen.append(None)
        return tuple(seen)


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
