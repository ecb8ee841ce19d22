"""Compute Engine's instances through google-cloud-compute. An instance's id is its resource name,
`projects/P/zones/Z/instances/N`.

Least privileges (a custom role): compute.instances.get, compute.instances.list.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from providers.base.blocking import StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import NotFound, Unavailable
from providers.base.instances import Instance, Instances
from providers.base.registry import AccountAddress
from providers.gcp.compute import Compute, ResourceName, last

_SERIES = re.compile(r"[a-z]+(\d+)")

SHARING_GENERATION_MIN = 3
"""Shared Hyperdisks attach to machine series of the third generation and later (page hyperdisk-balanced-ha)."""


def open_instances(
    address: AccountAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None
) -> Instances:
    """Open the project's instances in the region; nothing is sent yet.

    Raises:
        Invalid: unreadable or missing credentials, no project.
    """
    return GcpInstances(Compute(address, clock=clock, rng=rng, settings=settings))


class GcpInstances:
    """See `providers.base.instances.Instances`."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def describe(self, ids: Sequence[str] | None = None) -> Sequence[Instance]:
        if ids is None:
            return await self._compute.ask("instances", self._list)
        names = [ResourceName.parse(each, "instances") for each in ids]
        found = await asyncio.gather(*(self._find(name) for name in names))
        return [instance for instance in found if instance is not None]

    def _list(self) -> list[Instance]:
        request = self._compute.sdk.AggregatedListInstancesRequest(project=self._compute.project)
        pager = self._compute.client("Instances").aggregated_list(request, **self._compute.bounds)
        found = []
        for page in pager.pages:
            if page.unreachables:
                # A zone that does not answer is no zone without instances.
                raise Unavailable(f"no answer from {', '.join(page.unreachables)}")
            for scope, instances in page.items.items():
                if last(scope).rpartition("-")[0] == self._compute.region:
                    found += [_instance(each, self._compute.project) for each in instances.instances]
        return found

    async def _find(self, name: ResourceName) -> Instance | None:
        def call() -> Instance:
            request = self._compute.sdk.GetInstanceRequest(project=name.project, zone=name.place, instance=name.name)
            got = self._compute.client("Instances").get(request, **self._compute.bounds)
            return _instance(got, name.project)

        try:
            return await self._compute.ask(str(name), call)
        except NotFound:
            return None

    async def close(self) -> None:
        await self._compute.close()


def _instance(got: Any, project: str) -> Instance:
    zone, kind = last(got.zone), last(got.machine_type)
    addresses = [face.network_i_p for face in got.network_interfaces if face.network_i_p]
    return Instance(
        id=str(ResourceName(project, "zones", zone, "instances", got.name)),
        name=got.name,
        zone=zone,
        kind=kind,
        running=got.status == "RUNNING",
        private_address=addresses[0] if addresses else "",
        shares_volumes=shares_volumes(kind),
    )


def shares_volumes(machine_type: str) -> bool | None:
    """Whether it takes shared Hyperdisks; None where the documents were not clear: older series, and those without a
    number."""
    series = _SERIES.match(machine_type)
    return True if series and int(series[1]) >= SHARING_GENERATION_MIN else None
