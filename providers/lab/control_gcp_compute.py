"""Compute Engine v1 over the lab's core: disks and regionDisks, instances and their disks, operations.

In the core a disk's id is `<zone or region>_<name>`, since Google's names are unique within those; an instance's id is
its name. What Google checks at once is a refusal here, what it finds out later ends the operation with an error.
Source: Compute Engine API v1 reference and its Python SDK; the sentences are short forms of the real ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from providers.base.errors import Conflict, Full, Invalid, NotFound
from providers.lab import compute as core
from providers.lab.compute_state import GIB, Disk, DiskState, Link, LinkState, Machine
from providers.lab.control import ControlPlane
from providers.lab.control_gcp_operations import Operation, Operations, operation_plain
from providers.lab.control_gcp_types import checked_spec
from providers.lab.control_gcp_wire import Refusal, not_found, number, page, timestamp
from providers.lab.wire import Request

_STATUS = {
    DiskState.CREATING: "CREATING",
    DiskState.AVAILABLE: "READY",
    DiskState.IN_USE: "READY",
    DiskState.DELETING: "DELETING",
    DiskState.ERROR: "FAILED",
}

REPLICA_STATE = "compute.googleapis.com/disk/regional/replica_state"

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_VERBS = {
    ("GET", "disks"): "list",
    ("POST", "disks"): "insert",
    ("GET", "instances"): "list",
}


class ComputeApi:
    """Answers below `/compute/v1/projects/<project>/`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._core = plane.compute
        self._operations = Operations(plane)

    def verb(self, method: str, parts: Sequence[str]) -> str:
        match parts:
            case ["aggregated", collection]:
                return f"{collection}.aggregatedList"
            case ["zones" | "regions" as scope, _, collection, *rest]:
                prefix = "region" if scope == "regions" else ""
                name = f"{prefix}{collection[:1].upper()}{collection[1:]}" if prefix else collection
                if collection == "operations":
                    name = f"{scope.removesuffix('s')}Operations"
                if len(rest) == 2:
                    return f"{name}.{rest[1]}"
                if rest:
                    return f"{name}.{method.lower()}"
                return f"{name}.{_VERBS.get((method, collection), method.lower())}"
        return ""

    def answer(self, request: Request, project: str, parts: Sequence[str]) -> Any:
        """
        Raises:
            Refusal
        """
        match request.method, parts:
            case "GET", ["aggregated", "disks"]:
                rows = [(_place(disk), self._disk_plain(disk, project)) for disk in self._core.disks()]
                return self._aggregated(request, project, "disks", rows)
            case "GET", ["aggregated", "instances"]:
                shown = [(f"zones/{each.zone}", self._machine_plain(each, project)) for each in self._core.machines()]
                return self._aggregated(request, project, "instances", shown)
            case method, ["zones" | "regions" as scope, place, collection, *rest]:
                self._require_place(project, scope, place)
                if collection == "disks":
                    return self._disks(method, request, project, f"{scope}/{place}", rest)
                if collection == "instances" and scope == "zones":
                    return self._instances(method, request, project, place, rest)
                if collection == "operations" and len(rest) == 1 and method == "GET":
                    found = self._operations.find(rest[0], f"{scope}/{place}")
                    if found is None:
                        raise not_found(f"projects/{project}/{scope}/{place}/operations/{rest[0]}")
                    return operation_plain(found, project, self._plane.endpoint)
        raise Refusal(501, "notImplemented", f"{request.method} {request.path} is not emulated")

    def _require_place(self, project: str, scope: str, place: str) -> None:
        known = self._plane.zones if scope == "zones" else (self._plane.region,)
        if place not in known:
            raise not_found(f"projects/{project}/{scope}/{place}")

    # ---- disks

    def _disks(self, method: str, request: Request, project: str, place: str, rest: Sequence[str]) -> Any:
        match method, rest:
            case "GET", []:
                rows = [disk for disk in self._core.disks() if _place(disk) == place]
                found, more = page(rows, request, self._plane.page_max)
                items = [self._disk_plain(disk, project) for disk in found]
                return {"kind": "compute#diskList", "items": items, **more}
            case "POST", []:
                return self._insert(request, project, place)
            case "GET", [name]:
                return self._disk_plain(self._find_disk(project, place, name), project)
            case "DELETE", [name]:
                return self._delete(request, project, place, name)
        raise Refusal(501, "notImplemented", f"{method} {request.path} is not emulated")

    def _find_disk(self, project: str, place: str, name: str) -> Disk:
        try:
            return self._core.disk(_disk_id(place, name))
        except NotFound as error:
            raise not_found(f"projects/{project}/{place}/disks/{name}") from error

    def _insert(self, request: Request, project: str, place: str) -> Any:
        spec = checked_spec(json.loads(request.body), place, self._plane.zones)
        target = f"projects/{project}/{place}/disks/{spec.name}"

        def act() -> None:
            try:
                self._core.create_disk(replace(spec, id=_disk_id(place, spec.name)))
            except Conflict as error:
                raise Refusal(409, "alreadyExists", f"The resource '{target}' already exists") from error
            except Full as error:
                quota = "DISKS_TOTAL" if error.fields["quota"] == "disks_max" else "SSD_TOTAL_GB"
                words = f"Quota '{quota}' exceeded. {error} in region {self._plane.region}."
                raise Refusal(403, "quotaExceeded", words) from error

        return self._begin(request, project, place, target, "insert", "create", _disk_id(place, spec.name), "", act)

    def _delete(self, request: Request, project: str, place: str, name: str) -> Any:
        disk_id, target = _disk_id(place, name), f"projects/{project}/{place}/disks/{name}"

        def act() -> None:
            try:
                self._core.delete_disk(disk_id)
            except NotFound as error:
                raise not_found(target) from error
            except Conflict as error:
                if error.fields["code"] == core.IN_USE:
                    user = self._machine_name(project, self._core.disk(disk_id).links[0].instance)
                    raise _in_use(target, user) from error
                raise Refusal(400, "resourceNotReady", f"The resource '{target}' is not ready") from error

        return self._begin(request, project, place, target, "delete", "delete", disk_id, "", act)

    # ---- instances

    def _instances(self, method: str, request: Request, project: str, zone: str, rest: Sequence[str]) -> Any:
        match method, rest:
            case "GET", []:
                rows = [each for each in self._core.machines() if each.zone == zone]
                found, more = page(rows, request, self._plane.page_max)
                items = [self._machine_plain(each, project) for each in found]
                return {"kind": "compute#instanceList", "items": items, **more}
            case "GET", [name]:
                return self._machine_plain(self._machine(project, zone, name), project)
            case "POST", [name, "attachDisk"]:
                return self._attach(request, project, self._machine(project, zone, name))
            case "POST", [name, "detachDisk"]:
                return self._detach(request, project, self._machine(project, zone, name))
        raise Refusal(501, "notImplemented", f"{method} {request.path} is not emulated")

    def _machine(self, project: str, zone: str, name: str) -> Machine:
        for machine in self._core.machines():
            if (machine.zone, machine.name) == (zone, name):
                return machine
        raise not_found(f"projects/{project}/zones/{zone}/instances/{name}")

    def _attach(self, request: Request, project: str, machine: Machine) -> Any:
        asked = json.loads(request.body)
        source = re.search(r"projects/[^/]+/((?:zones|regions)/[^/]+)/disks/([^/]+)$", str(asked.get("source", "")))
        if source is None:
            raise Refusal(400, "invalid", "Invalid value for field 'resource.source'")
        place, name = source.groups()
        force = request.query.get("forceAttach") == "true" or asked.get("forceAttach") is True
        disk = self._find_disk(project, place, name)
        if force and place.startswith("zones/"):
            raise Refusal(400, "invalid", "Force attach is possible for regional disks only")
        mode = str(asked.get("mode") or "READ_WRITE")
        if mode != "READ_WRITE":
            raise Refusal(501, "notImplemented", f"mode {mode} is not emulated")
        taken = {link.device for _, link in self._links(machine)}
        device = str(asked.get("deviceName") or f"persistent-disk-{len(taken) + 1}")
        if device in taken and disk.link(machine.id) is None:
            raise Refusal(400, "invalid", f"Device name '{device}' is used at this instance")
        target = f"projects/{project}/{place}/disks/{name}"

        def act() -> tuple[str, str] | None:
            try:
                self._core.attach(disk.id, machine.id, device=device, force=force)
            except (Conflict, Invalid, NotFound) as error:
                return self._attach_error(error, project, target, disk.id, machine)
            return None

        instance = self._machine_name(project, machine.id)
        at = f"zones/{machine.zone}"
        return self._begin(request, project, at, instance, "attachDisk", "attach", disk.id, machine.id, act)

    def _attach_error(
        self, error: Conflict | Invalid | NotFound, project: str, target: str, disk_id: str, machine: Machine
    ) -> tuple[str, str]:
        match error.fields.get("code"):
            case core.IN_USE | core.SHARE_LIMIT | core.ALREADY_ATTACHED:
                links = self._core.disk(disk_id).links
                holder = machine.id if any(link.instance == machine.id for link in links) else links[0].instance
                user = self._machine_name(project, holder)
                words = f"The disk resource '{target}' is already being used by '{user}'"
                return "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", words
            case core.INSTANCE_FULL:
                return "LIMIT_EXCEEDED", f"Exceeded limit 'maximum_persistent_disks' on resource '{machine.name}'."
            case core.NOT_READY:
                raise Refusal(400, "resourceNotReady", f"The resource '{target}' is not ready") from error
            case core.WRONG_ZONE:
                words = f"Invalid value for field 'resource.source': '{target}' has no replica in {machine.zone}"
                raise Refusal(400, "invalid", words) from error
            case core.UNSUPPORTED:
                words = f"[{machine.kind}] is not compatible with disks in access mode READ_WRITE_MANY"
                raise Refusal(400, "badRequest", words) from error
        raise not_found(target) from error

    def _detach(self, request: Request, project: str, machine: Machine) -> Any:
        device = request.query.get("deviceName", "")
        found = next((disk for disk, link in self._links(machine) if link.device == device), None)
        target = self._machine_name(project, machine.id)

        def act() -> None:
            if found is None:
                words = f"Invalid value for field 'deviceName': '{device}'. No attached disk found with that name"
                raise Refusal(400, "invalid", words)
            self._core.detach(found.id, machine.id)

        disk_id, at = found.id if found else "", f"zones/{machine.zone}"
        return self._begin(request, project, at, target, "detachDisk", "detach", disk_id, machine.id, act)

    def _links(self, machine: Machine) -> Iterable[tuple[Disk, Link]]:
        for disk in self._core.disks():
            link = disk.link(machine.id)
            if link is not None and not _lost(link):
                yield disk, link

    def _begin(
        self,
        request: Request,
        project: str,
        place: str,
        target: str,
        type: str,
        waits: str,
        disk: str,
        instance: str,
        act: Callable[[], tuple[str, str] | None],
    ) -> Any:
        request_id = request.query.get("requestId", "")
        if request_id and (_UUID.fullmatch(request_id) is None or not request_id.strip("0-")):
            raise Refusal(400, "invalid", f"Invalid value for field 'requestId': '{request_id}'.")
        row = Operation(
            name=f"operation-{self._plane.rng.token()[:24]}",
            type=type,
            place=place,
            target=target,
            began_ms=self._plane.clock.wall_ms(),
            waits=waits,
            disk=disk,
            instance=instance,
            request_id=request_id,
        )
        done = self._operations.begin(row, act)
        return operation_plain(done, project, self._plane.endpoint, first=done.name == row.name)

    def replica_states(self, request: Request, project: str) -> Any:
        """Cloud Monitoring's replica states of the regional disks that are attached; a degraded disk's second replica
        is out of step. The labels' names are assumed."""
        if REPLICA_STATE not in request.query.get("filter", ""):
            raise Refusal(501, "notImplemented", f"only {REPLICA_STATE} is emulated")
        now = timestamp(self._plane.clock.wall_ms())
        rows = [
            {
                "metric": {"type": REPLICA_STATE, "labels": {"replica_zone": zone, "state": state}},
                "resource": {"type": "gce_disk", "labels": {"project_id": project, "disk_name": disk.spec.name}},
                "metricKind": "GAUGE",
                "valueType": "INT64",
                "points": [{"interval": {"startTime": now, "endTime": now}, "value": {"int64Value": "1"}}],
            }
            for disk in self._core.disks()
            if len(disk.spec.zones) > 1 and disk.links
            for zone, state in zip(disk.spec.zones, ("Synced", "OutOfSync" if disk.degraded else "Synced"), strict=True)
        ]
        found, more = page(rows, request, self._plane.page_max)
        return {"timeSeries": list(found), **more}

    # ---- as the API shows them

    def _aggregated(
        self, request: Request, project: str, collection: str, rows: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> dict[str, Any]:
        found, more = page(rows, request, self._plane.page_max)
        items: dict[str, dict[str, Any]] = {}
        for place in (*(f"zones/{zone}" for zone in self._plane.zones), f"regions/{self._plane.region}"):
            here = [row for at, row in found if at == place]
            empty = {"code": "NO_RESULTS_ON_PAGE", "message": f"There are no results for scope '{place}' on this page."}
            items[place] = {collection: here} if here else {"warning": empty}
        kind = f"compute#{collection.removesuffix('s')}AggregatedList"
        return {"kind": kind, "id": f"projects/{project}/aggregated/{collection}", "items": items, **more}

    def _machine_name(self, project: str, machine_id: str) -> str:
        machine = self._core.machine(machine_id)
        return f"projects/{project}/zones/{machine.zone}/instances/{machine.name}"

    def _url(self, name: str) -> str:
        return f"{self._plane.endpoint}/compute/v1/{name}"

    def _disk_plain(self, disk: Disk, project: str) -> dict[str, Any]:
        spec, place = disk.spec, _place(disk)
        scope = place.partition("/")[0].removesuffix("s")
        root = f"projects/{project}"
        plain: dict[str, Any] = {
            "kind": "compute#disk",
            "id": number(disk.id, str(disk.created_ms)),
            "name": spec.name,
            "creationTimestamp": timestamp(disk.created_ms),
            "sizeGb": str(spec.size_bytes // GIB),
            "status": _STATUS[disk.status],
            "type": self._url(f"{root}/{place}/diskTypes/{spec.kind}"),
            "selfLink": self._url(f"{root}/{place}/disks/{spec.name}"),
            scope: self._url(f"{root}/{place}"),
            "labels": dict(spec.tags),
            "labelFingerprint": number(disk.id, str(disk.version)),
            "physicalBlockSizeBytes": "4096",
            "users": [self._url(self._machine_name(project, link.instance)) for link in disk.links if not _lost(link)],
        }
        if scope == "region":
            plain["replicaZones"] = [self._url(f"{root}/zones/{zone}") for zone in spec.zones]
        if spec.attributes.get("access_mode"):
            plain["accessMode"] = spec.attributes["access_mode"]
        if spec.iops is not None:
            plain["provisionedIops"] = str(spec.iops)
        if spec.mib_s is not None:
            plain["provisionedThroughput"] = str(spec.mib_s)
        return plain

    def _machine_plain(self, machine: Machine, project: str) -> dict[str, Any]:
        root = f"projects/{project}/zones/{machine.zone}"
        disks = [
            {
                "kind": "compute#attachedDisk",
                "type": "PERSISTENT",
                "mode": "READ_WRITE",
                "index": at,
                "source": self._url(f"projects/{project}/{_place(disk)}/disks/{disk.spec.name}"),
                "deviceName": link.device,
                "diskSizeGb": str(disk.spec.size_bytes // GIB),
                "autoDelete": False,
                "boot": False,
            }
            for at, (disk, link) in enumerate(self._links(machine), start=1)
        ]
        return {
            "kind": "compute#instance",
            "id": number(machine.id),
            "name": machine.name,
            "zone": self._url(root),
            "machineType": self._url(f"{root}/machineTypes/{machine.kind}"),
            "status": "RUNNING" if machine.running else "TERMINATED",
            "selfLink": self._url(f"{root}/instances/{machine.name}"),
            "networkInterfaces": [{"name": "nic0", "networkIP": machine.private_address}],
            "disks": disks,
        }


def _disk_id(place: str, name: str) -> str:
    return f"{place.partition('/')[2]}_{name}"


def _place(disk: Disk) -> str:
    return str(disk.spec.attributes["place"])


def _lost(link: Link) -> bool:
    """A force attach took the disk from this instance: from then on it is no user of it, whatever it does."""
    return link.forced and link.state is LinkState.DETACHING


def _in_use(target: str, user: str) -> Refusal:
    words = f"The disk resource '{target}' is already being used by '{user}'"
    return Refusal(400, "resourceInUseByAnotherResource", words)
