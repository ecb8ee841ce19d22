"""Promises of an edge's upload to its line, in virtual time: the cap holds, a bucket that refuses is asked ever more
seldom, and a large file is sent in parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dataplane.tsdb.edge.files import DiskFiles
from dataplane.tsdb.edge.keys import edge_key, public_hex
from dataplane.tsdb.edge.ship_settings import UploadSettings
from dataplane.tsdb.edge.uplink import REQUEST_BYTES
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import TableOptions
from providers.base.clock import LoopClock
from providers.base.errors import Unavailable
from providers.memory.faults import Faults, World
from providers.memory.objects import PART_BYTES, MemoryBucket
from tests.dataplane.tsdb.cloud_import.bucket import AT_ONCE, DATABASE, Cloud
from tests.dataplane.tsdb.edge.both_sides import Vehicle, importing, in_cloud, opened_cloud
from tests.dataplane.tsdb.edge.flash import Flash
from tests.dataplane.tsdb.edge.test_power_cut import LOGGED, rows
from tests.sim.virtualtime import run

ROOMY = replace(LOGGED, options=TableOptions(append_mode=True, memtable_bytes_max=64 << 20))


class _Inline(ThreadPoolExecutor):
    """Whoever asks for a thread does it himself: virtual time knows of no other."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


async def until(condition: Callable[[], bool], seconds: float = 600) -> None:
    for _ in range(int(seconds * 10)):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def living_cloud() -> Cloud:
    """With the loop's own clock: time passes while requests wait."""
    asyncio.get_running_loop().set_default_executor(_Inline(1))
    cloud = Cloud()
    cloud.clock = LoopClock()  # type: ignore[assignment]
    cloud.world = World(cloud.clock, cloud.rng)
    cloud.bucket = MemoryBucket(cloud.world, "bucket", faults=AT_ONCE)
    return cloud


def noise(count: int, seed: int = 1) -> pa.Table:
    """Rows that nothing makes smaller, eight bytes each."""
    numbers = np.random.default_rng(seed).integers(-(1 << 62), 1 << 62, count)
    return pa.table({"ts": pa.array(np.arange(count), pa.timestamp("ms")), "n": pa.array(numbers, pa.int64())})


def vehicle(cloud: Cloud, **settings: Any) -> Vehicle:
    car = Vehicle(cloud, Flash(), UploadSettings(DATABASE, **settings), clock=LoopClock())
    car.store.create_table(ROOMY)
    return car


@pytest.mark.parametrize("bytes_per_s", [20_000, 200_000])
def test_the_cap_is_kept_within_a_tenth_in_every_window_and_used(bytes_per_s: int) -> None:
    async def main() -> None:
        cloud = living_cloud()
        await opened_cloud(cloud)
        car = vehicle(cloud, bytes_per_s=bytes_per_s, files_at_once=3)
        for seed in range(30):
            car.store.write("logged", noise(1_500, seed))
            car.store.flush("logged")
        arrived: list[tuple[float, int]] = []
        put = cloud.bucket.put

        def heard(key: str, data: bytes, if_absent: bool) -> None:
            arrived.append((asyncio.get_running_loop().time(), len(data) + REQUEST_BYTES))
            put(key, data, if_absent)

        cloud.bucket.put = heard  # type: ignore[method-assign]
        await car.shipper.start()
        await until(lambda: car.shipper.counters.files_sent == 30)
        took = asyncio.get_running_loop().time()
        assert car.shipper.counters.bytes_sent == pytest.approx(bytes_per_s * took, rel=0.1), "and used"
        await car.shipper.close()
        largest = max(size for _, size in arrived)
        for at, (begin, _) in enumerate(arrived):
            sent = 0
            for end, size in arrived[at:]:
                sent += size
                allowed = bytes_per_s * (end - begin) * 1.1 + largest
                assert sent <= allowed, f"{sent} bytes in {end - begin:.2f} s"

    run(main())


def test_a_bucket_that_refuses_for_an_hour_is_asked_ever_more_seldom_and_then_gets_all() -> None:
    async def main() -> None:
        cloud = living_cloud()
        manifest = await opened_cloud(cloud)
        car = vehicle(cloud)
        for n in range(8):
            car.store.write("logged", rows(n))
            car.store.flush("logged")
        cloud.bucket.faults = Faults((0, 0), throttled=1.0)
        await car.shipper.start()
        await asyncio.sleep(3_600)
        counters = car.shipper.counters
        assert counters.requests < 3_600 and counters.failed_turns < 100 and counters.waiting_files == 8
        assert counters.oldest_unacked_ms == pytest.approx(3_600_000, rel=0.01)
        cloud.bucket.faults = Faults((0, 0), throttled=0.3)
        turn = importing(cloud, manifest, car)
        for _ in range(600):
            await asyncio.sleep(1)
            with suppress(Unavailable):  # throttled as well: it comes again
                await turn()
        assert car.shipper.counters.files_acked == 8
        await car.shipper.close()
        assert in_cloud(cloud, manifest, "logged") == list(range(8))

    run(main())


def test_a_large_file_goes_in_parts_under_the_cap_and_writes_go_on_meanwhile() -> None:
    async def main() -> None:
        cloud = living_cloud()
        manifest = await opened_cloud(cloud)
        car = vehicle(cloud, bytes_per_s=100_000)
        car.store.write("logged", noise(120_000))
        meta = car.store.flush("logged")
        assert meta is not None and meta.size > 900_000
        await car.database.start()
        await car.shipper.start()
        waits = []
        for n in range(80):
            before = asyncio.get_running_loop().time()
            await car.database.write([Rows("logged", rows(n))])
            waits.append(asyncio.get_running_loop().time() - before)
            await asyncio.sleep(0.1)
        assert max(waits) < 0.01 and car.shipper.counters.files_sent == 0, "the file is on its way for ten seconds"
        assert list(cloud.bucket.uploads.values()), "parts of it are there, and nobody sees them"
        await until(lambda: car.shipper.counters.open_batches == 1)
        await importing(cloud, manifest, car)()
        await asyncio.sleep(20)
        assert car.shipper.counters.files_acked == 1
        assert len(in_cloud(cloud, manifest, "logged")) == 120_000
        await car.shipper.close()
        await car.database.close()

    run(main())


def test_a_shipper_that_is_closed_in_the_middle_leaves_nothing_visible_and_the_next_sends_the_rest() -> None:
    async def main() -> None:
        cloud = living_cloud()
        manifest = await opened_cloud(cloud)
        car = vehicle(cloud, bytes_per_s=100_000)
        car.store.write("logged", noise(120_000))
        meta = car.store.flush("logged")
        assert meta is not None
        await car.shipper.start()
        await asyncio.sleep(8)
        await car.shipper.close()
        assert not [key for key in cloud.bucket.objects if "/sst/" in key]
        [upload] = cloud.bucket.uploads.values()
        there = sum(map(len, upload.parts.values()))
        assert there >= 2 * PART_BYTES
        again = Vehicle(cloud, car.flash, UploadSettings(DATABASE), clock=LoopClock(), seed=2)
        await again.shipper.start()
        await until(lambda: again.shipper.counters.open_batches == 1)
        assert meta.size - there < again.shipper.counters.bytes_sent < meta.size - there + 20 * REQUEST_BYTES
        assert not cloud.bucket.uploads
        await importing(cloud, manifest, again)()
        await asyncio.sleep(12)
        await again.shipper.close()
        assert len(in_cloud(cloud, manifest, "logged")) == 120_000 and again.store.files() == []

    run(main())


def test_the_key_is_made_once_for_its_owner_alone_and_is_durable_before_its_use(tmp_path: Path) -> None:
    files = DiskFiles(tmp_path / "edge")
    key = edge_key(files)
    assert ((tmp_path / "edge" / "edge.key").stat().st_mode & 0o777) == 0o600
    assert public_hex(edge_key(DiskFiles(tmp_path / "edge")).public_key()) == public_hex(key.public_key())
    flash = Flash()
    made = edge_key(flash)
    assert flash.durable_names["edge.key"].durable == flash.read("edge.key")
    assert public_hex(edge_key(flash).public_key()) == public_hex(made.public_key())
