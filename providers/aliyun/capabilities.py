"""Alibaba Cloud: what its storage can do, and where that is written."""

from __future__ import annotations

import re

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

ZRS_REGIONS = frozenset(
    [
        "cn-hangzhou",
        "cn-shanghai",
        "cn-beijing",
        "cn-zhangjiakou",
        "cn-wulanchabu",
        "cn-shenzhen",
        "cn-hongkong",
        "ap-northeast-1",
        "ap-southeast-1",
        "ap-southeast-5",
        "ap-southeast-3",
        "eu-central-1",
    ]
)
"""Regions whose OSS offers zone-redundant storage (OSS storage-redundancy page)."""

REGIONAL_ESSD = BlockClass(
    name="regional-essd",
    api_kind="cloud_regional_disk_auto",
    scope=Scope.REGIONAL,
    zones_max=None,
    offered=None,  # the region list could not be verified
    share_max=16,
    cross_zone_multi_attach=None,
    reservations=Fence.NVME_PR,
    reservations_work=True,
    preempt_aborts=True,
    api_fence=Fence.FORCE_ATTACH,
    size_gib=(10, 65536),
    iops_max=None,
    mib_s_included=None,
    mib_s_max=None,
    latency="higher than a zonal ESSD's; number not verified",
    price=BlockPrice(gib=0.30, confidence="low"),  # assumed: twice the single-zone PL1 proxy
    confidence="capability high, price low",
    source=(
        "ECS SDK 7.11.8, CreateDisk cloud_regional_disk_auto; pages enable-multi-attach (2026-05-15), "
        "multi-attach-and-reservation (2026-03-26)"
    ),
    note="The ECS page says it attaches to hosts of one zone, the container page to hosts of one region: probe.",
)

ESSD_PL1 = BlockClass(
    name="essd-pl1",
    api_kind="cloud_essd/PL1",
    scope=Scope.ZONAL,
    zones_max=1,
    offered=True,
    share_max=16,
    cross_zone_multi_attach=False,
    reservations=Fence.NVME_PR,
    reservations_work=True,
    preempt_aborts=True,
    api_fence=Fence.FORCE_DETACH,
    size_gib=(20, 65536),
    iops_max=50_000,
    mib_s_included=130,  # min(120 + 0.5 x GiB, 350) at 20 GiB
    mib_s_max=350,
    latency="0.2 ms average one-way random write",
    price=BlockPrice(gib=0.15, confidence="low"),  # PolarDB's single-zone ESSD PL1, China mainland, as proxy
    confidence="capability high, price low",
    source="ECS SDK 7.11.8; pages essd-autopl (2024-11-18), PolarDB storage billing",
)

OSS_ZRS = ObjectClass(
    name="oss-standard-zrs",
    scope=Scope.REGIONAL,
    offered=True,
    create_if_absent=True,
    fence="x-oss-forbid-overwrite",
    append="AppendObject at a position equal to the length, up to 5 GiB",
    latency="tens of ms",
    price=ObjectPrice(gib=0.0211, put=0.000141, get=0.000141, confidence="low"),
    confidence="capability high, price low",
    source="page appendobject (2025-12-06), alibabacloud-oss-v2 1.4.1; price: third-party table in CNY at 7.1",
)

OSS_LRS = ObjectClass(
    name="oss-standard-lrs",
    scope=Scope.ZONAL,
    offered=True,
    create_if_absent=True,
    fence="x-oss-forbid-overwrite",
    append="AppendObject at a position equal to the length, up to 5 GiB",
    latency="tens of ms",
    price=ObjectPrice(gib=0.0169, put=0.000141, get=0.000141, confidence="low"),
    confidence="capability high, price low",
    source="alibabacloud-oss-v2 1.4.1; price: third-party table in CNY at 7.1",
)


def capabilities(region: str, zones: tuple[str, ...]) -> Capabilities:
    """Facts for a region such as cn-hangzhou with zones such as cn-hangzhou-h.

    Raises:
        Invalid: a zone that is not of the region.
    """
    for zone in zones:
        if re.fullmatch(rf"{re.escape(region)}-?[a-z]", zone) is None:
            raise Invalid(
                f"zone {zone!r} is not written as Aliyun writes zones of {region}",
                hint=f"the region, '-' and a letter, as in {region}-h",
                field="zones",
            )
    zrs = region in ZRS_REGIONS
    return Capabilities(
        provider="aliyun",
        region=region,
        zones=zones,
        objects=(OSS_ZRS, OSS_LRS) if zrs else (OSS_LRS,),
        regional_blocks=(REGIONAL_ESSD,),
        zonal_block=ESSD_PL1,
        zonal_shared_block=ESSD_PL1,
        baseline_block=ESSD_PL1,
        economics=Economics(
            0.0,
            "ecs.g7.xlarge",
            None,
            None,
            "inter-zone price: regions-and-zones page; egress: a third party's table of OSS; both low confidence",
            egress_gib=((None, 0.0587),),
        ),
    )
