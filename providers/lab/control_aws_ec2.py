"""EC2's Query protocol over the compute core: volumes, and as much of instances, types and zones as attaching them
needs. Errors carry the codes that EC2's API reference lists."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

from providers.base.errors import Full, YunheError
from providers.lab import compute as codes
from providers.lab.compute_state import GIB, Disk, DiskSpec, Link, Machine
from providers.lab.control import ControlPlane
from providers.lab.control_aws_volumes import checked_volume
from providers.lab.control_aws_wire import RefusedByEc2, boolean, item_set, numbered
from providers.lab.wire import Reply, Request, element, xml

_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
_ACCOUNT = "000000000000"

_CODES = {
    codes.NO_SUCH_DISK: (400, "InvalidVolume.NotFound"),
    codes.NO_SUCH_INSTANCE: (400, "InvalidInstanceID.NotFound"),
    codes.NOT_READY: (400, "IncorrectState"),
    codes.WRONG_ZONE: (400, "InvalidVolume.ZoneMismatch"),
    codes.UNSUPPORTED: (400, "UnsupportedOperation"),
    codes.IN_USE: (400, "VolumeInUse"),
    codes.SHARE_LIMIT: (400, "VolumeInUse"),
    codes.ALREADY_ATTACHED: (400, "VolumeInUse"),
    codes.INSTANCE_FULL: (400, "AttachmentLimitExceeded"),
    codes.TOKEN_MISMATCH: (400, "IdempotentParameterMismatch"),
    codes.QUOTA: (400, "VolumeLimitExceeded"),
    codes.NAME_TAKEN: (500, "InternalError"),
}

_MULTI_ATTACH_MAX = 16
"""Nitro instances in one zone (EBS user guide, ebs-volumes-multi)."""


class Ec2:
    """The calls, by action."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._compute = plane.compute
        # An account's letters for zones are its own: not in the order of the ids, so that nobody takes them for ids.
        letters = "abcdefghijklmnop"[: len(plane.zones)][::-1]
        self._zone_names = {zone: plane.region + letter for zone, letter in zip(plane.zones, letters, strict=True)}
        self._actions: Mapping[str, Callable[[Mapping[str, str]], list[ElementTree.Element | tuple[str, object]]]] = {
            "AttachVolume": self._attach,
            "CreateVolume": self._create,
            "DeleteVolume": self._delete,
            "DescribeAvailabilityZones": self._zones,
            "DescribeInstanceTypes": self._instance_types,
            "DescribeInstances": self._instances,
            "DescribeVolumes": self._volumes,
            "DetachVolume": self._detach,
        }

    def answer(self, request: Request) -> Reply:
        form = _form(request)
        action = form.get("Action", "")
        act = self._actions.get(action)
        if act is None:
            return error(400, "InvalidAction", f"The action {action} is not valid for this web service.")
        if form.get("DryRun") == "true":
            return error(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
        try:
            children = act(form)
        except RefusedByEc2 as refused:
            return error(refused.status, refused.code, refused.message)
        except YunheError as refused:
            status, code = _CODES.get(str(refused.fields.get("code")), (503, "Unavailable"))
            if isinstance(refused, Full) and code == "Unavailable":
                code = "InsufficientCapacity"
            return error(status, code, refused.message)
        answer = element(f"{action}Response", ("requestId", "0"), *children, xmlns=_NAMESPACE)
        return Reply(200, {"Content-Type": "text/xml;charset=UTF-8"}, xml(answer))

    # ---- volumes

    def _create(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        asked = checked_volume(form)
        zone = self._zone_of(form)
        given = {k: v for k, v in form.items() if k not in ("ClientToken", "DryRun", "Action", "Version")}
        spec = DiskSpec(
            id=f"vol-0{self._plane.rng.token()[:16]}",
            name=asked.tags.get("Name", ""),
            kind=asked.kind,
            size_bytes=asked.gib * GIB,
            zones=(zone,),
            share_max=_MULTI_ATTACH_MAX if asked.multi_attach else 1,
            iops=asked.iops,
            mib_s=asked.mib_s,
            tags=asked.tags,
        )
        token = form.get("ClientToken", "")
        disk = self._compute.create_disk(spec, token=token, parameters=json.dumps(given, sort_keys=True))
        return self._volume(disk)

    def _volumes(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        disks = self._compute.disks()
        wanted = numbered(form, "VolumeId")
        missing = set(wanted) - {disk.id for disk in disks}
        if missing:
            raise RefusedByEc2(400, "InvalidVolume.NotFound", f"The volume '{min(missing)}' does not exist.")
        found = [disk for disk in disks if (not wanted or disk.id in wanted) and self._passes(disk, form)]
        page, token = self._page(found, [disk.id for disk in found], form)
        volumes = [element("item", *self._volume(disk)) for disk in page]
        return [item_set("volumeSet", volumes), *token]

    def _delete(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        self._compute.delete_disk(_required(form, "VolumeId"))
        return [("return", "true")]

    def _attach(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        disk_id, instance = _required(form, "VolumeId"), _required(form, "InstanceId")
        device = _required(form, "Device")
        for disk in self._compute.disks():
            link = disk.link(instance)
            if link is not None and link.device == device and disk.id != disk_id:
                message = f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use"
                raise RefusedByEc2(400, "InvalidParameterValue", message)
        disk = self._compute.attach(disk_id, instance, device=device)
        link = disk.link(instance)
        return _attachment(disk, link) if link else []

    def _detach(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        disk = self._compute.disk(_required(form, "VolumeId"))
        instance = form.get("InstanceId", "")
        if not instance:
            if len(disk.links) > 1:
                raise RefusedByEc2(400, "InvalidParameterCombination", "InstanceId is needed: it is attached to many")
            instance = disk.links[0].instance if disk.links else ""
        if not disk.links:
            raise RefusedByEc2(400, "IncorrectState", f"Volume '{disk.id}' is in the 'available' state.")
        if disk.link(instance) is None:
            message = f"The volume '{disk.id}' is not attached to instance '{instance}'."
            raise RefusedByEc2(400, "InvalidAttachment.NotFound", message)
        disk = self._compute.detach(disk.id, instance, force=form.get("Force") == "true")
        link = disk.link(instance)
        return _attachment(disk, link) if link else []

    def _volume(self, disk: Disk) -> list[ElementTree.Element | tuple[str, object]]:
        spec = disk.spec
        rows: list[ElementTree.Element | tuple[str, object]] = [
            ("volumeId", disk.id),
            ("size", spec.size_bytes // GIB),
            ("snapshotId", ""),
            ("availabilityZone", self._zone_names[spec.zones[0]]),
            ("availabilityZoneId", spec.zones[0]),
            ("status", disk.status),
            ("createTime", _time(disk.created_ms)),
            item_set("attachmentSet", [element("item", *_attachment(disk, link)) for link in disk.links]),
            item_set("tagSet", [element("item", ("key", k), ("value", v)) for k, v in sorted(spec.tags.items())]),
            ("volumeType", spec.kind),
            ("encrypted", "false"),
            ("multiAttachEnabled", boolean(spec.share_max > 1)),
        ]
        if spec.iops is not None:
            rows.append(("iops", spec.iops))
        if spec.mib_s is not None:
            rows.append(("throughput", spec.mib_s))
        return rows

    def _passes(self, disk: Disk, form: Mapping[str, str]) -> bool:
        values: dict[str, Sequence[str]] = {
            "volume-id": (disk.id,),
            "status": (disk.status,),
            "volume-type": (disk.spec.kind,),
            "availability-zone": (self._zone_names[disk.spec.zones[0]],),
            "availability-zone-id": disk.spec.zones,
            "attachment.instance-id": [link.instance for link in disk.links],
            "multi-attach-enabled": (boolean(disk.spec.share_max > 1),),
            "tag-key": list(disk.spec.tags),
            **{f"tag:{key}": (value,) for key, value in disk.spec.tags.items()},
        }
        return _filtered(form, values)

    # ---- instances, types, zones

    def _instances(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        machines = self._compute.machines()
        wanted = numbered(form, "InstanceId")
        missing = set(wanted) - {machine.id for machine in machines}
        if missing:
            raise RefusedByEc2(400, "InvalidInstanceID.NotFound", f"The instance ID '{min(missing)}' does not exist")
        found = [m for m in machines if (not wanted or m.id in wanted) and self._shown(m, form)]
        page, token = self._page(found, [machine.id for machine in found], form)
        reservations = [
            element(
                "item",
                ("reservationId", "r-" + machine.id[2:]),
                ("ownerId", _ACCOUNT),
                item_set("instancesSet", [element("item", *self._instance(machine))]),
            )
            for machine in page
        ]
        return [item_set("reservationSet", reservations), *token]

    def _shown(self, machine: Machine, form: Mapping[str, str]) -> bool:
        values: dict[str, Sequence[str]] = {
            "instance-id": (machine.id,),
            "instance-type": (machine.kind,),
            "instance-state-name": ("running" if machine.running else "stopped",),
            "availability-zone": (self._zone_names[machine.zone],),
            "availability-zone-id": (machine.zone,),
            "tag:Name": (machine.name,),
        }
        return _filtered(form, values)

    def _instance(self, machine: Machine) -> list[ElementTree.Element | tuple[str, object]]:
        state = (16, "running") if machine.running else (80, "stopped")
        return [
            ("instanceId", machine.id),
            element("instanceState", ("code", state[0]), ("name", state[1])),
            ("instanceType", machine.kind),
            element(
                "placement",
                ("availabilityZone", self._zone_names[machine.zone]),
                ("availabilityZoneId", machine.zone),
                ("tenancy", "default"),
            ),
            ("privateIpAddress", machine.private_address),
            item_set("tagSet", [element("item", ("key", "Name"), ("value", machine.name))]),
        ]

    def _instance_types(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        types = {machine.kind: machine.shares_volumes for machine in self._compute.machines()}
        wanted = numbered(form, "InstanceType")
        unknown = set(wanted) - set(types)
        if unknown:
            raise RefusedByEc2(
                400, "InvalidInstanceType", f"The following supplied instance types do not exist: {unknown}"
            )
        found = sorted(set(wanted) or types)
        page, token = self._page(found, found, form)
        shown = [
            element("item", ("instanceType", kind), ("hypervisor", "nitro" if types[kind] else "xen")) for kind in page
        ]
        return [item_set("instanceTypeSet", shown), *token]

    def _zones(self, form: Mapping[str, str]) -> list[ElementTree.Element | tuple[str, object]]:
        wanted = numbered(form, "ZoneId")
        shown = [
            element(
                "item",
                ("zoneName", name),
                ("zoneId", zone),
                ("zoneState", "available"),
                ("regionName", self._plane.region),
                ("zoneType", "availability-zone"),
            )
            for zone, name in self._zone_names.items()
            if not wanted or zone in wanted
        ]
        return [item_set("availabilityZoneInfo", shown)]

    def _zone_of(self, form: Mapping[str, str]) -> str:
        name, zone = form.get("AvailabilityZone"), form.get("AvailabilityZoneId")
        if (name is None) == (zone is None):
            raise RefusedByEc2(400, "MissingParameter", "one of AvailabilityZone and AvailabilityZoneId is needed")
        if zone is None:
            zone = next((zone for zone, known in self._zone_names.items() if known == name), None)
        if zone not in self._zone_names:
            raise RefusedByEc2(
                400, "InvalidZone.NotFound", f"The zone '{name or form.get('AvailabilityZoneId')}' does not exist."
            )
        return str(zone)

    def _page(
        self, found: Sequence[Any], ids: Sequence[str], form: Mapping[str, str]
    ) -> tuple[Sequence[Any], list[tuple[str, object]]]:
        """The rows after the token's, and the next token's element."""
        limit = min(int(form.get("MaxResults", "1000")), self._plane.page_max)
        after = base64.urlsafe_b64decode(form.get("NextToken", "")).decode()
        first = sum(1 for row in ids if row <= after) if after else 0
        page = found[first : first + limit]
        if first + limit >= len(found):
            return page, []
        return page, [("nextToken", base64.urlsafe_b64encode(ids[first + limit - 1].encode()).decode())]


def error(status: int, code: str, message: str) -> Reply:
    """In EC2's shape and, beside it, Route 53's: an injected error may meet a client of either."""
    said = (("Code", code), ("Message", message))
    both = element("Response", element("Errors", element("Error", *said)), element("Error", *said), ("RequestID", "0"))
    return Reply(status, {"Content-Type": "text/xml;charset=UTF-8"}, xml(both))


def verb(request: Request) -> str:
    """The action."""
    return _form(request).get("Action", "")


def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode(), keep_blank_values=True)) or dict(request.query)


def _required(form: Mapping[str, str], name: str) -> str:
    if not form.get(name):
        raise RefusedByEc2(400, "MissingParameter", f"The request must contain the parameter {name}")
    return form[name]


def _filtered(form: Mapping[str, str], values: Mapping[str, Sequence[str]]) -> bool:
    number = 1
    while f"Filter.{number}.Name" in form:
        name = form[f"Filter.{number}.Name"]
        wanted = numbered(form, f"Filter.{number}.Value")
        if name not in values and not name.startswith("tag:"):
            raise RefusedByEc2(400, "InvalidParameterValue", f"The filter '{name}' is invalid")
        if not set(values.get(name, ())) & set(wanted):
            return False
        number += 1
    return True


def _attachment(disk: Disk, link: Link) -> list[ElementTree.Element | tuple[str, object]]:
    return [
        ("volumeId", disk.id),
        ("instanceId", link.instance),
        ("device", link.device),
        ("status", link.state),
        ("attachTime", _time(link.since_ms)),
        ("deleteOnTermination", "false"),
    ]


def _time(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
