"""However appends come, the bounds of the group commit hold, and what fits is not refused."""

from __future__ import annotations

import asyncio
import random

import pytest

from dataplane.wal.base import Started, WalIdentity, WalRecord
from dataplane.wal.codec import HEADER_BYTES, block_length, record_bytes
from dataplane.wal.commit import CommitSettings, GroupCommit
from providers.base.clock import LoopClock
from providers.base.errors import Full
from providers.base.volumes import BLOCK_BYTES
from tests.sim.virtualtime import run

QUEUE_BYTES, WAL_BYTES = 300_000, 1 << 20


class Ring:
    """A side with little room, whose writes end when the test says so."""

    name = "volume"
    window_max = 3
    alone = True

    def __init__(self) -> None:
        self.room = WAL_BYTES
        self.writes: list[asyncio.Future[None]] = []

    def room_bytes(self) -> int | None:
        return self.room

    async def open(self) -> None: ...

    def begin(self, number: int) -> None: ...

    async def allocate(self, size: int) -> memoryview | None:
        return None

    def start(self, number: int, block: memoryview, done: Started) -> bool:
        return False  # a request takes a task

    async def write(self, number: int, block: memoryview) -> bool:
        assert len(block) <= self.room, "a block is begun only where it fits"
        self.room -= len(block)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writes.append(over)
        await over
        return True

    async def trim(self, floor: int) -> None:
        self.room = WAL_BYTES

    async def close(self) -> None: ...


@pytest.mark.parametrize("seed", range(30))
def test_bounds_hold_and_nothing_that_fits_is_refused(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        side = Ring()
        settings = CommitSettings(bytes_max=WAL_BYTES, queue_bytes_max=QUEUE_BYTES, close_flush_ms=1)
        wal = GroupCommit(WalIdentity("c", 1, 1), [side], clock=LoopClock(), settings=settings)
        await wal.open()
        refused = taken = 0
        for _ in range(3_000):
            record = WalRecord(1, 1, 0, 1, bytes(rng.choice([10, 100, 1_000, 20_000, 100_000])))
            size = record_bytes(record)
            queued = wal._queued_bytes + size
            fits = (
                wal.bytes_used + queued + HEADER_BYTES <= WAL_BYTES
                and (not wal.unacked_bytes or wal.unacked_bytes + size <= QUEUE_BYTES)
                and block_length(queued) + BLOCK_BYTES <= side.room
            )
            try:
                wal.submit(record, lambda block, error: None)
                assert fits, "it was taken, and there was no room"
                taken += 1
            except Full:
                assert not fits, "it was refused, and there was room"
                refused += 1
            if rng.random() < 0.3:
                await asyncio.sleep(0)
            if rng.random() < 0.2:
                for write in side.writes:
                    if not write.done():
                        write.set_result(None)
                await asyncio.sleep(0)
            if rng.random() < 0.01:
                await wal.trim(wal.last_acked + 1)
        assert taken > 100 and refused > 100
        await wal.close()

    run(main())
