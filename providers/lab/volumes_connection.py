"""One client's connection to the volume daemon: frames in, answers out, everything bounded.

    bytes ──► requests ──┬─► a write, or a look at the reservation, of a volume where all is well: begun at once
                         └─► anything else: one at a time, in order; what comes after it waits

The first way has no task and no thread: it is what a broker does thousands of times a second.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from providers.base.errors import Invalid, YunheError
from providers.lab import volumes_protocol as wire
from providers.lab.volumes_protocol import Op

if TYPE_CHECKING:
    from providers.lab.volumes_daemon import Shared

REQUESTS_QUEUED_MAX = 32
"""Requests of one connection that wait; beyond it the daemon stops reading from that connection."""
QUEUED_BYTES_MAX = 2 << 20
"""Payload that waits for one connection; a longer write is taken alone."""
MARKS_MAX = 4_096
"""Answers of one connection that are held back at a time."""
SHARED_BYTES_MAX = 64 << 20
"""Memory that one client may share."""


class Request(NamedTuple):
    """A tuple, for a broker makes thousands a second."""

    op: int
    id: int
    first: int
    second: int
    payload: bytes


class Answers(Protocol):
    """What carries requests out: the daemon."""

    def stops(self, who: Connection, request: Request) -> bool:
        """Asked once of each request, as it comes in: whether a fault keeps it from being done."""
        ...

    def begin(self, who: Connection, request: Request) -> bool:
        """Begin a request that needs no waiting; it answers through `who.reply`. False: not such a request, or not
        now."""
        ...

    async def answer(self, who: Connection, request: Request) -> bytes:
        """Carry out one request and return the reply's payload.

        Raises:
            YunheError: what the client is to be told.
        """
        ...


class Connection(asyncio.Protocol):
    """See the module; also the device handle that the connection may be."""

    def __init__(self, daemon: Answers, opened: Callable[[Connection], None], ended: Callable[[Connection], None]):
        self.closed = False
        self.volume: Shared | None = None
        self.zone = ""
        self.key: int | None = None
        self.once_registered = False
        self.writes = 0
        """Begun, and not over."""
        self._daemon = daemon
        self._opened = opened
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._queue: deque[Request] = deque()
        self._queued_bytes = 0
        self._reading_paused = False
        self._working: asyncio.Task[None] | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._memory: memoryview | None = None
        self._marks: dict[int, float] = {}

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        at, end, head = 0, len(self._received), wire.REQUEST.size
        while end - at >= head and not self.closed:
            length, op, request_id, first, second = wire.REQUEST.unpack_from(self._received, at)
            if length > wire.PAYLOAD_BYTES_MAX:
                self.cut()  # not one of our clients
                return
            if end - at < head + length:
                break
            payload = bytes(self._received[at + head : at + head + length]) if length else b""
            at += head + length
            request = Request(op, request_id, first, second, payload)
            if self._daemon.stops(self, request):
                continue
            if self._queue or self._working is not None or not self._daemon.begin(self, request):
                self._enqueue(request)
        del self._received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self.cut()
        self._ended(self)

    # ---- requests that wait for their turn

    def _enqueue(self, request: Request) -> None:
        self._queue.append(request)
        self._queued_bytes += len(request.payload)
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        self._throttle()

    def _throttle(self) -> None:
        full = len(self._queue) >= REQUESTS_QUEUED_MAX or self._queued_bytes > QUEUED_BYTES_MAX
        if self._transport is not None and full != self._reading_paused and not self.closed:
            self._reading_paused = full
            (self._transport.pause_reading if full else self._transport.resume_reading)()

    async def _work(self) -> None:
        try:
            while self._queue and not self.closed:
                request = self._queue.popleft()
                self._queued_bytes -= len(request.payload)
                self._throttle()
                if self._daemon.begin(self, request):
                    continue
                try:
                    self.reply(request.id, wire.OK, await self._daemon.answer(self, request))
                except YunheError as error:
                    self.reply(request.id, *wire.error_status(error))
                if request.op == Op.CLOSE:
                    self.cut()
        finally:
            self._working = None

    def mark(self, request_id: int, wait_ms: float) -> None:
        """Hold the answer to a request back for so long; below 0, lose it, and the connection with it."""
        if len(self._marks) < MARKS_MAX:
            self._marks[request_id] = wait_ms

    def reply(self, request_id: int, status: int, payload: bytes) -> None:
        """Answer a request; nobody hears it once the connection is cut."""
        if self._marks and (wait_ms := self._marks.pop(request_id, None)) is not None:
            if wait_ms < 0:
                self.cut()
            else:
                asyncio.get_running_loop().call_later(wait_ms / 1000, self._send, request_id, status, payload)
            return
        self._send(request_id, status, payload)

    def _send(self, request_id: int, status: int, payload: bytes) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(wire.REPLY.pack(len(payload), status, request_id) + payload)

    # ---- as a handle

    def share(self, path: str, size: int) -> None:
        """Map the client's memory.

        Raises:
            Invalid: it cannot be mapped; the client sends payloads instead.
        """
        if not 0 < size <= SHARED_BYTES_MAX or self._memory is not None or not path.startswith("/proc/"):
            raise Invalid(f"at most {SHARED_BYTES_MAX} bytes are shared, once, as /proc/PID/fd/N")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._memory = memoryview(mmap.mmap(descriptor, size))
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise Invalid(f"{path} cannot be mapped: {error}") from error

    def shared(self, position: int, length: int) -> memoryview | None:
        """Bytes of the client's memory; None when it has not shared them."""
        if self._memory is None or length <= 0 or position + length > len(self._memory) or position % mmap.PAGESIZE:
            return None
        return self._memory[position : position + length]

    def write_over(self) -> None:
        """A write that was begun is over."""
        self.writes -= 1
        if not self.writes and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def quiet(self) -> Awaitable[None]:
        """Once no write is under way."""
        self._quiet = asyncio.get_running_loop().create_future()
        if not self.writes:
            self._quiet.set_result(None)
        return self._quiet

    def cut(self) -> None:
        """End the connection; its queued requests are dropped."""
        if self.closed:
            return
        self.closed = True
        self._queue.clear()
        if self.volume is not None:
            self.volume.handles.discard(self)
        if self._transport is not None:
            self._transport.close()
