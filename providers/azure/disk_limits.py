"""What Azure's documents say of managed disks: classes, sizes, zones, how many machines may share one.

Sources: azure-mgmt-compute 39.0.0 (`DiskStorageAccountTypes`), disks-types (2026-08-11), disks-redundancy (2026-09-10),
disks-shared (2025-12-03). The share counts by performance tier are from third-party copies of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from providers.base.errors import Invalid
from providers.base.volume_api import VolumeSpec

GIB = 1 << 30

ZONES = ("1", "2", "3")
"""Logical zones of every region that has zones. A zone-redundant disk is in all three."""

TIER_SHARES = ((512, 3), (4096, 5), (32767, 10))
"""(GiB up to, machines): P1 to P20 and E1 to E20, P30 to P50 and E30 to E50, P60 to P80 and E60 to E80."""

V2_SHARES = 15


@dataclass(frozen=True, slots=True)
class DiskClass:
    """`sizes_gib`: least and most. `redundant`: in three zones. `shares`: most machines at once, 1 for none, None: by
    `TIER_SHARES`. `provisioned`: IOPS and throughput are chosen."""

    name: str
    sizes_gib: tuple[int, int]
    redundant: bool = False
    shares: int | None = None
    provisioned: bool = False


CLASSES = {
    each.name: each
    for each in (
        DiskClass("Premium_ZRS", (4, 32767), redundant=True),
        DiskClass("StandardSSD_ZRS", (4, 32767), redundant=True),
        DiskClass("Premium_LRS", (4, 32767)),
        DiskClass("StandardSSD_LRS", (4, 32767)),
        DiskClass("Standard_LRS", (1, 32767), shares=1),
        DiskClass("PremiumV2_LRS", (1, 65536), shares=V2_SHARES, provisioned=True),
        DiskClass("UltraSSD_LRS", (1, 65536), shares=V2_SHARES, provisioned=True),
    )
}


def shares_of(kind: DiskClass, size_gib: int) -> int:
    """Machines that a disk of that class and size may be attached to at once."""
    if kind.shares is not None:
        return kind.shares
    return next(count for limit, count in TIER_SHARES if size_gib <= limit)


def check(spec: VolumeSpec) -> DiskClass:
    """The spec's class, when the documents allow such a disk.

    Raises:
        Invalid: unknown class, a size, zones, share count or performance that it does not take.
    """
    kind = CLASSES.get(spec.kind)
    if kind is None:
        raise Invalid(f"{spec.kind!r} is no class of managed disk", hint=f"one of: {', '.join(CLASSES)}")
    size_gib, rest = divmod(spec.size_bytes, GIB)
    least, most = kind.sizes_gib
    if rest or not least <= size_gib <= most:
        raise Invalid(
            f"{spec.name}: a {spec.kind} disk has whole GiB from {least} to {most}, not {spec.size_bytes} bytes"
        )
    _check_zones(spec, kind)
    shares = shares_of(kind, size_gib)
    if not 1 <= spec.share_max <= shares:
        hint = "a larger disk has more: 3 up to 512 GiB, 5 up to 4 TiB, 10 beyond" if kind.shares is None else None
        raise Invalid(
            f"{spec.name}: a {spec.kind} disk of {size_gib} GiB is shared by at most {shares}, not {spec.share_max}",
            hint=hint,
        )
    if not kind.provisioned and (spec.iops is not None or spec.mib_s is not None):
        raise Invalid(
            f"{spec.name}: the speed of a {spec.kind} disk follows from its size", hint="leave iops and mib_s out"
        )
    return kind


def _check_zones(spec: VolumeSpec, kind: DiskClass) -> None:
    for zone in spec.zones:
        if zone not in ZONES:
            raise Invalid(f"zone {zone!r} is not a zone of Azure", hint="Azure calls them 1, 2 and 3", field="zones")
    if len(spec.zones) > 1 and not kind.redundant:
        raise Invalid(
            f"{spec.name}: a {spec.kind} disk is in one zone, not in {', '.join(spec.zones)}",
            hint="Premium_ZRS and StandardSSD_ZRS are in all three",
        )
    if kind.provisioned and len(spec.zones) != 1:
        raise Invalid(f"{spec.name}: a {spec.kind} disk needs exactly one zone")
