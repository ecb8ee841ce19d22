"""Promises of files for a real GreptimeDB: its columns in its order, its key, its metadata. Judged by what its own code
and the library that it encodes keys with say (bytes taken from runs of `memcomparable` 0.2), and by DuckDB."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, TableSchema
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.greptime import primary_key, region_metadata
from dataplane.tsdb.sst.order import OP_TYPE
from dataplane.tsdb.sst.reader import read_sst
from dataplane.tsdb.sst.writer import write_sst
from tests.dataplane.tsdb.cloud_import.bucket import DATABASE, NOW_MS, Cloud, Edge

T = ColumnType
GREPTIME = TableOptions(greptime_columns=True)
ENCODED: list[tuple[ColumnType, Any, str]] = [
    (T.STRING, None, "00"),
    (T.STRING, "", "0100"),
    (T.STRING, "a", "0101610000000000000001"),
    (T.STRING, "12345678", "0101313233343536373808"),
    (T.STRING, "123456789", "0101313233343536373809390000000000000001"),
    (T.STRING, "云河-1", "0101e4ba91e6b2b32d3108"),
    (T.BOOL, True, "0101"),
    (T.BOOL, False, "0100"),
    (T.INT8, -3, "017d"),
    (T.INT16, -300, "017ed4"),
    (T.INT32, -70_000, "017ffeee90"),
    (T.INT64, -5_000_000_000, "017ffffffed5fa0e00"),
    (T.INT64, 5_000_000_000, "01800000012a05f200"),
    (T.UINT8, 200, "01c8"),
    (T.UINT16, 60_000, "01ea60"),
    (T.UINT32, 4_000_000_000, "01ee6b2800"),
    (T.UINT64, 18_000_000_000_000_000_000, "01f9ccd8a1c5080000"),
]


def table(*tags: ColumnType, options: TableOptions = GREPTIME) -> TableSchema:
    return TableSchema(
        "can",
        (
            *(Column(at + 1, f"tag_{at}", kind, ColumnRole.TAG) for at, kind in enumerate(tags)),
            Column(len(tags) + 1, "ts", T.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
            Column(len(tags) + 2, "speed", T.FLOAT64),
        ),
        options=options,
    )


@pytest.mark.parametrize(("kind", "value", "encoded"), ENCODED)
def test_a_key_is_encoded_as_greptimedbs_library_does(kind: ColumnType, value: Any, encoded: str) -> None:
    assert primary_key(table(kind), {"tag_0": value}).hex() == encoded
    assert primary_key(table(kind, kind), {"tag_0": value, "tag_1": value}).hex() == 2 * encoded


def test_the_metadata_is_what_greptimedb_writes_of_the_same_columns() -> None:
    """The text is from GreptimeDB's own tests, with the fields that it has added since."""
    theirs = json.loads(
        '{"column_metadatas":[{"column_schema":{"name":"a","data_type":{"Int64":{}},"is_nullable":false,'
        '"is_time_index":false,"default_constraint":null,"metadata":{}},"semantic_type":"Tag","column_id":1},'
        '{"column_schema":{"name":"b","data_type":{"Float64":{}},"is_nullable":false,"is_time_index":false,'
        '"default_constraint":null,"metadata":{}},"semantic_type":"Field","column_id":2},{"column_schema":{"name":"c",'
        '"data_type":{"Timestamp":{"Millisecond":null}},"is_nullable":false,"is_time_index":true,'
        '"default_constraint":null,"metadata":{"greptime:time_index":"true"}},"semantic_type":"Timestamp",'
        '"column_id":3}],"primary_key":[1],"region_id":0,"schema_version":0,"primary_key_encoding":"dense",'
        '"partition_expr":null}'
    )
    ours = TableSchema(
        "t",
        (
            Column(2, "a", T.INT64, ColumnRole.TAG, nullable=False),
            Column(3, "b", T.FLOAT64, nullable=False),
            Column(4, "c", T.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        ),
    )
    assert json.loads(region_metadata(ours)) == theirs


def rows() -> pa.Table:
    return pa.table(
        {
            "tag_0": ["b", "a", None, "a"],
            "tag_1": pa.array([1, 2, 3, 2], pa.int32()),
            "ts": pa.array([4, 3, 2, 1], pa.timestamp("ms")),
            "speed": [1.0, 2.0, 3.0, None],
        }
    )


def test_columns_lie_where_greptimedb_looks_for_them_and_everybody_reads_them(tmp_path: Path) -> None:
    schema = table(T.STRING, T.INT32)
    sst = write_sst(schema, rows(), file_id="ab" * 16, origin="car-1", chooser=Chooser())
    arrow = pq.ParquetFile(io.BytesIO(sst.data)).schema_arrow
    assert arrow.names == ["tag_0", "tag_1", "speed", "ts", "__primary_key", "__sequence", "__op_type"]
    assert [str(field.type) for field in arrow][:2] == ["dictionary<values=string, indices=uint32, ordered=0>", "int32"]
    assert [str(field.type) for field in arrow][4:] == [
        "dictionary<values=binary, indices=uint32, ordered=0>",
        "uint64",
        "uint8",
    ]
    assert [field.metadata[b"PARQUET:field_id"] for field in arrow][4:] == [b"1073741824", b"1073741825", b"1073741826"]
    (tmp_path / "a.parquet").write_bytes(sst.data)
    assert pq.read_table(tmp_path / "a.parquet").column("tag_0").to_pylist() == [None, "a", "a", "b"]
    found = duckdb.read_parquet(str(tmp_path / "a.parquet"))
    assert found.select("tag_0, tag_1, epoch_ms(ts), speed, __sequence, __op_type").fetchall() == [
        (None, 3, 2, 3.0, 0, 1),
        ("a", 2, 1, None, 0, 1),
        ("a", 2, 3, 2.0, 0, 1),
        ("b", 1, 4, 1.0, 0, 1),
    ]
    keys = [key for (key,) in found.select("__primary_key").fetchall()]
    assert keys == sorted(keys) and len(set(keys)) == 3 and keys[1] == keys[2]
    ours = read_sst(sst.data, schema)
    assert ours.column("tag_0").to_pylist() == [None, "a", "a", "b"] and ours.column("tag_0").type == pa.string()


def test_a_delete_keeps_its_mark_and_a_table_without_tags_has_an_empty_key() -> None:
    one = rows().slice(0, 1).drop_columns(["tag_0", "tag_1"]).append_column(OP_TYPE, pa.array([0], pa.uint8()))
    sst = write_sst(table(), one, file_id="ab" * 16, origin="car-1", chooser=Chooser())
    found = pq.read_table(io.BytesIO(sst.data))
    assert found.column("__op_type").to_pylist() == [0] and found.column("__primary_key").to_pylist() == [b""]
    assert sst.meta.deletes


def test_such_a_file_is_imported_as_any_other() -> None:
    async def main() -> None:
        schema = table(T.STRING, T.INT32)
        cloud = Cloud()
        edge = Edge(cloud)
        manifest = await cloud.owned(schema)
        old = rows().set_column(2, "ts", pa.array([NOW_MS - n for n in range(4)], pa.timestamp("ms")))
        sst = write_sst(schema, old, file_id="cd" * 16, origin=edge.name, chooser=Chooser())
        cloud.bucket.objects[sst_key(DATABASE, "can", sst.meta.file_id)] = sst.data
        edge.ship(sst.meta, schemas=(schema,))
        [outcome] = await cloud.importer(manifest, edge).turn()
        assert outcome.refused is None and outcome.rows == 4

    asyncio.run(main())
