"""Block volumes of an iSCSI array, without a kernel device: `iscsi://[user@]host[:port]/target[/lun][?abort=yes]`.

A handle is one session with an initiator port (ISID) of its own, so that the array tells handles apart and fences one
process from another even on one host. `BlockVolumes.open` finds the logical unit by what the array says of itself: the
volume id is its serial number (VPD page 80h), one of its names (83h: NAA, EUI-64, text), or `lun-N`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from providers.base import scsi
from providers.base.errors import Invalid, NotFound
from providers.base.host_contents import Ours, check_contents
from providers.base.iscsi_device import IscsiBlockDevice, IscsiUnit
from providers.base.libiscsi import Session, SessionSettings
from providers.base.ready_volumes import ReadyVolumes
from providers.base.volumes import BlockDevice

PORT = 3260
"""IANA's port of iSCSI."""
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


class IscsiBlockVolumes(ReadyVolumes):
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
            device = IscsiBlockDevice(IscsiUnit(session, lun, volume_id), aborts=address.aborts)
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
        target = IscsiUnit(session, 0, self._address.target)
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
        unit = IscsiUnit(session, lun, f"lun-{lun}")
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
