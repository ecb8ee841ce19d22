"""Kafka's record batch, format v2, as far as a broker looks into it: the header. Records stay opaque.

Layout (Kafka protocol guide, "Record Batch"), big-endian: base_offset i64, length i32 (of what follows), leader_epoch
i32, magic i8, crc u32 (crc32c of all that follows it), attributes i16,
last_offset_delta i32, base_timestamp i64, max_timestamp i64, producer_id i64, producer_epoch i16, base_sequence i32,
record_count i32, records. Base offset and leader epoch are outside
the checksum, so that the broker can set them without touching the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import crc32c

from providers.base.errors import Corrupt

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES = HEADER.size
_BASE_OFFSET = struct.Struct(">q")
_LEADER_EPOCH = struct.Struct(">i")
LENGTH_AFTER = 12
"""Bytes of base_offset and length, which `length` does not count."""
CRC_FROM = 21
"""The checksum covers everything from the attributes on."""


CONTROL, TRANSACTIONAL = 0x20, 0x10
"""Attributes: a marker rather than records; part of a transaction."""

Buffer = bytes | bytearray | memoryview
"""A batch's bytes. A broker keeps those of a large one where the socket put them."""


class BatchHeader(NamedTuple):
    """A batch's header. `length` is as on the wire: the batch's size less 12."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return self.length + LENGTH_AFTER


_made = tuple.__new__
"""As `BatchHeader._make`, for a tuple that the struct gave its length."""


def parse_header(buf: Buffer, at: int = 0) -> BatchHeader:
    """Decode the header at `at`; nothing is verified but that it is there.

    Raises:
        Corrupt: too short, or not format v2.
    """
    if len(buf) - at < HEADER_BYTES:
        raise Corrupt("a record batch is shorter than its header")
    header = _made(BatchHeader, HEADER.unpack_from(buf, at))
    if header.magic != 2:
        raise Corrupt(f"a record batch of format {header.magic}, not 2")
    return header


def verify(batch: Buffer, header: BatchHeader) -> None:
    """Check that `batch`, whose header is `header`, is exactly one whole batch whose checksum and counts hold.

    Raises:
        Corrupt: it is not.
    """
    if header.length + LENGTH_AFTER != len(batch):
        raise Corrupt(f"a record batch of {len(batch)} bytes says that it has {header.size}")
    if crc32c.crc32c(memoryview(batch)[CRC_FROM:]) != header.crc:
        raise Corrupt("a record batch fails its checksum")
    if header.record_count < 1 or header.last_offset_delta != header.record_count - 1:
        raise Corrupt(f"a record batch of {header.record_count} records ends at offset +{header.last_offset_delta}")


def patch(batch: bytearray | memoryview, base_offset: int, leader_epoch: int) -> None:
    """Set the batch's offset and leader epoch where it lies: the checksum stays."""
    _BASE_OFFSET.pack_into(batch, 0, base_offset)
    _LEADER_EPOCH.pack_into(batch, 12, leader_epoch)


def iter_batches(buf: Buffer) -> Iterator[tuple[BatchHeader, memoryview]]:
    """The whole batches in `buf`, with their bytes.

    Raises:
        Corrupt: what follows is not a batch, or is cut short.
    """
    view, at = memoryview(buf), 0
    while at < len(view):
        header = parse_header(view, at)
        if header.length < HEADER_BYTES - LENGTH_AFTER or at + header.size > len(view):
            raise Corrupt("a record batch is cut short")
        yield header, view[at : at + header.size]
        at += header.size
