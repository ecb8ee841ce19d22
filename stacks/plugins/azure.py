"""`pulumi-resource-azure-native` over the lab: blob containers, managed disks and DNS zones are real ones of the lab.

The lab has one storage account and one resource group: containers and disks of every account and group lie there.
Groups, accounts, networks, identities and roles are kept on the shelf, and have no effect.
"""

from __future__ import annotations

from providers.base.volume_api import CloudVolume, VolumeSpec
from providers.base.volume_limits import GIB
from stacks.plugins.backings import BucketBacking, VolumeBacking, ZoneBacking
from stacks.plugins.kinds import Kind, Output
from stacks.plugins.shelf import Plain
from stacks.plugins.site import Site

GROUP = "azure-native:resources:ResourceGroup"
ACCOUNT = "azure-native:storage:StorageAccount"
NETWORK = "azure-native:network:VirtualNetwork"
ROLE = "azure-native:authorization:RoleDefinition"
IN_GROUP = {"resourceGroupName": (GROUP, "resourceGroupName")}
_GROUP_ID = "/subscriptions/{account}/resourceGroups/{resourceGroupName}"


def _arm(kind: str, name: str) -> str:
    """A template of an id below the resource group; `name`: the input that is its last part."""
    return f"{_GROUP_ID}/providers/{kind}/{{{name}}}"


def _named(name: str, kind: str, **more: Output) -> dict[str, Output]:
    return {"name": f"{{{name}}}", "type": kind, "provisioningState": "Succeeded", **more}


def _disk(site: Site, inputs: Plain) -> VolumeSpec:
    return VolumeSpec(
        name=str(inputs["diskName"]),
        kind=str((inputs.get("sku") or {}).get("name") or "Standard_LRS"),
        size_bytes=int(inputs["diskSizeGB"]) * GIB,
        zones=tuple(str(zone) for zone in inputs.get("zones") or site.zones),
        share_max=int(inputs.get("maxShares") or 1),
        iops=inputs.get("diskIOPSReadWrite"),
        mib_s=inputs.get("diskMBpsReadWrite"),
        tags=tuple(sorted((str(key), str(value)) for key, value in (inputs.get("tags") or {}).items())),
    )


def _live_disk(site: Site, volume: CloudVolume) -> Plain:
    return {
        "diskName": volume.name,
        "diskSizeGB": volume.size_bytes // GIB,
        "sku": {"name": volume.kind},
        "maxShares": volume.share_max,
    }


KINDS = (
    Kind(
        GROUP,
        _GROUP_ID,
        _named("resourceGroupName", "Microsoft.Resources/resourceGroups"),
        named="resourceGroupName",
        fixed=frozenset({"resourceGroupName", "location"}),
    ),
    Kind(
        NETWORK,
        _arm("Microsoft.Network/virtualNetworks", "virtualNetworkName"),
        _named("virtualNetworkName", "Microsoft.Network/virtualNetworks"),
        needs=("resourceGroupName",),
        named="virtualNetworkName",
        fixed=frozenset({"virtualNetworkName", "resourceGroupName", "location"}),
        refers=IN_GROUP,
    ),
    Kind(
        "azure-native:network:Subnet",
        _arm("Microsoft.Network/virtualNetworks/{virtualNetworkName}/subnets", "subnetName"),
        _named("subnetName", "Microsoft.Network/virtualNetworks/subnets"),
        needs=("resourceGroupName", "virtualNetworkName"),
        named="subnetName",
        fixed=frozenset({"subnetName", "virtualNetworkName", "resourceGroupName"}),
        refers={**IN_GROUP, "virtualNetworkName": (NETWORK, "virtualNetworkName")},
    ),
    Kind(
        ACCOUNT,
        _arm("Microsoft.Storage/storageAccounts", "accountName"),
        _named("accountName", "Microsoft.Storage/storageAccounts"),
        needs=("resourceGroupName", "accountName", "kind", "sku"),
        fixed=frozenset({"accountName", "resourceGroupName", "location"}),
        refers=IN_GROUP,
    ),
    Kind(
        "azure-native:storage:BlobContainer",
        _arm("Microsoft.Storage/storageAccounts/{accountName}/blobServices/default/containers", "containerName"),
        {"name": "{containerName}", "type": "Microsoft.Storage/storageAccounts/blobServices/containers"},
        needs=("resourceGroupName", "accountName"),
        named="containerName",
        fixed=frozenset({"containerName", "accountName", "resourceGroupName"}),
        refers={**IN_GROUP, "accountName": (ACCOUNT, "accountName")},
        backing=BucketBacking("containerName"),
    ),
    Kind(
        "azure-native:compute:Disk",
        _arm("Microsoft.Compute/disks", "diskName"),
        _named("diskName", "Microsoft.Compute/disks"),
        needs=("resourceGroupName", "diskSizeGB", "creationData"),
        named="diskName",
        fixed=frozenset({"diskName", "resourceGroupName", "location", "zones", "creationData"}),
        stuck=frozenset({"diskSizeGB", "sku", "maxShares", "diskIOPSReadWrite", "diskMBpsReadWrite"}),
        refers=IN_GROUP,
        backing=VolumeBacking(_disk, _live_disk, lambda id_: id_.rpartition("/")[2], adopts_id=False),
    ),
    Kind(
        "azure-native:managedidentity:UserAssignedIdentity",
        _arm("Microsoft.ManagedIdentity/userAssignedIdentities", "resourceName"),
        {
            "name": "{resourceName}",
            "type": "Microsoft.ManagedIdentity/userAssignedIdentities",
            "principalId": "{guid}",
            "clientId": "{guid}",
            "tenantId": "{guid}",
        },
        needs=("resourceGroupName",),
        named="resourceName",
        fixed=frozenset({"resourceName", "resourceGroupName", "location"}),
        refers=IN_GROUP,
    ),
    Kind(
        ROLE,
        "{scope}/providers/Microsoft.Authorization/roleDefinitions/{roleDefinitionId}",
        {"name": "{roleDefinitionId}", "type": "Microsoft.Authorization/roleDefinitions"},
        needs=("scope",),
        named="roleDefinitionId",
        guid=True,
        fixed=frozenset({"roleDefinitionId", "scope"}),
    ),
    Kind(
        "azure-native:authorization:RoleAssignment",
        "{scope}/providers/Microsoft.Authorization/roleAssignments/{roleAssignmentName}",
        {"name": "{roleAssignmentName}", "type": "Microsoft.Authorization/roleAssignments"},
        needs=("scope", "principalId", "roleDefinitionId"),
        named="roleAssignmentName",
        guid=True,
        fixed=frozenset({"roleAssignmentName", "scope", "principalId", "roleDefinitionId"}),
        refers={"roleDefinitionId": (ROLE, None)},
    ),
    Kind(
        "azure-native:dns:Zone",
        _arm("Microsoft.Network/dnsZones", "zoneName"),
        {
            "name": "{zoneName}",
            "type": "Microsoft.Network/dnsZones",
            "nameServers": lambda site, id_, inputs: [f"ns{n}.azure-dns.lab.test." for n in range(1, 5)],
        },
        needs=("resourceGroupName", "zoneName"),
        fixed=frozenset({"zoneName", "resourceGroupName", "location"}),
        refers=IN_GROUP,
        backing=ZoneBacking("zoneName", adopts_id=False),
    ),
)
