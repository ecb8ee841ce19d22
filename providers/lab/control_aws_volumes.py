"""What EC2 refuses of a CreateVolume call before it looks at the account (API reference, CreateVolume)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from providers.lab.control_aws_wire import RefusedByEc2

_SIZES_GIB = {
    "gp2": (1, 16384),
    "gp3": (1, 65536),
    "io1": (4, 16384),
    "io2": (4, 65536),
    "st1": (125, 16384),
    "sc1": (125, 16384),
    "standard": (1, 1024),
}
_IOPS = {"gp3": (3000, 80_000), "io1": (100, 64_000), "io2": (100, 256_000)}
_IOPS_PER_GIB = {"gp3": 500, "io1": 50, "io2": 1000}
_MIB_S = (125, 2000)


@dataclass(frozen=True, slots=True)
class AskedVolume:
    """A volume as asked for, in EC2's units."""

    kind: str
    gib: int
    iops: int | None
    mib_s: int | None
    multi_attach: bool
    tags: Mapping[str, str]


def checked_volume(form: Mapping[str, str]) -> AskedVolume:
    """Raises `RefusedByEc2` with EC2's codes."""
    kind = form.get("VolumeType", "gp2")
    if kind not in _SIZES_GIB:
        raise RefusedByEc2(400, "UnknownVolumeType", f"Unsupported volume type '{kind}' for volume creation.")
    if "Size" not in form:
        raise RefusedByEc2(400, "MissingParameter", "The request must contain the parameter size/snapshot")
    gib = int(form["Size"])
    low, high = _SIZES_GIB[kind]
    if not low <= gib <= high:
        raise _invalid(f"Volume of {gib}GiB is not between {low}GiB and {high}GiB for volume type {kind}.")
    multi_attach = form.get("MultiAttachEnabled") == "true"
    if multi_attach and kind not in ("io1", "io2"):
        raise RefusedByEc2(400, "InvalidParameterCombination", f"multi-attach is not supported for volume type {kind}.")
    iops = int(form["Iops"]) if "Iops" in form else None
    mib_s = int(form["Throughput"]) if "Throughput" in form else None
    if iops is None and kind in ("io1", "io2"):
        raise RefusedByEc2(400, "MissingParameter", "The parameter iops must be specified for io1 and io2 volumes.")
    if iops is not None:
        _check_iops(kind, gib, iops)
    if mib_s is not None and kind != "gp3":
        raise RefusedByEc2(400, "InvalidParameterCombination", f"throughput is not supported for {kind} volumes.")
    if mib_s is not None and not _MIB_S[0] <= mib_s <= _MIB_S[1]:
        raise _invalid(f"Volume throughput of {mib_s} is not between {_MIB_S[0]} and {_MIB_S[1]}.")
    if kind == "gp3":
        iops, mib_s = iops or 3000, mib_s or 125
    return AskedVolume(kind, gib, iops, mib_s, multi_attach, _tags(form))


def _check_iops(kind: str, gib: int, iops: int) -> None:
    if kind not in _IOPS:
        raise RefusedByEc2(
            400, "InvalidParameterCombination", f"The parameter iops is not supported for {kind} volumes."
        )
    low, high = _IOPS[kind]
    if not low <= iops <= high:
        raise _invalid(f"Volume iops of {iops} is not between {low} and {high} for volume type {kind}.")
    if iops > _IOPS_PER_GIB[kind] * gib and iops > low:
        raise _invalid(f"Iops to volume size ratio of {iops / gib} is too high; maximum is {_IOPS_PER_GIB[kind]}.")


def _tags(form: Mapping[str, str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    number = 1
    while f"TagSpecification.{number}.ResourceType" in form:
        prefix = f"TagSpecification.{number}"
        if form[f"{prefix}.ResourceType"] != "volume":
            raise _invalid("CreateVolume tags volumes only")
        at = 1
        while f"{prefix}.Tag.{at}.Key" in form:
            tags[form[f"{prefix}.Tag.{at}.Key"]] = form.get(f"{prefix}.Tag.{at}.Value", "")
            at += 1
        number += 1
    return tags


def _invalid(message: str) -> RefusedByEc2:
    return RefusedByEc2(400, "InvalidParameterValue", message)
