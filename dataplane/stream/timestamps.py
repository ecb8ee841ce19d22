"""Which record of a stream is the newest by its timestamp (ListOffsets, KIP-734): by the blocks' and batches' own
maxima; inside a batch exactly where it is not compressed, and its last record otherwise: compressed batches stay
closed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

from dataplane.ledger.state import Extent
from dataplane.stream.batch import BatchHeader, Buffer, iter_batches, parse_header
from dataplane.stream.cache import CachedBatch
from dataplane.stream.encode import record_timestamps
from dataplane.stream.reader import ObjectReader
from providers.base.errors import Corrupt

CODEC_MASK, LOG_APPEND_TIME = 0x07, 0x08


async def newest(
    stream: int,
    extents: Iterable[Extent],
    cached: Iterable[CachedBatch],
    owed: Callable[[], AsyncGenerator[tuple[BatchHeader, Buffer], None]],
    reader: ObjectReader,
    start: int,
    end: int,
) -> tuple[int, int] | None:
    """(offset, timestamp) of the record in [start, end) with the greatest timestamp, the first of equals; None when
    there is none with any. Looked for in objects, in memory, and in what is owed.

    Raises:
        Corrupt, NotFound, Unavailable: an object, or what is owed, cannot be read.
    """
    best: tuple[int, int] | None = None
    for extent in extents:
        for entry in (await reader.index(extent)).blocks_of(stream, extent.start, extent.end):
            if entry.end <= start or (best is not None and entry.max_timestamp <= best[1]):
                continue
            for block in await reader.blocks(extent, stream, entry.start, 1):
                for header, data in iter_batches(block):
                    best = _better(best, header, data, start)
    for batch in cached:
        if batch.end <= end and (best is None or batch.max_timestamp > best[1]):
            best = _better(best, parse_header(batch.data), batch.data, start)
    of_owed: tuple[int, int] | None = None
    async with aclosing(owed()) as batches:
        async for header, whole in batches:
            of_owed = _better(of_owed, header, whole, start)
    # It lies between the objects of its former owner and what came after.
    return max((one for one in (best, of_owed) if one is not None), key=lambda one: (one[1], -one[0]), default=None)


def _better(best: tuple[int, int] | None, header: BatchHeader, data: Buffer, start: int) -> tuple[int, int] | None:
    if header.max_timestamp < 0 or (best is not None and header.max_timestamp <= best[1]):
        return best
    last = header.base_offset + header.last_offset_delta
    if last < start:
        return best
    if header.attributes & LOG_APPEND_TIME:
        return max(header.base_offset, start), header.max_timestamp
    if header.attributes & CODEC_MASK:
        return last, header.max_timestamp
    try:
        inside = [(o, t) for o, t in record_timestamps(data) if o >= start]
    except Corrupt:
        return last, header.max_timestamp  # what a producer put into it is its own: only the checksum was promised
    for offset, timestamp in inside:
        if best is None or timestamp > best[1]:
            best = offset, timestamp
    return best
