"""ECS disks through alibabacloud-ecs20140526: see `providers.base.volume_api.VolumeApi`.

A change is asked for while the disk is at rest, and read back until DescribeDisks shows it: ECS answers at once and
works on. A lost answer is no special case, since what is read decides.

Sharing across zones: the documents disagree (ECS page enable-multi-attach: one zone; ACK page
multi-attach-and-reservation: one region). It is tried; a refusal is `Invalid` with the fields `code`, `cross_zone` True
and `zones`, for the capability probe to read.

`take_over` needs AttachDisk's `Force`, which only cloud_regional_disk_auto has. What Force does to a shared disk's
other holders is not documented, so it is used only where the victim is the sole holder; otherwise the disk is attached
beside the others and the victim's attachment removed, which waits for the victim's guest.

RAM actions: ecs:CreateDisk, ecs:AttachDisk, ecs:DetachDisk, ecs:DeleteDisk, ecs:DescribeDisks, ecs:DescribeInstances,
ecs:DescribeInstanceTypes, and ecs:TagResources where tags are given.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from providers.aliyun.control import SETTINGS
from providers.aliyun.instances import PAGE_MAX, PAGES_MAX, EcsClient, id_groups, open_ecs
from providers.aliyun.volume_kinds import REGIONAL, SHARE_MAX, SHARE_TAG, client_token, creation, kind_of, tags_of
from providers.base.blocking import StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.registry import AccountAddress
from providers.base.volume_api import Attachment, AttachmentState, CloudVolume, VolumeApi, VolumeSpec
from providers.base.volume_limits import GIB
from providers.base.waiting import WaitSettings

SENDS_MAX = 4
"""Times that one change is asked for."""

RESEND_MS = 5_000
"""An accepted change that shows no trace for so long is asked for again."""

ABSENT_MS_MAX = 3_000
"""A created disk that is not listed for so long was deleted: the token stood for an earlier one."""

GENERATIONS_MAX = 16
"""Deleted disks of one name that a `create` steps over."""

_RESTING = frozenset(["Available", "In_use"])


def open_volume_api(
    address: AccountAddress,
    *,
    clock: Clock,
    rng: Rng,
    settings: StoreSettings = SETTINGS,
    wait: WaitSettings | None = None,
) -> VolumeApi:
    """See `providers.base.registry.open_volume_api`.

    Raises:
        Invalid: unreadable credentials, malformed address.
    """
    return EcsVolumes(open_ecs(address, settings, clock=clock, rng=rng), clock, wait or WaitSettings())


class EcsVolumes:
    """One region's disks. See the module."""

    def __init__(self, ecs: EcsClient, clock: Clock, wait: WaitSettings) -> None:
        self._ecs = ecs
        self._wait = wait
        self._clock = clock

    async def create(self, spec: VolumeSpec) -> CloudVolume:
        wanted = creation(spec, self._ecs.region)
        named = [
            row for row in await self._disks(name=spec.name) if row.disk_name == spec.name and row.status != "Deleting"
        ]
        if len(named) > 1:
            ids = ", ".join(row.disk_id for row in named)
            raise Invalid(f"several disks are named {spec.name}: {ids}", hint="rename or delete all but one")
        if named:
            return await self._created(named[0].disk_id, spec, wanted)
        earlier: tuple[str, ...] = ()
        while len(earlier) < GENERATIONS_MAX:
            token = client_token(self._ecs.region, spec.name, earlier)
            call = partial(self._create, wanted, tags_of(spec), token)
            disk_id = await self._ecs.calls.repeated(f"volume {spec.name}", call, changes=True)
            try:
                return await self._created(disk_id, spec, wanted)
            except NotFound:
                earlier = (*earlier, disk_id)
        raise Invalid(f"{spec.name} was created and deleted too often", hint="take another name")

    def _create(self, wanted: dict[str, Any], tags: Sequence[tuple[str, str]], token: str) -> str:
        from alibabacloud_ecs20140526.models import CreateDiskRequest, CreateDiskRequestTag

        request = CreateDiskRequest(**wanted, client_token=token)
        request.tag = [CreateDiskRequestTag(key=key, value=value) for key, value in tags]
        disk_id: str = self._ecs.client().create_disk(request).body.disk_id
        return disk_id

    async def _created(self, disk_id: str, spec: VolumeSpec, wanted: dict[str, Any]) -> CloudVolume:
        """The disk, when it can be attached.

        Raises:
            NotFound: it is not there, for long enough to be sure.
            Invalid: it is not what `spec` asks for.
        """
        absent_until_ms = self._clock.monotonic_ms() + ABSENT_MS_MAX

        def done(row: Any) -> bool:
            if row is None and self._clock.monotonic_ms() >= absent_until_ms:
                raise NotFound(f"disk {disk_id} does not exist")
            return row is not None and row.status in _RESTING

        row = await self._until(f"the creation of {disk_id}", disk_id, done, None)
        for field, expected in wanted.items():
            actual = getattr(row, field if field != "disk_category" else "category")
            if field == "region_id" or (expected is None and field in ("zone_id", "performance_level")):
                continue
            if (actual or None) != expected and (field, expected) != ("multi_attach", "Disabled"):
                raise Invalid(
                    f"disk {disk_id} is named {spec.name}, but its {field} is {actual}, not {expected}",
                    hint="give the volume another name, or delete the disk",
                    field=field,
                    actual=actual,
                    expected=expected,
                )
        volume = _volume(row)
        if volume.share_max != spec.share_max:
            raise Invalid(
                f"disk {disk_id} is named {spec.name}, but made for {volume.share_max} instances, not {spec.share_max}",
                hint=f"give the volume another name, or set the disk's tag {SHARE_TAG}",
                field="share_max",
            )
        return volume

    async def attach(self, volume_id: str, instance: str) -> CloudVolume:
        return await self._attach(volume_id, instance, force=False)

    async def _attach(self, volume_id: str, instance: str, *, force: bool) -> CloudVolume:
        machine = await self._machine(instance)

        async def act(row: Any) -> None:
            volume = _volume(row)
            await self._check_attachable(volume, machine, force)
            try:
                call = partial(self._attach_once, volume_id, instance, force)
                await self._ecs.calls.once(f"attaching {volume_id} to {instance}", call, changes=True)
            except Invalid as refused:
                raise await self._explained(refused, volume, machine) from refused

        def done(row: Any) -> bool:
            _require(row, volume_id)
            return row.status == "In_use" and _attached_to(row, instance)

        # A forced attach does not wait for a detach that the old holder does not end.
        also_in = "Detaching" if force else ""
        subject = f"attaching {volume_id} to {instance}"
        return _volume(await self._until(subject, volume_id, done, act, also_in=also_in))

    def _attach_once(self, volume_id: str, instance: str, force: bool) -> None:
        from alibabacloud_ecs20140526.models import AttachDiskRequest

        request = AttachDiskRequest(disk_id=volume_id, instance_id=instance)
        if force:
            request.force = True
        self._ecs.client().attach_disk(request)

    async def _machine(self, instance: str) -> Any:
        rows = await self._ecs.instances([instance])
        if not rows:
            raise NotFound(f"instance {instance} does not exist in {self._ecs.region}", instance=instance)
        return rows[0]

    async def _check_attachable(self, volume: CloudVolume, machine: Any, force: bool) -> None:
        if volume.zones and machine.zone_id not in volume.zones:
            raise Invalid(
                f"disk {volume.id} reaches {', '.join(volume.zones)}; {machine.instance_id} is in {machine.zone_id}",
                hint="choose an instance in one of the volume's zones",
                code="ResourcesNotInSameZone",
                zones=volume.zones,
            )
        if volume.share_max > 1:
            nvme = await self._ecs.nvme_support({machine.instance_type})
            if not nvme.get(machine.instance_type, True):
                raise Invalid(
                    f"{machine.instance_id} is a {machine.instance_type}, which has no NVMe and takes no shared disk",
                    hint="choose an instance family with NVMe support (DescribeInstanceTypes)",
                    code="InvalidOperation.InstanceTypeNotSupport",
                )
        if not force and len(volume.attachments) >= volume.share_max:
            holders = ", ".join(attachment.instance for attachment in volume.attachments)
            raise Conflict(
                f"disk {volume.id} is attached to {holders}, and no more instances may have it",
                hint="create it with a greater share_max, or use take_over",
                code="DiskAttachedNumberExceeded",
            )

    async def _explained(self, refused: Invalid, volume: CloudVolume, machine: Any) -> Invalid:
        """The refusal, with what the probe of sharing across zones wants to know."""
        others = [attachment.instance for attachment in volume.attachments]
        code = str(refused.fields.get("code", ""))
        if volume.kind != REGIONAL or not others or not _may_be_about_zones(code):
            return refused
        zones = {row.zone_id for row in await self._ecs.instances(others)} | {machine.zone_id}
        if len(zones) < 2:
            return refused
        return Invalid(
            refused.message,
            hint="disks are not shared across zones here: the WAL needs a forced attach at failover",
            **{**refused.fields, "cross_zone": True, "zones": tuple(sorted(zones))},
        )

    async def detach(self, volume_id: str, instance: str, *, force: bool = False) -> CloudVolume:
        if force:
            raise Invalid(
                "Alibaba Cloud has no forced detach",
                hint=f"take the volume over instead, which {REGIONAL} can do",
                field="force",
            )

        async def act(_: Any) -> None:
            call = partial(self._detach_once, volume_id, instance)
            await self._ecs.calls.once(f"detaching {volume_id} from {instance}", call, changes=True)

        def done(row: Any) -> bool:
            _require(row, volume_id)
            return row.status in _RESTING and not _attached_to(row, instance)

        return _volume(await self._until(f"detaching {volume_id} from {instance}", volume_id, done, act))

    def _detach_once(self, volume_id: str, instance: str) -> None:
        from alibabacloud_ecs20140526.models import DetachDiskRequest

        self._ecs.client().detach_disk(DetachDiskRequest(disk_id=volume_id, instance_id=instance))

    async def take_over(self, volume_id: str, victim: str, instance: str) -> CloudVolume:
        volume = _volume(_require(await self._disk(volume_id), volume_id))
        if volume.kind != REGIONAL:
            raise Invalid(
                f"a {volume.kind} cannot be taken over by force on Alibaba Cloud",
                hint=f"use {REGIONAL}, or detach it from {victim} first",
                code="DiskCategory.OperationNotSupported",
            )
        holders = {attachment.instance for attachment in volume.attachments}
        volume = await self._attach(volume_id, instance, force=victim in holders and holders <= {victim, instance})
        if any(attachment.instance == victim for attachment in volume.attachments):
            volume = await self.detach(volume_id, victim)
        return volume

    async def describe(self, volume_ids: Sequence[str] | None = None) -> Sequence[CloudVolume]:
        return [_volume(row) for row in await self._disks(ids=volume_ids)]

    async def delete(self, volume_id: str) -> None:
        async def act(row: Any) -> None:
            if _holders(row):
                raise Conflict(
                    f"disk {volume_id} is attached to {', '.join(_holders(row))}",
                    hint="detach it first",
                    code="IncorrectDiskStatus",
                )
            call = partial(self._delete_once, volume_id)
            try:
                await self._ecs.calls.once(f"deleting {volume_id}", call, changes=True)
            except NotFound:
                pass  # gone meanwhile

        await self._until(f"deleting {volume_id}", volume_id, lambda row: row is None, act)

    def _delete_once(self, volume_id: str) -> None:
        from alibabacloud_ecs20140526.models import DeleteDiskRequest

        self._ecs.client().delete_disk(DeleteDiskRequest(disk_id=volume_id))

    async def _until(
        self,
        subject: str,
        disk_id: str,
        done: Callable[[Any], bool],
        act: Callable[[Any], Awaitable[None]] | None,
        *,
        also_in: str = "",
    ) -> Any:
        """Read the disk until `done` says so of what DescribeDisks shows (None: nothing); `act` asks for the change
        while the disk is at rest, or in the status `also_in`.

        Raises:
            Unavailable: not done in time; chained to the last refusal.
            YunheError: whatever `done` and `act` raise otherwise.
        """
        started_ms = self._clock.monotonic_ms()
        pause_ms, sends, send_after_ms = self._wait.poll_ms, 0, started_ms
        last: Unavailable | None = None
        while True:
            row = await self._disk(disk_id)
            if done(row):
                return row
            now_ms = self._clock.monotonic_ms()
            ripe = row is not None and (row.status in _RESTING or row.status == also_in)
            if act is not None and ripe and now_ms >= send_after_ms:
                if sends == SENDS_MAX:
                    raise last or Unavailable(f"{subject} was asked for {sends} times without effect")
                sends += 1
                try:
                    await act(row)
                    pause_ms, send_after_ms = self._wait.poll_ms, self._clock.monotonic_ms() + RESEND_MS
                except OutcomeUnknown as error:
                    last, send_after_ms = error, self._clock.monotonic_ms() + RESEND_MS
                except Unavailable as error:
                    last = error
                    sends -= 1  # refused for now: only time bounds these
                except Conflict:
                    if not done(await self._disk(disk_id)):
                        raise
                    continue
            if self._clock.monotonic_ms() + pause_ms >= started_ms + self._wait.wait_timeout_ms:
                raise Unavailable(
                    f"{subject} did not end within {self._wait.wait_timeout_ms / 1000:g} s",
                    hint="it may still end: the same call tells",
                ) from last
            await self._clock.sleep_ms(pause_ms)
            pause_ms = min(pause_ms * 2, self._wait.poll_ms_max)

    async def _disk(self, disk_id: str) -> Any | None:
        rows = await self._disks(ids=[disk_id])
        return rows[0] if rows else None

    async def _disks(self, *, ids: Sequence[str] | None = None, name: str | None = None) -> list[Any]:
        found: list[Any] = []
        for some in id_groups(ids):
            token = None
            for _ in range(PAGES_MAX):
                call = partial(self._disks_page, some, name, token)
                body = await self._ecs.calls.repeated("DescribeDisks", call)
                found.extend(body.disks.disk if body.disks else [])
                token = body.next_token
                if not token:
                    break
            else:
                raise Unavailable(f"DescribeDisks did not end within {PAGES_MAX} pages")
        return found

    def _disks_page(self, ids: list[str] | None, name: str | None, token: str | None) -> Any:
        from alibabacloud_ecs20140526.models import DescribeDisksRequest

        request = DescribeDisksRequest(
            region_id=self._ecs.region,
            disk_type="data",
            additional_attributes=["Placement"],
            max_results=PAGE_MAX,
            next_token=token,
            disk_name=name,
        )
        if ids is not None:
            request.disk_ids = json.dumps(ids)
        return self._ecs.client().describe_disks(request).body

    async def close(self) -> None:
        self._ecs.calls.close()


def _may_be_about_zones(code: str) -> bool:
    """Whether a refusal may be that of sharing across zones, whose code no document names. One of credentials, limits
    or instance types is another thing, and must not be taken for it."""
    family = code.partition(".")[0]
    return "Zone" in code or (
        family in ("InvalidOperation", "OperationDenied") and not code.endswith("InstanceTypeNotSupport")
    )


def _require(row: Any | None, volume_id: str) -> Any:
    if row is None:
        raise NotFound(f"disk {volume_id} does not exist", volume=volume_id)
    return row


def _holders(row: Any) -> list[str]:
    attachments = row.attachments.attachment if row.attachments else None
    if attachments:
        return [attachment.instance_id for attachment in attachments]
    return [row.instance_id] if row.instance_id else []


def _attached_to(row: Any, instance: str) -> bool:
    return instance in _holders(row)


def _volume(row: Any) -> CloudVolume:
    """As the contract has it. ECS has a state for the disk, not for each attachment: one that is being made has no
    time yet, and a detach is told apart only where there is one attachment."""
    level = row.performance_level if row.category == "cloud_essd" else None
    placement = row.placement.zone_ids if row.placement else None
    zones = tuple(sorted(placement.split(","))) if placement else (row.zone_id,) if row.zone_id else ()
    volume = CloudVolume(
        id=row.disk_id,
        name=row.disk_name or "",
        kind=kind_of(row.category, level),
        size_bytes=int(row.size) * GIB,
        zones=zones,
        share_max=_share_max(row),
        ready=row.status not in ("Creating", "ReIniting", "Deleting"),
    )
    attachments = row.attachments.attachment if row.attachments else None
    if not attachments:
        devices = [(instance, row.device, row.attached_time) for instance in _holders(row)]
    else:
        devices = [(found.instance_id, found.device, found.attached_time) for found in attachments]
    return replace(
        volume,
        attachments=tuple(
            Attachment(instance, _state(row.status, len(devices), at), device or "") for instance, device, at in devices
        ),
    )


def _share_max(row: Any) -> int:
    """ECS lets 16 instances share a disk, and has no lower limit: a tag says what was asked for."""
    if row.multi_attach != "Enabled":
        return 1
    tags = {tag.tag_key: tag.tag_value for tag in (row.tags.tag if row.tags else None) or []}
    asked = tags.get(SHARE_TAG, "")
    return min(int(asked), SHARE_MAX) if asked.isdigit() else SHARE_MAX


def _state(status: str, attachments: int, attached_at: str | None) -> AttachmentState:
    if status == "Attaching" and (attachments == 1 or not attached_at):
        return AttachmentState.ATTACHING
    if status == "Detaching" and attachments == 1:
        return AttachmentState.DETACHING
    return AttachmentState.ATTACHED
