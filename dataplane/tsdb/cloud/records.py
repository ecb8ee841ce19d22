"""Records of a cloud database's WAL: one a write, whatever the number of its tables, so that a write is taken whole.

    count | for each table: name length, whether the rows are deletes, body length | name, fingerprint (16), Arrow IPC

The WAL of an epoch lies under `<database>/wal/1/<epoch>/`: an epoch has one owner, so that no node needs to be named.
A record's sequence counts from 1 in its epoch; a table's rows are in files up to the sequence that the manifest states.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.writer import arrow_schema
from dataplane.wal.base import WalIdentity, WalRecord
from providers.base.errors import Corrupt

WAL_NODE = 1
"""Of every WAL of a database: what WALs of brokers call the node."""
_COUNT = struct.Struct("<H")
_HEAD = struct.Struct("<HBI")
_FINGERPRINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Section:
    """Of a write, one table's rows in the columns of one of its versions, with `__op_type` where they delete."""

    table: str
    fingerprint: str
    deletes: bool
    body: bytes
    """Arrow IPC, a record batch without its schema."""


def identity(database: str, epoch: int) -> WalIdentity:
    """Of an epoch's WAL."""
    return WalIdentity(database, WAL_NODE, epoch)


def section(table: str, fingerprint: str, batch: pa.RecordBatch, *, deletes: bool) -> Section:
    """Rows as `conformed` makes them."""
    return Section(table, fingerprint, deletes, batch.serialize().to_pybytes())


def rows_of(found: Section, schema: TableSchema) -> pa.RecordBatch:
    """The rows; `schema` is the version that `found.fingerprint` names.

    Raises:
        Corrupt: they cannot be read.
    """
    try:
        return pa.ipc.read_record_batch(pa.py_buffer(found.body), arrow_schema(schema, deletes=found.deletes))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Corrupt(f"a record of table {found.table!r} cannot be read: {str(error)[:200]}") from error


def encode(epoch: int, sequence: int, sections: Sequence[Section]) -> WalRecord:
    """The record of one write."""
    pieces = [_COUNT.pack(len(sections))]
    for item in sections:
        name = item.table.encode()
        pieces += [_HEAD.pack(len(name), item.deletes, len(item.body)), name, item.fingerprint.encode(), item.body]
    return WalRecord(stream=0, stream_epoch=epoch, base_offset=sequence, offsets=1, payload=b"".join(pieces))


def decode(record: WalRecord) -> list[Section]:
    """The inverse of `encode`.

    Raises:
        Corrupt: no such record.
    """
    payload = bytes(record.payload)
    try:
        (count,) = _COUNT.unpack_from(payload)
        at = _COUNT.size
        found = []
        for _ in range(count):
            length, deletes, size = _HEAD.unpack_from(payload, at)
            name_end = at + _HEAD.size + length
            body_at = name_end + _FINGERPRINT_BYTES
            at, name = body_at + size, payload[at + _HEAD.size : name_end].decode()
            found.append(Section(name, payload[name_end:body_at].decode(), bool(deletes), payload[body_at:at]))
    except (struct.error, UnicodeDecodeError) as error:
        raise Corrupt(f"record {record.base_offset} of the WAL of epoch {record.stream_epoch} is damaged") from error
    if at != len(payload):
        raise Corrupt(f"record {record.base_offset} of the WAL of epoch {record.stream_epoch} is not of its length")
    return found
