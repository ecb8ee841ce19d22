"""The storage's log: records in segment files, many made durable by one sync.

    add ──► written to the page cache at once ──► the syncer: one fdatasync for all that was added meanwhile ──► settled

A record is `magic 4 | meta bytes u32 | data bytes u32 | sequence u64 | synced u64 | crc32c of data u32 | crc32c of all
the above and meta u32 | meta | data`. Sequences have no gaps. `synced` is the last sequence that was known to be
durable when the record was written; it tells damage from a torn tail: whatever lies at or below the greatest `synced`
found must be whole, and only what lies above may be cut off.

Segments are preallocated, so that a full disk is met when a segment is begun and not in the middle of a record. If a
sync fails nothing more is promised: the log is broken, and every later call says so.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import crc32c

from providers.base.errors import Corrupt, Full, Unavailable, invariant
from providers.base.files import sync_folder

SEGMENT_BYTES = 64 << 20
RESERVE_BYTES = 1 << 20
"""The end of a segment, for records that free room: on a full disk too there is room to delete."""
MAGIC = b"YHL1"
_HEAD = struct.Struct("<4sIIQQI")
_U32 = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _U32.size


class File:
    """An open file that closes itself when the last reader is through with it."""

    __slots__ = ("descriptor", "path")

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self.descriptor = -1
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Record:
    """One record as found on the disk; its data begin at byte `at` of segment `segment`, the record itself at
    `begins`."""

    meta: bytes
    sequence: int
    segment: int
    begins: int
    at: int
    data_bytes: int
    data_crc32c: int
    synced: int

    @property
    def ends(self) -> int:
        return self.at + self.data_bytes


class Log:
    """Records in order. Not thread-safe by itself but for `wait`: the storage's lock is around `add`, `drop` and
    `parse`."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self.segments: dict[int, File] = {}
        self.sizes: dict[int, int] = {}
        """Bytes used of each segment, oldest first."""
        self.written = 0
        """Sequence of the last record that was added."""
        self.synced = 0
        """Sequence up to which all is durable."""
        self.on_synced: Callable[[], None] | None = None
        """Called in the syncer's thread after each sync, and when the log breaks."""
        self.broken: OSError | None = None
        self.last = (0, 0)
        """Segment and byte where the data of the last record begin."""
        self._current = 0  # none: the first record after opening begins a segment
        self._newest = 0
        self._dirty: dict[int, File] = {}
        self._dirty_folders: set[Path] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._syncer = threading.Thread(target=self._sync_for_ever, name="sync", daemon=True)

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def replay(self) -> Iterator[Record]:
        """Every record in order, a torn tail cut off first. To be read to its end before anything else.

        Raises:
            Corrupt: a record that was durable is damaged or gone. (That its data are damaged is found when they are
                read.)
        """
        numbers = sorted(int(path.stem) for path in self._folder.glob("*.seg"))
        for number in numbers:
            self.segments[number] = File(self._path(number), os.O_RDWR)
        self._cut_torn_tail(numbers)
        for number in sorted(self.segments):
            yield from self.parse(number)
        self.synced = self.written
        self._newest = max(self.segments, default=0)
        sync_folder(self._folder)
        self._syncer.start()

    def parse(self, number: int) -> Iterator[Record]:
        """The records of one segment, their data unchecked."""
        raw = os.pread(self.segments[number].descriptor, self.sizes[number], 0)
        at = 0
        while (record := _record(raw, at, number)) is not None:
            yield record
            at = record.ends

    def _cut_torn_tail(self, numbers: list[int]) -> None:
        expected: int | None = None
        synced = 0
        torn: tuple[int, int, int] | None = None  # sequence, segment, place: above what is known to be durable
        for number in numbers:
            raw = self.segments[number].path.read_bytes()
            at = 0
            while (record := _record(raw, at, number)) is not None and expected in (None, record.sequence):
                expected = record.sequence + 1
                synced = max(synced, record.synced)
                whole = crc32c.crc32c(memoryview(raw)[record.at : record.ends]) == record.data_crc32c
                if torn is not None and torn[0] <= synced:
                    torn = None  # durable, so this is damage: it is found when somebody reads it
                if not whole and torn is None and record.sequence > synced:
                    torn = (record.sequence, number, at)
                at = record.ends
            self.sizes[number] = at
            if raw.count(b"\0", at) != len(raw) - at:
                # Not the preallocated rest: the chain of records breaks here.
                beyond = [raw[at:], *(self.segments[n].path.read_bytes() for n in numbers if n > number)]
                synced = max([synced, *(_newest_synced(rest) for rest in beyond)])
                if expected is None or synced >= expected:
                    raise Corrupt(
                        f"{self._path(number)} is damaged at byte {at}: a record that was durable is not whole",
                        hint="restore the state directory from a copy, or begin with an empty one",
                    )
                if torn is None or torn[0] <= synced:
                    torn = (expected, number, at)
                break
        if torn is not None and torn[0] > synced:
            sequence, number, at = torn
            self.sizes[number] = at
            self.written = sequence - 1
            for later in [n for n in numbers if n > number]:
                self.sizes.setdefault(later, 0)
                self.drop(later)
        elif expected is not None:
            self.written = expected - 1
        for number, file in list(self.segments.items()):
            os.ftruncate(file.descriptor, self.sizes[number])
            os.fsync(file.descriptor)
            if self.sizes[number] == 0:
                self.drop(number)

    # ── adding ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, meta: bytes, data: bytes | memoryview = b"", *, data_crc32c: int = 0, frees: bool = False) -> int:
        """Add a record; its sequence. It is durable once `synced` has reached that. Where its data went: `last`.

        `frees`: the record gives room back, so it may use the room kept for that.

        Raises:
            Full: no room on the disk; nothing was changed.
            Unavailable: the log is broken.
        """
        if self.broken is not None:
            raise _broken(self.broken)
        size = HEAD_BYTES + len(meta) + len(data)
        limit = self._segment_bytes - (0 if frees else RESERVE_BYTES)
        if not self._current or self.sizes[self._current] + size > limit:
            self._begin_segment(size)
        number = self._current
        file, at = self.segments[number], self.sizes[number]
        head = _HEAD.pack(MAGIC, len(meta), len(data), self.written + 1, self.synced, data_crc32c)
        check = crc32c.crc32c(meta, crc32c.crc32c(head))
        try:
            pieces: list[bytes | memoryview] = [head, _U32.pack(check), meta, data]
            if os.pwritev(file.descriptor, pieces, at) != size:
                raise OSError(errno.ENOSPC, "the record was cut short")
        except OSError as error:
            raise Full(f"the log could not be written: {error.strerror}") from error
        self.last = (number, at + size - len(data))
        with self._changed:
            self.sizes[number] = at + size
            self.written += 1
            self._dirty[number] = file
            self._changed.notify_all()
        return self.written

    def new_name_in(self, folder: Path) -> None:
        """The next sync makes the names in `folder` durable too."""
        with self._changed:
            self._dirty_folders.add(folder)

    def _begin_segment(self, size: int) -> None:
        number = self._newest + 1
        path = self._path(number)
        try:
            file = File(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                os.posix_fallocate(file.descriptor, 0, max(self._segment_bytes, size))
            except OSError:
                path.unlink()
                raise
        except OSError as error:
            raise Full(f"no room for another segment of the log: {error.strerror}") from error
        if self._current:
            os.ftruncate(self.segments[self._current].descriptor, self.sizes[self._current])
        self.segments[number], self.sizes[number] = file, 0
        self._current = self._newest = number
        self.new_name_in(self._folder)

    def drop(self, number: int) -> None:
        """Remove the oldest segment: nothing in it counts any more, and what replaces it is durable."""
        invariant(number != self._current, "a segment that is written to stays", number=number)
        self.segments.pop(number).path.unlink()
        self.sizes.pop(number)

    @property
    def sealed(self) -> list[int]:
        """Segments that nothing is added to, oldest first."""
        return [number for number in self.segments if number != self._current]

    # ── durability ──────────────────────────────────────────────────────────────────────────────────────────────────

    def wait(self, sequence: int) -> None:
        """Block until all up to `sequence` is durable.

        Raises:
            Unavailable: the log broke; what was added since the last sync may or may not be there after a restart.
        """
        if self.synced >= sequence:
            return
        with self._changed:
            self._changed.wait_for(lambda: self.synced >= sequence or self.broken is not None)
        if self.synced < sequence and self.broken is not None:
            raise _broken(self.broken)

    def _sync_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.written > self.synced or self._closing)
                if self.written == self.synced:
                    return
                upto, dirty, folders = self.written, self._dirty, self._dirty_folders
                self._dirty, self._dirty_folders = {}, set()
            try:
                for folder in folders:
                    sync_folder(folder)
                for _, file in sorted(dirty.items()):
                    os.fdatasync(file.descriptor)
            except OSError as error:
                # After a failed sync the page cache says nothing about the disk any more.
                with self._changed:
                    self.broken = error
                    self._changed.notify_all()
                self._tell()
                return
            with self._changed:
                self.synced = upto
                self._changed.notify_all()
            self._tell()

    def _tell(self) -> None:
        if self.on_synced is not None:
            self.on_synced()

    def close(self) -> None:
        """Sync what is there and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._syncer.ident is not None:
            self._syncer.join()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:010}.seg"


def _broken(error: OSError) -> Unavailable:
    return Unavailable(
        f"the disk failed: {error.strerror}", hint="look at the disk, then start the server again: it reads its log"
    )


def _record(raw: bytes, at: int, segment: int) -> Record | None:
    """The record at `at`, its head and meta checked; None when there is none."""
    if at + HEAD_BYTES > len(raw) or raw[at : at + 4] != MAGIC:
        return None
    _, meta_bytes, data_bytes, sequence, synced, data_crc32c = _HEAD.unpack_from(raw, at)
    begins = at + HEAD_BYTES
    data_at = begins + meta_bytes
    if data_at + data_bytes > len(raw):
        return None
    meta = raw[begins:data_at]
    if _U32.unpack_from(raw, at + _HEAD.size)[0] != crc32c.crc32c(meta, crc32c.crc32c(raw[at : at + _HEAD.size])):
        return None
    return Record(meta, sequence, segment, at, data_at, data_bytes, data_crc32c, synced)


def _newest_synced(raw: bytes) -> int:
    """The greatest `synced` that any whole record in `raw` tells of."""
    newest = 0
    at = raw.find(MAGIC)
    while at >= 0:
        record = _record(raw, at, 0)
        if record is not None:
            newest = max(newest, record.synced)
        at = raw.find(MAGIC, at + 1)
    return newest
