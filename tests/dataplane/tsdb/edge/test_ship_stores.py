"""An edge on a real disk ships over the lab's store of each cloud, by that cloud's own SDK: the real importer takes it,
through answers that are lost and writes that are refused, and DuckDB reads in the bucket exactly what was written.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.ingest import Importer, ImportSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import database_owned
from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.files import DiskFiles
from dataplane.tsdb.edge.keys import edge_key
from dataplane.tsdb.edge.ship import Shipper
from dataplane.tsdb.edge.ship_settings import UploadSettings
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.edge.uplink import Tries
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.schema.tables import TableOptions, TableSchema
from providers.base.clock import SystemClock, SystemRng
from providers.base.objects import ObjectStore
from providers.base.registry import open_store
from providers.base.streams import PART_BYTES
from providers.lab.admin import HttpAdmin
from tests.conformance.stores import ADMIN_TOKEN, start_object_server
from tests.dataplane.tsdb.edge.test_power_cut import COLUMNS, rows
from tests.dataplane.tsdb.edge.test_ship_line import noise

T = TypeVar("T")
CLOCK, RNG = SystemClock(), SystemRng()
SMALL = TableSchema("small", COLUMNS, options=TableOptions(append_mode=True))
LARGE = TableSchema("large", COLUMNS, options=TableOptions(append_mode=True, memtable_bytes_max=64 << 20))
QUICK = UploadSettings("fleet", interval_ms=30, batch_files_max=5, tries=Tries(tries_max=8, first_ms=20, max_ms=200))


@asynccontextmanager
async def edge(folder: Path, bucket: ObjectStore) -> AsyncIterator[tuple[EdgeDatabase, Shipper]]:
    """One life of an edge process, with its store on a thread of its own."""
    with ThreadPoolExecutor(1) as thread:

        async def worker(what: Callable[[], T]) -> T:
            return await asyncio.get_running_loop().run_in_executor(thread, what)

        files = DiskFiles(folder)
        database = EdgeDatabase(EdgeStore(files, "car-1", RNG), clock=CLOCK, worker=worker)
        shipper = Shipper(database, bucket, edge_key(files), QUICK, clock=CLOCK, rng=RNG)
        await database.start()
        await shipper.start()
        try:
            yield database, shipper
        finally:
            await shipper.close()
            await database.close()
            files.close()


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    for _ in range(int(seconds * 50)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


@pytest.mark.parametrize("dialect", ["s3", "aliyun", "azure", "gcp"])
def test_over_every_clouds_store_each_row_arrives_once(dialect: str, tmp_path: Path) -> None:
    server = start_object_server(dialect, tmp_path / "lab")
    fault = functools.partial(HttpAdmin(dialect, server.port, ADMIN_TOKEN).call, "POST", "/-/faults")

    async def main() -> None:
        bucket = open_store(server.address("cell-bucket"), clock=CLOCK, rng=RNG)
        await bucket.ensure_bucket()
        manifest = Manifest(bucket, "fleet", Writer("cloud", RNG.token()), clock=CLOCK, rng=RNG)
        await manifest.open()
        await manifest.commit_one(lambda state: database_owned(1, "cloud"))
        trust = {"car-1": edge_key(DiskFiles(tmp_path / "edge")).public_key()}
        importer = Importer(
            manifest, bucket, trust, clock=CLOCK, rng=RNG, settings=ImportSettings(create_tables=True, poll_ms=30)
        )
        importing = asyncio.create_task(importer.run())
        async with edge(tmp_path / "edge", bucket) as (database, shipper):
            for schema in (SMALL, LARGE):
                await database.create_table(schema.name, schema.columns, schema.options)
            await database.write([Rows("large", noise(PART_BYTES // 8))])
            large = await database.flush_table("large")
            assert large is not None and large.size > PART_BYTES, "sent in parts"
            faults = [
                {"id": "throttled", "kind": "error", "status": 503, "rate": 0.2, "seed": 1, "for_ms": 60_000},
                {"id": "lost", "kind": "lost", "verb": "writes", "rate": 0.15, "seed": 2, "for_ms": 60_000},
            ]
            fault({"add": faults})
            for n in range(12):
                await database.write([Rows("small", rows(n))])
                await database.flush("small")
            await until(lambda: shipper.counters.files_sent >= 4)
        fault({"clear": "all"})
        async with edge(tmp_path / "edge", bucket) as (database, shipper):
            await until(lambda: shipper.counters.waiting_files == 0 and shipper.counters.open_batches == 0)
            await until(lambda: not list((tmp_path / "edge").glob("*.parquet")))
            assert shipper.counters.aside_files == 0
        importing.cancel()
        await asyncio.gather(importing, return_exceptions=True)
        await manifest.poll()
        found = {name: await _paths(bucket, manifest, name, tmp_path) for name in ("small", "large")}
        await manifest.close()
        await bucket.close()
        small = duckdb.sql(f"select n from read_parquet({found['small']}) order by n").fetchall()
        assert [n for (n,) in small] == list(range(12))
        count = duckdb.sql(f"select count(*), count(distinct ts) from read_parquet({found['large']})").fetchall()
        assert count == [(PART_BYTES // 8, PART_BYTES // 8)]

    try:
        asyncio.run(main())
    finally:
        server.close()


async def _paths(bucket: ObjectStore, manifest: Manifest, table: str, folder: Path) -> list[str]:
    """The table's files, fetched as anybody would."""
    paths = []
    for meta in manifest.state.tables[table].files.values():
        path = folder / meta.file_id
        path.write_bytes(await bucket.get(sst_key("fleet", table, meta.file_id)))
        paths.append(str(path))
    return paths
