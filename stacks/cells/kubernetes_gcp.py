"""GKE: a regional cluster and a node pool a zone in the cell's subnet, and Workload Identity for the pods."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_gcp as gcp

from stacks.cells.cell import BuiltKubernetes, Site
from stacks.cells.nodes import NodeNeeds, account_manifests, kubeconfig

NODE_ROLE = "roles/container.defaultNodeServiceAccount"
"""What a node needs to run, and to write its logs and metrics (GKE, "About service accounts in GKE"). Nothing of the
bucket: pods have the cell's identity."""
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def build(site: Site, nodes: NodeNeeds, *, account: Any, network: Any, subnet: Any) -> BuiltKubernetes:
    """`account`: the cell's identity. `network`, `subnet`: the cell's."""
    name, labels = site.needs.name, dict(site.needs.tags)
    cluster: Any = None
    if nodes.existing is None:
        cluster = _cluster(site, nodes, account, network, subnet)
        joined: pulumi.Input[str] = cluster.name
        location = site.needs.region
    else:
        joined, location = nodes.existing.cluster, nodes.existing.location or site.needs.region
    machine = gcp.serviceaccount.Account(
        f"{name}-node",
        account_id=f"node-{nodes.pools[0].name}"[:30].rstrip("-"),
        display_name=f"Nodes of {name}",
        opts=site.plain,
    )
    granted = gcp.projects.IAMMember(
        f"{name}-node", project=machine.project, role=NODE_ROLE, member=machine.member, opts=site.plain
    )
    for pool in nodes.pools:
        gcp.container.NodePool(
            f"{name}-nodes-{pool.zone}",
            cluster=joined,
            location=location,
            name=pool.name,
            node_locations=[pool.zone],
            initial_node_count=nodes.min_nodes,
            autoscaling=gcp.container.NodePoolAutoscalingArgs(
                min_node_count=nodes.min_nodes, max_node_count=nodes.max_nodes
            ),
            node_config=gcp.container.NodePoolNodeConfigArgs(
                machine_type=nodes.machine_type,
                disk_size_gb=nodes.disk_gib,
                labels=dict(nodes.labels),
                resource_labels=labels,
                service_account=machine.email,
                oauth_scopes=[SCOPE],
                # Pods see the identity of their own account, never the node's.
                workload_metadata_config=gcp.container.NodePoolNodeConfigWorkloadMetadataConfigArgs(
                    mode="GKE_METADATA"
                ),
            ),
            # How many there were at first is of no interest later.
            opts=site.after(granted, ignore=["initialNodeCount"]),
        )
    for pods in nodes.accounts:
        gcp.serviceaccount.IAMMember(
            f"{name}-{pods.namespace}-{pods.name}",
            service_account_id=account.name,
            role="roles/iam.workloadIdentityUser",
            member=pulumi.Output.concat(
                "serviceAccount:", account.project, f".svc.id.goog[{pods.namespace}/{pods.name}]"
            ),
            # The pool of identities comes with the project's first cluster that has it.
            opts=site.after(*([cluster] if cluster is not None else [])),
        )
    manifests = account.email.apply(lambda email: account_manifests(nodes, {"iam.gke.io/gcp-service-account": email}))
    if cluster is None:
        return BuiltKubernetes(joined, manifests=manifests)
    endpoint = pulumi.Output.concat("https://", cluster.endpoint)
    authority = cluster.master_auth.apply(lambda found: found.cluster_ca_certificate)
    config = pulumi.Output.all(endpoint, authority).apply(
        lambda found: kubeconfig(nodes.cluster, found[0], found[1], ("gke-gcloud-auth-plugin",))
    )
    return BuiltKubernetes(joined, endpoint, authority, config, manifests)


def _cluster(site: Site, nodes: NodeNeeds, account: Any, network: Any, subnet: Any) -> Any:
    name, labels = site.needs.name, dict(site.needs.tags)
    container = gcp.container
    # Nodes have no addresses of their own to the world; to registries elsewhere they go by Cloud NAT.
    router = gcp.compute.Router(f"{name}-router", network=network.id, region=site.needs.region, opts=site.plain)
    nat = gcp.compute.RouterNat(
        f"{name}-nat",
        router=router.name,
        region=site.needs.region,
        nat_ip_allocate_option="AUTO_ONLY",
        source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
        opts=site.plain,
    )
    return container.Cluster(
        f"{name}-kubernetes",
        name=nodes.cluster,
        location=site.needs.region,
        node_locations=[pool.zone for pool in nodes.pools],
        network=network.id,
        subnetwork=subnet.id,
        networking_mode="VPC_NATIVE",
        ip_allocation_policy=container.ClusterIpAllocationPolicyArgs(),
        min_master_version=nodes.version,
        release_channel=container.ClusterReleaseChannelArgs(channel="REGULAR"),
        # GKE makes no cluster without a pool; this one goes at once, and the cell's own stay.
        initial_node_count=1,
        remove_default_node_pool=True,
        private_cluster_config=container.ClusterPrivateClusterConfigArgs(
            enable_private_nodes=True, enable_private_endpoint=nodes.private
        ),
        # An empty list: nobody but the cell's network. GKE wants one where the public endpoint is off.
        master_authorized_networks_config=(
            container.ClusterMasterAuthorizedNetworksConfigArgs() if nodes.private else None
        ),
        workload_identity_config=container.ClusterWorkloadIdentityConfigArgs(
            workload_pool=pulumi.Output.concat(account.project, ".svc.id.goog")
        ),
        # What it holds is in buckets and volumes, which are protected themselves.
        deletion_protection=False,
        resource_labels=labels,
        opts=site.after(nat),
    )
