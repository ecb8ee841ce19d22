"""One open stream on its owner: append, high watermark, read.

    append ──► offset given ──► WAL ──► durable ──► high watermark ──► consumers see it
          (before any await)                  (in order)   └──► upload ──► ledger commit ──► WAL trimmed

All calls run on the broker's event loop; nothing here is shared with a thread. A frozen partition (a planned move under
way) holds new appends back; a closed one refuses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from dataplane.ledger.state import Extent, Stream
from dataplane.stream import history, owed
from dataplane.stream.batch import BatchHeader, Buffer, iter_batches, parse_header, patch
from dataplane.stream.cache import CacheBudget, CachedBatch, PartitionCache
from dataplane.stream.producers import ProducerTable
from dataplane.stream.reader import ObjectReader
from dataplane.stream.timestamps import newest
from dataplane.stream.transactions import Aborted, aborted_in_objects
from dataplane.wal.base import Wal, WalRecord
from providers.base.errors import Conflict, Invalid, YunheError, invariant


class NotOwner(Conflict):
    """This broker does not own the stream under this epoch (any more): clients ask metadata again."""


class OutOfRange(Invalid):
    """The offset is below the log start or above the high watermark."""


Outcome = Callable[[int, int, bool, Exception | None], None]
"""The end of an append: first and last offset, whether it repeats an earlier one; or why it failed."""


class Partition:
    """An open stream, from `start` of its span on. Offsets below are in object storage, or still owed by the owner
    before: `owed_reader` reads these."""

    def __init__(
        self,
        stream: Stream,
        *,
        wal: Wal,
        reader: ObjectReader,
        budget: CacheBudget,
        producers: ProducerTable,
        owed_reader: owed.ReadOwed = owed.unread,
    ) -> None:
        self.stream = stream
        self.id = stream.id
        self.epoch = stream.epoch
        self._wal = wal
        self._reader = reader
        self._owed = owed_reader
        self._first = stream.open.start
        self._next_offset = self._first
        self._high_watermark = self._first
        self._cache = PartitionCache(budget)
        self._cache.uploaded = self._first
        self._admitted = producers
        self._acked = producers.copy()
        self._told_at = -1  # end of the last part that was given out with the producers' state
        self._unuploaded_bytes = 0
        self.written_bytes = 0
        """Appended and acked, since this was opened."""
        self.read_bytes = 0
        """Read from memory, since this was opened."""
        self.read_back_bytes = 0
        """Read from object storage, since this was opened."""
        self._watchers: set[Callable[[], None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._repeats: list[tuple[int, int, Outcome]] = []  # of batches that are not acked yet
        self._frozen = False
        self._held: list[tuple[bytearray | memoryview, BatchHeader, Outcome]] = []  # while frozen
        self._closed: Exception | None = None
        self.on_acked: Callable[[int, int], None] = lambda size, block: None
        """Called with bytes and WAL block of each acked batch, in order: the uploader's trigger."""

    # ── what it is at ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def high_watermark(self) -> int:
        """One past the last acked offset: what consumers may see."""
        return self._high_watermark

    @property
    def records(self) -> int:
        """Offsets given to acked records, since this was opened."""
        return self._high_watermark - self._first

    @property
    def traffic_bytes(self) -> int:
        """Bytes appended, and read from memory, since this was opened: what balancing goes by."""
        return self.written_bytes + self.read_bytes

    @property
    def next_offset(self) -> int:
        return self._next_offset

    @property
    def start_offset(self) -> int:
        """First offset that still exists, as the ledger says."""
        return self.stream.start

    @property
    def last_stable_offset(self) -> int:
        """Every transaction with offsets below is decided: what readers of committed records may see."""
        first = self._acked.transactions.first_open
        return self._high_watermark if first is None else max(first, self.start_offset)

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

    def begin(self, batch: bytearray | memoryview, header: BatchHeader, done: Outcome) -> None:
        """Append one verified v2 record batch; `done` is called once it is acked, or will never be. Offsets are given
        in the order of the calls. The batch's memory becomes the partition's own: it is changed, and kept.

        Raises:
            NotOwner: closed.
            OutOfOrderSequence, StaleProducerEpoch, InvalidTransaction: refused.
            Full: the WAL pushes back.
            In all these cases nothing was recorded, and `done` is not called. `done` may be told: NotOwner,
            OutOfOrderSequence, StaleProducerEpoch, Full (after a freeze), Fenced, Unavailable (the WAL is dead).
        """
        if self._closed is not None:
            raise self._closed
        if self._frozen:
            self._held.append((batch, header, done))
            return
        idempotent = header.producer_id >= 0
        if idempotent and (earlier := self._admitted.check(header, batch)) is not None:
            first, last = earlier.base_offset, earlier.last_offset
            if last < self._high_watermark:
                done(first, last, True, None)
            else:
                self._repeats.append((first, last, done))
            return
        base = self._next_offset
        end = base + header.last_offset_delta + 1
        patch(batch, base, self.epoch)
        cached = CachedBatch(base, end, header.max_timestamp, batch)
        # Full is raised here, before anything has changed.
        self._wal.submit(
            WalRecord(self.id, self.epoch, base, end - base, memoryview(batch)),
            functools.partial(self._on_durable, cached, header, done),
        )
        self._next_offset = end
        if idempotent:
            self._admitted.record(header, base, batch)
        self._cache.add(cached)

    async def append(self, batch: Buffer) -> tuple[int, int, bool]:
        """`begin` for those who wait, with a copy: (first offset, last offset, duplicate) once it is acked.

        Raises:
            NotOwner, OutOfOrderSequence, StaleProducerEpoch, Full, Fenced, Unavailable: see `begin`.
        """
        over: asyncio.Future[tuple[int, int, bool]] = asyncio.get_running_loop().create_future()

        def done(first: int, last: int, duplicate: bool, error: Exception | None) -> None:
            if over.done():
                return  # the caller has gone; the batch is none the less appended
            if error is None:
                over.set_result((first, last, duplicate))
            else:
                over.set_exception(error)

        self.begin(bytearray(batch), parse_header(batch), done)
        return await over

    # A callback, and no coroutine of the client's: one that hangs up must not stop the high watermark.
    def _on_durable(
        self, cached: CachedBatch, header: BatchHeader, done: Outcome, block: int, error: YunheError | None
    ) -> None:
        if error is not None:
            self.close(NotOwner("the WAL of this broker is gone; it gives up its partitions"))
            done(-1, -1, False, error)
            return
        if cached.base != self._high_watermark:
            invariant(False, "acks come in offset order", base=cached.base, high_watermark=self._high_watermark)
        cached.block = block
        if header.producer_id >= 0:
            self._acked.record(header, cached.base, cached.data)
        self._high_watermark = cached.end
        size = len(cached.data)
        self._unuploaded_bytes += size
        self.written_bytes += size
        if self._repeats:
            self._answer_repeats()
        if self._watchers:
            self._wake()
        if self._idle and cached.end == self._next_offset:
            self._settle()
        self.on_acked(size, block)
        done(cached.base, cached.end - 1, False, None)

    def _answer_repeats(self) -> None:
        waiting, self._repeats = self._repeats, []
        for first, last, done in waiting:
            if last < self._high_watermark:
                done(first, last, True, None)
            else:
                self._repeats.append((first, last, done))

    # ── read ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read_cached(
        self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False
    ) -> list[Buffer] | None:
        """Whole batches from the one that holds `offset`, up to `bytes_max`, never beyond the high watermark (or the
        last stable offset, if `committed`); None when they are not in memory.

        Raises:
            OutOfRange: below the log start or above the high watermark.
            NotOwner: closed.
        """
        if self._closed is not None:
            raise self._closed
        high_watermark = self._high_watermark
        end = self.last_stable_offset if committed else high_watermark
        if end <= offset <= high_watermark:
            return []
        if not self.start_offset <= offset <= high_watermark:
            raise OutOfRange(f"offset {offset} is outside [{self.start_offset}, {high_watermark}]")
        first = self._cache.first
        if first is None or offset < first:
            return None
        found: list[Buffer] = []
        for batch in self._cache.from_offset(offset):
            size = len(batch.data)
            if batch.end > end or (size > bytes_max and (found or not minimum_one)):
                break
            found.append(batch.data)
            bytes_max -= size
            self.read_bytes += size
        return found

    async def read(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> bytes:
        """Whole batches from the one that holds `offset`, up to `bytes_max`, as far as `read_cached`.

        Raises:
            OutOfRange: below the log start or above the high watermark.
            Corrupt, Unavailable: the object that holds it cannot be served.
        """
        end = self.last_stable_offset
        while True:
            found = self.read_cached(offset, bytes_max, minimum_one=minimum_one, committed=committed)
            if found is not None:
                return b"".join(found)
            data, at = await history.read(self._reader, lambda: self.stream, offset, bytes_max, minimum_one=minimum_one)
            if not data and at == offset and (span := owed.owed_at(self.stream, offset)) is not None:
                # Still nothing: nobody has it at hand. It is being uploaded, and the reader waits till then.
                data = await self._owed(self.stream, span, offset, bytes_max, minimum_one=minimum_one)
            if data or at == offset:
                self.read_back_bytes += len(data)
                return b"".join(b for h, b in iter_batches(data) if h.base_offset < end) if committed else data
            offset = at

    async def aborted(self, start: int, end: int) -> list[Aborted]:
        """Transactions that were aborted of the offsets [start, end), by first offset.

        Raises:
            Corrupt, NotFound, Unavailable: an object that tells them cannot be read.
        """
        transactions = self._acked.transactions
        found = set(transactions.aborted(start, end))
        if start < (since := transactions.since):
            found.update(await aborted_in_objects(lambda: self.stream.extents, start, end, self._snapshot, since))
        return sorted(found, key=lambda a: a.first)

    def aborted_known(self, start: int, end: int) -> list[Aborted] | None:
        """`aborted`, if memory knows; else None."""
        transactions = self._acked.transactions
        return None if start < transactions.since else transactions.aborted(start, end)

    async def _snapshot(self, extent: Extent) -> Any:
        return await self._reader.producers(extent, self.id)

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` at each ack, and when the partition is closed, until `unwatch`."""
        self._watchers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        self._watchers.discard(wake)

    async def wait_for_data(self, offset: int, timeout_ms: float) -> None:
        """Return when the high watermark is above `offset`, the partition is closed, or the time is over."""
        if self._high_watermark > offset or self._closed is not None:
            return
        event = asyncio.Event()
        self.watch(event.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_ms / 1000):
                    await event.wait()
        finally:
            self.unwatch(event.set)

    async def offset_for_timestamp(self, timestamp_ms: int) -> tuple[int, int] | None:
        """(offset, timestamp) of the first batch whose newest record is at or after `timestamp_ms`; None when there is
        none.

        Raises:
            Corrupt, Unavailable: an object cannot be read.
        """
        owing = owed.ranges(self.stream)  # first: what is uploaded meanwhile would be passed over in both places
        found = await history.offset_for_timestamp(self._reader, lambda: self.stream, timestamp_ms)
        found = found or self._cached_for_timestamp(timestamp_ms)
        below = self._high_watermark if found is None else found[0]
        return await owed.offset_for_timestamp(self.stream, owing, self._owed, timestamp_ms, below) or found

    def _cached_for_timestamp(self, timestamp_ms: int) -> tuple[int, int] | None:
        first = self._cache.first
        for batch in self.acked_from(first) if first is not None else ():
            if batch.max_timestamp >= timestamp_ms:
                return batch.base, batch.max_timestamp
        return None

    async def newest(self) -> tuple[int, int] | None:
        """(offset, timestamp) of the record with the greatest timestamp: see `timestamps.newest`."""
        first, end = self._cache.first, self._high_watermark
        cached = list(self._cache.from_offset(first)) if first is not None else []
        of_owed = functools.partial(owed.batches, self.stream, owed.ranges(self.stream), self._owed, end)
        return await history.over_extents(
            lambda: self.stream,
            lambda extents: newest(self.id, extents, cached, of_owed, self._reader, self.start_offset, end),
        )

    # ── upload ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def uploadable(self, bytes_max: int) -> tuple[list[CachedBatch], ProducerTable | None]:
        """Acked batches that only the WAL holds, oldest first, at least one and up to about `bytes_max`; and the
        producers' state at their end if that is the high watermark.
        """
        batches: list[CachedBatch] = []
        size = 0
        for batch in self.acked_from(self.uploaded) if self.uploaded < self._high_watermark else ():
            if batches and size + len(batch.data) > bytes_max:
                break
            batches.append(batch)
            size += len(batch.data)
        if batches and batches[-1].end == self._high_watermark:
            self._told_at = self._high_watermark
            return batches, self._acked
        self._told_at = -1
        return batches, None

    def mark_uploaded(self, end: int, size: int) -> None:
        """The ledger has accepted everything below `end`."""
        self._cache.uploaded = end
        if self._told_at == end:
            for table in (self._acked, self._admitted):
                table.transactions.told(end)
        self._unuploaded_bytes -= size

    def oldest_block(self, after: int) -> int | None:
        """Number of the WAL block that holds the first acked record at or beyond offset `after`."""
        if after >= self._high_watermark:
            return None
        for batch in self._cache.from_offset(after):
            return batch.block
        return None

    def acked_from(self, offset: int) -> Iterator[CachedBatch]:
        """Acked batches that are in memory, from the one that holds `offset`; of a closed partition too."""
        for batch in self._cache.from_offset(offset):
            if batch.end > self._high_watermark:
                return
            yield batch

    # ── migration and end ───────────────────────────────────────────────────────────────────────────────────────────

    async def freeze(self) -> int:
        """Let new appends wait; return the logical end once all that was under way is acked.

        Raises:
            NotOwner: closed meanwhile.
        """
        self._frozen = True
        if self._high_watermark < self._next_offset:
            settled = asyncio.get_running_loop().create_future()
            self._idle.append(settled)
            await settled
        if self._closed is not None:
            raise self._closed
        return self._high_watermark

    def thaw(self) -> None:
        """The move did not happen: go on."""
        self._frozen = False
        held, self._held = self._held, []
        for batch, header, done in held:
            try:
                self.begin(batch, header, done)
            except YunheError as error:
                done(-1, -1, False, error)

    def acked_producers(self) -> ProducerTable:
        """Producers' state at the high watermark."""
        return self._acked

    def admitted_producers(self) -> ProducerTable:
        """Producers' state at the end of what was begun."""
        return self._admitted

    def close(self, why: Exception) -> None:
        """Refuse everything from now on. Un-uploaded batches stay until uploaded (they are owed)."""
        if self._closed is not None:
            return
        self._closed = why
        self.thaw()
        repeats, self._repeats = self._repeats, []
        for _, _, done in repeats:
            done(-1, -1, False, why)
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
        for wake in list(self._watchers):
            wake()
