"""Promises of compaction and retention: no answer changes but by what has expired. Judged by DuckDB over the files as
they lie in the bucket and by a dictionary that is written beside the database.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.compaction import CompactionSettings, runs
from dataplane.tsdb.cloud.housekeeping import Housekeeping, HousekeepingSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import database_owned, files_added, table_created
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.schema.files import FileMeta, sst_key
from dataplane.tsdb.schema.retention import expired
from dataplane.tsdb.schema.tables import MergeMode, TableOptions, TableSchema
from dataplane.tsdb.sst.order import OP_TYPE
from providers.base.clock import SeededRng
from tests.dataplane.tsdb.cloud_db.world import at_once
from tests.dataplane.tsdb.cloud_import.bucket import CAN, DATABASE, NOW_MS, Cloud

SMALL = CompactionSettings(window_s=1, files_min=2, files_max=8)
HOUR = 3_600_000


def file(sequence: int, low: int, high: int, size: int = 100) -> FileMeta:
    return FileMeta(
        f"{sequence:08d}{low:012d}{high:012d}", "can", CAN.fingerprint, 1, low, high, size, 50, "00" * 32, "x",
        sequence=sequence,
    )  # fmt: skip


def test_a_run_never_jumps_over_a_file_that_comes_between() -> None:
    settings = replace(SMALL, window_s=1)
    inside = [file(n, 0, 900) for n in (1, 2, 4, 5)]
    found = runs(CAN, inside, settings)
    assert [[m.sequence for m in run.files] for run in found] == [[1, 2, 4, 5]] and found[0].deletes_end
    [run] = runs(CAN, [*inside, file(3, 500, 1_500)], settings)
    assert [m.sequence for m in run.files] in ([1, 2], [4, 5])
    [run] = runs(replace(CAN, options=TableOptions(append_mode=True)), [*inside, file(3, 500, 1_500)], settings)
    assert [m.sequence for m in run.files] == [1, 2, 4, 5]


def test_files_of_two_windows_stay_apart_and_a_large_one_is_not_written_again_for_little() -> None:
    assert not runs(CAN, [file(1, 0, 900), file(2, 1_000, 1_900)], SMALL)
    [run] = runs(CAN, [file(1, 0, 900, 10_000), file(2, 0, 900), file(3, 0, 900)], SMALL)
    assert [m.sequence for m in run.files] == [2, 3] and not run.deletes_end


def test_an_expired_file_stays_while_what_it_replaced_does() -> None:
    table = replace(CAN, options=TableOptions(ttl_ms=1_000))
    old, straddling, newer = file(1, 0, 900), file(2, 500, 5_000), file(3, 0, 700)
    assert expired(table, [old, straddling, newer], 2_500) == [old]
    assert expired(table, [old, newer], 2_500) == [old, newer]
    assert expired(CAN, [old], 10**12) == []


class Bench:
    """A database that is written, deleted from and compacted by two at once; and what it must hold."""

    def __init__(self, seed: int, folder: Path, options: TableOptions) -> None:
        self.cloud = Cloud(seed)
        self.chance = random.Random(seed)
        self.folder = folder
        self.table: TableSchema = replace(CAN, options=options)
        self.expected: dict[tuple[str, int], float | None] = {}
        self.appended: Counter[tuple[str, int, float]] = Counter()
        self.manifests: list[Manifest] = []

    async def open(self) -> None:
        for name in ("a", "b"):
            manifest = Manifest(
                self.cloud.store(name), DATABASE, Writer(name, name), clock=self.cloud.clock, rng=self.cloud.rng
            )
            await manifest.open()
            self.manifests.append(manifest)
        await self.manifests[0].commit_one(lambda state: database_owned(1, "a"))
        await self.manifests[0].commit_one(lambda state: table_created(1, self.table))

    def files(self, which: int) -> SstFiles:
        return SstFiles(
            self.cloud.store("ab"[which]),
            DATABASE,
            "ab"[which],
            clock=self.cloud.clock,
            rng=SeededRng(self.cloud.rng.token()),
            worker=at_once,
        )

    async def flush(self) -> None:
        """One file of random rows; sometimes one that deletes."""
        began = NOW_MS + 1_000 * self.chance.randrange(3)
        keys = [(f"v{self.chance.randrange(2)}", began + 111 * self.chance.randrange(9)) for _ in range(6)]
        if self.chance.random() < 0.3:  # over a window's border
            keys = [(v, NOW_MS + self.chance.choice([888, 999, 1_000, 1_111])) for v, _ in keys]
        deletes = self.chance.random() < 0.3 and not self.table.options.append_mode
        if not self.table.options.append_mode:
            keys = list(dict.fromkeys(keys))
        lossy = self.table.options.merge_mode is MergeMode.LAST_NON_NULL
        speeds = [None if lossy and self.chance.random() < 0.4 else float(self.chance.randrange(1000)) for _ in keys]
        data = {
            "vehicle": pa.array([v for v, _ in keys]),
            "ts": pa.array([t for _, t in keys], pa.int64()).cast(pa.timestamp("ms")),
        }
        if deletes:
            data[OP_TYPE] = pa.array([0] * len(keys), pa.uint8())
            for key in keys:
                self.expected.pop(key, None)
        else:
            data["speed"] = pa.array(speeds, pa.float32())
            for key, speed in zip(keys, speeds, strict=True):
                self.appended[*key, speed or 0.0] += 1
                self.expected[key] = speed if speed is not None else self.expected.get(key)
        which = self.chance.randrange(2)
        files = self.files(which)
        meta = await files.write(self.table, lambda: pa.table(data), files.fresh_id())
        await self.manifests[which].commit_one(lambda state: files_added(1, [meta]))

    async def keep_house(self) -> list[str]:
        settings = HousekeepingSettings(compaction=SMALL, share_max=1)
        houses = [
            Housekeeping(1, manifest, self.files(which), clock=self.cloud.clock, settings=settings)
            for which, manifest in enumerate(self.manifests)
        ]
        return list(await asyncio.gather(*(house.turn() for house in houses)))

    async def check(self) -> int:
        """What DuckDB makes of the files in the bucket, and the dictionary."""
        await self.manifests[0].poll()
        metas = list(self.manifests[0].state.tables["can"].files.values())
        parts = []
        for meta in sorted(metas, key=lambda m: m.sequence):
            path = self.folder / f"{meta.file_id}.parquet"
            path.write_bytes(self.cloud.bucket.objects[sst_key(DATABASE, "can", meta.file_id)])
            op = OP_TYPE if OP_TYPE in pq.read_schema(path).names else "1"
            parts.append(
                f"SELECT vehicle, epoch_ms(ts) AS t, speed, {op} AS op, {meta.sequence} AS seq, "
                f"file_row_number AS pos FROM read_parquet('{path}', file_row_number=true)"
            )
        every = " UNION ALL ".join(parts)
        if self.table.options.append_mode:
            found = duckdb.sql(f"SELECT vehicle, t, speed, count(*) FROM ({every}) GROUP BY ALL").fetchall()
            assert {(v, t, s): n for v, t, s, n in found} == dict(self.appended)
        else:
            # Of each key what was written since its last delete: whole rows, or of the field the last value.
            since = f"""
                WITH e AS ({every}), d AS (
                    SELECT *, max(CASE WHEN op = 0 THEN seq * 1000000 + pos ELSE -1 END)
                              OVER (PARTITION BY vehicle, t) AS gone FROM e)
                SELECT vehicle, t, arg_max(speed, seq * 1000000 + pos) FILTER (WHERE speed IS NOT NULL)
                FROM d WHERE op = 1 AND seq * 1000000 + pos > gone GROUP BY ALL"""
            assert {(v, t): s for v, t, s in duckdb.sql(since).fetchall()} == self.expected
        return len(metas)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "options",
    [TableOptions(), TableOptions(merge_mode=MergeMode.LAST_NON_NULL), TableOptions(append_mode=True)],
    ids=["last-row", "last-non-null", "append"],
)
def test_two_racing_compactors_change_no_answer(seed: int, options: TableOptions, tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(seed, tmp_path, options)
        await bench.open()
        flushed, compacted = 0, 0
        for _ in range(10):
            for _ in range(bench.chance.randrange(1, 5)):
                await bench.flush()
                flushed += 1
            said = await bench.keep_house()
            compacted += sum(not text.endswith(" 0 compacted") for text in said)
            files = await bench.check()
        assert compacted >= 2 and files < flushed, (compacted, files, flushed)

    asyncio.run(main())


def test_retention_removes_whole_files_and_what_readers_hold_stays_readable(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(1, tmp_path, TableOptions(ttl_ms=HOUR, append_mode=True))
        await bench.open()
        for _ in range(3):
            await bench.flush()
        before = dict(bench.manifests[0].state.tables["can"].files)
        bench.cloud.clock.wall = NOW_MS + HOUR - 10
        assert await bench.keep_house() == ["0 files expired, 0 compacted"] * 2 or await bench.check()
        bench.cloud.clock.wall = NOW_MS + 2 * HOUR
        await bench.keep_house()
        await bench.manifests[0].poll()
        assert not bench.manifests[0].state.tables["can"].files
        for meta in before.values():
            data = bench.cloud.bucket.objects[sst_key(DATABASE, "can", meta.file_id)]
            assert len(pq.read_table(io.BytesIO(data))) == meta.rows

    asyncio.run(main())
