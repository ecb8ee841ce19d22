"""The partitions that this node has open, kept equal to what the ledger says it owns: level-triggered, so that it does
not matter how the state came about.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable

from dataplane.broker.topic_traffic import TopicTraffic
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import CellState, Stream
from dataplane.stream.cache import CacheBudget
from dataplane.stream.opening import producers_at
from dataplane.stream.owed import ReadOwed
from dataplane.stream.partition import NotOwner, Partition
from dataplane.stream.reader import ObjectReader
from dataplane.wal.base import Wal
from providers.base.clock import Clock
from providers.base.errors import Corrupt, NotFound, Unavailable

log = logging.getLogger(__name__)

OPEN_RETRY_MS = 200
OPENING_WAIT_MS = 500
"""How long clients may wait for a partition that is being opened: it takes a few reads at most, and a client that is
sent away comes back no sooner than after its own back-off. Longer, and the bucket does not answer."""
MOVED_LATELY_MS = 300
"""How long a closed partition counts as moved lately: what its clients still send here is forwarded."""
OPENING_MAX = 16
"""Partitions opened at the same time: each reads an object's index and its producers."""


class PartitionSet:
    """Open partitions by stream id, and closed ones that still owe records to object storage."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        wal: Wal,
        reader: ObjectReader,
        budget: CacheBudget,
        clock: Clock,
        on_acked: Callable[[int, int], None],
        owed: ReadOwed,
    ) -> None:
        self._me = me
        self._wal = wal
        self._reader = reader
        self._budget = budget
        self._clock = clock
        self._on_acked = on_acked
        self._read_owed = owed
        self._open: dict[int, Partition] = {}
        self._owing: list[Partition] = []
        self.traffic = TopicTraffic()
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._opening_since_ms: dict[int, float] = {}
        self._moved_ms: dict[int, float] = {}
        self._opened = asyncio.Event()
        self._limit = asyncio.Semaphore(OPENING_MAX)
        self._state = CellState()
        self.on_changed: Callable[[Stream, Partition | None], None] = lambda stream, partition: None
        """Called after a partition was opened here (with it), or closed here (None)."""

    def get(self, stream: int) -> Partition | None:
        """The open partition of a stream, None when it is not open here."""
        return self._open.get(stream)

    def opens_soon(self, stream: int) -> bool:
        """Being opened, and not for long yet."""
        since_ms = self._opening_since_ms.get(stream)
        return since_ms is not None and self._clock.monotonic_ms() - since_ms < OPENING_WAIT_MS

    def moved_lately(self, stream: int) -> bool:
        """Closed here because another node owns it, and not long ago."""
        moved_ms = self._moved_ms.get(stream)
        return moved_ms is not None and self._clock.monotonic_ms() - moved_ms < MOVED_LATELY_MS

    async def opened(self, stream: int, epoch: int, timeout_ms: float) -> Partition | None:
        """The partition, once it is open here under that epoch; None when it is not in time, or is under a later."""
        until_ms = self._clock.monotonic_ms() + timeout_ms
        while (found := self._open.get(stream)) is None or found.epoch < epoch:
            left_ms = until_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_ms / 1000):
                    await self._opened.wait()
        return found if found.epoch == epoch else None

    def led(self) -> Collection[Partition]:
        """Every open partition."""
        return self._open.values()

    @property
    def opening(self) -> int:
        """How many are being opened."""
        return len(self._opening)

    def everything(self) -> Iterable[Partition]:
        """Every partition that may hold records not in object storage."""
        return [*self._open.values(), *self._owing]

    def holding(self, stream: int, epoch: int) -> Partition | None:
        """The partition under that epoch, if it has anything in memory: open here, or closed and owing."""
        opened = self._open.get(stream)
        if opened is not None and opened.epoch == epoch:
            return opened
        return next((p for p in self._owing if p.id == stream and p.epoch == epoch), None)

    @property
    def settled(self) -> bool:
        """Nothing is being opened."""
        return not self._opening

    def reconcile(self, state: CellState) -> bool:
        """Close what is not owned any more, begin to open what is; True when something is owed now and should be
        uploaded at once.
        """
        self._state = state
        owned = {s.id: s for s in state.owned(self._me)}
        owes = False
        self._moved_ms = {s: at for s, at in self._moved_ms.items() if self.moved_lately(s)}
        for stream_id, partition in list(self._open.items()):
            stream = owned.get(stream_id)
            if stream is not None and stream.epoch == partition.epoch:
                partition.stream = stream  # a ledger read anew from a snapshot has new objects for old streams
                continue
            owes |= self._close(partition, state)
        for partition in list(self._owing):
            stream = state.streams.get(partition.id)
            if stream is None or partition.unuploaded_bytes == 0:
                partition.drop_cache()
                self._owing.remove(partition)
        for stream_id, stream in owned.items():
            if stream_id not in self._open and stream_id not in self._opening:
                self._opening_since_ms[stream_id] = self._clock.monotonic_ms()
                task = asyncio.create_task(self._open_one(stream_id, stream.epoch))
                self._opening[stream_id] = task
        return owes

    def _close(self, partition: Partition, state: CellState) -> bool:
        del self._open[partition.id]
        self.traffic.closed(partition)
        if partition.id in state.streams:
            self._moved_ms[partition.id] = self._clock.monotonic_ms()
        partition.close(NotOwner(f"partition {partition.stream.topic}-{partition.stream.partition} has moved"))
        self.on_changed(partition.stream, None)
        if partition.id in state.streams and partition.unuploaded_bytes:
            self._owing.append(partition)
            return True
        partition.drop_cache()
        return False

    async def _open_one(self, stream_id: int, epoch: int) -> None:
        try:
            while True:
                stream = self._state.streams.get(stream_id)
                if stream is None or stream.epoch != epoch or stream.open.owner != self._me:
                    return
                try:
                    async with self._limit:
                        producers = await producers_at(stream, self._reader)
                    break
                except (Unavailable, NotFound) as error:
                    log.warning("partition-open-retry", extra={"stream": stream_id, "error": str(error)})
                    await self._clock.sleep_ms(OPEN_RETRY_MS)
                except Corrupt as error:
                    log.error("partition-corrupt", extra={"stream": stream_id, "error": str(error)})
                    return
            stream = self._state.streams.get(stream_id)
            if stream is None or stream.epoch != epoch or stream.open.owner != self._me:
                return
            partition = Partition(
                stream,
                wal=self._wal,
                reader=self._reader,
                budget=self._budget,
                producers=producers,
                owed_reader=self._read_owed,
            )
            partition.on_acked = self._on_acked
            self._open[stream_id] = partition
            self._moved_ms.pop(stream_id, None)
            self._opened.set()
            self._opened = asyncio.Event()
            self.on_changed(stream, partition)
        finally:
            self._opening.pop(stream_id, None)
            self._opening_since_ms.pop(stream_id, None)

    def close_all(self, why: Exception) -> None:
        """This node gives everything up."""
        for task in self._opening.values():
            task.cancel()
        for partition in self._open.values():
            partition.close(why)
