"""One writer at the database: its socket, its ring, and how far its rows have got.

    HELLO ──► ring ──► DECLARE, FLUSH, WAKE …  ──► hang-up ──► what is published is still taken ──► ring given back

The socket's end is the writer's: it tells a killed one from a stopped one, which only has nothing to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from dataplane.tsdb.ring.channel import (
    STORED,
    UPTO,
    Frames,
    Kind,
    columns_content,
    content_of,
    error_content,
    frame,
    message,
)
from dataplane.tsdb.ring.layout import VERSION
from dataplane.tsdb.ring.memory import RingMemory
from dataplane.tsdb.ring.records import Declared
from providers.base.errors import Full, Internal, Invalid, YunheError

log = logging.getLogger(__name__)

RECEIVED_BYTES = 1 << 12
"""Read from a socket at once. A writer that has sent so much while nobody looked hammers, or declares wide tables: it
is looked at again after a pause."""
UNSENT_BYTES_MAX = 1 << 20
"""Answers that a writer has not read; one that lets more of them wait is hung up on."""


class Connection:
    """See the module. What moves rows is the server's; this one speaks with the writer."""

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        *,
        ring: Callable[[int | None], RingMemory],
        declare: Callable[[dict[str, Any]], Awaitable[Declared]],
        urge: Callable[[], None],
        pause: Callable[[], Awaitable[None]],
        tables_max: int,
    ) -> None:
        """`ring` makes one of so many bytes, or raises Full; `urge` has the rings looked at now;
        `pause` returns after a moment."""
        self.number = number
        self.memory: RingMemory | None = None
        self.declared: list[Declared] = []
        self.next_record = 1
        self.stored = 0
        """The last record of which all rows are stored, or refused."""
        self.refused = 0
        self.error: YunheError | None = None
        """Of the rows that were refused last."""
        self.ended = False
        """The writer is gone, or was hung up on: what it has published is taken, and nothing more."""
        self._sock = sock
        self._ring = ring
        self._declare = declare
        self._urge = urge
        self._pause = pause
        self._tables_max = tables_max
        self._flush: int | None = None
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()

    # ── from the writer ─────────────────────────────────────────────────────────────────────────────────────────────

    async def serve(self) -> None:
        """Until the writer hangs up, or does what no writer may."""
        frames = Frames()
        try:
            while not self.ended and (data := await self._loop.sock_recv(self._sock, RECEIVED_BYTES)):
                for kind, payload in frames.feed(data):
                    await self._take(kind, payload)
                if len(data) == RECEIVED_BYTES:
                    await self._pause()
        except OSError as error:
            log.info("ring-writer-gone: connection %d: %s", self.number, error)
        except YunheError as error:
            self.hang_up(error)
        except Exception as error:  # of what it said, and so its own
            log.exception("ring-connection-failed: %d", self.number)
            self.hang_up(Internal(f"the database could not do what was asked: {type(error).__name__}"))
        finally:
            self.ended = True
            if self.memory is not None:
                self.memory.end()
            self._urge()

    async def _take(self, kind: int, payload: bytes) -> None:
        if self.memory is None:
            if kind != Kind.HELLO:
                raise Invalid(f"a frame of kind {kind} before HELLO")
            self._welcome(content_of(payload))
        elif kind == Kind.WAKE and not payload:
            self._urge()
        elif kind == Kind.FLUSH and len(payload) == UPTO.size:
            [self._flush] = UPTO.unpack(payload)
            if self._flush <= self.stored:
                self.answer_flush()
            else:
                self._urge()
        elif kind == Kind.DECLARE:
            await self._declare_table(content_of(payload))
        else:
            raise Invalid(f"a frame of kind {kind} with {len(payload)} bytes, which this database does not know")

    def _welcome(self, content: dict[str, Any]) -> None:
        size = content.get("ring_bytes")
        if content.get("version") != VERSION:
            raise Invalid(f"the writer speaks version {content.get('version')!r}, and this database {VERSION}")
        if size is not None and type(size) is not int:
            raise Invalid("ring_bytes is a number")
        self.memory = self._ring(size)
        answer = message(Kind.WELCOME, {"version": VERSION, "ring_bytes": self.memory.size})
        socket.send_fds(self._sock, [answer], [self.memory.fd])
        self.memory.shared()
        self._urge()

    async def _declare_table(self, content: dict[str, Any]) -> None:
        try:
            if len(self.declared) >= self._tables_max:
                raise Full(f"{self._tables_max} tables are declared on this connection, and there can be no more")
            found = await self._declare(content)
        except YunheError as error:
            self.send(message(Kind.DECLARED, {"error": error_content(error)}))
            return
        self.declared.append(found)
        content = {"id": len(self.declared) - 1, "columns": columns_content(found.columns)}
        self.send(message(Kind.DECLARED, content))

    # ── to the writer ───────────────────────────────────────────────────────────────────────────────────────────────

    def answer_flush(self) -> None:
        """Tell a writer that has asked how far its rows have got, if it is far enough."""
        if self._flush is None or self._flush > self.stored:
            return
        self._flush = None
        error = b"" if self.error is None else json.dumps(error_content(self.error)).encode()
        self.send(frame(Kind.FLUSHED, STORED.pack(self.stored, self.refused) + error))

    def send_room(self) -> None:
        """Tell a writer that waits for it that there is room."""
        if self.memory is not None and self.memory.writer_waits():
            self.send(frame(Kind.ROOM))

    def send(self, data: bytes) -> None:
        """Send, or keep until the writer reads."""
        if self._sock.fileno() < 0:
            return
        if len(self._unsent) + len(data) > UNSENT_BYTES_MAX:
            self._unsent.clear()
            self.hang_up(Full("the writer does not read its answers"))
            return
        idle = not self._unsent
        self._unsent += data
        if idle:
            self._send_now()

    def _send_now(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unsent.clear()  # the reading side learns it as well
        else:
            del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._sock, self._send_now)
        else:
            self._loop.remove_writer(self._sock)

    def hang_up(self, why: YunheError | None = None) -> None:
        """Take nothing more, and say why where there is a reason."""
        if why is not None and not self.ended:
            log.warning("ring-hung-up: connection %d: %s", self.number, why)
            self.send(message(Kind.FAREWELL, error_content(why)))
        self.ended = True
        if self.memory is not None:
            self.memory.refuse()
            self.memory.end()
        # The reader of the socket wakes up with nothing; what was sent is still read by the other side.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Give socket and memory back."""
        if self._sock.fileno() >= 0:
            self._loop.remove_writer(self._sock)
            self._sock.close()
        if self.memory is not None:
            self.memory.close()
