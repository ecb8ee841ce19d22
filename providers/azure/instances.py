"""Azure's machines: azure-mgmt-compute's virtual machines of one resource group and region.

Needs `Microsoft.Compute/virtualMachines/read` and `…/instanceView/read` on the resource group. A machine's address
belongs to its network interface, another resource provider's: it is left empty. Machines of scale sets in uniform mode
are not virtual machines of their own here, and cannot take a shared disk by force either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from providers.azure.arm import Account, ControlSettings, code_of
from providers.base.clock import Clock, Rng
from providers.base.instances import Instance, Instances
from providers.base.registry import AccountAddress

ASKED_ONE_BY_ONE_MAX = 8
"""More ids than these are found in one listing of the group."""

_SIZE = re.compile(r"(?:Standard|Basic)_[A-Z]+\d+(?:-\d+)?(?P<features>[a-z]*)(?:_.*)?")
"""Family, processors, constrained ones, features, accelerator and version (VM size naming conventions)."""


def open_instances(
    address: AccountAddress, *, clock: Clock, rng: Rng, settings: ControlSettings | None = None
) -> Instances:
    """Open the machines of the address's resource group; nothing is sent yet.

    Raises:
        Invalid: no subscription or resource group, unreadable credentials.
    """
    return AzureInstances(Account(address, settings or ControlSettings(), clock=clock, rng=rng))


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
        return [_instance(row) for row in rows if _region(row.location) == self._account.region]

    def _get(self, name: str) -> Instance | None:
        try:
            row = compute_client(self._account).virtual_machines.get(self._account.group, name, expand="instanceView")
        except Exception as error:
            if code_of(error) in ("ResourceNotFound", "NotFound"):
                return None
            raise
        return _instance(row)

    async def close(self) -> None:
        self._account.close()


def _region(location: str) -> str:
    """eastus: the service takes and returns "East US" as well."""
    return location.replace(" ", "").lower()


def _instance(row: Any) -> Instance:
    statuses = row.instance_view.statuses if row.instance_view is not None else None
    kind = str(row.hardware_profile.vm_size) if row.hardware_profile is not None else ""
    return Instance(
        id=str(row.name),
        name=str(row.name),
        zone=str(row.zones[0]) if row.zones else "",
        kind=kind,
        running=any(status.code == "PowerState/running" for status in statuses or ()),
        shares_volumes=shares_volumes(kind),
    )


def shares_volumes(kind: str) -> bool | None:
    """Premium disks, the ones worth sharing, need a size with premium storage: an `s` among its features. Otherwise
    None: standard SSDs can be shared by any."""
    match = _SIZE.fullmatch(kind)
    return True if match and "s" in match["features"] else None
