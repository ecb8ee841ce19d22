"""EC2 instances (botocore): `Instances`, and the account's names of zones.

Least privilege (IAM actions, on *): ec2:DescribeInstances, ec2:DescribeInstanceTypes, ec2:DescribeAvailabilityZones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from providers.aws.account import CONTROL, open_calls, open_client
from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid
from providers.base.instances import Instance, Instances
from providers.base.registry import AccountAddress

FILTER_VALUES_MAX = 200
"""Values in one filter (API reference, Filter)."""
PAGE_MAX = 1000
"""Instances in one page (API reference, DescribeInstances)."""
TYPES_MAX = 100
"""Types in one DescribeInstanceTypes call."""

_GONE = ("terminated", "shutting-down")
"""Terminated instances stay listed for about an hour."""


def open_instances(
    address: AccountAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None
) -> Instances:
    """Open EC2 in the address's region; nothing is sent yet.

    Raises:
        Invalid: unreadable credentials.
    """
    settings = settings or CONTROL
    client = open_client("ec2", address, settings)
    return Ec2Instances(client, open_calls("ec2", address, settings, clock, rng))


class Ec2Instances:
    """See `providers.base.instances.Instances`."""

    def __init__(self, client: Any, calls: SdkCalls) -> None:
        self._client = client
        self._calls = calls
        self._nitro: dict[str, bool | None] = {}
        self._zones: dict[str, str] = {}

    async def describe(self, ids: Sequence[str] | None = None) -> Sequence[Instance]:
        if ids is None:
            rows = await self._list([])
        else:
            rows = []
            for at in range(0, len(ids), FILTER_VALUES_MAX):
                # A filter leaves out what does not exist; the parameter InstanceIds would refuse the whole call.
                rows += await self._list([{"Name": "instance-id", "Values": list(ids[at : at + FILTER_VALUES_MAX])}])
        rows = [row for row in rows if row["State"]["Name"] not in _GONE]
        await self._learn_types({row["InstanceType"] for row in rows} - set(self._nitro))
        return sorted([await self._shown(row) for row in rows], key=lambda instance: instance.id)

    async def zone_names(self) -> Mapping[str, str]:
        """The account's zone names by zone id. Asked for once: they do not change."""
        if not self._zones:
            answer = await self._calls.repeated("zones", self._client.describe_availability_zones)
            self._zones = {row["ZoneId"]: row["ZoneName"] for row in answer["AvailabilityZones"]}
        return self._zones

    async def zone_id(self, name: str) -> str:
        """The id of a zone that the API calls by its name; the name itself where it is unknown."""
        return next((zone for zone, known in (await self.zone_names()).items() if known == name), name)

    async def close(self) -> None:
        self._calls.close()
        self._client.close()

    async def _list(self, filters: list[dict[str, Any]]) -> list[Any]:
        found: list[Any] = []
        more: dict[str, str] = {}
        while True:
            call = partial(self._client.describe_instances, Filters=filters, MaxResults=PAGE_MAX, **more)
            page = await self._calls.repeated("instances", call)
            found += [row for reservation in page["Reservations"] for row in reservation["Instances"]]
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}

    async def _learn_types(self, kinds: set[str]) -> None:
        """Which types are Nitro: those can take a volume that others have too (EBS user guide, ebs-volumes-multi)."""
        unknown = sorted(kinds)
        for at in range(0, len(unknown), TYPES_MAX):
            some = unknown[at : at + TYPES_MAX]
            more: dict[str, str] = {}
            while True:
                call = partial(self._client.describe_instance_types, InstanceTypes=some, **more)
                try:
                    page = await self._calls.repeated("instance types", call)
                except Invalid:
                    # No right to ask, or a type that is not offered any more: not known is not refused.
                    self._nitro.update(dict.fromkeys(some))
                    break
                for row in page["InstanceTypes"]:
                    self._nitro[row["InstanceType"]] = row.get("Hypervisor") == "nitro" or row.get("BareMetal", False)
                if not page.get("NextToken"):
                    break
                more = {"NextToken": page["NextToken"]}

    async def _shown(self, row: Any) -> Instance:
        placement = row["Placement"]
        zone = placement.get("AvailabilityZoneId") or await self.zone_id(placement["AvailabilityZone"])
        tags = {tag["Key"]: tag["Value"] for tag in row.get("Tags", ())}
        return Instance(
            id=row["InstanceId"],
            name=tags.get("Name", row["InstanceId"]),
            zone=zone,
            kind=row["InstanceType"],
            running=row["State"]["Name"] == "running",
            private_address=row.get("PrivateIpAddress", ""),
            shares_volumes=self._nitro.get(row["InstanceType"]),
        )
