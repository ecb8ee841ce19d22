"""What Compute Engine's documents allow of each type of disk: checked before anything is sent.

Sources: `providers/gcp/capabilities.py`; the pages hyperdisk-balanced-ha, hyperdisk-balanced, repd-failover and
sharing-disks-between-vms; google-cloud-compute 1.57 for what its v1 API can say (`Disk` has `accessMode`, for Hyperdisk
only, and no `multiWriter`, which is of the beta API).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from providers.base.errors import Invalid
from providers.base.volume_api import VolumeSpec

GIB = 1 << 30

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of disks and instances (API reference, `Disk.name`)."""

LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
LABELS_MAX = 64


@dataclass(frozen=True, slots=True)
class DiskType:
    """A type of disk. Sizes in GiB, throughput in MiB/s; None: not to be asked for."""

    zones: tuple[int, ...]
    """How many zones it can be asked for in: 1 zonal, 2 regional."""
    size_gib: tuple[int, int]
    share_max: int
    iops: tuple[int, int] | None = None
    mib_s: tuple[int, int] | None = None


DISK_TYPES = {
    "hyperdisk-balanced-high-availability": DiskType((2,), (4, 65536), 8, (3000, 100_000), (140, 2400)),
    "hyperdisk-balanced": DiskType((1,), (4, 65536), 8, (3000, 160_000), (140, 2400)),
    "pd-balanced": DiskType((1, 2), (10, 65536), 1),
    "pd-ssd": DiskType((1, 2), (10, 65536), 1),
}


def check(spec: VolumeSpec, region: str) -> DiskType:
    """
    Raises:
        Invalid: a name, class, size, zone, share count or performance that the documents do not allow.
    """
    kind = DISK_TYPES.get(spec.kind)
    if kind is None:
        hint = f"one of: {', '.join(DISK_TYPES)}"
        if "multi-writer" in spec.kind:
            hint = f"multi-writer pd-ssd is made by the beta API only; {hint}"
        raise Invalid(f"{spec.kind!r} is no disk type that is known here", hint=hint)
    if NAME.fullmatch(spec.name) is None:
        raise Invalid(
            f"{spec.name!r} is no disk name",
            hint="1 to 63 lower-case letters, digits and hyphens, a letter first and no hyphen last",
        )
    if spec.size_bytes % GIB:
        raise Invalid(f"{spec.size_bytes} bytes is no whole number of GiB")
    _within("size", spec.size_bytes // GIB, kind.size_gib, "GiB", spec.kind)
    _check_zones(spec, kind, region)
    if not 1 <= spec.share_max <= kind.share_max:
        hint = "hyperdisk-balanced-high-availability is shared by up to 8, in its two zones"
        raise Invalid(f"{spec.kind} is attached to at most {kind.share_max}, not {spec.share_max}", hint=hint)
    for what, value, bounds, unit in (("IOPS", spec.iops, kind.iops, ""), ("rate", spec.mib_s, kind.mib_s, "MiB/s")):
        if value is not None and bounds is None:
            raise Invalid(f"{spec.kind} has no {what} to ask for", hint="it grows with the size; leave it out")
        if value is not None and bounds is not None:
            _within(what, value, bounds, unit, spec.kind)
    _check_labels(spec)
    return kind


def _check_zones(spec: VolumeSpec, kind: DiskType, region: str) -> None:
    for zone in spec.zones:
        if re.fullmatch(rf"{re.escape(region)}-[a-z]", zone) is None:
            raise Invalid(f"zone {zone!r} is not of region {region}", hint=f"as {region}-a", zone=zone)
    if len(set(spec.zones)) != len(spec.zones) or len(spec.zones) not in kind.zones:
        wanted = " or ".join(str(number) for number in kind.zones)
        raise Invalid(
            f"{spec.kind} is made in {wanted} zones, each named once, not in {', '.join(spec.zones) or 'none'}",
            hint="a regional disk has exactly two replica zones",
        )


def _check_labels(spec: VolumeSpec) -> None:
    if len(spec.tags) > LABELS_MAX:
        raise Invalid(f"{len(spec.tags)} labels are more than {LABELS_MAX}")
    for key, value in spec.tags:
        if LABEL_KEY.fullmatch(key) is None or LABEL_VALUE.fullmatch(value) is None:
            raise Invalid(
                f"{key}={value} is no label",
                hint="lower-case letters, digits, _ and -, up to 63; the key begins with a letter",
            )


def _within(what: str, value: int, bounds: tuple[int, int], unit: str, kind: str) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise Invalid(f"a {what} of {value} {unit} is outside what {kind} takes: {low} to {high}".replace("  ", " "))
