"""What an owner must know of a stream before it takes the first append: its producers and transactions."""

from __future__ import annotations

from dataplane.ledger.state import Stream
from dataplane.stream.batch import iter_batches
from dataplane.stream.producers import ProducerTable
from dataplane.stream.reader import ObjectReader


async def producers_at(stream: Stream, reader: ObjectReader, end: int | None = None) -> ProducerTable:
    """The producers' state at offset `end` (left out: at the start of the stream's open span): from the newest snapshot
    there is (an object's, or the hand-over's), and the batches after it.

    Raises:
        Corrupt, NotFound, Unavailable: an object cannot be read.
    """
    end = stream.open.start if end is None else end
    table, at = ProducerTable(), stream.start
    if stream.handover is not None and stream.handover["offset"] <= end:
        at = stream.handover["offset"]
        table = ProducerTable.load(stream.handover["producers"], at)
    after = [e for e in stream.extents if e.end > at and e.end <= end]
    for i in range(len(after) - 1, -1, -1):
        dumped = await reader.producers(after[i], stream.id)
        if dumped is not None:
            table, at = ProducerTable.load(dumped, after[i].end), after[i].end
            break
    for extent in [e for e in stream.extents if e.end > at and e.start < end]:
        async for _, block in reader.scan(extent, stream.id, max(at, extent.start)):
            for header, batch in iter_batches(block):
                if header.base_offset >= at:
                    table.record(header, header.base_offset, batch)
    return table
