"""Record batches for tests, made and read by aiokafka's codec, which nobody here wrote."""

from __future__ import annotations

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


def read_back(data: bytes) -> list[tuple[int, bytes]]:
    """(offset, value) of every record in consecutive batches; checksums verified."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "big") + 12
        one = DefaultRecordBatch(data[at : at + size])
        assert one.validate_crc()
        found += [(record.offset, bytes(record.value)) for record in one]
        at += size
    return found
