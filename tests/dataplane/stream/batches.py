"""Record batches for tests, made and read by aiokafka's codec, which nobody here wrote."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pyarrow as pa
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from crc32c import crc32c


def batch(
    *values: bytes,
    producer: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    timestamp: int = 1_000,
    transactional: bool = False,
) -> bytes:
    """One v2 batch of `values`."""
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), producer, epoch, sequence, 1 << 20)
    for i, value in enumerate(values):
        assert builder.append(i, timestamp + i, None, value, []) is not None
    return bytes(builder.build())


GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
_CODECS = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}
_RECORDS_AT = 61
_XERIAL = b"\x82SNAPPY\x00"


class KeyValue(NamedTuple):
    """A record as a consumer sees it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def keyed(
    *records: tuple[bytes | None, bytes | None],
    timestamp: int = 1_000,
    gzip: bool = False,
    transactional: bool = False,
    producer: int = -1,
    epoch: int = -1,
    sequence: int = -1,
) -> bytes:
    """One v2 batch of (key, value) records."""
    builder = DefaultRecordBatchBuilder(2, GZIP if gzip else 0, transactional, producer, epoch, sequence, 1 << 20)
    for i, (key, value) in enumerate(records):
        assert builder.append(i, timestamp + i, key, value, [("h", b"x")]) is not None
    return bytes(builder.build())


def packed(made: bytes, codec: int) -> bytes:
    """One uncompressed batch, compressed in a form that no broker here writes: LZ4 blocks that depend on each other,
    one raw block of snappy, a zstd frame that does not tell its size."""
    body, name = made[_RECORDS_AT:], _CODECS[codec]
    if codec == SNAPPY:
        return _with_body(made, codec, pa.Codec(name).compress(body, asbytes=True))
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, name) as stream:
        stream.write(body)
    return _with_body(made, codec, sink.getvalue().to_pybytes())


def unpacked(one: bytes) -> bytes:
    """One batch, its records uncompressed, for a reader that lacks the codec."""
    codec, body = one[22] & 7, one[_RECORDS_AT:]
    if codec not in _CODECS or not body:
        return one
    if codec != SNAPPY:
        return _with_body(one, 0, pa.CompressedInputStream(pa.BufferReader(body), _CODECS[codec]).read())
    blocks = [body]
    if body.startswith(_XERIAL):
        blocks, at = [], 16
        while at < len(body):
            [size] = struct.unpack_from(">i", body, at)
            blocks.append(body[at + 4 : at + 4 + size])
            at += 4 + size
    return _with_body(one, 0, b"".join(map(_unsnap, blocks)))


def _unsnap(block: bytes) -> bytes:
    size = shift = at = 0
    while True:
        size |= (block[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not block[at - 1] & 0x80:
            break
    found: bytes = pa.Codec("snappy").decompress(block, decompressed_size=size, asbytes=True)
    return found


def _with_body(one: bytes, codec: int, body: bytes) -> bytes:
    head = bytearray(one[:_RECORDS_AT])
    head[8:12] = (_RECORDS_AT - 12 + len(body)).to_bytes(4, "big")
    head[22] = head[22] & ~7 | codec
    head[17:21] = crc32c(bytes(head[21:]) + body).to_bytes(4, "big")
    return bytes(head) + body


def batches_of(data: bytes) -> list[DefaultRecordBatch]:
    """Consecutive batches; checksums verified."""
    found: list[DefaultRecordBatch] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "big") + 12
        one = DefaultRecordBatch(data[at : at + size])
        assert one.validate_crc()
        found.append(DefaultRecordBatch(unpacked(data[at : at + size])))
        at += size
    return found


def read_keyed(data: bytes) -> list[KeyValue]:
    """Every record in consecutive batches."""
    found = [record for one in batches_of(data) for record in one]
    return [KeyValue(r.offset, r.timestamp, _bytes(r.key), _bytes(r.value)) for r in found]


def _bytes(data: bytes | memoryview | None) -> bytes | None:
    return None if data is None else bytes(data)


def read_back(data: bytes) -> list[tuple[int, bytes]]:
    """(offset, value) of every record in consecutive batches; checksums verified."""
    return [(record.offset, bytes(record.value)) for one in batches_of(data) for record in one]
