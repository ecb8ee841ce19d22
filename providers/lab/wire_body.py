"""Request bodies as they arrive: framing taken off, small ones kept in memory, large ones written to a spool while the
next bytes come in.

    socket ──► Body.room ──► full buffers ──► a thread: checksums, write, now and then a sync ──► Payload

No body holds more than three buffers, and no more than SPOOLS_MAX bodies are spooled at once: whoever has no room left
is not read from.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from providers.base.errors import YunheError
from providers.lab.storage_files import BLOCK_BYTES, DataFiles, Spool
from providers.lab.storage_payload import NO_TRAILERS, Payload, SignedChunk
from providers.lab.wire_http import Malformed

BUFFER_BYTES = 1 << 20
BUFFERS_MAX = 3
SPOOLS_MAX = 32
LINE_BYTES_MAX = 4 << 10
"""Of a chunk's first line, and of each trailer."""
TRAILERS_MAX = 16
SIGNED_CHUNKS_MAX = 100_000

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")


class Spooling:
    """What all bodies of a server share: where they are written, by which threads, and how many at once."""

    def __init__(self, files: DataFiles, threads: Executor) -> None:
        self.files = files
        self.threads = threads
        self._active = 0
        self._waiting: deque[Callable[[], None]] = deque()

    def enter(self, begin: Callable[[], None]) -> None:
        """Call `begin`, now or when another body is through."""
        if self._active < SPOOLS_MAX:
            self._active += 1
            begin()
        else:
            self._waiting.append(begin)

    def leave(self) -> None:
        self._active -= 1
        if self._waiting:
            self.enter(self._waiting.popleft())


class Body:
    """One request's body. `moved` is called whenever there is room again, or the payload or a failure is known."""

    def __init__(self, spooling: Spooling, expected: int | None, bytes_max: int, digests: tuple[str, ...]) -> None:
        """`expected`: bytes, if known. `bytes_max`: more end in a `Malformed` of status 413."""
        self._spooling = spooling
        self._expected = expected
        self._bytes_max = bytes_max
        self._digests = digests
        self.size = 0
        self.payload: Payload | None = None
        self.failed: YunheError | None = None
        self.moved: Callable[[], None] = lambda: None
        small = expected is not None and expected <= BLOCK_BYTES
        self._buffer: memoryview | None = memoryview(bytearray(expected if small and expected else BLOCK_BYTES))
        self._filled = 0
        self._spool: Spool | None = None
        self._state = "memory"  # ─► waiting ─► spooling ─► over
        self._full: deque[memoryview] = deque()
        self._spare: list[memoryview] = []
        self._buffers = 0
        self._writing = False
        self.ended = False
        self.trailers: Mapping[str, str] = NO_TRAILERS
        self.signed_chunks: list[SignedChunk] = []
        if not small and expected is not None:
            self._enter()

    def room(self) -> memoryview | None:
        """Where the next bytes go; None: wait for `moved`.

        Raises:
            Malformed: there are as many as were expected.
        """
        if self._expected is not None and self.size >= self._expected:
            raise Malformed(400, f"the body has more than the {self._expected} bytes that its head says")
        if self._state == "memory" and self._filled == BLOCK_BYTES:
            self._enter()
        if self.failed is not None:
            return memoryview(bytearray(BLOCK_BYTES))  # passed over, so that the client reads why
        if self._buffer is None and self._state == "spooling":
            if self._spare:
                self._buffer = self._spare.pop()
            elif self._buffers < BUFFERS_MAX:
                self._buffers += 1
                self._buffer = memoryview(bytearray(BUFFER_BYTES))
        if self._state == "waiting" or self._buffer is None:
            return None
        return self._buffer[self._filled :]

    def advance(self, count: int) -> None:
        """So many bytes are in what `room` gave.

        Raises:
            Malformed: too large.
        """
        self.size += count
        if self.size > self._bytes_max:
            raise Malformed(413, f"a body has at most {self._bytes_max} bytes")
        if self.failed is not None or self._buffer is None:
            return
        self._filled += count
        if self._filled == len(self._buffer) and self._state == "spooling":
            self._hand_over()

    def end(self) -> None:
        """All bytes are there: `payload` or `failed` is known when `moved` is called, or at once.

        Raises:
            Malformed: fewer than expected.
        """
        if self._expected is not None and self.size != self._expected:
            raise Malformed(400, f"the body has {self.size} bytes, not {self._expected} as its head says")
        self.ended = True
        if self._state == "memory":
            assert self._buffer is not None
            self._state = "over"
            data = bytes(self._buffer[: self._filled]) if self._filled else b""
            self.payload = Payload(data, trailers=self.trailers, signed_chunks=self.signed_chunks)
        elif self._state == "spooling":
            if self._filled and self.failed is None:
                self._hand_over()
            self._work()

    def abandon(self) -> None:
        """The request is over, or will never be whole."""
        self.ended = True
        if self.payload is not None:
            self.payload.close()
        elif self._state == "waiting":
            self._state = "over"
        elif self._state == "spooling" and not self._writing:
            self._leave()
        elif self._state == "spooling":
            self._state = "leaving"

    # ── spooling ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _enter(self) -> None:
        self._state = "waiting"
        self._spooling.enter(self._begin)

    def _begin(self) -> None:
        if self._state != "waiting":
            self._spooling.leave()  # abandoned meanwhile
            return
        self._state = "spooling"
        first, self._buffer = self._buffer, None
        filled, self._filled = self._filled, 0
        try:
            self._spool = Spool(self._spooling.files, self._expected or 0, self._digests)
        except YunheError as error:
            self.failed = error
        else:
            if filled and first is not None:
                self._full.append(first[:filled])
                self._work()
        asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self.moved()

    def _hand_over(self) -> None:
        assert self._buffer is not None
        self._full.append(self._buffer[: self._filled])
        self._buffer, self._filled = None, 0
        self._work()

    def _work(self) -> None:
        if self._writing or self._state != "spooling":
            return
        loop = asyncio.get_running_loop()
        if self.failed is not None:
            if self.ended:
                self._leave()
                loop.call_soon(self._tell)
        elif self._full:
            assert self._spool is not None
            self._writing = True
            piece = self._full.popleft()
            loop.run_in_executor(self._spooling.threads, self._spool.write, piece).add_done_callback(
                lambda done: self._written(done, piece)
            )
        elif self.ended:
            self._writing = True
            loop.run_in_executor(self._spooling.threads, self._finish).add_done_callback(self._finished)

    def _written(self, done: asyncio.Future[None], piece: memoryview) -> None:
        self._writing = False
        self._fail_by(done)
        if isinstance(piece.obj, bytearray) and len(piece.obj) == BUFFER_BYTES:
            self._spare.append(memoryview(piece.obj))
        if self._state == "leaving":
            self._leave()
            return
        self._work()
        self.moved()

    def _finish(self) -> Payload:
        assert self._spool is not None
        return Payload(self._spool, trailers=self.trailers, signed_chunks=self.signed_chunks)

    def _finished(self, done: asyncio.Future[Payload]) -> None:
        self._writing = False
        self._fail_by(done)
        if self._state == "leaving" or self.failed is not None:
            self._leave()
        else:
            self.payload = done.result()
            self._state = "over"
            self._spooling.leave()
        self.moved()

    def _fail_by(self, done: asyncio.Future[Payload] | asyncio.Future[None]) -> None:
        error = done.exception()
        if isinstance(error, YunheError):
            self.failed = error
            self._full.clear()
        elif error is not None:
            raise error

    def _leave(self) -> None:
        self._state = "over"
        self._buffer = None
        self._full.clear()
        self._spare.clear()
        if self._spool is not None:
            self._spool.abandon()
        self._spooling.leave()


class Chunks:
    """Takes the framing off a chunked body, HTTP's or `aws-chunked` (the same but for signatures): give it bytes, it
    puts what they hold into a body, or into the framing inside."""

    def __init__(self, into: Body | Chunks, *, signed: bool = False, keeps_trailers: bool = False) -> None:
        self._into = into
        self._signed = signed
        self._keeps_trailers = keeps_trailers
        self._line = b""
        self._left = 0
        self._state = "size"  # ─► data ─► mark ─► size …; at the last chunk ─► trailers ─► over
        self._signature = ""
        self._digest = hashlib.sha256()
        self._trailers: dict[str, str] = {}

    @property
    def over(self) -> bool:
        return self._state == "over"

    @property
    def body(self) -> Body:
        return self._into if isinstance(self._into, Body) else self._into.body

    def feed(self, data: memoryview) -> int:
        """How many of the bytes were taken: fewer when there is no room, or the body ends before.

        Raises:
            Malformed
        """
        at = 0
        while at < len(data) and self._state != "over":
            if self._state == "data":
                taken = self._put(data[at : at + self._left])
                if taken == 0:
                    break
                if self._signed:
                    self._digest.update(data[at : at + taken])
                self._left -= taken
                at += taken
                if self._left == 0:
                    self._state = "mark"
                continue
            end = bytes(data[at : at + LINE_BYTES_MAX + 2 - len(self._line)]).find(b"\n")
            self._line += bytes(data[at:] if end < 0 else data[at : at + end + 1])[: LINE_BYTES_MAX + 2]
            if end < 0:
                if len(self._line) > LINE_BYTES_MAX:
                    raise Malformed(400, "a line of a chunked body is too long")
                return len(data)
            at += end + 1
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n"):
                raise Malformed(400, "a line of a chunked body does not end in CR LF")
            self._take_line(line[:-2])
        return at

    def _put(self, data: memoryview) -> int:
        if isinstance(self._into, Chunks):
            taken = self._into.feed(data)
            if taken == 0 and self._into.over:
                raise Malformed(400, "the body goes on after its last chunk")
            return taken
        room = self._into.room()
        if room is None:
            return 0
        taken = min(len(room), len(data))
        room[:taken] = data[:taken]
        self._into.advance(taken)
        return taken

    def _take_line(self, line: bytes) -> None:
        if self._state == "mark":
            if line:
                raise Malformed(400, "a chunk is longer than it said")
            self._end_chunk()
            self._state = "size"
        elif self._state == "size":
            found = _SIZE.fullmatch(line)
            if found is None:
                raise Malformed(400, "a chunk's size is not a number")
            self._left = int(found[1], 16)
            extension = (found[2] or b"").decode("utf-8", "replace")
            self._signature = extension.partition("chunk-signature=")[2].partition(";")[0].strip()
            if self._left:
                self._state = "data"
            else:
                self._end_chunk()
                self._state = "trailers"
        elif line:
            found = _TRAILER.fullmatch(line)
            if found is None or len(self._trailers) >= TRAILERS_MAX:
                raise Malformed(400, "the trailers of a chunked body are malformed")
            name = found[1].decode("ascii").lower()
            if name in self._trailers:
                raise Malformed(400, f"the trailer {name} is there twice")
            self._trailers[name] = found[2].decode("utf-8", "replace")
        else:
            self._state = "over"
            if self._keeps_trailers:
                self.body.trailers = self._trailers
            if isinstance(self._into, Chunks) and not self._into.over:
                raise Malformed(400, "the body ends before its last chunk")

    def _end_chunk(self) -> None:
        if not self._signed:
            return
        chunks = self.body.signed_chunks
        if len(chunks) >= SIGNED_CHUNKS_MAX:
            raise Malformed(400, f"a body has at most {SIGNED_CHUNKS_MAX} signed chunks")
        chunks.append(SignedChunk(self._signature, self._digest.hexdigest()))
        self._digest = hashlib.sha256()
