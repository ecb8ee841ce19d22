"""Promises of an edge database to its application: acks mean what the table's log says, one sync serves many, flushing
leaves the processor to others, memory pushes back before it refuses.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from dataplane.tsdb.edge.database import EdgeDatabase, EdgeSettings
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.query.engine import TableView
from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions, TableSchema, WalSync
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import AlreadyExists, Full, Invalid, NotFound, Unavailable
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
        await database.create_table(schema.name, schema.columns, schema.options)
    return database


def noise(count: int, seed: int = 1) -> pa.Table:
    """Rows that nothing makes smaller than their eight bytes of noise each."""
    rng = random.Random(seed)
    return rows(*(rng.getrandbits(62) for _ in range(count)), at=1)


async def put(database: EdgeDatabase, name: str, data: pa.Table) -> int:
    return await database.write([Rows(name, data)])


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
            await put(database, "t", rows(1))
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
        await asyncio.gather(*(put(database, "logged", rows(n)) for n in range(200)))
        assert database.counters.syncs - before <= 3 and database.counters.rows == 200
        assert (await database.scan("logged", ["n"])).num_rows == 200
        await database.close()

    run(main())


def test_a_write_that_is_refused_says_why_and_costs_the_others_nothing() -> None:
    async def main() -> None:
        database = await served(Flash(), LOGGED)
        outcomes = await asyncio.gather(
            put(database, "logged", rows(1)),
            put(database, "logged", rows(2).rename_columns(["ts", "nope"])),
            put(database, "logged", rows(3)),
            return_exceptions=True,
        )
        assert outcomes[0] == 1 and isinstance(outcomes[1], Invalid) and outcomes[2] == 1
        with pytest.raises(NotFound):
            await put(database, "absent", rows(1))
        assert (await database.scan("logged", ["n"])).column("n").to_pylist() == [1, 3]
        await database.close()

    run(main())


def test_a_sync_that_fails_is_no_ack() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, LOGGED)
        flash.sync_fails_at = {flash.calls + 2}
        with pytest.raises(Unavailable):
            await put(database, "logged", rows(1))

    run(main())


def test_tables_are_flushed_when_half_full_or_old_and_flushing_keeps_to_its_share() -> None:
    async def main() -> None:
        worker = Slow(ms=20)
        names = [f"t{n}" for n in range(6)]
        schemas = [table(name, memtable_bytes_max=20_000, flush_interval_ms=10_000) for name in names]
        settings = EdgeSettings(flush_share_max=0.02, keeper_ms=1)
        database = await served(Flash(), *schemas, worker=worker, settings=settings)
        for name in names:
            await put(database, name, noise(1_900))
        # Each takes 20 ms, and may take a fiftieth of the time: six of them need five seconds.
        await asyncio.sleep(4)
        assert 3 <= database.counters.flushes < 6
        await asyncio.sleep(4)
        assert database.counters.flushes == 6
        await put(database, "t0", rows(1_000))
        await asyncio.sleep(9)
        assert database.counters.flushes == 6
        await asyncio.sleep(2)
        assert database.counters.flushes == 7
        await database.close()

    run(main())


def test_the_fuller_memory_is_the_less_flushing_pauses() -> None:
    async def main() -> None:
        names = [f"t{n}" for n in range(6)]
        store = EdgeStore(Flash(), "car-1", SeededRng(1), memory_bytes_max=110_000)
        settings = EdgeSettings(flush_share_max=0.001, keeper_ms=1)
        database = EdgeDatabase(store, clock=LoopClock(), worker=Slow(ms=20), settings=settings)
        await database.start()
        for name in names:
            await database.create_table(name, COLUMNS, TableOptions(append_mode=True))
        await database.write([Rows(name, noise(1_000)) for name in names])
        # By its share alone there would be one in twenty seconds.
        await asyncio.sleep(2)
        assert database.counters.flushes >= 3 and database.memory_bytes < 110_000 / 2
        await database.close()

    run(main())


def test_full_memory_makes_writers_wait_and_then_refuses() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, table("t", memtable_bytes_max=20_000), worker=Slow(ms=1))
        for n in range(60):
            await put(database, "t", noise(100, seed=n))
        assert database.counters.refused == 0 and database.counters.flushes > 1
        flash.full_at = set(range(flash.calls + 1, flash.calls + 100_000))
        with pytest.raises(Full):
            while True:
                await put(database, "t", noise(2_000))
        flash.full_at = set()
        await put(database, "t", rows(7))
        assert (await database.scan("t", ["n"])).column("n").to_pylist().count(7) == 1
        await database.close()

    run(main())


def test_who_gives_up_waiting_leaves_the_store_to_one_at_a_time() -> None:
    async def main() -> None:
        worker = Slow(ms=50)
        database = await served(Flash(), LOGGED, worker=worker)
        for n in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await put(database, "logged", rows(n))
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
        await put(database, "unlogged", rows(1))
        await put(database, "periodic", rows(2))
        last = asyncio.create_task(put(database, "periodic", rows(3)))
        await asyncio.sleep(0)
        await database.close()
        await last
        with pytest.raises(Unavailable):
            await put(database, "periodic", rows(4))
        flash.cut(random.Random(4))
        again = opened(flash)
        assert (numbers(again, "unlogged"), numbers(again, "periodic")) == ([1], [2, 3])

    run(main())


class Recorded:
    """A query engine that keeps what it is given, and may be held up in the middle."""

    def __init__(self, store: Callable[[], EdgeDatabase]) -> None:
        self.database = store
        self.go = asyncio.Event()

    async def query(self, select: str, tables: Mapping[str, TableView], now_ms: int) -> pa.Table:
        view = tables[select]
        await self.go.wait()
        store = self.database()._store
        parts = [*(store.read(meta, view.schema, ["n"]).select(["n"]) for meta in view.files), *view.memory]
        return pa.concat_tables([part.select(["n"]) for part in parts], promote_options="permissive")


def test_a_query_reads_one_moment_while_files_come_and_go() -> None:
    async def main() -> None:
        flash = Flash()
        found: list[EdgeDatabase] = []
        engine = Recorded(lambda: found[0])
        database = EdgeDatabase(opened(flash), clock=LoopClock(), worker=Slow(ms=1), queries=engine)
        found.append(database)
        await database.start()
        await database.create_table("t", COLUMNS, TableOptions(append_mode=True))
        await put(database, "t", rows(1))
        first = await database.flush_table("t")
        await put(database, "t", rows(2))
        asked = asyncio.create_task(database.query("t"))
        await asyncio.sleep(0.1)
        assert first is not None
        await put(database, "t", rows(3))
        await database.flush()
        await database.with_store(lambda store: store.forget([first.file_id]))
        assert f"{first.file_id}.parquet" in flash.names(), "the query still needs it"
        engine.go.set()
        assert (await asked).column("n").to_pylist() == [1, 2]
        assert f"{first.file_id}.parquet" not in flash.names()
        assert (await database.query("t")).column("n").to_pylist() == [2, 3]
        with pytest.raises(KeyError):
            await database.query("absent")
        await database.close()

    run(main())


def test_tables_change_durably_and_a_table_made_anew_has_none_of_the_old_rows() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, table("t"))
        with pytest.raises(AlreadyExists):
            await database.create_table("t", COLUMNS, TableOptions())
        assert (await database.create_table("t", COLUMNS[:1], TableOptions(), if_not_exists=True)).columns == COLUMNS
        await put(database, "t", rows(1))
        more = (Column(0, "more", ColumnType.INT8), Column(0, "n", ColumnType.INT64))
        assert [c.name for c in (await database.add_columns("t", more)).columns] == ["ts", "n", "more"]
        assert (await database.add_columns("t", more)).version == 2, "what is there is passed over"
        with pytest.raises(Invalid, match="of type int8"):
            await database.add_columns("t", (Column(0, "more", ColumnType.STRING),))
        assert (await database.widen_column("t", "more", ColumnType.INT32)).version == 3
        with pytest.raises(NotFound):
            await database.widen_column("t", "absent", ColumnType.INT32)
        with pytest.raises(Invalid, match="settled"):
            await database.set_options("t", TableOptions(append_mode=False))
        changed = await database.set_options("t", TableOptions(append_mode=True, ttl_ms=5))
        assert (changed.options.ttl_ms, changed.version) == (5, 4)
        flash.cut(random.Random(1))
        assert [t for t in opened(flash).tables if t.name == "t"] == [changed]

        database = await served(flash)
        await put(database, "t", rows(2).append_column("more", pa.array([7], pa.int32())))
        await database.truncate_table("t")
        assert (await database.scan("t")).num_rows == 0
        await put(database, "t", rows(3))
        assert await database.drop_table("t") and not await database.drop_table("t", if_exists=True)
        with pytest.raises(NotFound):
            await database.drop_table("t")
        with pytest.raises(NotFound):
            await put(database, "t", rows(4))
        assert database.table("t") is None and database.tables() == []
        await database.create_table("t", COLUMNS, TableOptions(append_mode=True))
        await put(database, "t", rows(5))
        assert survivors(flash, "t") == [5]

    run(main())


def test_a_write_of_several_tables_is_taken_whole_or_not_at_all() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, table("a"), table("b"))
        with pytest.raises(Invalid, match="null"):
            nothing = pa.table({"ts": pa.array([1], pa.timestamp("ms")), "n": pa.array([None], pa.int64())})
            await database.write([Rows("a", rows(1)), Rows("b", nothing)])
        with pytest.raises(NotFound):
            await database.write([Rows("a", rows(1)), Rows("absent", rows(1))])
        assert await database.write([Rows("a", rows(2, 3)), Rows("b", rows(4)), Rows("a", rows(5))]) == 4
        assert await database.write([Rows("a", rows(1).slice(0, 0))]) == 0
        flash.cut(random.Random(1))
        again = opened(flash)
        assert (numbers(again, "a"), numbers(again, "b")) == ([2, 3, 5], [4])

    run(main())


def test_deletes_keep_their_place_among_writes_of_one_turn() -> None:
    async def main() -> None:
        database = await served(Flash(), table("t", append_mode=False), worker=Slow(ms=5))
        await asyncio.gather(
            put(database, "t", rows(1, 2)),
            database.delete("t", rows(1)),
            put(database, "t", rows(3)),
            put(database, "t", rows(11, at=1)),
            database.delete("t", rows(3)),
        )
        assert sorted((await database.scan("t", ["n"])).column("n").to_pylist()) == [2, 11]
        await database.close()

    run(main())
