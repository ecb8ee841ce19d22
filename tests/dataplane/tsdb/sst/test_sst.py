"""Promises of SSTs: other people's engines read them, no flipped bit is served, and older files stay readable."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datafusion
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.tsdb.cloud.file_checks import why_not_footer, why_not_pages
from dataplane.tsdb.schema.tables import (
    Column,
    ColumnRole,
    ColumnType,
    MergeMode,
    TableOptions,
    TableSchema,
    widened,
    with_columns,
)
from dataplane.tsdb.sst.encoding import DICTIONARY, Chooser, Encoding, choose
from dataplane.tsdb.sst.order import DELETE, OP_TYPE, PUT
from dataplane.tsdb.sst.reader import read_sst
from dataplane.tsdb.sst.writer import STATISTICS_ROWS, TABLE_KEY, Sst, write_sst
from providers.base.errors import Corrupt, Invalid

FILE_ID = "0f" * 16
ALL_TYPES = TableSchema(
    "all",
    (
        Column(1, "host", ColumnType.STRING, ColumnRole.TAG),
        Column(2, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        *(Column(3 + at, f"f_{kind.name.lower()}", kind) for at, kind in enumerate(ColumnType)),
    ),
)


def column_of(kind: ColumnType, count: int, rng: np.random.Generator) -> pa.Array:
    """Values of every kind, a tenth of them null."""
    raw = rng.integers(0, 100, count)
    mask = rng.random(count) < 0.1
    if kind in (ColumnType.STRING, ColumnType.BINARY):
        return pa.array([None if m else f"v{v}" for v, m in zip(raw, mask, strict=True)]).cast(kind.arrow)
    if kind is ColumnType.BOOL:
        return pa.array(raw > 50, mask=mask)
    if kind.is_timestamp:
        return pa.array(raw.astype(np.int64), mask=mask).cast(kind.arrow)
    return pa.array(raw, mask=mask).cast(kind.arrow)


def rows_of_all(count: int = 501) -> pa.Table:
    rng = np.random.default_rng(7)
    return pa.table(
        {
            "host": pa.array([None, "a", "b"] * (count // 3)),
            "ts": pa.array(np.arange(count) // 3, pa.timestamp("ms")),
            **{f"f_{k.name.lower()}": column_of(k, count, rng) for k in ColumnType},
        }
    )


def write(schema: TableSchema, rows: pa.Table) -> Sst:
    return write_sst(schema, rows, file_id=FILE_ID, origin="car-1", chooser=Chooser())


def as_set(rows: pa.Table) -> set[tuple[Any, ...]]:
    """Rows without order. Times as nanoseconds: Python's own have none, and Parquet has no seconds."""
    columns = {
        field.name: rows.column(field.name).cast(pa.timestamp("ns")).cast(pa.int64())
        if pa.types.is_timestamp(field.type)
        else rows.column(field.name)
        for field in rows.schema
    }
    return set(zip(*(columns[name].to_pylist() for name in sorted(columns)), strict=True))


def test_duckdb_and_datafusion_read_every_type_as_it_was_written(tmp_path: Path) -> None:
    rows = rows_of_all()
    path = tmp_path / "x.parquet"
    path.write_bytes(write(ALL_TYPES, rows).data)
    wanted = as_set(rows)
    names = ", ".join(f'"{name}"' for name in rows.column_names)
    relation = duckdb.sql(f"SELECT {names} FROM '{path}'")
    assert relation is not None
    by_duckdb = relation.to_arrow_table()
    assert as_set(by_duckdb) == wanted and len(by_duckdb) == len(rows)
    context = datafusion.SessionContext()
    context.register_parquet("x", str(path))
    by_datafusion = pa.Table.from_batches(context.sql(f"SELECT {names} FROM x").collect())
    assert as_set(by_datafusion) == wanted and len(by_datafusion) == len(rows)
    ordered = duckdb.connect().execute(f"SELECT host, ts FROM '{path}'").fetchall()
    assert ordered == sorted(ordered, key=lambda row: (row[0] is not None, row[0] or "", row[1]))


@pytest.mark.parametrize("unit", [ColumnType.TIMESTAMP_S, ColumnType.TIMESTAMP_US, ColumnType.TIMESTAMP_NS])
def test_what_is_said_of_a_file_is_what_an_importer_finds_in_it(unit: ColumnType) -> None:
    schema = TableSchema(
        "t",
        (Column(1, "ts", unit, ColumnRole.TIME, nullable=False), Column(5, "v", ColumnType.FLOAT64)),
    )
    rows = pa.table({"v": [1.5, None, 2.5], "ts": pa.array([30, 10, 20], unit.arrow)})
    sst = write(schema, rows)
    assert (sst.meta.rows, sst.meta.time_min, sst.meta.time_max, sst.meta.size) == (3, 10, 30, len(sst.data))
    assert why_not_footer(sst.data[-sst.meta.footer_bytes :], sst.meta, schema) is None
    footer = pq.read_metadata(io.BytesIO(sst.data))
    note = {"table": "t", "version": 1, "fingerprint": schema.fingerprint, "keys": ["ts"]}
    assert json.loads(footer.metadata[TABLE_KEY]) == note
    found = read_sst(sst.data, schema)
    assert found.column("ts").type == unit.arrow and found.column("ts").cast(pa.int64()).to_pylist() == [10, 20, 30]
    assert found.column("v").to_pylist() == [None, 2.5, 1.5]


def test_small_files_have_statistics_of_keys_only() -> None:
    schema = TableSchema(
        "t",
        (
            Column(1, "host", ColumnType.STRING, ColumnRole.TAG),
            Column(2, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
            Column(3, "v", ColumnType.FLOAT64),
        ),
    )
    for count, wanted in ((STATISTICS_ROWS - 1, {"host", "ts"}), (STATISTICS_ROWS, {"host", "ts", "v"})):
        values = np.arange(count)
        rows = pa.table({"host": ["a"] * count, "ts": pa.array(values, pa.timestamp("ms")), "v": values / 4})
        group = pq.read_metadata(io.BytesIO(write(schema, rows).data)).row_group(0)
        columns = [group.column(at) for at in range(group.num_columns)]
        assert {c.path_in_schema for c in columns if c.is_stats_set} == wanted


def test_series_are_counted_and_bounded_for_pruning() -> None:
    meta = write(ALL_TYPES, rows_of_all().filter(pa.compute.is_valid(rows_of_all().column("host")))).meta
    assert (meta.series, meta.series_min, meta.series_max) == (2, "a", "b")


def test_no_flipped_bit_in_any_byte_is_served() -> None:
    """In the pages by their checksums; in the footer, which no page checksum covers, by the file's own."""
    sst = write(ALL_TYPES, rows_of_all(60))
    clean = read_sst(sst.data, ALL_TYPES)
    pages_end = len(sst.data) - sst.meta.footer_bytes
    rng = random.Random(3)
    unseen = []
    for at in range(4, pages_end):
        flipped = bytearray(sst.data)
        flipped[at] ^= 1 << rng.randrange(8)
        try:
            if read_sst(bytes(flipped), ALL_TYPES) != clean:
                unseen.append(at)
        except Corrupt:
            pass
    assert unseen == []
    assert why_not_pages(io.BytesIO(sst.data)) is None


def test_of_one_series_and_time_the_row_written_last_stays() -> None:
    rng = np.random.default_rng(11)
    count = 3_000
    hosts = rng.choice(["a", "b", None], count)  # type: ignore[arg-type]
    times, values = rng.integers(0, 400, count), rng.random(count)
    schema = TableSchema("t", (*ALL_TYPES.columns[:2], Column(3, "v", ColumnType.FLOAT64)))
    rows = pa.table({"host": pa.array(hosts, pa.string()), "ts": pa.array(times, pa.timestamp("ms")), "v": values})
    model = {(h, t): v for h, t, v in zip(hosts, times, values, strict=True)}
    found = read_sst(write(schema, rows).data, schema)
    got = zip(found["host"].to_pylist(), found["ts"].cast(pa.int64()).to_pylist(), found["v"].to_pylist(), strict=True)
    assert {(h, t): v for h, t, v in got} == model and len(found) == len(model)
    appends = replace(schema, options=TableOptions(append_mode=True))
    assert len(read_sst(write(appends, rows).data, appends)) == count


def test_fields_are_merged_one_by_one_and_a_delete_forgets_them() -> None:
    """Judged by a dictionary that takes the writes one after the other."""
    rng = np.random.default_rng(5)
    fields = ("a", "b", "c")
    schema = TableSchema(
        "t",
        (
            Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
            *(Column(2 + at, name, ColumnType.INT64) for at, name in enumerate(fields)),
        ),
        options=TableOptions(merge_mode=MergeMode.LAST_NON_NULL),
    )
    writes: list[dict[str, int | None]] = []
    model: dict[int, dict[str, int | None]] = {}
    deleted: set[int] = set()
    for _ in range(2_000):
        at, op = int(rng.integers(0, 300)), DELETE if rng.random() < 0.15 else PUT
        row = {name: int(rng.integers(0, 99)) if op == PUT and rng.random() < 0.5 else None for name in fields}
        writes.append({"ts": at, **row, OP_TYPE: op})
        if op == DELETE:
            model.pop(at, None)
            deleted.add(at)
        else:
            before = model.get(at, dict.fromkeys(fields))
            model[at] = {name: row[name] if row[name] is not None else before[name] for name in fields}
    table = pa.Table.from_pylist(
        writes,
        pa.schema([("ts", pa.timestamp("ms")), *((name, pa.int64()) for name in fields), (OP_TYPE, pa.uint8())]),
    )
    sst = write(schema, table)
    found = read_sst(sst.data, schema)
    found = found.set_column(0, "ts", found["ts"].cast(pa.int64())).to_pylist()
    puts = {row["ts"]: {name: row[name] for name in fields} for row in found if row[OP_TYPE] == PUT}
    deletes = [row["ts"] for row in found if row[OP_TYPE] == DELETE]
    assert puts == model and sst.meta.deletes
    assert sorted(deletes) == sorted(deleted), "a delete still hides what older files have"
    for before, after in pairwise(found):
        assert before["ts"] < after["ts"] or (before[OP_TYPE], after[OP_TYPE]) == (DELETE, PUT)


def test_a_file_written_under_an_older_schema_is_read_under_the_newer() -> None:
    older = TableSchema(
        "t",
        (
            Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
            Column(2, "n", ColumnType.INT32),
        ),
    )
    rows = pa.table({"ts": pa.array([1, 2], pa.timestamp("ms")), "n": pa.array([7, None], pa.int32())})
    data = write(older, rows).data
    newer = widened(with_columns(older, (Column(0, "extra", ColumnType.STRING),)), "n", ColumnType.FLOAT64)
    found = read_sst(data, newer)
    assert found.column("n").to_pylist() == [7.0, None] and found.column("n").type == pa.float64()
    assert found.column("extra").to_pylist() == [None, None] and found.column("extra").type == pa.string()
    assert read_sst(data, newer, columns=["n"]).column_names == ["n"]


def test_what_is_no_row_of_the_table_is_refused_in_a_sentence() -> None:
    good = {"host": ["a"], "ts": pa.array([1], pa.timestamp("ms"))}
    for bad, why in (
        ({**good, "nope": [1]}, "no column 'nope'"),
        ({**good, "f_int8": [1]}, "is int8, not int64"),
        ({"host": ["a"]}, "'ts' of table 'all' is null"),
        ({**good, "ts": pa.array([None], pa.timestamp("ms"))}, "'ts' of table 'all' is null"),
        ({"host": pa.array([], pa.string()), "ts": pa.array([], pa.timestamp("ms"))}, "needs rows"),
    ):
        with pytest.raises(Invalid, match=why):
            write(ALL_TYPES, pa.table(bad))
    with pytest.raises(Corrupt):
        read_sst(b"PAR1 and nothing else", ALL_TYPES)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (np.arange(10_000, dtype=np.int64) * 10, "DELTA_BINARY_PACKED"),
        (np.random.default_rng(1).integers(0, 200, 10_000) / 3, DICTIONARY),
        (np.random.default_rng(1).normal(size=10_000), "BYTE_STREAM_SPLIT"),
    ],
    ids=["counter", "few floats", "noise"],
)
def test_the_encoding_follows_the_data(values: np.ndarray, name: str) -> None:
    """The one chosen is no larger than what the default of Parquet's writer makes of the same column."""
    column = pa.chunked_array([values])
    chosen = choose(column)
    assert chosen.name == name
    sizes = []
    for options in ({"compression": "zstd"}, None):
        sink = pa.BufferOutputStream()
        if options is not None:
            pq.write_table(pa.table({"v": column}), sink, **options)
        else:
            pq.write_table(
                pa.table({"v": column}),
                sink,
                use_dictionary=["v"] if name == DICTIONARY else [],
                column_encoding=None if name == DICTIONARY else {"v": name},
                compression="none" if chosen.level is None else "zstd",
                compression_level=chosen.level,
            )
        sizes.append(pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0).column(0).total_compressed_size)
    assert sizes[1] <= sizes[0]


def test_what_was_measured_is_remembered_and_measured_anew_in_time() -> None:
    chooser = Chooser()
    noise = pa.table({"v": np.random.default_rng(1).normal(size=4_000)})
    steady = pa.table({"v": np.ones(4_000)})
    first = chooser.encodings("t", steady)
    assert chooser.encodings("t", noise) == first
    later = [chooser.encodings("t", noise)["v"] for _ in range(300)]
    assert later[-1] != first["v"] and isinstance(later[-1], Encoding)
