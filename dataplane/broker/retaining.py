"""The owner's part in retention: now and then it raises the start of its partitions, many in one ledger entry. Objects
that nothing refers to any more are the controller's to delete.

The newest state of a stream's idempotent producers is kept, however old: it lies at the end of an object's part, and an
owner that does not find it would refuse a producer that is alive (decision 4).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from dataplane.broker.partitions import PartitionSet
from dataplane.ledger.commands import NodeEpoch, stream_trimmed
from dataplane.ledger.entry import Command
from dataplane.ledger.state import CellState, Extent, Stream
from dataplane.stream.objects import IndexEntry
from dataplane.stream.partition import Partition
from dataplane.stream.reader import ObjectReader
from dataplane.stream.retention import Retention, retention_of, start_by_age, start_by_size
from providers.base.clock import Clock
from providers.base.errors import Corrupt, NotFound, Unavailable

log = logging.getLogger(__name__)

TRIMS_MAX = 500
"""Streams trimmed in one ledger entry; the others with the next turn."""
INDEXES_MAX = 200
"""Objects whose index one turn reads; what is not known then is decided in a later turn."""


class Append(Protocol):
    """`Node.append`."""

    def __call__(self, decide: Callable[[CellState], Sequence[Command] | None]) -> Awaitable[str | None]: ...


class _Enough(Exception):
    """This turn has read as many indexes as it may."""


class Retainer:
    """See the module."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        state: Callable[[], CellState],
        partitions: Callable[[], PartitionSet],
        reader: ObjectReader,
        append: Append,
        clock: Clock,
        interval_ms: float,
    ) -> None:
        self._me = me
        self._state = state
        self._partitions = partitions
        self._reader = reader
        self._append = append
        self._clock = clock
        self._interval_ms = interval_ms
        self._blocks: dict[tuple[str, int], list[IndexEntry]] = {}
        self._room = 0

    async def run(self) -> None:
        """Look, and trim, until cancelled."""
        while True:
            await self._clock.sleep_ms(self._interval_ms)
            try:
                await self.turn()
            except (Unavailable, NotFound, Corrupt) as error:
                log.warning("retention-waits", extra={"error": str(error)})

    async def turn(self) -> int:
        """Trim what is due now; how many streams were.

        Raises:
            Unavailable, NotFound, Corrupt: an index cannot be read, or the ledger's answer is not known.
        """
        self._room = INDEXES_MAX
        starts: dict[int, int] = {}
        kept: set[tuple[str, int]] = set()
        topics = self._state().topics
        for partition in [p for p in self._partitions().everything() if not p.closed]:
            topic = topics.get(partition.stream.topic)
            retention = retention_of(topic.configs) if topic is not None and not topic.internal else None
            if retention is None or not retention.bounded:
                continue
            kept.update((e.object, partition.id) for e in partition.stream.extents)
            try:
                start = await self._start(partition, retention)
            except _Enough:
                continue
            if start > partition.start_offset and len(starts) < TRIMS_MAX:
                starts[partition.id] = start
        self._blocks = {key: blocks for key, blocks in self._blocks.items() if key in kept}
        if starts:
            await self._append(lambda state: _trims(state, self._me, starts) or None)
            log.info("retention", extra={"streams": len(starts)})
        return len(starts)

    async def _start(self, partition: Partition, retention: Retention) -> int:
        stream, start = partition.stream, partition.start_offset
        if retention.age_ms is not None:
            start = await self._by_age(stream, start, retention.age_ms)
        if retention.size_bytes is not None:
            start = await self._by_size(partition, start, retention.size_bytes)
        return min(start, await self._limit(stream)) if start > partition.start_offset else start

    async def _limit(self, stream: Stream) -> int:
        """The greatest start with which the newest producers' state, and all records behind it, are still there."""
        handed_over = stream.start if stream.handover is None else int(stream.handover["offset"])
        for extent in reversed(stream.extents):
            blocks = await self._blocks_of(extent, stream, 0)
            if blocks and blocks[-1].end == extent.end and blocks[-1].producers_position >= 0:
                return max(handed_over, blocks[-1].start)
        return handed_over

    async def _by_age(self, stream: Stream, start: int, age_ms: int) -> int:
        for extent in leading(stream):
            fresh = start_by_age(await self._blocks_of(extent, stream, start), start, age_ms, self._clock.wall_ms())
            if fresh < extent.end:
                return fresh
            start = fresh
        return start

    async def _by_size(self, partition: Partition, start: int, size_bytes: int) -> int:
        stream = partition.stream
        # Objects hold other streams too: their whole sizes are a bound that costs no request.
        if sum(extent.size for extent in stream.extents) + partition.unuploaded_bytes <= size_bytes:
            return start
        blocks = [block for extent in leading(stream) for block in await self._blocks_of(extent, stream, start)]
        held = sum(block.size for block in blocks) + partition.unuploaded_bytes
        return start_by_size(blocks, start, size_bytes, held)

    async def _blocks_of(self, extent: Extent, stream: Stream, start: int) -> list[IndexEntry]:
        key = (extent.object, stream.id)
        blocks = self._blocks.get(key)
        if blocks is None:
            if self._room <= 0:
                raise _Enough
            self._room -= 1
            blocks = (await self._reader.index(extent)).blocks_of(stream.id, extent.start, extent.end)
            self._blocks[key] = blocks
        return [block for block in blocks if block.end > start]


def leading(stream: Stream) -> list[Extent]:
    """Extents up to the first gap: what lies there is owed by a former owner, and may still be committed."""
    found: list[Extent] = []
    for extent in stream.extents:
        if found and extent.start != found[-1].end:
            break
        found.append(extent)
    return found


def _trims(state: CellState, me: NodeEpoch, starts: dict[int, int]) -> list[Command]:
    """Commands for those that are still this node's."""
    commands: list[Command] = []
    for stream_id, start in starts.items():
        stream = state.streams.get(stream_id)
        if stream is not None and stream.open.owner == me and start > stream.start:
            commands.append(stream_trimmed(stream_id, stream.epoch, me, start))
    return commands
