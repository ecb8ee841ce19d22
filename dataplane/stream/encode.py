"""Makes v2 record batches for internal topics; ordinary traffic is never encoded here. Layout: Kafka protocol guide,
"Record".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import crc32c

from dataplane.stream.batch import CRC_FROM, HEADER, HEADER_BYTES, LENGTH_AFTER, parse_header
from dataplane.stream.records import read_varint, varint
from providers.base.errors import Corrupt

KeyValue = tuple[bytes, bytes | None]


def encode_batch(
    records: Sequence[KeyValue],
    timestamp_ms: int,
    *,
    attributes: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
) -> bytes:
    """One uncompressed batch of (key, value) records, offsets from 0."""
    body = bytearray()
    for i, (key, value) in enumerate(records):
        record = b"".join(
            (
                b"\0",
                varint(0),
                varint(i),
                varint(len(key)),
                key,
                varint(-1) if value is None else varint(len(value)) + value,
                varint(0),
            )
        )
        body += varint(len(record)) + record
    last = len(records) - 1
    size = HEADER_BYTES - LENGTH_AFTER + len(body)
    header = HEADER.pack(
        *(0, size, 0, 2, 0, attributes, last, timestamp_ms, timestamp_ms),
        *(producer_id, producer_epoch, -1, len(records)),
    )
    batch = bytearray(header) + body
    struct.pack_into(">I", batch, CRC_FROM - 4, crc32c.crc32c(bytes(batch[CRC_FROM:])))
    return bytes(batch)


def decode_batch(batch: bytes | memoryview) -> Iterator[tuple[int, KeyValue]]:
    """(offset, (key, value)) of each record of an uncompressed batch that `encode_batch` made.

    Raises:
        Corrupt: it is not such a batch.
    """
    header = parse_header(batch)
    if header.attributes & 7:
        raise Corrupt("an internal batch is compressed")
    view, at = memoryview(batch), HEADER_BYTES
    try:
        for _ in range(header.record_count):
            size, at = read_varint(view, at)
            end = at + size
            at += 1
            _, at = read_varint(view, at)
            delta, at = read_varint(view, at)
            length, at = read_varint(view, at)
            key, at = bytes(view[at : at + length]), at + length
            length, at = read_varint(view, at)
            value = None if length < 0 else bytes(view[at : at + length])
            yield header.base_offset + delta, (key, value)
            at = end
    except IndexError as error:
        raise Corrupt("an internal batch is cut short") from error


def record_timestamps(batch: bytes | bytearray | memoryview) -> Iterator[tuple[int, int]]:
    """(offset, timestamp) of each record of an uncompressed batch, whoever made it.

    Raises:
        Corrupt: it is cut short, or compressed.
    """
    header = parse_header(batch)
    if header.attributes & 7:
        raise Corrupt("a compressed batch is not looked into")
    view, at = memoryview(batch), HEADER_BYTES
    try:
        for _ in range(header.record_count):
            size, at = read_varint(view, at)
            timestamp, delta_at = read_varint(view, at + 1)
            delta, _ = read_varint(view, delta_at)
            yield header.base_offset + delta, header.base_timestamp + timestamp
            at += max(size, 1)
    except IndexError as error:
        raise Corrupt("a batch is cut short") from error
