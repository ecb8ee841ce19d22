"""HTTP/1.1 connections on asyncio: requests taken in one by one, each answered before the next is begun, everything
bounded.

    bytes ──► head ──► body (`wire_body.py`) ──► handler ··· answer ──► bytes
                                                            │
                              the next head, if it is here already

A connection is not read from while its body has no room, or while requests that came too early fill its buffer. Clients
that stall in the middle of a request, or do not take their answer, are cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, cast

from providers.base.errors import YunheError
from providers.lab.storage_payload import EMPTY, Payload
from providers.lab.wire import Content, Reply
from providers.lab.wire_body import Body, Chunks, Spooling, digests, framed
from providers.lab.wire_http import HEAD_BYTES_MAX, Head, Malformed, encode_head, parse_head

BUFFER_BYTES = 64 << 10
JOIN_BELOW_BYTES = 64 << 10
"""A head and a body shorter than this together are sent as one piece."""
LINGER_S = 1.0
"""After a refusal what still comes is read and dropped for so long: closed at once, the answer could be lost."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Bounds of the server."""

    body_bytes_max: int = 5 << 30
    """S3's, GCS's and OSS's limit on a put in one request (5 GiB; Azure's 5,000 MiB is a little less)."""
    connections_max: int = 1_024
    """More are closed at once: each may hold a body's buffers."""
    request_timeout_ms: float = 60_000
    """A request of which nothing comes for so long is cut off; so is a client that does not take its answer."""
    idle_max_ms: float = 600_000
    """A connection without requests for so long is closed."""
    write_bytes_max: int = 2 << 20
    """Of an answer that the socket has not taken; then no more of it is read from the disk."""


class Handler(Protocol):
    """What a server does with requests."""

    def handle(self, connection: Connection, head: Head, payload: Payload) -> None:
        """Sooner or later call `connection.answer` or `connection.abort`, and close the payload. `target` and headers
        are the client's: anything."""
        ...

    def refuse(self, status: int, message: str) -> Reply:
        """The answer to what is no request, or too large, or could not be stored."""
        ...


class HttpServer:
    """Listens, and keeps its connections within the bounds."""

    def __init__(self, handler: Handler, spooling: Spooling, readers: Executor, settings: HttpSettings) -> None:
        """`readers`: threads that large answers are read by."""
        self.handler = handler
        self.spooling = spooling
        self.readers = readers
        self.settings = settings
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the bound port.

        Raises:
            OSError: the port cannot be had.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, reuse_address=True, backlog=512)
        self._sweep()
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def stop_listening(self) -> None:
        """No more connections; those without a request under way are closed."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_when_idle()

    async def close(self) -> None:
        """Cut every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks = [connection.sending for connection in self.connections if connection.sending is not None]
        for connection in list(self.connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self.connections):
            connection.cut_if_stalled(loop.time())
        self._sweeper = loop.call_later(min(1.0, self.settings.request_timeout_ms / 4000), self._sweep)


class Connection(asyncio.BufferedProtocol):
    """See the module."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._settings = server.settings
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._bytes = bytearray(BUFFER_BYTES)
        self._buffer = memoryview(self._bytes)
        self._at = 0  # what is before it has been taken
        self._have = 0
        self._state = "head"  # ─► body ─► answering ─► head …; or ─► lingering
        self._head: Head | None = None
        self._body: Body | None = None
        self._left = 0  # of a body with a length
        self._chunks: Chunks | None = None
        self._outer: Chunks | None = None
        self._direct = False
        self._running = False
        self._closing = False
        self._reading_paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._since_s = self._loop.time()
        self.sending: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()
        """Set when there is nobody to answer any more."""

    # ── the transport's side ────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        if len(self._server.connections) >= self._settings.connections_max:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(self._settings.write_bytes_max)
        self._server.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        self._direct = False
        if self._state == "body" and self._left and self._outer is None and self._at == self._have:
            assert self._body is not None
            room = self._body.room()
            if room is not None:
                self._direct = True
                return room[: self._left]
        if self._at and (self._at == self._have or self._have == BUFFER_BYTES):
            self._shift()
        return self._buffer[self._have :]

    def _shift(self) -> None:
        self._bytes[: self._have - self._at] = bytes(self._buffer[self._at : self._have])
        self._have -= self._at
        self._at = 0

    def buffer_updated(self, nbytes: int) -> None:
        self._since_s = self._loop.time()
        if self._state == "lingering":
            self._at = self._have = 0
            return
        if self._direct and self._body is not None:
            self._left -= nbytes
            self._body.advance(nbytes)
        else:
            self._have += nbytes
        self._go_on()

    def eof_received(self) -> bool:
        return False  # what is under way has no reader: closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        if self._state == "body" and self._body is not None:
            self._body.moved = lambda: None
            self._body.abandon()
        self._writable.set()
        self.lost.set()
        self._state = "lingering"

    def pause_writing(self) -> None:
        self._writable.clear()
        self._since_s = self._loop.time()

    def resume_writing(self) -> None:
        self._writable.set()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Close it when the request under way is answered, or now."""
        self._closing = True
        if self._state == "head" and self._transport is not None:
            self._transport.close()

    def cut_if_stalled(self, now_s: float) -> None:
        quiet_ms = (now_s - self._since_s) * 1000
        if self._state == "head":
            stalled = quiet_ms > (self._settings.request_timeout_ms if self._have else self._settings.idle_max_ms)
        elif self._state == "body":
            stalled = quiet_ms > self._settings.request_timeout_ms and not self._reading_paused
        else:
            stalled = quiet_ms > self._settings.request_timeout_ms and not self._writable.is_set()
        if stalled:
            self.abort()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _go_on(self) -> None:
        """Take what is here, as far as it goes."""
        if self._running:
            return
        self._running = True
        try:
            while self._transport is not None and (
                (self._state == "head" and self._take_head()) or (self._state == "body" and self._take_body())
            ):
                pass
        except Malformed as error:
            self._refuse(error)
        finally:
            self._running = False
        self._throttle()

    def _take_head(self) -> bool:
        end = self._bytes.find(b"\r\n\r\n", self._at, self._have)
        if end < 0:
            if self._have - self._at > HEAD_BYTES_MAX:
                raise Malformed(431, f"a request's head has at most {HEAD_BYTES_MAX} bytes")
            return False
        if end - self._at > HEAD_BYTES_MAX:
            raise Malformed(431, f"a request's head has at most {HEAD_BYTES_MAX} bytes")
        raw = bytes(self._buffer[self._at : end + 4])
        self._at = end + 4
        head = self._head = parse_head(raw)
        if head.length == 0 and not framed(head.headers):
            self._begin_answer(EMPTY)
        else:
            self._begin_body(head)
        return True

    def _begin_body(self, head: Head) -> None:
        if (head.length or 0) > self._settings.body_bytes_max + (self._settings.body_bytes_max >> 3):
            raise Malformed(413, f"a body has at most {self._settings.body_bytes_max} bytes")
        headers = head.headers
        chunked = framed(headers)
        expected = head.length
        if chunked:
            decoded = headers.get("x-amz-decoded-content-length", "")
            if not (decoded.isascii() and decoded.isdigit() and len(decoded) < 19):
                raise Malformed(411, "an aws-chunked body needs X-Amz-Decoded-Content-Length")
            expected = int(decoded)
        if (expected or 0) > self._settings.body_bytes_max:
            raise Malformed(413, f"a body has at most {self._settings.body_bytes_max} bytes")
        body = Body(self._server.spooling, expected, self._settings.body_bytes_max, digests(head.headers))
        body.moved = self._go_on
        self._body, self._left, self._state = body, head.length or 0, "body"
        self._chunks = self._outer = None
        if chunked:
            signed = headers.get("x-amz-content-sha256", "").startswith("STREAMING-AWS4-")
            self._chunks = self._outer = Chunks(body, signed=signed, keeps_trailers=True)
        if head.length is None:
            self._outer = Chunks(self._chunks or body)
        if head.expects_continue and self._at == self._have and self._transport is not None:
            self._transport.write(_CONTINUE)

    def _take_body(self) -> bool:
        """Move bytes into the body; whether the state changed."""
        body, head = self._body, self._head
        assert body is not None and head is not None
        if body.payload is not None:
            self._begin_answer(body.payload)
            return True
        if body.failed is not None and body.ended:
            self._answer_failed(body.failed)
            return True
        if body.ended:
            return False
        if self._outer is not None:
            limit = self._have if head.length is None else min(self._have, self._at + self._left)
            taken = self._outer.feed(self._buffer[self._at : limit])
            self._at += taken
            self._left -= taken
            if self._outer.over:
                if head.length is not None and self._left:
                    raise Malformed(400, "the body goes on after its last chunk")
                body.end()
                return True
            if head.length is not None and self._left == 0:
                raise Malformed(400, "the body ends before its last chunk")
            return False
        while self._left and self._at < self._have:
            room = body.room()
            if room is None:
                return False
            taken = min(len(room), self._left, self._have - self._at)
            room[:taken] = self._buffer[self._at : self._at + taken]
            self._at += taken
            self._left -= taken
            body.advance(taken)
        if self._left == 0:
            body.end()
            return True
        return False

    def _begin_answer(self, payload: Payload) -> None:
        head = self._head
        assert head is not None
        self._state, self._body = "answering", None
        self._server.handler.handle(self, head, payload)

    def _answer_failed(self, error: YunheError) -> None:
        self._state, self._body = "answering", None
        self.answer(self._server.handler.refuse(503, error.message))

    def _throttle(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        blocked = self._have - self._at == BUFFER_BYTES
        if self._state == "body" and self._body is not None and not self._body.ended:
            blocked = self._body.room() is None
        if blocked != self._reading_paused:
            self._reading_paused = blocked
            (self._transport.pause_reading if blocked else self._transport.resume_reading)()

    def _refuse(self, error: Malformed) -> None:
        """The answer, and then no more."""
        if self._body is not None:
            self._body.moved = lambda: None
            self._body.abandon()
            self._body = None
        if self._transport is None:
            return
        self._head, self._closing = None, True
        self._write_answer(self._server.handler.refuse(error.status, str(error)))

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def gone(self) -> bool:
        """There is nobody to answer any more."""
        return self._transport is None or self._transport.is_closing()

    def answer(self, reply: Reply) -> None:
        """Send the answer of the request under way, and go on to the next."""
        if self.gone:
            if not isinstance(reply.body, bytes):
                reply.body.close()
            return
        self._write_answer(reply)

    def _write_answer(self, reply: Reply) -> None:
        assert self._transport is not None
        head = self._head
        close = self._closing or head is None or not head.keep_alive
        bodyless = (head is not None and head.method == "HEAD") or reply.status in (204, 304)
        if not isinstance(reply.body, bytes):
            content = reply.body
            if bodyless or content.size == 0:
                content.close()
            self.sending = self._loop.create_task(self._send(reply, content, bodyless, close))
            return
        body = b"" if bodyless else reply.body
        first = encode_head(reply.status, reply.headers, None if bodyless else len(body), close=close)
        if len(body) < JOIN_BELOW_BYTES:
            self._transport.write(first + body)
        else:
            self._transport.writelines([first, body])
        self._answered(close)

    async def _send(self, reply: Reply, content: Content, bodyless: bool, close: bool) -> None:
        """Stream a large answer: one piece is read and checked while the one before is sent."""
        try:
            pieces = content.pieces()

            def read() -> bytes | None:
                return next(pieces, None)

            following = None if bodyless else self._loop.run_in_executor(self._server.readers, read)
            first = encode_head(reply.status, reply.headers, None if bodyless else content.size, close=close)
            while following is not None:
                piece = await following
                following = None
                if piece is not None:
                    following = self._loop.run_in_executor(self._server.readers, read)
                    await self._writable.wait()
                    if self._transport is None:
                        with contextlib.suppress(YunheError):
                            await following
                        return
                    self._transport.writelines([first, piece] if first else [piece])
                    first = b""
                    self._since_s = self._loop.time()
            if self._transport is None:
                return
            if first:
                self._transport.write(first)
            self._answered(close)
        except YunheError:
            self.abort()  # a short answer, which no client takes for a whole one
        finally:
            content.close()
            self.sending = None

    def _answered(self, close: bool) -> None:
        if self._transport is None:
            return
        if close:
            self._state = "lingering"
            if self._head is None:
                self._loop.call_later(LINGER_S, self._close)
            else:
                self._transport.close()
            return
        self._state, self._head = "head", None
        self._since_s = self._loop.time()
        self._go_on()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
