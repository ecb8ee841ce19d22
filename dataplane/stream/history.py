"""Reads of what has left memory, over a stream's extents as the ledger has them now.

An object may vanish between the look at the ledger and the read: compaction has put another in its place, or retention
has let it go. Then one looks again. Offsets between batches may be missing (a compacted topic): a reader goes on with
what comes next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from dataplane.ledger.state import Extent, Stream
from dataplane.stream.batch import iter_batches
from dataplane.stream.reader import ObjectReader
from providers.base.errors import NotFound, Unavailable

T = TypeVar("T")

VANISHED_MAX = 8
"""Objects that may vanish under one read: each time the ledger has changed."""

Current = Callable[[], Stream]
"""The stream as the ledger has it at the moment of the call."""


def extent_of(stream: Stream, offset: int) -> Extent | None:
    """The extent that covers `offset`; None while it is only in a WAL."""
    for extent in stream.extents:
        if extent.start <= offset < extent.end:
            return extent
    return None


async def read(
    reader: ObjectReader, current: Current, offset: int, bytes_max: int, *, minimum_one: bool
) -> tuple[bytes, int]:
    """Whole batches from the first that ends behind `offset`, up to `bytes_max`, out of one extent; and the offset that
    was read from: beyond `offset` where extents hold nothing any more. No bytes: that offset is not in an object (owed
    by the owner before, or in memory, or trimmed).

    Raises:
        Corrupt, Unavailable: the object that holds it cannot be served.
    """
    vanished = 0
    while (extent := extent_of(current(), offset)) is not None:
        try:
            found = await _batches(reader, extent, current().id, offset, bytes_max, minimum_one=minimum_one)
        except NotFound as error:
            vanished += 1
            if extent_of(current(), offset) == extent or vanished > VANISHED_MAX:
                raise Unavailable(f"object {extent.object} is missing", hint="see `yunhe status`") from error
            continue
        if found is not None:
            return found, offset
        offset = extent.end
    return b"", offset


async def _batches(
    reader: ObjectReader, extent: Extent, stream: int, offset: int, bytes_max: int, *, minimum_one: bool
) -> bytes | None:
    """None when the extent has no batch that ends behind `offset`."""
    found: list[bytes] = []
    room, any_there = bytes_max, False
    for entry in (await reader.index(extent)).blocks_of(stream, offset, extent.end):
        for header, data in iter_batches(await reader.block(extent.object, entry)):
            if header.base_offset + header.last_offset_delta < offset:
                continue
            any_there = True
            if len(data) > room and (found or not minimum_one):
                return b"".join(found)
            found.append(bytes(data))
            room -= len(data)
        if room <= 0:
            break
    return b"".join(found) if any_there else None


async def over_extents(current: Current, look: Callable[[list[Extent]], Awaitable[T]]) -> T:
    """What `look` finds in the stream's extents: it is called again if an object vanishes from under it.

    Raises:
        Unavailable: an object is missing that the ledger names, or objects vanish again and again; and as `look`.
    """
    for _ in range(VANISHED_MAX):
        extents = list(current().extents)
        try:
            return await look(extents)
        except NotFound as error:
            if current().extents == extents:
                raise Unavailable(f"an object is missing: {error}", hint="see `yunhe status`") from error
    raise Unavailable("objects vanish faster than they can be searched")


async def offset_for_timestamp(reader: ObjectReader, current: Current, timestamp_ms: int) -> tuple[int, int] | None:
    """(offset, timestamp) of the first batch in objects whose newest record is at or after `timestamp_ms`; None when
    there is none.

    Raises:
        Corrupt, Unavailable: an object cannot be read.
    """

    async def look(extents: list[Extent]) -> tuple[int, int] | None:
        stream = current()
        for extent in extents:
            for entry in (await reader.index(extent)).blocks_of(stream.id, extent.start, extent.end):
                if entry.max_timestamp < timestamp_ms or entry.end <= stream.start:
                    continue
                for header, _ in iter_batches(await reader.block(extent.object, entry)):
                    last = header.base_offset + header.last_offset_delta
                    if header.max_timestamp >= timestamp_ms and last >= stream.start and header.record_count:
                        return max(header.base_offset, stream.start), header.max_timestamp
        return None

    return await over_extents(current, look)
