"""Promises of a cloud database's columns with decimals: the same bits in memory, in files, compacted, and after its
owner's death.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import pyarrow as pa

from dataplane.tsdb.engine import Rows
from dataplane.tsdb.query.scan import TableView
from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions
from dataplane.tsdb.sst.reader import read_sst
from tests.dataplane.tsdb.cloud_db.world import DATABASE, Member, Region
from tests.sim.virtualtime import run

COLUMNS = (
    Column(0, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
    Column(0, "v", ColumnType.FLOAT64, decimals=2),
)
KEPT = TableOptions(append_mode=True, flush_interval_ms=3_600_000)
WRITTEN = [7 * 0.01, 0.29 * 100 / 100, 1.005, -0.001, math.nan, math.inf, 1e300, None, 123_456.789]
SHOWN = [0.07, 0.29, 1.0, 0.0, math.nan, math.inf, 1e300, None, 123_456.79]


def bits(values: Sequence[float | None]) -> list[bytes | None]:
    return [None if v is None else struct.pack("<d", v) for v in values]


def seen(region: Region, moment: TableView) -> list[bytes | None]:
    tables = [
        read_sst(region.bucket.objects[sst_key(DATABASE, meta.table, meta.file_id)], moment.schema)
        for meta in moment.files
    ]
    rows = pa.concat_tables([table.select(["ts", "v"]) for table in (*tables, *moment.memory)]).sort_by("ts")
    return bits(rows.column("v").to_pylist())


def rows(first: int, values: Sequence[float | None]) -> Rows:
    times = pa.array(range(first, first + len(values)), pa.timestamp("ms"))
    return Rows("t", pa.table({"ts": times, "v": pa.array(values, pa.float64())}))


def test_what_is_written_is_rounded_once_and_is_the_same_in_memory_in_files_and_recovered() -> None:
    async def main() -> None:
        region = Region(names=("a", "b"))
        await region.begin()
        owner: Member = await region.owner()
        await owner.database.create_table("t", COLUMNS, KEPT)
        await owner.database.write([rows(0, WRITTEN)])
        assert seen(region, owner.database.moment()["t"]) == bits(SHOWN), "in memory"
        await owner.database.flush("t")
        assert len(owner.database.moment()["t"].files) == 1
        assert seen(region, owner.database.moment()["t"]) == bits(SHOWN), "in a file"
        await owner.database.write([rows(100, WRITTEN[:4])])
        region.kill(owner)
        heir = await region.owner()
        moment = heir.database.moment()["t"]
        assert len(moment.files) == 2 and not moment.memory
        assert seen(region, moment) == bits(SHOWN) + bits(SHOWN[:4]), "recovered"

    run(main())
