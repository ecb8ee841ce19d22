"""Large payloads, each in a file of its own: written while they arrive, counted by who refers to them.

A file is there before the log's record that refers to it, so that a crash leaves at most files without referrer, which
opening removes. It is removed when its last referrer is durably gone and no reader holds it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

import crc32c

from providers.base.errors import Corrupt, Full
from providers.lab.storage_crc import Sums
from providers.lab.storage_log import File

BLOCK_BYTES = 256 << 10
"""Each block of a payload has its own checksum, so that a range read checks just what it touches. A payload of one
block lies inside the log, one sync for many; a larger one has a file of its own."""

SYNC_BYTES = 16 << 20
"""What a spool leaves to the page cache before it syncs: the disk works while bytes arrive."""

OPEN_FILES_MAX = 128

Extent = tuple[int, int, int, "array[int]"]
"""File (positive: a log segment; negative: minus the number of a file here), first byte in it, bytes, and the crc32c of
each block of BLOCK_BYTES."""


class DataFiles:
    """The folder of large payloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._referrers: dict[int, int] = {}
        self._open: OrderedDict[int, File] = OrderedDict()
        self._newest = max((int(path.stem) for path in folder.glob("*.data")), default=0)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:016}.data"

    def create(self, size: int) -> tuple[int, File]:
        """A new file with room for `size` bytes, with one referrer: whoever made it.

        Raises:
            Full
        """
        with self._lock:
            self._newest += 1
            number = self._newest
            self._referrers[number] = 1
        path = self.path(number)
        try:
            file = File(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            if size:
                os.posix_fallocate(file.descriptor, 0, size)
        except OSError as error:
            self.release([number])
            raise Full(f"no room for {size} bytes: {error.strerror}") from error
        return number, file

    def hold(self, numbers: Collection[int]) -> None:
        """Count a referrer or a reader of each."""
        with self._lock:
            for number in numbers:
                self._referrers[number] = self._referrers.get(number, 0) + 1

    def recount(self, taken: Collection[int], freed: Collection[int]) -> None:
        """Count referrers while the log is read; nothing is removed before `sweep`."""
        for number in taken:
            self._referrers[number] = self._referrers.get(number, 0) + 1
        for number in freed:
            self._referrers[number] -= 1
            if self._referrers[number] == 0:
                del self._referrers[number]

    def release(self, numbers: Collection[int]) -> None:
        """Count one less; a file that nobody needs is removed."""
        gone = []
        with self._lock:
            for number in numbers:
                left = self._referrers.get(number, 0) - 1
                if left > 0:
                    self._referrers[number] = left
                else:
                    self._referrers.pop(number, None)
                    self._open.pop(number, None)
                    gone.append(number)
        for number in gone:
            self.path(number).unlink(missing_ok=True)

    def open(self, number: int) -> File:
        """
        Raises:
            Corrupt: the file is not there.
        """
        with self._lock:
            found = self._open.get(number)
            if found is not None:
                self._open.move_to_end(number)
                return found
        try:
            file = File(self.path(number), os.O_RDONLY)
        except FileNotFoundError as error:
            raise Corrupt(f"{self.path(number)} is gone") from error
        with self._lock:
            self._open[number] = file
            if len(self._open) > OPEN_FILES_MAX:
                self._open.popitem(last=False)
        return file

    def sweep(self) -> None:
        """Remove what nobody refers to: the rest of uploads that a crash cut off."""
        for path in self.folder.iterdir():
            if not path.stem.isdigit() or int(path.stem) not in self._referrers:
                path.unlink()


class Spool:
    """A payload on its way into a file. One thread at a time; `write` and `finish` block on the disk."""

    def __init__(self, files: DataFiles, size: int, digests: Collection[str] = ()) -> None:
        """`size`: bytes to reserve, 0 when nobody knows. `digests`: names of hashlib's to compute on the way.

        Raises:
            Full
        """
        self.files = files
        self.file: File
        self.number, self.file = files.create(size)
        self._reserved = size
        self.size = 0
        self.sums = Sums()
        self.blocks = array("I")
        self._block = 0
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in digests}
        self._unsynced = 0

    def write(self, data: memoryview | bytes) -> None:
        """
        Raises:
            Full: and the spool is of no more use but to be abandoned.
        """
        view = memoryview(data)
        try:
            at = 0
            while at < len(view):
                at += os.pwrite(self.file.descriptor, view[at:], self.size + at)
            self._unsynced += len(view)
            if self._unsynced >= SYNC_BYTES:
                os.fdatasync(self.file.descriptor)
                self._unsynced = 0
        except OSError as error:
            raise Full(f"{self.size} bytes of a payload were written, then: {error.strerror}") from error
        self.sums = Sums.of(view, self.sums)
        for digest in self._digests.values():
            digest.update(view)
        at, filled = 0, self.size % BLOCK_BYTES
        while at < len(view):
            piece = view[at : at + BLOCK_BYTES - filled]
            self._block = crc32c.crc32c(piece, self._block)
            at, filled = at + len(piece), filled + len(piece)
            if filled == BLOCK_BYTES:
                self.blocks.append(self._block)
                self._block = filled = 0
        self.size += len(view)

    def finish(self) -> dict[str, bytes]:
        """Sync; the digests that were asked for. The bytes are durable then, the file's name is not yet.

        Raises:
            Full
        """
        if self.size % BLOCK_BYTES:
            self.blocks.append(self._block)
        try:
            if self.size != self._reserved:
                os.ftruncate(self.file.descriptor, self.size)
            os.fdatasync(self.file.descriptor)
        except OSError as error:
            raise Full(f"{self.size} bytes of a payload could not be made durable: {error.strerror}") from error
        return {name: digest.digest() for name, digest in self._digests.items()}

    @property
    def extent(self) -> Extent:
        return (-self.number, 0, self.size, self.blocks)

    def read(self, start: int, length: int) -> bytes:
        """What was written, once more."""
        return _read(self.file, start, length)

    def abandon(self) -> None:
        """Give up the maker's reference: the file goes unless somebody else refers to it."""
        if self.number:
            self.files.release([self.number])
            self.number = 0


class SpoolPart:
    """A part of a finished spool as a payload of its own, in the same file: its bytes are read once more for their
    checksums, and not written again."""

    def __init__(self, whole: Spool | SpoolPart, start: int, size: int) -> None:
        self.number = 0
        self.files: DataFiles = whole.files
        self.file: File = whole.file
        self._start: int = start + (whole._start if isinstance(whole, SpoolPart) else 0)
        self.size = size
        self.sums = Sums()
        self.blocks = array("I")
        for at in range(0, size, BLOCK_BYTES):
            block = self.read(at, min(BLOCK_BYTES, size - at))
            self.sums = Sums.of(block, self.sums)
            self.blocks.append(crc32c.crc32c(block))
        self.number = whole.number
        self.files.hold([self.number])

    def finish(self) -> dict[str, bytes]:
        return {}

    @property
    def extent(self) -> Extent:
        return (-self.number, self._start, self.size, self.blocks)

    def read(self, start: int, length: int) -> bytes:
        return _read(self.file, self._start + start, length)

    def abandon(self) -> None:
        if self.number:
            self.files.release([self.number])
            self.number = 0

    def __del__(self) -> None:
        self.abandon()


def _read(file: File, start: int, length: int) -> bytes:
    pieces = []
    while length > 0 and (piece := os.pread(file.descriptor, min(length, 1 << 20), start)):
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
