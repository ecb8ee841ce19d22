"""Block volumes of an iSCSI array, without a kernel device: `iscsi://[user@]host[:port]/target[/lun][?abort=yes]`.

A handle is one session with an initiator port (ISID) of its own, so that the array tells handles apart and fences one
process from another even on one host. `BlockVolumes.open` finds the logical unit by what the array says of itself: the
volume id is its serial number (VPD page 80h), one of its names (83h: NAA, EUI-64, text), or `lun-N`.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qs, urlsplit

from providers.base import scsi
from providers.base.errors import Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.fence import DeviceReservation, Fence
from providers.base.host_contents import Ours, check_contents
from providers.base.libiscsi import Ended, Session, SessionSettings
from providers.base.scsi import PrIn, PrOut, Sense, Verdict
from providers.base.volumes import BLOCK_BYTES, BlockDevice, Reservation, Volume

log = logging.getLogger(__name__)

PORT = 3260
"""IANA's port of iSCSI."""
TRANSFER_BYTES_MAX = 4 << 20
"""Longest command where the array states no limit; longer reads and writes are made of several."""
ATTENTIONS_MAX = 3
"""Unit attentions that may come before a command is carried out: an array queues a few (reset, capacity, modes)."""
_REGISTERS = (PrOut.REGISTER, PrOut.REGISTER_AND_IGNORE_EXISTING_KEY)
SECRET_VARIABLE = "YUNHE_ISCSI_SECRET"
"""The CHAP secret's environment variable, as an endpoint holds no secret."""


@dataclass(frozen=True, slots=True)
class IscsiAddress:
    """`aborts`: the array's PREEMPT AND ABORT ends the victim's commands before it returns. Only its maker's word, or a
    test of it, says so; assumed false."""

    host: str
    port: int
    target: str
    lun: int | None = None
    user: str | None = None
    aborts: bool = False


def parse_endpoint(endpoint: str) -> IscsiAddress:
    """Raises:
    Invalid: not such an address.
    """
    hint = "iscsi://[user@]host[:port]/target-name[/lun][?abort=yes]"
    try:
        parts = urlsplit(endpoint)
        port = parts.port or PORT
    except ValueError as error:
        raise Invalid(f"{endpoint} is no iSCSI address: {error}", hint=hint) from error
    path = parts.path.strip("/").split("/")
    options = parse_qs(parts.query, keep_blank_values=True)
    known = set(options) <= {"abort"} and options.get("abort", ["no"])[-1] in ("yes", "no")
    sound = parts.scheme == "iscsi" and parts.hostname and path[0] and len(path) <= 2 and known and not parts.password
    if not sound or (len(path) == 2 and not (path[1].isdecimal() and int(path[1]) < 1 << 14)):
        raise Invalid(f"{endpoint} is no iSCSI address", hint=hint)
    lun = int(path[1]) if len(path) == 2 else None
    aborts = options.get("abort") == ["yes"]
    return IscsiAddress(str(parts.hostname), port, path[0], lun, parts.username, aborts)


class _Unit:
    """One logical unit over one session: commands whose unit attentions are met, and whose refusals are errors."""

    def __init__(self, session: Session, lun: int, name: str) -> None:
        self.session = session
        self.lun = lun
        self.name = name

    async def tell(
        self, cdb: bytes, *, out: memoryview | bytes | None = None, into: bytearray | None = None, room: int = 0
    ) -> tuple[Verdict, Ended]:
        """A command's end; one that met a unit attention, which reports something else and does nothing, is sent
        again."""
        for _ in range(ATTENTIONS_MAX):
            ended = await self.session.command(self.lun, cdb, out=out, into=into, room=room)
            verdict = scsi.judge(ended.status, ended.sense)
            if verdict is not Verdict.ATTENTION:
                return verdict, ended
        return Verdict.BUSY, ended

    async def ask(self, cdb: bytes, room: int) -> bytes:
        """The reply of a command that changes nothing.

        Raises:
            YunheError: it was not given.
        """
        verdict, ended = await self._settled(cdb, room)
        if verdict is not Verdict.GOOD:
            raise self.error(verdict, ended, "a question")
        return ended.data

    async def ask_if_known(self, cdb: bytes, room: int) -> bytes:
        """The same, or nothing where the device does not know the question."""
        verdict, ended = await self._settled(cdb, room)
        if verdict is Verdict.UNSUPPORTED:
            return b""
        if verdict is not Verdict.GOOD:
            raise self.error(verdict, ended, "a question")
        return ended.data

    async def _settled(self, cdb: bytes, room: int) -> tuple[Verdict, Ended]:
        """For commands that any initiator may send: that this one lost its registration is told to writes only."""
        verdict, ended = await self.tell(cdb, room=room)
        return await self.tell(cdb, room=room) if verdict is Verdict.UNREGISTERED else (verdict, ended)

    def error(self, verdict: Verdict, ended: Ended, what: str, *, changes: bool = False) -> YunheError:
        sense: Sense = ended.sense
        said = f"status {ended.status:#x}, sense {sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}"
        match verdict:
            case Verdict.GONE:
                return NotFound(f"volume {self.name} is gone ({said})")
            case Verdict.NO_ROOM:
                return Full(f"the space behind volume {self.name} has run out ({said})")
            case Verdict.UNSUPPORTED:
                return Invalid(f"volume {self.name} does not know {what} ({said})")
            case Verdict.READ_ONLY:
                return Unavailable(f"volume {self.name} is read-only ({said})", hint="attach it for writing")
            case Verdict.BUSY | Verdict.CONFLICT:
                return Unavailable(f"volume {self.name} is busy ({said})")
            case _:
                kind = OutcomeUnknown if changes else Unavailable
                return kind(f"volume {self.name}: {what} failed ({said})")


class IscsiReservations:
    """`ReservationCommands` by PERSISTENT RESERVE IN and OUT."""

    def __init__(self, unit: _Unit, *, aborts: bool) -> None:
        self._unit = unit
        self._preempt = PrOut.PREEMPT_AND_ABORT if aborts else PrOut.PREEMPT
        self.persists = False
        """Whether the device keeps reservations over its own restart, and so is asked to."""

    async def register(self, key: int) -> bool:
        return await self._out(PrOut.REGISTER_AND_IGNORE_EXISTING_KEY, 0, key)

    async def reserve(self, key: int) -> bool:
        return await self._out(PrOut.RESERVE, key)

    async def release(self, key: int) -> bool:
        return await self._out(PrOut.RELEASE, key)

    async def preempt(self, key: int, victim: int) -> bool:
        return await self._out(self._preempt, key, victim)

    async def read(self) -> DeviceReservation:
        """Both questions travel together; asked again if a registration changed between them."""
        held_cdb, keys_cdb = (scsi.persistent_reserve_in(a) for a in (PrIn.READ_RESERVATION, PrIn.READ_KEYS))
        for _ in range(ATTENTIONS_MAX):
            asked = (self._unit.ask(held_cdb, scsi.PR_IN_BYTES), self._unit.ask(keys_cdb, scsi.PR_IN_BYTES))
            one, other = await asyncio.gather(*asked)
            held, (generation, keys) = scsi.parse_reservation(one), scsi.parse_keys(other)
            if held.generation == generation:
                # Type 3, exclusive access, keeps others from writing as well.
                name = scsi.TYPES.get(held.type, f"type {held.type}")
                return DeviceReservation(held.holder, keys, generation, held.type in (0, 1, 3), name)
        raise Unavailable(f"the registrations of volume {self._unit.name} change faster than they are read")

    async def _out(self, action: PrOut, key: int, action_key: int = 0) -> bool:
        cdb, parameters = scsi.persistent_reserve_out(
            action, key=key, action_key=action_key, persist=self.persists and action in _REGISTERS
        )
        verdict, ended = await self._unit.tell(cdb, out=parameters)
        if verdict is Verdict.UNREGISTERED:  # the loss of an earlier registration is told once, before anything else
            verdict, ended = await self._unit.tell(cdb, out=parameters)
        if verdict is Verdict.UNSUPPORTED:
            raise Invalid(
                f"volume {self._unit.name} does not know the reservation command {action.name}",
                hint="it cannot be fenced so"
                + (": leave out ?abort=yes" if action is PrOut.PREEMPT_AND_ABORT else ": choose another WAL mode"),
            )
        if verdict not in (Verdict.GOOD, Verdict.CONFLICT):
            raise self._unit.error(verdict, ended, action.name)
        return verdict is Verdict.GOOD


class _Durability(Enum):
    """What makes a write durable: a bit of its own, a flush behind it, or nothing (no volatile cache)."""

    FUA = "fua"
    FLUSH = "flush"
    ALWAYS = "always"


class IscsiBlockDevice:
    """`BlockDevice` over one session."""

    def __init__(self, unit: _Unit, *, aborts: bool) -> None:
        self._unit = unit
        self._aborts = aborts
        self._reservations = IscsiReservations(unit, aborts=aborts)
        self._fence = Fence(self._reservations, unit.name)
        self._block_bytes = 0
        self._size_bytes = 0
        self._transfer_bytes = TRANSFER_BYTES_MAX
        self._durable: _Durability | None = None

    async def prepare(self) -> None:
        """Read what the device says of itself.

        Raises:
            Invalid: its blocks are longer than BLOCK_BYTES, or it has no reservations.
        """
        unit = self._unit
        blocks, self._block_bytes = scsi.parse_capacity(await unit.ask(scsi.read_capacity_16(), 32))
        if not self._block_bytes or BLOCK_BYTES % self._block_bytes:
            raise Invalid(f"volume {unit.name} has blocks of {self._block_bytes} bytes, which do not fit {BLOCK_BYTES}")
        self._size_bytes = blocks * self._block_bytes // BLOCK_BYTES * BLOCK_BYTES
        limits = await unit.ask_if_known(scsi.inquiry(0xB0), 252)
        if (most := scsi.parse_transfer_blocks_max(limits)) is not None:
            room = most * self._block_bytes // BLOCK_BYTES * BLOCK_BYTES
            self._transfer_bytes = max(BLOCK_BYTES, min(TRANSFER_BYTES_MAX, room))
        if not await unit.ask_if_known(scsi.persistent_reserve_in(PrIn.READ_KEYS), scsi.PR_IN_BYTES):
            raise Invalid(
                f"volume {unit.name} has no persistent reservations and cannot be fenced",
                hint="use an array that has them, or another WAL mode",
            )
        capabilities = scsi.persistent_reserve_in(PrIn.REPORT_CAPABILITIES)
        self._reservations.persists = scsi.parse_persists(await unit.ask_if_known(capabilities, scsi.PR_IN_BYTES))
        if not self._reservations.persists:
            # Its sessions end with it, and one that is lost stays lost: an old owner cannot come back unregistered.
            log.warning("reservations-end-with-the-device", extra={"volume": unit.name})
        await self._fence.probe()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def preempt_aborts(self) -> bool:
        return self._aborts

    async def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        start = offset // self._block_bytes * self._block_bytes
        end = -(-(offset + length) // self._block_bytes) * self._block_bytes
        parts = [
            await self._read(at, min(self._transfer_bytes, end - at)) for at in range(start, end, self._transfer_bytes)
        ]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return bytes(data[offset - start : offset - start + length])

    async def _read(self, offset: int, length: int) -> bytearray:
        into = bytearray(length)
        cdb = scsi.read_16(offset // self._block_bytes, length // self._block_bytes)
        verdict, ended = await self._unit.tell(cdb, into=into)
        if verdict is Verdict.UNREGISTERED:
            # Reads need no registration; the next write has to learn of it all the same.
            self._fence.refused("this attachment's registration was removed")
            verdict, ended = await self._unit.tell(cdb, into=into)
        if verdict is not Verdict.GOOD:
            raise self._unit.error(verdict, ended, f"a read at {offset}")
        return into

    async def allocate(self, size: int) -> memoryview:
        return memoryview(mmap.mmap(-1, size))

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        self._check(offset, len(data))
        if offset % BLOCK_BYTES or len(data) % BLOCK_BYTES:
            raise Invalid(f"a write is aligned to {BLOCK_BYTES} bytes", offset=offset, length=len(data))
        self._fence.check()
        durable = self._durable or await self._learn_durability()
        view = memoryview(data)
        for at in range(0, len(data), self._transfer_bytes):
            self._fence.check()
            part = view[at : at + self._transfer_bytes]
            blocks = len(part) // self._block_bytes
            cdb = scsi.write_16((offset + at) // self._block_bytes, blocks, fua=durable is _Durability.FUA)
            await self._change(cdb, part, f"a write at {offset + at}")
        if durable is _Durability.FLUSH:
            await self._change(scsi.synchronize_cache_16(), None, "a flush of its cache")

    async def _learn_durability(self) -> _Durability:
        """How a write becomes durable here. Asked at the first write, since a device that somebody else has reserved
        answers MODE SENSE with a conflict (SPC-4, table 65), as it would the write."""
        verdict, ended = await self._as_writer(scsi.mode_sense_6(8), room=252)
        if verdict is Verdict.GOOD:
            fua, cached = scsi.parse_caching(ended.data)
            self._durable = _Durability.FUA if fua else _Durability.FLUSH if cached else _Durability.ALWAYS
        elif verdict is Verdict.UNSUPPORTED:
            self._durable = _Durability.FLUSH  # one round trip too many costs less than data
        else:
            raise self._unit.error(verdict, ended, "a question")
        return self._durable

    async def _change(self, cdb: bytes, data: memoryview | None, what: str) -> None:
        verdict, ended = await self._as_writer(cdb, out=data)
        if verdict is not Verdict.GOOD:
            # BUSY and READ_ONLY say that nothing was done; the flush of a done write is never that.
            raise self._unit.error(verdict, ended, what, changes=True)

    async def _as_writer(self, cdb: bytes, *, out: memoryview | None = None, room: int = 0) -> tuple[Verdict, Ended]:
        """A command that only the reservation's holder may send while there is one.

        Raises:
            Fenced: another holds it, or the device says that this session's registration was removed.
        """
        verdict, ended = await self._unit.tell(cdb, out=out, room=room)
        if verdict is Verdict.UNREGISTERED and self._fence.key is None:  # of a registration given up long ago
            verdict, ended = await self._unit.tell(cdb, out=out, room=room)
        if verdict is Verdict.UNREGISTERED:
            raise self._fence.refused("this attachment's registration was removed")
        if verdict is Verdict.CONFLICT:
            raise self._fence.refused("another key holds the reservation")
        return verdict, ended

    async def register(self, key: int) -> None:
        await self._fence.register(key)

    async def reserve(self) -> None:
        await self._fence.reserve()

    async def preempt(self, victim: int) -> None:
        await self._fence.preempt(victim)

    async def release(self) -> None:
        await self._fence.release()

    async def reservation(self) -> Reservation:
        return await self._fence.state()

    async def close(self) -> None:
        await self._unit.session.close()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size_bytes:
            raise Invalid(f"[{offset}, {offset + length}) is outside the volume", size_bytes=self._size_bytes)


class IscsiBlockVolumes:
    """`BlockVolumes` of one target: its data half. Volumes are made and mapped with the array's own tools."""

    def __init__(
        self,
        endpoint: str,
        *,
        devices: Mapping[str, str] | None = None,
        ours: Ours | None = None,
        settings: SessionSettings | None = None,
    ) -> None:
        """`devices`: what the array calls a volume, by name.

        Raises:
            Invalid: no iSCSI address.
        """
        self._devices = dict(devices or {})
        self._address = parse_endpoint(endpoint)
        self._ours = ours
        self._settings = settings or SessionSettings()

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        raise self._elsewhere("created")

    async def attach(self, volume_id: str, zone: str) -> Volume:
        raise self._elsewhere("attached")

    async def detach(self, volume_id: str, zone: str) -> Volume:
        raise self._elsewhere("detached")

    async def describe(self) -> Sequence[Volume]:
        raise self._elsewhere("described")

    async def delete(self, volume_id: str) -> None:
        raise self._elsewhere("deleted")

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        """Open the logical unit that is `volume_id`. `zone` is this host's and is not looked at.

        Raises:
            NotFound: no unit of that name.
            Invalid: two have it, or it holds something that is not ours.
            Unavailable: the target cannot be reached.
        """
        address = self._address
        session = await self._login(-1)
        try:
            lun = await self._find(session, self._devices.get(volume_id, volume_id))
            device = IscsiBlockDevice(_Unit(session, lun, volume_id), aborts=address.aborts)
            await device.prepare()
            await check_contents(device, volume_id, self._ours)
        except BaseException:
            await session.close()
            raise
        return device

    async def _login(self, lun: int) -> Session:
        address = self._address
        user = None
        if address.user is not None:
            secret = os.environ.get(SECRET_VARIABLE)
            if not secret:
                raise Invalid(f"user {address.user} has no CHAP secret", hint=f"set {SECRET_VARIABLE}")
            user = (address.user, secret)
        return await Session.login(
            address.host,
            address.port,
            address.target,
            initiator=initiator_name(),
            user=user,
            lun=lun,
            settings=self._settings,
        )

    async def _find(self, session: Session, volume_id: str) -> int:
        target = _Unit(session, 0, self._address.target)
        luns = scsi.parse_luns(await target.ask(scsi.report_luns(), 4096))
        if self._address.lun is not None:
            luns = tuple(lun for lun in luns if lun == self._address.lun)
        found = [lun for lun in luns if await self._is(session, lun, volume_id)]
        if not found:
            raise NotFound(
                f"target {self._address.target} has no unit {volume_id}",
                hint="a volume id is the unit's serial number, NAA or EUI-64 name, or lun-N",
            )
        if len(found) > 1:
            shown = ", ".join(map(str, found))
            raise Invalid(f"units {shown} of target {self._address.target} are all called {volume_id}")
        return found[0]

    async def _is(self, session: Session, lun: int, volume_id: str) -> bool:
        unit = _Unit(session, lun, f"lun-{lun}")
        standard = await unit.ask(scsi.inquiry(None), 252)
        if not standard or standard[0] & 0x1F:  # peripheral device type: 0 is a disk
            return False
        if volume_id == f"lun-{lun}":
            return True
        serial = await unit.ask_if_known(scsi.inquiry(0x80), 252)
        if serial and scsi.parse_serial(serial) == volume_id:
            return True
        names = await unit.ask_if_known(scsi.inquiry(0x83), 252)
        return bool(names) and volume_id in scsi.parse_designators(names)

    async def close(self) -> None:
        """Nothing to release: handles are closed by whoever opened them."""

    def _elsewhere(self, done: str) -> Invalid:
        return Invalid(
            f"volumes of the iSCSI target {self._address.target} cannot be {done} from here",
            hint="make the unit and map it to these hosts with the array's own tools beforehand",
        )


def initiator_name() -> str:
    """This host's iSCSI name: what open-iscsi has, else one of our own (RFC 7143, 4.2.7.4)."""
    try:
        with open("/etc/iscsi/initiatorname.iscsi", encoding="ascii") as file:  # noqa: PTH123 -- read at once
            for line in file:
                if line.startswith("InitiatorName="):
                    return line.removeprefix("InitiatorName=").strip()
    except (OSError, UnicodeDecodeError):
        pass
    return f"iqn.2026-11.dev.yunhe:{os.uname().nodename.lower()}"
