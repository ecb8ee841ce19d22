"""The edge's catalog: what encodings suit a table's columns is known to the next life, and older catalogs are read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from crc32c import crc32c

from dataplane.tsdb.edge import catalog as catalogs
from dataplane.tsdb.edge.catalog import NAME, Catalog
from dataplane.tsdb.edge.files import DiskFiles
from dataplane.tsdb.edge.record_log import HEADER, encode
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema, widened
from dataplane.tsdb.sst import encoding
from dataplane.tsdb.sst.encoding import Encoding
from providers.base.clock import SystemRng

SCHEMA = TableSchema(
    "t",
    (
        Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        Column(2, "v", ColumnType.INT32),
    ),
)


def rows(schema: TableSchema) -> pa.Table:
    stamps = pa.array(range(4_000), pa.timestamp("ms"))
    return pa.table({"ts": stamps, "v": pa.array(range(4_000)).cast(schema.columns[1].type.arrow)})


def opened(folder: Path) -> EdgeStore:
    return EdgeStore(DiskFiles(folder), "car-1", SystemRng())


def test_what_suits_a_tables_columns_is_measured_once_and_not_after_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    store.create_table(SCHEMA)
    store.write("t", rows(SCHEMA))
    store.flush("t")

    def measured(columns: object) -> dict[str, Encoding]:
        raise AssertionError("it is known already")

    monkeypatch.setattr(encoding, "choose_all", measured)
    again = opened(tmp_path)
    again.write("t", rows(SCHEMA))
    assert again.flush("t") is not None
    monkeypatch.setattr(catalogs, "REWRITE_BYTES", 0)
    again.write("t", rows(SCHEMA))
    assert again.flush("t") is not None  # before which the catalog is rewritten whole
    last = opened(tmp_path)
    last.write("t", rows(SCHEMA))
    assert last.flush("t") is not None
    assert len(last.scan("t")) == 4_000


def test_a_widened_column_is_measured_anew(tmp_path: Path) -> None:
    """Its old encoding may be none for the new type."""
    store = opened(tmp_path)
    store.create_table(SCHEMA)
    store.write("t", rows(SCHEMA))
    store.flush("t")
    assert Catalog(DiskFiles(tmp_path)).chosen["t"]["v"].name == "DELTA_BINARY_PACKED"
    wider = widened(SCHEMA, "v", ColumnType.FLOAT64)
    store.change_table(wider)
    store.write("t", rows(wider))
    store.flush("t")
    assert set(store.scan("t").column("v").to_pylist()) == {float(n) for n in range(4_000)}
    assert Catalog(DiskFiles(tmp_path)).chosen["t"]["v"].name != "DELTA_BINARY_PACKED"


def test_a_catalog_without_encodings_is_read(tmp_path: Path) -> None:
    """As it was written before they were kept."""
    store = opened(tmp_path)
    store.create_table(SCHEMA)
    store.write("t", rows(SCHEMA))
    store.flush("t")
    data, entries, at = (tmp_path / NAME).read_bytes(), [], 0
    while at < len(data):
        length, _, _ = HEADER.unpack_from(data, at)
        entries.append(json.loads(data[at + HEADER.size : at + HEADER.size + length]))
        at += HEADER.size + length
    assert any(entry.pop("chosen", None) for entry in entries)
    old = [json.dumps(entry).encode() for entry in entries]
    (tmp_path / NAME).write_bytes(b"".join(encode(number, entry) for number, entry in enumerate(old, 1)))
    again = opened(tmp_path)
    assert len(again.scan("t")) == 4_000
    again.write("t", rows(SCHEMA))
    assert again.flush("t") is not None


def test_a_records_bytes_are_as_they_always_were() -> None:
    payload = b"rows of two tables"
    crc = crc32c(payload, crc32c((7).to_bytes(8, "little")))
    assert encode(7, payload[:5], b"", pa.py_buffer(payload[5:])) == HEADER.pack(len(payload), crc, 7) + payload
