"""What is owed of a stream: acked under a former owner, and not in object storage yet. That owner has it in memory, or
whoever recovers its WAL; nobody else can serve it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

from dataplane.ledger.state import Span, Stream
from dataplane.stream.batch import BatchHeader, Buffer, iter_batches
from providers.base.errors import Unavailable

SCAN_BYTES = 1 << 20
"""About what one look at headers reads."""


class ReadOwed(Protocol):
    """Reads from whoever has it."""

    async def __call__(self, stream: Stream, span: Span, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
        """Whole batches of the closed `span`, from the one that holds `offset`, up to `bytes_max`; none when it cannot
        be had now, and one has to wait for its upload."""
        ...


async def unread(stream: Stream, span: Span, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
    """`ReadOwed` where nobody can be asked."""
    return b""


def owed_at(stream: Stream, offset: int) -> Span | None:
    """The closed span whose record at `offset` is not in object storage; None where there is none."""
    for span in reversed(stream.spans):
        if span.start <= offset and span.end is not None and offset < span.end:
            return span if span.uploaded <= offset else None
    return None


def ranges(stream: Stream) -> list[tuple[Span, int]]:
    """The spans that owe anything, in order, each with the first offset of it."""
    return [(span, max(span.uploaded, stream.start)) for span in stream.spans if span.owed]


async def batches(
    stream: Stream, owing: Iterable[tuple[Span, int]], read: ReadOwed, below: int
) -> AsyncGenerator[tuple[BatchHeader, Buffer], None]:
    """The batches of the `ranges` that begin below offset `below`, in order.

    Raises, while it is read:
        Unavailable: what is owed cannot be read now.
    """
    for span, start in owing:
        at = start
        while span.end is not None and at < min(span.end, below):
            data = await read(stream, span, at, SCAN_BYTES, minimum_one=True)
            if not data:
                raise Unavailable(f"records of {stream.topic}-{stream.partition} from {at} on are being uploaded")
            for header, batch in iter_batches(data):
                yield header, batch
                at = header.base_offset + header.last_offset_delta + 1


async def offset_for_timestamp(
    stream: Stream, owing: Iterable[tuple[Span, int]], read: ReadOwed, timestamp_ms: int, below: int
) -> tuple[int, int] | None:
    """(offset, timestamp) of the first batch of the `ranges`, below offset `below`, whose newest record is at or after
    `timestamp_ms`; None when there is none.

    Raises:
        Unavailable: what is owed cannot be read now.
    """
    async with aclosing(batches(stream, owing, read, below)) as found:
        async for header, _ in found:
            if header.max_timestamp >= timestamp_ms:
                return max(header.base_offset, stream.start), header.max_timestamp
    return None


def fitting(batches: Iterable[tuple[int, Buffer]], end: int, bytes_max: int, *, minimum_one: bool) -> bytes:
    """The first of `batches`, each with the offset behind it, that end at `end` at most and are no more than
    `bytes_max` together; with `minimum_one` the first one however large it is."""
    found: list[Buffer] = []
    for behind, data in batches:
        if behind > end or (len(data) > bytes_max and (found or not minimum_one)):
            break
        found.append(data)
        bytes_max -= len(data)
    return b"".join(found)
