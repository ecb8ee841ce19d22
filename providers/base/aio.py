"""Durable writes to a block file without a thread: Linux AIO on a descriptor opened with O_DIRECT and O_DSYNC.

    submit ──► io_submit ──► the kernel writes, past the page cache, and makes durable ──► eventfd ──► loop ──► done

A write in a thread costs two hand-overs of the interpreter's lock, more than the write itself takes on a fast volume.
Where the kernel or the file system has no AIO or no O_DIRECT (other systems, tmpfs), `open_writer` gives one that
writes in a thread and syncs. Sources: io_submit(2), io_getevents(2), open(2); struct iocb in linux/aio_abi.h.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import platform
import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from providers.base.volumes import BLOCK_BYTES

Done = Callable[[int], None]
"""Called on the loop with 0, or with the errno of the failure."""

_SYSCALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""io_setup, io_destroy, io_getevents, io_submit."""
_IOCB = struct.Struct("<QIiHhIQQqQII")
"""data, key, rw_flags, opcode, priority, descriptor, buffer, bytes, offset, reserved, flags, eventfd."""
_EVENT = struct.Struct("<QQqq")
_PWRITE = 1
_NOTIFY = 1
_EVENTS_MAX = 64


class Writer(Protocol):
    """Writes durably, each write as a whole. Any number may be under way, in no order."""

    def submit(self, data: memoryview, offset: int, done: Done) -> None:
        """Begin to write `data` at `offset`, both multiples of BLOCK_BYTES and `data` page-aligned in memory. `data` is
        kept, and must not change, until `done` is called."""
        ...

    def close(self) -> None:
        """Release what the writer holds; nothing may be under way."""
        ...


def open_writer(path: Path) -> Writer:
    """The fastest writer that works here. Call it on the running loop.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        return AioWriter(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EMFILE):
            raise
        return ThreadWriter(path)


class AioWriter:
    """See the module. One a file."""

    def __init__(self, path: Path, depth: int = 32) -> None:
        """`depth`: writes under way; more wait in a queue.

        Raises:
            OSError: no AIO, or no O_DIRECT here.
        """
        if platform.machine() not in _SYSCALLS or platform.system() != "Linux":
            raise OSError(errno.ENOSYS, "no Linux AIO here")
        self._setup, self._destroy, self._getevents, self._submit_call = _SYSCALLS[platform.machine()]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        self._file = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC)
        try:
            self._call(self._setup, ctypes.c_uint(depth), ctypes.byref(self._context))
        except OSError:
            os.close(self._file)
            raise
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._event, self._completed)
        # One control block a slot; slots are reused, so that submitting allocates nothing.
        self._blocks = [ctypes.create_string_buffer(_IOCB.size) for _ in range(depth)]
        self._pointers = [(ctypes.c_void_p * 1)(ctypes.addressof(block)) for block in self._blocks]
        self._free = list(range(depth))
        self._under_way: dict[int, tuple[memoryview, int, Done]] = {}
        self._waiting: deque[tuple[memoryview, int, Done]] = deque()
        self._events = ctypes.create_string_buffer(_EVENT.size * _EVENTS_MAX)
        self._no_wait = (ctypes.c_long * 2)(0, 0)

    def submit(self, data: memoryview, offset: int, done: Done) -> None:
        if not self._free:
            self._waiting.append((data, offset, done))
            return
        slot = self._free.pop()
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        target = (_PWRITE, 0, self._file, address, len(data), offset)
        _IOCB.pack_into(self._blocks[slot], 0, slot, 0, 0, *target, 0, _NOTIFY, self._event)
        self._under_way[slot] = (data, offset, done)
        try:
            self._call(self._submit_call, self._context, ctypes.c_long(1), self._pointers[slot])
        except OSError as error:
            # Not from within `submit`: its caller has not returned yet.
            self._loop.call_soon(self._end(slot), error.errno or errno.EIO)

    def _completed(self) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        while True:
            count = self._call(
                self._getevents,
                self._context,
                ctypes.c_long(0),
                ctypes.c_long(_EVENTS_MAX),
                self._events,
                ctypes.byref(self._no_wait),
            )
            for i in range(count):
                slot, _, result, _ = _EVENT.unpack_from(self._events, i * _EVENT.size)
                self._result(slot, result)
            if count < _EVENTS_MAX:
                return

    def _result(self, slot: int, result: int) -> None:
        data, offset, done = self._under_way[slot]
        if result < 0 or result == len(data) or result == 0 or result % BLOCK_BYTES:
            error = 0 if result == len(data) else -result if result < 0 else errno.EIO
            try:
                self._end(slot)(error)
            except Exception as failure:  # the others have to hear of theirs
                self._loop.call_exception_handler({"message": "a write's end was not taken", "exception": failure})
        else:  # a short write: the rest is another write
            del self._under_way[slot]
            self._free.append(slot)
            self.submit(data[result:], offset + result, done)

    def _end(self, slot: int) -> Done:
        """The slot is free for the next; who is to be told of its write's end."""
        _, _, done = self._under_way.pop(slot)
        self._free.append(slot)
        if self._waiting:
            self.submit(*self._waiting.popleft())
        return done

    def _call(self, number: int, *arguments: object) -> int:
        result: int = self._libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def close(self) -> None:
        self._loop.remove_reader(self._event)
        # Waits for writes under way.
        self._call(self._destroy, self._context)
        os.close(self._event)
        os.close(self._file)


class ThreadWriter:
    """Writes and syncs in a thread, one write at a time."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")

    def submit(self, data: memoryview, offset: int, done: Done) -> None:
        def report(future: asyncio.Future[int]) -> None:
            done(errno.EIO if future.cancelled() else future.result())

        self._loop.run_in_executor(self._thread, self._write, data, offset).add_done_callback(report)

    def _write(self, data: memoryview, offset: int) -> int:
        try:
            while data:
                written = os.pwrite(self._file, data, offset)
                if not written:
                    return errno.EIO
                data, offset = data[written:], offset + written
            os.fdatasync(self._file)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        os.close(self._file)
