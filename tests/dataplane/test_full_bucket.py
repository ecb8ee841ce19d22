"""A bucket that is full for a while (a quota, a disk) slows whoever writes to it, and ends nobody."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dataplane.ledger.entry import Command, Writer
from dataplane.ledger.log import Ledger
from dataplane.stream.upload import put_object
from dataplane.wal.objects import create
from dataplane.wal.sides import RetrySettings
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import Full, Unavailable
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from tests.dataplane.ledger.test_log import Counter
from tests.sim.virtualtime import run


class FullFor(MemoryObjectStore):
    """A store whose first `refusals` puts find the quota used up."""

    refusals = 0

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            raise Full("the bucket's quota is used up", hint="raise it")
        await super().put(key, data, if_absent=if_absent)


def store(world: World, refusals: int) -> FullFor:
    found = FullFor(Process(world, "p"), MemoryBucket(world, "bucket"))
    found.refusals = refusals
    return found


def test_an_upload_waits_for_room() -> None:
    async def main() -> None:
        world = World(LoopClock(), SeededRng(1))
        bucket = store(world, 2)
        await put_object(bucket, "o", b"x", world.clock)
        assert await bucket.get("o") == b"x"
        with pytest.raises(Unavailable):
            await put_object(store(world, 1000), "o", b"x", world.clock)

    run(main())


def test_a_wal_object_waits_for_room() -> None:
    async def main() -> None:
        world = World(LoopClock(), SeededRng(1))
        bucket = store(world, 2)
        assert await create(bucket, "w", b"x", retry=RetrySettings(), clock=world.clock) is None
        assert await bucket.get("w") == b"x"

    run(main())


def test_a_ledger_entry_waits_for_room() -> None:
    async def main() -> None:
        world = World(LoopClock(), SeededRng(1))
        bucket = store(world, 2)
        ledger = Ledger(bucket, "l", Counter(), Writer("w", "i"), clock=world.clock, rng=SeededRng(1))
        await ledger.open()

        def decide(state: object) -> Sequence[Command]:
            return [{"kind": "elect", "term": 1}]

        appended = await ledger.append(decide)
        assert appended is not None
        assert ledger.seq == 1
        await ledger.close()

    run(main())
