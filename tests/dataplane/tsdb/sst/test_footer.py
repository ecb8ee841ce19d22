"""Promises of footers that are cut down: pyarrow reads of them what it reads of the whole; what is unusual is not
guessed at; no bytes make the walk fail or run away.
"""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.tsdb.bench.signals import WIDE, wide
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, TableSchema
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.footer import layout_of, narrowed
from dataplane.tsdb.sst.order import DELETE, OP_TYPE
from dataplane.tsdb.sst.writer import write_sst

pytestmark = pytest.mark.usefixtures("statistics_in_small_files")

PATH_OF_V = b"\x19\x18\x01v\x15"
"""How column `v` is named in its column chunk."""
VALUES: dict[ColumnType, Any] = {
    ColumnType.STRING: st.text(max_size=20),
    ColumnType.BINARY: st.binary(max_size=200),
    ColumnType.BOOL: st.booleans(),
    ColumnType.INT8: st.integers(-128, 127),
    ColumnType.UINT64: st.integers(0, 2**64 - 1),
    ColumnType.INT64: st.integers(-(2**63), 2**63 - 1),
    ColumnType.FLOAT32: st.floats(width=32),
    ColumnType.FLOAT64: st.floats(),
    ColumnType.TIMESTAMP_US: st.integers(-(10**15), 10**15),
}


def footer_of(data: bytes) -> bytes:
    return data[-8 - int.from_bytes(data[-8:-4], "little") :]


def parsed(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(footer))


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, pa.Schema]:
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=20))
    fields = tuple(Column(at + 2, f"c{at}" * draw(st.integers(1, 40)), kind) for at, kind in enumerate(kinds))
    table = TableSchema("t", (Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False), *fields))
    count = draw(st.integers(1, 5))
    columns = {"ts": pa.array(range(count), pa.int64()).cast(pa.timestamp("ms"))}
    for column in fields:
        values = draw(st.lists(st.one_of(st.none(), VALUES[column.type]), min_size=count, max_size=count))
        array = pa.array(values, pa.int64()).cast(column.type.arrow) if column.type.is_timestamp else None
        columns[column.name] = array if array is not None else pa.array(values, column.type.arrow)
    rows = pa.table(columns)
    if draw(st.booleans()):
        rows = rows.append_column(OP_TYPE, pa.array([DELETE] * count, pa.uint8()))
    return write_sst(table, rows, file_id="ab" * 16, origin="car-1", chooser=Chooser()).data, rows.schema


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(files(), st.data())
def test_a_part_of_a_footer_says_of_its_columns_what_the_whole_says(file: tuple[bytes, pa.Schema], data: Any) -> None:
    footer = footer_of(file[0])
    layout = layout_of(footer)
    assert layout is not None and [leaf.name.decode() for leaf in layout.leaves] == file[1].names
    whole = parsed(footer)
    arrow = whole.schema.to_arrow_schema()
    assert layout.by_id == {int(f.metadata[b"PARQUET:field_id"]): at for at, f in enumerate(arrow) if f.metadata}
    wanted = data.draw(st.lists(st.sampled_from(range(len(arrow))), min_size=1, unique=True))
    part = narrowed(footer, layout, wanted)
    assert part is not None
    found = parsed(part)
    assert found.num_rows == whole.num_rows and found.num_row_groups == 1
    assert found.schema.to_arrow_schema().equals(pa.schema([arrow.field(at) for at in wanted]), check_metadata=True)
    for place, at in enumerate(wanted):
        chunk, of_whole = found.row_group(0).column(place), whole.row_group(0).column(at)
        assert repr(chunk.to_dict()) == repr(of_whole.to_dict())  # a NaN is not equal to itself
    reader = pq.ParquetFile(pa.BufferReader(file[0]), metadata=found, page_checksum_verification=True)
    expected = pq.ParquetFile(pa.BufferReader(file[0])).read([arrow.names[at] for at in wanted])
    assert repr(reader.read().to_pydict()) == repr(expected.select([arrow.names[at] for at in wanted]).to_pydict())


def written(rows: pa.Table, table: TableSchema) -> bytes:
    return footer_of(write_sst(table, rows, file_id="ab" * 16, origin="car-1", chooser=Chooser()).data)


COLUMNS = (
    Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
    Column(2, "v", ColumnType.BINARY),
    Column(3, "w", ColumnType.BINARY),
)


def binaries(v: bytes, w: bytes) -> pa.Table:
    return pa.table(
        {"ts": pa.array([1], pa.timestamp("ms")), "v": pa.array([v], pa.binary()), "w": pa.array([w], pa.binary())}
    )


@pytest.mark.parametrize("spoiled", ["v", "w"])
def test_a_value_that_looks_like_a_column_s_name_is_not_taken_for_it(spoiled: str) -> None:
    table = TableSchema("t", COLUMNS)
    values = {"v": b"x", "w": b"y"} | {spoiled: b"\x15\x0c\x19\x25\x00\x06" + PATH_OF_V + b"\x0c\x16\x02\x00"}
    footer = written(binaries(**values), table)
    layout = layout_of(footer)
    assert layout is not None and footer.count(PATH_OF_V) > 1
    assert narrowed(footer, layout, [1]) is None
    assert narrowed(footer, layout, [0, 2]) is not None


def test_files_that_are_not_as_ours_are_left_to_the_whole_parser() -> None:
    table, rows = TableSchema("t", COLUMNS), binaries(b"x", b"y")
    layout = layout_of(written(rows, table))
    assert layout is not None
    greptime = written(rows, TableSchema("t", COLUMNS, options=TableOptions(greptime_columns=True)))
    other = layout_of(greptime)
    assert other is None or narrowed(greptime, other, [0]) is None
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, rows.schema, store_schema=False) as writer:
        writer.write_table(rows)
        writer.write_table(rows)
    groups = footer_of(sink.getvalue().to_pybytes())
    two = layout_of(groups)
    assert two is not None and narrowed(groups, two, [0]) is None and narrowed(groups, layout, [0]) is None
    nested = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [{"b": 1}]}), nested, store_schema=False)
    assert layout_of(footer_of(nested.getvalue().to_pybytes())) is None


def test_no_bytes_make_the_walk_fail_or_run_away() -> None:
    rng = random.Random(5)
    sst = write_sst(WIDE, wide(1, "v-1", 0, 50), file_id="ab" * 16, origin="car-1", chooser=Chooser())
    footer = footer_of(sst.data)
    layout = layout_of(footer)
    assert layout is not None
    for _ in range(300):
        damaged = bytearray(footer)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(layout.head), len(damaged))] = rng.choice((0, 0x0C, 0x19, 0xFC, 0xFF, 7))
        narrowed(bytes(damaged), layout, [0, 2, 101])
        narrowed(footer[: rng.randrange(len(footer))], layout, [0, 101])
        damaged = bytearray(footer[: rng.randrange(1, len(layout.head))])
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        layout_of(bytes(damaged))
    deep = footer[:2] + b"\x19\x1c" + b"\x1c" * 10_000
    endless = footer[:2] + b"\x19\x1c\x19\xf1" + b"\xff" * 8 + b"\x7f"
    assert layout_of(deep) is None and layout_of(endless) is None and layout_of(b"") is None
