"""The SCSI commands that a fenced volume needs, as bytes: command blocks and parameter lists out, replies and sense in.

Pure, and the same whether the bytes travel by iSCSI or by the kernel's SG_IO. Sources: SPC-4 (PERSISTENT RESERVE IN
6.15, OUT 6.16, sense data 4.5, INQUIRY and VPD 7.8), SBC-3 (READ and WRITE (16), SYNCHRONIZE CACHE (16), READ CAPACITY
(16), block limits 6.5.3).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from providers.base.errors import Unavailable

WRITE_EXCLUSIVE = 1
"""The reservation type that the fence uses: only the holder writes, everybody reads."""
TYPES = {1: "write exclusive", 3: "exclusive access", 5: "write exclusive, registrants only"}
TYPES |= {6: "exclusive access, registrants only", 7: "write exclusive, all registrants"}
TYPES |= {8: "exclusive access, all registrants"}

PR_IN_BYTES = 8192
"""Room for a reply of PERSISTENT RESERVE IN: 1,023 keys; clouds attach a volume at most 16 times."""
PR_OUT_BYTES = 24

_APTPL = 1
"""Activate persist through power loss: registrations and reservation survive the device's own restart."""


class PrIn(IntEnum):
    """Service actions of PERSISTENT RESERVE IN."""

    READ_KEYS = 0
    READ_RESERVATION = 1
    REPORT_CAPABILITIES = 2


class PrOut(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE_EXISTING_KEY = 6


class Status(IntEnum):
    """SAM-5 status codes of a command."""

    GOOD = 0
    CHECK_CONDITION = 2
    BUSY = 8
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


class Verdict(IntEnum):
    """What a command's end means to whoever sent it."""

    GOOD = 0
    CONFLICT = 1
    """Refused because of a reservation."""
    UNREGISTERED = 2
    """A unit attention: this initiator's registration was removed by somebody else (ASC 2Ah/03h and 05h)."""
    ATTENTION = 3
    """Another unit attention: nothing was done, and the same command may be sent again."""
    UNSUPPORTED = 4
    """The device does not know the command, or a field of it."""
    NO_ROOM = 5
    """Thin provisioning has run out."""
    READ_ONLY = 6
    GONE = 7
    """No such logical unit any more."""
    BUSY = 8
    """Not done; later."""
    FAILED = 9
    """Medium, hardware or transport error, or aborted: it may have been done in part."""


@dataclass(frozen=True, slots=True)
class Sense:
    """The three numbers of sense data; all zero when there is none."""

    key: int = 0
    asc: int = 0
    ascq: int = 0


@dataclass(frozen=True, slots=True)
class HeldReservation:
    """`holder` is None when nobody holds it; `type` is 0 then."""

    generation: int
    holder: int | None
    type: int


# ---- commands


def persistent_reserve_in(action: PrIn, room: int = PR_IN_BYTES) -> bytes:
    """The command block. `room`: bytes of reply that are taken, at most 65,535."""
    return struct.pack(">BB5xHx", 0x5E, action, room)


def persistent_reserve_out(
    action: PrOut, *, key: int, action_key: int = 0, persist: bool = False
) -> tuple[bytes, bytes]:
    """Command block and parameter list. `key`: the sender's own, ignored by REGISTER_AND_IGNORE…; `action_key`: the new
    key (register) or the victim's (preempt). `persist`: with a registration, that all of them and the reservation
    survive the device's restart."""
    typed = action in (PrOut.RESERVE, PrOut.RELEASE, PrOut.PREEMPT, PrOut.PREEMPT_AND_ABORT)
    command = struct.pack(">BBB2xIx", 0x5F, action, WRITE_EXCLUSIVE if typed else 0, PR_OUT_BYTES)
    return command, struct.pack(">QQ4xB3x", key, action_key, _APTPL if persist else 0)


def read_16(block: int, blocks: int) -> bytes:
    """Read `blocks` logical blocks from `block` on."""
    return struct.pack(">BBQIBB", 0x88, 0, block, blocks, 0, 0)


def write_16(block: int, blocks: int, *, fua: bool) -> bytes:
    """Write. `fua`: force unit access, that is durable before the command ends."""
    return struct.pack(">BBQIBB", 0x8A, 8 if fua else 0, block, blocks, 0, 0)


def synchronize_cache_16() -> bytes:
    """Make all that the device has acknowledged durable."""
    return struct.pack(">BBQIBB", 0x91, 0, 0, 0, 0, 0)


def test_unit_ready() -> bytes:
    return bytes(6)


def read_capacity_16() -> bytes:
    return struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0)


def inquiry(page: int | None, room: int = 252) -> bytes:
    """INQUIRY; with `page`, of that vital product data page."""
    return struct.pack(">BBBHB", 0x12, 0 if page is None else 1, page or 0, room, 0)


def mode_sense_6(page: int, room: int = 252) -> bytes:
    """MODE SENSE of `page`, without block descriptors."""
    return struct.pack(">BBBBBB", 0x1A, 8, page, 0, room, 0)


def report_luns(room: int = 4096) -> bytes:
    return struct.pack(">B5xIBx", 0xA0, room, 0)


# ---- replies


def parse_keys(data: bytes) -> tuple[int, tuple[int, ...]]:
    """Generation and registered keys, one for each registered initiator, so that a key may be there twice.

    Raises:
        Unavailable: the reply is cut.
    """
    generation, length = _head(data, ">II")
    count = length // 8
    if len(data) < 8 + 8 * count:
        raise Unavailable(f"the device has {count} registrations, more than its reply had room for")
    return generation, struct.unpack_from(f">{count}Q", data, 8)


def parse_reservation(data: bytes) -> HeldReservation:
    """Raises:
    Unavailable: the reply is cut.
    """
    generation, length = _head(data, ">II")
    if length < 16:
        return HeldReservation(generation, None, 0)
    if len(data) < 24:
        raise Unavailable("the device's reply about its reservation is cut short")
    return HeldReservation(generation, struct.unpack_from(">Q", data, 8)[0], data[21] & 0x0F)


def parse_persists(data: bytes) -> bool:
    """From REPORT CAPABILITIES: whether reservations can survive the device's restart (PTPL_C)."""
    return len(data) >= 4 and bool(data[2] & 1)


def parse_capacity(data: bytes) -> tuple[int, int]:
    """Number of logical blocks, and bytes of one.

    Raises:
        Unavailable: the reply is cut.
    """
    last, block_bytes = _head(data, ">QI")
    return last + 1, block_bytes


def parse_caching(data: bytes) -> tuple[bool, bool]:
    """From MODE SENSE (6) of page 8: whether FUA is honoured, and whether there is a volatile write cache.

    Raises:
        Unavailable: the reply is cut.
    """
    _, _, specific, descriptors = _head(data, ">BBBB")
    page = data[4 + descriptors :]
    return bool(specific & 0x10), len(page) > 2 and bool(page[2] & 4)


def parse_transfer_blocks_max(data: bytes) -> int | None:
    """From VPD page B0h: the most blocks a command may move; None where the device states no limit."""
    return (struct.unpack_from(">I", data, 8)[0] or None) if len(data) >= 12 else None


def parse_luns(data: bytes) -> tuple[int, ...]:
    """Logical unit numbers below 16,384 (peripheral and flat addressing); others are passed over."""
    (length,) = _head(data, ">I")
    entries = [data[at : at + 8] for at in range(8, min(len(data), 8 + length) - 7, 8)]
    return tuple((entry[0] & 0x3F) << 8 | entry[1] for entry in entries if entry[0] >> 6 in (0, 1))


def parse_serial(data: bytes) -> str:
    """From VPD page 80h."""
    _, _, length = _head(data, ">BBH")
    return data[4 : 4 + length].decode("ascii", "replace").strip(" \0")


def parse_designators(data: bytes) -> tuple[str, ...]:
    """From VPD page 83h, of the logical unit: NAA and EUI-64 as lower-case hex digits, names as they are."""
    _, _, length = _head(data, ">BBH")
    found: list[str] = []
    at = 4
    while at + 4 <= min(len(data), 4 + length):
        text_set, kind, size = data[at] & 0x0F, data[at + 1], data[at + 3]
        value = data[at + 4 : at + 4 + size]
        if kind >> 4 & 3 == 0:  # associated with the unit, not with a port
            found.append(value.hex() if text_set == 1 else value.decode("utf-8", "replace").strip(" \0"))
        at += 4 + size
    return tuple(found)


def parse_sense(data: bytes) -> Sense:
    """Sense data of either format; an empty `Sense` when there is none."""
    code = data[0] & 0x7F if data else 0
    if code in (0x70, 0x71) and len(data) >= 14:
        return Sense(data[2] & 0x0F, data[12], data[13])
    if code in (0x72, 0x73) and len(data) >= 4:
        return Sense(data[1] & 0x0F, data[2], data[3])
    return Sense()


def judge(status: int, sense: Sense) -> Verdict:
    """What the end of a command means."""
    if status == Status.GOOD:
        return Verdict.GOOD
    if status == Status.RESERVATION_CONFLICT:
        return Verdict.CONFLICT
    if status in (Status.BUSY, Status.TASK_SET_FULL):
        return Verdict.BUSY
    if status != Status.CHECK_CONDITION:
        return Verdict.FAILED
    match sense.key, sense.asc, sense.ascq:
        case 6, 0x2A, 0x03 | 0x05:
            return Verdict.UNREGISTERED
        case 6, _, _:
            return Verdict.ATTENTION
        case 5, 0x25, _:
            return Verdict.GONE
        case 5, 0x20 | 0x24 | 0x26, _:
            return Verdict.UNSUPPORTED
        case 7, 0x27, 0x07:
            return Verdict.NO_ROOM
        case 7, 0x27, _:
            return Verdict.READ_ONLY
        case 2, 0x04, _:
            return Verdict.BUSY
        case 2, _, _:
            return Verdict.GONE
    return Verdict.FAILED


def _head(data: bytes, layout: str) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data)
    except struct.error as error:
        raise Unavailable(f"the device's reply of {len(data)} bytes is cut short") from error
