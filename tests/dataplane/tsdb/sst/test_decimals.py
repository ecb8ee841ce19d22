"""Promises of columns with decimals: each value is the nearest to a decimal, files give back every bit, and other
people's engines see the decimals.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import datafusion
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.contract.codec import from_json, to_json
from dataplane.tsdb.cloud.file_checks import why_not_footer
from dataplane.tsdb.schema.tables import (
    DECIMALS_MAX,
    Column,
    ColumnRole,
    ColumnType,
    TableOptions,
    TableSchema,
    grown,
    why_not_older,
    widened,
)
from dataplane.tsdb.sst import writer
from dataplane.tsdb.sst.decimals import rounded, taken_in
from dataplane.tsdb.sst.encoding import Chooser, Encoding
from dataplane.tsdb.sst.reader import read_sst
from dataplane.tsdb.sst.writer import Sst, write_sst
from providers.base.errors import Corrupt, Invalid

STRANGE = [
    0.0,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    5e-324,
    -5e-324,
    1.7e308,
    -1e15,
    1e15 - 1,
    2.0**53,
    1e-7,
    0.5,
    -0.5,
]
TIME = Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False)


def table(
    decimals: int | None, kind: ColumnType = ColumnType.FLOAT64, options: TableOptions | None = None
) -> TableSchema:
    columns = (TIME, Column(2, "v", kind, decimals=decimals))
    return TableSchema("t", columns, options=options or TableOptions(append_mode=True))


def rows_of(values: Sequence[float | None], kind: ColumnType = ColumnType.FLOAT64) -> pa.Table:
    with np.errstate(over="ignore"):
        numbers = np.array([math.nan if v is None else v for v in values]).astype(kind.arrow.to_pandas_dtype())
    mask = np.array([v is None for v in values])
    return pa.table(
        {"ts": pa.array(range(len(values)), pa.timestamp("ms")), "v": pa.array(numbers, mask=mask, from_pandas=False)}
    )


def write(schema: TableSchema, rows: pa.Table, chooser: Chooser | None = None, number: int = 1) -> Sst:
    return write_sst(schema, rows, file_id=f"{number:032x}", origin="car-1", chooser=chooser or Chooser())


def at_random(rng: random.Random, decimals: int, count: int) -> list[float | None]:
    """What a bus's application computes, and what no bus carries."""
    found: list[float | None] = []
    for _ in range(count):
        whole = rng.randint(-(10 ** rng.randint(1, 16)), 10 ** rng.randint(1, 16))
        found.append(
            rng.choice(
                [
                    whole * 10.0**-decimals,
                    whole / 10**decimals,
                    rng.uniform(-1, 1) * 10.0 ** rng.randint(-12, 20),
                    float(whole),
                    None,
                ]
            )
        )
    return found


@pytest.mark.parametrize("kind", [ColumnType.FLOAT32, ColumnType.FLOAT64])
@pytest.mark.parametrize("decimals", range(DECIMALS_MAX + 1))
def test_a_value_becomes_the_nearest_to_its_decimals(decimals: int, kind: ColumnType) -> None:
    values = [*STRANGE, *at_random(random.Random(decimals), decimals, 500)]
    before = rows_of(values, kind).column("v")
    after = rounded(before, decimals)
    float_of = np.float32 if kind is ColumnType.FLOAT32 else np.float64
    for old, new in zip(before.to_pylist(), after.to_pylist(), strict=True):
        if old is None:
            assert new is None
        elif not math.isfinite(old) or abs(Fraction(old) * 10**decimals) >= 10**15:
            assert np.array(old).tobytes() == np.array(new).tobytes(), "what has no such decimals stays"
        else:
            exact = Fraction(old) * 10**decimals
            if abs(exact % 1 - Fraction(1, 2)) < Fraction(1, 4):
                continue  # about half way, the product's own rounding says which it is
            k = round(exact)
            assert new == float_of(float(Fraction(k, 10**decimals))), (old, k)
            assert math.copysign(1, new) == (-1 if k < 0 else 1), "0 has no sign"
    assert (
        rounded(after, decimals)
        .combine_chunks()
        .view(f"int{kind.arrow.bit_width}")
        .equals(after.combine_chunks().view(f"int{kind.arrow.bit_width}"))
    ), "rounding twice is rounding once"


@pytest.mark.parametrize("kind", [ColumnType.FLOAT32, ColumnType.FLOAT64])
@pytest.mark.parametrize("seed", range(20))
def test_a_file_gives_back_every_bit_whatever_it_was_given(seed: int, kind: ColumnType) -> None:
    rng = random.Random(seed)
    decimals = rng.randint(0, DECIMALS_MAX)
    schema, values = table(decimals, kind), at_random(rng, decimals, 300)
    if seed % 3 == 0:
        values += STRANGE
    elif seed % 3 == 1:  # what fits
        values = [None if v is None else v % 1000 for v in values]
    for rows in (rows_of(values, kind), taken_in(schema, rows_of(values, kind))):
        again = read_sst(write(schema, rows).data, schema)
        whole = f"int{kind.arrow.bit_width}"
        assert again.column("v").combine_chunks().view(whole).equals(rows.column("v").combine_chunks().view(whole))


def test_other_engines_read_the_decimals_of_one_column_in_all_of_its_files(tmp_path: Path) -> None:
    schema, chooser, truth = table(2), Chooser(), []
    rng = np.random.default_rng(5)
    walk = 100 + np.cumsum(rng.integers(-2, 3, 2_000)) * 5  # a bus's factor of 0.05: a digit more makes deltas bytes
    noise = rng.integers(-(10**6), 10**6, 2_000)
    great = np.array([10**15 - 1, -(10**15) + 1, 7, 0])
    for number, whole in enumerate((walk, noise, great), 1):
        rows = taken_in(schema, rows_of([int(k) / 100 for k in whole]))
        sst = write(schema, rows, chooser if number < 3 else Chooser(), number)
        (tmp_path / f"{number}.parquet").write_bytes(sst.data)
        assert why_not_footer(sst.data[-sst.meta.footer_bytes :], sst.meta, schema) is None
        truth += [Decimal(int(k)) / 100 for k in whole]
        column = pq.ParquetFile(io.BytesIO(sst.data)).schema.column(1)
        assert column.physical_type == "INT64"
    scales = {pq.read_schema(path).field("v").type.scale for path in tmp_path.glob("*.parquet")}
    assert scales == {2, 3}, "one of them has a digit more"
    found = duckdb.sql(
        f"SELECT v FROM read_parquet('{tmp_path}/*.parquet', filename=true) ORDER BY filename, ts"
    ).fetchall()
    assert [v for (v,) in found] == truth
    context = datafusion.SessionContext()
    context.register_parquet("t", str(tmp_path / "2.parquet"))
    assert context.sql("SELECT v FROM t ORDER BY ts").to_pydict()["v"] == truth[2_000:4_000]


def test_a_file_with_one_value_that_is_no_decimal_is_read_beside_the_others_as_floats(tmp_path: Path) -> None:
    schema, chooser = table(1), Chooser()
    for number, values in enumerate(([0.1, 0.2, None], [0.3, math.nan, None], [0.4, 1e300, 0.5]), 1):
        rows = taken_in(schema, rows_of(values))
        sst = write(schema, rows, chooser, number)
        (tmp_path / f"{number}.parquet").write_bytes(sst.data)
        assert pa.types.is_decimal(pq.read_schema(io.BytesIO(sst.data)).field("v").type) is (number == 1)
        assert why_not_footer(sst.data[-sst.meta.footer_bytes :], sst.meta, schema) is None
    sql = f"SELECT sum(v) FROM read_parquet('{tmp_path}/*.parquet', union_by_name=true) WHERE v < 1"
    [(total,)] = duckdb.sql(sql).fetchall()
    assert total == pytest.approx(1.5)


def test_what_suits_the_floats_of_one_file_is_not_taken_for_the_decimals_of_the_next() -> None:
    schema, chooser = table(2), Chooser()
    walk = [int(k) / 100 for k in np.cumsum(np.random.default_rng(1).integers(-2, 3, 2_000))]
    first = write(schema, rows_of(walk), chooser)
    write(schema, rows_of([*walk, math.nan]), chooser)
    assert len(write(schema, rows_of(walk), chooser).data) == len(first.data)


def test_digits_more_are_stored_only_where_they_are_exact() -> None:
    schema, chooser = (
        table(2),
        Chooser({"t": {"v": Encoding("DELTA_BINARY_PACKED", None, 2), "ts": Encoding("PLAIN", None)}}),
    )
    scales = []
    for whole in (10**13, 10**15 - 1):
        rows = rows_of([whole / 100, 0.07, None])
        sst = write(schema, rows, chooser)
        scales.append(pq.read_schema(io.BytesIO(sst.data)).field("v").type.scale)
        assert read_sst(sst.data, schema).column("v").to_pylist() == rows.column("v").to_pylist()
    assert scales == [4, 2]


def test_a_bus_s_walk_takes_half_more_than_its_information_where_floats_take_more_than_twice_it() -> None:
    steps = np.random.default_rng(3).integers(-2, 3, 2_000)
    walk = (900 + np.cumsum(steps)).astype(np.float32) * np.float32(0.05)
    rows = pa.table({"ts": pa.array(range(2_000), pa.timestamp("ms")), "v": pa.array(walk)})
    schema = table(2, ColumnType.FLOAT32)
    size = {}
    for name, each in (("decimals", schema), ("floats", table(None, ColumnType.FLOAT32))):
        data = write(each, taken_in(each, rows)).data
        size[name] = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(1).total_compressed_size
    information = 2_000 * math.log2(5) / 8
    assert size["decimals"] < 1.5 * information < size["floats"] / 1.8


def test_files_of_tables_without_decimals_are_known_by_the_fingerprints_that_they_had() -> None:
    column = Column(2, "v", ColumnType.FLOAT64)
    plain = b'{"id":2,"name":"v","nullable":true,"role":"field","type":"float64"}'
    assert to_json(column) == plain and from_json(Column, plain) == column
    time = b'{"id":1,"name":"ts","nullable":false,"role":"time","type":"timestamp[ms]"}'
    assert table(None).fingerprint == hashlib.sha256(time + b"\n" + plain).hexdigest()[:16]
    assert len({table(d).fingerprint for d in (None, 0, 1)}) == 3
    assert from_json(TableSchema, to_json(table(3))) == table(3)


def test_decimals_are_of_floating_point_fields_and_stay_what_they_are() -> None:
    for column in (
        replace(TIME, decimals=0),
        Column(2, "v", ColumnType.INT32, decimals=1),
        Column(2, "v", ColumnType.FLOAT64, decimals=DECIMALS_MAX + 1),
        Column(2, "v", ColumnType.FLOAT64, decimals=-1),
    ):
        with pytest.raises(Invalid, match="cannot have"):
            TableSchema("t", (column,) if column.role is ColumnRole.TIME else (TIME, column))
    for one, other in ((None, 1), (1, None), (1, 2)):
        assert "cannot change" in str(why_not_older(table(one), table(other)))
    with pytest.raises(Invalid, match="has decimals"):
        widened(table(2, ColumnType.FLOAT32), "v", ColumnType.FLOAT64)
    assert grown(table(2), [Column(0, "v", ColumnType.FLOAT64)]) == table(2), "who says none takes them as they are"
    with pytest.raises(Invalid, match="has 2 decimals"):
        grown(table(2), [Column(0, "v", ColumnType.FLOAT64, decimals=3)])


@pytest.mark.parametrize(
    "kind", [pa.decimal128(18, 1), pa.decimal128(18, 5), pa.decimal128(15, 2), pa.decimal128(38, 2), pa.float32()]
)
def test_an_import_takes_no_other_decimals_than_the_column_s(kind: pa.DataType) -> None:
    schema = table(2)
    sst = write(schema, rows_of([0.25]))
    rows = pq.read_table(io.BytesIO(sst.data))
    field = rows.schema.field("v")
    rows = rows.set_column(1, field.with_type(kind), pa.array([Decimal("0")], pa.decimal128(38, 2)).cast(kind))
    sink = io.BytesIO()
    pq.write_table(rows, sink, store_schema=False, store_decimal_as_integer=True)
    data = sink.getvalue()
    meta = replace(sst.meta, size=len(data), footer_bytes=int.from_bytes(data[-8:-4], "little") + 8, footer_crc32c=None)
    assert (
        why_not_footer(data[-meta.footer_bytes :], meta, schema)
        == f"its column 'v' is {field.with_type(kind).type}, not float64"
    )
    assert "is decimal128" in str(why_not_footer(sst.data[-sst.meta.footer_bytes :], sst.meta, table(None)))


def test_decimals_of_more_digits_than_we_write_are_no_file_of_ours() -> None:
    sst = write(table(2), rows_of([0.25]))
    rows = pq.read_table(io.BytesIO(sst.data))
    field = rows.schema.field("v").with_type(pa.decimal128(38, 2))
    sink = io.BytesIO()
    pq.write_table(rows.set_column(1, field, rows.column("v").cast(field.type)), sink, write_page_checksum=True)
    with pytest.raises(Corrupt, match="more digits"):
        read_sst(sink.getvalue(), table(2))


def test_files_for_greptimedb_keep_floats() -> None:
    schema = table(2, options=TableOptions(append_mode=True, greptime_columns=True))
    sst = write(schema, taken_in(schema, rows_of([7 * 0.01, -0.0])))
    assert pq.read_schema(io.BytesIO(sst.data)).field("v").type == pa.float64()
    assert read_sst(sst.data, schema).column("v").to_pylist() == [0.07, 0.0]


def test_statistics_are_there_for_decimals_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "STATISTICS_ROWS", 0)
    sst = write(table(2), rows_of([0.25, None, 7.5]))
    found = pq.read_metadata(io.BytesIO(sst.data)).row_group(0).column(1).statistics
    assert (found.min, found.max, found.null_count) == (Decimal("0.25"), Decimal("7.50"), 1)
