"""A kernel block device's persistent reservation, by ioctl: `ReservationCommands` of `fence.py` for NVMe and SCSI.

The ioctls block until the device answers, so they run in a thread of the device's own, one after the other.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
from collections.abc import Callable
from concurrent.futures import Executor
from enum import StrEnum
from typing import TypeVar

from providers.base import host_ioctl as wire
from providers.base import scsi
from providers.base.errors import Invalid, NotFound, Unavailable, YunheError
from providers.base.fence import READ_ATTEMPTS_MAX, DeviceReservation
from providers.base.scsi import Verdict

T = TypeVar("T")

Ioctl = Callable[[int, bytearray], int]
"""(request, argument) on the device's descriptor: fills the argument, returns the ioctl's result, raises OSError."""

_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
_FORBIDDEN = (errno.EPERM, errno.EACCES)
_CONFLICTS = (errno.EBADE, errno.EREMOTEIO)
"""What the block layer makes of a reservation conflict: EBADE (BLK_STS_RESV_CONFLICT); EREMOTEIO of old kernels."""
_GONE = (errno.ENODEV, errno.ENXIO)
_EXCLUSIVE = (0, 1, 2)
"""linux/pr.h: none, write exclusive, exclusive access."""
_NAMES = dict(zip(range(1, 7), (scsi.TYPES[kind] for kind in sorted(scsi.TYPES)), strict=True))
"""linux/pr.h and NVMe number the types 1 to 6 in the order in which SCSI numbers them 1, 3, 5 to 8."""


class Bus(StrEnum):
    """How the kernel reaches the device, by its name."""

    NVME = "nvme"
    SCSI = "scsi"
    OTHER = "other"


class KernelReservations:
    """The commands, blocking. `bus` decides how reservations are read where the block layer cannot."""

    def __init__(self, ioctl: Ioctl, bus: Bus, name: str, *, aborts: bool, timeout_ms: int) -> None:
        """`timeout_ms`: of a read through NVMe's passthrough or SG_IO; the other commands have the kernel's own."""
        self._ioctl = ioctl
        self._bus = bus
        self._name = name
        self._preempt = wire.IOC_PR_PREEMPT_ABORT if aborts else wire.IOC_PR_PREEMPT
        self._timeout_ms = timeout_ms
        self._registered = False
        self._by_block_layer: bool | None = None
        self._extended = True
        self._namespace: int | None = None

    def register(self, key: int) -> bool:
        if self._command(wire.IOC_PR_REGISTER, wire.register(key, replace=self._registered)):
            self._registered = True
            return True
        if self._registered or self._bus is not Bus.NVME:
            return False
        # This host is registered from an earlier life, under another key: NVMe refuses a first registration then.
        self._registered = self._command(wire.IOC_PR_REGISTER, wire.register(key, replace=True))
        return self._registered

    def reserve(self, key: int) -> bool:
        return self._command(wire.IOC_PR_RESERVE, wire.reserve(key))

    def release(self, key: int) -> bool:
        return self._command(wire.IOC_PR_RELEASE, wire.reserve(key))

    def preempt(self, key: int, victim: int) -> bool:
        return self._command(self._preempt, wire.preempt(key, victim))

    def read(self) -> DeviceReservation:
        if self._by_block_layer is None:
            try:
                found = self._read_block_layer()
            except Invalid:
                self._by_block_layer = False  # before Linux 6.19
            else:
                self._by_block_layer = True
                return found
        if self._by_block_layer:
            return self._read_block_layer()
        if self._bus is Bus.NVME:
            return self._read_nvme()
        if self._bus is Bus.SCSI:
            return self._read_scsi()
        raise self._unsupported()

    # ---- the three ways to read

    def _read_block_layer(self) -> DeviceReservation:
        for _ in range(READ_ATTEMPTS_MAX):
            held = wire.read_reservation()
            self._check(self._call(wire.IOC_PR_READ_RESERVATION, held))
            memory = ctypes.create_string_buffer(8 * wire.KEYS_MAX)
            command = wire.read_keys(ctypes.addressof(memory))
            self._check(self._call(wire.IOC_PR_READ_KEYS, command))
            generation, keys = wire.parse_keys(command, memory.raw)
            at, holder, kind = wire.parse_reservation(held)
            # The kernel leaves the generation of an unreserved SCSI device 0 (sd_pr_read_reservation).
            if at == generation or (holder is None and at == 0):
                return self._state(generation, holder, kind, keys)
        raise Unavailable(f"the registrations of {self._name} change faster than they are read")

    def _read_nvme(self) -> DeviceReservation:
        if self._namespace is None:
            self._namespace = self._call(wire.NVME_IOCTL_ID, bytearray())
        memory = ctypes.create_string_buffer(wire.NVME_REPORT_BYTES)
        for _ in range(2):
            command = wire.reservation_report(
                self._namespace, ctypes.addressof(memory), extended=self._extended, timeout_ms=self._timeout_ms
            )
            result = self._call(wire.NVME_IOCTL_IO_CMD, command)
            if wire.nvme_status(result) != wire.NVME_HOST_ID_INCONSISTENT:
                break
            self._extended = not self._extended
        self._check(result)
        report = wire.parse_report(memory.raw, extended=self._extended)
        return self._state(report.generation, report.holder, report.type, report.keys)

    def _read_scsi(self) -> DeviceReservation:
        for _ in range(READ_ATTEMPTS_MAX):
            held = scsi.parse_reservation(self._ask(scsi.persistent_reserve_in(scsi.PrIn.READ_RESERVATION)))
            generation, keys = scsi.parse_keys(self._ask(scsi.persistent_reserve_in(scsi.PrIn.READ_KEYS)))
            if held.generation == generation:
                name = scsi.TYPES.get(held.type, f"type {held.type}")
                return DeviceReservation(held.holder, keys, generation, held.type in (0, 1, 3), name)
        raise Unavailable(f"the registrations of {self._name} change faster than they are read")

    def _ask(self, cdb: bytes) -> bytes:
        """One SCSI command that reads; again after a unit attention."""
        question = ctypes.create_string_buffer(cdb, len(cdb))
        answer = ctypes.create_string_buffer(scsi.PR_IN_BYTES)
        sense = ctypes.create_string_buffer(wire.SENSE_BYTES)
        for _ in range(READ_ATTEMPTS_MAX):
            command = wire.sg_io(
                ctypes.addressof(question),
                len(cdb),
                ctypes.addressof(answer),
                len(answer),
                ctypes.addressof(sense),
                self._timeout_ms,
            )
            self._check(self._call(wire.SG_IO, command))
            status, sense_bytes, host_status = wire.parse_sg_io(command)
            if host_status:
                raise Unavailable(f"{self._name} did not answer (host status {host_status:#x})")
            verdict = scsi.judge(status, scsi.parse_sense(sense.raw[:sense_bytes]))
            if verdict is Verdict.GOOD:
                return answer.raw
            if verdict is Verdict.UNSUPPORTED:
                raise self._unsupported()
            if verdict is Verdict.GONE:
                raise NotFound(f"{self._name} is gone")
            if verdict not in (Verdict.ATTENTION, Verdict.UNREGISTERED):
                break
        raise Unavailable(f"{self._name} did not say how it is reserved (status {status:#x})")

    def _state(self, generation: int, holder: int | None, kind: int, keys: tuple[int, ...]) -> DeviceReservation:
        return DeviceReservation(holder, keys, generation, kind in _EXCLUSIVE, _NAMES.get(kind, f"type {kind}"))

    # ---- calls

    def _command(self, request: int, argument: bytearray) -> bool:
        """Whether it was done rather than in conflict. All are idempotent or meet a conflict when repeated, so that a
        failure is tried once more: a SCSI device reports news (a unit attention) by failing one command."""
        for attempt in range(2):
            try:
                result = self._call(request, bytearray(argument))
            except Unavailable:
                if attempt:
                    raise
                continue
            if result == 0:
                return True
            if wire.is_conflict(result):
                return False
        raise Unavailable(f"{self._name} failed a reservation command (status {result:#x})")

    def _check(self, result: int) -> None:
        if result:
            raise Unavailable(f"{self._name} did not say how it is reserved (status {result:#x})")

    def _call(self, request: int, argument: bytearray) -> int:
        try:
            return self._ioctl(request, argument)
        except OSError as error:
            if error.errno in _CONFLICTS:
                return int(scsi.Status.RESERVATION_CONFLICT)
            raise self._error(error, request) from error

    def _error(self, error: OSError, request: int) -> YunheError:
        if error.errno in _UNKNOWN and request == wire.IOC_PR_PREEMPT_ABORT:
            return Invalid(f"{self._name} does not know preempt-and-abort, which its cloud's volumes should")
        if error.errno in _UNKNOWN:
            return self._unsupported()
        if error.errno in _FORBIDDEN:
            return Invalid(
                f"this process may not use the reservations of {self._name}",
                hint="run it as root, or with CAP_SYS_ADMIN and CAP_SYS_RAWIO (Linux 6.19 reads without)",
            )
        if error.errno in _GONE:
            return NotFound(f"{self._name} is gone: {error.strerror}")
        return Unavailable(f"{self._name} failed a reservation command: {error.strerror}")

    def _unsupported(self) -> Invalid:
        return Invalid(
            f"{self._name} has no persistent reservations and cannot be fenced",
            hint="use a disk class and an instance type with NVMe or SCSI reservations, or choose another WAL mode",
        )


class HostReservations:
    """`ReservationCommands`: the above, awaited, and bounded in time."""

    def __init__(self, kernel: KernelReservations, executor: Executor, name: str, timeout_ms: int) -> None:
        self._kernel = kernel
        self._executor = executor
        self._name = name
        self._timeout_s = timeout_ms / 1000

    async def register(self, key: int) -> bool:
        return await self._run(lambda: self._kernel.register(key))

    async def reserve(self, key: int) -> bool:
        return await self._run(lambda: self._kernel.reserve(key))

    async def release(self, key: int) -> bool:
        return await self._run(lambda: self._kernel.release(key))

    async def preempt(self, key: int, victim: int) -> bool:
        return await self._run(lambda: self._kernel.preempt(key, victim))

    async def read(self) -> DeviceReservation:
        return await self._run(self._kernel.read)

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except TimeoutError as error:
            raise Unavailable(f"{self._name} did not answer a reservation command in time") from error
