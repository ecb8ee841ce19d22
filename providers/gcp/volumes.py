"""Compute Engine's disks through google-cloud-compute: zonal and regional disks, shared ones included.

A volume's id is its resource name (`projects/P/regions/R/disks/N`, `projects/P/zones/Z/disks/N`), an instance's
likewise. A disk is attached under its own name as `device_name`, so that a host finds it as
`/dev/disk/by-id/google-NAME`.

Least privileges (a custom role): compute.disks.create, .get, .list, .use, .delete, .setLabels (with labels only);
compute.instances.get, .attachDisk, .detachDisk; compute.zoneOperations.get, compute.regionOperations.get; for the
replicas' state monitoring.timeSeries.list. A force attach takes compute.disks.use on the disk and
compute.instances.attachDisk on the taker; nothing on the victim.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from providers.base.blocking import StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable
from providers.base.registry import AccountAddress
from providers.base.volume_api import Attachment, AttachmentState, CloudVolume, VolumeApi, VolumeSpec
from providers.base.volume_limits import GIB
from providers.base.waiting import WaitSettings, wait_for
from providers.gcp.compute import Compute, ResourceName, last
from providers.gcp.disk_types import DISK_TYPES, check
from providers.gcp.replicas import degraded_disks

SHARE_LABEL = "yunhe-share-max"
"""Keeps a shared disk's share_max, which the API does not know: it shares with up to eight. So a limit below eight is
kept by this adapter, which looks before it attaches, and two that attach at once may exceed it."""


def open_volume_api(
    address: AccountAddress,
    *,
    clock: Clock,
    rng: Rng,
    settings: StoreSettings | None = None,
    wait: WaitSettings | None = None,
) -> VolumeApi:
    """Open the project's disks in the region; nothing is sent yet. `settings` bound a call, `wait` an operation.

    Raises:
        Invalid: unreadable or missing credentials, no project.
    """
    return GcpVolumes(Compute(address, clock=clock, rng=rng, settings=settings, wait=wait))


class GcpVolumes:
    """See `providers.base.volume_api.VolumeApi`."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def create(self, spec: VolumeSpec) -> CloudVolume:
        check(spec, self._compute.region)
        scope, place = ("regions", self._compute.region) if len(spec.zones) == 2 else ("zones", spec.zones[0])
        name = ResourceName(self._compute.project, scope, place, "disks", spec.name)
        found = await self._find(name)
        if found is None:
            # The whole specification, so that another one of the same name is another change.
            identity = ("create", repr(spec))
            try:
                await self._compute.change(str(name), identity, partial(self._insert, name, spec))
            except Conflict as error:
                if error.fields.get("code") != "alreadyExists":
                    raise
        volume = await self._when_ready(name)
        _require_same(volume, spec)
        return await self._complete(volume)

    def _insert(self, name: ResourceName, spec: VolumeSpec, request_id: str) -> Any:
        sdk = self._compute.sdk
        prefix = f"projects/{name.project}"
        disk = sdk.Disk(
            name=spec.name,
            type_=f"{prefix}/{name.scope}/{name.place}/diskTypes/{spec.kind}",
            size_gb=spec.size_bytes // GIB,
            labels={**dict(spec.tags), **({SHARE_LABEL: str(spec.share_max)} if spec.share_max > 1 else {})},
        )
        if name.regional:
            disk.replica_zones = [f"{prefix}/zones/{zone}" for zone in spec.zones]
        if spec.share_max > 1:
            disk.access_mode = "READ_WRITE_MANY"
        if spec.iops is not None:
            disk.provisioned_iops = spec.iops
        if spec.mib_s is not None:
            disk.provisioned_throughput = spec.mib_s
        where = {"project": name.project, "disk_resource": disk, "request_id": request_id, _scope(name): name.place}
        client, request = self._disks(name, "Insert")
        return client.insert_unary(request(where), **self._compute.bounds)

    async def attach(self, volume_id: str, instance: str) -> CloudVolume:
        disk, machine = ResourceName.parse(volume_id, "disks"), ResourceName.parse(instance, "instances")
        volume = await self._get(disk)
        if not _attached(volume, machine):
            _require_reach(volume, machine)
            if len(volume.attachments) >= volume.share_max:
                raise Conflict(
                    f"{disk.name} is attached to {volume.share_max} instance(s), as many as it may be",
                    hint="detach one, or take it over by force",
                )
            await self._attach(disk, machine, force=False)
        return await self._complete(await self._get(disk))

    async def _attach(self, disk: ResourceName, machine: ResourceName, *, force: bool) -> None:
        identity = ("force-attach" if force else "attach", str(disk), str(machine))

        def call(request_id: str) -> Any:
            sdk = self._compute.sdk
            attached = sdk.AttachedDisk(source=str(disk), device_name=disk.name, mode="READ_WRITE", auto_delete=False)
            request = sdk.AttachDiskInstanceRequest(
                project=machine.project,
                zone=machine.place,
                instance=machine.name,
                attached_disk_resource=attached,
                request_id=request_id,
            )
            if force:
                request.force_attach = True
            return self._compute.client("Instances").attach_disk_unary(request, **self._compute.bounds)

        try:
            await self._compute.change(f"{disk.name} at {machine.name}", identity, call)
        except Conflict:
            # "In use" also stands for "by this very instance": an earlier attempt of ours whose answer was lost.
            if not _attached(await self._get(disk), machine):
                raise

    async def detach(self, volume_id: str, instance: str, *, force: bool = False) -> CloudVolume:
        disk, machine = ResourceName.parse(volume_id, "disks"), ResourceName.parse(instance, "instances")
        if force:
            raise Invalid(
                "Compute Engine has no forced detach",
                hint="take_over a regional disk (force attach), or stop the instance",
            )
        if _attached(await self._get(disk), machine):
            await self._detach(disk, machine)
        return await self._complete(await self._get(disk))

    async def _detach(self, disk: ResourceName, machine: ResourceName) -> None:
        try:
            device = (await self._devices(machine)).get(disk.name, "")
        except NotFound:
            return
        if not device:
            return

        def call(request_id: str) -> Any:
            request = self._compute.sdk.DetachDiskInstanceRequest(
                project=machine.project,
                zone=machine.place,
                instance=machine.name,
                device_name=device,
                request_id=request_id,
            )
            return self._compute.client("Instances").detach_disk_unary(request, **self._compute.bounds)

        try:
            await self._compute.change(f"{disk.name} at {machine.name}", ("detach", str(disk), str(machine)), call)
        except (NotFound, Invalid):
            # Detached meanwhile, or the instance has gone: then it is what was asked for.
            if _attached(await self._get(disk), machine):
                raise

    async def take_over(self, volume_id: str, victim: str, instance: str) -> CloudVolume:
        disk, machine = ResourceName.parse(volume_id, "disks"), ResourceName.parse(instance, "instances")
        loser = ResourceName.parse(victim, "instances")
        volume = await self._get(disk)
        _require_reach(volume, machine)
        others = [a.instance for a in volume.attachments if a.instance not in (str(loser), str(machine))]
        if not _attached(volume, machine):
            if volume.share_max > 1 and others:
                # A force attach takes the disk from whoever has it, and these are to keep it.
                if len(volume.attachments) >= volume.share_max:
                    await self._detach(disk, loser)
                await self._attach(disk, machine, force=False)
            elif others:
                raise Conflict(f"{disk.name} is attached to {others[0]}, not to the victim", hint="look again")
            elif not disk.regional:
                raise Invalid(
                    f"{disk.name} is a zonal disk: Compute Engine forces regional disks only",
                    hint="detach it from the victim, then attach it",
                )
            else:
                await self._attach(disk, machine, force=True)
            volume = await self._get(disk)
        if _attached(volume, loser):
            # Shared, and here too: nothing to force, for a force attach is a call of the taker's. What keeps the victim
            # out at once is the reservation; this is the tidying up.
            await self._detach(disk, loser)
        return await self._complete(await self._get(disk))

    async def describe(self, volume_ids: Sequence[str] | None = None) -> Sequence[CloudVolume]:
        if volume_ids is None:
            volumes: list[CloudVolume] = await self._compute.ask("disks", self._list)
        else:
            names = [ResourceName.parse(each, "disks") for each in volume_ids]
            found = await asyncio.gather(*(self._find(name) for name in names))
            volumes = [volume for volume in found if volume is not None]
        return await self._completed(volumes)

    def _list(self) -> list[CloudVolume]:
        request = self._compute.sdk.AggregatedListDisksRequest(project=self._compute.project)
        pager = self._compute.client("Disks").aggregated_list(request, **self._compute.bounds)
        found = []
        for page in pager.pages:
            if page.unreachables:
                # A zone that does not answer is no zone without disks.
                raise Unavailable(f"no answer from {', '.join(page.unreachables)}")
            for scope, disks in page.items.items():
                place = last(scope)
                if place == self._compute.region or place.rpartition("-")[0] == self._compute.region:
                    found += [_volume(disk, self._compute.project) for disk in disks.disks]
        return found

    async def delete(self, volume_id: str) -> None:
        name = ResourceName.parse(volume_id, "disks")
        volume = await self._find(name)
        if volume is None:
            return
        if volume.attachments:
            raise Conflict(f"{name.name} is attached to {volume.attachments[0].instance}", hint="detach it first")

        def call(request_id: str) -> Any:
            client, request = self._disks(name, "Delete")
            where = {"project": name.project, _scope(name): name.place, "disk": name.name, "request_id": request_id}
            return client.delete_unary(request(where), **self._compute.bounds)

        try:
            await self._compute.change(name.name, ("delete", str(name)), call)
        except NotFound:
            return

    async def close(self) -> None:
        await self._compute.close()

    # ---- reading

    def _disks(self, name: ResourceName, verb: str) -> tuple[Any, Any]:
        """The client of the disk's scope, and the class of its request."""
        kind = "RegionDisk" if name.regional else "Disk"
        return self._compute.client(f"{kind}s"), getattr(self._compute.sdk, f"{verb}{kind}Request")

    async def _get(self, name: ResourceName) -> CloudVolume:
        def call() -> CloudVolume:
            client, request = self._disks(name, "Get")
            where = {"project": name.project, _scope(name): name.place, "disk": name.name}
            return _volume(client.get(request(where), **self._compute.bounds), name.project)

        return await self._compute.ask(str(name), call)

    async def _find(self, name: ResourceName) -> CloudVolume | None:
        try:
            return await self._get(name)
        except NotFound:
            return None

    async def _when_ready(self, name: ResourceName) -> CloudVolume:
        async def look() -> CloudVolume | None:
            volume = await self._get(name)
            return volume if volume.ready else None

        return await wait_for(str(name), look, self._compute.wait, self._compute.clock)

    async def _devices(self, machine: ResourceName) -> dict[str, str]:
        """Device name by disk name, of what the instance has attached."""

        def call() -> dict[str, str]:
            request = self._compute.sdk.GetInstanceRequest(
                project=machine.project, zone=machine.place, instance=machine.name
            )
            got = self._compute.client("Instances").get(request, **self._compute.bounds)
            return {last(disk.source): str(disk.device_name) for disk in got.disks if disk.source}

        return await self._compute.ask(str(machine), call)

    async def _complete(self, volume: CloudVolume) -> CloudVolume:
        return (await self._completed([volume]))[0]

    async def _completed(self, volumes: Sequence[CloudVolume]) -> list[CloudVolume]:
        """With device names, which only the instances know, and the replicas' state, which only Monitoring knows."""
        machines = sorted({each.instance for volume in volumes for each in volume.attachments})
        devices = dict(zip(machines, await asyncio.gather(*map(self._devices_if_any, machines)), strict=True))
        degraded = await degraded_disks(self._compute, volumes)
        return [
            replace(
                volume,
                attachments=tuple(
                    replace(each, device=devices[each.instance].get(volume.name, "")) for each in volume.attachments
                ),
                degraded=degraded.get(volume.id),
            )
            for volume in volumes
        ]

    async def _devices_if_any(self, machine: str) -> dict[str, str]:
        try:
            return await self._devices(ResourceName.parse(machine, "instances"))
        except NotFound:
            return {}


def _scope(name: ResourceName) -> str:
    return "region" if name.regional else "zone"


def _volume(disk: Any, project: str) -> CloudVolume:
    zones = tuple(sorted(last(zone) for zone in disk.replica_zones)) or ((last(disk.zone),) if disk.zone else ())
    scope, place = ("regions", last(disk.region)) if disk.region else ("zones", last(disk.zone))
    kind = last(disk.type_)
    share_max = 1
    if disk.access_mode == "READ_WRITE_MANY":
        asked, known = disk.labels.get(SHARE_LABEL, ""), DISK_TYPES.get(kind)
        share_max = int(asked) if asked.isdigit() else known.share_max if known else 2
    return CloudVolume(
        id=str(ResourceName(project, scope, place, "disks", disk.name)),
        name=disk.name,
        kind=kind,
        size_bytes=disk.size_gb * GIB,
        zones=zones,
        share_max=share_max,
        attachments=tuple(_attachments(disk.users)),
        ready=disk.status == "READY",
    )


def _attachments(users: Iterable[str]) -> Iterable[Attachment]:
    for user in users:
        try:
            yield Attachment(str(ResourceName.parse(user, "instances")), AttachmentState.ATTACHED)
        except Invalid:
            # Another kind of user, such as a replica of the disk.
            continue


def _attached(volume: CloudVolume, machine: ResourceName) -> bool:
    return any(each.instance == str(machine) for each in volume.attachments)


def _require_reach(volume: CloudVolume, machine: ResourceName) -> None:
    if machine.place not in volume.zones:
        raise Invalid(
            f"{machine.name} is in zone {machine.place}, which {volume.name} does not reach",
            hint=f"an instance in {' or '.join(volume.zones)}",
        )


def _require_same(volume: CloudVolume, spec: VolumeSpec) -> None:
    """
    Raises:
        Invalid: a volume of that name has other properties.
    """
    wanted = {"kind": spec.kind, "size": spec.size_bytes, "zones": tuple(sorted(spec.zones))}
    actual = {"kind": volume.kind, "size": volume.size_bytes, "zones": volume.zones}
    wanted["share_max"], actual["share_max"] = spec.share_max, volume.share_max
    different = [f"{name} {actual[name]}, not {wanted[name]}" for name in wanted if wanted[name] != actual[name]]
    if different:
        raise Invalid(
            f"disk {volume.name} exists already with {'; '.join(different)}",
            hint="another name, or delete that disk",
        )
