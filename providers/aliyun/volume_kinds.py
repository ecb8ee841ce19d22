"""What Alibaba Cloud's documents say of each disk category: sizes, sharing, what is sent for it. Pure.

Sources: CreateDisk's parameters in the ECS SDK 7.11.8; pages enable-multi-attach (2026-05-15) and doc-detail/25691
(2026-05-15): ESSD, AutoPL and regional ESSD attach to at most 16 instances with NVMe, pay-as-you-go, data disks only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from providers.base.errors import Invalid
from providers.base.volume_api import VolumeSpec

GIB = 1 << 30
SHARE_MAX = 16
REGIONAL = "cloud_regional_disk_auto"
TAGS_MAX = 20

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of disk. `size_gib`: smallest and largest."""

    category: str
    level: str | None
    size_gib: tuple[int, int]
    shareable: bool
    provisioned_iops_max: int = 0


CATEGORIES: Mapping[str, Category] = {
    REGIONAL: Category(REGIONAL, None, (10, 65_536), shareable=True),
    "cloud_essd/PL0": Category("cloud_essd", "PL0", (1, 65_536), shareable=True),
    "cloud_essd": Category("cloud_essd", "PL1", (20, 65_536), shareable=True),
    "cloud_essd/PL2": Category("cloud_essd", "PL2", (461, 65_536), shareable=True),
    "cloud_essd/PL3": Category("cloud_essd", "PL3", (1_261, 65_536), shareable=True),
    "cloud_auto": Category("cloud_auto", None, (1, 65_536), shareable=True, provisioned_iops_max=50_000),
    "cloud_essd_entry": Category("cloud_essd_entry", None, (10, 32_768), shareable=False),
    "cloud_ssd": Category("cloud_ssd", None, (20, 32_768), shareable=False),
    "cloud_efficiency": Category("cloud_efficiency", None, (20, 32_768), shareable=False),
}
"""By the kind's name: the category, with "/" and the performance level where it is not the default PL1."""


def kind_of(category: str, level: str | None) -> str:
    """The kind's name for what DescribeDisks says."""
    return f"{category}/{level}" if category == "cloud_essd" and level not in (None, "", "PL1") else category


def creation(spec: VolumeSpec, region: str) -> dict[str, Any]:
    """CreateDisk's parameters for `spec`, by the SDK's names, without the client token.

    Raises:
        Invalid: beyond the documented limits.
    """
    kind = CATEGORIES.get("cloud_essd" if spec.kind == "cloud_essd/PL1" else spec.kind)
    if kind is None:
        raise Invalid(
            f"{spec.kind!r} is no disk category of Alibaba Cloud", hint=f"one of: {', '.join(CATEGORIES)}", field="kind"
        )
    if _NAME.fullmatch(spec.name) is None:
        raise Invalid(
            f"{spec.name!r} is no volume name",
            hint="1 to 63 lower-case letters, digits and hyphens, a letter first",
            field="name",
        )
    if len(spec.name) < 2:
        raise Invalid(f"{spec.name!r} is too short: ECS takes disk names of 2 characters and more", field="name")
    gib, rest = divmod(spec.size_bytes, GIB)
    low, high = kind.size_gib
    if rest or not low <= gib <= high:
        raise Invalid(
            f"a {spec.kind} has {low} to {high} whole GiB, not {spec.size_bytes} bytes",
            field="size_bytes",
            kind=spec.kind,
        )
    for zone in spec.zones:
        if not zone.startswith(region):
            raise Invalid(f"zone {zone!r} is not in {region}", field="zones")
    _check_sharing(spec, kind)
    _check_performance(spec, kind, gib)
    if len(spec.tags) > TAGS_MAX:
        raise Invalid(f"a disk has at most {TAGS_MAX} tags, not {len(spec.tags)}", field="tags")
    return {
        "region_id": region,
        "zone_id": None if kind.category == REGIONAL else _zone(spec),
        "disk_category": kind.category,
        "performance_level": kind.level,
        "disk_name": spec.name,
        "size": gib,
        "multi_attach": "Enabled" if spec.share_max > 1 else "Disabled",
        "provisioned_iops": spec.iops if kind.provisioned_iops_max else None,
    }


def _check_sharing(spec: VolumeSpec, kind: Category) -> None:
    if not 1 <= spec.share_max <= SHARE_MAX:
        raise Invalid(f"a disk is shared by 1 to {SHARE_MAX} instances, not {spec.share_max}", field="share_max")
    if spec.share_max > 1 and not kind.shareable:
        shareable = ", ".join(name for name, other in CATEGORIES.items() if other.shareable)
        raise Invalid(f"a {spec.kind} cannot be shared", hint=f"these can: {shareable}", field="share_max")


def _check_performance(spec: VolumeSpec, kind: Category, gib: int) -> None:
    if spec.mib_s is not None:
        raise Invalid(
            "a disk's throughput cannot be set on Alibaba Cloud: it follows from size and level", field="mib_s"
        )
    if spec.iops is None:
        return
    # CreateDisk, ProvisionedIops: 0 to min(1,000 x GiB - baseline, 50,000), none up to 3 GiB.
    baseline = max(min(1_800 + 50 * gib, 50_000), 3_000)
    most = min(1_000 * gib - baseline, kind.provisioned_iops_max) if gib > 3 else 0
    if not 0 <= spec.iops <= max(most, 0) or not kind.provisioned_iops_max:
        raise Invalid(
            f"a {spec.kind} of {gib} GiB takes no {spec.iops} provisioned IOPS",
            hint="only cloud_auto takes them, beside a baseline that grows with the size",
            field="iops",
        )


def _zone(spec: VolumeSpec) -> str:
    if len(spec.zones) != 1:
        raise Invalid(
            f"a {spec.kind} is in one zone, not in {len(spec.zones)}",
            hint=f"name one zone, or use {REGIONAL}",
            field="zones",
        )
    return spec.zones[0]


def client_token(region: str, name: str, earlier: tuple[str, ...]) -> str:
    """The idempotency token of creating `name`: the same for whoever asks, another one once disks that it stood for
    are deleted (`earlier`: their ids). ASCII, at most 64 characters."""
    text = "\n".join(("yunhe", region, name, *earlier))
    return hashlib.sha256(text.encode()).hexdigest()
