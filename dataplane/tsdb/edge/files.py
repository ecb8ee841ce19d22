"""The few things that an edge asks of its file system: a seam, so that tests can cut the power at each of them."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from providers.base.errors import Full, Unavailable, YunheError

log = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""How the name of a file ends that is being written."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class Files(Protocol):
    """One flat folder. What a method has done survives a power cut from the named call on, and not before.

    Every method may raise Unavailable: the device errs. Those that write may raise Full: no room.
    """

    def names(self) -> list[str]:
        """All files there."""
        ...

    def read(self, name: str) -> bytes: ...

    def part(self, name: str, at: int, length: int) -> bytes:
        """Bytes [at, at + length), or fewer where the file ends."""
        ...

    def append(self, name: str, at: int, data: bytes | bytearray) -> None:
        """Write at offset `at`, the file's end, or before it where an earlier append failed half-way; durable by
        `sync`. Makes the file if need be, which is durable by `sync_names`."""
        ...

    def truncate(self, name: str, size: int) -> None:
        """Durable by `sync`."""
        ...

    def sync(self, name: str) -> None:
        """The file's content, all that was written before."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Atomic; durable by `sync_names`."""
        ...

    def remove(self, name: str) -> None:
        """Durable by `sync_names`; that it is not there is no error."""
        ...

    def sync_names(self) -> None:
        """Which files there are, under which names."""
        ...


class DiskFiles:
    """`Files` in a folder of the machine's file system. Keeps the files that it appends to open until `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._open: dict[str, int] = {}

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self._folder.iterdir() if entry.is_file())

    def read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise Unavailable(f"{name} cannot be read: {error.strerror}") from error

    def part(self, name: str, at: int, length: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(at)
                return file.read(length)
        except OSError as error:
            raise Unavailable(f"{name} cannot be read: {error.strerror}") from error

    def append(self, name: str, at: int, data: bytes | bytearray) -> None:
        view = memoryview(data)
        try:
            fd = self._fd(name)
            while view:
                written = os.pwrite(fd, view, at)
                at, view = at + written, view[written:]
        except OSError as error:
            raise _said(f"{name} takes no more", error) from error

    def truncate(self, name: str, size: int) -> None:
        try:
            os.ftruncate(self._fd(name), size)
        except OSError as error:
            raise _said(f"{name} cannot be cut", error) from error

    def sync(self, name: str) -> None:
        try:
            os.fdatasync(self._fd(name))
        except OSError as error:
            raise _said(f"{name} cannot be made durable", error) from error

    def rename(self, old: str, new: str) -> None:
        self._forget(old)
        self._forget(new)
        try:
            (self._folder / old).replace(self._folder / new)
        except OSError as error:
            raise _said(f"{old} cannot become {new}", error) from error

    def remove(self, name: str) -> None:
        self._forget(name)
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _said(f"{name} cannot be removed", error) from error

    def sync_names(self) -> None:
        fd = -1
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(fd)
        except OSError as error:
            raise _said("the folder cannot be made durable", error) from error
        finally:
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        """Close what is open; nothing is synced."""
        for name in list(self._open):
            self._forget(name)

    def _fd(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._open[name]

    def _forget(self, name: str) -> None:
        fd = self._open.pop(name, None)
        if fd is not None:
            os.close(fd)


def _said(what: str, error: OSError) -> Full | Unavailable:
    if error.errno in FULL:
        return Full(f"{what}: the flash is full", hint="upload, shorten retention, or make room")
    return Unavailable(f"{what}: {error.strerror}")


def put_whole(files: Files, name: str, data: bytes) -> None:
    """A file that is there whole or not at all, durably when this returns.

    Raises:
        Full, Unavailable: it is not there, or its removal comes when the folder is opened anew.
    """
    try:
        files.append(name + UNFINISHED, 0, data)
        files.sync(name + UNFINISHED)
        files.rename(name + UNFINISHED, name)
        files.sync_names()
    except YunheError:
        remove_quietly(files, [name + UNFINISHED])
        raise


def remove_quietly(files: Files, names: Iterable[str]) -> None:
    """What stays for now is removed when the folder is opened anew."""
    for name in names:
        try:
            files.remove(name)
        except YunheError as error:
            log.warning("not-removed: %s: %s", name, error)
