"""Azure's managed disks through azure-mgmt-compute: the real VolumeApi.

The identity needs, on the resource group that holds disks and machines, a role with just these actions:

    Microsoft.Compute/disks/read, …/disks/write, …/disks/delete
    Microsoft.Compute/virtualMachines/read, …/virtualMachines/attachDetachDataDisks/action
    Microsoft.Compute/locations/operations/read, …/locations/diskOperations/read   (the progress of a change)
    Microsoft.Network/networkInterfaces/read   (instances.py: the machines' private addresses)
    Microsoft.Network/dnsZones/read, …/dnsZones/*/read, …/dnsZones/*/write, …/dnsZones/*/delete   (dns.py)

Ids are names inside the account's resource group. A disk that is shared has no host cache (disks-shared), so none has
here. How many machines share a disk is fixed at its creation: Azure changes maxShares only while it is unattached.
Attaching goes by the machine (attachDetachDataDisks), which picks the LUN itself when none is given, so that two
callers cannot pick the same one; the LUN is an attachment's `device`, and names it on the host
(/dev/disk/azure/data/by-lun/N).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from providers.azure.arm import Account
from providers.azure.arm_errors import code_of
from providers.azure.disk_limits import REDUNDANT, ZONES, check
from providers.azure.instances import ASKED_ONE_BY_ONE_MAX, compute_client
from providers.base.blocking import StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable, YunheError
from providers.base.registry import AccountAddress
from providers.base.volume_api import Attachment, AttachmentState, CloudVolume, VolumeApi, VolumeSpec
from providers.base.volume_limits import GIB
from providers.base.waiting import WaitSettings, wait_for

_ABSENT = ("ResourceNotFound", "NotFound")

MIB_PER_MB = 1_000_000 / (1 << 20)
"""Azure counts a provisioned throughput in millions of bytes."""


def open_volume_api(
    address: AccountAddress,
    *,
    clock: Clock,
    rng: Rng,
    settings: StoreSettings | None = None,
    wait: WaitSettings | None = None,
) -> VolumeApi:
    """Open the managed disks of the address's resource group; nothing is sent yet.

    Raises:
        Invalid: no subscription or resource group, unreadable credentials.
    """
    return AzureVolumes(Account(address, settings, wait, clock=clock, rng=rng))


class AzureVolumes:
    """See `providers.base.volume_api.VolumeApi`."""

    def __init__(self, account: Account) -> None:
        self._account = account

    # ---- create, delete

    async def create(self, spec: VolumeSpec) -> CloudVolume:
        check(spec)
        found = await self._find(spec.name)
        if found is not None:
            self._require_same(found, spec)
        if found is None or not _ready(found):
            # A PUT by name: sent again it goes on with what was begun.
            await self._account.operate(spec.name, partial(self._put, spec), repeatable=True)
        row = await self._require(spec.name)
        if not _ready(row):
            raise Unavailable(f"{spec.name} is {row.properties.provisioning_state} after its creation")
        return (await self._volumes([row]))[0]

    def _put(self, spec: VolumeSpec, polling: Any) -> None:
        from azure.mgmt.compute import models

        redundant = spec.kind in REDUNDANT
        disk = models.Disk(
            location=self._account.region,
            sku=models.DiskSku(name=spec.kind),
            # Zone-redundant disks are not put into a zone.
            zones=list(spec.zones) if spec.zones and not redundant else None,
            tags=dict(spec.tags) or None,
            properties=models.DiskProperties(
                creation_data=models.CreationData(create_option=models.DiskCreateOption.EMPTY),
                disk_size_gb=spec.size_bytes // GIB,
                max_shares=spec.share_max if spec.share_max > 1 else None,
                disk_iops_read_write=spec.iops,
                disk_m_bps_read_write=None if spec.mib_s is None else -int(-spec.mib_s // MIB_PER_MB),
            ),
        )
        compute_client(self._account).disks.begin_create_or_update(
            self._account.group, spec.name, disk, polling=polling
        )

    def _require_same(self, row: Any, spec: VolumeSpec) -> None:
        zones = tuple(row.zones or ())
        differing = [
            what
            for what, is_now, asked in (
                ("class", _kind(row), spec.kind),
                ("size", _size_bytes(row), spec.size_bytes),
                ("share count", row.properties.max_shares or 1, spec.share_max),
                ("zones", zones, () if spec.kind in REDUNDANT else spec.zones),
            )
            if is_now != asked
        ]
        if differing:
            raise Invalid(
                f"a disk {spec.name} exists with another {' and '.join(differing)}",
                hint="give the new one another name, or delete that one",
            )

    async def delete(self, volume_id: str) -> None:
        row = await self._find(volume_id)
        if row is None:
            return
        holders = _holders(row)
        if holders:
            names = ", ".join(self._account.short_name(each) for each in holders)
            raise Conflict(f"{volume_id} is attached to {names}", hint="detach it first")

        def begin(polling: Any) -> None:
            compute_client(self._account).disks.begin_delete(self._account.group, volume_id, polling=polling)

        try:
            await self._account.operate(volume_id, begin, repeatable=True)
        except NotFound:
            return
        except Invalid as error:
            # Attached meanwhile: "Disk … is attached to VM …".
            if error.fields.get("code") == "OperationNotAllowed":
                raise Conflict(error.message, hint="detach it first") from error
            raise

    # ---- attach, detach

    async def attach(self, volume_id: str, instance: str) -> CloudVolume:
        row, machine = await self._require(volume_id), await self._machine(instance)
        if self._has(row, machine):
            settled, there = await self._settled(volume_id, str(machine.id))
            if there:
                return settled
            row = await self._require(volume_id)
        self._require_reach(row, machine, volume_id, instance)
        if len(_holders(row)) >= (row.properties.max_shares or 1):
            raise _taken(f"{volume_id} is attached to as many machines as it may be ({len(_holders(row))})")
        try:
            await self._change(volume_id, instance, machine, attach=True)
        except Invalid as error:
            if self._has(await self._require(volume_id), machine):
                # An earlier request of ours, whose answer was lost, was carried out after all.
                return (await self._settled(volume_id, str(machine.id)))[0]
            # "… because it is already attached to VM …": somebody was faster.
            if error.fields.get("code") == "ConflictingUserInput":
                raise _taken(error.message) from error
            if "maximum number of data disks" in error.message.lower():
                hint = "a larger machine type takes more data disks"
                raise Invalid(error.message, hint=hint) from error
            raise
        return await self._one(volume_id)

    async def detach(self, volume_id: str, instance: str, *, force: bool = False) -> CloudVolume:
        row = await self._require(volume_id)
        if any(self._is(holder, instance) for holder in _holders(row)):
            try:
                machine = await self._machine(instance)
            except NotFound:
                # Deleted: Azure lets its disks go by itself, and may show it late.
                return await self._one(volume_id)
            try:
                await self._change(volume_id, instance, machine, attach=False, force=force)
            except Invalid:
                # As above: it may have gone between the look and the request.
                if self._has(await self._require(volume_id), machine):
                    raise
        return await self._one(volume_id)

    async def take_over(self, volume_id: str, victim: str, instance: str) -> CloudVolume:
        # The new machine is looked at first: the old one must not lose its disk to one that cannot take it.
        row, machine = await self._require(volume_id), await self._machine(instance)
        self._require_reach(row, machine, volume_id, instance)
        await self.detach(volume_id, victim, force=True)
        return await self.attach(volume_id, instance)

    async def _change(self, volume_id: str, instance: str, machine: Any, *, attach: bool, force: bool = False) -> None:
        from azure.mgmt.compute import models

        disk_id = self._account.resource_id("disks", volume_id)
        if attach:
            disk = models.DataDisksToAttach(disk_id=disk_id, caching=models.CachingTypes.NONE)
            request = models.AttachDetachDataDisksRequest(data_disks_to_attach=[disk])
        else:
            option = models.DiskDetachOptionTypes.FORCE_DETACH if force else None
            gone = models.DataDisksToDetach(disk_id=disk_id, detach_option=option)
            request = models.AttachDetachDataDisksRequest(data_disks_to_detach=[gone])

        def begin(polling: Any) -> None:
            compute_client(self._account).virtual_machines.begin_attach_detach_data_disks(
                *_place(str(machine.id)), request, polling=polling
            )

        hint = "" if attach or force else "the guest may hold it: let go of it there, or detach by force"
        await self._account.operate(f"{volume_id} at {instance}", begin, repeatable=False, hint=hint)

    async def _settled(self, volume_id: str, machine_id: str) -> tuple[CloudVolume, bool]:
        """The volume once its attachment to that machine is neither on its way in nor out, and whether it is there."""
        name = self._account.short_name(machine_id)

        async def look() -> tuple[CloudVolume, bool] | None:
            volume = await self._one(volume_id)
            states = [each.state for each in volume.attachments if each.instance.casefold() == name.casefold()]
            if states in ([], [AttachmentState.ATTACHED]):
                return volume, bool(states)
            return None

        return await wait_for(f"{volume_id} at {name}", look, self._account.wait, self._account.clock)

    def _require_reach(self, row: Any, machine: Any, volume_id: str, instance: str) -> None:
        zones = tuple(row.zones or ())
        where = str(machine.zones[0]) if machine.zones else ""
        if zones and where not in zones:
            raise Invalid(
                f"{volume_id} is in zone {zones[0]}, and {instance} in {where or 'no zone'}",
                hint="Premium_ZRS and StandardSSD_ZRS disks reach all zones",
            )
        if machine.location.replace(" ", "").lower() != row.location.replace(" ", "").lower():
            raise Invalid(f"{volume_id} is in {row.location}, and {instance} in {machine.location}")

    def _is(self, resource_id: str, instance: str) -> bool:
        return resource_id.casefold() == self._account.resource_id("virtualMachines", instance).casefold()

    def _has(self, row: Any, machine: Any) -> bool:
        return any(holder.casefold() == str(machine.id).casefold() for holder in _holders(row))

    def _slot(self, row: Any, machine: Any) -> Any:
        """The machine's data disk that is this disk, or None."""
        disks = machine.storage_profile.data_disks if machine.storage_profile is not None else None
        same = (d for d in disks or () if d.managed_disk is not None and d.managed_disk.id is not None)
        return next((d for d in same if str(d.managed_disk.id).casefold() == str(row.id).casefold()), None)

    # ---- describe

    async def describe(self, volume_ids: Sequence[str] | None = None) -> Sequence[CloudVolume]:
        if volume_ids is None or len(volume_ids) > ASKED_ONE_BY_ONE_MAX:
            rows = await self._account.calls.repeated(f"disks of {self._account.group}", self._list)
            wanted = None if volume_ids is None else {name.casefold() for name in volume_ids}
            return await self._volumes([r for r in rows if wanted is None or str(r.name).casefold() in wanted])
        found = await asyncio.gather(*(self._find(name) for name in dict.fromkeys(volume_ids)))
        return await self._volumes([row for row in found if row is not None])

    def _list(self) -> Sequence[Any]:
        rows = compute_client(self._account).disks.list_by_resource_group(self._account.group)
        return [row for row in rows if row.location.replace(" ", "").lower() == self._account.region]

    async def _find(self, name: str) -> Any:
        def get() -> Any:
            try:
                return compute_client(self._account).disks.get(self._account.group, name)
            except Exception as error:
                if code_of(error) in _ABSENT:
                    return None
                raise

        return await self._account.calls.repeated(name, get)

    async def _require(self, name: str) -> Any:
        row = await self._find(name)
        if row is None:
            raise NotFound(f"no disk {name} in {self._account.group}")
        return row

    async def _one(self, name: str) -> CloudVolume:
        return (await self._volumes([await self._require(name)]))[0]

    async def _machine(self, instance: str) -> Any:
        def get() -> Any:
            resource_id = self._account.resource_id("virtualMachines", instance)
            return compute_client(self._account).virtual_machines.get(*_place(resource_id))

        try:
            return await self._account.calls.repeated(instance, get)
        except NotFound as error:
            raise NotFound(f"no machine {instance} in {self._account.group}") from error

    async def _volumes(self, rows: Sequence[Any]) -> Sequence[CloudVolume]:
        machines = await self._holding_machines(rows)
        return [self._volume(row, machines) for row in rows]

    async def _holding_machines(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The machines that hold these disks, by id in lower case: they know LUNs and whether one is being detached."""
        ids = {holder.casefold(): holder for row in rows for holder in _holders(row)}
        if len(ids) > ASKED_ONE_BY_ONE_MAX:

            def every() -> Sequence[Any]:
                return list(compute_client(self._account).virtual_machines.list(self._account.group))

            machines = await self._account.calls.repeated(f"machines of {self._account.group}", every)
            return {str(each.id).casefold(): each for each in machines}
        found = {}
        for key, resource_id in ids.items():
            try:
                found[key] = await self._machine(resource_id)
            except NotFound:
                continue
        return found

    def _volume(self, row: Any, machines: dict[str, Any]) -> CloudVolume:
        kind = _kind(row)
        zones = tuple(row.zones or ())
        if not zones and kind in REDUNDANT:
            zones = ZONES
        attachments = []
        for holder in _holders(row):
            slot = self._slot(row, machines[holder.casefold()]) if holder.casefold() in machines else None
            # A holder without the disk in its profile: on its way in or out; the disk's own list knows no more.
            state = AttachmentState.ATTACHED if slot is not None else AttachmentState.ATTACHING
            if slot is not None and slot.to_be_detached:
                state = AttachmentState.DETACHING
            device = "" if slot is None else f"lun{slot.lun}"
            attachments.append(Attachment(self._account.short_name(holder), state, device))
        return CloudVolume(
            id=str(row.name),
            name=str(row.name),
            kind=kind,
            size_bytes=_size_bytes(row),
            zones=zones,
            share_max=row.properties.max_shares or 1,
            attachments=tuple(attachments),
            ready=_ready(row),
        )

    async def close(self) -> None:
        self._account.close()


def _kind(row: Any) -> str:
    name = row.sku.name if row.sku is not None else ""
    # A class that this SDK does not know comes as plain text.
    return str(getattr(name, "value", name))


def _ready(row: Any) -> bool:
    # A new disk is "Updating" until it is there; so is one that is being attached or detached, which is usable.
    state = str(row.properties.provisioning_state)
    return state == "Succeeded" or (state == "Updating" and bool(_holders(row)))


def _size_bytes(row: Any) -> int:
    return int(row.properties.disk_size_gb or 0) * GIB


def _holders(row: Any) -> list[str]:
    """Resource ids of the machines that have the disk: one in `managedBy` when it is not shared, else in
    `managedByExtended`, beside `shareInfo`."""
    shared = [each.vm_uri for each in row.properties.share_info or () if each.vm_uri]
    every = [each for each in (row.managed_by, *(row.managed_by_extended or ()), *shared) if each]
    return list({str(each).casefold(): str(each) for each in every}.values())


def _place(resource_id: str) -> tuple[str, str]:
    """Resource group and name out of a machine's id."""
    parts = resource_id.split("/")
    return parts[4], parts[-1]


def _taken(message: str) -> YunheError:
    return Conflict(message, hint="detach it from one of them; maxShares is fixed while it is attached")
