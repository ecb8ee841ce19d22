"""An SST with GreptimeDB's internal columns and region metadata, in its `flat` format, for a real GreptimeDB to read.

    tags (text by dictionary), fields, time index, __primary_key, __sequence, __op_type

By GreptimeDB 1.3's own code: `mito2/src/sst/parquet/flat_format.rs` (columns), `mito-codec/src/row_converter/dense.rs`
(the key), `store-api/src/metadata.rs` (the footer's `greptime:metadata`). `__sequence` is 0 throughout: GreptimeDB puts
the sequence that it commits the file under in its place. Its column ids count from 0 where ours count from 1, so that a
table made in both by one CREATE TABLE, and grown by the same columns, is the same table.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema
from dataplane.tsdb.sst.encoding import DICTIONARY, Encoding
from dataplane.tsdb.sst.order import OP_TYPE, PUT, begins

PRIMARY_KEY = "__primary_key"
SEQUENCE = "__sequence"
METADATA_KEY = b"greptime:metadata"
FIELD_ID = b"PARQUET:field_id"
INTERNAL_FIELD_ID = 1 << 30
"""Field id of `__primary_key`; the other two follow."""
_GROUP = 8
"""Bytes of text in a group of the key's encoding."""
_SIGNED = {ColumnType.INT8: "b", ColumnType.INT16: "h", ColumnType.INT32: "i", ColumnType.INT64: "q"}
_UNSIGNED = {ColumnType.UINT8: "B", ColumnType.UINT16: "H", ColumnType.UINT32: "I", ColumnType.UINT64: "Q"}
_UNITS = {"s": "Second", "ms": "Millisecond", "us": "Microsecond", "ns": "Nanosecond"}


def with_internal_columns(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """`rows`, in an SST's order and columns, as GreptimeDB lays them out."""
    fields, columns = [], []
    for role in (ColumnRole.TAG, ColumnRole.FIELD, ColumnRole.TIME):
        for column in (c for c in schema.columns if c.role is role):
            field, values = rows.schema.field(column.name), rows.column(column.name)
            if role is ColumnRole.TAG and column.type is ColumnType.STRING:
                values = values.combine_chunks().dictionary_encode().cast(pa.dictionary(pa.uint32(), pa.string()))
                field = field.with_type(values.type)
            fields.append(field)
            columns.append(values)
    first = begins(rows, schema.tags) if schema.tags else np.arange(len(rows)) == 0
    keys = [primary_key(schema, row) for row in rows.select(schema.tags).filter(pa.array(first)).to_pylist()]
    series = pa.array(np.cumsum(first) - 1, pa.uint32())
    operations = pa.repeat(pa.scalar(PUT, pa.uint8()), len(rows))
    if OP_TYPE in rows.column_names:
        operations = rows.column(OP_TYPE)
    internal = {
        PRIMARY_KEY: pa.DictionaryArray.from_arrays(series, pa.array(keys or [b""], pa.binary())),
        SEQUENCE: pa.repeat(pa.scalar(0, pa.uint64()), len(rows)),
        OP_TYPE: operations,
    }
    for at, (name, values) in enumerate(internal.items()):
        metadata = {FIELD_ID: str(INTERNAL_FIELD_ID + at).encode()}
        fields.append(pa.field(name, values.type, nullable=False, metadata=metadata))
        columns.append(values)
    return pa.table(columns, schema=pa.schema(fields))


def fixed_encodings(schema: TableSchema) -> dict[str, Encoding]:
    """Of the internal columns, as GreptimeDB writes them, and of text tags: what Arrow is to read by dictionary has to
    be stored so."""
    text = [c.name for c in schema.columns if c.role is ColumnRole.TAG and c.type is ColumnType.STRING]
    return dict.fromkeys(text, Encoding(DICTIONARY, 1)) | {
        PRIMARY_KEY: Encoding(DICTIONARY, 1),
        SEQUENCE: Encoding("DELTA_BINARY_PACKED", 1),
        OP_TYPE: Encoding(DICTIONARY, None),
    }


def primary_key(schema: TableSchema, row: Mapping[str, Any]) -> bytes:
    """The tags of a series in one string of bytes that compares as they do: GreptimeDB's dense encoding, which is that
    of the Rust library `memcomparable` over optional values."""
    return b"".join(_comparable(column, row[column.name]) for column in schema.columns if column.role is ColumnRole.TAG)


def _comparable(column: Column, value: Any) -> bytes:
    if value is None:
        return b"\x00"
    kind = column.type
    if kind in _UNSIGNED:
        return b"\x01" + struct.pack(f">{_UNSIGNED[kind]}", value)
    if kind in _SIGNED or kind.is_timestamp:
        packed = bytearray(struct.pack(f">{_SIGNED.get(kind, 'q')}", value))
        packed[0] ^= 0x80  # negative numbers come first
        return b"\x01" + bytes(packed)
    if kind is ColumnType.BOOL:
        return b"\x01" + bytes([value])
    return b"\x01" + _comparable_text(value.encode())


def _comparable_text(data: bytes) -> bytes:
    """Groups of eight bytes, each followed by 9, the last filled up with zeros and followed by its length."""
    if not data:
        return b"\x00"
    parts = [b"\x01"]
    for at in range(0, len(data), _GROUP):
        group = data[at : at + _GROUP]
        more = at + _GROUP < len(data)
        parts.append(group.ljust(_GROUP, b"\x00") + bytes([_GROUP + 1 if more else len(group)]))
    return b"".join(parts)


def region_metadata(schema: TableSchema) -> bytes:
    """What a GreptimeDB region says of its columns, as it stands in a file's footer. The region is 0: nobody's."""
    return json.dumps(
        {
            "column_metadatas": [_column(column) for column in schema.columns],
            "primary_key": [column.id - 1 for column in schema.columns if column.role is ColumnRole.TAG],
            "region_id": 0,
            "schema_version": schema.version - 1,
            "primary_key_encoding": "dense",
            "partition_expr": None,
        },
        separators=(",", ":"),
    ).encode()


def _column(column: Column) -> dict[str, Any]:
    is_time = column.role is ColumnRole.TIME
    return {
        "column_schema": {
            "name": column.name,
            "data_type": _data_type(column.type),
            "is_nullable": column.nullable and not is_time,
            "is_time_index": is_time,
            "default_constraint": None,
            "metadata": {"greptime:time_index": "true"} if is_time else {},
        },
        "semantic_type": {ColumnRole.TAG: "Tag", ColumnRole.FIELD: "Field", ColumnRole.TIME: "Timestamp"}[column.role],
        "column_id": column.id - 1,
    }


def _data_type(kind: ColumnType) -> dict[str, Any]:
    if kind.is_timestamp:
        return {"Timestamp": {_UNITS[kind.unit]: None}}
    if kind is ColumnType.STRING:
        return {"String": {"size_type": "Utf8"}}
    if kind is ColumnType.BINARY:
        return {"Binary": {"repr_type": "Binary"}}
    if kind is ColumnType.BOOL:
        return {"Boolean": {}}
    return {kind.value.replace("uint", "UInt").replace("int", "Int").replace("float", "Float"): {}}
