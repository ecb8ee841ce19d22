"""Blocks of objects in files of a local folder, within a bound. Blocking, and for one thread at a time.

    oldest ─► 00000007.blocks  00000008.blocks … 00000021.blocks ◄─ written to
              evicted whole; blocks that were read since are written again at the end (a clock)

A record is header, object name, data. Headers carry a checksum, so that a process finds what an earlier one left; data
is checked by whoever reads it, against the object's own index. So nothing here is made durable: a torn or damaged
record is a miss.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import crc32c

Key = tuple[str, int]
"""An object's name, and where in it the block begins."""

SEGMENTS_MAX = 32
"""A folder's files: what is evicted at once is one of them."""
SEGMENT_BYTES_MIN = 64 << 10
SEGMENT_BLOCKS_MAX = 6_000
"""Blocks in one file, at about 300 bytes of memory each: 100 GiB of large ones in all."""
NAME_BYTES_MAX = 1_024

_MAGIC = b"YHB1"
_LEAD = struct.Struct("<4sI")
_REST = struct.Struct("<QIH")
_HEADER_BYTES = _LEAD.size + _REST.size
_FILE = re.compile(r"(\d{8})\.blocks")


@dataclass(slots=True)
class _Segment:
    number: int
    fd: int
    size: int = 0
    keys: list[Key] = field(default_factory=list)


@dataclass(slots=True)
class _Place:
    segment: _Segment
    offset: int
    size: int
    read: bool = False
    """Since it was written here."""


class Segments:
    """See the module. All may raise OSError: the folder is of no use then."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self.segment_bytes = max(SEGMENT_BYTES_MIN, bytes_max // SEGMENTS_MAX)
        self.bytes_held = 0
        """Of all files."""
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._active: _Segment | None = None  # written to: an earlier process's files are only read
        self._index: dict[Key, _Place] = {}
        self._lock: int | None = None

    def __contains__(self, key: Key) -> bool:
        return key in self._index

    def open(self) -> int:
        """Find what an earlier process left; how many blocks that is. The folder is this process's until `close`.

        Raises:
            OSError: also when another process has the folder.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        numbers = sorted(int(match[1]) for path in self._folder.iterdir() if (match := _FILE.fullmatch(path.name)))
        for number in numbers:
            self._read(number)
        while self._segments and self._too_much(0):
            self._remove(next(iter(self._segments.values())))
        return len(self._index)

    def get(self, key: Key, size: int) -> bytes | None:
        """The block's bytes, unchecked; None: not there."""
        place = self._index.get(key)
        if place is None:
            return None
        data = os.pread(place.segment.fd, size, place.offset) if place.size == size else b""
        if len(data) != size:
            self.drop(key)
            return None
        place.read = True
        return data

    def put(self, key: Key, data: bytes) -> None:
        """Keep a block; the oldest ones go where there is no room."""
        size = _HEADER_BYTES + len(key[0].encode()) + len(data)
        if key in self._index or size > self.segment_bytes or len(key[0].encode()) > NAME_BYTES_MAX:
            return
        segment = self._active
        if segment is None or self._is_full(segment, size, self.segment_bytes, SEGMENT_BLOCKS_MAX):
            segment = self._roll()
            if segment.size + size > self.segment_bytes:
                return  # what was kept of the oldest leaves no room for one so large
        self._write(segment, key, data)

    def drop(self, key: Key) -> None:
        """Forget one block: it is damaged."""
        self._index.pop(key, None)

    def forget(self, names: Collection[str]) -> None:
        """Forget the blocks of these objects; their room is used again when their files are evicted."""
        for key in [key for key in self._index if key[0] in names]:
            del self._index[key]

    def clear(self) -> None:
        """Remove all files."""
        self._active = None
        for segment in list(self._segments.values()):
            self._remove(segment)

    def close(self) -> None:
        """Leave the files for the next process."""
        self._index.clear()
        for segment in self._segments.values():
            os.close(segment.fd)
        self._segments.clear()
        self._active, self.bytes_held = None, 0
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}.blocks"

    def _read(self, number: int) -> None:
        """Take in a file of an earlier process, up to its first record that is not whole."""
        fd = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        segment = self._segments[number] = _Segment(number, fd, os.fstat(fd).st_size)
        self.bytes_held += segment.size
        at = 0
        while len(segment.keys) < SEGMENT_BLOCKS_MAX and (found := _record(fd, at)) is not None:
            key, offset, size = found
            if offset + size > segment.size:
                break
            self._index[key] = _Place(segment, offset, size)
            segment.keys.append(key)
            at = offset + size
        if not segment.keys:
            self._remove(segment)

    def _roll(self) -> _Segment:
        """A new file to write to, and room for it."""
        number = max(self._segments, default=0) + 1
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        new = _Segment(number, os.open(self._path(number), flags, 0o600))
        self._segments[number] = self._active = new
        # What goes may be written again first: for so long both are there, and together within the bound.
        while len(self._segments) > 1 and self._too_much(new.size):
            oldest = next(iter(self._segments.values()))
            self._keep(oldest, new)
            self._remove(oldest)
        return new

    def _too_much(self, new_bytes: int) -> bool:
        """Whether a file has to go before another is filled, of which there are `new_bytes` already."""
        held = self.bytes_held - new_bytes + 2 * self.segment_bytes
        return held > self._bytes_max or len(self._segments) > SEGMENTS_MAX

    def _is_full(self, segment: _Segment, size: int, bytes_max: int, blocks_max: int) -> bool:
        return segment.size + size > bytes_max or len(segment.keys) >= blocks_max

    def _keep(self, oldest: _Segment, new: _Segment) -> None:
        """Write again what was read since it was written, as long as half of the new file is left to new blocks."""
        for key in oldest.keys:
            place = self._index.get(key)
            if place is None or place.segment is not oldest or not place.read:
                continue
            size = _HEADER_BYTES + len(key[0].encode()) + place.size
            if self._is_full(new, size, self.segment_bytes // 2, SEGMENT_BLOCKS_MAX // 2):
                return
            data = os.pread(oldest.fd, place.size, place.offset)
            if len(data) == place.size:
                self._write(new, key, data)

    def _write(self, segment: _Segment, key: Key, data: bytes) -> None:
        name = key[0].encode()
        rest = _REST.pack(key[1], len(data), len(name))
        head = _LEAD.pack(_MAGIC, crc32c.crc32c(rest + name)) + rest + name
        written = os.pwritev(segment.fd, [head, data], segment.size)
        if written != len(head) + len(data):
            self.bytes_held += written
            segment.size += written
            raise OSError(errno.ENOSPC, "written in part")
        self._index[key] = _Place(segment, segment.size + len(head), len(data))
        segment.keys.append(key)
        segment.size += written
        self.bytes_held += written

    def _remove(self, segment: _Segment) -> None:
        for key in segment.keys:
            place = self._index.get(key)
            if place is not None and place.segment is segment:
                del self._index[key]
        del self._segments[segment.number]
        self.bytes_held -= segment.size
        os.close(segment.fd)
        with contextlib.suppress(FileNotFoundError):
            self._path(segment.number).unlink()


def _record(fd: int, at: int) -> tuple[Key, int, int] | None:
    """Key, offset and size of the data of the record that begins at `at`; None where there is no whole header."""
    head = os.pread(fd, _HEADER_BYTES + NAME_BYTES_MAX, at)
    if len(head) < _HEADER_BYTES:
        return None
    magic, crc = _LEAD.unpack_from(head)
    position, size, name_bytes = _REST.unpack_from(head, _LEAD.size)
    covered = head[_LEAD.size : _HEADER_BYTES + name_bytes]
    if magic != _MAGIC or len(covered) != _REST.size + name_bytes or crc32c.crc32c(covered) != crc:
        return None
    try:
        name = covered[_REST.size :].decode()
    except UnicodeDecodeError:
        return None
    return (name, position), at + _HEADER_BYTES + name_bytes, size
