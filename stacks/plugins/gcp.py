"""`pulumi-resource-gcp` over the lab: buckets, disks and managed zones are real ones of the lab; service accounts,
roles and networks are kept on the shelf, and have no effect."""

from __future__ import annotations

from collections.abc import Callable

from providers.base.volume_api import CloudVolume, VolumeSpec
from providers.base.volume_limits import GIB
from stacks.plugins.backings import BucketBacking, VolumeBacking, ZoneBacking
from stacks.plugins.kinds import Kind, Output, same
from stacks.plugins.shelf import Plain
from stacks.plugins.site import Site

BUCKET, NETWORK = "gcp:storage/bucket:Bucket", "gcp:compute/network:Network"
ROLE = "gcp:projects/iAMCustomRole:IAMCustomRole"
SHARED = 2
"""Instances of a disk with READ_WRITE_MANY: Compute Engine is told no number."""
LABELS: dict[str, Output] = {"effectiveLabels": same("labels", {}), "pulumiLabels": same("labels", {})}
_API = "https://www.googleapis.com/compute/v1/{id}"
STUCK = frozenset({"size", "type", "accessMode", "provisionedIops", "provisionedThroughput"})


def _disk(zones: Callable[[Plain], list[str]]) -> Callable[[Site, Plain], VolumeSpec]:
    def spec(site: Site, inputs: Plain) -> VolumeSpec:
        shared = inputs.get("accessMode") == "READ_WRITE_MANY" or inputs.get("multiWriter")
        return VolumeSpec(
            name=str(inputs["name"]),
            kind=str(inputs.get("type") or "pd-standard").rpartition("/")[2],
            size_bytes=int(inputs["size"]) * GIB,
            zones=tuple(zone.rpartition("/")[2] for zone in zones(inputs)),
            share_max=SHARED if shared else 1,
            iops=inputs.get("provisionedIops"),
            mib_s=inputs.get("provisionedThroughput"),
            tags=tuple(sorted((str(key), str(value)) for key, value in (inputs.get("labels") or {}).items())),
        )

    return spec


def _live_disk(site: Site, volume: CloudVolume) -> Plain:
    return {"name": volume.name, "size": volume.size_bytes // GIB, "type": volume.kind}


KINDS = (
    Kind(
        BUCKET,
        "{name}",
        {"url": "gs://{name}", "selfLink": "https://www.googleapis.com/storage/v1/b/{name}", **LABELS},
        needs=("location",),
        named="name",
        fixed=frozenset({"name", "location", "project"}),
        backing=BucketBacking("name"),
    ),
    Kind(
        "gcp:compute/regionDisk:RegionDisk",
        "",
        {"selfLink": _API, "diskId": "{fresh}", **LABELS},
        needs=("replicaZones", "size"),
        named="name",
        fixed=frozenset({"name", "region", "replicaZones", "project"}),
        stuck=STUCK,
        backing=VolumeBacking(_disk(lambda inputs: inputs["replicaZones"]), _live_disk),
    ),
    Kind(
        "gcp:compute/disk:Disk",
        "",
        {"selfLink": _API, "diskId": "{fresh}", **LABELS},
        needs=("zone", "size"),
        named="name",
        fixed=frozenset({"name", "zone", "project", "multiWriter"}),
        stuck=STUCK,
        backing=VolumeBacking(_disk(lambda inputs: [str(inputs["zone"])]), _live_disk),
    ),
    Kind(
        "gcp:serviceaccount/account:Account",
        "projects/{account}/serviceAccounts/{accountId}@{account}.iam.gserviceaccount.com",
        {
            "email": "{accountId}@{account}.iam.gserviceaccount.com",
            "member": "serviceAccount:{accountId}@{account}.iam.gserviceaccount.com",
            "name": "{id}",
            "uniqueId": "{fresh}",
        },
        needs=("accountId",),
        fixed=frozenset({"accountId", "project"}),
    ),
    Kind(
        ROLE,
        "projects/{account}/roles/{roleId}",
        {"name": "{id}", "deleted": lambda site, id_, inputs: False},
        needs=("roleId", "title", "permissions"),
        fixed=frozenset({"roleId", "project"}),
    ),
    Kind(
        "gcp:storage/bucketIAMMember:BucketIAMMember",
        "b/{bucket}/{role}/{member}",
        {"etag": "{fresh}"},
        needs=("bucket", "role", "member"),
        fixed=frozenset({"bucket", "role", "member"}),
        refers={"bucket": (BUCKET, "name")},
    ),
    Kind(
        NETWORK,
        "projects/{account}/global/networks/{name}",
        {"selfLink": _API, "networkId": "{fresh}"},
        named="name",
        fixed=frozenset({"name", "autoCreateSubnetworks", "project"}),
    ),
    Kind(
        "gcp:compute/subnetwork:Subnetwork",
        "projects/{account}/regions/{region}/subnetworks/{name}",
        {"selfLink": _API, "subnetworkId": "{fresh}"},
        needs=("network", "ipCidrRange"),
        named="name",
        fixed=frozenset({"name", "network", "region", "project"}),
        refers={"network": (NETWORK, None)},
    ),
    Kind(
        "gcp:dns/managedZone:ManagedZone",
        "projects/{account}/managedZones/{name}",
        {
            "managedZoneId": "{fresh}",
            "nameServers": lambda site, id_, inputs: [f"ns-cloud-{n}.googledomains.lab.test." for n in range(1, 5)],
            **LABELS,
        },
        needs=("dnsName",),
        named="name",
        fixed=frozenset({"name", "dnsName", "visibility", "project"}),
        backing=ZoneBacking("dnsName", adopts_id=False),
    ),
)
