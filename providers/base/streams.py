"""Streams of bytes to and from objects, as every cloud's adapter needs them: cut into parts and sent a few at once;
fetched in ranges, a few ahead.

    chunks ─► pieces of part_bytes ─► one: a single put
                                  └─► more: begin ─► parts, `abreast` at once ─► complete   (else abort)

What a part is, and how an upload begins and ends, is the adapter's: it hands in a `PartUpload`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

from providers.base.errors import Invalid, OutcomeUnknown, Unavailable, YunheError
from providers.base.joining import LARGE_BYTES, joined

PART_BYTES = 8 << 20
"""Bytes of a part. S3's least is 5 MiB; above 8 a part gains no speed, and costs memory times `ABREAST`."""

ABREAST = 4
"""Parts or ranges of one stream under way at once: with 8 MiB parts 32 MiB of memory a stream."""

ABORT_MS_MAX = 5_000
"""Milliseconds that a failed stream may spend on removing its parts; what stays is for `collect_uploads`."""


class PartUpload(Protocol):
    """One upload in parts, of one cloud. Parts are numbered from 1."""

    async def begin(self) -> None:
        """Start it."""
        ...

    async def part(self, number: int, data: bytes) -> None:
        """Send one part; may be called for several at once. Repeats inside are welcome: a part's number names it."""
        ...

    async def complete(self, count: int) -> None:
        """Make the object of parts 1 to `count`: the only request that makes anything visible.

        Raises:
            AlreadyExists, OutcomeUnknown: as `ObjectStore.put_stream`.
        """
        ...

    async def abort(self) -> None:
        """Remove what was sent; it may be nothing."""
        ...


async def pieces(chunks: AsyncIterable[bytes], piece_bytes: int) -> AsyncGenerator[bytes, None]:
    """The same bytes in pieces of exactly `piece_bytes`, the last one shorter; none for no bytes. Holds one piece and
    one chunk."""
    waiting: list[bytes | memoryview] = []
    held = 0
    async for chunk in chunks:
        view = memoryview(chunk)
        while held + len(view) >= piece_bytes:
            room = piece_bytes - held
            yield await _joined([*waiting, view[:room]], piece_bytes)
            waiting, held, view = [], 0, view[room:]
        if view:
            # A chunk may be the caller's buffer, to be filled again: what is kept is a copy.
            waiting.append(bytes(view))
            held += len(view)
    if held:
        yield await _joined(waiting, held)


async def _joined(parts: list[bytes | memoryview], size: int) -> bytes:
    return await asyncio.to_thread(joined, parts) if size >= LARGE_BYTES else b"".join(parts)


async def store_stream(
    chunks: AsyncIterable[bytes],
    single: Callable[[bytes], Awaitable[None]],
    upload: Callable[[], PartUpload],
    *,
    part_bytes: int = PART_BYTES,
    parts_max: int = 10_000,
    abreast: int = ABREAST,
) -> None:
    """Store `chunks`: by `single` when they fit into one part, else by an upload in parts, aborted on any failure
    before its completion.

    Raises:
        Invalid: more than `parts_max` parts.
        YunheError: what the cloud's calls raise; and whatever `chunks` raises.
    """
    async with aclosing(pieces(chunks, part_bytes)) as cut:
        first = await anext(cut, b"")
        second = await anext(cut, None)
        if second is None:
            await single(first)
            return
        await _store_parts(first, second, cut, upload(), parts_max, abreast)


async def _store_parts(
    first: bytes, second: bytes, rest: AsyncIterator[bytes], upload: PartUpload, parts_max: int, abreast: int
) -> None:
    sending: set[asyncio.Task[None]] = set()
    count = 0
    completing = False

    async def send(data: bytes) -> None:
        nonlocal count
        if count == parts_max:
            raise Invalid(f"the stream is longer than {parts_max} parts of {len(first)} bytes")
        count += 1
        sending.add(asyncio.create_task(upload.part(count, data)))
        if len(sending) >= abreast:
            await drain(asyncio.FIRST_COMPLETED)

    async def drain(until: str) -> None:
        if not sending:
            return
        done, _ = await asyncio.wait(sending, return_when=until)
        sending.difference_update(done)
        for task in done:
            task.result()

    try:
        await upload.begin()
        await send(first)
        await send(second)
        async for piece in rest:
            await send(piece)
        if sending:
            await drain(asyncio.ALL_COMPLETED)
        completing = True
        await upload.complete(count)
    except BaseException as error:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        # A completion without an answer may yet happen, so its parts are left alone.
        if not (completing and isinstance(error, OutcomeUnknown | asyncio.CancelledError)):
            await abort_quietly(upload)
        raise


async def abort_quietly(upload: PartUpload) -> None:
    """Remove what was sent, within `ABORT_MS_MAX`, if that can be done."""
    try:
        async with asyncio.timeout(ABORT_MS_MAX / 1000):
            await upload.abort()
    except (YunheError, TimeoutError):
        # The failure that led here is the one to report; `collect_uploads` removes what stays.
        pass


async def fetch_stream(
    fetch: Callable[[int, int], Awaitable[bytes]],
    start: int,
    end: int,
    *,
    piece_bytes: int = PART_BYTES,
    abreast: int = ABREAST,
) -> AsyncGenerator[bytes, None]:
    """The bytes [start, end) by `fetch(start, length)`, in order, up to `abreast` fetches ahead of the reader.

    Raises:
        Unavailable: a fetch gave another number of bytes than were asked for.
        YunheError: what `fetch` raises.
    """
    ahead: deque[tuple[int, asyncio.Task[bytes]]] = deque()
    at = start
    try:
        while at < end or ahead:
            while at < end and len(ahead) < abreast:
                length = min(piece_bytes, end - at)
                ahead.append((length, asyncio.ensure_future(fetch(at, length))))
                at += length
            length, task = ahead.popleft()
            try:
                data = await task
            except asyncio.CancelledError:
                task.cancel()
                raise
            if len(data) != length:
                raise Unavailable(f"{len(data)} bytes came where {length} were asked for")
            yield data
    finally:
        left: list[asyncio.Task[Any]] = [task for _, task in ahead]
        for pending in left:
            pending.cancel()
        await asyncio.gather(*left, return_exceptions=True)
