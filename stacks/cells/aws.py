"""AWS: S3 with a policy that demands conditional creates, S3 Express, zonal EBS, a role, a VPC with endpoints."""

from __future__ import annotations

import json
from typing import Any

import pulumi
import pulumi_aws as aws

from stacks.cells import kubernetes_aws
from stacks.cells.cell import Built, Site
from stacks.cells.decision import CONDITIONAL_PREFIXES

OBJECT_ACTIONS = (
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:GetObject",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
)
BUCKET_ACTIONS = ("s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:ListBucket", "s3:ListBucketMultipartUploads")


def build(site: Site) -> Built:
    """Create it all. Data resources carry `site.data`."""
    needs, name, tags = site.needs, site.needs.name, dict(site.needs.tags)
    bucket = aws.s3.Bucket(
        f"{name}-bucket", bucket=needs.bucket, force_destroy=not site.protect, tags=tags, opts=site.data
    )
    aws.s3.BucketPublicAccessBlock(
        f"{name}-private",
        bucket=bucket.bucket,
        block_public_acls=True,
        block_public_policy=True,
        ignore_public_acls=True,
        restrict_public_buckets=True,
        opts=site.plain,
    )
    policy = aws.s3.BucketPolicy(
        f"{name}-conditional", bucket=bucket.bucket, policy=bucket.arn.apply(bucket_policy), opts=site.plain
    )
    express = {
        zone: aws.s3.DirectoryBucket(
            f"{name}-express-{zone}",
            bucket=bucket_name,
            data_redundancy="SingleAvailabilityZone",
            location=aws.s3.DirectoryBucketLocationArgs(name=zone, type="AvailabilityZone"),
            type="Directory",
            force_destroy=not site.protect,
            tags=tags,
            opts=site.data,
        )
        for zone, bucket_name in needs.express.items()
    }
    subnets, out = _network(site)
    volumes = {
        volume.name: aws.ebs.Volume(
            volume.name,
            # EBS wants the zone's name, which differs between accounts; the subnet of the zone id knows it.
            availability_zone=subnets[volume.zones[0]].availability_zone,
            size=volume.size_gib,
            type=volume.kind,
            encrypted=True,
            multi_attach_enabled=True if volume.share_max > 1 else None,
            iops=3000 if volume.kind == "io2" else None,
            tags={**tags, "Name": volume.name, "yunhe:volume": volume.name},
            opts=site.data,
        )
        for volume in needs.volumes
    }
    role, profile = _identity(site, bucket, list(express.values()), list(volumes.values()))
    kubernetes = None
    if needs.nodes is not None:
        kubernetes = kubernetes_aws.build(site, needs.nodes, role=role, subnets=subnets, out=out)
    if needs.dns_zone:
        aws.route53.Zone(f"{name}-dns", name=needs.dns_zone, tags=tags, opts=site.plain)
    # Whoever has the bucket's name has a bucket whose policy is in force.
    ready = pulumi.Output.all(bucket.bucket, policy.id).apply(lambda both: str(both[0]))
    return Built(
        bucket=ready,
        express={zone: made.bucket for zone, made in express.items()},
        volumes={key: made.id for key, made in volumes.items()},
        identity=profile.arn,
        endpoint=f"https://s3.{needs.region}.amazonaws.com",
        kubernetes=kubernetes,
    )


def bucket_policy(arn: str) -> str:
    """TLS only, and below ledgers and WALs no object is overwritten.

    Parts of an upload cannot carry the condition; its completion can, so only what creates an object is held to it
    (S3 user guide, "Enforce conditional writes on S3 buckets").
    """
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": "CreateOnlyIfAbsent",
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:PutObject",
                    "Resource": [f"{arn}/*/{prefix}/*" for prefix in CONDITIONAL_PREFIXES],
                    "Condition": {
                        "Null": {"s3:if-none-match": "true"},
                        "Bool": {"s3:ObjectCreationOperation": "true"},
                    },
                },
                {
                    "Sid": "TlsOnly",
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject"],
                    "Resource": [arn, f"{arn}/*"],
                    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                },
            ],
        }
    )


def role_policy(bucket: str, express: list[str], volumes: list[str]) -> str:
    """What a broker's machine may do, action by action."""
    statements: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": list(BUCKET_ACTIONS), "Resource": bucket},
        {"Effect": "Allow", "Action": list(OBJECT_ACTIONS), "Resource": f"{bucket}/*"},
    ]
    if express:
        statements.append({"Effect": "Allow", "Action": ["s3express:CreateSession"], "Resource": express})
    if volumes:
        # Describe calls take no resource: IAM knows none for them.
        describe = ["ec2:DescribeInstances", "ec2:DescribeVolumes"]
        statements.append({"Effect": "Allow", "Action": describe, "Resource": "*"})
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _identity(site: Site, bucket: Any, express: list[Any], volumes: list[Any]) -> tuple[Any, Any]:
    """The role, and the profile of machines that have it."""
    name, tags, nodes = site.needs.name, dict(site.needs.tags), site.needs.nodes
    trust: list[dict[str, Any]] = [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ]
    if nodes is not None:
        trust += kubernetes_aws.pod_trust(nodes)
    role = aws.iam.Role(
        f"{name}-broker",
        assume_role_policy=json.dumps({"Version": "2012-10-17", "Statement": trust}),
        tags=tags,
        opts=site.plain,
    )
    arns = pulumi.Output.all(
        bucket.arn, pulumi.Output.all(*[e.arn for e in express]), pulumi.Output.all(*[v.arn for v in volumes])
    )
    aws.iam.RolePolicy(
        f"{name}-broker",
        role=role.id,
        policy=arns.apply(lambda found: role_policy(found[0], list(found[1] or ()), list(found[2] or ()))),
        opts=site.plain,
    )
    return role, aws.iam.InstanceProfile(f"{name}-broker", role=role.name, tags=tags, opts=site.plain)


def _network(site: Site) -> tuple[dict[str, Any], Any]:
    """A subnet a zone, by zone id, and the way out, None where no nodes need one. Traffic to S3 stays on gateway
    endpoints, which cost nothing."""
    needs, name, tags = site.needs, site.needs.name, dict(site.needs.tags)
    vpc = aws.ec2.Vpc(
        f"{name}-vpc",
        cidr_block="10.0.0.0/16",
        enable_dns_support=True,
        enable_dns_hostnames=True,
        tags=tags,
        opts=site.plain,
    )
    table = aws.ec2.RouteTable(f"{name}-routes", vpc_id=vpc.id, tags=tags, opts=site.plain)
    subnets = {}
    for at, zone in enumerate(needs.zones):
        subnets[zone] = aws.ec2.Subnet(
            f"{name}-{zone}",
            vpc_id=vpc.id,
            availability_zone_id=zone,
            cidr_block=f"10.0.{16 * at}.0/20",
            tags=tags,
            opts=site.plain,
        )
        aws.ec2.RouteTableAssociation(
            f"{name}-{zone}", subnet_id=subnets[zone].id, route_table_id=table.id, opts=site.plain
        )
    for service in ("s3", *(("s3express",) if needs.express else ())):
        aws.ec2.VpcEndpoint(
            f"{name}-{service}",
            vpc_id=vpc.id,
            service_name=f"com.amazonaws.{needs.region}.{service}",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id],
            tags=tags,
            opts=site.plain,
        )
    hosts_nodes = needs.nodes is not None and needs.nodes.existing is None
    return subnets, kubernetes_aws.way_out(site, vpc, table) if hosts_nodes else None
