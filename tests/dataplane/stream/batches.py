"""Record batches for tests, made and read by aiokafka's codec, which nobody here wrote."""

from __future__ import annotations

from typing import NamedTuple

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder


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


GZIP = 1


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


def batches_of(data: bytes) -> list[DefaultRecordBatch]:
    """Consecutive batches; checksums verified."""
    found: list[DefaultRecordBatch] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "big") + 12
        found.append(DefaultRecordBatch(data[at : at + size]))
        assert found[-1].validate_crc()
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
