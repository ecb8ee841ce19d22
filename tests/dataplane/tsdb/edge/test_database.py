"""Promises of an edge database to its application: acks mean what the table's log says, one sync serves many, flushing
leaves the processor to others, memory pushes back before it refuses.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from dataplane.tsdb.edge.database import EdgeDatabase, EdgeSettings
from dataplane.tsdb.schema.tables import TableOptions, TableSchema, WalSync
from providers.base.clock import LoopClock
from providers.base.errors import Full, Invalid, NotFound, Unavailable
from tests.dataplane.tsdb.edge.flash import Flash
from tests.dataplane.tsdb.edge.test_power_cut import COLUMNS, LOGGED, UNLOGGED, numbers, opened, rows
from tests.sim.virtualtime import run

T = TypeVar("T")


def table(name: str, **options: Any) -> TableSchema:
    return TableSchema(name, COLUMNS, options=replace(TableOptions(append_mode=True), **options))


class Slow:
    """A worker of which each call takes so long."""

    def __init__(self, ms: float = 0.0) -> None:
        self.ms = ms
        self.busy_ms: list[tuple[float, float]] = []

    async def __call__(self, what: Callable[[], T]) -> T:
        began = asyncio.get_running_loop().time() * 1_000
        await asyncio.sleep(self.ms / 1_000)
        found = what()
        self.busy_ms.append((began, asyncio.get_running_loop().time() * 1_000))
        return found


async def served(
    flash: Flash, *schemas: TableSchema, worker: Slow | None = None, settings: EdgeSettings | None = None
) -> EdgeDatabase:
    store = opened(flash, segment_bytes=1 << 20)
    database = EdgeDatabase(store, clock=LoopClock(), worker=worker or Slow(), settings=settings or EdgeSettings())
    await database.start()
    for schema in schemas:
        await database.create_table(schema)
    return database


def survivors(flash: Flash, name: str) -> list[int]:
    """What a power cut now would leave."""
    flash.cut(random.Random(1))
    return numbers(opened(flash), name)


def test_what_was_acked_survives_a_power_cut_as_its_table_promises() -> None:
    async def main() -> None:
        for policy, after_ms, there in (
            (WalSync.ALWAYS, 0, [1]),
            (WalSync.PERIODIC, 0, []),
            (WalSync.PERIODIC, 600, [1]),
            (WalSync.OFF, 600, []),
        ):
            flash = Flash()
            database = await served(flash, table("t", wal=policy, wal_sync_interval_ms=500))
            await database.write("t", rows(1))
            await asyncio.sleep(after_ms / 1_000)
            # Of what was not synced a cut may leave all: the judge is a flash that leaves nothing.
            for inode in flash.inodes.values():
                inode.writes.clear()
            assert survivors(flash, "t") == there, (policy, after_ms)

    run(main())


def test_one_sync_serves_all_who_wait_for_it() -> None:
    async def main() -> None:
        database = await served(Flash(), LOGGED, worker=Slow(ms=2))
        before = database.counters.syncs
        await asyncio.gather(*(database.write("logged", rows(n)) for n in range(200)))
        assert database.counters.syncs - before <= 3 and database.counters.rows == 200
        assert (await database.scan("logged", ["n"])).num_rows == 200
        await database.close()

    run(main())


def test_a_write_that_is_refused_says_why_and_costs_the_others_nothing() -> None:
    async def main() -> None:
        database = await served(Flash(), LOGGED)
        outcomes = await asyncio.gather(
            database.write("logged", rows(1)),
            database.write("logged", rows(2).rename_columns(["ts", "nope"])),
            database.write("logged", rows(3)),
            return_exceptions=True,
        )
        assert outcomes[0] is None and isinstance(outcomes[1], Invalid) and outcomes[2] is None
        with pytest.raises(NotFound):
            await database.write("absent", rows(1))
        assert (await database.scan("logged", ["n"])).column("n").to_pylist() == [1, 3]
        await database.close()

    run(main())


def test_a_sync_that_fails_is_no_ack() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, LOGGED)
        flash.sync_fails_at = {flash.calls + 2}
        with pytest.raises(Unavailable):
            await database.write("logged", rows(1))

    run(main())


def test_tables_are_flushed_when_half_full_or_old_and_flushing_keeps_to_its_share() -> None:
    async def main() -> None:
        worker = Slow(ms=20)
        names = [f"t{n}" for n in range(6)]
        schemas = [table(name, memtable_bytes_max=20_000, flush_interval_ms=10_000) for name in names]
        settings = EdgeSettings(flush_share_max=0.02, keeper_ms=1)
        database = await served(Flash(), *schemas, worker=worker, settings=settings)
        for name in names:
            await database.write(name, rows(*range(700)))
        # Each takes 20 ms, and may take a fiftieth of the time: six of them need five seconds.
        await asyncio.sleep(4)
        assert 3 <= database.counters.flushes < 6
        await asyncio.sleep(4)
        assert database.counters.flushes == 6
        await database.write("t0", rows(1_000))
        await asyncio.sleep(9)
        assert database.counters.flushes == 6
        await asyncio.sleep(2)
        assert database.counters.flushes == 7
        await database.close()

    run(main())


def test_full_memory_makes_writers_wait_and_then_refuses() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, table("t", memtable_bytes_max=20_000), worker=Slow(ms=1))
        for n in range(40):
            await database.write("t", rows(*range(n * 100, n * 100 + 100)))
        assert database.counters.refused == 0 and database.counters.flushes > 1
        flash.full_at = set(range(flash.calls + 1, flash.calls + 100_000))
        with pytest.raises(Full):
            while True:
                await database.write("t", rows(*range(100)))
        flash.full_at = set()
        await database.write("t", rows(7))
        assert (await database.scan("t", ["n"])).column("n").to_pylist().count(7) >= 2
        await database.close()

    run(main())


def test_who_gives_up_waiting_leaves_the_store_to_one_at_a_time() -> None:
    async def main() -> None:
        worker = Slow(ms=50)
        database = await served(Flash(), LOGGED, worker=worker)
        for n in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await database.write("logged", rows(n))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await database.scan("logged")
        await asyncio.sleep(2)
        assert (await database.scan("logged", ["n"])).column("n").to_pylist() == [0, 1, 2, 3, 4]
        await database.close()
        assert all(before[1] <= after[0] for before, after in pairwise(worker.busy_ms))

    run(main())


def test_a_clean_shutdown_loses_nothing_even_without_a_log() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, UNLOGGED, table("periodic", wal=WalSync.PERIODIC))
        await database.write("unlogged", rows(1))
        await database.write("periodic", rows(2))
        last = asyncio.create_task(database.write("periodic", rows(3)))
        await asyncio.sleep(0)
        await database.close()
        await last
        with pytest.raises(Unavailable):
            await database.write("periodic", rows(4))
        flash.cut(random.Random(4))
        again = opened(flash)
        assert (numbers(again, "unlogged"), numbers(again, "periodic")) == ([1], [2, 3])

    run(main())
