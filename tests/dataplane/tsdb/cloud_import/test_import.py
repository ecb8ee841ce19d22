"""Promises of the import: all of a batch or none of it, each row once, and a reason for every refusal."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from dataplane.tsdb.cloud import file_checks as checks
from dataplane.tsdb.cloud import ingest
from dataplane.tsdb.cloud.byte_budget import ByteBudget
from dataplane.tsdb.cloud.file_checks import Check, Policy
from dataplane.tsdb.cloud.ingest import ImportSettings, Outcome
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.schema.files import ack_key, batch_key, quarantine_key, sst_key
from dataplane.tsdb.schema.tables import Column, ColumnType, TableSchema, widened, with_columns
from providers.base.errors import Unavailable
from providers.memory.faults import Faults
from tests.dataplane.tsdb.cloud_import.bucket import AT_ONCE, CAN, DATABASE, NOW_MS, Cloud, Edge

DAY_MS = 86_400_000


def rows(manifest: Manifest) -> int:
    return sum(meta.rows for table in manifest.state.tables.values() for meta in table.files.values())


def acked(cloud: Cloud, edge: Edge, number: int) -> dict[str, object]:
    answer: dict[str, object] = json.loads(cloud.bucket.objects[ack_key(DATABASE, edge.name, number)])
    return answer


async def one(cloud: Cloud, manifest: Manifest, edge: Edge, settings: ImportSettings | None = None) -> Outcome:
    [outcome] = await cloud.importer(manifest, edge, settings=settings).turn()
    return outcome


def test_a_batch_is_one_entry_and_its_files_have_one_sequence() -> None:
    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        files = [edge.upload(*edge.sst(rows=n + 1)) for n in range(20)]
        before, data = manifest.seq, dict(cloud.bucket.objects)
        edge.ship(*files)
        outcome = await one(cloud, manifest, edge)
        assert (outcome.refused, outcome.imported, outcome.rows) == (None, 20, 210)
        assert manifest.seq == before + 1
        assert {meta.sequence for meta in manifest.state.tables["can"].files.values()} == {1}
        assert all(cloud.bucket.objects[key] == value for key, value in data.items()), "an import moves no bytes"
        assert acked(cloud, edge, 1)["outcome"] == "imported"
        follower = await cloud.manifest("replica")
        assert follower.state == manifest.state

    asyncio.run(main())


def test_a_file_that_comes_twice_is_there_once() -> None:
    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        first, second = edge.upload(*edge.sst()), edge.upload(*edge.sst())
        edge.ship(first)
        edge.ship(first, second)
        outcomes = await cloud.importer(manifest, edge).turn()
        assert [outcome.refused for outcome in outcomes] == [None, None]
        files = manifest.state.tables["can"].files
        assert (files[first.file_id].sequence, files[second.file_id].sequence) == (1, 2)
        assert rows(manifest) == 20
        other, data = edge.sst(rows=11)
        edge.ship(edge.upload(replace(other, file_id=first.file_id), data))
        assert "other bytes" in str((await one(cloud, manifest, edge)).refused)
        assert rows(manifest) == 20

    asyncio.run(main())


def test_a_refused_batch_is_quarantined_with_its_reason_and_does_not_hold_up_the_next() -> None:
    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        good, absent = edge.upload(*edge.sst()), edge.sst()[0]
        edge.ship(good, absent)
        edge.ship(edge.upload(*edge.sst(rows=3)))
        refused, taken = await cloud.importer(manifest, edge).turn()
        assert refused.files == {absent.file_id: "it is not in the bucket; it needs a fresh id"}
        assert taken.refused is None and rows(manifest) == 3, "none of the refused batch, all of the next"
        said = json.loads(cloud.bucket.objects[quarantine_key(DATABASE, edge.name, 1)])
        assert absent.file_id in said["files"] and "not in the bucket" in said["reason"]
        assert acked(cloud, edge, 1)["outcome"] == "refused"
        edge.ship(good)
        assert (await one(cloud, manifest, edge)).refused is None, "the good file may come again"
        assert rows(manifest) == 13

    asyncio.run(main())


def test_a_flipped_bit_in_any_byte_of_a_file_is_found_before_the_commit() -> None:
    async def main() -> None:
        cloud, chance = Cloud(), random.Random(6)
        edge = Edge(cloud)
        manifest = await cloud.owned()
        meta, data = edge.sst()
        shipped: dict[int, list[str]] = {}
        for first in range(0, len(data), 500):
            files = []
            for at in range(first, min(first + 500, len(data))):
                flipped = bytearray(data)
                flipped[at] ^= 1 << chance.randrange(8)
                files.append(edge.upload(replace(meta, file_id=cloud.rng.token()), bytes(flipped)))
            shipped[edge.ship(*files)] = [file.file_id for file in files]
        outcomes = await cloud.importer(manifest, edge).turn()
        assert {outcome.number: sorted(outcome.files) for outcome in outcomes} == {
            number: sorted(ids) for number, ids in shipped.items()
        }
        assert rows(manifest) == 0

    asyncio.run(main())


def test_another_vehicles_batch_and_rubbish_are_refused() -> None:
    async def main() -> None:
        cloud = Cloud()
        edge, thief = Edge(cloud), Edge(cloud, "car-2")
        manifest = await cloud.owned()
        edge.ship(edge.upload(*edge.sst()), key=thief)
        cloud.bucket.objects[batch_key(DATABASE, edge.name, 2)] = b"\x00\xff rubbish"
        edge.number = 3
        edge.ship(thief.upload(*thief.sst()))
        outcomes = await cloud.importer(manifest, edge).turn()
        whys = [str(outcome.refused) for outcome in outcomes]
        assert "not signed with that edge's key" in whys[0]
        assert "no signature" in whys[1]
        assert "of edge 'car-2'" in whys[2]
        assert rows(manifest) == 0

    asyncio.run(main())


@pytest.mark.parametrize("check", list(Check))
def test_what_a_file_says_of_itself_must_be_so(check: Check) -> None:
    """At every level, the footer's included: half of a file, more than the file, other rows, times or columns."""
    wider = widened(CAN, "speed", ColumnType.FLOAT64)
    lies = {
        "shorter": "it is shorter than" if check is Check.FOOTER else " bytes, not ",
        "longer": "longer",
        "rows": "it has 10 rows, not 11",
        "times": "its times are",
        "columns": "its column 'speed' is float",
    }

    async def main() -> None:
        for lie, reason in lies.items():
            cloud = Cloud()
            edge = Edge(cloud)
            manifest = await cloud.owned()
            meta, data = edge.sst()
            schema = CAN
            match lie:
                case "shorter":
                    data = data[: len(data) // 2]
                case "longer":
                    data += b"PAR1"
                case "rows":
                    meta = replace(meta, rows=11)
                case "times":
                    meta = replace(meta, time_min=meta.time_min - 1)
                case "columns":
                    meta, schema = replace(meta, fingerprint=wider.fingerprint), wider
            edge.ship(edge.upload(meta, data), schemas=(schema,))
            outcome = await one(cloud, manifest, edge, ImportSettings(Policy(check)))
            assert reason in outcome.files[meta.file_id], lie
            assert rows(manifest) == 0

    asyncio.run(main())


def test_a_newer_schema_widens_the_table_an_older_one_is_fine_and_a_stranger_is_refused() -> None:
    newer = widened(with_columns(CAN, (Column(0, "rpm", ColumnType.INT32),)), "speed", ColumnType.FLOAT64)
    stranger = TableSchema("can", (*CAN.columns[:2], Column(3, "speed", ColumnType.STRING)))

    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        before = manifest.seq
        edge.ship(edge.upload(*edge.sst(schema=newer, written=newer)), schemas=(newer,))
        assert (await one(cloud, manifest, edge)).refused is None
        assert manifest.seq == before + 1, "the table grows in the entry that brings the file"
        assert manifest.state.tables["can"].schema.columns == newer.columns
        edge.ship(edge.upload(*edge.sst()))
        assert (await one(cloud, manifest, edge)).refused is None
        assert manifest.state.tables["can"].schema.columns == newer.columns
        edge.ship(edge.upload(*edge.sst(schema=stranger, written=stranger)), schemas=(stranger,))
        assert "column 'speed'" in str((await one(cloud, manifest, edge)).refused)
        unknown = replace(CAN, name="gps")
        edge.ship(edge.upload(*edge.sst(schema=unknown, written=unknown)), schemas=(unknown,))
        assert "no table 'gps'" in str((await one(cloud, manifest, edge)).refused)
        assert rows(manifest) == 20

    asyncio.run(main())


def test_a_clock_in_the_future_is_refused_unless_the_policy_takes_it() -> None:
    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        for first_ms in (NOW_MS + DAY_MS // 2, NOW_MS + 2 * DAY_MS):
            edge.ship(edge.upload(*edge.sst(first_ms=first_ms)))
        near, far = await cloud.importer(manifest, edge).turn()
        assert near.refused is None
        assert "48.0 hours ahead of the cloud's clock" in str(far.refused)
        edge.ship(edge.upload(*edge.sst(first_ms=NOW_MS + 2 * DAY_MS)))
        assert (await one(cloud, manifest, edge, ImportSettings(Policy(ahead_ms_max=None)))).refused is None

    asyncio.run(main())


def test_several_importers_take_each_batch_once_and_every_batch_is_acked() -> None:
    async def main() -> None:
        cloud = Cloud()
        edges = [Edge(cloud, f"car-{n}") for n in range(4)]
        await cloud.owned()
        for edge in edges:
            for _ in range(5):
                edge.ship(edge.upload(*edge.sst()))
        manifests = [await cloud.manifest(f"importer-{n}") for n in range(3)]
        await asyncio.gather(*(cloud.importer(m, *edges, name=f"i{n}").turn() for n, m in enumerate(manifests)))
        for manifest in manifests:
            await manifest.poll()
            assert rows(manifest) == 200
            assert manifest.state.sequence == 20
        assert all(acked(cloud, edge, n)["outcome"] == "imported" for edge in edges for n in range(1, 6))

    asyncio.run(main())


def test_an_importer_that_died_before_the_ack_is_made_up_for() -> None:
    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        for _ in range(3):
            edge.ship(edge.upload(*edge.sst()))
        await cloud.importer(manifest, edge).turn()
        for number in (2, 3):
            del cloud.bucket.objects[ack_key(DATABASE, edge.name, number)]
        fresh = await cloud.manifest("fresh")
        assert await cloud.importer(fresh, edge, name="fresh").turn() == []
        assert [acked(cloud, edge, n)["outcome"] for n in (1, 2, 3)] == ["imported"] * 3

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(8))
def test_a_bucket_that_throttles_and_loses_answers_costs_time_and_nothing_else(seed: int) -> None:
    async def main() -> None:
        cloud = Cloud(seed)
        edges = [Edge(cloud, f"car-{n}") for n in range(2)]
        manifest = await cloud.owned()
        for edge in edges:
            for _ in range(4):
                edge.ship(edge.upload(*edge.sst()), edge.upload(*edge.sst()))
        cloud.bucket.faults = Faults((0, 0), throttled=0.2, lost_response=0.1, delayed=0.05, duplicated=0.05)
        importer = cloud.importer(manifest, *edges)
        turns = 0
        while any(manifest.state.edges.get(edge.name, 0) < 4 for edge in edges):
            turns += 1
            assert turns < 50
            try:
                await importer.turn()
            except Unavailable:
                continue
        await cloud.world.settle()
        cloud.bucket.faults = AT_ONCE
        await importer.turn()
        reader = await cloud.manifest("reader")
        assert reader.state.refusals == [] and rows(reader) == 160
        assert all(acked(cloud, edge, n)["outcome"] == "imported" for edge in edges for n in range(1, 5))

    asyncio.run(main())


def test_pages_on_request_find_what_a_wrong_checksum_of_the_edge_vouches_for() -> None:
    """A vehicle whose memory flipped a bit signs the damaged bytes: only decoding tells."""

    async def main() -> None:
        for check, found in ((Check.CHECKSUM, False), (Check.PAGES, True)):
            cloud = Cloud()
            edge = Edge(cloud)
            manifest = await cloud.owned()
            meta, data = edge.sst(rows=1_000)
            damaged = bytearray(data)
            damaged[len(data) // 2] ^= 1
            edge.ship(edge.upload(replace(meta, sha256=hashlib.sha256(damaged).hexdigest()), bytes(damaged)))
            outcome = await one(cloud, manifest, edge, ImportSettings(Policy(check)))
            assert (outcome.refused is not None) == found
            assert sst_key(DATABASE, "can", meta.file_id) in cloud.bucket.objects

    asyncio.run(main())


def test_a_large_file_is_decoded_without_being_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the importer nor Arrow: the most that both hold beyond the bucket's own copy is a part of the file."""

    async def main() -> None:
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned()
        meta, data = edge.sst(rows=1_500_000)
        assert len(data) > 5 << 20
        edge.ship(edge.upload(meta, data))
        spooled: list[str] = []
        monkeypatch.setattr(ingest, "SPOOLED_BYTES", 1 << 20)
        real = checks.why_not_pages

        def seen(file: Any) -> str | None:
            spooled.append(type(file._file).__name__)
            return real(file)

        monkeypatch.setattr(checks, "why_not_pages", seen)
        tracemalloc.start()
        outcome = await one(cloud, manifest, edge, ImportSettings(Policy(Check.PAGES)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert outcome.refused is None and rows(manifest) == 1_500_000
        assert spooled == ["BufferedRandom"], "it lay on disk"
        assert peak < len(data) / 2

    asyncio.run(main())


def test_files_in_memory_at_once_are_bounded_in_bytes_and_the_largest_still_comes_in() -> None:
    async def main() -> None:
        budget = ByteBudget(100)
        held = most = 0

        async def use(count: int) -> None:
            nonlocal held, most
            async with budget.hold(count):
                held += min(count, 100)
                most = max(most, held)
                await asyncio.sleep(0)
                held -= min(count, 100)

        await asyncio.gather(*(use(count) for count in (40, 40, 40, 500, 1, 99, 30, 30, 30, 30)))
        assert held == 0 and 90 < most <= 100

    asyncio.run(main())
