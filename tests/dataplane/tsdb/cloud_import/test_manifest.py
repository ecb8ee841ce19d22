"""Promises of the manifest: one history for everybody, and nobody changes it in another's name."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from dataplane.tsdb.cloud import manifest_state
from dataplane.tsdb.cloud.manifest_commands import (
    Consumed,
    database_owned,
    files_added,
    files_replaced,
    table_changed,
    table_created,
    table_truncated,
)
from dataplane.tsdb.cloud.orphans import OrphanSettings, collect
from dataplane.tsdb.schema.files import FileMeta, file_of, sst_key
from dataplane.tsdb.schema.tables import Column, ColumnType, with_columns
from providers.base.errors import Conflict, Fenced, Invalid
from tests.dataplane.tsdb.cloud_import.bucket import CAN, DATABASE, NOW_MS, Cloud, Edge


def flushed(cloud: Cloud, count: int = 1) -> list[FileMeta]:
    edge = Edge(cloud, "cloud")
    return [edge.upload(*edge.sst()) for _ in range(count)]


def test_a_deposed_owner_changes_nothing() -> None:
    async def main() -> None:
        cloud = Cloud()
        old = await cloud.owned()
        new = await cloud.manifest("new")
        await new.commit_one(lambda state: database_owned(state.epoch + 1, "new"))
        with pytest.raises(Fenced):
            await old.commit_one(lambda state: files_added(1, flushed(cloud)))
        with pytest.raises(Fenced):
            await old.commit_one(lambda state: table_created(1, replace(CAN, name="late")))
        with pytest.raises(Conflict):
            await old.commit_one(lambda state: database_owned(2, "cloud"))
        await new.poll()
        assert (new.state.owner, new.state.sequence, sorted(new.state.tables)) == ("new", 0, ["can"])

    asyncio.run(main())


def test_of_two_compactions_of_one_file_one_is_refused_whole() -> None:
    async def main() -> None:
        cloud = Cloud()
        manifest = await cloud.owned()
        a, b, c = flushed(cloud, 3)
        await manifest.commit_one(lambda state: files_added(1, [a, b]))
        await manifest.commit_one(lambda state: files_added(1, [c]))
        merged, other = (replace(meta, level=1, sequence=2) for meta in flushed(cloud, 2))
        first, second = await cloud.manifest("first"), await cloud.manifest("second")

        async def compact(by: object, removed: list[str], added: FileMeta) -> str | None:
            [why] = await by.commit(lambda state: [files_replaced(1, "can", removed, [added], NOW_MS)])  # type: ignore[attr-defined]
            return why  # type: ignore[no-any-return]

        whys = await asyncio.gather(
            compact(first, [a.file_id, b.file_id], merged), compact(second, [b.file_id, c.file_id], other)
        )
        assert sorted(why is None for why in whys) == [False, True]
        await manifest.poll()
        files = set(manifest.state.tables["can"].files)
        assert files in ({merged.file_id, c.file_id}, {other.file_id, a.file_id})

    asyncio.run(main())


def test_a_file_that_was_compacted_away_does_not_come_back() -> None:
    async def main() -> None:
        cloud = Cloud()
        manifest = await cloud.owned()
        [a] = flushed(cloud)
        await manifest.commit_one(lambda state: files_added(1, [a]))
        [merged] = flushed(cloud)
        await manifest.commit_one(
            lambda state: files_replaced(1, "can", [a.file_id], [replace(merged, sequence=1)], NOW_MS)
        )
        await manifest.commit_one(lambda state: files_added(1, [a]))
        assert set(manifest.state.tables["can"].files) == {merged.file_id}

    asyncio.run(main())


def test_records_of_a_topic_are_taken_once_and_without_a_gap() -> None:
    async def main() -> None:
        cloud = Cloud()
        manifest = await cloud.owned()
        for first, after, taken in ((0, 5, True), (0, 5, False), (6, 9, False), (5, 9, True)):
            [meta] = flushed(cloud)
            [why] = await manifest.commit(
                lambda state, meta=meta, at=(first, after): [  # type: ignore[misc]
                    files_added(1, [meta], consumed=[Consumed("signals", 0, *at)])
                ]
            )
            assert (why is None) == taken
        assert manifest.state.consumed == {"signals/0": 9}
        assert len(manifest.state.tables["can"].files) == 2

    asyncio.run(main())


def test_two_schema_changes_at_once_do_not_overwrite_each_other() -> None:
    async def main() -> None:
        cloud = Cloud()
        manifest = await cloud.owned()
        grown = [with_columns(CAN, (Column(0, name, ColumnType.INT32),)) for name in ("rpm", "gear")]
        whys = await manifest.commit(lambda state: [table_changed(1, schema) for schema in grown])
        assert whys[0] is None and "does not follow version 2" in str(whys[1])
        assert manifest.state.tables["can"].schema == grown[0]

    asyncio.run(main())


def test_a_fresh_reader_replays_from_a_snapshot_and_sees_the_same() -> None:
    async def main() -> None:
        cloud = Cloud()
        manifest = await cloud.owned()
        for n in range(210):
            [meta] = flushed(cloud)
            await manifest.commit_one(lambda state, meta=meta: files_added(1, [meta]))  # type: ignore[misc]
            if n == 100:
                await manifest.commit_one(lambda state: table_truncated(1, "can", NOW_MS))
        assert any(key.startswith(f"{DATABASE}/ledger/snapshot") for key in cloud.bucket.objects), sorted(
            cloud.bucket.objects
        )[:3]
        reader = await cloud.manifest("reader")
        assert reader.state == manifest.state
        plain = json.loads(json.dumps(manifest_state.dump(manifest.state)))
        assert manifest_state.load(plain) == manifest.state

    asyncio.run(main())


def test_more_than_an_entry_holds_is_refused_before_it_is_sent() -> None:
    async def main() -> None:
        cloud = Cloud()
        manifest = await cloud.owned()
        [meta] = flushed(cloud)
        many = [replace(meta, file_id=f"{n:032x}", series_min="v" * 500) for n in range(5_000)]
        with pytest.raises(Invalid):
            await manifest.commit_one(lambda state: files_added(1, many))
        await manifest.commit_one(lambda state: files_added(1, [meta]))
        assert len(manifest.state.tables["can"].files) == 1

    asyncio.run(main())


def test_an_orphan_is_given_up_before_it_is_deleted_and_cannot_be_committed_after() -> None:
    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        kept, removed = flushed(cloud, 2)
        orphan = edge.upload(*edge.sst())
        await manifest.commit_one(lambda state: files_added(1, [kept, removed]))
        await manifest.commit_one(lambda state: files_replaced(1, "can", [removed.file_id], [], NOW_MS))
        deleted: list[str] = []
        store = cloud.store("collector")
        delete = store.delete

        async def watched(keys: list[str]) -> None:
            for key in keys:
                table, file_id = file_of(DATABASE, key) or ("", "")
                reader = await cloud.manifest("judge")
                assert table == "can" and file_id in reader.state.gone, "the manifest says so first"
                deleted.append(file_id)
            await delete(keys)

        store.delete = watched  # type: ignore[method-assign, assignment]
        done = await collect(manifest, store, cloud.clock)
        assert (done.condemned, deleted) == (1, [orphan.file_id])
        cloud.clock.wall += OrphanSettings().removed_grace_ms
        await collect(manifest, store, cloud.clock)
        assert deleted == [orphan.file_id, removed.file_id]
        assert sst_key(DATABASE, "can", kept.file_id) in cloud.bucket.objects
        edge.ship(edge.upload(orphan, b""))
        [outcome] = await cloud.importer(manifest, edge).turn()
        assert "orphan" in str(outcome.refused)
        assert (await collect(manifest, store, cloud.clock)).deleted == 0

    asyncio.run(main())
