"""Promises of one owner: what is acked is shown and kept, changes of tables lose nothing, memory is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pyarrow as pa
import pytest

from dataplane.tsdb.cloud import manifest_state
from dataplane.tsdb.cloud.flushing import TenureSettings
from dataplane.tsdb.cloud.manifest_commands import Logged, database_owned, files_added, wal_recovered
from dataplane.tsdb.cloud.node import NodeSettings
from dataplane.tsdb.cloud.ownership import Seen, decide, patience_ms
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions
from providers.base.errors import AlreadyExists, Conflict, Fenced, Full, Invalid, NotFound, OutcomeUnknown, Unavailable
from tests.dataplane.tsdb.cloud_db.world import (
    APPENDS,
    COLUMNS,
    MERGES,
    UNLOGGED,
    Member,
    Region,
    eventually,
    rows,
    write,
)
from tests.dataplane.tsdb.cloud_import.bucket import Cloud, Edge
from tests.sim.virtualtime import run

SLOW = TableOptions(append_mode=True, flush_interval_ms=3_600_000)


def owned(
    what: Callable[[Region, Member], Awaitable[None]],
    *,
    tenure: TenureSettings | None = None,
    names: tuple[str, ...] = ("a",),
) -> None:
    """Run `what` with a region, calm, and its owner."""

    async def main() -> None:
        region = Region(names=names)
        if tenure is not None:
            region.settings = NodeSettings(lease_ms=3_000, tenure=tenure)
        await region.begin()
        await what(region, await region.owner())

    run(main())


def total(region: Region, member: Member, table: str = "t") -> int:
    return sum(region.numbers(member.database.moment()[table]).values())


def test_rows_are_shown_once_acked_and_once_flushed() -> None:
    async def main(region: Region, owner: Member) -> None:
        await owner.database.create_table("t", COLUMNS, SLOW)
        looks: list[int] = []
        stop = False

        async def look() -> None:
            while not stop:
                looks.append(total(region, owner))
                await asyncio.sleep(0.0003)

        # Also between an entry's acceptance and its answer: when the fold has the file, memory has its rows no more.
        owner.node.manifest.subscribe(lambda entry, outcomes: looks.append(total(region, owner)))
        looking = asyncio.ensure_future(look())
        for at in range(5):
            await write(owner, "t", rows(at * 10, 10))
            await owner.database.flush("t")
        stop = True
        await looking
        assert looks == sorted(looks) and looks[-1] == total(region, owner) == 50
        assert len(owner.database.moment()["t"].files) == 5

    owned(main)


def test_a_killed_owners_rows_are_recovered_once_though_some_tables_were_flushed() -> None:
    async def main(region: Region, owner: Member) -> None:
        for name in ("t", "u"):
            await owner.database.create_table(name, COLUMNS, SLOW)
        for at in range(20):
            await owner.database.write([Rows("t", rows(at)), Rows("u", rows(at))])
            if at == 10:
                await owner.database.flush("t")
        region.kill(owner)
        first = await region.owner()
        region.kill(first)
        second = await region.owner()
        assert second.node.tenure is not None and second.node.tenure.epoch == 3
        assert (total(region, second, "t"), total(region, second, "u")) == (20, 20)

    owned(main, names=("a", "b", "c"))


def test_a_table_without_a_wal_loses_with_its_node_what_is_not_flushed_and_nothing_else() -> None:
    async def main(region: Region, owner: Member) -> None:
        await owner.database.create_table("t", COLUMNS, replace(UNLOGGED, flush_interval_ms=3_600_000))
        await write(owner, "t", rows(0, 10))
        await owner.database.flush("t")
        await write(owner, "t", rows(10, 5))
        assert total(region, owner) == 15
        assert not [key for key in region.bucket.objects if "/wal/" in key]
        region.kill(owner)
        assert total(region, await region.owner()) == 10

    owned(main, names=("a", "b"))


def test_a_change_of_a_table_loses_no_row_and_reads_old_ones() -> None:
    async def main(region: Region, owner: Member) -> None:
        database = owner.database
        await database.create_table("t", COLUMNS, SLOW)
        done = 0

        async def writer() -> None:
            nonlocal done
            for at in range(60):
                await write(owner, "t", rows(at))
                done += 1

        writing = asyncio.ensure_future(writer())
        grown = await database.add_columns("t", [Column(0, "extra", ColumnType.INT32)])
        assert (await database.add_columns("t", [Column(0, "extra", ColumnType.INT32)])).version == grown.version == 2
        wide = await database.widen_column("t", "extra", ColumnType.INT64)
        kept = await database.set_options("t", replace(SLOW, ttl_ms=10**9))
        await writing
        assert done == 60 and [c.name for c in wide.columns][-1] == "extra" and kept.options.ttl_ms == 10**9
        assert total(region, owner) == 60
        assert {part.num_columns for part in database.moment()["t"].memory} <= {4}
        with pytest.raises(Invalid):
            await database.widen_column("t", "n", ColumnType.INT8)
        with pytest.raises(NotFound):
            await database.add_columns("none", [])

    owned(main)


def test_truncated_and_dropped_rows_do_not_come_back_by_recovery() -> None:
    async def main(region: Region, owner: Member) -> None:
        for name in ("t", "u"):
            await owner.database.create_table(name, COLUMNS, SLOW)
            await write(owner, name, rows(0, 10))
        await owner.database.truncate_table("t")
        assert await owner.database.drop_table("u") and not await owner.database.drop_table("u", if_exists=True)
        await owner.database.create_table("u", COLUMNS, SLOW)
        await write(owner, "t", rows(100, 2))
        await write(owner, "u", rows(100, 3))
        assert (total(region, owner), total(region, owner, "u")) == (2, 3)
        region.kill(owner)
        new = await region.owner()
        assert (total(region, new), total(region, new, "u")) == (2, 3)

    owned(main, names=("a", "b"))


def test_deletes_go_the_way_of_writes() -> None:
    async def main(region: Region, owner: Member) -> None:
        await owner.database.create_table("t", COLUMNS, MERGES)
        await write(owner, "t", rows(0, 10))
        await owner.database.flush()
        assert await owner.database.delete("t", rows(3, 2)) == 2
        assert len(region.latest(owner.database.moment()["t"])) == 8
        region.kill(owner)
        new = await region.owner()
        assert len(region.latest(new.database.moment()["t"])) == 8
        await new.database.create_table("log", COLUMNS, APPENDS)
        with pytest.raises(Invalid, match="appends"):
            await new.database.delete("log", rows(3, 2))

    owned(main, names=("a", "b"))


def test_bad_input_changes_nothing() -> None:
    async def main(region: Region, owner: Member) -> None:
        database = owner.database
        await database.create_table("t", COLUMNS, SLOW)
        with pytest.raises(AlreadyExists):
            await database.create_table("t", COLUMNS, SLOW)
        await database.create_table("t", COLUMNS, SLOW, if_not_exists=True)
        wrong = rows(0).set_column(2, "n", pa.array([1.5]))
        with pytest.raises(Invalid, match="is int64, not double"):
            await database.write([Rows("t", rows(5)), Rows("t", rows(6)), Rows("t", wrong)][2:])
        with pytest.raises(NotFound):
            await database.write([Rows("t", rows(5)), Rows("none", rows(5))])
        assert total(region, owner) == 0
        assert await database.write([Rows("t", rows(5)), Rows("t", rows(6)), Rows("t", rows(7, 0))]) == 2
        assert total(region, owner) == 2

    owned(main)


def test_full_memory_waits_then_refuses_and_drops_nothing() -> None:
    async def main(region: Region, owner: Member) -> None:
        await owner.database.create_table("t", COLUMNS, SLOW)
        region.bucket.faults = replace(region.bucket.faults, latency_ms=(100, 100))
        owner.process.cut_from.add("bucket")  # nothing can be flushed, and nothing acked
        waiting = [asyncio.ensure_future(write(owner, "t", rows(at * 100, 100))) for at in range(30)]
        await region.clock.sleep_ms(7_000)
        refused = [w for w in waiting if w.done() and isinstance(w.exception(), Full)]
        assert refused and all(not w.done() for w in waiting if w not in refused)
        owner.process.cut_from.clear()
        await asyncio.wait(waiting)
        acked = [w for w in waiting if w.exception() is None]
        assert len(acked) + len(refused) == 30 and acked
        assert total(region, owner) == 100 * len(acked)

    owned(main, tenure=TenureSettings(memory_bytes_max=60_000, flush_bytes=10_000))


def test_the_wal_is_trimmed_behind_what_the_manifest_says_and_never_before() -> None:
    async def main(region: Region, owner: Member) -> None:
        await owner.database.create_table("t", COLUMNS, SLOW)
        await owner.database.create_table("u", COLUMNS, SLOW)
        await write(owner, "u", rows(0))

        def blocks() -> int:
            return sum("/wal/" in key for key in region.bucket.objects)

        for at in range(10):
            await write(owner, "t", rows(at))
        await owner.database.flush("t")
        await region.clock.sleep_ms(1_000)
        assert blocks() == 11, "the first block has a row of `u` in it"
        await owner.database.flush("u")
        await eventually(region, lambda: blocks() == 0)

    owned(main)


def test_a_follower_answers_reads_and_sends_writes_on() -> None:
    async def main(region: Region, owner: Member) -> None:
        await owner.database.create_table("t", COLUMNS, SLOW)
        await write(owner, "t", rows(0, 5))
        await owner.database.flush()
        other = next(m for m in region.members.values() if m is not owner)
        await region.clock.sleep_ms(1_000)
        assert (await other.database.query("t")).num_rows == 5 and other.database.staleness_ms < 1_000
        for call in (write(other, "t", rows(9)), other.database.truncate_table("t"), other.database.flush()):
            with pytest.raises(Fenced) as caught:
                await call
            assert caught.value.fields["owner"] == owner.name

    owned(main, names=("a", "b"))


def test_of_an_unanswered_write_nobody_claims_to_know() -> None:
    async def main(region: Region, owner: Member) -> None:
        await owner.database.create_table("t", COLUMNS, SLOW)
        owner.process.cut_from.add("bucket")
        unanswered = asyncio.ensure_future(write(owner, "t", rows(1)))
        new = next(m for m in region.members.values() if m is not owner)
        region.cut = {frozenset(region.names)}
        await eventually(region, lambda: new.owns)
        owner.process.cut_from.clear()
        with pytest.raises(OutcomeUnknown):
            await unanswered
        await write(new, "t", rows(2))
        assert region.numbers(new.database.moment()["t"])[2] == 1

    owned(main, names=("a", "b"))


# ── the manifest ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_is_in_files_once_and_a_log_is_forgotten_only_when_recovered() -> None:
    async def main() -> None:
        cloud = Cloud()
        manifest = await cloud.owned()
        edge = Edge(cloud, "cloud")
        one, two, three = (edge.upload(*edge.sst()) for _ in range(3))
        await manifest.commit_one(lambda s: files_added(1, [one], logged=Logged(1, 4, {"can": 7})))
        with pytest.raises(Conflict, match="are in files already"):
            await manifest.commit_one(lambda s: files_added(1, [two], logged=Logged(1, 9, {"can": 7})))
        await manifest.commit_one(lambda s: database_owned(2, "b", "claim"))
        log = manifest.state.logs[1]
        assert (sorted(manifest.state.logs), log.block, log.tables) == ([1, 2], 4, {"can": 7})
        with pytest.raises(Conflict):
            await manifest.commit_one(lambda s: wal_recovered(2, 2))
        await manifest.commit_one(lambda s: files_added(2, [two], logged=Logged(1, 4, {"can": 8})))
        await manifest.commit_one(lambda s: wal_recovered(2, 1))
        with pytest.raises(Conflict, match="is recovered"):
            await manifest.commit_one(lambda s: files_added(2, [three], logged=Logged(1, 9, {"can": 9})))
        assert sorted(manifest.state.logs) == [2] and len(manifest.state.tables["can"].files) == 2
        assert manifest_state.load(manifest_state.dump(manifest.state)) == manifest.state

    asyncio.run(main())


def test_a_snapshot_of_before_there_were_logs_still_loads() -> None:
    plain = manifest_state.dump(manifest_state.ManifestState(epoch=3, owner="a"))
    for name in ("logs", "claim"):
        del plain[name]
    state = manifest_state.load({**plain, "wal_floor": 0})
    assert (state.claim, state.logs) == ("", {3: manifest_state.LogState(1, {})})


# ── who takes over ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_silence_starts_a_take_over_and_a_peer_that_hears_the_owner_stops_it() -> None:
    seen = Seen("b", ("a", "b", "c"), "a", 3_000, (), 0)
    assert decide(seen, 3_000)[0] and not decide(replace(seen, silent_ms=2_999), 3_000)[0]
    assert not decide(replace(seen, heard_by=("c",)), 3_000)[0]
    assert not decide(replace(seen, me="c"), 3_000)[0], "b is before it"
    assert decide(replace(seen, me="a", owner="", silent_ms=0), 3_000)[0], "it was handed over"
    waits = [patience_ms(replace(seen, changes=n), 3_000) for n in range(8)]
    assert waits[:4] == [3_000, 3_000, 6_000, 12_000] and waits[-1] == 60_000


def test_nobody_serves_while_nobody_can() -> None:
    async def main() -> None:
        region = Region(names=("a",))
        member = await region.start("a")
        with pytest.raises(Unavailable):
            await member.database.flush()

    run(main())
