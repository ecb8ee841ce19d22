"""One open stream on its owner: append, high watermark, read.

    append ──► offset given ──► WAL ──► durable ──► high watermark ──► consumers see it
          (before any await)                  (in order)   └──► upload ──► ledger commit ──► WAL trimmed

All calls run on the broker's event loop; nothing here is shared with a thread. A frozen partition (a planned move under
way) lets new appends wait; a closed one refuses them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from dataplane.ledger.state import Extent, Stream
from dataplane.stream.batch import BatchHeader, iter_batches, parse_header, patched
from dataplane.stream.cache import CacheBudget, CachedBatch, PartitionCache
from dataplane.stream.producers import ProducerTable
from dataplane.stream.reader import ObjectReader
from dataplane.wal.base import Wal, WalRecord
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable, invariant


class NotOwner(Conflict):
    """This broker does not own the stream under this epoch (any more): clients ask metadata again."""


class OutOfRange(Invalid):
    """The offset is below the log start or above the high watermark."""


class Partition:
    """An open stream, from `start` of its span on. Offsets below are only in object storage."""

    def __init__(
        self,
        stream: Stream,
        *,
        wal: Wal,
        reader: ObjectReader,
        budget: CacheBudget,
        producers: ProducerTable,
    ) -> None:
        self.stream = stream
        self.id = stream.id
        self.epoch = stream.epoch
        self._wal = wal
        self._reader = reader
        self._first = stream.open.start
        self._next_offset = self._first
        self._high_watermark = self._first
        self._cache = PartitionCache(budget)
        self._cache.uploaded = self._first
        self._admitted = producers
        self._acked = producers.copy()
        self._unuploaded_bytes = 0
        self._waiters: set[asyncio.Event] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._thaw: asyncio.Event | None = None
        self._closed: Exception | None = None
        self.on_acked: Callable[[int, int], None] = lambda size, block: None
        """Called with bytes and WAL block of each acked batch, in order: the uploader's trigger."""

    # ── what it is at ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def high_watermark(self) -> int:
        """One past the last acked offset: what consumers may see."""
        return self._high_watermark

    @property
    def next_offset(self) -> int:
        return self._next_offset

    @property
    def start_offset(self) -> int:
        """First offset that still exists, as the ledger says."""
        return self.stream.start

    @property
    def uploaded(self) -> int:
        """Offsets of this epoch below are committed to object storage."""
        return self._cache.uploaded

    @property
    def unuploaded_bytes(self) -> int:
        """Acked bytes that only the WAL holds."""
        return self._unuploaded_bytes

    @property
    def closed(self) -> bool:
        return self._closed is not None

    # ── append ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, batch: bytes) -> tuple[int, int, bool]:
        """Append one verified v2 record batch; returns (first offset, last offset, duplicate) once it is acked.

        Raises:
            NotOwner: closed, or moved away while this waited.
            OutOfOrderSequence, StaleProducerEpoch: refused, nothing recorded.
            Full: the WAL pushes back; nothing recorded.
            Fenced, Unavailable: the WAL is dead.
        """
        while self._thaw is not None and self._closed is None:
            await self._thaw.wait()
        if self._closed is not None:
            raise self._closed
        header = parse_header(batch)
        earlier = self._admitted.check(header)
        if earlier is not None:
            await self._until_acked(earlier.last_offset)
            return earlier.base_offset, earlier.last_offset, True
        base = self._next_offset
        end = base + header.last_offset_delta + 1
        data = patched(batch, base, self.epoch)
        # Full is raised here, before anything has changed.
        durable = self._wal.append(WalRecord(self.id, self.epoch, base, end - base, data))
        self._next_offset = end
        self._admitted.record(header, base)
        cached = CachedBatch(base, end, header.max_timestamp, data)
        self._cache.add(cached)
        # The callback, not this coroutine, moves the high watermark: a client that hangs up must not stop it.
        durable.add_done_callback(lambda done: self._on_durable(done, cached, header))
        await asyncio.shield(durable)
        return base, end - 1, False

    def _on_durable(self, durable: asyncio.Future[int], cached: CachedBatch, header: BatchHeader) -> None:
        if durable.cancelled() or durable.exception() is not None:
            self.close(NotOwner("the WAL of this broker is gone; it gives up its partitions"))
            return
        invariant(
            cached.base == self._high_watermark,
            "acks of a partition come in offset order",
            base=cached.base,
            high_watermark=self._high_watermark,
        )
        cached.block = durable.result()
        self._acked.record(header, cached.base)
        self._high_watermark = cached.end
        self._unuploaded_bytes += len(cached.data)
        self._wake()
        if self._high_watermark == self._next_offset:
            self._settle()
        self.on_acked(len(cached.data), cached.block)

    async def _until_acked(self, offset: int) -> None:
        while self._high_watermark <= offset:
            if self._closed is not None:
                raise self._closed
            await self.wait_for_data(offset, 1_000)

    # ── read ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
        """Whole batches from the one that holds `offset`, up to `bytes_max`, never beyond the high watermark.

        Raises:
            OutOfRange: below the log start or above the high watermark.
            Corrupt, Unavailable: the object that holds it cannot be served.
        """
        if self._closed is not None:
            raise self._closed
        if not self.start_offset <= offset <= self._high_watermark:
            raise OutOfRange(f"offset {offset} is outside [{self.start_offset}, {self._high_watermark}]")
        found: list[bytes] = []
        room = bytes_max
        for batch in self._cache.from_offset(offset):
            if batch.end > self._high_watermark or (len(batch.data) > room and (found or not minimum_one)):
                break
            found.append(batch.data)
            room -= len(batch.data)
        first = self._cache.first
        if found or offset == self._high_watermark or (first is not None and first <= offset):
            return b"".join(found)
        return await self._read_objects(offset, bytes_max, minimum_one=minimum_one)

    async def _read_objects(self, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
        extent = self._extent(offset)
        if extent is None:
            return b""  # owed by the owner before: it uploads at once after a move, and the reader waits till then
        try:
            blocks = await self._reader.blocks(extent, self.id, offset, bytes_max)
        except NotFound as error:
            if self._extent(offset) is extent:
                raise Unavailable(f"object {extent.object} is missing", hint="see `yunhe status`") from error
            return b""  # trimmed meanwhile: the next read says so
        found: list[bytes] = []
        room = bytes_max
        for block in blocks:
            for header, data in iter_batches(block):
                if header.base_offset + header.last_offset_delta < offset:
                    continue
                if len(data) > room and (found or not minimum_one):
                    return b"".join(found)
                found.append(bytes(data))
                room -= len(data)
        return b"".join(found)

    def _extent(self, offset: int) -> Extent | None:
        for extent in self.stream.extents:
            if extent.start <= offset < extent.end:
                return extent
        return None

    async def wait_for_data(self, offset: int, timeout_ms: float) -> None:
        """Return when the high watermark is above `offset`, the partition is closed, or the time is over."""
        if self._high_watermark > offset or self._closed is not None:
            return
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_ms / 1000):
                    await event.wait()
        finally:
            self._waiters.discard(event)

    async def offset_for_timestamp(self, timestamp_ms: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first batch whose newest record is at or after `timestamp_ms`; None when there is
        none.
        """
        for extent in list(self.stream.extents):
            for entry in (await self._reader.index(extent)).blocks_of(self.id, extent.start, extent.end):
                if entry.max_timestamp < timestamp_ms or entry.end <= self.start_offset:
                    continue
                for block in await self._reader.blocks(extent, self.id, entry.start, 1):
                    for header, _ in iter_batches(block):
                        if header.max_timestamp >= timestamp_ms:
                            return max(header.base_offset, self.start_offset), header.max_timestamp
        first = self._cache.first
        for batch in self._cache.from_offset(first) if first is not None else ():
            if batch.max_timestamp >= timestamp_ms and batch.end <= self._high_watermark:
                return batch.base, batch.max_timestamp
        return None

    # ── upload ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def uploadable(self, bytes_max: int) -> tuple[list[CachedBatch], ProducerTable | None]:
        """Acked batches that only the WAL holds, oldest first, at least one and up to about `bytes_max`; and the
        producers' state at their end if that is the high watermark.
        """
        batches: list[CachedBatch] = []
        size = 0
        for batch in self._cache.from_offset(self.uploaded) if self.uploaded < self._high_watermark else ():
            if batch.end > self._high_watermark or (batches and size + len(batch.data) > bytes_max):
                break
            batches.append(batch)
            size += len(batch.data)
        if batches and batches[-1].end == self._high_watermark:
            return batches, self._acked
        return batches, None

    def mark_uploaded(self, end: int, size: int) -> None:
        """The ledger has accepted everything below `end`."""
        self._cache.uploaded = end
        self._unuploaded_bytes -= size

    def oldest_block(self, after: int) -> int | None:
        """Number of the WAL block that holds the first acked record at or beyond offset `after`."""
        if after >= self._high_watermark:
            return None
        for batch in self._cache.from_offset(after):
            return batch.block
        return None

    # ── migration and end ───────────────────────────────────────────────────────────────────────────────────────────

    async def freeze(self) -> int:
        """Let new appends wait; return the logical end once all that was under way is acked.

        Raises:
            NotOwner: closed meanwhile.
        """
        self._thaw = self._thaw or asyncio.Event()
        if self._high_watermark < self._next_offset:
            settled = asyncio.get_running_loop().create_future()
            self._idle.append(settled)
            await settled
        if self._closed is not None:
            raise self._closed
        return self._high_watermark

    def thaw(self) -> None:
        """The move did not happen: go on."""
        if self._thaw is not None:
            self._thaw.set()
            self._thaw = None

    def acked_producers(self) -> ProducerTable:
        """Producers' state at the high watermark."""
        return self._acked

    def close(self, why: Exception) -> None:
        """Refuse everything from now on. Un-uploaded batches stay until uploaded (they are owed)."""
        if self._closed is None:
            self._closed = why
        self.thaw()
        self._settle()
        self._wake()

    def drop_cache(self) -> None:
        """Nothing of this partition is owed any more."""
        self._cache.clear()

    def _settle(self) -> None:
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        self._idle.clear()

    def _wake(self) -> None:
        for event in self._waiters:
            event.set()


async def producers_at(stream: Stream, reader: ObjectReader) -> ProducerTable:
    """The producers' state at the start of the stream's open span: from the newest snapshot there is (an object's, or
    the hand-over's), and the batches after it.

    Raises:
        Corrupt, NotFound, Unavailable: an object cannot be read.
    """
    end = stream.open.start
    table, at = ProducerTable(), stream.start
    if stream.handover is not None and stream.handover["offset"] <= end:
        table, at = ProducerTable.load(stream.handover["producers"]), stream.handover["offset"]
    after = [e for e in stream.extents if e.end > at and e.end <= end]
    for i in range(len(after) - 1, -1, -1):
        dumped = await reader.producers(after[i], stream.id)
        if dumped is not None:
            table, at = ProducerTable.load(dumped), after[i].end
            break
    for extent in (e for e in stream.extents if e.end > at and e.start < end):
        for block in await reader.blocks(extent, stream.id, max(at, extent.start), extent.size):
            for header, _ in iter_batches(block):
                if header.base_offset >= at:
                    table.record(header, header.base_offset)
    return table
