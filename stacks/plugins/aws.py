"""`pulumi-resource-aws` over the lab: S3 buckets (directory buckets too), EBS volumes and Route 53 zones are real ones
of the lab; IAM, VPCs and bucket policies are kept on the shelf, and have no effect."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import cast

from providers.aws.instances import Ec2Instances
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid
from providers.base.registry import AccountAddress, open_instances
from providers.base.volume_api import CloudVolume, VolumeSpec
from providers.base.volume_limits import GIB
from stacks.plugins.backings import BucketBacking, VolumeBacking, ZoneBacking
from stacks.plugins.kinds import Kind, Output, same
from stacks.plugins.shelf import Plain
from stacks.plugins.site import Site

BUCKET, ROLE, VPC = "aws:s3/bucket:Bucket", "aws:iam/role:Role", "aws:ec2/vpc:Vpc"
SUBNET, TABLE = "aws:ec2/subnet:Subnet", "aws:ec2/routeTable:RouteTable"
MULTI_ATTACH = 16
"""Instances of a volume with `multiAttachEnabled`: EBS has no other number."""


@functools.lru_cache(maxsize=16)
def _zone_names(address: AccountAddress) -> Mapping[str, str]:
    async def main() -> Mapping[str, str]:
        instances = cast(Ec2Instances, open_instances(address, clock=SystemClock(), rng=SystemRng()))
        try:
            return await instances.zone_names()
        finally:
            await instances.close()

    return asyncio.run(main())


def _zone(site: Site, inputs: Plain) -> tuple[str, str]:
    """Id and name of the zone that the inputs give one of."""
    names = _zone_names(site.control)
    asked = inputs.get("availabilityZoneId") or inputs.get("availabilityZone")
    for id_, name in names.items():
        if asked in (id_, name):
            return id_, name
    raise Invalid(f"zone {asked} is not in {site.cloud.name}", hint=f"it has {', '.join(sorted(names))}")


def _tags(inputs: Plain) -> dict[str, str]:
    return {str(key): str(value) for key, value in (inputs.get("tags") or {}).items()}


def _volume(site: Site, inputs: Plain) -> VolumeSpec:
    tags = _tags(inputs)
    return VolumeSpec(
        name=tags.get("Name") or f"vol-{site.rng.token()[:12]}",
        kind=str(inputs.get("type") or "gp3"),
        size_bytes=int(inputs["size"]) * GIB,
        zones=(_zone(site, inputs)[0],),
        share_max=MULTI_ATTACH if inputs.get("multiAttachEnabled") else 1,
        iops=inputs.get("iops"),
        mib_s=inputs.get("throughput"),
        tags=tuple(sorted(tags.items())),
    )


def _live_volume(site: Site, volume: CloudVolume) -> Plain:
    zone = _zone_names(site.control).get(volume.zones[0], volume.zones[0])
    return {"availabilityZone": zone, "size": volume.size_bytes // GIB, "type": volume.kind}


TAGS: dict[str, Output] = {"tagsAll": same("tags", {})}


def _ec2(kind: str) -> dict[str, Output]:
    return {"arn": "arn:aws:ec2:{region}:{account}:" + kind + "/{id}", "ownerId": "{account}", **TAGS}


def _iam(kind: str) -> dict[str, Output]:
    return {"arn": "arn:aws:iam::{account}:" + kind + "/{id}", "uniqueId": "{fresh}", **TAGS}


KINDS = (
    Kind(
        BUCKET,
        "{bucket}",
        {
            "arn": "arn:aws:s3:::{id}",
            "bucketDomainName": "{id}.s3.amazonaws.com",
            "bucketRegionalDomainName": "{id}.s3.{region}.amazonaws.com",
            "bucketRegion": "{region}",
            **TAGS,
        },
        named="bucket",
        fixed=frozenset({"bucket"}),
        backing=BucketBacking("bucket"),
    ),
    Kind(
        "aws:s3/directoryBucket:DirectoryBucket",
        "{bucket}",
        {"arn": "arn:aws:s3express:{region}:{account}:bucket/{id}", **TAGS},
        needs=("bucket", "location"),
        fixed=frozenset({"bucket", "location", "type", "dataRedundancy"}),
        backing=BucketBacking("bucket"),
    ),
    Kind(
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        "{bucket}",
        needs=("bucket",),
        fixed=frozenset({"bucket"}),
        refers={"bucket": (BUCKET, None)},
    ),
    Kind(
        "aws:s3/bucketPolicy:BucketPolicy",
        "{bucket}",
        needs=("bucket", "policy"),
        fixed=frozenset({"bucket"}),
        refers={"bucket": (BUCKET, None)},
    ),
    Kind(
        "aws:ebs/volume:Volume",
        "",
        _ec2("volume"),
        needs=("availabilityZone", "size"),
        fixed=frozenset({"availabilityZone", "encrypted", "multiAttachEnabled", "kmsKeyId", "snapshotId"}),
        stuck=frozenset({"size", "type", "iops", "throughput"}),
        backing=VolumeBacking(_volume, _live_volume),
    ),
    Kind(
        ROLE,
        "{name}",
        _iam("role"),
        needs=("assumeRolePolicy",),
        named="name",
        fixed=frozenset({"name", "path"}),
    ),
    Kind(
        "aws:iam/rolePolicy:RolePolicy",
        "{role}:{name}",
        needs=("role", "policy"),
        named="name",
        fixed=frozenset({"name", "role"}),
        refers={"role": (ROLE, None)},
    ),
    Kind(
        "aws:iam/instanceProfile:InstanceProfile",
        "{name}",
        _iam("instance-profile"),
        named="name",
        fixed=frozenset({"name", "path"}),
        refers={"role": (ROLE, None)},
    ),
    Kind(VPC, "vpc-{fresh}", _ec2("vpc"), fixed=frozenset({"cidrBlock", "instanceTenancy"})),
    Kind(
        SUBNET,
        "subnet-{fresh}",
        {
            **_ec2("subnet"),
            "availabilityZone": lambda site, id_, inputs: _zone(site, inputs)[1],
            "availabilityZoneId": lambda site, id_, inputs: _zone(site, inputs)[0],
        },
        needs=("vpcId", "cidrBlock"),
        fixed=frozenset({"vpcId", "cidrBlock", "availabilityZone", "availabilityZoneId"}),
        refers={"vpcId": (VPC, None)},
    ),
    Kind(
        TABLE,
        "rtb-{fresh}",
        _ec2("route-table"),
        needs=("vpcId",),
        fixed=frozenset({"vpcId"}),
        refers={"vpcId": (VPC, None)},
    ),
    Kind(
        "aws:ec2/routeTableAssociation:RouteTableAssociation",
        "rtbassoc-{fresh}",
        needs=("routeTableId", "subnetId"),
        fixed=frozenset({"subnetId"}),
        refers={"routeTableId": (TABLE, None), "subnetId": (SUBNET, None)},
    ),
    Kind(
        "aws:ec2/vpcEndpoint:VpcEndpoint",
        "vpce-{fresh}",
        {**_ec2("vpc-endpoint"), "state": lambda site, id_, inputs: "available"},
        needs=("vpcId", "serviceName"),
        fixed=frozenset({"vpcId", "serviceName", "vpcEndpointType"}),
        refers={"vpcId": (VPC, None), "routeTableIds": (TABLE, None)},
    ),
    Kind(
        "aws:route53/zone:Zone",
        "",
        {
            "arn": "arn:aws:route53:::hostedzone/{id}",
            "zoneId": "{id}",
            "nameServers": lambda site, id_, inputs: [f"ns-{n}.awsdns.lab.test" for n in range(1, 5)],
            "primaryNameServer": "ns-1.awsdns.lab.test",
            **TAGS,
        },
        needs=("name",),
        fixed=frozenset({"name"}),
        backing=ZoneBacking("name"),
    ),
)
