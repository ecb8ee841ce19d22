"""What an SST must prove before it is part of a database: pure functions of its bytes and of what was said of it.

A footer that parses proves little: of twenty single bits flipped in data pages it notices none, and a decoder two. So
the checksum of the whole file, from the batch that its edge signed, is the rule (`Check.CHECKSUM`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c

from dataplane.tsdb.schema.files import FRESH_ID, FileMeta, ShippedBatch
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema
from dataplane.tsdb.sst.decimals import STORED_DIGITS
from dataplane.tsdb.sst.encoding import FINER
from dataplane.tsdb.sst.reader import field_id

FILE_BYTES_MAX = 1 << 30
_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PER_MS = {"s": 0.001, "ms": 1.0, "us": 1_000.0, "ns": 1_000_000.0}


class Check(IntEnum):
    """How much of a file is looked at before the commit. Each includes the ones before it."""

    FOOTER = 1
    """Size, footer, schema, rows and time range: one ranged read a file. Flipped bits in data pages pass."""
    CHECKSUM = 2
    """Every byte, against the SHA-256 that the edge signed."""
    PAGES = 3
    """Every column is decoded, with its pages' checksums verified."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked of files."""

    check: Check = Check.CHECKSUM
    ahead_ms_max: int | None = 86_400_000
    """How far a row's time may be ahead of the cloud's clock. A day takes every time zone's mistake; more is a broken
    clock, whose rows would outlive every retention and win over every later row. None: not looked at."""


def why_not_listed(batch: ShippedBatch) -> str | None:
    """What is wrong with the batch itself, before any file is opened; None: nothing."""
    if len({meta.file_id for meta in batch.files}) < len(batch.files):
        return "the batch names a file twice"
    known = {(schema.name, schema.fingerprint) for schema in batch.schemas}
    for meta in batch.files:
        if not _ID.fullmatch(meta.file_id):
            return f"file id {meta.file_id[:40]!r} is not 32 hex digits"
        if not _SHA256.fullmatch(meta.sha256):
            return f"file {meta.file_id} has no SHA-256"
        if meta.origin != batch.edge:
            return f"file {meta.file_id} is of edge {meta.origin!r}, in a batch of edge {batch.edge!r}"
        if (meta.table, meta.fingerprint) not in known:
            return f"the batch lacks schema {meta.fingerprint} of table {meta.table!r}, of file {meta.file_id}"
        if not 12 < meta.footer_bytes <= meta.size <= FILE_BYTES_MAX or meta.rows < 1 or meta.time_min > meta.time_max:
            return f"file {meta.file_id} says of itself what no SST is: {meta.size} bytes, {meta.rows} rows"
    return None


def why_not_in_time(latest: int, schema: TableSchema, policy: Policy, now_ms: int) -> str | None:
    """Whether the latest of some rows' times, in the unit of the table's time index, is too far ahead of the clock."""
    if policy.ahead_ms_max is None:
        return None
    ahead_ms = latest / _PER_MS[schema.time.type.unit] - now_ms
    if ahead_ms <= policy.ahead_ms_max:
        return None
    return (
        f"its last row is {ahead_ms / 3_600_000:.1f} hours ahead of the cloud's clock, and "
        f"{policy.ahead_ms_max / 3_600_000:.1f} are allowed"
    )


def why_not_footer(tail: bytes, meta: FileMeta, schema: TableSchema) -> str | None:
    """Whether `tail`, the last `meta.footer_bytes` bytes, is the footer of the file that `meta` tells of."""
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != b"PAR1" or length + 8 != meta.footer_bytes or len(tail) != meta.footer_bytes:
        return "it does not end with a Parquet footer of the stated length"
    if meta.footer_crc32c is not None and crc32c(tail) != meta.footer_crc32c:
        return f"its footer is not the one that the edge signed: CRC-32C differs; {FRESH_ID}"
    try:
        footer = pq.read_metadata(pa.BufferReader(tail))
        arrow = footer.schema.to_arrow_schema()
        times = _time_range(footer, schema.time)
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        return f"its footer cannot be read: {str(error)[:200]}"
    if footer.num_rows != meta.rows:
        return f"it has {footer.num_rows} rows, not {meta.rows}"
    if times is not None and times != (meta.time_min, meta.time_max):
        return f"its times are {times[0]} to {times[1]}, not {meta.time_min} to {meta.time_max}"
    return why_not_columns(arrow, schema)


def _time_range(footer: pq.FileMetaData, time: Column) -> tuple[int, int] | None:
    """First and last time by the statistics of the row groups; None where a writer left them out.

    Raises:
        ValueError: no such column.
    """
    at = footer.schema.names.index(time.name)
    low, high = [], []
    for group in range(footer.num_row_groups):
        stats = footer.row_group(group).column(at).statistics
        if stats is None or not stats.has_min_max:
            return None
        low.append(stats.min_raw)
        high.append(stats.max_raw)
    if not low:
        return None
    # Parquet has no seconds: its writers store milliseconds.
    scale = 1_000 if time.type is ColumnType.TIMESTAMP_S else 1
    return min(low) // scale, max(high) // scale


def why_not_columns(arrow: pa.Schema, schema: TableSchema) -> str | None:
    """Whether the file's columns are the schema's, by field id: each with its name and type, tags and time present.
    Fields may be left out: they are null. Columns that begin with two underscores are the database's own."""
    by_id = {column.id: column for column in schema.columns}
    for field in arrow:
        if field.name.startswith("__"):
            continue
        number = field_id(field)
        column = by_id.pop(number, None) if number is not None else None
        if column is None or column.name != field.name:
            return f"its column {field.name!r} (field id {number}) is not in its schema"
        if not _same_type(field.type, column):
            return f"its column {field.name!r} is {field.type}, not {column.type}"
    missing = [column.name for column in by_id.values() if column.role is not ColumnRole.FIELD or not column.nullable]
    return f"it lacks column {missing[0]!r}" if missing else None


def _same_type(found: pa.DataType, column: Column) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if column.decimals is not None and pa.types.is_decimal(found) and found.precision == STORED_DIGITS:
        return found.scale - column.decimals in (0, *FINER)  # with a value that is no such decimal it has floats
    # Seconds are stored as milliseconds.
    return found == column.type.arrow or (column.type is ColumnType.TIMESTAMP_S and found == pa.timestamp("ms"))


def why_not_pages(file: IO[bytes]) -> str | None:
    """Whether every page matches its checksum and decodes. A column of a row group at a time is in memory."""
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
        for group in range(parquet.num_row_groups):
            for name in parquet.schema_arrow.names:
                parquet.read_row_group(group, columns=[name], use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"it cannot be decoded: {str(error)[:200]}"
    return None
