"""AKS: a cluster with a node pool a zone in the cell's subnet, and a federated credential for the pods."""

from __future__ import annotations

import base64
from typing import Any

import pulumi
import pulumi_azure_native as azure

from stacks.cells.cell import BuiltKubernetes, Site
from stacks.cells.nodes import NodeNeeds, Pool, account_manifests

SUBNET = "Microsoft.Network/virtualNetworks/subnets"
SUBNET_ACTIONS = (f"{SUBNET}/join/action", f"{SUBNET}/read")
"""What the cluster's own identity needs in a subnet that AKS has not made (AKS, "Service permissions", additional
permissions of the cluster identity). Nothing of the container: pods have the cell's identity."""
AUDIENCE = "api://AzureADTokenExchange"


def build(site: Site, nodes: NodeNeeds, *, group: Any, subnet: Any, identity: Any) -> BuiltKubernetes:
    """`identity`: the cell's. `subnet`: the cell's, which spans the zones."""
    name = site.needs.name
    cluster: Any = None
    if nodes.existing is None:
        cluster = _cluster(site, nodes, group, subnet)
        joined: pulumi.Input[str] = cluster.name
        issuer: pulumi.Input[str] = cluster.oidc_issuer_profile.apply(lambda found: found.issuer_url)
    else:
        joined, issuer = nodes.existing.cluster, nodes.existing.oidc_issuer or ""
        for pool in nodes.pools:
            azure.containerservice.AgentPool(
                f"{name}-nodes-{pool.zone}",
                agent_pool_name=pool.name,
                resource_group_name=nodes.existing.resource_group or "",
                resource_name_=joined,
                **_pool(site, nodes, pool, "User", pool.subnet or ""),
                opts=site.after(ignore=["count"]),
            )
    before: list[pulumi.Resource] = []
    for account in nodes.accounts:
        made = azure.managedidentity.FederatedIdentityCredential(
            f"{name}-{account.namespace}-{account.name}",
            federated_identity_credential_resource_name=f"{account.namespace}-{account.name}",
            resource_group_name=group.name,
            resource_name_=identity.name,
            issuer=issuer,
            subject=account.subject,
            audiences=[AUDIENCE],
            # Azure refuses writes to one identity's credentials that come at once.
            opts=site.after(*before),
        )
        before = [made]
    manifests = identity.client_id.apply(
        lambda client: account_manifests(nodes, {"azure.workload.identity/client-id": client})
    )
    if cluster is None:
        return BuiltKubernetes(joined, manifests=manifests)
    credentials = azure.containerservice.list_managed_cluster_user_credentials_output(
        resource_group_name=group.name,
        resource_name=cluster.name,
        opts=pulumi.InvokeOutputOptions(parent=site.plain.parent, depends_on=[cluster]),
    )
    config = credentials.apply(lambda found: base64.b64decode(found.kubeconfigs[0].value).decode())
    return BuiltKubernetes.of_config(joined, config, manifests)


def _cluster(site: Site, nodes: NodeNeeds, group: Any, subnet: Any) -> Any:
    name, tags = site.needs.name, dict(site.needs.tags)
    identity = azure.managedidentity.UserAssignedIdentity(
        f"{name}-control", resource_group_name=group.name, location=site.needs.region, tags=tags, opts=site.plain
    )
    role = azure.authorization.RoleDefinition(
        f"{name}-control",
        role_name=f"Yunhe nodes of {name}",
        scope=group.id,
        assignable_scopes=[group.id],
        permissions=[azure.authorization.PermissionArgs(actions=list(SUBNET_ACTIONS), data_actions=[])],
        opts=site.plain,
    )
    assigned = azure.authorization.RoleAssignment(
        f"{name}-control",
        principal_id=identity.principal_id,
        principal_type=azure.authorization.PrincipalType.SERVICE_PRINCIPAL,
        role_definition_id=role.id,
        scope=subnet.id,
        opts=site.plain,
    )
    service = azure.containerservice
    return service.ManagedCluster(
        f"{name}-kubernetes",
        resource_name_=nodes.cluster,
        resource_group_name=group.name,
        location=site.needs.region,
        dns_prefix=nodes.cluster,
        kubernetes_version=nodes.version,
        identity=service.ManagedClusterIdentityArgs(
            type=service.ResourceIdentityType.USER_ASSIGNED, user_assigned_identities=[identity.id]
        ),
        # Without the tier, the API server has no agreed availability.
        sku=service.ManagedClusterSKUArgs(name="Base", tier="Standard"),
        enable_rbac=True,
        oidc_issuer_profile=service.ManagedClusterOIDCIssuerProfileArgs(enabled=True),
        security_profile=service.ManagedClusterSecurityProfileArgs(
            workload_identity=service.ManagedClusterSecurityProfileWorkloadIdentityArgs(enabled=True)
        ),
        api_server_access_profile=service.ManagedClusterAPIServerAccessProfileArgs(
            enable_private_cluster=nodes.private
        ),
        network_profile=service.ContainerServiceNetworkProfileArgs(
            # Pods have addresses of their own, so that the subnet's are the nodes'.
            network_plugin="azure",
            network_plugin_mode="overlay",
            pod_cidr="10.244.0.0/16",
            # AKS's default is the cell's own network.
            service_cidr="10.100.0.0/16",
            dns_service_ip="10.100.0.10",
            load_balancer_sku="standard",
            outbound_type="loadBalancer",
        ),
        agent_pool_profiles=[
            service.ManagedClusterAgentPoolProfileArgs(name=pool.name, **_pool(site, nodes, pool, "System", subnet.id))
            for pool in nodes.pools
        ],
        tags=tags,
        # How many there are now is the autoscaler's to say.
        opts=site.after(assigned, ignore=[f"agentPoolProfiles[{at}].count" for at in range(len(nodes.pools))]),
    )


def _pool(site: Site, nodes: NodeNeeds, pool: Pool, mode: str, subnet: pulumi.Input[str]) -> dict[str, Any]:
    """What a pool is told, within its cluster or beside it."""
    return {
        "mode": mode,
        "type": "VirtualMachineScaleSets",
        "availability_zones": [pool.zone],
        "vm_size": nodes.machine_type,
        "orchestrator_version": nodes.version,
        "os_type": "Linux",
        "os_disk_size_gb": nodes.disk_gib,
        "enable_auto_scaling": True,
        "count": nodes.min_nodes,
        "min_count": nodes.min_nodes,
        "max_count": nodes.max_nodes,
        "node_labels": dict(nodes.labels),
        "vnet_subnet_id": subnet,
        "tags": dict(site.needs.tags),
    }
