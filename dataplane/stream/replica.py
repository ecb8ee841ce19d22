"""What a broker can serve of a stream that another one owns: what is in object storage, which every broker can read.

All of it is acked, so nothing can be shown here that is withdrawn later. The owner's WAL and memory are the owner's:
readers go there for what comes behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataplane.ledger.state import Extent, Stream
from dataplane.stream import history
from dataplane.stream.batch import iter_batches
from dataplane.stream.history import Current
from dataplane.stream.partition import OutOfRange
from dataplane.stream.reader import ObjectReader
from dataplane.stream.transactions import Aborted, aborted_in_objects

TOLD_LOOKS_MAX = 8
"""Extents, from the last one back, that are asked what is decided of transactions: the last that was uploaded to the
end of what was acked then knows it, mostly the last of all."""
EXTENTS_COUNTED_MAX = 4
"""Whose sizes one looks up to tell how much lies ahead: each may cost a read of its index, which a reader needs anyway.
More extents are taken for much."""


class Replica:
    """See the module. `current` gives the stream as this broker's ledger has it at the moment of the call."""

    def __init__(self, current: Current, reader: ObjectReader) -> None:
        self._current = current
        self._reader = reader

    @property
    def epoch(self) -> int:
        return self._current().epoch

    @property
    def start_offset(self) -> int:
        return self._current().start

    @property
    def high_watermark(self) -> int:
        """Everything below is acked; more may be, which the owner knows."""
        stream = self._current()
        return max(stream.open.uploaded, stream.start)

    def end(self, offset: int) -> int:
        """The offsets [offset, end) are in object storage, without a gap; `offset` itself if it is not."""
        return _run(self._current(), offset)

    async def stable_end(self, offset: int) -> int:
        """As `end`, for readers of committed records: what is decided of transactions, as far as objects tell it.

        Raises:
            Corrupt, NotFound, Unavailable: an object cannot be read.
        """

        async def look(extents: list[Extent]) -> int:
            return await self._stable(extents, offset)

        return await history.over_extents(self._current, look)

    async def _stable(self, extents: Sequence[Extent], offset: int) -> int:
        end = _run(self._current(), offset)
        inside = [e for e in extents if offset < e.end <= end]
        for extent in reversed(inside[-TOLD_LOOKS_MAX:]):
            told = await self._reader.producers(extent, self._current().id)
            if told is None:
                continue
            opened = told["open"] if isinstance(told, dict) else ()
            return max(offset, min((first for _, first, _ in opened), default=extent.end))
        return offset

    async def read(self, offset: int, bytes_max: int, end: int, *, minimum_one: bool) -> bytes:
        """Whole batches from the one that holds `offset` up to the offset `end` at most, and `bytes_max` bytes; none
        where nothing is here.

        Raises:
            OutOfRange: below the log start.
            Corrupt, Unavailable: the object that holds it cannot be served.
        """
        if offset < self.start_offset:
            raise OutOfRange(f"offset {offset} is below the start, {self.start_offset}")
        data, _ = await history.read(self._reader, self._current, offset, bytes_max, minimum_one=minimum_one)
        return b"".join(batch for header, batch in iter_batches(data) if header.base_offset < end)

    async def aborted(self, start: int, end: int) -> list[Aborted]:
        """Transactions that were aborted of the offsets [start, end), which are below `stable_end`, by first offset.

        Raises:
            Corrupt, NotFound, Unavailable: an object cannot be read.
        """

        async def snapshot(extent: Extent) -> Any:
            return await self._reader.producers(extent, self._current().id)

        # What lies below a stable end was decided below the extent that told so: objects know all of it.
        behind_all = self.end(start) + 1
        found = await aborted_in_objects(lambda: self._current().extents, start, end, snapshot, behind_all)
        return sorted(found, key=lambda a: a.first)

    async def bytes_ahead(self, offset: int, enough: int) -> int:
        """About how many bytes are in object storage from `offset` on, without a gap; no more than `enough` are
        counted.

        Raises:
            Corrupt, NotFound, Unavailable: an object cannot be read.
        """
        stream = self._current()
        end, size = self.end(offset), 0
        ahead = [e for e in stream.extents if offset < e.end <= end]
        if len(ahead) > EXTENTS_COUNTED_MAX:
            return enough
        for extent in ahead:
            blocks = (await self._reader.index(extent)).blocks_of(stream.id, max(offset, extent.start), extent.end)
            size += sum(block.size for block in blocks)
            if size >= enough:
                return enough
        return size


def _run(stream: Stream, offset: int) -> int:
    for extent in stream.extents:
        if extent.start <= offset < extent.end:
            offset = extent.end
    return offset
