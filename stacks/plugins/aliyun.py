"""`pulumi-resource-alicloud` over the lab: OSS buckets, ESSDs and DNS domains are real ones of the lab; RAM and VPCs
are kept on the shelf, and have no effect."""

from __future__ import annotations

from providers.base.errors import Invalid
from providers.base.volume_api import CloudVolume, VolumeSpec
from providers.base.volume_limits import GIB
from stacks.plugins.backings import BucketBacking, VolumeBacking, ZoneBacking
from stacks.plugins.kinds import Kind
from stacks.plugins.shelf import Plain
from stacks.plugins.site import Site

BUCKET, VPC = "alicloud:oss/bucket:Bucket", "alicloud:vpc/network:Network"
ROLE, POLICY = "alicloud:ram/role:Role", "alicloud:ram/policy:Policy"
SHARED = 2
"""Instances of a disk with `multiAttach`: the API is told no number."""


def _disk(site: Site, inputs: Plain) -> VolumeSpec:
    zone = inputs.get("zoneId")
    return VolumeSpec(
        name=str(inputs["diskName"]),
        kind=str(inputs.get("category") or "cloud_essd"),
        size_bytes=int(inputs["size"]) * GIB,
        # A disk without a zone is one of all zones.
        zones=(str(zone),) if zone else site.zones,
        share_max=SHARED if inputs.get("multiAttach") == "Enabled" else 1,
        iops=inputs.get("provisionedIops"),
        tags=tuple(sorted((str(key), str(value)) for key, value in (inputs.get("tags") or {}).items())),
    )


def _live_disk(site: Site, volume: CloudVolume) -> Plain:
    return {"diskName": volume.name, "size": volume.size_bytes // GIB}


def _available(site: Site, id_: str, inputs: Plain) -> str:
    if inputs["zoneId"] not in site.zones:
        raise Invalid(f"zone {inputs['zoneId']} is not in {site.cloud.name}", hint=f"it has {', '.join(site.zones)}")
    return "Available"


KINDS = (
    Kind(
        BUCKET,
        "{bucket}",
        {
            "extranetEndpoint": "oss-{region}.aliyuncs.com",
            "intranetEndpoint": "oss-{region}-internal.aliyuncs.com",
            "location": "oss-{region}",
            "owner": "{account}",
        },
        named="bucket",
        fixed=frozenset({"bucket", "redundancyType", "storageClass"}),
        backing=BucketBacking("bucket"),
    ),
    Kind(
        "alicloud:oss/bucketPublicAccessBlock:BucketPublicAccessBlock",
        "{bucket}",
        needs=("bucket",),
        fixed=frozenset({"bucket"}),
        refers={"bucket": (BUCKET, None)},
    ),
    Kind(
        "alicloud:ecs/ecsDisk:EcsDisk",
        "",
        {"regionId": "{region}", "status": "Available"},
        needs=("size",),
        named="diskName",
        fixed=frozenset({"zoneId", "encrypted", "multiAttach", "snapshotId"}),
        stuck=frozenset({"diskName", "size", "category", "performanceLevel", "provisionedIops"}),
        backing=VolumeBacking(_disk, _live_disk),
    ),
    Kind(
        ROLE,
        "{roleName}",
        {"arn": "acs:ram::{account}:role/{roleName}", "roleId": "{fresh}"},
        needs=("assumeRolePolicyDocument",),
        named="roleName",
        fixed=frozenset({"roleName"}),
    ),
    Kind(
        POLICY,
        "{policyName}",
        {"type": "Custom", "defaultVersion": "v1"},
        needs=("policyDocument",),
        named="policyName",
        fixed=frozenset({"policyName"}),
    ),
    Kind(
        "alicloud:ram/rolePolicyAttachment:RolePolicyAttachment",
        "role:{policyName}:{policyType}:{roleName}",
        needs=("policyName", "policyType", "roleName"),
        fixed=frozenset({"policyName", "policyType", "roleName"}),
        refers={"policyName": (POLICY, None), "roleName": (ROLE, None)},
    ),
    Kind(VPC, "vpc-{fresh}", {"regionId": "{region}", "status": "Available"}),
    Kind(
        "alicloud:vpc/switch:Switch",
        "vsw-{fresh}",
        {"status": _available},
        needs=("vpcId", "zoneId", "cidrBlock"),
        fixed=frozenset({"vpcId", "zoneId", "cidrBlock"}),
        refers={"vpcId": (VPC, None)},
    ),
    Kind(
        "alicloud:dns/alidnsDomain:AlidnsDomain",
        "{domainName}",
        {
            "domainId": "{fresh}",
            "dnsServers": lambda site, id_, inputs: ["dns1.alidns.lab.test", "dns2.alidns.lab.test"],
        },
        needs=("domainName",),
        fixed=frozenset({"domainName"}),
        backing=ZoneBacking("domainName", adopts_id=False),
    ),
)
