"""Promises of an edge's columns with decimals: the same bits in memory and in files, after a power cut and in the
cloud.
"""

from __future__ import annotations

import asyncio
import io
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.tsdb.edge.local import open_edge
from dataplane.tsdb.edge.outbox import sst_name
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, MergeMode, TableOptions, TableSchema
from dataplane.tsdb.sst.reader import read_sst
from providers.base.clock import SeededRng
from providers.base.errors import Invalid
from tests.dataplane.tsdb.cloud_import.bucket import Cloud, Edge
from tests.dataplane.tsdb.edge.flash import Flash
from tests.dataplane.tsdb.sst.test_decimals import STRANGE, at_random

COLUMNS = (
    Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
    Column(2, "narrow", ColumnType.FLOAT32, decimals=2),
    Column(3, "wide", ColumnType.FLOAT64, decimals=3),
    Column(4, "free", ColumnType.FLOAT64),
)
FIELDS = [column.name for column in COLUMNS[1:]]


def rows_of(seed: int, first: int, count: int, *, strange: bool) -> pa.Table:
    """What a bus's application writes; `strange`: and what has no decimals."""
    rng = random.Random(seed)
    times = pa.array(range(first, first + count), pa.timestamp("ms"))
    fields = {}
    for name, decimals, kind in (("narrow", 2, pa.float32()), ("wide", 3, pa.float64()), ("free", 3, pa.float64())):
        values = [rng.choice([rng.randint(-5_000, 5_000) * 10.0**-decimals, None]) for _ in range(count)]
        if strange:
            values = [*STRANGE, *at_random(rng, decimals, count)][:count]
        fields[name] = pa.array([None if v is None or abs(v) > 3e38 > math.inf else v for v in values], pa.float64())
        fields[name] = fields[name].cast(kind, safe=False)
    return pa.table({"ts": times, **fields})


def bits(rows: pa.Table) -> list[list[int | None]]:
    """Of every value, in the order of time."""
    rows = rows.sort_by("ts").select(FIELDS).combine_chunks()
    return [column.combine_chunks().view(f"int{column.type.bit_width}").to_pylist() for column in rows.columns]


@pytest.mark.parametrize("strange", [False, True])
def test_a_query_answers_the_same_bits_before_and_after_the_flush(tmp_path: Path, strange: bool) -> None:
    types = {column.name: column.type.value for column in COLUMNS}
    with open_edge(tmp_path) as db:
        db.create_table("t", types, time="ts", decimals={"narrow": 2, "wide": 3})
        for at in range(40):  # more than are joined, and packed
            db.write("t", rows_of(at, at * 50, 50, strange=strange))
        before = db.query("SELECT * FROM t")
        assert before.schema.types == [column.type.arrow for column in COLUMNS], "they are floats for whoever asks"
        db.flush()
        assert bits(db.query("SELECT * FROM t")) == bits(before)
        kinds = {pq.read_schema(path).field("wide").type for path in tmp_path.glob("*.parquet")}
        assert pa.types.is_decimal(next(iter(kinds))) is not strange, kinds
        written = pa.concat_tables([rows_of(at, at * 50, 50, strange=strange) for at in range(40)])
        assert bits(before)[2] == bits(written)[2], "a column without decimals is as it was written"
        assert bits(before)[1] != bits(written)[1]
        # As an application asks for it: by the decimal, not by what its floating point made of it.
        db.write("t", {"ts": [10**6], "narrow": [7 * 0.01], "wide": [7 * 0.001]})
        for _ in range(2):
            found = db.query("SELECT narrow FROM t WHERE wide = 0.007 AND ts >= TIMESTAMP '1970-01-01 00:16:40'")
            assert len(found) == 1
            db.flush()


@pytest.mark.parametrize("mode", list(MergeMode))
def test_rows_that_replace_each_other_do_so_across_memory_and_files_of_both_forms(
    tmp_path: Path, mode: MergeMode
) -> None:
    types = {column.name: column.type.value for column in COLUMNS}
    with open_edge(tmp_path) as db:
        db.create_table("t", types, time="ts", decimals={"narrow": 2, "wide": 3}, options=TableOptions(merge_mode=mode))
        db.write("t", {"ts": [1, 2, 3], "narrow": [0.01, 0.02, 0.03], "wide": [0.1, 0.2, 0.3]})
        db.flush()
        db.write("t", {"ts": [2], "narrow": [None], "wide": [math.nan]})
        db.flush()
        db.write("t", {"ts": [3], "narrow": [0.444], "wide": [None]})
        db.write("t", {"ts": [4, 5], "narrow": [1.0, 1.0]})
        db.flush()
        db.delete("t", {"ts": [4, 5]})
        assert len(db.query("SELECT narrow FROM t")) == 3
        db.flush()
        keeps = mode is MergeMode.LAST_NON_NULL
        answer = db.query("SELECT narrow, wide FROM t ORDER BY ts").to_pydict()
        narrow = [None if v is None else round(v, 5) for v in answer["narrow"]]
        assert narrow == [0.01, 0.02 if keeps else None, 0.44]
        assert (
            answer["wide"][0] == 0.1 and math.isnan(answer["wide"][1]) and answer["wide"][2] == (0.3 if keeps else None)
        )


@pytest.mark.parametrize("strange", [False, True])
def test_the_log_gives_back_after_a_power_cut_what_was_shown_before_it(strange: bool) -> None:
    flash = Flash()
    store = EdgeStore(flash, "car-1", SeededRng(1))
    schema = TableSchema("t", COLUMNS, options=TableOptions(append_mode=True))
    store.create_table(schema)
    for at in range(20):
        store.write("t", rows_of(at, at * 30, 30, strange=strange))
    store.sync()
    shown = bits(store.scan("t"))
    flash.cut(random.Random(1))
    store = EdgeStore(flash, "car-1", SeededRng(2))
    assert bits(store.scan("t")) == shown
    store.flush("t")
    flash.cut(random.Random(2))
    assert bits(EdgeStore(flash, "car-1", SeededRng(3)).scan("t")) == shown


def test_how_many_digits_are_stored_is_remembered_over_a_restart() -> None:
    flash = Flash()
    schema = TableSchema("t", COLUMNS, options=TableOptions(append_mode=True))
    walk = pa.array(np.cumsum(np.random.default_rng(1).integers(-2, 3, 4_000)) * 0.05).cast(pa.float32())
    times = pa.array(range(4_000), pa.timestamp("ms"))
    sizes = []
    for life in range(2):
        store = EdgeStore(flash, "car-1", SeededRng(life))
        if not life:
            store.create_table(schema)
        store.write("t", pa.table({"ts": times, "narrow": walk}).slice(2_000 * life, 2_000))
        meta = store.flush("t")
        assert meta is not None
        sizes.append(meta.size)
        data = flash.read(sst_name(meta.file_id))
        assert pq.read_schema(io.BytesIO(data)).field("narrow").type == pa.decimal128(18, 3), "steps of 0.05 want it"
    assert abs(sizes[0] - sizes[1]) < 100


@pytest.mark.parametrize("strange", [False, True])
def test_the_cloud_takes_an_edge_s_files_and_has_the_same_bits(strange: bool) -> None:
    async def main() -> None:
        cloud = Cloud()
        edge, schema = Edge(cloud), TableSchema("t", COLUMNS)
        flash = Flash()
        store = EdgeStore(flash, edge.name, SeededRng(1))
        store.create_table(schema)
        store.write("t", rows_of(3, 0, 500, strange=strange))
        shown = bits(store.scan("t"))
        meta = store.flush("t")
        assert meta is not None
        data = flash.read(sst_name(meta.file_id))
        manifest = await cloud.owned(schema)
        edge.ship(edge.upload(meta, data), schemas=(schema,))
        [outcome] = await cloud.importer(manifest, edge).turn()
        assert (outcome.refused, outcome.rows) == (None, 500)
        assert bits(read_sst(cloud.bucket.objects[sst_key("fleet", "t", meta.file_id)], schema)) == shown
        other = TableSchema("t", (COLUMNS[0], Column(2, "narrow", ColumnType.FLOAT32, decimals=1), *COLUMNS[2:]))
        edge.ship(edge.upload(*edge.sst(schema=other, written=other, rows=3)), schemas=(other,))
        [outcome] = await cloud.importer(manifest, edge).turn()
        assert "has 1 decimal now, and had 2 decimals: that cannot change" in str(outcome.refused)

    asyncio.run(main())


def test_decimals_of_a_column_that_has_none_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with open_edge(tmp_path) as db:
        with pytest.raises(Invalid, match="cannot have 2 decimals"):
            db.create_table("t", {"ts": "timestamp[ms]", "n": "int32"}, time="ts", decimals={"n": 2})
        with pytest.raises(Invalid, match="no column 'm'"):
            db.create_table("t", {"ts": "timestamp[ms]", "n": "int32"}, time="ts", decimals={"m": 2})
        assert not db.tables()
