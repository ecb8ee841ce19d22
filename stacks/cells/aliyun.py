"""Aliyun: a zone-redundant OSS bucket that never had versions, regional or zonal ESSD, a RAM role, a VPC."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_alicloud as alicloud

from stacks.cells import kubernetes_aliyun
from stacks.cells.cell import Built, Site

OBJECT_ACTIONS = ("oss:AbortMultipartUpload", "oss:DeleteObject", "oss:GetObject", "oss:ListParts", "oss:PutObject")
BUCKET_ACTIONS = ("oss:GetBucketInfo", "oss:GetBucketVersioning", "oss:ListMultipartUploads", "oss:ListObjects")


def build(site: Site) -> Built:
    """Create it all. Data resources carry `site.data`."""
    needs, name, tags = site.needs, site.needs.name, dict(site.needs.tags)
    bucket = alicloud.oss.Bucket(
        f"{name}-bucket",
        bucket=needs.bucket,
        storage_class="Standard",
        redundancy_type="ZRS",
        # No versioning block at all: on OSS even a suspended one makes forbid-overwrite be ignored.
        force_destroy=not site.protect,
        tags=tags,
        opts=site.data,
    )
    alicloud.oss.BucketPublicAccessBlock(
        f"{name}-private", bucket=bucket.bucket, block_public_access=True, opts=site.plain
    )
    volumes: dict[str, pulumi.Output[str]] = {}
    for volume in needs.volumes:
        made = alicloud.ecs.EcsDisk(
            volume.name,
            disk_name=volume.name,
            category=volume.kind,
            size=volume.size_gib,
            # A zone-redundant disk belongs to no zone (CreateDisk).
            zone_id=None if volume.redundant else volume.zones[0],
            multi_attach="Enabled" if volume.share_max > 1 else None,
            delete_with_instance=False,
            tags=tags,
            opts=site.data,
        )
        volumes[volume.name] = made.id
    vpc = alicloud.vpc.Network(
        f"{name}-vpc", vpc_name=f"yunhe-{name}", cidr_block="10.0.0.0/16", tags=tags, opts=site.plain
    )
    switches = {
        zone: alicloud.vpc.Switch(
            f"{name}-{zone}",
            vpc_id=vpc.id,
            zone_id=zone,
            cidr_block=f"10.0.{16 * at}.0/20",
            tags=tags,
            opts=site.plain,
        )
        for at, zone in enumerate(needs.zones)
    }
    nodes = needs.nodes
    cluster = kubernetes_aliyun.cluster_in(site, nodes, switches) if nodes is not None else None
    machines = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": ["ecs.aliyuncs.com"]}}
    trust: pulumi.Input[str] = _document([machines])
    if nodes is not None:
        trust = kubernetes_aliyun.trust_in(nodes, cluster).apply(lambda pods: _document([machines, pods]))
    role = alicloud.ram.Role(
        f"{name}-broker",
        role_name=f"yunhe-{name}",
        assume_role_policy_document=trust,
        opts=site.plain,
    )
    policy = alicloud.ram.Policy(
        f"{name}-broker",
        policy_name=f"yunhe-{name}",
        policy_document=role_policy(needs.bucket),
        opts=site.plain,
    )
    alicloud.ram.RolePolicyAttachment(
        f"{name}-broker",
        policy_name=policy.policy_name,
        policy_type="Custom",
        role_name=role.role_name,
        opts=site.plain,
    )
    if needs.dns_zone:
        alicloud.dns.AlidnsDomain(f"{name}-dns", domain_name=needs.dns_zone, opts=site.plain)
    # Machines of the region reach OSS inside the cloud, free of charge.
    endpoint = f"https://oss-{needs.region}-internal.aliyuncs.com"
    kubernetes = None
    if nodes is not None:
        kubernetes = kubernetes_aliyun.build(site, nodes, cluster=cluster, role=role, switches=switches)
    ready = bucket.bucket.apply(lambda found: found or needs.bucket)
    return Built(ready, volumes, role.arn, endpoint, kubernetes=kubernetes)


def role_policy(bucket: str) -> str:
    """What a broker's machine may do, action by action."""
    return _document(
        [
            {"Effect": "Allow", "Action": list(BUCKET_ACTIONS), "Resource": [f"acs:oss:*:*:{bucket}"]},
            {"Effect": "Allow", "Action": list(OBJECT_ACTIONS), "Resource": [f"acs:oss:*:*:{bucket}/*"]},
        ]
    )


def _document(statements: list[Mapping[str, Any]]) -> str:
    return json.dumps({"Version": "1", "Statement": statements})
