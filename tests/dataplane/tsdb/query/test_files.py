"""Promises of files under queries: no flipped bit is served, of a wide file little is asked for and only once, caches
are bounded and may be lost.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.tsdb.bench.signals import WIDE, wide
from dataplane.tsdb.query.disk_cache import DiskCache
from dataplane.tsdb.query.engine import QueryEngine, QuerySettings, TableView
from dataplane.tsdb.query.files import CachedFiles, CacheSettings, LocalFiles, in_folder
from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.writer import Sst, write_sst
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import Corrupt, NotFound
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from tests.dataplane.tsdb.cloud_import.bucket import AT_ONCE
from tests.dataplane.tsdb.query.tables import EPOCH_MS, arrow, schema

pytestmark = pytest.mark.usefixtures("statistics_in_small_files")

NAMES = ["ts", "walk_3"]
ROWS = 1_000


@pytest.fixture(scope="module")
def ssts() -> list[Sst]:
    chooser = Chooser()
    return [
        write_sst(WIDE, wide(at, "v-1", at * ROWS, ROWS), file_id=f"{at:032x}", origin="car-1", chooser=chooser)
        for at in range(4)
    ]


def wanted(at: int) -> pa.Table:
    return wide(at, "v-1", at * ROWS, ROWS).select(NAMES)


class Asked(MemoryObjectStore):
    """Remembers how many bytes each request asked for."""

    def __init__(self) -> None:
        world = World(LoopClock(), SeededRng(1))
        super().__init__(Process(world, "reader"), MemoryBucket(world, "fleet", faults=AT_ONCE))
        self.lengths: list[int] = []

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data = await super().get(key, start=start, length=length)
        self.lengths.append(len(data))
        return data


async def bucket(ssts: list[Sst]) -> Asked:
    store = Asked()
    for sst in ssts:
        await store.put(sst_key("fleet", WIDE.name, sst.meta.file_id), sst.data)
    return store


def test_every_flipped_bit_of_a_local_file_is_found_or_touches_nothing_that_is_served(tmp_path: Path) -> None:
    rng = random.Random(3)
    table = schema()
    rows = arrow([(f"car-{at % 3}", at % 5, EPOCH_MS + at, at * 7, at / 3, at % 2 == 0) for at in range(60)])
    sst = write_sst(table, rows, file_id="ab" * 16, origin="car-1", chooser=Chooser())
    names = [column.name for column in table.columns]
    whole = dict.fromkeys(range(sst.meta.size), False)
    served: list[int] = []
    data = bytearray(sst.data)
    files = LocalFiles(lambda _, start, length: bytes(data[start : start + length]), footer_bytes_max=0)
    good = files.at_hand(sst.meta, table, names)
    for at in whole:
        data[at] ^= 1 << rng.randrange(8)
        try:
            if not files.at_hand(sst.meta, table, names).equals(good):
                served.append(at)
        except Corrupt:
            whole[at] = True
        data[:] = sst.data
    files.close()
    assert not served
    found = [at for at, yes in whole.items() if yes]
    footer_at = sst.meta.size - sst.meta.footer_bytes
    assert all(whole[at] for at in range(footer_at, sst.meta.size)) and len(found) > 0.8 * sst.meta.size


def test_a_local_file_that_is_cut_or_gone_is_said(tmp_path: Path, ssts: list[Sst]) -> None:
    files = LocalFiles(in_folder(tmp_path))
    meta = ssts[0].meta
    with pytest.raises(NotFound):
        files.at_hand(meta, WIDE, NAMES)
    path = tmp_path / f"{meta.file_id}.parquet"
    path.write_bytes(ssts[0].data)
    assert files.at_hand(meta, WIDE, NAMES).equals(wanted(0))
    path.write_bytes(ssts[0].data[: meta.size // 10])  # its footer is known already
    with pytest.raises(Corrupt):
        files.at_hand(meta, WIDE, ["slow_1"])
    files.close()


def test_what_was_fetched_or_offered_costs_no_request_again(tmp_path: Path, ssts: list[Sst]) -> None:
    async def main() -> None:
        store = await bucket(ssts)
        files = CachedFiles(store, "fleet", tmp_path)
        many = await asyncio.gather(*(files.columns(ssts[0].meta, WIDE, NAMES) for _ in range(8)))
        assert all(rows.equals(wanted(0)) for rows in many)
        assert len(store.lengths) <= 3 and sum(store.lengths) < 0.3 * ssts[0].meta.size
        store.lengths.clear()
        await files.offer(ssts[1].meta, ssts[1].data)
        for at in (0, 1):
            assert (await files.columns(ssts[at].meta, WIDE, NAMES)).equals(wanted(at))
        assert not store.lengths
        files.close()
        again = CachedFiles(store, "fleet", tmp_path)  # a new life: it trusts nothing that the last one left
        assert (await again.columns(ssts[1].meta, WIDE, NAMES)).equals(wanted(1)) and store.lengths
        again.close()

    asyncio.run(main())


def test_a_flipped_bit_in_the_cache_is_not_served_and_the_bucket_is_asked(tmp_path: Path, ssts: list[Sst]) -> None:
    async def main() -> None:
        store = await bucket(ssts)
        files = CachedFiles(store, "fleet", tmp_path, settings=CacheSettings(footer_bytes_max=0))
        meta = ssts[0].meta
        chunk = pq.read_metadata(pa.BufferReader(ssts[0].data)).row_group(0).column(5)
        for at in (chunk.data_page_offset + chunk.total_compressed_size // 2, meta.size - meta.footer_bytes // 2):
            await files.offer(meta, ssts[0].data)
            [cached] = tmp_path.glob(f"{meta.file_id}*")
            damaged = bytearray(ssts[0].data)
            damaged[at] ^= 16
            cached.write_bytes(damaged)
            before = files.counters.dropped
            assert (await files.columns(meta, WIDE, NAMES)).equals(wanted(0))
            assert files.counters.dropped == before + 1 and store.lengths
            store.lengths.clear()
        cached.unlink()
        assert (await files.columns(meta, WIDE, NAMES)).equals(wanted(0))
        await store.put(sst_key("fleet", WIDE.name, meta.file_id), bytes(damaged))
        files.forget(meta)
        for _ in range(2):
            with pytest.raises(Corrupt):
                await files.columns(meta, WIDE, NAMES)
        files.close()

    asyncio.run(main())


def test_of_a_file_that_statistics_rule_out_only_the_footer_is_fetched_and_once(
    tmp_path: Path, ssts: list[Sst]
) -> None:
    async def main() -> None:
        store = await bucket(ssts)
        files = CachedFiles(store, "fleet", tmp_path)
        engine = QueryEngine(files, settings=QuerySettings(threads=1))
        view = {WIDE.name: TableView(WIDE, [replace(sst.meta, sequence=at + 1) for at, sst in enumerate(ssts)])}
        for _ in range(2):
            found = await engine.query(f"SELECT ts FROM {WIDE.name} WHERE walk_3 > 1e9", view, 0)
            assert len(found) == 0
        assert sorted(store.lengths) == sorted(sst.meta.footer_bytes for sst in ssts)
        # A damaged footer in the cache decides nothing.
        files.forget(ssts[0].meta)
        await files.offer(ssts[0].meta, ssts[0].data)
        [cached] = tmp_path.glob(f"{ssts[0].meta.file_id}*")
        damaged = bytearray(ssts[0].data)
        damaged[-ssts[0].meta.footer_bytes // 2] ^= 4
        cached.write_bytes(damaged)
        files._footers.drop(cached.stem)
        store.lengths.clear()
        assert len(await engine.query(f"SELECT ts FROM {WIDE.name} WHERE walk_3 > 1e9", view, 0)) == 0
        assert store.lengths == [ssts[0].meta.footer_bytes] and files.counters.dropped == 1
        engine.close()
        files.close()

    asyncio.run(main())


def test_caches_stay_within_their_bounds(tmp_path: Path, ssts: list[Sst]) -> None:
    async def main() -> None:
        store = await bucket(ssts)
        limit = int(2.5 * ssts[0].meta.size)
        files = CachedFiles(store, "fleet", tmp_path, settings=CacheSettings(limit, footer_bytes_max=600_000))
        everything = [column.name for column in WIDE.columns]
        for at in (0, 1, 2, 3, 0, 3):
            await files.offer(ssts[at].meta, ssts[at].data)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
            assert (await files.columns(ssts[at].meta, WIDE, NAMES)).equals(wanted(at))
            # Of all columns the whole footer is parsed, which is what costs memory.
            assert (await files.columns(ssts[at].meta, WIDE, everything)).select(NAMES).equals(wanted(at))
        assert 200_000 < files._footers.bytes <= 600_000 and 0 < len(files._footers) < 4
        files.close()

    asyncio.run(main())


def test_the_disk_cache_knows_what_it_has(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    cache.put("a", 10, b"x" * 10)
    cache.put("a", 30, b"y" * 10)
    assert cache.get("a", 10, 10) == b"x" * 10 and cache.get("a", 15, 10) is None and cache.bytes == 20
    cache.put("a", 20, b"z" * 10)
    assert cache.get("a", 12, 26) == b"x" * 8 + b"z" * 10 + b"y" * 8 and cache.bytes == 30
    cache.put("b", 0, b"w" * 90)
    assert cache.get("a", 10, 1) is None and cache.bytes == 90
    cache.put("c", 0, b"v" * 101)
    assert cache.get("c", 0, 1) is None and cache.get("b", 0, 90) == b"w" * 90
