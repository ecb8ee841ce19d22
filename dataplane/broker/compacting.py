"""The owner's part in compaction: now and then it merges small extents of its partitions into objects of one stream,
and says so in the ledger. The objects that held them become garbage when nothing else in them is needed.

Compacted topics are cleaned first (`cleaner.py`), by the same means.

Paced: so many bytes a second, and not at all while uploads have a backlog. What fails is tried again by a later turn;
what was written in vain is an orphan (`orphans.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from dataplane.broker.cleaner import FAILED_MAX, Cleaner
from dataplane.broker.partitions import PartitionSet
from dataplane.broker.retaining import Append
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.compacting import extents_compacted, lane_passed
from dataplane.ledger.entry import Command
from dataplane.ledger.object_names import lane_prefix, object_key
from dataplane.ledger.state import CellState, Extent
from dataplane.stream.compaction import pick, runs
from dataplane.stream.merge import Merge, store
from dataplane.stream.partition import Partition
from dataplane.stream.reader import ObjectReader
from providers.base.clock import Clock
from providers.base.errors import Corrupt, NotFound, Unavailable
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

LANE = "compaction"
INDEXES_MAX = 500
"""Objects whose index one turn reads; what is not known then is decided in a later turn."""
COMMIT_TOGETHER = 16
"""Merges in one ledger entry, at most: an entry carries their names, and a lost one costs their work."""
BUSY_LOOK_MS = 200
"""Between two looks whether the uploads have caught up."""


class Compactor:
    """See the module. `busy` says whether the broker has better things to do."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        cluster: str,
        incarnation: str,
        state: Callable[[], CellState],
        partitions: Callable[[], PartitionSet],
        reader: ObjectReader,
        bucket: ObjectStore,
        append: Append,
        busy: Callable[[], bool],
        clock: Clock,
        interval_ms: float,
        bytes_per_s: int,
    ) -> None:
        self._me = me
        self._lane = f"{incarnation}-{LANE}"
        self._prefix = lane_prefix(cluster, me, self._lane)
        self._state = state
        self._partitions = partitions
        self._reader = reader
        self._bucket = bucket
        self._append = append
        self._busy = busy
        self._clock = clock
        self._interval_ms = interval_ms
        self._bytes_per_s = bytes_per_s
        self._counter = 0
        self._sizes: dict[tuple[str, int], int] = {}
        self._room = 0
        self._ready: list[Command] = []
        self._accepted = 0
        self._cleaner = Cleaner(
            me, state=state, reader=reader, write=self.write, pace=self.pace, append=append, clock=clock
        )

    async def run(self) -> None:
        """Look, and merge, until cancelled."""
        while True:
            await self._clock.sleep_ms(self._interval_ms)
            try:
                await self._cleaner.turn(p for p in self._partitions().everything() if not p.closed)
                while await self.turn():
                    pass
                await self._give_up_rest()
            except Unavailable as error:
                log.warning("compaction-waits", extra={"error": str(error)})

    async def turn(self) -> int:
        """Merge what is due now, once a stream; how many objects the ledger has taken.

        Raises:
            Unavailable: the bucket does not answer, not for one partition only, or the ledger's answer is not known.
        """
        failed = 0
        self._room = INDEXES_MAX
        self._ready = []
        self._accepted = 0
        open_now = [p for p in self._partitions().everything() if not p.closed]
        held = {(e.object, p.id) for p in open_now for e in p.stream.extents}
        self._sizes = {key: size for key, size in self._sizes.items() if key in held}
        for partition in open_now:
            try:
                extents = await self._due(partition)
                if extents is not None:
                    merge = Merge(self._reader, partition.id, extents, partition.start_offset, self.pace)
                    self._ready.append(await self.write(partition, extents, merge))
            except (NotFound, Corrupt) as error:
                # Trimmed, deleted or moved meanwhile; or damaged, which a reader reports and nothing here may bury.
                log.warning("compaction-passed-over", extra={"stream": partition.id, "error": str(error)})
            except Unavailable:
                failed += 1
                if failed == FAILED_MAX:
                    raise
            if len(self._ready) >= COMMIT_TOGETHER:
                await self._commit()
        await self._commit()
        return self._accepted

    async def _due(self, partition: Partition) -> Sequence[Extent] | None:
        for run in runs(partition.stream.extents):
            sizes = []
            for extent in run:
                key = (extent.object, partition.id)
                if key not in self._sizes:
                    if self._room <= 0:
                        return None
                    self._room -= 1
                    self._sizes[key] = await self._reader.bytes_of(extent, partition.id)
                sizes.append(self._sizes[key])
            chosen = pick(sizes)
            if chosen is not None:
                return run[chosen]
        return None

    async def write(self, partition: Partition, extents: Sequence[Extent], merge: Merge) -> Command:
        """Store the merged object; the command that puts it in the place of `extents`. Commands are appended in the
        order in which they were made.

        Raises:
            Unavailable, NotFound, Corrupt: as `merge.store`.
        """
        self._counter += 1
        name = object_key(self._prefix, self._counter)
        await self.pace(0)
        await store(self._bucket, name, merge, self._clock)
        return extents_compacted(partition.id, partition.epoch, self._me, extents, name, merge.size)

    async def _commit(self) -> None:
        commands, self._ready = self._ready, []
        if not commands:
            return
        # Stale ones among them (moved, trimmed) are refused one by one; the others count.
        await self._append(lambda state: commands if state.is_live(self._me) else None)
        objects = self._state().objects
        accepted = [c for c in commands if c["name"] in objects]
        self._accepted += len(accepted)
        replaced = {name for command in accepted for name in command["replaced"]}
        self._reader.forget(replaced - objects.keys())
        log.info(
            "compacted",
            extra={
                "objects": len(accepted),
                "refused": len(commands) - len(accepted),
                "extents": sum(len(c["replaced"]) for c in accepted),
                "bytes": sum(c["size"] for c in accepted),
            },
        )

    async def _give_up_rest(self) -> None:
        """Say of what was written in vain last that it will not be committed: else it would wait for the next merge."""

        def decide(state: CellState) -> list[Command] | None:
            behind = state.is_live(self._me) and state.brokers[self._me.node].lanes.get(self._lane, 0) < self._counter
            return [lane_passed(self._me, self._lane, self._counter)] if behind else None

        if decide(self._state()):
            await self._append(decide)

    async def pace(self, size: int) -> None:
        """Wait as long as `size` bytes may take, and until there is nothing more urgent."""
        await self._clock.sleep_ms(size / self._bytes_per_s * 1_000)
        while self._busy():
            await self._clock.sleep_ms(BUSY_LOOK_MS)
