"""ACK: a cluster and a node pool a zone in the cell's switches, and RRSA for the pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_alicloud as alicloud

from stacks.cells.cell import BuiltKubernetes, Site
from stacks.cells.nodes import NodeNeeds, account_manifests

INJECTION = {"pod-identity.alibabacloud.com/injection": "on"}
ROLE = "pod-identity.alibabacloud.com/role-name"
"""Label of a namespace and annotation of an account for ack-pod-identity-webhook, which gives pods their token."""
ADDONS = ("flannel", "csi-plugin", "csi-provisioner", "ack-pod-identity-webhook")


def cluster_in(site: Site, nodes: NodeNeeds, switches: Mapping[str, Any]) -> Any:
    """The cluster; None: there is one. It comes before the cell's identity, whose trust names its issuer."""
    if nodes.existing is not None:
        return None
    return alicloud.cs.ManagedKubernetes(
        f"{site.needs.name}-kubernetes",
        name=nodes.cluster,
        cluster_spec="ack.pro.small",
        version=nodes.version,
        vswitch_ids=[switches[pool.zone].id for pool in nodes.pools],
        # Neither may overlap with the cell's network.
        pod_cidr="172.20.0.0/16",
        service_cidr="172.21.0.0/20",
        # The nodes' way to registries elsewhere.
        new_nat_gateway=True,
        slb_internet_enabled=not nodes.private,
        is_enterprise_security_group=True,
        enable_rrsa=True,
        # Else credentials of the cluster would be among its outputs.
        skip_set_certificate_authority=True,
        addons=[alicloud.cs.ManagedKubernetesAddonArgs(name=name) for name in ADDONS],
        deletion_protection=False,
        tags=dict(site.needs.tags),
        opts=site.plain,
    )


def pod_trust(nodes: NodeNeeds, issuer: str, provider: str) -> dict[str, Any]:
    """That those service accounts of one cluster may take on the role (ACK, "Use RRSA to authorize different pods")."""
    subjects = [account.subject for account in nodes.accounts]
    return {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"Federated": [provider]},
        "Condition": {"StringEquals": {"oidc:iss": [issuer], "oidc:aud": ["sts.aliyuncs.com"], "oidc:sub": subjects}},
    }


def trust_in(nodes: NodeNeeds, cluster: Any) -> pulumi.Output[dict[str, Any]]:
    """`pod_trust` of the cluster that `cluster_in` made, or of the existing one."""
    if nodes.existing is not None:
        there = nodes.existing
        return pulumi.Output.from_input(pod_trust(nodes, there.oidc_issuer or "", there.oidc_provider or ""))
    found: pulumi.Output[dict[str, Any]] = cluster.rrsa_metadata.apply(
        lambda made: pod_trust(nodes, made.rrsa_oidc_issuer_url, made.ram_oidc_provider_arn)
    )
    return found


def build(site: Site, nodes: NodeNeeds, *, cluster: Any, role: Any, switches: Mapping[str, Any]) -> BuiltKubernetes:
    """Node pools, and what a user needs of the cluster. `cluster`: of `cluster_in`. `role`: the cell's identity."""
    name, tags = site.needs.name, dict(site.needs.tags)
    joined: pulumi.Input[str] = cluster.id if cluster is not None else nodes.cluster
    # ACK wants a way to log on. Of a pair that the cloud makes, nobody has the private key.
    key = alicloud.ecs.EcsKeyPair(f"{name}-node", key_pair_name=f"yunhe-{name}", tags=tags, opts=site.plain)
    for pool in nodes.pools:
        alicloud.cs.NodePool(
            f"{name}-nodes-{pool.zone}",
            cluster_id=joined,
            node_pool_name=pool.name,
            vswitch_ids=[pool.subnet or switches[pool.zone].id],
            instance_types=[nodes.machine_type],
            key_name=key.key_pair_name,
            system_disk_category="cloud_essd",
            system_disk_size=nodes.disk_gib,
            scaling_config=alicloud.cs.NodePoolScalingConfigArgs(
                enable=True, min_size=nodes.min_nodes, max_size=nodes.max_nodes
            ),
            labels=[
                alicloud.cs.NodePoolLabelArgs(key=label, value=value) for label, value in sorted(nodes.labels.items())
            ],
            tags=tags,
            opts=site.plain,
        )
    manifests = role.role_name.apply(lambda found: account_manifests(nodes, {ROLE: found}, INJECTION))
    if cluster is None:
        return BuiltKubernetes(joined, manifests=manifests)
    credentials = alicloud.cs.get_cluster_credential_output(
        cluster_id=cluster.id, opts=pulumi.InvokeOutputOptions(parent=site.plain.parent, depends_on=[cluster])
    )
    config = credentials.apply(lambda found: found.kube_config)
    return BuiltKubernetes.of_config(joined, config, manifests)
