"""Bytes of a bucket's files on a local disk, within a bound.

Which ranges of which file are there is known in memory only: a process begins with nothing, and what an earlier one
left is removed. So nothing here is ever made durable, and losing it costs requests. What it returns may have been
damaged on the disk: whoever reads checks, and says `drop`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)
_SUFFIX = ".cached"


@dataclass(slots=True)
class _Entry:
    ranges: list[tuple[int, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(end - start for start, end in self.ranges)


class DiskCache:
    """See the module. For several threads; calls block as long as the disk does."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*{_SUFFIX}"):
            left.unlink(missing_ok=True)
        self._folder = folder
        self._bytes_max = bytes_max
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, name: str, start: int, length: int) -> bytes | None:
        """The bytes, or None."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or not any(s <= start and start + length <= e for s, e in entry.ranges):
                return None
            self._entries.move_to_end(name)
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(fd, length, start)
            finally:
                os.close(fd)
        except OSError:
            data = b""
        if len(data) == length:
            return data
        self.drop(name)
        return None

    def put(self, name: str, start: int, data: bytes) -> None:
        """Keep the bytes, if there is room for them; a disk that is full or errs keeps nothing."""
        end = start + len(data)
        if not data or len(data) > self._bytes_max:
            return
        try:
            fd = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                written = os.pwrite(fd, data, start)
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("cache-not-written: %s", error)
            self.drop(name)
            return
        if written != len(data):
            self.drop(name)
            return
        with self._lock:
            entry = self._entries.setdefault(name, _Entry())
            self._entries.move_to_end(name)
            self.bytes -= entry.bytes
            entry.ranges = _with(entry.ranges, start, end)
            self.bytes += entry.bytes
            while self.bytes > self._bytes_max:
                self._drop(next(iter(self._entries)))

    def drop(self, name: str) -> None:
        """Forget what is there of a file."""
        with self._lock:
            self._drop(name)

    def _drop(self, name: str) -> None:
        gone = self._entries.pop(name, None)
        if gone is not None:
            self.bytes -= gone.bytes
        with contextlib.suppress(OSError):
            Path(self._path(name)).unlink()

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}{_SUFFIX}"


def _with(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The ranges with one more, disjoint and in order."""
    apart = [(s, e) for s, e in ranges if e < start or s > end]
    near = [(s, e) for s, e in ranges if not (e < start or s > end)]
    joined = (min([start, *(s for s, _ in near)]), max([end, *(e for _, e in near)]))
    return sorted([*apart, joined])
