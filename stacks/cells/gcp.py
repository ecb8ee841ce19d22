"""GCP: a GCS bucket without soft-delete, versions or lifecycle, regional disks, a service account with a role."""

from __future__ import annotations

import pulumi
import pulumi_gcp as gcp

from stacks.cells import kubernetes_gcp
from stacks.cells.cell import Built, Site

OBJECT_PERMISSIONS = (
    "storage.buckets.get",
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
)


def build(site: Site) -> Built:
    """Create it all. Data resources carry `site.data`."""
    needs, name, labels = site.needs, site.needs.name, dict(site.needs.tags)
    bucket = gcp.storage.Bucket(
        f"{name}-bucket",
        name=needs.bucket,
        location=needs.region.upper(),
        storage_class="STANDARD",
        uniform_bucket_level_access=True,
        public_access_prevention="enforced",
        # Names of the ledger are created and removed for good; GCS keeps deleted objects seven days unless told.
        soft_delete_policy=gcp.storage.BucketSoftDeletePolicyArgs(retention_duration_seconds=0),
        versioning=gcp.storage.BucketVersioningArgs(enabled=False),
        force_destroy=not site.protect,
        labels=labels,
        opts=site.data,
    )
    volumes: dict[str, pulumi.Output[str]] = {}
    for volume in needs.volumes:
        # Shared by hosts: the access mode is Hyperdisk's word for it.
        access = "READ_WRITE_MANY" if volume.share_max > 1 else None
        if volume.redundant:
            made = gcp.compute.RegionDisk(
                volume.name,
                name=volume.name,
                region=needs.region,
                replica_zones=list(volume.zones),
                type=volume.kind,
                size=volume.size_gib,
                access_mode=access,
                labels=labels,
                opts=site.data,
            )
        else:
            made = gcp.compute.Disk(
                volume.name,
                name=volume.name,
                zone=volume.zones[0],
                type=volume.kind,
                size=volume.size_gib,
                multi_writer=True if access else None,
                labels=labels,
                opts=site.data,
            )
        volumes[volume.name] = made.id
    account = gcp.serviceaccount.Account(
        f"{name}-broker",
        account_id=f"yunhe-{name}"[:30].rstrip("-"),
        display_name=f"Brokers of {name}",
        opts=site.plain,
    )
    role = gcp.projects.IAMCustomRole(
        f"{name}-broker",
        role_id=f"yunhe_{name.replace('-', '_')}",
        title=f"Brokers of {name}",
        permissions=list(OBJECT_PERMISSIONS),
        opts=site.plain,
    )
    gcp.storage.BucketIAMMember(
        f"{name}-broker", bucket=bucket.name, role=role.name, member=account.member, opts=site.plain
    )
    network = gcp.compute.Network(f"{name}-network", auto_create_subnetworks=False, opts=site.plain)
    subnet = gcp.compute.Subnetwork(
        f"{name}-subnet",
        network=network.id,
        region=needs.region,
        ip_cidr_range="10.0.0.0/16",
        private_ip_google_access=True,
        opts=site.plain,
    )
    if needs.dns_zone:
        gcp.dns.ManagedZone(f"{name}-dns", dns_name=f"{needs.dns_zone}.", labels=labels, opts=site.plain)
    kubernetes = None
    if needs.nodes is not None:
        kubernetes = kubernetes_gcp.build(site, needs.nodes, account=account, network=network, subnet=subnet)
    return Built(bucket.name, volumes, account.email, "https://storage.googleapis.com", kubernetes=kubernetes)
