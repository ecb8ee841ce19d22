"""EKS: a cluster and a node group a zone in the cell's subnets, and Pod Identity for the pods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_aws as aws

from stacks.cells.cell import BuiltKubernetes, Site
from stacks.cells.nodes import NodeNeeds, account_manifests, kubeconfig

POLICIES = "arn:{}:iam::aws:policy/{}"
NODE_POLICIES = ("AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly")
"""What nodes need to join, to give pods addresses and to pull images (EKS user guide, "Amazon EKS node IAM role").
Nothing of the bucket: pods have the cell's identity, nodes have not."""


def pod_trust(nodes: NodeNeeds) -> list[dict[str, Any]]:
    """That those service accounts of one cluster may take on the role (EKS user guide, "Create IAM role with trust
    policy required by EKS Pod Identity"; the tags are those of "Enable or disable session tags")."""
    return [
        {
            "Effect": "Allow",
            "Principal": {"Service": "pods.eks.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": {
                "StringEquals": {
                    "aws:RequestTag/eks-cluster-name": nodes.cluster,
                    "aws:RequestTag/kubernetes-namespace": account.namespace,
                    "aws:RequestTag/kubernetes-service-account": account.name,
                }
            },
        }
        for account in nodes.accounts
    ]


def way_out(site: Site, vpc: Any, table: Any) -> Any:
    """The nodes' way to registries and to AWS's own APIs: a NAT gateway over all zones, which has no subnet of its own
    (VPC user guide, "Regional NAT gateways"). What nodes wait for."""
    name, tags = site.needs.name, dict(site.needs.tags)
    gateway = aws.ec2.InternetGateway(f"{name}-internet", vpc_id=vpc.id, tags=tags, opts=site.plain)
    nat = aws.ec2.NatGateway(
        f"{name}-nat",
        vpc_id=vpc.id,
        availability_mode="regional",
        connectivity_type="public",
        tags=tags,
        opts=site.after(gateway),
    )
    return aws.ec2.Route(
        f"{name}-out",
        route_table_id=table.id,
        destination_cidr_block="0.0.0.0/0",
        nat_gateway_id=nat.id,
        opts=site.plain,
    )


def build(site: Site, nodes: NodeNeeds, *, role: Any, subnets: Mapping[str, Any], out: Any) -> BuiltKubernetes:
    """`role`: the cell's identity. `subnets`: the cell's, by zone. `out`: the way out, None in an existing cluster."""
    name, tags = site.needs.name, dict(site.needs.tags)
    if nodes.existing is None:
        cluster = _cluster(site, nodes, [subnets[pool.zone].id for pool in nodes.pools])
        joined: pulumi.Input[str] = cluster.name
        ready = [out]
    else:
        joined, ready, cluster = nodes.existing.cluster, [], None
    node_role, granted = _role(site, "node", "ec2.amazonaws.com", NODE_POLICIES)
    groups = [
        aws.eks.NodeGroup(
            f"{name}-nodes-{pool.zone}",
            cluster_name=joined,
            node_group_name=pool.name,
            node_role_arn=node_role.arn,
            subnet_ids=[pool.subnet or subnets[pool.zone].id],
            instance_types=[nodes.machine_type],
            ami_type="AL2023_ARM_64_STANDARD" if nodes.arm else "AL2023_x86_64_STANDARD",
            version=nodes.version,
            disk_size=nodes.disk_gib,
            labels=dict(nodes.labels),
            scaling_config=aws.eks.NodeGroupScalingConfigArgs(
                desired_size=nodes.min_nodes, min_size=nodes.min_nodes, max_size=nodes.max_nodes
            ),
            tags=tags,
            # How many there are now is an autoscaler's to say.
            opts=site.after(*granted, *ready, ignore=["scalingConfig.desiredSize"]),
        )
        for pool in nodes.pools
    ]
    if cluster is not None:
        # Hands pods their role; an existing cluster has it, or brings it.
        aws.eks.Addon(
            f"{name}-pod-identity",
            cluster_name=joined,
            addon_name="eks-pod-identity-agent",
            tags=tags,
            opts=site.after(*groups),
        )
    for account in nodes.accounts:
        aws.eks.PodIdentityAssociation(
            f"{name}-{account.namespace}-{account.name}",
            cluster_name=joined,
            namespace=account.namespace,
            service_account=account.name,
            role_arn=role.arn,
            tags=tags,
            opts=site.plain,
        )
    manifests = account_manifests(nodes, {})
    if cluster is None:
        return BuiltKubernetes(joined, manifests=manifests)
    login = ("aws", "eks", "get-token", "--region", site.needs.region, "--cluster-name", nodes.cluster)
    authority = cluster.certificate_authority.apply(lambda found: found.data)
    config = pulumi.Output.all(cluster.endpoint, authority).apply(
        lambda found: kubeconfig(nodes.cluster, found[0], found[1], login)
    )
    return BuiltKubernetes(joined, cluster.endpoint, authority, config, manifests)


def _cluster(site: Site, nodes: NodeNeeds, subnets: Sequence[Any]) -> Any:
    name, tags = site.needs.name, dict(site.needs.tags)
    role, granted = _role(site, "control", "eks.amazonaws.com", ("AmazonEKSClusterPolicy",))
    return aws.eks.Cluster(
        f"{name}-kubernetes",
        name=nodes.cluster,
        role_arn=role.arn,
        version=nodes.version,
        access_config=aws.eks.ClusterAccessConfigArgs(
            authentication_mode="API", bootstrap_cluster_creator_admin_permissions=True
        ),
        vpc_config=aws.eks.ClusterVpcConfigArgs(
            subnet_ids=list(subnets), endpoint_private_access=True, endpoint_public_access=not nodes.private
        ),
        tags=tags,
        # EKS removes its interfaces with the role's rights: they go after the cluster.
        opts=site.after(*granted),
    )


def _role(site: Site, what: str, service: str, policies: Sequence[str]) -> tuple[Any, list[Any]]:
    """A role of `service`, and its policies, AWS's own."""
    name, tags = site.needs.name, dict(site.needs.tags)
    trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    role = aws.iam.Role(
        f"{name}-{what}",
        assume_role_policy=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
        tags=tags,
        opts=site.plain,
    )
    partition = "aws-cn" if site.needs.region.startswith("cn-") else "aws"
    granted = [
        aws.iam.RolePolicyAttachment(
            f"{name}-{what}-{policy}", role=role.name, policy_arn=POLICIES.format(partition, policy), opts=site.plain
        )
        for policy in policies
    ]
    return role, granted
