"""Azure: what its storage can do, and where that is written."""

from __future__ import annotations

from dataclasses import replace

from providers.base.capabilities import (
    BlockClass,
    BlockPrice,
    Capabilities,
    Economics,
    Fence,
    ObjectClass,
    ObjectPrice,
    Scope,
)
from providers.base.errors import Invalid

PREMIUM_ZRS = BlockClass(
    name="premium-ssd-zrs",
    api_kind="Premium_ZRS",
    scope=Scope.REGIONAL,
    zones_max=3,
    offered=True,
    share_max=3,  # P1 to P20; larger ones 5 and 10. The table's own include file could not be read.
    cross_zone_multi_attach=True,
    reservations=Fence.SCSI_PR,
    reservations_work=True,
    preempt_aborts=False,  # the documented list has no preempt-and-abort
    api_fence=Fence.FORCE_DETACH,
    size_gib=(4, 32767),
    iops_max=20_000,
    mib_s_included=100,  # P10
    mib_s_max=900,
    latency="single-digit ms; writes slower than the zonal class",
    price=BlockPrice(
        gib=0.198, tiers=((128, 29.57), (512, 109.83), (1024, 202.76)), confidence="medium"
    ),  # 1.5 x the zonal price; the charge for each further mount is not verified
    confidence="capability high, price medium",
    source="azure-mgmt-compute 39.0.0; disks-redundancy (2026-09-10), disks-shared (2025-12-03)",
    note="maxShares can change only while unattached; no host caching and no bursting when shared.",
)

PREMIUM_V2 = BlockClass(
    name="premium-ssd-v2-lrs",
    api_kind="PremiumV2_LRS",
    scope=Scope.ZONAL,
    zones_max=1,
    offered=True,
    share_max=15,
    cross_zone_multi_attach=False,
    reservations=Fence.SCSI_PR,
    reservations_work=True,
    preempt_aborts=False,
    api_fence=Fence.FORCE_DETACH,
    size_gib=(1, 65536),
    iops_max=80_000,
    mib_s_included=125,
    mib_s_max=2000,
    latency="below 1 ms for 99.9 %",
    price=BlockPrice(gib=0.081, iops=0.005, mib_s=0.041, confidence="low"),
    confidence="capability high, price low",
    source="disks-types (2026-08-11), disks-shared (2025-12-03)",
)

BLOB_HOT_ZRS = ObjectClass(
    name="blob-hot-zrs",
    scope=Scope.REGIONAL,
    offered=True,
    create_if_absent=True,
    fence="If-None-Match: *",
    append="AppendBlob at x-ms-blob-condition-appendpos, 50,000 blocks",
    latency="tens of ms",
    price=ObjectPrice(gib=0.026, put=0.006875, get=0.00044, confidence="medium"),
    confidence="medium",
    source="azure-storage-blob 12.31.1; price of westus, 2024-07-01",
)

PREMIUM_BLOB_ZRS = ObjectClass(
    name="premium-block-blob-zrs",
    scope=Scope.REGIONAL,
    offered=None,
    create_if_absent=True,
    fence="If-None-Match: *",
    append="AppendBlob at x-ms-blob-condition-appendpos, 50,000 blocks",
    latency="single-digit ms",
    price=ObjectPrice(gib=0.259, put=0.00303, get=0.00024, confidence="medium"),
    confidence="medium",
    source="price of westus, 2024-07-01",
    note="The regional class with low latency: an object WAL where zone-redundant disks cannot be used.",
)


def capabilities(region: str, zones: tuple[str, ...]) -> Capabilities:
    """Facts for a region such as eastus with zones 1, 2, 3.

    Raises:
        Invalid: a zone that is none of these.
    """
    for zone in zones:
        if zone not in ("1", "2", "3"):
            raise Invalid(f"zone {zone!r} is not a zone of Azure", hint="Azure calls them 1, 2 and 3", field="zones")
    # Verified for eastus; that a region has zones does not say that it sells zone-redundant disks.
    offered = True if region == "eastus" else None
    return Capabilities(
        provider="azure",
        region=region,
        zones=zones,
        objects=(BLOB_HOT_ZRS, PREMIUM_BLOB_ZRS),
        regional_blocks=(replace(PREMIUM_ZRS, offered=offered),),
        zonal_block=PREMIUM_V2,
        zonal_shared_block=PREMIUM_V2,
        baseline_block=PREMIUM_V2,
        economics=Economics(
            0.0,
            "D4s_v5",
            140.16,
            None,
            "inter-zone: free inside a virtual network since May 2024; egress 2026-05",
            egress_gib=((10_240, 0.087), (51_200, 0.083), (153_600, 0.07), (None, 0.05)),
            egress_free_gib=100,
        ),
    )
