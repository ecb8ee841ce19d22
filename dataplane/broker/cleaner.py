"""The owner's part in compaction by key: when enough of a compacted topic's partition is not clean, it is read once to
learn each key's newest record, and once more to write the objects in which records are superseded anew, without them.

Only what is in object storage is cleaned, so nothing unacked is ever looked at, and nothing that a WAL still holds.
Objects are replaced one after the other, oldest first; a cleaning that ends half-way has done no harm, and is begun
again. Python looks at records slowly: it rests often, and takes a small part of a core.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from dataplane.broker.retaining import Append, leading
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.compacting import stream_cleaned
from dataplane.ledger.entry import Command
from dataplane.ledger.state import CellState, Extent
from dataplane.stream.batch import iter_batches
from dataplane.stream.cleaning import KEYS_MAX, Cleaning, KeyMap, Outcomes, Sweep, cleaning_of
from dataplane.stream.compaction import OBJECT_BYTES_MAX
from dataplane.stream.merge import Merge, Pace, with_last
from dataplane.stream.objects import IndexEntry
from dataplane.stream.opening import producers_at
from dataplane.stream.partition import Partition
from dataplane.stream.reader import ObjectReader
from providers.base.clock import Clock
from providers.base.errors import Corrupt, NotFound, Unavailable

log = logging.getLogger(__name__)

FAILED_MAX = 5
"""Partitions of one turn for which the bucket may not answer: one object that cannot be read holds up no others."""
REST_MS = 5
"""Between two slices of records: a slice takes one or two, so that cleaning has a quarter of a core at most."""


class Write(Protocol):
    """`Compactor.write`."""

    async def __call__(self, partition: Partition, extents: Sequence[Extent], merge: Merge) -> Command: ...


class _Overtaken(Exception):
    """The ledger shows other extents than those that were read."""


class Cleaner:
    """See the module."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        state: Callable[[], CellState],
        reader: ObjectReader,
        write: Write,
        pace: Pace,
        append: Append,
        clock: Clock,
        keys_max: int = KEYS_MAX,
    ) -> None:
        self._me = me
        self._state = state
        self._reader = reader
        self._write = write
        self._pace = pace
        self._append = append
        self._clock = clock
        self._keys_max = keys_max

    async def turn(self, partitions: Iterable[Partition]) -> int:
        """Clean what is dirty enough; how many partitions were.

        Raises:
            Unavailable: the bucket does not answer, not for one partition only, or the ledger's answer is not known.
        """
        cleaned = failed = 0
        for partition in list(partitions):
            topic = self._state().topics.get(partition.stream.topic)
            cleaning = cleaning_of(topic.configs) if topic is not None and not topic.internal else None
            if cleaning is None or partition.closed:
                continue
            try:
                cleaned += await self._clean(partition, cleaning)
            except (NotFound, _Overtaken):
                pass  # trimmed, deleted or moved meanwhile: the next turn looks anew
            except Unavailable:
                failed += 1
                if failed == FAILED_MAX:
                    raise
            except Corrupt as error:
                # A reader reports it; nothing here may bury it.
                log.error("cleaning-passed-over", extra={"stream": partition.id, "error": str(error)})
        return cleaned

    async def _clean(self, partition: Partition, cleaning: Cleaning) -> bool:
        stream = partition.stream
        extents = leading(stream)
        blocks = {e.object: (await self._reader.index(e)).blocks_of(stream.id, e.start, e.end) for e in extents}
        now_ms = self._clock.wall_ms()
        stable = partition.last_stable_offset
        end = _cleanable([b for e in extents for b in blocks[e.object]], stream.cleaned, stable, cleaning, now_ms)
        if end is None:
            return False
        newest = KeyMap(Outcomes(await partition.aborted(partition.start_offset, end)), self._keys_max)
        end = await self._learn(partition, extents, newest, end)
        sweep = Sweep(newest, end, now_ms, cleaning.tombstones_ms, self._rest)
        replaced = 0
        for group in _groups([e for e in extents if e.start < end], blocks):
            if await self._changes(partition, group, sweep):
                await self._replace(partition, group, sweep)
                replaced += len(group)
        me, epoch = self._me, partition.epoch
        refused = await self._append(lambda state: [stream_cleaned(stream.id, epoch, me, end)])
        log.info("cleaned", extra={"stream": stream.id, "end": end, "extents": replaced, "refused": refused})
        return refused is None

    async def _learn(self, partition: Partition, extents: Sequence[Extent], newest: KeyMap, end: int) -> int:
        """Fill `newest` from what is not clean below `end`; where it ended, which is earlier if there are many keys."""
        start = max(partition.stream.cleaned, partition.start_offset)
        for extent in extents:
            if extent.end <= start or extent.start >= end:
                continue
            async for entry, block in self._reader.scan(extent, partition.id, max(start, extent.start)):
                if entry.start >= end:
                    break
                for header, batch in iter_batches(block):
                    if header.base_offset < start:
                        continue
                    if header.base_offset >= end:
                        return end
                    if newest.full:
                        return header.base_offset
                    await newest.note(header, batch, self._rest)
                await self._pace(len(block))
        return end

    async def _changes(self, partition: Partition, group: Sequence[Extent], sweep: Sweep) -> bool:
        """Whether anything of these extents goes. Most are read no further than to the first record that does."""
        for extent in group:
            async for entry, block in self._reader.scan(
                extent, partition.id, max(partition.start_offset, extent.start)
            ):
                for (header, batch), last in with_last(iter_batches(block)):
                    if await sweep.batch(header, batch, last=last and entry.end == group[-1].end) is not batch:
                        return True
                await self._pace(len(block))
        return False

    async def _replace(self, partition: Partition, group: Sequence[Extent], sweep: Sweep) -> None:
        # Of producers whose records are gone, only what was said when they went may know.
        known_at = group[0].start
        handover = partition.stream.handover
        if handover is not None and known_at < handover["offset"] <= group[-1].end:
            known_at = handover["offset"]
        before = await producers_at(partition.stream, self._reader, known_at)
        merge = Merge(
            self._reader,
            partition.id,
            group,
            partition.start_offset,
            self._pace,
            rewrite=sweep.batch,
            before=(before, known_at),
        )
        command = await self._write(partition, group, merge)
        await self._append(lambda state: [command] if state.is_live(self._me) else None)
        if command["name"] not in self._state().objects:
            raise _Overtaken
        self._reader.forget({e.object for e in group} - self._state().objects.keys())

    async def _rest(self) -> None:
        await self._clock.sleep_ms(REST_MS)


def _cleanable(blocks: Sequence[IndexEntry], cleaned: int, stable: int, cleaning: Cleaning, now_ms: int) -> int | None:
    """Up to which offset to clean now; None: not yet. `blocks` in offset order. From `stable` on, transactions are
    open: nobody knows yet what is to become of their records."""
    clean = dirty = 0
    end = cleaned
    for block in blocks:
        if block.end <= cleaned:
            clean += block.size
        elif block.start >= stable or (cleaning.lag_ms and block.max_timestamp > now_ms - cleaning.lag_ms):
            break
        else:
            dirty += block.size
            end = min(block.end, stable)
    return end if end > cleaned and dirty >= cleaning.dirty_ratio_min * (clean + dirty) else None


def _groups(extents: Sequence[Extent], blocks: dict[str, list[IndexEntry]]) -> list[list[Extent]]:
    """Extents that become one object at most, in order."""
    groups: list[list[Extent]] = []
    room = 0
    for extent in extents:
        size = sum(block.size for block in blocks[extent.object])
        if not groups or size > room:
            groups.append([])
            room = OBJECT_BYTES_MAX
        groups[-1].append(extent)
        room -= size
    return groups
