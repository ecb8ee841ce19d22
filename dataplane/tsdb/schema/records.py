"""Records of a topic on their way into a cloud database: the other way in, beside the bucket.

    header yunhe-record = sst    value: a signed batch's length (4 bytes, big-endian), that batch of one file, the SST
    header yunhe-record = rows   header yunhe-table; value: rows as an Arrow IPC stream

An SST's record may come any number of times, for a file is imported once by its id; so an edge that is not sure whether
it has sent one sends it again. Rows are in the database as often as they are in the topic.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.tsdb.schema.files import FileMeta, ShippedBatch, signed
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Invalid

RECORD = "yunhe-record"
TABLE = "yunhe-table"
EDGE = "yunhe-edge"
"""Of an SST's record: whose it is, so that its signature can be checked."""
SST = b"sst"
ROWS = b"rows"
UNNUMBERED = 0
"""Number of a batch in a record: the topic has an order of its own."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Record:
    """A topic's record, as far as it matters here."""

    offset: int
    headers: Mapping[str, bytes]
    value: bytes


def sst_record(
    database: str, edge: str, file: FileMeta, schema: TableSchema, data: bytes, key: Ed25519PrivateKey, made_ms: int
) -> tuple[dict[str, bytes], bytes]:
    """Headers and value that carry one file."""
    batch = signed(ShippedBatch(database, edge, UNNUMBERED, made_ms, (file,), (schema,)), key)
    return {RECORD: SST, EDGE: edge.encode()}, _LENGTH.pack(len(batch)) + batch + data


def sst_parts(value: bytes) -> tuple[bytes, bytes]:
    """The signed batch and the file in an SST's record.

    Raises:
        Invalid: it is cut off.
    """
    end = _LENGTH.size + (_LENGTH.unpack_from(value)[0] if len(value) >= _LENGTH.size else 0)
    if not _LENGTH.size < end < len(value):
        raise Invalid(f"its {len(value)} bytes do not hold the signed batch and the file that they should")
    return value[_LENGTH.size : end], value[end:]


def rows_record(table: str, rows: pa.Table) -> tuple[dict[str, bytes], bytes]:
    """Headers and value that carry rows of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(rows)
    return {RECORD: ROWS, TABLE: table.encode()}, sink.getvalue().to_pybytes()


def rows_of(value: bytes) -> pa.Table:
    """The rows in a record.

    Raises:
        Invalid: they cannot be read.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as stream:
            rows = stream.read_all()
            rows.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Invalid(f"its rows are no Arrow IPC stream: {str(error)[:200]}") from error
    return rows
