"""The stream-set object: batches of many streams, written once, read by ranges.

    ┌─────────────┬─────────────┬── … ──┬──────────────────────────┬──────────┬────────┐
    │ data block  │ data block  │       │ producers (JSON, a stream) │ index    │ footer │
    └─────────────┴─────────────┴── … ──┴──────────────────────────┴──────────┴────────┘

Data blocks hold whole record batches of one stream in offset order, up to about BLOCK_BYTES; blocks are sorted by
(stream, offset). Index entries, big-endian, 56 bytes:
stream i64, start i64, end i64, max_timestamp i64, position i64, size i32, crc32c u32, producers_position i32 relative
to the producers section (-1: none) , producers_size i32.
Footer, 40 bytes: index_position i64, index_size i64, producers_position i64, crc32c of the index u32, format u32, magic
u64. Every byte read is covered by a checksum before it is used;
the shape is AutoMQ's stream-set object (blocks, index, footer at the end), the fields are our own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import crc32c

from dataplane.stream.batch import Buffer
from providers.base.errors import Corrupt

BLOCK_BYTES = 512 << 10
FORMAT = 1
MAGIC = 0x59554E4845535331  # "YUNHESS1"
FOOTER = struct.Struct(">qqqIIQ")
ENTRY = struct.Struct(">qqqqqiIii")
TAIL_BYTES = 64 << 10
"""How much of the end is read to find the index: enough for about a thousand blocks."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One data block: offsets [start, end) of `stream`."""

    stream: int
    start: int
    end: int
    max_timestamp: int
    position: int
    size: int
    crc: int
    producers_position: int
    producers_size: int


@dataclass(frozen=True, slots=True)
class Section:
    """What one stream contributes: consecutive batches, and the producers' state at its end where it is known."""

    stream: int
    start: int
    end: int
    batches: Sequence[tuple[int, int, int, Buffer]]
    """(base, end, max_timestamp, data)"""
    producers: Any
    """`ProducerTable.dump`, None where it is not known."""


def build(sections: Sequence[Section]) -> bytes:
    """The object's bytes."""
    parts: list[bytes] = []
    entries: list[IndexEntry] = []
    producers = bytearray()
    position = 0
    for section in sorted(sections, key=lambda s: (s.stream, s.start)):
        first_of_section = len(entries)
        pending: list[Buffer] = []
        pending_size, start, newest = 0, section.start, -1
        last = len(section.batches) - 1
        for i, (_, end, max_timestamp, data) in enumerate(section.batches):
            pending.append(data)
            pending_size += len(data)
            newest = max(newest, max_timestamp)
            if pending_size >= BLOCK_BYTES or i == last:
                block = b"".join(pending)
                entries.append(
                    IndexEntry(section.stream, start, end, newest, position, len(block), crc32c.crc32c(block), -1, 0)
                )
                parts.append(block)
                position += len(block)
                pending, pending_size, start, newest = [], 0, end, -1
        if section.producers is not None and len(entries) > first_of_section:
            dumped = json.dumps(section.producers, separators=(",", ":")).encode()
            framed = struct.pack(">I", crc32c.crc32c(dumped)) + dumped
            entries[-1] = _with_producers(entries[-1], len(producers), len(framed))
            producers += framed
    index = b"".join(
        ENTRY.pack(
            e.stream,
            e.start,
            e.end,
            e.max_timestamp,
            e.position,
            e.size,
            e.crc,
            e.producers_position,
            e.producers_size,
        )
        for e in entries
    )
    footer = FOOTER.pack(position + len(producers), len(index), position, crc32c.crc32c(index), FORMAT, MAGIC)
    return b"".join([*parts, bytes(producers), index, footer])


def _with_producers(entry: IndexEntry, position: int, size: int) -> IndexEntry:
    return IndexEntry(
        entry.stream,
        entry.start,
        entry.end,
        entry.max_timestamp,
        entry.position,
        entry.size,
        entry.crc,
        position,
        size,
    )


@dataclass(frozen=True, slots=True)
class Index:
    """A decoded index. `producers_at`: position of the producers section in the object."""

    entries: tuple[IndexEntry, ...]
    producers_at: int

    def blocks_of(self, stream: int, start: int, end: int) -> list[IndexEntry]:
        """Blocks that overlap [start, end) of `stream`, in order."""
        return [e for e in self.entries if e.stream == stream and e.start < end and e.end > start]


@dataclass(frozen=True, slots=True)
class IndexPlace:
    """Where an object's index is, as its footer says."""

    position: int
    size: int
    producers_at: int
    crc: int


def parse_footer(tail: bytes, object_size: int) -> IndexPlace:
    """Read the footer from the object's last bytes.

    Raises:
        Corrupt: not a stream-set object, or a footer that contradicts the size.
    """
    if len(tail) < FOOTER.size:
        raise Corrupt("a stream-set object is shorter than its footer")
    position, size, producers_at, crc, fmt, magic = FOOTER.unpack_from(tail, len(tail) - FOOTER.size)
    if magic != MAGIC or fmt != FORMAT:
        raise Corrupt("not a stream-set object of a format known here")
    if (
        not 0 <= producers_at <= position
        or size < 0
        or position + size + FOOTER.size != object_size
        or size % ENTRY.size
    ):
        raise Corrupt("a stream-set object's footer contradicts its size")
    return IndexPlace(position, size, producers_at, crc)


def parse_index(data: bytes, place: IndexPlace) -> Index:
    """Decode the index.

    Raises:
        Corrupt: its checksum does not hold.
    """
    if len(data) != place.size or crc32c.crc32c(data) != place.crc:
        raise Corrupt("a stream-set object's index fails its checksum")
    return Index(tuple(IndexEntry(*fields) for fields in ENTRY.iter_unpack(data)), place.producers_at)


def check_block(entry: IndexEntry, data: bytes) -> bytes:
    """The block's bytes once they are known to be right.

    Raises:
        Corrupt: too short, or its checksum does not hold.
    """
    if len(data) != entry.size or crc32c.crc32c(data) != entry.crc:
        raise Corrupt(f"stream {entry.stream} offsets [{entry.start}, {entry.end}): a data block fails its checksum")
    return data


def parse_producers(framed: bytes) -> Any:
    """Decode one stream's producers.

    Raises:
        Corrupt: its checksum does not hold.
    """
    if len(framed) < 4 or struct.unpack_from(">I", framed)[0] != crc32c.crc32c(framed[4:]):
        raise Corrupt("a stream-set object's producers fail their checksum")
    return json.loads(framed[4:])
