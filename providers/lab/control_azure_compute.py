"""Microsoft.Compute over the lab's compute core: managed disks, and machines as far as disks are attached to them.

A change answers 202 with `Azure-AsyncOperation` and `Location`; an operation's id says what is waited for, and its
state is read off the disk, so that operations survive a restart and need no memory of their own. Not here: creating
machines (`/-/instances` does), snapshots, images, SAS access, encryption.

Sources: azure-mgmt-compute 39.0.0 (paths, bodies); disks-shared and disks-types (limits); the Resource Manager
reference of asynchronous operations; error codes as users report them (ConflictingUserInput,
AttachDiskWhileBeingDetached, OperationNotAllowed).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from providers.base.errors import Conflict, Full, Invalid, NotFound
from providers.lab import compute as core
from providers.lab.compute_state import GIB, Disk, DiskSpec, DiskState, Link, LinkState, Machine
from providers.lab.control import ControlPlane
from providers.lab.control_azure import Place, Refused, check_version, json_body, page, reply
from providers.lab.wire import Reply, Request

DISKS_VERSIONS = ("2019-07-01", "2026-03-02")
MACHINES_VERSIONS = ("2019-07-01", "2026-04-01")
INTERFACES_VERSIONS = ("2019-07-01", "2026-04-01")
"""Oldest (maxShares came then) and newest api-version."""

LUNS = range(64)
RETRY_AFTER_MS = 20
"""What an operation tells its client to wait; nothing here takes longer."""

_SHARES = ((512, 3), (4096, 5), (32767, 10))
_CLASSES: Mapping[str, tuple[int, bool, int | None, str]] = {
    # Largest GiB, in all zones, machines at once (None: by size), tier.
    "Premium_ZRS": (32767, True, None, "Premium"),
    "StandardSSD_ZRS": (32767, True, None, "Standard"),
    "Premium_LRS": (32767, False, None, "Premium"),
    "StandardSSD_LRS": (32767, False, None, "Standard"),
    "Standard_LRS": (32767, False, 1, "Standard"),
    "PremiumV2_LRS": (65536, False, 15, "Premium"),
    "UltraSSD_LRS": (65536, False, 15, "Ultra"),
}
_DISK_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?")


class AzureCompute:
    """The disks, machines and operations of one resource group."""

    def __init__(self, plane: ControlPlane, subscription: str, group: str) -> None:
        self._plane = plane
        self._compute = plane.compute
        self._subscription = subscription
        self._root = f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute"

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
                    return self._operation(request, operation)
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
                return page(self._plane, request, [self._disk(disk) for disk in self._compute.disks()])
            case "GET", name:
                return reply(200, self._disk(self._compute.disk(self._known(name))))
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
        return self._accepted(202, self._disk(disk), {"do": "create", "disk": disk.id})

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
        largest, redundant, shares, _ = _CLASSES[kind]
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
        return self._accepted(202, self._disk(changed), {"do": "create", "disk": disk.id})

    def _patch(self, request: Request, disk: Disk, plain: Mapping[str, Any]) -> Reply:
        before = self._disk(disk)
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
        return self._accepted(202, None, {"do": "delete", "disk": name})

    def _disk(self, disk: Disk) -> dict[str, Any]:
        spec = disk.spec
        holders = [self._machine_id(link.instance) for link in disk.links]
        state = {
            DiskState.CREATING: "Updating",
            DiskState.DELETING: "Deleting",
            DiskState.ERROR: "Failed",
        }.get(disk.state, "Succeeded")
        properties: dict[str, Any] = {
            "creationData": {"createOption": "Empty"},
            "diskSizeGB": spec.size_bytes // GIB,
            "diskSizeBytes": spec.size_bytes,
            "provisioningState": state,
            "diskState": self._disk_state(disk),
            "timeCreated": self._time(disk.created_ms),
            "networkAccessPolicy": "AllowAll",
        }
        if spec.iops is not None:
            properties["diskIOPSReadWrite"] = spec.iops
        if spec.mib_s is not None:
            properties["diskMBpsReadWrite"] = spec.mib_s
        shown: dict[str, Any] = {
            "id": f"{self._root}/disks/{disk.id}",
            "name": disk.id,
            "type": "Microsoft.Compute/disks",
            "location": self._plane.region,
            "tags": dict(spec.tags),
            "sku": {"name": spec.kind, "tier": _CLASSES[spec.kind][3]},
            "properties": properties,
        }
        if spec.attributes.get("zones"):
            shown["zones"] = spec.attributes["zones"]
        if spec.share_max > 1:
            properties["maxShares"] = spec.share_max
            properties["shareInfo"] = [{"vmUri": holder} for holder in holders]
            shown["managedByExtended"] = holders
        elif holders:
            shown["managedBy"] = holders[0]
        return shown

    def _disk_state(self, disk: Disk) -> str:
        if not disk.links:
            return "Unattached"
        machines = {machine.id: machine for machine in self._compute.machines()}
        running = any(link.instance in machines and machines[link.instance].running for link in disk.links)
        return "Attached" if running else "Reserved"

    # ---- machines

    def _machines(self, request: Request, rest: Sequence[str]) -> Reply:
        view = request.query.get("$expand") == "instanceView"
        match request.method, *rest:
            case ("GET",):
                disks = self._compute.disks()
                return page(self._plane, request, [self._machine(m, disks, view) for m in self._compute.machines()])
            case "GET", name:
                return reply(200, self._machine(self._named(name), self._compute.disks(), view))
            case "GET", name, "instanceView":
                return reply(200, _view(self._named(name)))
            case "POST", name, "attachDetachDataDisks":
                return self._attach_detach(self._named(name), json_body(request))
        raise Refused(405, "MethodNotAllowed", f"{request.method} is not emulated here.")

    def interfaces(self, request: Request, place: Place) -> Reply:
        """Microsoft.Network/networkInterfaces: one a machine, for its private address.

        Raises:
            Refused: in all cases that are errors.
        """
        check_version(request, *INTERFACES_VERSIONS, "networkInterfaces")
        every = [self._interface(machine) for machine in self._compute.machines()]
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

    def _interface(self, machine: Machine) -> dict[str, Any]:
        name = f"{machine.name}-nic"
        address = {"name": "ipconfig1", "properties": {"privateIPAddress": machine.private_address, "primary": True}}
        return {
            "id": self._root.replace("Microsoft.Compute", "Microsoft.Network") + f"/networkInterfaces/{name}",
            "name": name,
            "type": "Microsoft.Network/networkInterfaces",
            "location": self._plane.region,
            "properties": {
                "provisioningState": "Succeeded",
                "virtualMachine": {"id": self._machine_id(machine.id)},
                "ipConfigurations": [address],
            },
        }

    def _named(self, name: str) -> Machine:
        for machine in self._compute.machines():
            if machine.id.lower() == name.lower():
                return machine
        raise self._absent("virtualMachines", name)

    def _machine_id(self, name: str) -> str:
        return f"{self._root}/virtualMachines/{name}"

    def _machine(self, machine: Machine, disks: Sequence[Disk], view: bool) -> dict[str, Any]:
        links = [(disk, link) for disk in disks if (link := disk.link(machine.id)) is not None]
        moving = any(link.state is not LinkState.ATTACHED for _, link in links)
        properties: dict[str, Any] = {
            "hardwareProfile": {"vmSize": machine.kind},
            "provisioningState": "Updating" if moving else "Succeeded",
            "storageProfile": {"dataDisks": [self._data_disk(*pair) for pair in links if _in_profile(pair[1])]},
            "networkProfile": {
                "networkInterfaces": [{"id": self._interface(machine)["id"], "properties": {"primary": True}}]
            },
        }
        if view:
            properties["instanceView"] = _view(machine)
        return {
            "id": self._machine_id(machine.id),
            "name": machine.id,
            "type": "Microsoft.Compute/virtualMachines",
            "location": self._plane.region,
            "zones": [machine.zone],
            "properties": properties,
        }

    def _data_disk(self, disk: Disk, link: Link) -> dict[str, Any]:
        return {
            "lun": link.attributes.get("lun"),
            "name": disk.id,
            "createOption": "Attach",
            "caching": link.attributes.get("caching", "None"),
            "diskSizeGB": disk.spec.size_bytes // GIB,
            "managedDisk": {"id": f"{self._root}/disks/{disk.id}", "storageAccountType": disk.spec.kind},
            "toBeDetached": link.state in (LinkState.DETACHING, LinkState.BUSY),
        }

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
        return self._accepted(202, None, waited)

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
        return self._accepted(202, None, {"do": "attach", "disk": name, "instance": machine.id, "since": since_ms})

    def _disk_of(self, plain: Mapping[str, Any]) -> str:
        wanted = str(plain.get("diskId", ""))
        prefix = f"{self._root}/disks/".lower()
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

    # ---- operations

    def _accepted(self, status: int, plain: Any, waited: Mapping[str, Any]) -> Reply:
        operation = base64.urlsafe_b64encode(json.dumps(waited).encode()).decode().rstrip("=")
        kind = "diskOperations" if waited["do"] in ("create", "delete") else "operations"
        version = (DISKS_VERSIONS if kind == "diskOperations" else MACHINES_VERSIONS)[1]
        url = (
            f"{self._plane.endpoint}/subscriptions/{self._subscription}/providers/Microsoft.Compute"
            f"/locations/{self._plane.region}/{kind}/{operation}?api-version={version}"
        )
        links = {"Azure-AsyncOperation": url, "Location": f"{url}&monitor=true"}
        return reply(status, plain, {**links, "x-ms-retry-after-ms": str(RETRY_AFTER_MS)})

    def _operation(self, request: Request, operation: str) -> Reply:
        try:
            waited = json.loads(base64.urlsafe_b64decode(operation + "=" * (-len(operation) % 4)))
            status, error = self._state(waited)
        except (ValueError, KeyError, TypeError) as error_:
            raise Refused(404, "NotFound", f"There is no operation {operation}.") from error_
        later = {"x-ms-retry-after-ms": str(RETRY_AFTER_MS)} if status == "InProgress" else {}
        if request.query.get("monitor") == "true":
            if status == "InProgress":
                return reply(
                    202, None, {**later, "Location": f"{self._plane.endpoint}{request.raw_path}?{request.raw_query}"}
                )
            return self._result(waited, error)
        shown: dict[str, Any] = {"name": operation, "status": status}
        if error is not None:
            shown["error"] = error
        return reply(200, shown, later)

    def _state(self, waited: Mapping[str, Any]) -> tuple[str, dict[str, str] | None]:
        """Of what an operation waits for: InProgress, Succeeded or Failed, and the error."""
        disk = next((each for each in self._compute.disks() if each.id == waited["disk"]), None)
        link = disk.link(waited["instance"]) if disk is not None and "instance" in waited else None
        if link is not None and link.since_ms != waited["since"]:
            link = None  # detached, and attached anew since
        match waited["do"]:
            case "create" if disk is not None and disk.state is DiskState.CREATING:
                return "InProgress", None
            case "create" if disk is None or disk.state is DiskState.ERROR:
                return "Failed", {"code": "InternalServerError", "message": "The disk could not be created."}
            case "delete" | "detach" if (disk if waited["do"] == "delete" else link) is not None:
                return "InProgress", None
            case "attach" if link is None:
                return "Failed", {"code": "InternalServerError", "message": "The disk could not be attached."}
            case "attach" if link is not None and link.state is LinkState.ATTACHING:
                return "InProgress", None
        return "Succeeded", None

    def _result(self, waited: Mapping[str, Any], error: dict[str, str] | None) -> Reply:
        if error is not None:
            return reply(500, {"error": error})
        if waited["do"] == "create":
            return reply(200, self._disk(self._compute.disk(waited["disk"])))
        if waited["do"] == "delete":
            return reply(204, None)
        machine = self._machine(self._named(waited["instance"]), self._compute.disks(), False)
        return reply(200, machine["properties"]["storageProfile"])

    def _time(self, ms: int) -> str:
        from datetime import UTC, datetime

        return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")


def _in_profile(link: Link) -> bool:
    """The machine's model shows a disk once it is there, and until it is gone."""
    return link.state is not LinkState.ATTACHING


def _view(machine: Machine) -> dict[str, Any]:
    power = "running" if machine.running else "deallocated"
    return {
        "statuses": [
            {"code": "ProvisioningState/succeeded", "level": "Info", "displayStatus": "Provisioning succeeded"},
            {"code": f"PowerState/{power}", "level": "Info", "displayStatus": f"VM {power}"},
        ]
    }


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
