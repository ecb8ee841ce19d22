"""An attached volume as this host's kernel shows it: `BlockDevice` over a device node.

    write ─► Linux AIO, O_DIRECT and O_DSYNC (`aio.py`) ─► the device, past its cache (FUA) ─► ack
    read ──► a thread, O_DIRECT: never the page cache, which knows nothing of another host's writes
    fence ─► ioctls (`host_reservations.py`); a refused write is EBADE

The reservation's initiator is the host, so the device does not tell two processes of one host apart. The node is
therefore opened with O_EXCL, which the kernel grants to one opener and to no mounted device: a restarted broker gets
the volume only after its earlier life is dead and all its I/O is over (close(2) and exit wait for Linux AIO). Sources:
open(2), blkdev_get_by_dev (block/bdev.c), exit_aio (fs/aio.c).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from providers.base import host_ioctl as wire
from providers.base.aio import Writer, open_writer
from providers.base.errors import Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.fence import Fence
from providers.base.host_reservations import Bus, HostReservations, KernelReservations
from providers.base.volumes import BLOCK_BYTES, Reservation, Written

T = TypeVar("T")

READ_BYTES_MAX = 4 << 20
"""Longer reads are made of several."""
_READERS = 2
"""Reads at once; a recovery reads one after the other."""
_FENCED = (errno.EBADE,)
_GONE = (errno.ENODEV, errno.ENXIO)
_UNDONE = (errno.EPERM, errno.EROFS, errno.EAGAIN, errno.ENOMEM)
"""Refused before anything was sent: a device set read-only (a forced detach may do that first), or no memory."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Bounds of an attached device."""

    io_timeout_ms: int = 10_000
    """Milliseconds until a read, a write or a reservation command counts as unanswered; it may still be carried out.
    The kernel's own time-out is longer or none on clouds (AWS asks for the maximum), and a broker must know earlier."""


class Kernel(Protocol):
    """What is asked of the operating system about one opened device."""

    def ioctl(self, request: int, argument: bytearray) -> int:
        """Fills `argument`, returns the result. Raises OSError."""
        ...

    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Both multiples of BLOCK_BYTES. Raises OSError."""
        ...

    def writer(self) -> Writer: ...

    def close(self) -> None: ...


class LinuxKernel:
    """The real one."""

    def __init__(self, path: Path) -> None:
        """Raises:
        OSError: EBUSY when it is mounted or another process has it.
        """
        self._file = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_EXCL | os.O_CLOEXEC)

    def ioctl(self, request: int, argument: bytearray) -> int:
        # A mutable argument, or Python would hide the result, and a conflict is a positive result.
        return int(fcntl.ioctl(self._file, request, argument, True) if argument else fcntl.ioctl(self._file, request))

    def size_bytes(self) -> int:
        size = bytearray(8)
        self.ioctl(wire.BLKGETSIZE64, size)
        return int.from_bytes(size, "little")

    def read(self, offset: int, length: int) -> bytes:
        done = bytearray()
        memory = mmap.mmap(-1, length)  # page-aligned, as O_DIRECT wants it
        with memoryview(memory) as view:
            while len(done) < length:
                count = os.preadv(self._file, [view[: length - len(done)]], offset + len(done))
                if count == 0:
                    raise OSError(errno.EIO, "the device is shorter than it said")
                done += view[:count]
        return bytes(done)

    def writer(self) -> Writer:
        # The very device that is open, whatever its name points to by now.
        return open_writer(Path(f"/proc/self/fd/{self._file}"))

    def close(self) -> None:
        os.close(self._file)


class _Threads(ThreadPoolExecutor):
    """Knows what still runs: a descriptor is not closed under a call, whose number the next file could get."""

    def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
        super().__init__(max_workers, thread_name_prefix)
        self._running: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future = super().submit(fn, *args, **kwargs)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    async def idle(self) -> None:
        """Return when nothing runs."""
        running = [asyncio.wrap_future(future) for future in list(self._running)]
        if running:
            await asyncio.wait(running)


def bus_of(node: str) -> Bus:
    """From the node's name in /dev."""
    name = node.rsplit("/", 1)[-1]
    if name.startswith("nvme"):
        return Bus.NVME
    return Bus.SCSI if name.startswith("sd") else Bus.OTHER


class HostBlockDevice:
    """See the module. Open with `open_device`."""

    def __init__(self, kernel: Kernel, name: str, bus: Bus, *, aborts: bool, settings: DeviceSettings) -> None:
        """Takes over `kernel`. On the running loop."""
        self._kernel = kernel
        self._name = name
        self._aborts = aborts
        self._settings = settings
        self._size_bytes = kernel.size_bytes() // BLOCK_BYTES * BLOCK_BYTES
        self._writer = kernel.writer()
        self._reads = _Threads(_READERS, thread_name_prefix="volume-read")
        # A thread of its own, so that the word of who may write never waits behind a recovery's reads.
        self._asks = _Threads(1, thread_name_prefix="volume-fence")
        timeout_ms = settings.io_timeout_ms
        commands = KernelReservations(kernel.ioctl, bus, f"volume {name}", aborts=aborts, timeout_ms=timeout_ms)
        self._fence = Fence(HostReservations(commands, self._asks, f"volume {name}", timeout_ms), name)
        self._loop = asyncio.get_running_loop()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def preempt_aborts(self) -> bool:
        return self._aborts

    async def check_fence(self) -> None:
        """Raises:
        Invalid: the device has no reservations, or this process may not use them.
        """
        await self._fence.probe()

    # ---- input and output

    async def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        start = offset // BLOCK_BYTES * BLOCK_BYTES
        end = -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES
        parts = [await self._read(at, min(READ_BYTES_MAX, end - at)) for at in range(start, end, READ_BYTES_MAX)]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return data if (start, end) == (offset, offset + length) else data[offset - start : offset - start + length]

    async def _read(self, offset: int, length: int) -> bytes:
        try:
            async with asyncio.timeout(self._settings.io_timeout_ms / 1000):
                return await self._loop.run_in_executor(self._reads, self._kernel.read, offset, length)
        except TimeoutError as error:
            if isinstance(error, OSError) and error.errno:
                raise self._error(error.errno, f"a read at {offset}", changes=False) from error
            raise Unavailable(f"volume {self._name} did not answer a read at {offset} in time") from error
        except OSError as error:
            raise self._error(error.errno or errno.EIO, f"a read at {offset}", changes=False) from error

    async def allocate(self, size: int) -> memoryview:
        return memoryview(mmap.mmap(-1, size))

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        ended: asyncio.Future[None] = self._loop.create_future()

        def done(error: YunheError | None) -> None:
            if not ended.done():
                ended.set_result(None) if error is None else ended.set_exception(error)

        self.start_write(offset, data, done)
        await ended

    def start_write(self, offset: int, data: bytes | memoryview, done: Written) -> None:
        self._check(offset, len(data))
        if offset % BLOCK_BYTES or len(data) % BLOCK_BYTES:
            raise Invalid(f"a write is aligned to {BLOCK_BYTES} bytes", offset=offset, length=len(data))
        self._fence.check()
        if not data:
            self._loop.call_soon(done, None)
            return

        told = False

        def late() -> None:
            nonlocal told
            told = True
            done(OutcomeUnknown(f"volume {self._name} did not answer a write at {offset} in time"))

        def over(code: int) -> None:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
            timer.cancel()
            if not told:
                done(self._error(code, f"a write at {offset}", changes=True) if code else None)

        timer = self._loop.call_later(self._settings.io_timeout_ms / 1000, late)
        self._under_way += 1
        self._idle.clear()
        self._writer.submit(_aligned(data), offset, over)

    def _error(self, code: int, what: str, *, changes: bool) -> YunheError:
        said = os.strerror(code)
        if code in _FENCED:
            if changes:
                return self._fence.refused("another key holds the reservation", cause=OSError(code, said))
            return Unavailable(f"volume {self._name} is reserved against reading")
        if code in (errno.ENOSPC, errno.EDQUOT):
            return Full(f"the space behind volume {self._name} has run out")
        if code in _UNDONE:
            hint = "is it still attached for writing?" if code in (errno.EPERM, errno.EROFS) else None
            return Unavailable(f"volume {self._name} refused {what}: {said}", hint=hint)
        if changes:
            return OutcomeUnknown(f"volume {self._name} failed {what}: {said}")
        if code in _GONE:
            return NotFound(f"volume {self._name} is gone: {said}")
        return Unavailable(f"volume {self._name} failed {what}: {said}")

    # ---- the fence

    async def register(self, key: int) -> None:
        self._check(0, 0)
        await self._fence.register(key)

    async def reserve(self) -> None:
        self._check(0, 0)
        await self._fence.reserve()

    async def preempt(self, victim: int) -> None:
        self._check(0, 0)
        await self._fence.preempt(victim)

    async def release(self) -> None:
        self._check(0, 0)
        await self._fence.release()

    async def reservation(self) -> Reservation:
        self._check(0, 0)
        return await self._fence.state()

    async def close(self) -> None:
        """All that is under way is over when this returns.

        Raises:
            Unavailable: it is not, in time; the device stays open, so that no other process of this host gets it
                before its writes are over.
        """
        if self._closed:
            return
        self._closed = True
        self._reads.shutdown(wait=False, cancel_futures=True)
        self._asks.shutdown(wait=False, cancel_futures=True)
        try:
            async with asyncio.timeout(self._settings.io_timeout_ms / 1000):
                await self._idle.wait()
                await self._reads.idle()
                await self._asks.idle()
        except TimeoutError as error:
            raise Unavailable(f"volume {self._name} still has requests under way") from error
        self._writer.close()
        self._kernel.close()

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise Invalid("this handle is closed")
        if offset < 0 or length < 0 or offset + length > self._size_bytes:
            raise Invalid(f"[{offset}, {offset + length}) is outside the volume", size_bytes=self._size_bytes)


def _aligned(data: bytes | memoryview) -> memoryview:
    """The same bytes in page-aligned memory: themselves, where they are."""
    own = isinstance(data, memoryview) and not data.readonly
    if own and ctypes.addressof(ctypes.c_char.from_buffer(data)) % mmap.PAGESIZE == 0:
        return memoryview(data)
    memory = memoryview(mmap.mmap(-1, len(data)))
    memory[:] = data
    return memory


async def open_device(node: str, name: str, *, aborts: bool, settings: DeviceSettings | None = None) -> HostBlockDevice:
    """Open the device at `node`, for this process alone. `aborts`: whether this class of disk is known to end a
    victim's writes when preempted.

    Raises:
        NotFound: no such device.
        Unavailable: it is mounted, or another process of this host has it.
        Invalid: no permission.
    """
    try:
        kernel = await asyncio.to_thread(LinuxKernel, Path(node))
    except OSError as error:
        raise _open_error(error, node, name) from error
    try:
        return HostBlockDevice(kernel, name, bus_of(node), aborts=aborts, settings=settings or DeviceSettings())
    except OSError as error:
        kernel.close()
        raise _open_error(error, node, name) from error
    except BaseException:
        kernel.close()
        raise


def _open_error(error: OSError, node: str, name: str) -> YunheError:
    if error.errno == errno.EBUSY:
        return Unavailable(
            f"volume {name} ({node}) is in use on this host",
            hint="it is mounted, part of another device, or open in another process (this broker's earlier life?)",
        )
    if error.errno in (errno.ENOENT, *_GONE):
        return NotFound(f"volume {name} ({node}) is not there: {error.strerror}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Invalid(f"volume {name} ({node}) may not be opened: {error.strerror}", hint="run as root")
    return Unavailable(f"volume {name} ({node}) cannot be opened: {error.strerror}")
