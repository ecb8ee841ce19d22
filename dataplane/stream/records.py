"""Looks into record batches, for compaction by key alone: a record's way from producer to consumer never comes here.

A record (Kafka protocol guide, "Record"): length varint, attributes i8, timestamp delta varlong, offset delta varint,
key length varint, key, value length varint (-1: null, a tombstone), value, headers. Deltas count from the batch's base,
so that records of a batch may be left out and the others stay as they are.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import crc32c

from dataplane.stream import codecs
from dataplane.stream.batch import CRC_FROM, HEADER, HEADER_BYTES, LENGTH_AFTER, BatchHeader, Buffer
from providers.base.errors import Corrupt

CODEC_BITS = 0x07
LOG_APPEND_TIME, TRANSACTIONAL, CONTROL, DELETE_HORIZON = 0x08, 0x10, 0x20, 0x40
"""Attribute bits. With LOG_APPEND_TIME all records have the batch's newest timestamp. With DELETE_HORIZON the base
timestamp is the time from which the batch's tombstones may go (KIP-534)."""
PLAIN, GZIP, SNAPPY, LZ4, ZSTD = range(5)
INFLATED_BYTES_MAX = 64 << 20
"""What a compressed batch may become: one that is larger stays as it is."""
ASIDE_BYTES = 256 << 10
"""From here on compressing is a thread's work: it takes the loop's time by the millisecond."""


class Record(NamedTuple):
    """One record. `raw`: its bytes, length included; `rest_at`: where in them the offset delta begins."""

    offset: int
    timestamp: int
    key: bytes | None
    tombstone: bool
    raw: memoryview
    rest_at: int


def opaque(header: BatchHeader) -> bool:
    """Whether a batch was compressed by what nobody here knows."""
    return header.attributes & CODEC_BITS not in _INFLATE


async def inflate(batch: Buffer, header: BatchHeader) -> memoryview | None:
    """The batch's records, uncompressed; None when they would be too large, or the batch is opaque.

    Raises:
        Corrupt: they cannot be inflated.
    """
    if opaque(header):
        return None
    codec, body = header.attributes & CODEC_BITS, memoryview(batch)[HEADER_BYTES : header.size]
    if codec in (SNAPPY, LZ4, ZSTD):
        await codecs.load()
    if codec != PLAIN and len(body) > ASIDE_BYTES:
        return await asyncio.to_thread(_INFLATE[codec], body)
    return _INFLATE[codec](body)


def records(body: memoryview, header: BatchHeader) -> Iterator[Record]:
    """The records of an uncompressed body.

    Raises:
        Corrupt: they are not `header.record_count` whole records.
    """
    at = 0
    try:
        for _ in range(header.record_count):
            begin = at
            size, at = read_varint(body, at)
            end = at + size
            if size < 0 or end > len(body):
                raise Corrupt("a record is cut short")
            timestamp, rest_at = read_varint(body, at + 1)
            offset, at = read_varint(body, rest_at)
            key_size, at = read_varint(body, at)
            key = None if key_size < 0 else bytes(body[at : at + key_size])
            value_size, _ = read_varint(body, at + max(key_size, 0))
            yield Record(
                header.base_offset + offset,
                header.base_timestamp + timestamp,
                key,
                value_size < 0,
                body[begin:end],
                rest_at - begin,
            )
            at = end
    except IndexError as error:
        raise Corrupt("a record is cut short") from error


async def rebuilt(header: BatchHeader, kept: Sequence[Record], delete_horizon_ms: int | None) -> bytes:
    """The batch with only `kept` of its records, which `inflate` has opened; offsets, sequences, timestamps and codec
    stay. None kept makes an empty batch, which covers its offsets all the same. `delete_horizon_ms`: when its
    tombstones may go; None: as before.
    """
    attributes, base_timestamp = header.attributes, header.base_timestamp
    if delete_horizon_ms is None:
        parts: list[Buffer] = [record.raw for record in kept]
    else:
        attributes, base_timestamp = attributes | DELETE_HORIZON, delete_horizon_ms
        parts = [_from_base(record, base_timestamp) for record in kept]
    body = b"".join(parts)
    if kept:
        deflate = _DEFLATE[attributes & CODEC_BITS]
        aside = attributes & CODEC_BITS != PLAIN and len(body) > ASIDE_BYTES
        body = await asyncio.to_thread(deflate, body) if aside else deflate(body)
    else:
        attributes &= ~CODEC_BITS
    newest = max((record.timestamp for record in kept), default=header.max_timestamp)
    fields = header._replace(
        length=HEADER_BYTES - LENGTH_AFTER + len(body),
        crc=0,
        attributes=attributes,
        base_timestamp=base_timestamp,
        max_timestamp=header.max_timestamp if attributes & LOG_APPEND_TIME else newest,
        record_count=len(kept),
    )
    batch = bytearray(HEADER.pack(*fields)) + body
    struct.pack_into(">I", batch, CRC_FROM - 4, crc32c.crc32c(bytes(batch[CRC_FROM:])))
    return bytes(batch)


def _from_base(record: Record, base_timestamp: int) -> bytes:
    """The record's bytes with its timestamp counted from another base."""
    attributes_at = 1
    while record.raw[attributes_at - 1] & 0x80:
        attributes_at += 1
    body = b"".join(
        (
            record.raw[attributes_at : attributes_at + 1],
            varint(record.timestamp - base_timestamp),
            record.raw[record.rest_at :],
        )
    )
    return varint(len(body)) + body


def varint(value: int) -> bytes:
    """A signed varint or varlong: zigzag, seven bits a byte."""
    return uvarint((value << 1) ^ (value >> 63))


def uvarint(value: int) -> bytes:
    """An unsigned varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The signed varint at `at`, and where it ends.

    Raises:
        IndexError: it is cut short. Corrupt: longer than ten bytes.
    """
    zigzag = shift = 0
    while True:
        byte = view[at]
        at += 1
        zigzag |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return (zigzag >> 1) ^ -(zigzag & 1), at
        if shift > 63:
            raise Corrupt("a number in a record is too long")


def _gunzip(body: memoryview) -> memoryview | None:
    inflater = zlib.decompressobj(wbits=31)
    try:
        data = inflater.decompress(body, INFLATED_BYTES_MAX + 1)
    except zlib.error as error:
        raise Corrupt(f"a batch cannot be inflated: {error}") from error
    if len(data) > INFLATED_BYTES_MAX:
        return None
    if not inflater.eof:
        raise Corrupt("a batch's compressed records are cut short")
    return memoryview(data)


def _gzip(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=31)
    return deflater.compress(body) + deflater.flush()


_INFLATE: Mapping[int, Callable[[memoryview], memoryview | None]] = {
    PLAIN: lambda body: body,
    GZIP: _gunzip,
    SNAPPY: lambda body: codecs.inflate_snappy(body, INFLATED_BYTES_MAX),
    LZ4: lambda body: codecs.inflate_lz4(body, INFLATED_BYTES_MAX),
    ZSTD: lambda body: codecs.inflate_zstd(body, INFLATED_BYTES_MAX),
}
_DEFLATE: Mapping[int, Callable[[bytes], bytes]] = {
    PLAIN: lambda body: body,
    GZIP: _gzip,
    SNAPPY: codecs.deflate_snappy,
    LZ4: codecs.deflate_lz4,
    ZSTD: codecs.deflate_zstd,
}
