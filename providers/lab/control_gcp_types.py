"""What Compute Engine takes as a disk: the lab's own copy of the documents, so that an adapter's is judged by another.

Sources: pages hyperdisk-balanced-ha, hyperdisk-balanced, about-regional-persistent-disk, sharing-disks-between-vms;
API v1 reference of `disks.insert`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from providers.lab.compute_state import GIB, DiskSpec
from providers.lab.control_gcp_wire import Refusal

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class _Type:
    scopes: tuple[str, ...]
    gib_min: int
    shared_max: int = 1
    provisioned: bool = False


TYPES = {
    "hyperdisk-balanced-high-availability": _Type(("regions",), 4, shared_max=8, provisioned=True),
    "hyperdisk-balanced": _Type(("zones",), 4, shared_max=8, provisioned=True),
    "pd-balanced": _Type(("zones", "regions"), 10),
    "pd-ssd": _Type(("zones", "regions"), 10),
    "pd-standard": _Type(("zones", "regions"), 10),
}
GIB_MAX = 65536
DEFAULT_TYPE = "pd-standard"
ACCESS_MODES = ("READ_WRITE_SINGLE", "READ_WRITE_MANY")


def checked_spec(asked: Mapping[str, Any], place: str, zones: Sequence[str]) -> DiskSpec:
    """The disk that `disks.insert` asks for in a zone or region, without its id.

    Raises:
        Refusal: 400 with the field that is wrong.
    """
    scope, _, where = place.partition("/")
    name = str(asked.get("name", ""))
    if NAME.fullmatch(name) is None:
        raise _invalid("resource.name", name)
    kind = str(asked.get("type") or DEFAULT_TYPE).rpartition("/")[2]
    known = TYPES.get(kind)
    if known is None or scope not in known.scopes:
        raise _invalid("resource.type", kind)
    try:
        gib = int(asked.get("sizeGb") or 0)
    except ValueError as error:
        raise _invalid("resource.sizeGb", str(asked["sizeGb"])) from error
    if not known.gib_min <= gib <= GIB_MAX:
        raise _invalid("resource.sizeGb", str(gib))
    replicas: tuple[str, ...] = (where,)
    if scope == "regions":
        replicas = tuple(str(zone).rpartition("/")[2] for zone in asked.get("replicaZones", ()))
        if len(replicas) != 2 or len(set(replicas)) != 2 or not set(replicas) <= set(zones):
            raise _invalid("resource.replicaZones", ", ".join(replicas))
    mode = str(asked.get("accessMode") or "READ_WRITE_SINGLE")
    if mode not in ACCESS_MODES or (mode == "READ_WRITE_MANY" and known.shared_max == 1):
        raise _invalid("resource.accessMode", mode)
    if not known.provisioned and (asked.get("provisionedIops") or asked.get("provisionedThroughput")):
        raise _invalid("resource.provisionedIops", str(asked.get("provisionedIops")))
    return DiskSpec(
        id="",
        name=name,
        kind=kind,
        size_bytes=gib * GIB,
        zones=replicas,
        share_max=known.shared_max if mode == "READ_WRITE_MANY" else 1,
        iops=_number(asked, "provisionedIops"),
        mib_s=_number(asked, "provisionedThroughput"),
        tags={str(key): str(value) for key, value in (asked.get("labels") or {}).items()},
        attributes={"place": place, "access_mode": mode if "accessMode" in asked else ""},
    )


def _number(asked: Mapping[str, Any], field: str) -> int | None:
    return int(asked[field]) if asked.get(field) else None


def _invalid(field: str, value: str) -> Refusal:
    return Refusal(400, "invalid", f"Invalid value for field '{field}': '{value}'.")
