"""What Alibaba Cloud's documents say of each disk category: sizes, sharing, what is sent for it. Pure.

Sources: CreateDisk's parameters in the ECS SDK 7.11.8; pages enable-multi-attach (2026-05-15) and doc-detail/25691
(2026-05-15): ESSD, AutoPL and regional ESSD attach to at most 16 instances with NVMe, pay-as-you-go, data disks only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from providers.base.errors import Invalid
from providers.base.volume_api import VolumeSpec
from providers.base.volume_limits import GIB, VolumeLimits, check_spec

SHARE_MAX = 16
REGIONAL = "cloud_regional_disk_auto"
TAGS_MAX = 20
SHARE_TAG = "yunhe-share-max"
"""How many instances may share the disk, where it is fewer than the 16 that ECS allows."""


def _zonal(low_gib: int, high_gib: int = 65_536, *, share_max: int = SHARE_MAX, iops_max: int = 0) -> VolumeLimits:
    return VolumeLimits((1, 1), share_max, (low_gib, high_gib), iops_max=iops_max, mib_s_max=0)


LIMITS: Mapping[str, VolumeLimits] = {
    # CreateDisk takes no zone for it; the zones named say where it is wanted.
    REGIONAL: VolumeLimits((1, 26), SHARE_MAX, (10, 65_536), iops_max=0, mib_s_max=0),
    "cloud_essd": _zonal(20),
    "cloud_essd/PL0": _zonal(1),
    "cloud_essd/PL1": _zonal(20),
    "cloud_essd/PL2": _zonal(461),
    "cloud_essd/PL3": _zonal(1_261),
    "cloud_auto": _zonal(1, iops_max=50_000),
    "cloud_essd_entry": _zonal(10, 32_768, share_max=1),
    "cloud_ssd": _zonal(20, 32_768, share_max=1),
    "cloud_efficiency": _zonal(20, 32_768, share_max=1),
}
"""By kind: the category, with "/" and the performance level where it is an ESSD of another level than PL1."""


def kind_of(category: str, level: str | None) -> str:
    """The kind's name for what DescribeDisks says."""
    return f"{category}/{level}" if category == "cloud_essd" and level not in (None, "", "PL1") else category


def creation(spec: VolumeSpec, region: str) -> dict[str, Any]:
    """CreateDisk's parameters for `spec`, by the SDK's names, without tags and the client token.

    Raises:
        Invalid: beyond the documented limits.
    """
    limits = check_spec(spec, LIMITS)
    if len(spec.name) < 2:
        raise Invalid(f"{spec.name!r} cannot name a volume", hint="Alibaba Cloud wants 2 characters or more")
    for zone in spec.zones:
        if not zone.startswith(region):
            raise Invalid(f"zone {zone!r} is not in {region}", hint=f"for example {region}-h")
    category, _, level = spec.kind.partition("/")
    gib = spec.size_bytes // GIB
    # CreateDisk, ProvisionedIops: at most 1,000 x GiB less the baseline, and none up to 3 GiB.
    iops_max = 1_000 * gib - max(min(1_800 + 50 * gib, 50_000), 3_000) if gib > 3 else 0
    if spec.iops is not None and limits.iops_max and spec.iops > iops_max:
        raise Invalid(f"{spec.kind}: {spec.iops} IOPS are not possible with {gib} GiB", hint=f"at most {iops_max}")
    if len(tags_of(spec)) > TAGS_MAX:
        raise Invalid(f"a disk has at most {TAGS_MAX} tags", hint=f"{SHARE_TAG} is one of them where it is shared")
    return {
        "region_id": region,
        "zone_id": None if category == REGIONAL else spec.zones[0],
        "disk_category": category,
        "performance_level": (level or "PL1") if category == "cloud_essd" else None,
        "disk_name": spec.name,
        "size": gib,
        "multi_attach": "Enabled" if spec.share_max > 1 else "Disabled",
        "provisioned_iops": spec.iops,
    }


def tags_of(spec: VolumeSpec) -> tuple[tuple[str, str], ...]:
    """The disk's tags: the caller's, and how many may share it."""
    return (*spec.tags, (SHARE_TAG, str(spec.share_max))) if 1 < spec.share_max < SHARE_MAX else spec.tags


def client_token(region: str, name: str, earlier: tuple[str, ...]) -> str:
    """The idempotency token of creating `name`: the same for whoever asks, another one once disks that it stood for
    are deleted (`earlier`: their ids). ASCII, at most 64 characters."""
    text = "\n".join(("yunhe", region, name, *earlier))
    return hashlib.sha256(text.encode()).hexdigest()
