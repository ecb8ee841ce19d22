"""ECS over the compute core: disks, their attachments, instances.

    Status   Creating ──► Available ──► Attaching ──► In_use ──► Detaching ──► Available (or In_use, if others have it)

A disk that is being deleted is shown as Deleting until it is gone (which the pages do not say), one whose creation
failed not at all. Error codes are those of the ECS API reference; where a page names several for one case, the one that
its description fits best. Sources: pages AttachDisk, DetachDisk, CreateDisk,
DeleteDisk, DescribeDisks (2026), enable-multi-attach (2026-05-15), and the ECS SDK 7.11.8.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from providers.base.errors import YunheError
from providers.lab import compute as core
from providers.lab.compute_state import GIB, Disk, DiskSpec, DiskState, Link, LinkState, Machine
from providers.lab.control import ControlPlane
from providers.lab.control_aliyun_errors import Refused, numbered

T = TypeVar("T")
Arguments = Mapping[str, str]
Answer = dict[str, Any]

ECS_ACTIONS = {
    "CreateDisk": "create_disk",
    "AttachDisk": "attach_disk",
    "DetachDisk": "detach_disk",
    "DeleteDisk": "delete_disk",
    "DescribeDisks": "describe_disks",
    "DescribeInstances": "describe_instances",
    "DescribeInstanceTypes": "describe_instance_types",
}

REGIONAL = "cloud_regional_disk_auto"
SHARE_MAX = 16
_SIZES_GIB: Mapping[tuple[str, str], tuple[int, int]] = {
    (REGIONAL, ""): (10, 65_536),
    ("cloud_auto", ""): (1, 65_536),
    ("cloud_essd", "PL0"): (1, 65_536),
    ("cloud_essd", "PL1"): (20, 65_536),
    ("cloud_essd", "PL2"): (461, 65_536),
    ("cloud_essd", "PL3"): (1_261, 65_536),
    ("cloud_essd_entry", ""): (10, 32_768),
    ("cloud_ssd", ""): (20, 32_768),
    ("cloud_efficiency", ""): (20, 32_768),
}
_SHAREABLE = frozenset([REGIONAL, "cloud_auto", "cloud_essd"])
TOKENS_MAX = 1_000
"""Client tokens remembered beyond their disk's life."""
_TOKENS = "aliyun-client-tokens"
IDS_MAX = 100
"""Ids a Describe call takes."""

_REFUSALS: Mapping[str, tuple[int, str, str]] = {
    core.NO_SUCH_DISK: (404, "InvalidDiskId.NotFound", "The specified disk does not exist."),
    core.NO_SUCH_INSTANCE: (404, "InvalidInstanceId.NotFound", "The specified InstanceId does not exist."),
    core.WRONG_ZONE: (403, "ResourcesNotInSameZone", "The specified instance and disk are not in the same zone."),
    core.UNSUPPORTED: (
        400,
        "InvalidOperation.InstanceTypeNotSupport",
        "The instance type of the specified instance does not support multi-attach disks.",
    ),
    core.NOT_READY: (403, "IncorrectDiskStatus", "The operation is not supported in this status."),
    core.IN_USE: (403, "IncorrectDiskStatus", "The operation is not supported in this status."),
    core.ALREADY_ATTACHED: (404, "InvalidDisk.InUse", "The specified disk has been occupied."),
    core.SHARE_LIMIT: (404, "DiskAttachedNumberExceeded", "The attaching times of the specified disk exceeded."),
    core.NOT_ATTACHED: (403, "DependencyViolation", "The specified disk has not been attached on the instance."),
    core.INSTANCE_FULL: (
        403,
        "InstanceDiskLimitExceeded",
        "The amount of the disk on instance in question reach its limits.",
    ),
    core.TOKEN_MISMATCH: (
        400,
        "IdempotentParameterMismatch",
        "Request uses a client token in a previous request but is not identical to that request.",
    ),
}
_QUOTAS = {
    "disks_max": ("QuotaExceed.PostPaidDisk", "Living postPaid disks quota exceeded."),
    "gib_max": ("QuotaExceed.DiskCapacity", "The used capacity of disk type has exceeded the quota in the zone."),
}


class EcsActions:
    """One method an action: parameters in, answer out, `Refused` otherwise."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._compute = plane.compute
        self._creating = threading.Lock()
        self._shares_across_zones = bool(plane.credentials.get("cross_zone_sharing", True))

    # ---- changes

    def create_disk(self, asked: Arguments) -> Answer:
        self._check_region(asked)
        spec = self._spec(asked)
        token = asked.get("ClientToken", "")
        if len(token) > 64 or not token.isascii():
            raise Refused(400, "InvalidParameter.ClientToken", "A client token has at most 64 ASCII characters.")
        parameters = json.dumps({name: value for name, value in asked.items() if name != "ClientToken"}, sort_keys=True)
        with self._creating:
            spent = self._compute.noted(_TOKENS) or {}
            there = {disk.id for disk in self._compute.disks()}
            # Of a disk that was deleted since, the id is answered again: the stricter of two readings of "the same
            # token gives the same result", so that clients are ready for it.
            if token in spent and spent[token] not in there:
                return {"DiskId": spent[token]}
            disk = self._core(lambda: self._compute.create_disk(spec, token=token, parameters=parameters))
            if token and token not in spent:
                self._compute.note(_TOKENS, dict([*spent.items(), (token, disk.id)][-TOKENS_MAX:]))
        return {"DiskId": disk.id}

    def _spec(self, asked: Arguments) -> DiskSpec:
        category = asked.get("DiskCategory", "cloud")
        level = asked.get("PerformanceLevel", "PL1") if category == "cloud_essd" else ""
        limits = _SIZES_GIB.get((category, level))
        if limits is None:
            raise Refused(403, "InvalidDiskCategory.NotSupported", f"The disk category {category} {level} is unknown.")
        gib = int(asked.get("Size", "0"))
        if not limits[0] <= gib <= limits[1]:
            raise Refused(400, "InvalidDiskSize.NotSupported", f"The disk size is not in {limits[0]}-{limits[1]} GiB.")
        zone = asked.get("ZoneId", "")
        if category != REGIONAL and not zone:
            raise Refused(400, "MissingParameter", 'The input parameter "ZoneId" is needed for this category.')
        if zone and zone not in self._plane.zones:
            raise Refused(404, "InvalidZoneId.NotFound", "The specified zone does not exist.")
        shared = asked.get("MultiAttach", "Disabled") == "Enabled"
        if shared and category not in _SHAREABLE:
            raise Refused(400, "InvalidParameter.NotMatch", f"{category} does not support MultiAttach.")
        if "ProvisionedIops" in asked and category != "cloud_auto":
            raise Refused(400, "InvalidParameter.NotMatch", f"{category} does not support ProvisionedIops.")
        iops = int(asked["ProvisionedIops"]) if "ProvisionedIops" in asked else None
        keys, values = _tags(asked)
        return DiskSpec(
            id=f"d-{self._plane.rng.token()[:20]}",
            name=asked.get("DiskName", ""),
            kind=category,
            size_bytes=gib * GIB,
            zones=self._plane.zones if category == REGIONAL else (zone,),
            share_max=SHARE_MAX if shared else 1,
            iops=iops,
            tags=dict(zip(keys, values, strict=True)),
            attributes={"level": level},
        )

    def attach_disk(self, asked: Arguments) -> Answer:
        disk, instance = self._disk(asked), _needed(asked, "InstanceId")
        force = asked.get("Force", "false").lower() == "true"
        if force and disk.spec.kind != REGIONAL:
            raise Refused(
                400,
                "DiskCategory.OperationNotSupported",
                "The operation is not supported to the specified disk due to its disk category",
            )
        machine = self._core(lambda: self._compute.machine(instance))
        if not force:
            self._check_at_rest(disk)
            if not self._shares_across_zones and self._zones_of(disk) - {machine.zone}:
                raise _refusal(core.WRONG_ZONE)
        self._core(lambda: self._compute.attach(disk.id, instance, device=_device(disk), force=force))
        return {}

    def detach_disk(self, asked: Arguments) -> Answer:
        disk, instance = self._disk(asked), _needed(asked, "InstanceId")
        self._core(lambda: self._compute.machine(instance))
        self._check_at_rest(disk)
        self._core(lambda: self._compute.detach(disk.id, instance))
        return {}

    def delete_disk(self, asked: Arguments) -> Answer:
        disk = self._disk(asked)
        self._core(lambda: self._compute.delete_disk(disk.id))
        return {}

    # ---- reads

    def describe_disks(self, asked: Arguments) -> Answer:
        self._check_region(asked)
        ids = _ids(asked, "DiskIds")
        with_placement = "Placement" in numbered(asked, "AdditionalAttributes")
        rows = []
        for disk in self._compute.disks():
            if disk.state is DiskState.ERROR or (ids is not None and disk.id not in ids):
                continue
            row = self._disk_row(disk, with_placement=with_placement)
            if _fits(asked, row, {"Category": "Category", "ZoneId": "ZoneId", "Status": "Status"}) and _named(
                asked.get("DiskName"), disk.spec.name
            ):
                rows.append(row)
        return _page(asked, rows, "DiskId", min(500, self._plane.page_max), lambda some: {"Disks": {"Disk": some}})

    def describe_instances(self, asked: Arguments) -> Answer:
        self._check_region(asked)
        ids = _ids(asked, "InstanceIds")
        rows = []
        for machine in self._compute.machines():
            row = self._instance_row(machine)
            if (
                (ids is None or machine.id in ids)
                and _named(asked.get("InstanceName"), machine.name)
                and _fits(asked, row, {"ZoneId": "ZoneId", "Status": "Status", "InstanceType": "InstanceType"})
            ):
                rows.append(row)
        return _page(
            asked, rows, "InstanceId", min(100, self._plane.page_max), lambda some: {"Instances": {"Instance": some}}
        )

    def describe_instance_types(self, asked: Arguments) -> Answer:
        wanted = numbered(asked, "InstanceTypes")
        kinds: dict[str, bool] = {}
        for machine in self._compute.machines():
            kinds[machine.kind] = kinds.get(machine.kind, True) and machine.shares_volumes
        rows = [
            {
                "InstanceTypeId": kind,
                "InstanceTypeFamily": kind.rpartition(".")[0],
                "NvmeSupport": "required" if nvme else "unsupported",
            }
            for kind, nvme in sorted(kinds.items())
            if not wanted or kind in wanted
        ]
        return {"InstanceTypes": {"InstanceType": rows}}

    # ---- rows

    def _disk_row(self, disk: Disk, *, with_placement: bool) -> Answer:
        spec = disk.spec
        first = disk.links[0] if disk.links else None
        row: Answer = {
            "DiskId": disk.id,
            "DiskName": spec.name,
            "RegionId": self._plane.region,
            "ZoneId": "" if spec.kind == REGIONAL else spec.zones[0],
            "Category": spec.kind,
            "PerformanceLevel": spec.attributes.get("level", ""),
            "Size": spec.size_bytes // GIB,
            "Type": "data",
            "DiskChargeType": "PostPaid",
            "Portable": True,
            "Status": _status(disk),
            "MultiAttach": "Enabled" if spec.share_max > 1 else "Disabled",
            "CreationTime": _time(disk.created_ms),
            "InstanceId": first.instance if first else "",
            "Device": first.device if first else "",
            "Attachments": {"Attachment": [_attachment(link) for link in disk.links]},
            "Tags": {"Tag": [{"TagKey": key, "TagValue": value} for key, value in spec.tags.items()]},
        }
        if spec.iops is not None:
            row["ProvisionedIops"] = spec.iops
        if with_placement and spec.kind == REGIONAL:
            row["Placement"] = {"ZoneIds": ",".join(spec.zones)}
        return row

    def _instance_row(self, machine: Machine) -> Answer:
        addresses = [machine.private_address] if machine.private_address else []
        return {
            "InstanceId": machine.id,
            "InstanceName": machine.name,
            "RegionId": self._plane.region,
            "ZoneId": machine.zone,
            "InstanceType": machine.kind,
            "InstanceTypeFamily": machine.kind.rpartition(".")[0],
            "Status": "Running" if machine.running else "Stopped",
            "InstanceNetworkType": "vpc",
            "VpcAttributes": {"PrivateIpAddress": {"IpAddress": addresses}},
        }

    # ---- checks

    def _check_region(self, asked: Arguments) -> None:
        if _needed(asked, "RegionId") != self._plane.region:
            raise Refused(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist.")

    def _disk(self, asked: Arguments) -> Disk:
        disk_id = _needed(asked, "DiskId")
        disk = self._core(lambda: self._compute.disk(disk_id))
        if disk.state is DiskState.DELETING:
            raise _refusal(core.NO_SUCH_DISK)
        return disk

    def _check_at_rest(self, disk: Disk) -> None:
        if _status(disk) not in ("Available", "In_use"):
            raise _refusal(core.NOT_READY)

    def _zones_of(self, disk: Disk) -> set[str]:
        machines = {machine.id: machine.zone for machine in self._compute.machines()}
        return {machines[link.instance] for link in disk.links if link.instance in machines}

    def _core(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except YunheError as error:
            raise _refused(error) from error


def _refusal(code: str) -> Refused:
    return Refused(*_REFUSALS[code])


def _refused(error: YunheError) -> Refused:
    code = str(error.fields.get("code", ""))
    if code == core.QUOTA:
        name, message = _QUOTAS[error.fields["quota"]]
        return Refused(403, name, message)
    if code in _REFUSALS:
        return _refusal(code)
    return Refused(500, "InternalError", str(error))


def _status(disk: Disk) -> str:
    if disk.state is DiskState.CREATING:
        return "Creating"
    if disk.state is DiskState.DELETING:
        return "Deleting"
    states = {link.state for link in disk.links}
    if LinkState.ATTACHING in states:
        return "Attaching"
    if states & {LinkState.DETACHING, LinkState.BUSY}:
        return "Detaching"
    return "In_use" if disk.links else "Available"


def _attachment(link: Link) -> Answer:
    row = {"InstanceId": link.instance, "Device": link.device}
    return {**row, "AttachedTime": _time(link.since_ms)} if link.state is not LinkState.ATTACHING else row


def _device(disk: Disk) -> str:
    """A name for the new attachment, as ECS gives one; the guest's kernel may use another."""
    taken = len(disk.links)
    return f"/dev/xvd{chr(ord('b') + taken)}"


def _time(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _needed(asked: Arguments, name: str) -> str:
    if not asked.get(name):
        raise Refused(400, f"Missing{name}", f'The input parameter "{name}" that is mandatory is not supplied.')
    return asked[name]


def _ids(asked: Arguments, name: str) -> frozenset[str] | None:
    if not asked.get(name):
        return None
    ids = json.loads(asked[name])
    if not isinstance(ids, list) or len(ids) > IDS_MAX:
        raise Refused(400, f"Invalid{name}.Malformed", f"{name} is a JSON array of at most {IDS_MAX} ids.")
    return frozenset(map(str, ids))


def _tags(asked: Arguments) -> tuple[list[str], list[str]]:
    keys: list[str] = []
    values: list[str] = []
    while (key := asked.get(f"Tag.{len(keys) + 1}.Key")) is not None:
        values.append(asked.get(f"Tag.{len(keys) + 1}.Value", ""))
        keys.append(key)
    return keys, values


def _named(wanted: str | None, name: str) -> bool:
    """A name filter; `*` in it stands for anything."""
    return not wanted or fnmatch.fnmatchcase(name, wanted.replace("[", "[[]").replace("?", "[?]"))


def _fits(asked: Arguments, row: Answer, filters: Mapping[str, str]) -> bool:
    return all(asked.get(name) in (None, "", "All", "all", row[field]) for name, field in filters.items())


def _page(
    asked: Arguments, rows: Sequence[Answer], id_field: str, most: int, shape: Callable[[Sequence[Answer]], Answer]
) -> Answer:
    """By MaxResults and NextToken (10 to `most` entries, 10 by default), or by PageNumber and PageSize."""
    if "PageNumber" in asked or "PageSize" in asked:
        number, size = int(asked.get("PageNumber", "1")), min(max(int(asked.get("PageSize", "10")), 1), most)
        some = rows[(number - 1) * size : number * size]
        return {**shape(some), "TotalCount": len(rows), "PageNumber": number, "PageSize": size}
    size = min(max(int(asked.get("MaxResults", "10")), 10), most)
    token = asked.get("NextToken", "")
    after = base64.urlsafe_b64decode(token).decode() if token else ""
    rest = [row for row in rows if row[id_field] > after]
    answer = {**shape(rest[:size]), "TotalCount": len(rows), "NextToken": ""}
    if len(rest) > size:
        answer["NextToken"] = base64.urlsafe_b64encode(str(rest[size - 1][id_field]).encode()).decode()
    return answer
