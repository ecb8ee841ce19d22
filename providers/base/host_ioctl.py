"""Persistent reservations as the Linux kernel takes and tells them: the bytes of each ioctl, out and in. Pure.

Commands go through the block layer (linux/pr.h), one way for NVMe and SCSI. Reading has three ways: the block layer's
own since Linux 6.19 (IOC_PR_READ_KEYS, IOC_PR_READ_RESERVATION), NVMe's passthrough (Reservation Report) and SCSI's
SG_IO (PERSISTENT RESERVE IN, whose bytes are in `scsi.py`).

Which key is which in IOC_PR_PREEMPT: `old_key` is the *sender's own* and `new_key` the victim's. The kernel's
documentation (Documentation/block/pr.rst) reads the other way round; drivers/scsi/sd.c and drivers/nvme/host/pr.c put
old_key where the device expects the sender's key. Sources: include/uapi/linux/pr.h, nvme_ioctl.h, scsi/sg.h; NVM
Express Base 2.0, Reservation Report.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from providers.base.errors import Unavailable
from providers.base.scsi import WRITE_EXCLUSIVE, Status

_WRITE, _READ = 1, 2


def _number(direction: int, group: str, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | ord(group) << 8 | number


_RESERVATION = struct.Struct("=QII")
_REGISTRATION = struct.Struct("=QQII")
_PREEMPT = struct.Struct("=QQII")
_CLEAR = struct.Struct("=QII")
_READ_KEYS = struct.Struct("=IIQ")
_READ_RESERVATION = struct.Struct("=QII")

IOC_PR_REGISTER = _number(_WRITE, "p", 200, _REGISTRATION.size)
IOC_PR_RESERVE = _number(_WRITE, "p", 201, _RESERVATION.size)
IOC_PR_RELEASE = _number(_WRITE, "p", 202, _RESERVATION.size)
IOC_PR_PREEMPT = _number(_WRITE, "p", 203, _PREEMPT.size)
IOC_PR_PREEMPT_ABORT = _number(_WRITE, "p", 204, _PREEMPT.size)
IOC_PR_CLEAR = _number(_WRITE, "p", 205, _CLEAR.size)
IOC_PR_READ_KEYS = _number(_READ | _WRITE, "p", 206, _READ_KEYS.size)
IOC_PR_READ_RESERVATION = _number(_READ, "p", 207, _READ_RESERVATION.size)
BLKGETSIZE64 = _number(_READ, "\x12", 114, 8)
BLKSSZGET = _number(0, "\x12", 104, 0)

_IGNORE_KEY = 1
KEYS_MAX = 1024
"""Room for registrations; clouds attach a volume at most 16 times."""

_NVME = struct.Struct("=BBHIIIQQIIIIIIIIII")
"""struct nvme_passthru_cmd."""
NVME_IOCTL_ID = _number(0, "N", 0x40, 0)
NVME_IOCTL_IO_CMD = _number(_READ | _WRITE, "N", 0x43, _NVME.size)
_RESERVATION_REPORT = 0x0E
NVME_REPORT_BYTES = 4096
_NVME_STATUS = 0x7FF
_NVME_CONFLICT = 0x83
NVME_HOST_ID_INCONSISTENT = 0x18
"""The host's id is not of the length that the report was asked for in."""

_SG = struct.Struct("@iiBBHIPPPIIiPBBBBHHiIIi")
"""struct sg_io_hdr, with its tail padding."""
SG_IO = 0x2285
_FROM_DEVICE = -3
SENSE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Report:
    """An NVMe Reservation Report. `keys`: by registered controller."""

    generation: int
    type: int
    holder: int | None
    keys: tuple[int, ...]


# ---- commands


def register(key: int, *, replace: bool) -> bytearray:
    """Register, whatever the key now is. SCSI: REGISTER AND IGNORE EXISTING KEY, with APTPL. NVMe tells the first
    registration (RREGA 0) from a change (`replace`, RREGA 2); the kernel goes by whether there is an old key, whose
    value is ignored."""
    return bytearray(_REGISTRATION.pack(int(replace), key, _IGNORE_KEY, 0))


def reserve(key: int) -> bytearray:
    """For IOC_PR_RESERVE and IOC_PR_RELEASE."""
    return bytearray(_RESERVATION.pack(key, WRITE_EXCLUSIVE, 0))


def preempt(key: int, victim: int) -> bytearray:
    """For IOC_PR_PREEMPT and IOC_PR_PREEMPT_ABORT. `key`: the sender's own."""
    return bytearray(_PREEMPT.pack(key, victim, WRITE_EXCLUSIVE, 0))


def clear(key: int) -> bytearray:
    """Remove every registration and the reservation."""
    return bytearray(_CLEAR.pack(key, 0, 0))


def is_conflict(result: int) -> bool:
    """Whether a positive result of an IOC_PR_* is a reservation conflict. Kernels before 6.3 return the device's own
    status: NVMe's status field (type 0, code 83h, and perhaps the do-not-retry bit) or SCSI's status byte."""
    return result & 0xFF == Status.RESERVATION_CONFLICT or result & _NVME_STATUS == _NVME_CONFLICT


# ---- reading, through the block layer


def read_keys(address: int, room: int = KEYS_MAX) -> bytearray:
    """`address`: of memory for `room` 64-bit keys."""
    return bytearray(_READ_KEYS.pack(0, room, address))


def parse_keys(command: bytes | bytearray, keys: bytes) -> tuple[int, tuple[int, ...]]:
    """Generation and keys. `keys`: the memory.

    Raises:
        Unavailable: there are more keys than room.
    """
    generation, count, _ = _READ_KEYS.unpack(command)
    if count * 8 > len(keys):
        raise Unavailable(f"the device has {count} registrations, more than there is room for")
    return generation, struct.unpack_from(f"={count}Q", keys)


def read_reservation() -> bytearray:
    return bytearray(_READ_RESERVATION.size)


def parse_reservation(command: bytes | bytearray) -> tuple[int, int | None, int]:
    """Generation, holder, and type as linux/pr.h numbers them (0: none)."""
    key, generation, kind = _READ_RESERVATION.unpack(command)
    return generation, key if kind else None, kind


# ---- reading, through NVMe


def reservation_report(namespace: int, address: int, *, extended: bool, timeout_ms: int) -> bytearray:
    """`address`: of NVME_REPORT_BYTES of memory. `extended`: for 128-bit host ids."""
    dwords = NVME_REPORT_BYTES // 4 - 1  # zero-based
    head = (_RESERVATION_REPORT, 0, 0, namespace, 0, 0, 0, address, 0, NVME_REPORT_BYTES)
    return bytearray(_NVME.pack(*head, dwords, int(extended), 0, 0, 0, 0, timeout_ms, 0))


def nvme_status(result: int) -> int:
    """Status code type and code of a positive result, without the do-not-retry bit."""
    return result & _NVME_STATUS


def parse_report(data: bytes, *, extended: bool) -> Report:
    """Raises:
    Unavailable: the report is longer than there is room for.
    """
    generation, kind, count = struct.unpack_from("<IBH", data)
    start, step, key_at = (64, 64, 8) if extended else (24, 24, 16)
    if start + step * count > len(data):
        raise Unavailable(f"the device has {count} registrations, more than there is room for")
    holder: int | None = None
    keys = []
    for at in range(start, start + step * count, step):
        (key,) = struct.unpack_from("<Q", data, at + key_at)
        keys.append(key)
        if data[at + 2] & 1:
            holder = key
    return Report(generation, kind, holder if kind else None, tuple(keys))


# ---- reading, through SG_IO


def sg_io(cdb_at: int, cdb_bytes: int, data_at: int, data_bytes: int, sense_at: int, timeout_ms: int) -> bytearray:
    """A command that reads. The addresses are of memory that stays until the ioctl is over."""
    sizes = (cdb_bytes, SENSE_BYTES, 0, data_bytes)
    return bytearray(_SG.pack(ord("S"), _FROM_DEVICE, *sizes, data_at, cdb_at, sense_at, timeout_ms, *(0,) * 13))


def parse_sg_io(command: bytes | bytearray) -> tuple[int, int, int]:
    """SCSI status, bytes of sense data, and the host adapter's error (0: none)."""
    fields = _SG.unpack(command)
    status, sense_bytes, host_status = fields[13], fields[16], fields[17]
    return status, sense_bytes, host_status
