"""Route 53 (botocore): `Dns`.

A replacement is one batch of DELETE with the exact values that are expected and CREATE with the new ones. Route 53
applies a batch as a whole or not at all, and refuses (InvalidChangeBatch) a DELETE of what is not there and a CREATE of
what is: so the comparison and the replacement are one step, and the name has records throughout.

Least privilege (IAM actions): route53:ListHostedZonesByName on *, and on the zone
(arn:aws:route53:::hostedzone/…) route53:ListResourceRecordSets, route53:ChangeResourceRecordSets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from providers.aws.account import CONTROL, open_calls, open_client
from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.dns import TYPES, Dns, RecordSet
from providers.base.errors import Conflict, Invalid, NotFound
from providers.base.record_sets import check_name, check_record, check_zone, normal, quote_txt, unquote_txt
from providers.base.registry import AccountAddress

REQUESTS_PER_S_MAX = 5
"""Of one account (Route 53 quotas, API requests)."""

PAGE_MAX = 300
"""Record sets in one page (API reference, ListResourceRecordSets)."""


def open_dns(
    address: AccountAddress, zone: str, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None
) -> Dns:
    """Open the hosted zone of the domain `zone`; nothing is sent yet. Where there are a private and a public one of
    that name, the public one is meant.

    Raises:
        Invalid: a malformed domain, unreadable credentials.
    """
    settings = settings or replace(CONTROL, requests_per_s_max=REQUESTS_PER_S_MAX)
    plain = check_zone(zone)
    client = open_client("route53", address, settings)
    return Route53Dns(client, plain, open_calls("route53", address, settings, clock, rng))


class Route53Dns:
    """See `providers.base.dns.Dns`."""

    def __init__(self, client: Any, zone: str, calls: SdkCalls) -> None:
        self._client = client
        self._zone = zone
        self._calls = calls
        self._zone_id = ""

    async def get(self, name: str, type: str) -> RecordSet | None:
        check_name(name, type, self._zone)
        raw = await self._look(name, type)
        return None if raw is None else _shown(raw)

    async def _look(self, name: str, type: str) -> Any | None:
        zone_id = await self._find_zone()
        call = partial(
            self._client.list_resource_record_sets,
            HostedZoneId=zone_id,
            StartRecordName=name,
            StartRecordType=type,
            MaxItems="1",
        )
        answer = await self._calls.repeated(name, call)
        found = (raw for raw in answer["ResourceRecordSets"] if raw["Type"] == type)
        return next((raw for raw in found if _plain_name(raw["Name"]) == name), None)

    async def list(self) -> Sequence[RecordSet]:
        zone_id = await self._find_zone()
        found: list[RecordSet] = []
        start: dict[str, str] = {}
        while True:
            call = partial(
                self._client.list_resource_record_sets, HostedZoneId=zone_id, MaxItems=str(PAGE_MAX), **start
            )
            page = await self._calls.repeated(self._zone, call)
            # A set with a routing policy or an alias is nobody's simple set, and none of ours.
            found += [_shown(raw) for raw in page["ResourceRecordSets"] if raw["Type"] in TYPES and _is_simple(raw)]
            if not page["IsTruncated"]:
                return sorted(found, key=lambda record: (record.name, record.type))
            start = {"StartRecordName": page["NextRecordName"], "StartRecordType": page["NextRecordType"]}
            if page.get("NextRecordIdentifier"):
                start["StartRecordIdentifier"] = page["NextRecordIdentifier"]

    async def replace(self, record: RecordSet, *, expected: RecordSet | None) -> None:
        check_record(record, self._zone)
        if expected is not None and (expected.name, expected.type) != (record.name, record.type):
            raise Invalid(f"{record.type} {record.name} does not replace {expected.type} {expected.name}")
        current = await self._expected(record, expected)
        changes = [{"Action": "CREATE", "ResourceRecordSet": _raw(record)}]
        if current is not None:
            changes.insert(0, {"Action": "DELETE", "ResourceRecordSet": current})
        if expected is None or normal(expected) != normal(record):
            await self._change(record, changes)

    async def delete(self, expected: RecordSet) -> None:
        check_name(expected.name, expected.type, self._zone)
        if await self._look(expected.name, expected.type) is None:
            return
        current = await self._expected(expected, expected)
        try:
            await self._change(expected, [{"Action": "DELETE", "ResourceRecordSet": current}])
        except Conflict:
            if await self._look(expected.name, expected.type) is not None:
                raise

    async def _expected(self, record: RecordSet, expected: RecordSet | None) -> Any | None:
        """The set as Route 53 has it, word for word as a DELETE must name it.

        Raises:
            Conflict: it is not `expected`.
        """
        raw = await self._look(record.name, record.type)
        shown = None if raw is None else _shown(raw)
        if shown != (None if expected is None else normal(expected)):
            now = "nothing" if shown is None else f"{', '.join(shown.values)} (TTL {shown.ttl_s} s)"
            raise Conflict(f"{record.type} {record.name} is {now}, which was not expected")
        return raw

    async def close(self) -> None:
        self._calls.close()
        self._client.close()

    async def _change(self, record: RecordSet, changes: Sequence[dict[str, Any]]) -> None:
        zone_id = await self._find_zone()
        call = partial(self._client.change_resource_record_sets, HostedZoneId=zone_id, ChangeBatch={"Changes": changes})
        # Once: after a lost answer a repetition would meet its own first attempt and call it somebody else's.
        await self._calls.once(f"{record.type} {record.name}", call, changes=True)

    async def _find_zone(self) -> str:
        """Looked up once: a zone's id does not change."""
        if not self._zone_id:
            call = partial(self._client.list_hosted_zones_by_name, DNSName=self._zone + ".", MaxItems="10")
            answer = await self._calls.repeated(self._zone, call)
            found = [row for row in answer["HostedZones"] if _plain_name(row["Name"]) == self._zone]
            found.sort(key=lambda row: bool(row.get("Config", {}).get("PrivateZone")))
            if not found:
                raise NotFound(f"no hosted zone {self._zone} in this account", hint="create it in Route 53 first")
            self._zone_id = str(found[0]["Id"]).rpartition("/")[2]
        return self._zone_id


def _plain_name(name: str) -> str:
    """Route 53 writes \\052 for an asterisk, and so on."""
    return re.sub(r"\\(\d{3})", lambda octal: chr(int(octal.group(1), 8)), name).lower().rstrip(".")


def _is_simple(raw: Any) -> bool:
    return "SetIdentifier" not in raw and "ResourceRecords" in raw


def _shown(raw: Any) -> RecordSet:
    """
    Raises:
        Invalid: a set with a routing policy or an alias, which this contract cannot hold.
    """
    if not _is_simple(raw):
        raise Invalid(
            f"{raw['Type']} {raw['Name']} has a routing policy or is an alias", hint="replace it by a simple set first"
        )
    values = tuple(row["Value"] for row in raw["ResourceRecords"])
    if raw["Type"] == "TXT":
        values = tuple(unquote_txt(value) for value in values)
    return normal(RecordSet(_plain_name(raw["Name"]), raw["Type"], int(raw["TTL"]), values))


def _raw(record: RecordSet) -> dict[str, Any]:
    values = [quote_txt(value) if record.type == "TXT" else value for value in record.values]
    return {
        "Name": record.name + ".",
        "Type": record.type,
        "TTL": record.ttl_s,
        "ResourceRecords": [{"Value": value} for value in values],
    }
