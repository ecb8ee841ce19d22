"""Azure's public DNS zones through azure-mgmt-dns: the real Dns, atomic by ETag.

Role actions: see `volumes.py`. The zone lives in the account's resource group. A record set that is an alias of an
Azure resource has no values of its own: it is shown as absent, and `replace` finds it there and is a `Conflict`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from providers.azure.arm import Account
from providers.azure.arm_errors import code_of
from providers.base.blocking import StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.dns import TYPES, Dns, RecordSet
from providers.base.errors import Conflict, Invalid, NotFound
from providers.base.registry import AccountAddress
from providers.base.waiting import WaitSettings

VALUES_MAX = 20
"""Records a set holds (Azure DNS limits)."""
TTL_S_MAX = 2_147_483_647
TXT_CHUNK = 255
"""Characters of one string of a TXT record (RFC 1035); a longer value is several."""

_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def open_dns(
    address: AccountAddress,
    zone: str,
    *,
    clock: Clock,
    rng: Rng,
    settings: StoreSettings | None = None,
    wait: WaitSettings | None = None,
) -> Dns:
    """Open the zone `zone` of the address's resource group; nothing is sent yet.

    Raises:
        Invalid: a malformed zone, no subscription or resource group, unreadable credentials.
    """
    name = zone.lower().rstrip(".")
    if not _NAME.fullmatch(name) or "." not in name or len(name) > 253:
        raise Invalid(f"{zone!r} is no DNS zone", hint="a domain such as kafka.example.com")
    return AzureDns(Account(address, settings, wait, clock=clock, rng=rng), name)


class AzureDns:
    """See `providers.base.dns.Dns`."""

    def __init__(self, account: Account, zone: str) -> None:
        self._account = account
        self._zone = zone

    async def get(self, name: str, type: str) -> RecordSet | None:
        row = await self._row(name, type)
        return None if row is None else self._record(row)

    async def list(self) -> Sequence[RecordSet]:
        rows = await self._call(self._zone, lambda sets: list(sets.list_by_dns_zone(self._account.group, self._zone)))
        records = (self._record(row) for row in rows)
        return sorted((r for r in records if r is not None), key=lambda record: (record.name, record.type))

    async def replace(self, record: RecordSet, *, expected: RecordSet | None) -> None:
        fields = _fields(record)
        row = await self._row(record.name, record.type)
        self._require(record, row, expected)
        condition = {"if_none_match": "*"} if row is None else {"if_match": row.etag}

        def put(sets: Any) -> None:
            from azure.mgmt.dns import models

            body = models.RecordSet(ttl=record.ttl_s, **fields)
            name = self._relative(record.name)
            sets.create_or_update(self._account.group, self._zone, name, record.type, body, **condition)

        await self._change(record, put)

    async def delete(self, expected: RecordSet) -> None:
        row = await self._row(expected.name, expected.type)
        if row is None:
            return
        self._require(expected, row, expected)
        name = self._relative(expected.name)

        def remove(sets: Any) -> None:
            sets.delete(self._account.group, self._zone, name, expected.type, if_match=row.etag)

        await self._change(expected, remove)

    async def _change(self, record: RecordSet, change: Callable[[Any], None]) -> None:
        """Once: a repetition would meet its own ETag."""
        try:
            await self._account.calls.once(record.name, lambda: change(self._sets()), changes=True)
        except Conflict as error:
            raise Conflict(f"{record.type} {record.name} was changed meanwhile", **error.fields) from error
        except NotFound as error:
            raise self._no_zone(error) from error

    def _require(self, record: RecordSet, row: Any, expected: RecordSet | None) -> None:
        if row is None and expected is None:
            return
        now = None if row is None else self._record(row)
        if now is None or expected is None or _canonical(now) != _canonical(expected):
            raise Conflict(
                f"{record.type} {record.name} is not what was expected",
                actual="an alias" if row is not None and now is None else now,
                expected=expected,
            )

    async def _row(self, name: str, type: str) -> Any:
        if type not in TYPES:
            raise Invalid(f"records of type {type!r} are not set here", hint=f"one of: {', '.join(TYPES)}")
        relative = self._relative(name)

        def get(sets: Any) -> Any:
            try:
                return sets.get(self._account.group, self._zone, relative, type)
            except Exception as error:
                # A missing zone is ParentResourceNotFound.
                if code_of(error) in ("NotFound", "ResourceNotFound"):
                    return None
                raise

        return await self._call(name, get)

    async def _call(self, subject: str, call: Callable[[Any], Any]) -> Any:
        try:
            return await self._account.calls.repeated(subject, partial(self._with_sets, call))
        except NotFound as error:
            raise self._no_zone(error) from error

    def _with_sets(self, call: Callable[[Any], Any]) -> Any:
        return call(self._sets())

    def _sets(self) -> Any:
        from azure.mgmt.dns import DnsManagementClient

        return self._account.client(DnsManagementClient).record_sets

    def _no_zone(self, error: NotFound) -> NotFound:
        hint = "`az network dns zone create` makes it; its name servers then go to the domain's registrar"
        return NotFound(f"no DNS zone {self._zone} in {self._account.group}", hint=hint, **error.fields)

    def _relative(self, name: str) -> str:
        """Azure's name inside the zone: @ for the zone itself."""
        plain = name.lower().rstrip(".")
        if not _NAME.fullmatch(plain) or len(plain) > 253:
            raise Invalid(f"{name!r} is no DNS name")
        if plain == self._zone:
            return "@"
        if not plain.endswith("." + self._zone):
            raise Invalid(f"{name} is not in zone {self._zone}")
        return plain[: -len(self._zone) - 1]

    def _record(self, row: Any) -> RecordSet | None:
        """None for types that are not ours and for aliases."""
        type_ = str(row.type).rpartition("/")[2]
        if type_ not in TYPES or row.ttl is None:
            return None
        values = _values(row, type_)
        if not values:
            return None
        name = self._zone if row.name == "@" else f"{row.name}.{self._zone}"
        return RecordSet(name.lower(), type_, int(row.ttl), tuple(sorted(values)))

    async def close(self) -> None:
        self._account.close()


def _values(row: Any, type_: str) -> list[str]:
    match type_:
        case "A":
            return [each.ipv4_address for each in row.a_records or ()]
        case "AAAA":
            return [each.ipv6_address for each in row.aaaa_records or ()]
        case "CNAME":
            return [row.cname_record.cname] if row.cname_record is not None and row.cname_record.cname else []
        case "TXT":
            return ["".join(each.value or ()) for each in row.txt_records or ()]
        case _:
            return [f"{each.priority} {each.weight} {each.port} {each.target}" for each in row.srv_records or ()]


def _fields(record: RecordSet) -> dict[str, Any]:
    """The SDK's arguments.

    Raises:
        Invalid: no values, too many, or one that does not fit the type; a TTL out of range.
    """
    from azure.mgmt.dns import models

    if not 1 <= len(record.values) <= (1 if record.type == "CNAME" else VALUES_MAX):
        raise Invalid(
            f"{record.type} {record.name} has {len(record.values)} values: one for CNAME, else 1 to {VALUES_MAX}"
        )
    if not 1 <= record.ttl_s <= TTL_S_MAX:
        raise Invalid(f"{record.name}: a TTL is 1 to {TTL_S_MAX} s, not {record.ttl_s}")
    try:
        match record.type:
            case "A":
                return {
                    "a_records": [models.ARecord(ipv4_address=str(ipaddress.IPv4Address(v))) for v in record.values]
                }
            case "AAAA":
                sixes = [str(ipaddress.IPv6Address(value)) for value in record.values]
                return {"aaaa_records": [models.AaaaRecord(ipv6_address=value) for value in sixes]}
            case "CNAME":
                return {"cname_record": models.CnameRecord(cname=_target(record.values[0]))}
            case "TXT":
                return {"txt_records": [models.TxtRecord(value=_chunks(value)) for value in record.values]}
            case "SRV":
                return {"srv_records": [_srv(value) for value in record.values]}
    except ValueError as error:
        raise Invalid(f"{record.type} {record.name}: {error}") from error
    raise Invalid(f"records of type {record.type!r} are not set here", hint=f"one of: {', '.join(TYPES)}")


def _target(value: str) -> str:
    if not _NAME.fullmatch(value.lower().rstrip(".")):
        raise ValueError(f"{value!r} is no host name")
    return value


def _chunks(value: str) -> list[str]:
    return [value[start : start + TXT_CHUNK] for start in range(0, len(value), TXT_CHUNK)] or [""]


def _srv(value: str) -> Any:
    from azure.mgmt.dns import models

    parts = value.split()
    if len(parts) != 4 or not all(part.isdigit() and int(part) < 65536 for part in parts[:3]):
        raise ValueError(f"{value!r} is not `priority weight port target`")
    priority, weight, port = (int(part) for part in parts[:3])
    return models.SrvRecord(priority=priority, weight=weight, port=port, target=_target(parts[3]))


def _canonical(record: RecordSet) -> tuple[int, list[str]]:
    """What decides whether two sets are the same: names without their dot, addresses in their short form."""
    values = record.values
    if record.type in ("CNAME", "SRV"):
        values = tuple(value.lower().rstrip(".") for value in values)
    elif record.type == "AAAA":
        values = tuple(str(ipaddress.ip_address(value)) for value in values)
    return record.ttl_s, sorted(values)
