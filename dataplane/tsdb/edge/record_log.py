"""A file of records, each with its length and CRC-32C: the form of an edge's WAL segments and of its manifest.

    u32 length | u32 crc32c(sequence, payload) | u64 sequence | payload

After a power cut the end may be torn, or zeros, or what lay there before. The sequence rises by one, so that bytes of a
file's earlier life never pass for a record that follows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from crc32c import crc32c

from dataplane.tsdb.edge.files import Files
from providers.base.errors import Unavailable, YunheError

HEADER = struct.Struct("<IIQ")
RECORD_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """`end`: offset of the byte after it."""

    sequence: int
    payload: bytes
    end: int


def encode(sequence: int, *pieces: bytes | pa.Buffer) -> bytearray:
    """The bytes of the record whose payload is these pieces: copied once, for a turn's payload is half a megabyte."""
    record = bytearray().join((bytes(HEADER.size), *pieces))
    payload = memoryview(record)[HEADER.size :]
    HEADER.pack_into(record, 0, len(payload), _crc(sequence, payload), sequence)
    return record


def decode(data: bytes, first: int, at: int = 0) -> Iterator[Record]:
    """Records from sequence `first` at offset `at` on, up to the first that is torn, damaged or not the next one."""
    wanted = first
    while at + HEADER.size <= len(data):
        length, crc, sequence = HEADER.unpack_from(data, at)
        end = at + HEADER.size + length
        if sequence != wanted or length > RECORD_BYTES_MAX or end > len(data):
            return
        payload = data[at + HEADER.size : end]
        if _crc(sequence, payload) != crc:
            return
        yield Record(sequence, payload, end)
        at, wanted = end, wanted + 1


def _crc(sequence: int, payload: bytes | memoryview) -> int:
    return int(crc32c(payload, crc32c(sequence.to_bytes(8, "little"))))


class Log:
    """The file that is being appended to. `next`: the next record's sequence; `size`: bytes of whole records."""

    def __init__(self, files: Files, name: str, next_sequence: int, size: int = 0) -> None:
        self._files = files
        self.name = name
        self.next = next_sequence
        self.size = size
        self._synced = next_sequence
        """Records before this one are durable."""
        self._failed: str | None = None

    @classmethod
    def cut(cls, files: Files, name: str, next_sequence: int, size: int = 0) -> Log:
        """The log of a file that ends at `size` from here on, durably, and is made if need be: what lay behind, of a
        torn record or of an earlier life, never comes after a new one.

        Raises:
            Full, Unavailable: as the files.
        """
        files.append(name, size, b"")
        files.truncate(name, size)
        files.sync(name)
        files.sync_names()
        return cls(files, name, next_sequence, size)

    def append(self, *pieces: bytes | pa.Buffer) -> int:
        """Write a record whose payload is these pieces, which `sync` makes durable; its sequence.

        Raises:
            Full: no room; nothing was written. Unavailable: the device errs, now or earlier.
        """
        self._check()
        data = encode(self.next, *pieces)
        try:
            # Of a record that finds no room, what was written is written over by the next, or cut by its CRC.
            self._files.append(self.name, self.size, data)
        except Unavailable as error:
            self.doubt(str(error))
            raise
        self.size += len(data)
        self.next += 1
        return self.next - 1

    def sync(self) -> None:
        """Make all records durable.

        Raises:
            Unavailable: it cannot be known what is. The log takes nothing more: a second sync that succeeds would
                prove nothing of the pages that the first one lost.
        """
        self._check()
        if self._synced == self.next:
            return
        try:
            self._files.sync(self.name)
        except YunheError as error:
            self.doubt(str(error))
            raise Unavailable(f"{self.name} is in doubt: {error}") from error
        self._synced = self.next

    def doubt(self, why: str) -> None:
        """Take nothing more: whoever opens the file anew finds out what is in it."""
        self._failed = why

    @property
    def in_doubt(self) -> str | None:
        """Why it takes nothing more; None: it does."""
        return self._failed

    def _check(self) -> None:
        if self._failed is not None:
            raise Unavailable(f"{self.name} is in doubt since: {self._failed}", hint="open the database anew")


def resumes_at(data: bytes, at: int, after: int) -> tuple[int, int] | None:
    """Offset and sequence of the first whole record behind offset `at` whose sequence is greater than `after`; None:
    there is none, and what lies at `at` is a torn end. Otherwise it is damage, or a hole that a power cut left among
    unsynced pages.
    """
    room = len(data) - HEADER.size
    found = []
    for shift in range(8):
        start = at + shift
        count = (len(data) - start) // 8
        if count > 0:
            words = np.frombuffer(data, "<u8", count, start)
            likely = np.flatnonzero((words > after) & (words <= after + len(data)))
            found += [start + 8 * int(index) - 8 for index in likely]  # the sequence is a header's last eight bytes
    for start in sorted(start for start in found if at <= start <= room):
        length, crc, sequence = HEADER.unpack_from(data, start)
        end = start + HEADER.size + length
        whole = length <= RECORD_BYTES_MAX and end <= len(data)
        if whole and _crc(sequence, data[start + HEADER.size : end]) == crc:
            return start, sequence
    return None
