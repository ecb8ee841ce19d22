"""ECS instances through alibabacloud-ecs20140526: enough to attach volumes to them.

RAM actions: ecs:DescribeInstances, ecs:DescribeInstanceTypes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from providers.aliyun.control import SETTINGS, LazyClient, check_account, open_calls, sdk_config
from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Unavailable
from providers.base.instances import Instance, Instances
from providers.base.registry import AccountAddress

IDS_MAX = 100
"""Ids that DescribeInstances and DescribeDisks take at once (ECS API reference)."""

PAGE_MAX = 100
"""Entries a page is asked for (DescribeInstances: 1 to 100; DescribeDisks: 10 to 500)."""

PAGES_MAX = 1_000
"""Pages a listing reads: an answer that never ends is an error."""


def open_instances(address: AccountAddress, *, clock: Clock, rng: Rng, settings: StoreSettings = SETTINGS) -> Instances:
    """See `providers.base.registry.open_instances`.

    Raises:
        Invalid: unreadable credentials, malformed address.
    """
    return EcsInstances(open_ecs(address, settings, clock=clock, rng=rng))


def open_ecs(address: AccountAddress, settings: StoreSettings, *, clock: Clock, rng: Rng) -> EcsClient:
    """
    Raises:
        Invalid: unreadable credentials, malformed address.
    """
    secrets = check_account(address)

    def make() -> Any:
        from alibabacloud_ecs20140526.client import Client

        return Client(sdk_config(address, secrets, settings))

    calls = open_calls(f"ecs {address.region}", settings, clock=clock, rng=rng)
    return EcsClient(address.region, LazyClient(make), calls)


class EcsClient:
    """ECS's paged reads, one region's."""

    def __init__(self, region: str, client: LazyClient, calls: SdkCalls) -> None:
        self.region = region
        self.client = client
        self.calls = calls
        self._nvme: dict[str, bool] = {}

    async def instances(self, ids: Sequence[str] | None) -> list[Any]:
        """The SDK's own records, of those ids or of all."""
        found: list[Any] = []
        for some in id_groups(ids):
            token = None
            for _ in range(PAGES_MAX):
                body = await self.calls.repeated("DescribeInstances", partial(self._instances_page, some, token))
                found.extend(body.instances.instance if body.instances else [])
                token = body.next_token
                if not token:
                    break
            else:
                raise Unavailable(f"DescribeInstances did not end within {PAGES_MAX} pages")
        return found

    def _instances_page(self, ids: list[str] | None, token: str | None) -> Any:
        from alibabacloud_ecs20140526.models import DescribeInstancesRequest

        request = DescribeInstancesRequest(region_id=self.region, max_results=PAGE_MAX, next_token=token)
        if ids is not None:
            request.instance_ids = json.dumps(ids)
        return self.client().describe_instances(request).body

    async def nvme_support(self, kinds: set[str]) -> dict[str, bool]:
        """Whether each instance type has NVMe (`NvmeSupport` required or supported), which multi-attach asks for;
        types that the cloud does not know are left out. Kept: a type does not change."""
        missing = sorted(kinds - self._nvme.keys())
        # InstanceTypes takes up to 10 values (ECS API reference, DescribeInstanceTypes).
        for at in range(0, len(missing), 10):
            some = missing[at : at + 10]
            body = await self.calls.repeated("DescribeInstanceTypes", partial(self._types, some))
            for kind in body.instance_types.instance_type if body.instance_types else []:
                if kind.nvme_support:
                    self._nvme[kind.instance_type_id] = kind.nvme_support != "unsupported"
        return {kind: self._nvme[kind] for kind in kinds if kind in self._nvme}

    def _types(self, kinds: list[str]) -> Any:
        from alibabacloud_ecs20140526.models import DescribeInstanceTypesRequest

        return self.client().describe_instance_types(DescribeInstanceTypesRequest(instance_types=kinds)).body


def id_groups(ids: Sequence[str] | None) -> list[list[str] | None]:
    """`ids` in groups that a request takes; one group None for all."""
    if ids is None:
        return [None]
    return [list(ids[at : at + IDS_MAX]) for at in range(0, len(ids), IDS_MAX)]


class EcsInstances:
    """See `providers.base.instances.Instances`."""

    def __init__(self, ecs: EcsClient) -> None:
        self._ecs = ecs

    async def describe(self, ids: Sequence[str] | None = None) -> Sequence[Instance]:
        rows = await self._ecs.instances(ids)
        nvme = await self._ecs.nvme_support({row.instance_type for row in rows})
        return [_instance(row, nvme.get(row.instance_type)) for row in rows]

    async def close(self) -> None:
        self._ecs.calls.close()


def _instance(row: Any, nvme: bool | None) -> Instance:
    addresses = row.vpc_attributes.private_ip_address if row.vpc_attributes else None
    inner = row.inner_ip_address.ip_address if row.inner_ip_address else None  # the classic network's
    found = (addresses.ip_address if addresses else None) or inner or [""]
    return Instance(
        id=row.instance_id,
        name=row.instance_name or "",
        zone=row.zone_id,
        kind=row.instance_type,
        running=row.status == "Running",
        private_address=found[0],
        shares_volumes=nvme,
    )
