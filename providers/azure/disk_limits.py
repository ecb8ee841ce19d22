"""What Azure's documents say of managed disks: classes, sizes, zones, how many machines may share one.

Sources: azure-mgmt-compute 39.0.0 (`DiskStorageAccountTypes`), disks-types (2026-08-11), disks-redundancy (2026-09-10),
disks-shared (2025-12-03). The share counts by performance tier are from third-party copies of the table.
"""

from __future__ import annotations

from providers.base.errors import Invalid
from providers.base.volume_api import VolumeSpec
from providers.base.volume_limits import GIB, VolumeLimits, check_spec

ZONES = ("1", "2", "3")
"""Logical zones of every region that has zones. A zone-redundant disk is in all three."""

TIER_SHARES = ((512, 3), (4096, 5), (32767, 10))
"""(GiB up to, machines): P1 to P20 and E1 to E20, P30 to P50 and E30 to E50, P60 to P80 and E60 to E80."""

V2_SHARES = 15


REDUNDANT = ("Premium_ZRS", "StandardSSD_ZRS")
"""In all three zones."""

_SSD = (4, 32767)
_REGIONAL, _ZONAL = (0, 1), (1, 1)
"""Zones that are named: a disk without one is put where its machine is; the provisioned classes need one."""

CLASSES = {
    "Premium_ZRS": VolumeLimits((0, 3), 10, _SSD, iops_max=0, mib_s_max=0),
    "StandardSSD_ZRS": VolumeLimits((0, 3), 10, _SSD, iops_max=0, mib_s_max=0),
    "Premium_LRS": VolumeLimits(_REGIONAL, 10, _SSD, iops_max=0, mib_s_max=0),
    "StandardSSD_LRS": VolumeLimits(_REGIONAL, 10, _SSD, iops_max=0, mib_s_max=0),
    "Standard_LRS": VolumeLimits(_REGIONAL, 1, (1, 32767), iops_max=0, mib_s_max=0),
    "PremiumV2_LRS": VolumeLimits(_ZONAL, V2_SHARES, (1, 65536), iops_max=80_000, mib_s_max=2_000),
    "UltraSSD_LRS": VolumeLimits(_ZONAL, V2_SHARES, (4, 65536), iops_max=400_000, mib_s_max=10_000),
}


def check(spec: VolumeSpec) -> None:
    """
    Raises:
        Invalid: unknown class; a name, size, zones, share count or speed that it does not take.
    """
    check_spec(spec, CLASSES)
    for zone in spec.zones:
        if zone not in ZONES:
            raise Invalid(f"zone {zone!r} is not a zone of Azure", hint="Azure calls them 1, 2 and 3", field="zones")
    size_gib = spec.size_bytes // GIB
    if CLASSES[spec.kind].share_max == TIER_SHARES[-1][1]:
        shares = next(count for limit, count in TIER_SHARES if size_gib <= limit)
        if spec.share_max > shares:
            raise Invalid(
                f"{spec.name}: {spec.share_max} machines cannot share a {spec.kind} disk of {size_gib} GiB",
                hint="at most 3 up to 512 GiB, 5 up to 4 TiB, 10 beyond",
            )
