"""Promises of an edge's upload queue."""

from __future__ import annotations

import asyncio

from tests.dataplane.tsdb.cloud_import.bucket import Cloud
from tests.dataplane.tsdb.edge.both_sides import Vehicle, importing, in_cloud, opened_cloud
from tests.dataplane.tsdb.edge.flash import Flash
from tests.dataplane.tsdb.edge.test_power_cut import LOGGED, rows


def flushed(vehicle: Vehicle, table: str, *numbers: int, at: int | None = None) -> str:
    """The id of a file with these rows."""
    vehicle.store.write(table, rows(*numbers, at=at))
    meta = vehicle.store.flush(table)
    assert meta is not None
    return meta.file_id


def test_files_reach_the_cloud_and_leave_the_flash() -> None:
    async def main() -> None:
        cloud, flash = Cloud(), Flash()
        manifest = await opened_cloud(cloud)
        car = Vehicle(cloud, flash)
        car.store.create_table(LOGGED)
        for n in range(10):
            flushed(car, "logged", 2 * n, 2 * n + 1)
        await car.ship_all(importing(cloud, manifest, car))
        assert in_cloud(cloud, manifest, "logged") == list(range(20))
        await car.shipper.turn()
        assert car.store.files() == [] and not [name for name in flash.names() if name.endswith(".parquet")]
        counters = car.shipper.counters
        assert (counters.files_sent, counters.files_acked, counters.batches_imported) == (10, 10, 5)
        assert counters.waiting_files == counters.open_batches == counters.retries == 0

    asyncio.run(main())
