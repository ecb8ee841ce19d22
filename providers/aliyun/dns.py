"""Alibaba Cloud DNS through alibabacloud-alidns20150109: see `providers.base.dns.Dns`.

A record set is so many records with a value each, changed one at a time: there is no conditional call and no batch. So
what is expected is checked just before; then records that go get the values that come (UpdateDomainRecord, in place),
the rest is added, and only then is anything deleted: at no moment is the name without records. Two writers at once can
mix their values; each sees it at its next read. Only enabled records of the default line are looked at: records of
other lines (by network or place) are somebody's own policy and stay.

RAM actions: alidns:DescribeDomainRecords, alidns:AddDomainRecord, alidns:UpdateDomainRecord, alidns:DeleteDomainRecord.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from providers.aliyun.control import SETTINGS, LazyClient, check_account, code_of, open_calls, sdk_config
from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.dns import TYPES, Dns, RecordSet
from providers.base.errors import Conflict, Invalid, OutcomeUnknown, Unavailable
from providers.base.registry import AccountAddress

PAGE_MAX = 500
"""Records a DescribeDomainRecords page holds (API reference)."""

PAGES_MAX = 200
"""Pages a listing reads: 100,000 records are more than any edition holds in a domain."""

LOST_MAX = 4
"""Rounds of a change whose answers get lost."""

TXT_MAX = 512
"""Characters of a TXT value (record type page)."""

TTL_S = (1, 86_400)
"""The dearest edition's range; what an edition does not take, the cloud refuses (the free one begins at 600)."""

Row = Any
"""A record as the SDK shows it."""
Rows = list[Row]
NamedRows = list[tuple[str, Row]]

_LINE = "default"
_LABEL = r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
_SRV = re.compile(rf"\d+ \d+ \d+ {_DOMAIN.pattern}")
_NAME = re.compile(rf"(?:\*\.|@\.)?{_LABEL}(?:\.{_LABEL})*")


def open_dns(address: AccountAddress, zone: str, *, clock: Clock, rng: Rng, settings: StoreSettings = SETTINGS) -> Dns:
    """See `providers.base.registry.open_dns`.

    Raises:
        Invalid: a malformed zone, unreadable credentials.
    """
    zone = zone.lower().rstrip(".")
    if _DOMAIN.fullmatch(zone) is None:
        raise Invalid(f"{zone!r} is no domain name", field="zone")
    secrets = check_account(address)

    def make() -> Any:
        from alibabacloud_alidns20150109.client import Client

        return Client(sdk_config(address, secrets, settings))

    return AliDns(zone, LazyClient(make), open_calls(f"alidns {zone}", settings, clock=clock, rng=rng))


class AliDns:
    """One domain. See the module."""

    def __init__(self, zone: str, client: LazyClient, calls: SdkCalls) -> None:
        self._zone = zone
        self._client = client
        self._calls = calls

    async def get(self, name: str, type: str) -> RecordSet | None:
        return _record_set(await self._records(name, type))

    async def list(self) -> Sequence[RecordSet]:
        rows = [row for row in await self._rows(None, None) if row.type in TYPES and _served(row)]
        rows.sort(key=lambda row: (self._name(row), row.type))
        groups = groupby(rows, key=lambda row: (self._name(row), row.type))
        found = (_record_set([(name, row) for row in some]) for (name, _), some in groups)
        return [record for record in found if record is not None]

    async def replace(self, record: RecordSet, *, expected: RecordSet | None) -> None:
        self._check(record)
        rows = await self._records(record.name, record.type)
        if _record_set(rows) != (None if expected is None else _normal(expected)):
            raise _conflict(record.name, record.type, rows)
        ours = {_written(record.type, value) for value in (*record.values, *(expected.values if expected else ()))}
        for _ in range(LOST_MAX):
            try:
                for step in self._steps([row for _, row in rows], record):
                    await self._calls.once(f"{record.name} {record.type}", step, changes=True)
                return
            except OutcomeUnknown as error:
                lost = error
            # What is there now tells how far it came; a step that was lost may be among it.
            rows = await self._records(record.name, record.type)
            if not {row.value for _, row in rows} <= ours:
                raise _conflict(record.name, record.type, rows)
        raise lost

    def _steps(self, rows: Rows, record: RecordSet) -> Iterator[Callable[[], None]]:
        """The calls that make `rows` into `record`, in the order that never leaves the name without records."""
        values = [_written(record.type, value) for value in record.values]
        kept = [row for row in rows if row.value in values]
        spare = [row for row in rows if row.value not in values]
        missing = [value for value in values if value not in {row.value for row in kept}]
        for row in kept:
            if row.ttl != record.ttl_s:
                yield partial(self._update, row.record_id, record, row.value)
        for row, value in zip(spare, missing, strict=False):
            yield partial(self._update, row.record_id, record, value)
        for value in missing[len(spare) :]:
            yield partial(self._add, record, value)
        for row in spare[len(missing) :]:
            yield partial(self._remove, row.record_id)

    async def delete(self, expected: RecordSet) -> None:
        rows = await self._records(expected.name, expected.type)
        if not rows:
            return
        if _record_set(rows) != _normal(expected):
            raise _conflict(expected.name, expected.type, rows)
        for _, row in rows:
            call = partial(self._remove, row.record_id)
            await self._calls.repeated(f"{expected.name} {expected.type}", call, changes=True)

    async def close(self) -> None:
        self._calls.close()

    # ---- reading

    async def _records(self, name: str, type: str) -> NamedRows:
        """The records of a set, each with its full name."""
        if type not in TYPES:
            raise Invalid(f"{type!r} is no type that is set here", hint=f"one of: {', '.join(TYPES)}", field="type")
        rr = self._rr(name)
        found = await self._rows(rr, type)
        return [(name, row) for row in found if row.rr.lower() == rr and row.type == type and _served(row)]

    async def _rows(self, rr: str | None, type: str | None) -> Rows:
        found: Rows = []
        for page in range(1, PAGES_MAX + 1):
            body = await self._calls.repeated(f"records of {self._zone}", partial(self._page, rr, type, page))
            rows = body.domain_records.record if body.domain_records else []
            found.extend(rows)
            if not rows or len(found) >= body.total_count:
                return found
        raise Unavailable(f"the records of {self._zone} did not end within {PAGES_MAX} pages")

    def _page(self, rr: str | None, type: str | None, page: int) -> Any:
        from alibabacloud_alidns20150109.models import DescribeDomainRecordsRequest

        request = DescribeDomainRecordsRequest(domain_name=self._zone, page_number=page, page_size=PAGE_MAX, lang="en")
        if rr is not None:
            request.search_mode = "COMBINATION"  # exact matches only; ADVANCED and LIKE find parts of names
            request.rrkey_word = rr
            request.type = type
        return self._client().describe_domain_records(request).body

    # ---- changing

    def _update(self, record_id: str, record: RecordSet, value: str) -> None:
        from alibabacloud_alidns20150109.models import UpdateDomainRecordRequest

        request = UpdateDomainRecordRequest(
            record_id=record_id,
            rr=self._rr(record.name),
            type=record.type,
            value=value,
            ttl=record.ttl_s,
            line=_LINE,
            lang="en",
        )
        self._client().update_domain_record(request)

    def _add(self, record: RecordSet, value: str) -> None:
        from alibabacloud_alidns20150109.models import AddDomainRecordRequest

        request = AddDomainRecordRequest(
            domain_name=self._zone,
            rr=self._rr(record.name),
            type=record.type,
            value=value,
            ttl=record.ttl_s,
            line=_LINE,
            lang="en",
        )
        self._client().add_domain_record(request)

    def _remove(self, record_id: str) -> None:
        from alibabacloud_alidns20150109.models import DeleteDomainRecordRequest

        try:
            self._client().delete_domain_record(DeleteDomainRecordRequest(record_id=record_id, lang="en"))
        except Exception as error:
            if code_of(error) != "DomainRecordNotBelongToUser":
                raise  # otherwise it is gone already, perhaps by the first of two tries

    # ---- names and checks

    def _rr(self, name: str) -> str:
        """The host part that the API wants: `@` for the domain itself."""
        name = name.lower()
        if name == self._zone:
            return "@"
        if not name.endswith(f".{self._zone}") or _NAME.fullmatch(name) is None or len(name) > 253:
            raise Invalid(f"{name!r} is no name in {self._zone}", field="name")
        return name.removesuffix(f".{self._zone}")

    def _name(self, row: Any) -> str:
        return self._zone if row.rr == "@" else f"{row.rr.lower()}.{self._zone}"

    def _check(self, record: RecordSet) -> None:
        self._rr(record.name)
        if not record.values:
            raise Invalid(f"{record.name} {record.type} would be empty", hint="use delete", field="values")
        if len(set(record.values)) != len(record.values):
            raise Invalid(f"{record.name} {record.type} has a value twice", field="values")
        if record.type == "CNAME" and len(record.values) != 1:
            raise Invalid(f"{record.name} has {len(record.values)} CNAMEs; a name has one", field="values")
        for value in record.values:
            _check_value(record.type, value)
        if not TTL_S[0] <= record.ttl_s <= TTL_S[1]:
            raise Invalid(f"a TTL is {TTL_S[0]} to {TTL_S[1]} s, not {record.ttl_s}", field="ttl_s")


def _check_value(type: str, value: str) -> None:
    """What the cloud would refuse, or take for something else."""
    host = value.lower().rstrip(".")
    if type in ("A", "AAAA"):
        try:
            fits = ipaddress.ip_address(value).version == (4 if type == "A" else 6)
        except ValueError:
            fits = False
    elif type == "CNAME":
        fits = _DOMAIN.fullmatch(host) is not None
    elif type == "SRV":
        fits = _SRV.fullmatch(host) is not None
    else:
        fits = 0 < len(value) <= TXT_MAX
    if not fits:
        raise Invalid(f"{value!r} is no value of type {type}", field="values")


def _served(row: Any) -> bool:
    return str(row.status).upper() != "DISABLE" and row.line in (None, "", _LINE)


def _written(type: str, value: str) -> str:
    """As the API keeps it: host names without the final dot."""
    return value.rstrip(".") if type in ("CNAME", "SRV") else value


def _normal(record: RecordSet) -> RecordSet:
    values = tuple(sorted(_written(record.type, value) for value in record.values))
    return RecordSet(record.name.lower(), record.type, record.ttl_s, values)


def _record_set(rows: NamedRows) -> RecordSet | None:
    if not rows:
        return None
    name, first = rows[0]
    # Each record has a TTL of its own; a set that was changed half-way shows the least.
    return RecordSet(
        name.lower(), first.type, min(int(row.ttl) for _, row in rows), tuple(sorted(row.value for _, row in rows))
    )


def _conflict(name: str, type: str, rows: NamedRows) -> Conflict:
    found = _record_set(rows)
    shown = "no record" if found is None else f"{', '.join(found.values)} (TTL {found.ttl_s})"
    return Conflict(f"{name} {type} is {shown}", hint="read it again and decide again", actual=found)
