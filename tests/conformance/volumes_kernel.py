"""A model of a kernel with NVMe and SCSI disks that this machine does not have: it takes the very bytes of each ioctl.

Written from linux/pr.h, drivers/scsi/sd.c, drivers/nvme/host/pr.c, SPC-4 5.12 and NVM Express Base 2.0 8.19, with
offsets and numbers of its own: it shares no code with the codec that it judges. A host is an initiator. A write is
checked when it arrives at the disk and lands a little later, as on a fabric.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from providers.base.host_device import DeviceSettings, HostBlockDevice
from providers.base.host_reservations import Bus
from providers.base.volumes import BLOCK_BYTES, BlockDevice, Volume

SCSI_TYPE = {1: 1, 2: 3, 3: 5, 4: 6, 5: 7, 6: 8}
"""From the block layer's numbers to SCSI's."""


def u64(data: bytes | bytearray, at: int, order: str = "little") -> int:
    return int.from_bytes(data[at : at + 8], order)  # type: ignore[arg-type]


def u32(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


@dataclass(eq=False)
class Flight:
    host: str
    offset: int
    data: bytes
    done: Callable[[int], None]


@dataclass
class Disk:
    """The far end. `abort_works`: whether PREEMPT AND ABORT ends what its victim has under way."""

    size: int
    bus: Bus
    abort_works: bool = True
    content: bytearray = field(default_factory=bytearray)
    keys: dict[str, int] = field(default_factory=dict)
    holder: str | None = None
    kind: int = 0
    generation: int = 0
    attentions: set[str] = field(default_factory=set)
    """SCSI: hosts that are told, by the failure of one command, that their registration went."""
    flights: list[Flight] = field(default_factory=list)
    opened: set[str] = field(default_factory=set)
    failing: int = 0
    """An errno that every write meets, or 0."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.content = bytearray(self.size)


class Conflict(Exception):
    pass


class Attention(Exception):
    pass


class ModelKernel:
    """`Kernel` of one host, for one opened disk.

    `modern`: Linux 6.19 or newer, which reads reservations by ioctl and answers in its own status numbers; before it,
    the device's own status comes back (NVMe 4083h: conflict, do not retry). `wide`: 128-bit host ids.
    """

    def __init__(self, disk: Disk, host: str, *, modern: bool, wide: bool = True, seed: int = 1) -> None:
        if host in disk.opened:
            raise OSError(errno.EBUSY, "Device or resource busy")
        disk.opened.add(host)
        self.disk = disk
        self.host = host
        self.modern = modern
        self.wide = wide
        self.rng = random.Random(seed)
        self.calls: list[tuple[int, bytes]] = []
        self.forbidden: set[int] = set()

    # ---- what the adapter calls

    def ioctl(self, request: int, argument: bytearray) -> int:
        with self.disk.lock:
            self.calls.append((request, bytes(argument)))
            if request in self.forbidden:
                raise OSError(errno.EACCES, "Permission denied")
            try:
                return self._ioctl(request, argument)
            except Conflict:
                return 0x18 if self.modern or self.disk.bus is Bus.SCSI else 0x4083
            except Attention:
                return 0x2 if self.modern else 0x8000002

    def size_bytes(self) -> int:
        return self.disk.size

    def read(self, offset: int, length: int) -> bytes:
        assert offset % BLOCK_BYTES == 0 and length % BLOCK_BYTES == 0, "O_DIRECT"
        with self.disk.lock:
            return bytes(self.disk.content[offset : offset + length])

    def writer(self) -> ModelKernel:
        return self

    def submit(self, data: memoryview, offset: int, done: Callable[[int], None]) -> None:
        assert ctypes.addressof(ctypes.c_char.from_buffer(data)) % 4096 == 0, "O_DIRECT"
        loop = asyncio.get_running_loop()
        loop.call_later(self.rng.uniform(0, 0.001), self._arrive, Flight(self.host, offset, bytes(data), done))

    def close(self) -> None:
        self.disk.opened.discard(self.host)

    # ---- the disk's side of a write

    def _arrive(self, flight: Flight) -> None:
        with self.disk.lock:
            disk = self.disk
            if disk.failing:
                flight.done(disk.failing)
                return
            # The kernel meets a unit attention of a write by itself, and repeats it.
            disk.attentions.discard(flight.host)
            if disk.holder is not None and disk.holder != flight.host and disk.kind in (1, 2):
                flight.done(errno.EBADE)
                return
            disk.flights.append(flight)
        asyncio.get_running_loop().call_later(self.rng.uniform(0, 0.002), self._land, flight)

    def _land(self, flight: Flight) -> None:
        with self.disk.lock:
            if flight not in self.disk.flights:
                flight.done(errno.EBADE)  # aborted, repeated by the kernel, refused
                return
            self.disk.flights.remove(flight)
            self.disk.content[flight.offset : flight.offset + len(flight.data)] = flight.data
        flight.done(0)

    # ---- reservations

    def _ioctl(self, request: int, argument: bytearray) -> int:
        disk = self.disk
        if disk.bus is Bus.OTHER:
            raise OSError(errno.ENOTTY if request in (0x2285, 0x4E40) else errno.EOPNOTSUPP, "not supported")
        commands = {
            0x401870C8: self._register,
            0x401070C9: self._reserve,
            0x401070CA: self._release,
            0x401870CB: self._preempt,
            0x401870CC: self._preempt_and_abort,
            0x401070CD: self._clear,
        }
        if request in commands:
            if self.host in disk.attentions:
                disk.attentions.discard(self.host)
                raise Attention
            commands[request](argument)
            return 0
        if request == 0xC01070CE and self.modern:
            keys = list(disk.keys.values())
            room = u32(argument, 4)
            memory = b"".join(key.to_bytes(8, "little") for key in keys[:room])
            ctypes.memmove(u64(argument, 8), memory, len(memory))
            argument[0:8] = disk.generation.to_bytes(4, "little") + len(keys).to_bytes(4, "little")
            return 0
        if request == 0x801070CF and self.modern:
            if disk.holder is None:
                # sd.c returns before it fills in the generation; pr.c of NVMe fills it in.
                generation = disk.generation if disk.bus is Bus.NVME else 0
                argument[:] = bytes(8) + generation.to_bytes(4, "little") + bytes(4)
            else:
                argument[:] = disk.keys[disk.holder].to_bytes(8, "little") + disk.generation.to_bytes(4, "little")
                argument += disk.kind.to_bytes(4, "little")
            return 0
        if disk.bus is Bus.NVME and request == 0x4E40:
            return 7
        if disk.bus is Bus.NVME and request == 0xC0484E43:
            return self._nvme(argument)
        if disk.bus is Bus.SCSI and request == 0x2285:
            return self._sg(argument)
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    def _mine(self, key: int) -> None:
        if self.disk.keys.get(self.host) != key:
            raise Conflict

    def _register(self, argument: bytearray) -> None:
        old, new, ignore = u64(argument, 0), u64(argument, 8), u32(argument, 16) & 1
        now = self.disk.keys.get(self.host)
        if self.disk.bus is Bus.NVME:
            if old == 0 and now not in (None, new):
                raise Conflict  # RREGA 0 of a registrant under another key
            if old != 0 and (now is None or (not ignore and now != old)):
                raise Conflict  # RREGA 2 of nobody
        elif not ignore and (now or 0) != old:
            raise Conflict
        if new:
            self.disk.keys[self.host] = new
        self.disk.generation += 1

    def _reserve(self, argument: bytearray) -> None:
        key, kind, flags = u64(argument, 0), u32(argument, 8), u32(argument, 12)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "flags")
        self._mine(key)
        if self.disk.holder is not None and (self.disk.holder, self.disk.kind) != (self.host, kind):
            raise Conflict
        self.disk.holder, self.disk.kind = self.host, kind

    def _release(self, argument: bytearray) -> None:
        self._mine(u64(argument, 0))
        if self.disk.holder == self.host:
            if u32(argument, 8) != self.disk.kind:
                raise OSError(errno.EINVAL, "another type")
            self.disk.holder, self.disk.kind = None, 0

    def _preempt(self, argument: bytearray, abort: bool = False) -> None:
        own, victim, kind = u64(argument, 0), u64(argument, 8), u32(argument, 16)
        disk = self.disk
        self._mine(own)
        if victim not in disk.keys.values():
            raise Conflict
        if disk.holder is not None and disk.keys[disk.holder] == victim:
            disk.holder, disk.kind = self.host, kind
        for host in [host for host, key in disk.keys.items() if key == victim and host != self.host]:
            del disk.keys[host]
            if disk.bus is Bus.SCSI:
                disk.attentions.add(host)
            if abort and disk.abort_works:
                disk.flights = [flight for flight in disk.flights if flight.host != host]
        disk.generation += 1

    def _preempt_and_abort(self, argument: bytearray) -> None:
        self._preempt(argument, abort=True)

    def _clear(self, argument: bytearray) -> None:
        self._mine(u64(argument, 0))
        if self.disk.bus is Bus.SCSI:
            self.disk.attentions |= set(self.disk.keys) - {self.host}
        self.disk.keys.clear()
        self.disk.holder, self.disk.kind = None, 0
        self.disk.generation += 1

    # ---- reading below the block layer

    def _nvme(self, argument: bytearray) -> int:
        assert len(argument) == 72 and argument[0] == 0x0E and u32(argument, 4) == 7
        assert u32(argument, 36) == 4 * (u32(argument, 40) + 1), "dwords are zero-based"
        extended = u32(argument, 44) & 1
        if bool(extended) != self.wide:
            return 0x4018
        disk = self.disk
        report = bytearray(64 if extended else 24)
        report[0:4] = disk.generation.to_bytes(4, "little")
        report[4] = disk.kind
        report[5:7] = len(disk.keys).to_bytes(2, "little")
        report[9] = 1
        for number, (host, key) in enumerate(disk.keys.items()):
            entry = bytearray(64 if extended else 24)
            entry[0:2] = number.to_bytes(2, "little")
            entry[2] = 1 if host == disk.holder else 0
            at = 8 if extended else 16
            entry[at : at + 8] = key.to_bytes(8, "little")
            report += entry
        report = report[: u32(argument, 36)]
        ctypes.memmove(u64(argument, 24), bytes(report), len(report))
        return 0

    def _sg(self, argument: bytearray) -> int:
        assert len(argument) == 88 and argument[0:4] == b"S\0\0\0"
        assert int.from_bytes(argument[4:8], "little", signed=True) == -3
        cdb = ctypes.string_at(u64(argument, 24), argument[8])
        assert len(cdb) == 10 and cdb[0] == 0x5E
        argument[64] = argument[67] = 0
        if self.host in self.disk.attentions:
            self.disk.attentions.discard(self.host)
            sense = bytes([0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2A, 0x05, 0, 0, 0, 0])
            ctypes.memmove(u64(argument, 32), sense, len(sense))
            argument[64], argument[67] = 2, len(sense)
            return 0
        disk = self.disk
        head = disk.generation.to_bytes(4, "big")
        if cdb[1] == 0:
            body = b"".join(key.to_bytes(8, "big") for key in disk.keys.values())
        elif disk.holder is None:
            body = b""
        else:
            body = disk.keys[disk.holder].to_bytes(8, "big") + bytes(5) + bytes([SCSI_TYPE[disk.kind]]) + bytes(2)
        data = head + len(body).to_bytes(4, "big") + body
        data = data[: int.from_bytes(cdb[7:9], "big")]
        assert len(data) <= u32(argument, 12)
        ctypes.memmove(u64(argument, 16), data, len(data))
        return 0


class ModelVolumes:
    """`BlockVolumes` for the suite: every handle is opened on a host of its own, as in a cell."""

    def __init__(self, bus: Bus, *, modern: bool, wide: bool = True, aborts: bool = True) -> None:
        self.bus, self.modern, self.wide, self.aborts = bus, modern, wide, aborts
        self.disks: dict[str, Disk] = {}
        self.kernels: list[ModelKernel] = []

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        self.disks[volume_id] = Disk(size_bytes, self.bus, self.aborts)
        return Volume(volume_id, size_bytes, tuple(zones), ())

    async def attach(self, volume_id: str, zone: str) -> Volume:
        return Volume(volume_id, 0, (zone,), (zone,))

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        return self.open_on(volume_id, f"{zone}-{len(self.kernels)}")

    def open_on(self, volume_id: str, host: str) -> HostBlockDevice:
        kernel = ModelKernel(self.disks[volume_id], host, modern=self.modern, wide=self.wide, seed=len(self.kernels))
        self.kernels.append(kernel)
        return HostBlockDevice(kernel, volume_id, self.bus, aborts=self.aborts, settings=DeviceSettings())
