"""`GET /metrics` over HTTP/1.1, on a port of its own: it must not wait behind a process's clients, nor they for it.

A page is made on the loop, all at once, when it is asked for: there is one at a time. It is made anew no sooner than
after twenty times as long as making the last one took, so that no number of scrapers takes more than a twentieth of
the loop; in between they get the last one. Who does not ask, or does not take the answer, within TIMEOUT_MS is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from dataplane.contract.assignment import MetricsSpec
from dataplane.metrics.page import CONTENT_TYPE
from providers.base.clock import Clock
from providers.base.hosts import is_any_address

log = logging.getLogger(__name__)

PATH = "/metrics"
CONNECTIONS_MAX = 16
"""More are closed at once: two Prometheus servers and a person need three."""
BACKLOG = 16
HEAD_BYTES_MAX = 8 << 10
TIMEOUT_MS = 10_000
"""Prometheus' own default for a scrape."""
SHARE = 20
"""One part in so many of the loop's time goes into pages, at most."""


class MetricsEndpoint:
    """Serves what `page` makes."""

    def __init__(self, page: Callable[[], bytes], clock: Clock, *, timeout_ms: float = TIMEOUT_MS) -> None:
        self._page = page
        self._clock = clock
        self.timeout_ms = timeout_ms
        self.connections: set[_Scraper] = set()
        self._server: asyncio.Server | None = None
        self._made = b""
        self._again_ms = -1.0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port.

        Raises:
            OSError: the port cannot be had.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Scraper(self), host, port, backlog=BACKLOG)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening, and cut who is connected."""
        if self._server is not None:
            self._server.close()
        for scraper in list(self.connections):
            scraper.cut()

    def page(self) -> bytes:
        """The page, or the last one if that was dear."""
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._again_ms:
            self._made = self._page()
            done_ms = self._clock.monotonic_ms()
            self._again_ms = done_ms + (done_ms - now_ms) * (SHARE - 1)
        return self._made


async def serve_metrics(
    endpoint: MetricsEndpoint, spec: MetricsSpec, *, nth: int = 0, name: str = "127.0.0.1"
) -> str | None:
    """`host:port` where it listens; None: nowhere. A port that cannot be had is logged: not to be measured is no reason
    not to serve. `nth`: of those that share the spec's port; `name`: this host's, where it listens on all addresses."""
    if not spec.enabled:
        return None
    port = spec.port and spec.port + nth
    try:
        port = await endpoint.start(spec.host, port)
    except OSError as error:
        log.error("metrics-not-served", extra={"host": spec.host, "port": port, "error": str(error)})
        return None
    host = name if is_any_address(spec.host) else spec.host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Scraper(asyncio.Protocol):
    """A connection: one request, one answer, and it is closed."""

    def __init__(self, endpoint: MetricsEndpoint) -> None:
        self._endpoint = endpoint
        self._head = bytearray()
        self._answered = False
        self._transport: asyncio.Transport | None = None
        self._cutter: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._endpoint.connections) >= CONNECTIONS_MAX:
            self._transport.abort()
            return
        self._endpoint.connections.add(self)
        loop = asyncio.get_running_loop()
        self._cutter = loop.call_later(self._endpoint.timeout_ms / 1000, self.cut)

    def connection_lost(self, exc: Exception | None) -> None:
        self._endpoint.connections.discard(self)
        if self._cutter is not None:
            self._cutter.cancel()

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return  # one answer a connection
        self._head += data[:HEAD_BYTES_MAX]
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) < HEAD_BYTES_MAX:
            return
        self._answered = True
        status, kind, body = self._answer(bytes(self._head[:end])) if end >= 0 else _refused(431, "too long a head")
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        assert self._transport is not None
        self._transport.write(head.encode() + (b"" if self._head.startswith(b"HEAD ") else body))
        self._transport.close()

    def _answer(self, head: bytes) -> tuple[str, str, bytes]:
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _refused(400, "this is no request of HTTP/1.1")
        if words[1].partition(b"?")[0] != PATH.encode():
            return _refused(404, f"there is {PATH}, and nothing else")
        if words[0] not in (b"GET", b"HEAD"):
            return _refused(405, f"{PATH} is read by GET")
        try:
            return "200 OK", CONTENT_TYPE, self._endpoint.page()
        except Exception as error:  # a bug: what is measured goes on all the same
            log.error("metrics-failed", exc_info=error)
            return _refused(500, "the page could not be made; the log says why")


def _refused(code: int, why: str) -> tuple[str, str, bytes]:
    reasons = {400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Request Header Fields Too Large"}
    return f"{code} {reasons.get(code, 'Internal Server Error')}", "text/plain; charset=utf-8", f"{why}\n".encode()
