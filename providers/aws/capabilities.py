"""AWS: what its storage can do, and where that is written. No volume of AWS reaches two zones."""

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

EXPRESS_ZONES: dict[str, tuple[str, ...]] = {
    "us-east-1": ("use1-az4", "use1-az5", "use1-az6"),
    "us-east-2": ("use2-az1", "use2-az2"),
    "us-west-2": ("usw2-az1", "usw2-az3", "usw2-az4"),
    "ap-south-1": ("aps1-az1", "aps1-az3"),
}
"""Zones with S3 Express One Zone (page s3-express-Endpoints); the page has more regions, which are not verified
here."""

GP3 = BlockClass(
    name="gp3",
    scope=Scope.ZONAL,
    zones_max=1,
    offered=True,
    share_max=1,
    cross_zone_multi_attach=False,
    reservations=None,
    reservations_work=False,
    preempt_aborts=None,
    api_fence=Fence.FORCE_DETACH,
    size_gib=(1, 65536),
    iops_max=80_000,
    mib_s_included=125,
    mib_s_max=2000,
    latency="single-digit ms",
    price=BlockPrice(gib=0.08, iops=0.005, mib_s=0.04, confidence="high"),
    confidence="high",
    source="botocore 1.44.5, ec2.CreateVolume (takes exactly one zone); price 2024-07-01",
)

IO2 = BlockClass(
    name="io2-block-express",
    api_kind="io2",
    scope=Scope.ZONAL,
    zones_max=1,
    offered=True,
    share_max=16,
    cross_zone_multi_attach=False,
    reservations=Fence.NVME_PR,
    reservations_work=True,
    preempt_aborts=True,
    api_fence=Fence.FORCE_DETACH,
    size_gib=(4, 65536),
    iops_max=256_000,
    mib_s_included=4000,
    mib_s_max=4000,
    latency="below 0.5 ms on average at 16 KiB",
    price=BlockPrice(gib=0.125, iops=0.065, mib_s=0.0, confidence="high"),
    confidence="high",
    source="botocore 1.44.5; pages ebs-volumes-multi, nvme-reservations",
    note="Multi-attach stays inside one zone: never an answer to a zone's loss.",
)

S3_STANDARD = ObjectClass(
    name="s3-standard",
    scope=Scope.REGIONAL,
    offered=True,
    create_if_absent=True,
    fence="If-None-Match: *",
    append=None,
    latency="tens of ms",
    price=ObjectPrice(gib=0.023, put=0.005, get=0.0004, confidence="high"),
    confidence="high",
    source="botocore 1.44.5; price 2026-05",
)

S3_EXPRESS = ObjectClass(
    name="s3-express-one-zone",
    scope=Scope.ZONAL,
    offered=True,
    create_if_absent=True,
    fence="x-amz-write-offset-bytes, If-None-Match: *",
    append="at an offset equal to the size, 10,000 parts",
    latency="single-digit ms",
    price=ObjectPrice(gib=0.11, put=0.00113, get=0.00003, ingest_gib=0.0032, retrieve_gib=0.0006, confidence="high"),
    confidence="high",
    source="botocore 1.44.5; pages directory-buckets-objects-append, s3-express-Endpoints; prices after April 2025",
    note=(
        "A bucket's session lasts five minutes: its renewal is part of the data plane. Whether access "
        "from another zone is billed is not verified."
    ),
)


def capabilities(region: str, zones: tuple[str, ...]) -> Capabilities:
    """Facts for a region such as us-east-1 with zone ids such as use1-az4.

    Raises:
        Invalid: a zone that is not a zone id.
    """
    for zone in zones:
        if re.fullmatch(r"[a-z]{3,6}\d-az\d+", zone) is None:
            raise Invalid(
                f"zone {zone!r} is not an AWS zone id",
                hint="zone ids look like use1-az4; names like us-east-1a mean another zone in each account",
                field="zones",
            )
        known = EXPRESS_ZONES.get(region, ())
        if known and zone.split("-")[0] != known[0].split("-")[0]:
            raise Invalid(f"zone {zone} is not in {region}", hint=f"zone ids there look like {known[0]}", field="zones")
    return Capabilities(
        provider="aws",
        region=region,
        zones=zones,
        objects=(S3_STANDARD,),
        zonal_block=GP3,
        zonal_shared_block=IO2,
        baseline_block=GP3,
        express=S3_EXPRESS,
        express_zones=EXPRESS_ZONES.get(region),
        economics=Economics(
            0.02,
            "m7g.xlarge",
            119.14,
            238.0,
            "price and network baseline as published for us-east-1; egress 2026-05",
            egress_gib=((10_240, 0.09), (51_200, 0.085), (153_600, 0.07), (None, 0.05)),
            egress_free_gib=100,
        ),
    )
