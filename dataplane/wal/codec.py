"""Bytes of a block, and of the marks that recoverers and lanes leave between blocks.

    header | payloads, one after the other | zeros | index: six fixed arrays, one element a record
    40 B   |                               |       | stream u64, base i64, stream_epoch, count, offset, length u32

The checksum covers everything behind itself, so that a block is whole or not a block. Arrays decode in one call each,
whatever the number of records: with tiny records, reading them one by one was the slowest part of a takeover.
Little-endian throughout. A mark is a header of another kind, whose body names who left it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from crc32c import crc32c

from dataplane.wal.base import Block, WalIdentity, WalRecord
from providers.base.errors import Corrupt, invariant
from providers.base.volumes import BLOCK_BYTES

FORMAT_VERSION = 1
_MAGIC = b"YWB1"
_LEAD = struct.Struct("<4sI")
_REST = struct.Struct("<HHIIQIII")
HEADER_BYTES = _LEAD.size + _REST.size
INDEX_ENTRY_BYTES = 8 + 8 + 4 + 4 + 4 + 4
MARK_BYTES = HEADER_BYTES + 8
"""Every mark has this length, so that an object's end can be looked at without reading the object."""
BLOCK_BYTES_MAX = (1 << 32) - 1


class Kind(IntEnum):
    """What the header is the header of."""

    BLOCK = 0
    LANE_HEADER = 1
    """First bytes of a lane object; `number` is the object's, the body holds the count of lanes."""
    ROLLED = 2
    """Last bytes that the owner appends to a lane object: the lane goes on in the next one."""
    SEAL = 3
    """Last bytes of a lane, appended by a fencer."""
    TOMBSTONE = 4
    """A name taken by a fencer, so that the owner cannot create it."""


class Miss(StrEnum):
    """Why bytes are not the block that was looked for."""

    ABSENT = "not a block"
    TORN = "torn"
    """A block's beginning, whose checksum or length does not hold."""
    FOREIGN = "a block of another epoch, node or number"


@dataclass(frozen=True, slots=True)
class Header:
    """A header as it stands there, checked only for its magic. `length` in bytes, the header's own included. `unacked`:
    how many of the blocks just below were not acked when this one was made: all others were, and have to be there."""

    kind: int
    version: int
    node_id: int
    epoch: int
    number: int
    length: int
    count: int
    unacked: int

    def belongs_to(self, identity: WalIdentity) -> bool:
        return self.node_id == identity.node_id and self.epoch == identity.epoch


def record_bytes(record: WalRecord) -> int:
    """What `record` adds to a block."""
    return len(record.payload) + INDEX_ENTRY_BYTES


def block_length(size: int) -> int:
    """Bytes of a block whose records add `size`: a multiple of BLOCK_BYTES, so that it is written as it is."""
    return -(-(HEADER_BYTES + size) // BLOCK_BYTES) * BLOCK_BYTES


def encode_block(
    buffer: memoryview, identity: WalIdentity, number: int, records: Sequence[WalRecord], *, unacked: int
) -> None:
    """Fill `buffer`, which has the block's length, with the block. Payloads are copied once. What is left over lies
    between payloads and index. `unacked`: how many of the blocks just below `number` are not acked yet."""
    count, length = len(records), len(buffer)
    # A block without records is a probe: it is there to see how long it takes.
    streams, epochs, bases, covered, payloads = zip(*records, strict=True) if records else ((),) * 5
    lengths = list(map(len, payloads))
    offsets: list[int] = []
    at = HEADER_BYTES
    for payload, size in zip(payloads, lengths, strict=True):
        buffer[at : at + size] = payload
        offsets.append(at)
        at += size
    index_at = length - count * INDEX_ENTRY_BYTES
    invariant(at <= index_at and length <= BLOCK_BYTES_MAX, "a block fits its buffer", at=at, length=length)
    buffer[at:index_at] = bytes(index_at - at)
    _index(count).pack_into(buffer, index_at, *streams, *bases, *epochs, *covered, *offsets, *lengths)
    owner = (identity.node_id, identity.epoch)
    _REST.pack_into(buffer, _LEAD.size, FORMAT_VERSION, Kind.BLOCK, *owner, number, length, count, unacked)
    _LEAD.pack_into(buffer, 0, _MAGIC, crc32c(buffer[_LEAD.size :]))


@functools.lru_cache(256)
def _index(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q{count}q{4 * count}I")


def encode_mark(kind: Kind, identity: WalIdentity, number: int, value: int = 0) -> bytes:
    """A mark's bytes. `value` says who left it (a key), or, in a lane header, how many lanes there are."""
    invariant(kind is not Kind.BLOCK, "a block is not a mark")
    rest = _REST.pack(FORMAT_VERSION, kind, identity.node_id, identity.epoch, number, MARK_BYTES, 0, 0)
    covered = rest + struct.pack("<Q", value)
    return _LEAD.pack(_MAGIC, crc32c(covered)) + covered


def peek(data: bytes | memoryview) -> Header | None:
    """The header at the start of `data`, unchecked but for its magic: enough to know how many bytes to read. None: no
    header here."""
    if len(data) < HEADER_BYTES or data[:4] != _MAGIC:
        return None
    version, kind, node_id, epoch, number, length, count, unacked = _REST.unpack_from(data, _LEAD.size)
    return Header(kind, version, node_id, epoch, number, length, count, unacked)


def verify(data: bytes | memoryview) -> Header | Miss:
    """The header at the start of `data` if everything it covers is there and whole; `data` may go on behind it.

    Raises:
        Corrupt: whole, but of a format version that this code does not know: it is not a torn tail, and must not be
        cut.
    """
    header = peek(data)
    if header is None:
        return Miss.ABSENT
    if header.length < HEADER_BYTES or header.length > len(data):
        return Miss.TORN
    [stored] = struct.unpack_from("<I", data, 4)
    if crc32c(memoryview(data)[_LEAD.size : header.length]) != stored:
        return Miss.TORN
    if header.version != FORMAT_VERSION:
        raise Corrupt(
            f"block {header.number} has format version {header.version}, and this code knows {FORMAT_VERSION}",
            hint="recover with the release that wrote it, or a newer one",
        )
    return header


def decode_block(data: bytes | memoryview, identity: WalIdentity, number: int) -> Block | Miss:
    """Block `number` of `identity`'s log, if that is what `data` begins with.

    Raises:
        Corrupt: see `verify`; or a whole block with a senseless index.
    """
    header = verify(data)
    if isinstance(header, Miss):
        return header
    if header.kind != Kind.BLOCK or header.number != number or not header.belongs_to(identity):
        return Miss.FOREIGN
    count = header.count
    at = header.length - count * INDEX_ENTRY_BYTES
    if at < HEADER_BYTES:
        raise Corrupt(f"block {number} is whole but its index is longer than itself", number=number)
    arrays = []
    for code, width in (("Q", 8), ("q", 8), ("I", 4), ("I", 4), ("I", 4), ("I", 4)):
        arrays.append(struct.unpack_from(f"<{count}{code}", data, at))
        at += count * width
    streams, bases, epochs, counts, offsets, lengths = arrays
    view = memoryview(data)
    payloads = [bytes(view[start : start + size]) for start, size in zip(offsets, lengths, strict=True)]
    return Block(number, tuple(map(WalRecord, streams, epochs, bases, counts, payloads)), header.unacked)


def mark_value(data: bytes | memoryview) -> int:
    """The value that `encode_mark` was given; `data` has passed `verify`."""
    [value] = struct.unpack_from("<Q", data, HEADER_BYTES)
    return int(value)


def is_mark(data: bytes | memoryview, kind: Kind, identity: WalIdentity) -> bool:
    """Whether `data` begins with a whole mark of this kind and epoch."""
    header = verify(data)
    return isinstance(header, Header) and header.kind == kind and header.belongs_to(identity)
