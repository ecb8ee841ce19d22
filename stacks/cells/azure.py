"""Azure: a zone-redundant storage account and container, ZRS or zonal disks, an identity with a role of its own."""

from __future__ import annotations

import hashlib

import pulumi
import pulumi_azure_native as azure

from stacks.cells import kubernetes_azure
from stacks.cells.cell import Built, Site

CONTAINER = "Microsoft.Storage/storageAccounts/blobServices/containers"
DATA_ACTIONS = (f"{CONTAINER}/blobs/read", f"{CONTAINER}/blobs/write", f"{CONTAINER}/blobs/delete")
ACTIONS = (f"{CONTAINER}/read",)


def account_name(cell: str, account: str | None) -> str:
    """A storage account's name is unique in the world: 24 lower-case letters and digits, from cell and subscription."""
    digest = hashlib.sha256(f"{account or ''}/{cell}".encode()).hexdigest()
    return f"yunhe{digest[:19]}"


def build(site: Site) -> Built:
    """Create it all. Data resources carry `site.data`."""
    needs, name, tags = site.needs, site.needs.name, dict(site.needs.tags)
    # The group is data too: deleting it deletes what is in it.
    group = azure.resources.ResourceGroup(
        f"{name}-group", resource_group_name=f"yunhe-{name}", location=needs.region, tags=tags, opts=site.data
    )
    network = azure.network.VirtualNetwork(
        f"{name}-network",
        resource_group_name=group.name,
        location=needs.region,
        address_space=azure.network.AddressSpaceArgs(address_prefixes=["10.0.0.0/16"]),
        tags=tags,
        opts=site.plain,
    )
    subnet = azure.network.Subnet(
        f"{name}-subnet",
        resource_group_name=group.name,
        virtual_network_name=network.name,
        address_prefix="10.0.0.0/20",
        service_endpoints=[azure.network.ServiceEndpointPropertiesFormatArgs(service="Microsoft.Storage")],
        opts=site.plain,
    )
    account = azure.storage.StorageAccount(
        f"{name}-account",
        account_name=account_name(name, needs.account),
        resource_group_name=group.name,
        location=needs.region,
        kind=azure.storage.Kind.STORAGE_V2,
        sku=azure.storage.SkuArgs(name=azure.storage.SkuName.STANDARD_ZRS),
        access_tier=azure.storage.AccessTier.HOT,
        allow_blob_public_access=False,
        allow_shared_key_access=False,
        enable_https_traffic_only=True,
        minimum_tls_version=azure.storage.MinimumTlsVersion.TLS1_2,
        tags=tags,
        opts=site.data,
    )
    container = azure.storage.BlobContainer(
        f"{name}-bucket",
        account_name=account.name,
        container_name=needs.bucket,
        resource_group_name=group.name,
        public_access=azure.storage.PublicAccess.NONE,
        opts=site.data,
    )
    volumes: dict[str, pulumi.Output[str]] = {}
    for volume in needs.volumes:
        made = azure.compute.Disk(
            volume.name,
            disk_name=volume.name,
            resource_group_name=group.name,
            location=needs.region,
            creation_data=azure.compute.CreationDataArgs(create_option=azure.compute.DiskCreateOption.EMPTY),
            disk_size_gb=volume.size_gib,
            sku=azure.compute.DiskSkuArgs(name=volume.kind),
            max_shares=volume.share_max,
            # A zone-redundant disk belongs to no zone.
            zones=None if volume.redundant else [volume.zones[0]],
            tags=tags,
            opts=site.data,
        )
        volumes[volume.name] = made.id
    identity = azure.managedidentity.UserAssignedIdentity(
        f"{name}-broker", resource_group_name=group.name, location=needs.region, tags=tags, opts=site.plain
    )
    role = azure.authorization.RoleDefinition(
        f"{name}-broker",
        role_name=f"Yunhe brokers of {name}",
        scope=group.id,
        assignable_scopes=[group.id],
        permissions=[azure.authorization.PermissionArgs(actions=list(ACTIONS), data_actions=list(DATA_ACTIONS))],
        opts=site.plain,
    )
    azure.authorization.RoleAssignment(
        f"{name}-broker",
        principal_id=identity.principal_id,
        principal_type=azure.authorization.PrincipalType.SERVICE_PRINCIPAL,
        role_definition_id=role.id,
        scope=container.id,
        opts=site.plain,
    )
    if needs.dns_zone:
        azure.dns.Zone(
            f"{name}-dns",
            zone_name=needs.dns_zone,
            resource_group_name=group.name,
            location="global",
            tags=tags,
            opts=site.plain,
        )
    endpoint = account.name.apply(lambda found: f"https://{found}.blob.core.windows.net")
    kubernetes = None
    if needs.nodes is not None:
        kubernetes = kubernetes_azure.build(site, needs.nodes, group=group, subnet=subnet, identity=identity)
    return Built(container.name, volumes, identity.id, endpoint, kubernetes=kubernetes)
