"""How Resource Manager shows disks, machines and network interfaces: the JSON of each, from what the cores know.

Sources: as `control_azure_compute.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from providers.lab.compute_state import GIB, Disk, DiskState, Link, LinkState, Machine
from providers.lab.control import ControlPlane

_STATES = {DiskState.CREATING: "Updating", DiskState.DELETING: "Deleting", DiskState.ERROR: "Failed"}


class Shapes:
    """Of one resource group."""

    def __init__(self, plane: ControlPlane, subscription: str, group: str) -> None:
        self._plane = plane
        self.root = f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute"

    def disk(self, disk: Disk) -> dict[str, Any]:
        """Microsoft.Compute/disks."""
        spec = disk.spec
        holders = [self.machine_id(link.instance) for link in disk.links]
        properties: dict[str, Any] = {
            "creationData": {"createOption": "Empty"},
            "diskSizeGB": spec.size_bytes // GIB,
            "diskSizeBytes": spec.size_bytes,
            "provisioningState": _STATES.get(disk.state, "Succeeded"),
            "diskState": self._disk_state(disk),
            "timeCreated": datetime.fromtimestamp(disk.created_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
            "networkAccessPolicy": "AllowAll",
        }
        if spec.iops is not None:
            properties["diskIOPSReadWrite"] = spec.iops
        if spec.mib_s is not None:
            properties["diskMBpsReadWrite"] = spec.mib_s
        shown: dict[str, Any] = {
            "id": f"{self.root}/disks/{disk.id}",
            "name": disk.id,
            "type": "Microsoft.Compute/disks",
            "location": self._plane.region,
            "tags": dict(spec.tags),
            "sku": {"name": spec.kind, "tier": _tier(spec.kind)},
            "properties": properties,
        }
        if spec.attributes.get("zones"):
            shown["zones"] = spec.attributes["zones"]
        if spec.share_max > 1:
            properties["maxShares"] = spec.share_max
            properties["shareInfo"] = [{"vmUri": holder} for holder in holders]
            shown["managedByExtended"] = holders
        elif holders:
            shown["managedBy"] = holders[0]
        return shown

    def _disk_state(self, disk: Disk) -> str:
        if not disk.links:
            return "Unattached"
        machines = {machine.id: machine for machine in self._plane.compute.machines()}
        running = any(link.instance in machines and machines[link.instance].running for link in disk.links)
        return "Attached" if running else "Reserved"

    def machine_id(self, name: str) -> str:
        """Of the machine of that name."""
        return f"{self.root}/virtualMachines/{name}"

    def machine(self, machine: Machine, disks: Sequence[Disk], view: bool) -> dict[str, Any]:
        """Microsoft.Compute/virtualMachines; `view`: with its instance view."""
        links = [(disk, link) for disk in disks if (link := disk.link(machine.id)) is not None]
        moving = any(link.state is not LinkState.ATTACHED for _, link in links)
        properties: dict[str, Any] = {
            "hardwareProfile": {"vmSize": machine.kind},
            "provisioningState": "Updating" if moving else "Succeeded",
            "storageProfile": {"dataDisks": [self._data_disk(*pair) for pair in links if _in_profile(pair[1])]},
            "networkProfile": {
                "networkInterfaces": [{"id": self.interface(machine)["id"], "properties": {"primary": True}}]
            },
        }
        if view:
            properties["instanceView"] = instance_view(machine)
        return {
            "id": self.machine_id(machine.id),
            "name": machine.id,
            "type": "Microsoft.Compute/virtualMachines",
            "location": self._plane.region,
            "zones": [machine.zone],
            "properties": properties,
        }

    def _data_disk(self, disk: Disk, link: Link) -> dict[str, Any]:
        return {
            "lun": link.attributes.get("lun"),
            "name": disk.id,
            "createOption": "Attach",
            "caching": link.attributes.get("caching", "None"),
            "diskSizeGB": disk.spec.size_bytes // GIB,
            "managedDisk": {"id": f"{self.root}/disks/{disk.id}", "storageAccountType": disk.spec.kind},
            "toBeDetached": link.state in (LinkState.DETACHING, LinkState.BUSY),
        }

    def interface(self, machine: Machine) -> dict[str, Any]:
        """Microsoft.Network/networkInterfaces: a machine has one."""
        name = f"{machine.name}-nic"
        address = {"name": "ipconfig1", "properties": {"privateIPAddress": machine.private_address, "primary": True}}
        return {
            "id": self.root.replace("Microsoft.Compute", "Microsoft.Network") + f"/networkInterfaces/{name}",
            "name": name,
            "type": "Microsoft.Network/networkInterfaces",
            "location": self._plane.region,
            "properties": {
                "provisioningState": "Succeeded",
                "virtualMachine": {"id": self.machine_id(machine.id)},
                "ipConfigurations": [address],
            },
        }


def _in_profile(link: Link) -> bool:
    """The machine's model shows a disk once it is there, and until it is gone."""
    return link.state is not LinkState.ATTACHING


def instance_view(machine: Machine) -> dict[str, Any]:
    """Whether it runs."""
    power = "running" if machine.running else "deallocated"
    return {
        "statuses": [
            {"code": "ProvisioningState/succeeded", "level": "Info", "displayStatus": "Provisioning succeeded"},
            {"code": f"PowerState/{power}", "level": "Info", "displayStatus": f"VM {power}"},
        ]
    }


def _tier(kind: str) -> str:
    return "Ultra" if kind.startswith("Ultra") else "Premium" if kind.startswith("Premium") else "Standard"
