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

import asyncio
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import crc32c

from dataplane.stream.batch import Buffer
from providers.base.errors import Corrupt
from providers.base.joining import joined

BLOCK_BYTES = 512 << 10
FORMAT = 1
MAGIC = 0x59554E4845535331  # "YUNHESS1"
FOOTER = struct.Struct(">qqqIIQ")
ENTRY = struct.Struct(">qqqqqiIii")
LARGE_BYTES = 8 << 20
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


_IN_ORDER = attrgetter(*(f.name for f in fields(IndexEntry)))


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


class ObjectWriter:
    """An object piece by piece: what `block` returns, in the order of the calls, then what `finish` returns. Calls come
    sorted by (stream, offset)."""

    def __init__(self) -> None:
        self._entries: list[IndexEntry] = []
        self._producers = bytearray()
        self._position = 0

    def block(self, stream: int, start: int, end: int, max_timestamp: int, batches: Sequence[Buffer]) -> bytes:
        """A data block: whole batches that cover offsets [start, end) of `stream`."""
        data = b"".join(batches)
        self.pieces(stream, start, end, max_timestamp, (data,))
        return data

    def pieces(self, stream: int, start: int, end: int, max_timestamp: int, batches: Sequence[Buffer]) -> None:
        """The same, where the caller puts the batches in their place itself."""
        crc = size = 0
        for batch in batches:
            crc, size = crc32c.crc32c(batch, crc), size + len(batch)
        self._entries.append(IndexEntry(stream, start, end, max_timestamp, self._position, size, crc, -1, 0))
        self._position += size

    def producers(self, dumped: Sequence[Any]) -> None:
        """The state of the stream's producers at the end of the block that came last."""
        body = json.dumps(dumped, separators=(",", ":")).encode()
        framed = struct.pack(">I", crc32c.crc32c(body)) + body
        at = len(self._producers)
        self._entries[-1] = replace(self._entries[-1], producers_position=at, producers_size=len(framed))
        self._producers += framed

    def finish(self) -> bytes:
        """Producers, index, footer."""
        index = b"".join(ENTRY.pack(*_IN_ORDER(e)) for e in self._entries)
        at = self._position
        footer = FOOTER.pack(at + len(self._producers), len(index), at, crc32c.crc32c(index), FORMAT, MAGIC)
        return b"".join([self._producers, index, footer])


async def build_aside(sections: Sequence[Section]) -> bytes:
    """The object's bytes, made in a thread if it is large: below that, checksums and a copy take a few milliseconds at
    most, and a thread is not worth it (nor possible under simulated time)."""
    size = sum(len(data) for section in sections for *_, data in section.batches)
    return await asyncio.to_thread(build, sections) if size > LARGE_BYTES else build(sections)


def build(sections: Sequence[Section]) -> bytes:
    """The object's bytes."""
    writer = ObjectWriter()
    parts: list[Buffer] = []
    for section in sorted(sections, key=lambda s: (s.stream, s.start)):
        pending: list[Buffer] = []
        pending_size, start, newest = 0, section.start, -1
        last = len(section.batches) - 1
        for i, (_, end, max_timestamp, data) in enumerate(section.batches):
            pending.append(data)
            pending_size += len(data)
            newest = max(newest, max_timestamp)
            if pending_size >= BLOCK_BYTES or i == last:
                writer.pieces(section.stream, start, end, newest, pending)
                parts += pending
                pending, pending_size, start, newest = [], 0, end, -1
        if section.producers is not None and section.batches:
            writer.producers(section.producers)
    parts.append(writer.finish())
    return joined(parts)


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
