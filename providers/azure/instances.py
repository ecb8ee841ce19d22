"""Azure's machines: azure-mgmt-compute's virtual machines of one resource group and region.

Needs `Microsoft.Compute/virtualMachines/read` and `Microsoft.Network/networkInterfaces/read` on the resource group: a
machine's address belongs to its network interface, another resource provider's. Where the latter is refused, addresses
are left empty. Machines of scale sets in uniform mode are no virtual machines of their own here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from providers.azure.arm import NETWORK_VERSION, Account
from providers.azure.arm_errors import code_of
from providers.base.blocking import StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.instances import Instance, Instances
from providers.base.registry import AccountAddress
from providers.base.waiting import WaitSettings

ASKED_ONE_BY_ONE_MAX = 8
"""More ids than these are found in one listing of the group."""

_SIZE = re.compile(r"(?:Standard|Basic)_[A-Z]+\d+(?:-\d+)?(?P<features>[a-z]*)(?:_.*)?")
"""Family, processors, constrained ones, features, accelerator and version (VM size naming conventions)."""


def open_instances(
    address: AccountAddress,
    *,
    clock: Clock,
    rng: Rng,
    settings: StoreSettings | None = None,
    wait: WaitSettings | None = None,
) -> Instances:
    """Open the machines of the address's resource group; nothing is sent yet.

    Raises:
        Invalid: no subscription or resource group, unreadable credentials.
    """
    return AzureInstances(Account(address, settings, wait, clock=clock, rng=rng))


def compute_client(account: Account) -> Any:
    """The SDK's client. Its import takes half a second: call it in a thread."""
    from azure.mgmt.compute import ComputeManagementClient

    return account.client(ComputeManagementClient)


class AzureInstances:
    """See `providers.base.instances.Instances`. An id is the machine's name."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def describe(self, ids: Sequence[str] | None = None) -> Sequence[Instance]:
        calls = self._account.calls
        if ids is None or len(ids) > ASKED_ONE_BY_ONE_MAX:
            machines = await calls.repeated(f"machines of {self._account.group}", self._list)
            wanted = None if ids is None else {name.casefold() for name in ids}
            return [m for m in machines if wanted is None or m.id.casefold() in wanted]
        found = [await calls.repeated(name, partial(self._get, name)) for name in dict.fromkeys(ids)]
        return [machine for machine in found if machine is not None]

    def _list(self) -> Sequence[Instance]:
        rows = compute_client(self._account).virtual_machines.list(self._account.group, expand="instanceView")
        # A group may hold machines of several regions; a disk reaches those of its own.
        here = [row for row in rows if _region(row.location) == self._account.region]
        addresses = self._addresses() if here else {}
        return [_instance(row, addresses) for row in here]

    def _get(self, name: str) -> Instance | None:
        try:
            row = compute_client(self._account).virtual_machines.get(self._account.group, name, expand="instanceView")
        except Exception as error:
            if code_of(error) in ("ResourceNotFound", "NotFound"):
                return None
            raise
        interface = _interface_of(row)
        return _instance(row, self._address(interface) if interface else {})

    def _addresses(self) -> dict[str, str]:
        """Private addresses by the id, in lower case, of their network interface."""
        group = f"/subscriptions/{self._account.subscription}/resourceGroups/{self._account.group}"
        next_page, found = f"{group}/providers/Microsoft.Network/networkInterfaces", dict[str, str]()
        while next_page:
            page = self._read(next_page)
            found.update(_address_of(row) for row in page.get("value", ()))
            next_page = str(page.get("nextLink") or "")
        return found

    def _address(self, interface: str) -> dict[str, str]:
        row = self._read(interface)
        return dict([_address_of(row)]) if row else {}

    def _read(self, path: str) -> dict[str, Any]:
        try:
            return self._account.read(path, NETWORK_VERSION)
        except Exception as error:
            if code_of(error) in ("AuthorizationFailed", "ResourceNotFound", "NotFound"):
                return {}
            raise

    async def close(self) -> None:
        self._account.close()


def _region(location: str) -> str:
    """eastus: the service takes and returns "East US" as well."""
    return location.replace(" ", "").lower()


def _interface_of(row: Any) -> str:
    """The id of the machine's primary network interface, or ""."""
    every = row.network_profile.network_interfaces if row.network_profile is not None else None
    # One interface needs no mark.
    primary = [each for each in every or () if each.primary] or list(every or ())
    return str(primary[0].id) if primary else ""


def _address_of(interface: dict[str, Any]) -> tuple[str, str]:
    settings = [each.get("properties", {}) for each in interface.get("properties", {}).get("ipConfigurations", ())]
    primary = [each for each in settings if each.get("primary")] or settings
    return str(interface["id"]).casefold(), str(primary[0].get("privateIPAddress", "")) if primary else ""


def _instance(row: Any, addresses: dict[str, str]) -> Instance:
    statuses = row.instance_view.statuses if row.instance_view is not None else None
    kind = str(row.hardware_profile.vm_size) if row.hardware_profile is not None else ""
    return Instance(
        id=str(row.name),
        name=str(row.name),
        zone=str(row.zones[0]) if row.zones else "",
        kind=kind,
        running=any(status.code == "PowerState/running" for status in statuses or ()),
        private_address=addresses.get(_interface_of(row).casefold(), ""),
        shares_volumes=shares_volumes(kind),
    )


def shares_volumes(kind: str) -> bool | None:
    """Premium disks, the ones worth sharing, need a size with premium storage: an `s` among its features. Otherwise
    None: standard SSDs can be shared by any."""
    match = _SIZE.fullmatch(kind)
    return True if match and "s" in match["features"] else None
