"""Google Cloud: what its storage can do, and where that is written."""

from __future__ import annotations

import re
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

HYPERDISK_HA = BlockClass(
    name="hyperdisk-balanced-ha",
    api_kind="hyperdisk-balanced-high-availability",
    scope=Scope.REGIONAL,
    zones_max=2,
    offered=True,
    share_max=8,
    cross_zone_multi_attach=True,  # READ_WRITE_MANY, hosts in the two replica zones only
    reservations=Fence.NVME_PR,
    reservations_work=None,  # documented for pd-ssd multi-writer only
    preempt_aborts=False,  # the documented list has no preempt-and-abort
    api_fence=Fence.FORCE_ATTACH,
    size_gib=(4, 65536),
    iops_max=100_000,
    mib_s_included=140,
    mib_s_max=2400,
    latency=None,
    price=BlockPrice(gib=0.16, iops=0.010, mib_s=0.08, confidence="low"),  # assumed: twice Hyperdisk Balanced
    confidence="capability high, price low",
    source="google-cloud-compute 1.57.0; pages hyperdisk-balanced-ha, sharing-disks-between-vms",
    note=(
        "May acknowledge with one replica while the other zone is slow (degraded): no loss is promised "
        "only while both are in step."
    ),
)

REGIONAL_PD = BlockClass(
    name="regional-pd-balanced",
    api_kind="pd-balanced",
    scope=Scope.REGIONAL,
    zones_max=2,
    offered=True,
    share_max=1,
    cross_zone_multi_attach=False,
    reservations=None,
    reservations_work=False,
    preempt_aborts=None,
    api_fence=Fence.FORCE_ATTACH,
    size_gib=(10, 65536),
    iops_max=None,
    mib_s_included=None,
    mib_s_max=None,
    latency="milliseconds; writes slower than a zonal disk's",
    price=BlockPrice(gib=0.20, confidence="high"),
    confidence="price high, performance low",
    source="google-cloud-compute 1.57.0; page repd-failover; billing export 2025-03-06",
)

PD_SSD_SHARED = BlockClass(
    name="pd-ssd-multi-writer",
    scope=Scope.ZONAL,
    zones_max=1,
    offered=True,
    share_max=2,
    cross_zone_multi_attach=False,
    reservations=Fence.SCSI_PR,
    reservations_work=True,
    preempt_aborts=False,
    api_fence=Fence.FORCE_DETACH,
    size_gib=(10, 65536),
    iops_max=None,
    mib_s_included=None,
    mib_s_max=None,
    latency=None,
    price=BlockPrice(gib=0.17, confidence="high"),
    confidence="high",
    source="page sharing-disks-between-vms (older copy); price 2024-07",
    note="Sizes are those of other persistent disks; not verified for this mode.",
)

PD_BALANCED = replace(
    PD_SSD_SHARED,
    name="pd-balanced",
    share_max=1,
    reservations=None,
    reservations_work=False,
    price=BlockPrice(gib=0.10, confidence="high"),
    source="billing export 2025-03-06",
    note="",
)

GCS_STANDARD = ObjectClass(
    name="gcs-standard",
    scope=Scope.REGIONAL,
    offered=True,
    create_if_absent=True,
    fence="ifGenerationMatch=0",
    append=None,
    latency="tens of ms",
    price=ObjectPrice(gib=0.02, put=0.005, get=0.0004, confidence="high"),
    confidence="high",
    source="cloud.google.com/storage/pricing, read 2026-09-20",
)

GCS_RAPID = ObjectClass(
    name="gcs-rapid",
    scope=Scope.ZONAL,
    offered=True,
    create_if_absent=True,
    fence="append takeover, ifGenerationMatch",
    append="appendable objects over gRPC",
    latency="below 1 ms",
    price=ObjectPrice(gib=0.11, put=None, get=None, confidence="high"),
    confidence="high",
    source="page rapid-bucket; google-cloud-storage 3.17.1; price 2026-09-20",
    note="Needs a hierarchical namespace and uniform bucket-level access.",
)


def capabilities(region: str, zones: tuple[str, ...]) -> Capabilities:
    """Facts for a region such as us-central1 with zones such as us-central1-a.

    Raises:
        Invalid: a zone that is not of the region.
    """
    for zone in zones:
        if re.fullmatch(rf"{re.escape(region)}-[a-z]", zone) is None:
            raise Invalid(
                f"zone {zone!r} is not written as GCP writes zones of {region}",
                hint=f"the region, '-' and a letter, as in {region}-a",
                field="zones",
            )
    offered = True if region == "us-central1" else None
    return Capabilities(
        provider="gcp",
        region=region,
        zones=zones,
        objects=(GCS_STANDARD,),
        regional_blocks=(replace(HYPERDISK_HA, offered=offered), replace(REGIONAL_PD, offered=offered)),
        zonal_block=PD_SSD_SHARED,
        zonal_shared_block=PD_SSD_SHARED,
        baseline_block=PD_BALANCED,
        express=GCS_RAPID,
        express_zones=None,  # which zones have Rapid buckets could not be verified
        economics=Economics(
            0.01,
            "n2-standard-4",
            141.77,
            None,
            "cloud.google.com/vpc/network-pricing, read 2026-09-20",
            egress_gib=((1_024, 0.12), (10_240, 0.11), (None, 0.08)),
            egress_free_gib=1,
        ),
    )
