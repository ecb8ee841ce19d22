"""Microsoft.Compute over the lab's compute core: managed disks, and machines as far as disks are attached to them.

Not here: creating machines (`/-/instances` does), snapshots, images, SAS access, encryption.

Sources: azure-mgmt-compute 39.0.0 (paths, bodies); disks-shared and disks-types (limits); the Resource Manager
reference of asynchronous operations; error codes as users report them (ConflictingUserInput,
AttachDiskWhileBeingDetached, OperationNotAllowed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from providers.base.errors import Conflict, Full, Invalid, NotFound
from providers.lab import compute as core
from providers.lab.compute_state import GIB, Disk, DiskSpec, LinkState, Machine
from providers.lab.control import ControlPlane
from providers.lab.control_azure import Place, Refused, check_version, json_body, page, reply
from providers.lab.control_azure_operations import DISKS_VERSIONS, MACHINES_VERSIONS, Operations
from providers.lab.control_azure_shapes import Shapes, instance_view
from providers.lab.wire import Reply, Request

INTERFACES_VERSIONS = ("2019-07-01", "2026-04-01")
LUNS = range(64)

_SHARES = ((512, 3), (4096, 5), (32767, 10))
_CLASSES: Mapping[str, tuple[int, bool, int | None]] = {
    # Largest GiB, in all zones, machines at once (None: by size).
    "Premium_ZRS": (32767, True, None),
    "StandardSSD_ZRS": (32767, True, None),
    "Premium_LRS": (32767, False, None),
    "StandardSSD_LRS": (32767, False, None),
    "Standard_LRS": (32767, False, 1),
    "PremiumV2_LRS": (65536, False, 15),
    "UltraSSD_LRS": (65536, False, 15),
}
_DISK_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?")


class AzureCompute:
    """The disks, machines and operations of one resource group."""

    def __init__(self, plane: ControlPlane, subscription: str, group: str) -> None:
        self._plane = plane
        self._compute = plane.compute
        self._shapes = Shapes(plane, subscription, group)
        self._operations = Operations(plane, subscription, self._shapes)

    def answer(self, request: Request, place: Place) -> Reply:
        """
        Raises:
            Refused: in all cases that are errors.
        """
        try:
            match place.parts:
                case ("disks", *rest):
                    check_version(request, *DISKS_VERSIONS, "disks")
                    return self._disks(request, rest)
                case ("virtualMachines", *rest):
                    check_version(request, *MACHINES_VERSIONS, "virtualMachines")
                    return self._machines(request, rest)
                case ("locations", _, "operations" | "diskOperations", operation):
                    return self._operations.answer(request, operation)
        except NotFound as error:
            kind = "virtualMachines" if error.fields.get("code") == core.NO_SUCH_INSTANCE else "disks"
            raise self._absent(kind, str(error.fields.get("instance") or error.fields.get("disk"))) from error
        raise Refused(404, "InvalidResourceType", f"{request.path} is not emulated.")

    def _absent(self, kind: str, name: str) -> Refused:
        return Refused(
            404, "ResourceNotFound", f"The Resource 'Microsoft.Compute/{kind}/{name}' was not found in this group."
        )

    # ---- disks

    def _disks(self, request: Request, rest: Sequence[str]) -> Reply:
        match request.method, *rest:
            case ("GET",):
                return page(self._plane, request, [self._shapes.disk(disk) for disk in self._compute.disks()])
            case "GET", name:
                return reply(200, self._shapes.disk(self._compute.disk(self._known(name))))
            case "PUT", name:
                return self._put(request, name, json_body(request))
            case "PATCH", name:
                return self._patch(request, self._compute.disk(self._known(name)), json_body(request))
            case "DELETE", name:
                return self._delete(self._known(name))
        raise Refused(405, "MethodNotAllowed", f"{request.method} is not supported here.")

    def _known(self, name: str) -> str:
        """The disk's name as it was given at its creation: they are the same whatever their case."""
        return next((d.id for d in self._compute.disks() if d.id.lower() == name.lower()), name)

    def _put(self, request: Request, name: str, plain: Mapping[str, Any]) -> Reply:
        name = self._known(name)
        if not _DISK_NAME.fullmatch(name):
            raise Refused(400, "InvalidParameter", f"'{name}' is not a valid name of a disk.")
        spec = self._spec(name, plain)
        existing = next((disk for disk in self._compute.disks() if disk.id == name), None)
        if existing is not None:
            return self._update(existing, spec)
        try:
            disk = self._compute.create_disk(spec)
        except Full as error:
            said = f"Operation could not be completed as it results in exceeding approved {spec.kind} disk quota: "
            raise Refused(409, "OperationNotAllowed", said + error.message) from error
        return self._operations.accepted(self._shapes.disk(disk), {"do": "create", "disk": disk.id})

    def _spec(self, name: str, plain: Mapping[str, Any]) -> DiskSpec:
        properties = plain.get("properties") or {}
        location = str(plain.get("location", "")).replace(" ", "").lower()
        if location != self._plane.region:
            raise Refused(400, "LocationNotAvailableForResourceType", f"The location '{location}' is not available.")
        if (properties.get("creationData") or {}).get("createOption") != "Empty":
            raise Refused(400, "InvalidParameter", "creationData.createOption: only Empty is emulated.")
        kind = str((plain.get("sku") or {}).get("name", "Standard_LRS"))
        if kind not in _CLASSES:
            raise Refused(400, "InvalidParameter", f"The value '{kind}' of sku.name is invalid.")
        largest, redundant, shares = _CLASSES[kind]
        size = properties.get("diskSizeGB")
        if not isinstance(size, int) or not 1 <= size <= largest:
            raise Refused(400, "InvalidParameter", f"The value '{size}' of diskSizeGB is out of range.")
        zones = tuple(str(zone) for zone in plain.get("zones") or ())
        self._check_zones(kind, zones, redundant)
        share_max = properties.get("maxShares") or 1
        most = shares if shares is not None else next(count for limit, count in _SHARES if size <= limit)
        if not isinstance(share_max, int) or not 1 <= share_max <= most:
            said = f"The value '{share_max}' of maxShares is invalid: {kind} of {size} GiB has at most {most}."
            raise Refused(400, "InvalidParameter", said)
        provisioned = kind in ("PremiumV2_LRS", "UltraSSD_LRS")
        iops, mbps = properties.get("diskIOPSReadWrite"), properties.get("diskMBpsReadWrite")
        if not provisioned and (iops is not None or mbps is not None):
            raise Refused(400, "InvalidParameter", f"{kind} takes no diskIOPSReadWrite or diskMBpsReadWrite.")
        return DiskSpec(
            id=name,
            name=name,
            kind=kind,
            size_bytes=size * GIB,
            # Zone-redundant: reached from every zone; a regional one without zones too, as it is put where its machine
            # is.
            zones=zones or self._plane.zones,
            share_max=share_max,
            iops=iops,
            mib_s=mbps,
            tags=dict(plain.get("tags") or {}),
            attributes={"zones": list(zones)},
        )

    def _check_zones(self, kind: str, zones: Sequence[str], redundant: bool) -> None:
        if redundant and zones:
            raise Refused(400, "InvalidParameter", f"A {kind} disk is zone-redundant: zones must not be given.")
        if len(zones) > 1 or any(zone not in self._plane.zones for zone in zones):
            raise Refused(
                400, "InvalidAvailabilityZone", f"The zone(s) '{', '.join(zones)}' are not supported for {kind}."
            )
        if kind in ("PremiumV2_LRS", "UltraSSD_LRS") and not zones:
            raise Refused(400, "InvalidParameter", f"A {kind} disk needs a zone.")

    def _update(self, disk: Disk, spec: DiskSpec) -> Reply:
        old = disk.spec
        for what, before, after in (
            ("sku.name", old.kind, spec.kind),
            ("zones", old.attributes.get("zones"), spec.attributes.get("zones")),
        ):
            if before != after:
                raise Refused(
                    409, "PropertyChangeNotAllowed", f"Changing property '{what}' of disk {disk.id} is not allowed."
                )
        if spec.size_bytes < old.size_bytes:
            raise Refused(409, "OperationNotAllowed", f"Disk {disk.id} cannot be made smaller.")
        if spec.share_max != old.share_max and disk.links:
            said = f"maxShares of disk {disk.id} cannot be changed while it is attached to a running VM."
            raise Refused(409, "OperationNotAllowed", said)
        changed = self._compute.update_disk(disk.id, lambda now: replace(now, spec=spec))
        return self._operations.accepted(self._shapes.disk(changed), {"do": "create", "disk": disk.id})

    def _patch(self, request: Request, disk: Disk, plain: Mapping[str, Any]) -> Reply:
        before = self._shapes.disk(disk)
        properties = {
            "creationData": {"createOption": "Empty"},
            "diskSizeGB": before["properties"]["diskSizeGB"],
            "maxShares": disk.spec.share_max,
            "diskIOPSReadWrite": disk.spec.iops,
            "diskMBpsReadWrite": disk.spec.mib_s,
            **(plain.get("properties") or {}),
        }
        merged = {
            "location": self._plane.region,
            "sku": plain.get("sku") or before["sku"],
            "zones": before.get("zones"),
            "tags": plain.get("tags", disk.spec.tags),
            "properties": properties,
        }
        return self._update(disk, self._spec(disk.id, merged))

    def _delete(self, name: str) -> Reply:
        try:
            self._compute.delete_disk(name)
        except NotFound:
            return reply(204, None)
        except Conflict as error:
            if error.fields["code"] == core.IN_USE:
                raise Refused(
                    409, "OperationNotAllowed", f"Disk {name} is attached to a VM: {error.message}."
                ) from error
            raise Refused(409, "Conflict", f"The request failed due to conflict: {error.message}.") from error
        return self._operations.accepted(None, {"do": "delete", "disk": name})

    # ---- machines

    def _machines(self, request: Request, rest: Sequence[str]) -> Reply:
        view = request.query.get("$expand") == "instanceView"
        match request.method, *rest:
            case ("GET",):
                disks = self._compute.disks()
                return page(
                    self._plane, request, [self._shapes.machine(m, disks, view) for m in self._compute.machines()]
                )
            case "GET", name:
                return reply(200, self._shapes.machine(self._named(name), self._compute.disks(), view))
            case "GET", name, "instanceView":
                return reply(200, instance_view(self._named(name)))
            case "POST", name, "attachDetachDataDisks":
                return self._attach_detach(self._named(name), json_body(request))
        raise Refused(405, "MethodNotAllowed", f"{request.method} is not emulated here.")

    def interfaces(self, request: Request, place: Place) -> Reply:
        """Microsoft.Network/networkInterfaces: one a machine, for its private address.

        Raises:
            Refused: in all cases that are errors.
        """
        check_version(request, *INTERFACES_VERSIONS, "networkInterfaces")
        every = [self._shapes.interface(machine) for machine in self._compute.machines()]
        match request.method, *place.parts[1:]:
            case ("GET",):
                return page(self._plane, request, every)
            case "GET", name:
                for interface in every:
                    if interface["name"].lower() == name.lower():
                        return reply(200, interface)
                said = f"The Resource 'Microsoft.Network/networkInterfaces/{name}' was not found."
                raise Refused(404, "ResourceNotFound", said)
        raise Refused(405, "MethodNotAllowed", f"{request.method} is not emulated here.")

    def _named(self, name: str) -> Machine:
        for machine in self._compute.machines():
            if machine.id.lower() == name.lower():
                return machine
        raise self._absent("virtualMachines", name)

    def _attach_detach(self, machine: Machine, plain: Mapping[str, Any]) -> Reply:
        attach, detach = plain.get("dataDisksToAttach") or [], plain.get("dataDisksToDetach") or []
        if len(attach) + len(detach) != 1:
            raise Refused(400, "InvalidParameter", "The lab takes one disk to attach or to detach at a time.")
        if attach:
            return self._attach(machine, attach[0])
        name = self._disk_of(detach[0])
        force = detach[0].get("detachOption") == "ForceDetach"
        try:
            disk = self._compute.detach(name, machine.id, force=force)
        except Conflict as error:
            raise Refused(409, "OperationNotAllowed", f"{error.message}.") from error
        link = disk.link(machine.id)
        waited = {"do": "detach", "disk": name, "instance": machine.id, "since": link.since_ms if link else 0}
        return self._operations.accepted(None, waited)

    def _attach(self, machine: Machine, plain: Mapping[str, Any]) -> Reply:
        name = self._disk_of(plain)
        disk = self._compute.disk(name)
        caching = str(plain.get("caching") or "None")
        if disk.spec.share_max > 1 and caching != "None":
            raise Refused(400, "InvalidParameter", f"Caching '{caching}' is not supported for a shared disk.")
        link = disk.link(machine.id)
        if link is not None and link.state in (LinkState.DETACHING, LinkState.BUSY):
            said = (
                f"Cannot attach data disk '{name}' to VM '{machine.id}' because the disk is currently being detached."
            )
            raise Refused(409, "AttachDiskWhileBeingDetached", said)
        if link is None:
            lun = self._lun(machine, plain.get("lun"))
            try:
                disk = self._compute.attach(
                    name, machine.id, device=f"lun{lun}", attributes={"lun": lun, "caching": caching}
                )
            except (Conflict, Invalid) as error:
                raise _refusal(error, machine) from error
            link = disk.link(machine.id)
        since_ms = link.since_ms if link else 0
        return self._operations.accepted(
            None, {"do": "attach", "disk": name, "instance": machine.id, "since": since_ms}
        )

    def _disk_of(self, plain: Mapping[str, Any]) -> str:
        wanted = str(plain.get("diskId", ""))
        prefix = f"{self._shapes.root}/disks/".lower()
        if not wanted.lower().startswith(prefix):
            raise Refused(400, "InvalidParameter", f"'{wanted}' is no id of a managed disk here.")
        name = self._known(wanted[len(prefix) :])
        self._compute.disk(name)
        return name

    def _lun(self, machine: Machine, asked: Any) -> int:
        links = (disk.link(machine.id) for disk in self._compute.disks())
        taken = {link.attributes.get("lun") for link in links if link is not None}
        if asked is None:
            return next(lun for lun in LUNS if lun not in taken)
        if not isinstance(asked, int) or asked not in LUNS:
            raise Refused(400, "InvalidParameter", f"The value '{asked}' of lun is invalid.")
        if asked in taken:
            raise Refused(
                409, "ConflictingUserInput", f"A disk is already attached to VM '{machine.id}' at LUN {asked}."
            )
        return asked


def _refusal(error: Conflict | Invalid, machine: Machine) -> Refused:
    match error.fields.get("code"):
        case core.WRONG_ZONE:
            said = f"Disk cannot be attached to the VM because it is not in zone '{machine.zone}': {error.message}."
            return Refused(400, "BadRequest", said)
        case core.UNSUPPORTED:
            return Refused(409, "OperationNotAllowed", f"The VM size does not support the disk: {error.message}.")
        case core.IN_USE | core.SHARE_LIMIT:
            said = f"Cannot attach the disk to VM {machine.id} because it is already attached: {error.message}."
            return Refused(409, "ConflictingUserInput", said)
        case core.INSTANCE_FULL:
            said = f"The maximum number of data disks allowed to be attached to a VM of this size is reached: {error}."
            return Refused(409, "OperationNotAllowed", said)
    return Refused(409, "Conflict", f"The request failed due to conflict with a concurrent request: {error.message}.")
