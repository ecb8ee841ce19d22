"""Cloud DNS through google-cloud-dns: one managed zone.

A change of Cloud DNS is a list of deletions and additions that is carried out whole or not at all; a deletion must
name exactly the record set that is there (412 otherwise, 404 when there is none), an addition a name that is free
(409). That is the compare-and-replace of the contract.

The SDK's connection is called by path: its own objects take neither a filter nor a time-out.

Least privileges (a custom role): dns.managedZones.list; dns.resourceRecordSets.list, .create, .delete;
dns.changes.create.
Source: Cloud DNS API v1 reference (managedZones.list, resourceRecordSets.list, changes.create).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any
from urllib.parse import quote

from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.dns import TYPES, Dns, RecordSet
from providers.base.errors import Conflict, Invalid, NotFound, OutcomeUnknown, YunheError
from providers.base.record_sets import check_name, check_record, check_zone, normal, quote_txt, unquote_txt
from providers.base.registry import AccountAddress
from providers.gcp.account import authorized_session, said, sign_in, status_of, translate

Rows = list[Mapping[str, Any]]

SETTINGS = StoreSettings(threads=4)

CHANGE_TRIES_MAX = 3
"""How often a change is sent whose answer was lost, each time after the zone was read."""

ROWS_MAX = 10_000
"""Record sets read of a zone: Cloud DNS's own limit (quota page: resource record sets per managed zone)."""


def open_dns(
    address: AccountAddress, zone: str, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None
) -> Dns:
    """Open the managed zone whose domain is `zone`; nothing is sent yet.

    Raises:
        Invalid: a malformed zone, unreadable or missing credentials, no project.
    """
    return GcpDns(address, check_zone(zone), settings or SETTINGS, clock=clock, rng=rng)


class GcpDns:
    """See `providers.base.dns.Dns`."""

    def __init__(self, address: AccountAddress, zone: str, settings: StoreSettings, *, clock: Clock, rng: Rng) -> None:
        self._signed = sign_in(address.credentials_file, address.endpoint)
        self._project = address.account or self._signed.project
        if not self._project:
            raise Invalid("no Google Cloud project is named", hint="set the account's `account` to the project's id")
        self._endpoint = address.endpoint
        self._zone = zone
        self._session = authorized_session(
            self._signed, own_endpoint=address.endpoint is not None, connections=settings.threads
        )
        self._timeout_s = (settings.connect_timeout_ms / 1000, settings.read_timeout_ms / 1000)
        self._calls = SdkCalls(f"dns {zone}", settings, _translate, clock=clock, rng=rng)
        self._managed_zone = ""

    @cached_property
    def _connection(self) -> Any:
        import google.cloud.dns as dns

        options = {"api_endpoint": self._endpoint} if self._endpoint else None
        client: Any = dns.Client(
            project=self._project, credentials=self._signed.credentials, _http=self._session, client_options=options
        )
        return client._connection

    async def get(self, name: str, type: str) -> RecordSet | None:
        check_name(name, type, self._zone)
        return await self._calls.repeated(name, partial(self._get, name, type))

    async def list(self) -> Sequence[RecordSet]:
        rows = await self._calls.repeated(self._zone, partial(self._rows, {}))
        found = [record for record in map(_record, rows) if record is not None]
        return sorted(found, key=lambda record: (record.name, record.type))

    async def replace(self, record: RecordSet, *, expected: RecordSet | None) -> None:
        check_record(record, self._zone)
        record = normal(record)
        if expected is not None:
            check_record(expected, self._zone)
            expected = normal(expected)
            if (expected.name, expected.type) != (record.name, record.type):
                raise Invalid(f"{expected.name} {expected.type} is replaced by the same name and type only")
        if record == expected:
            if await self.get(record.name, record.type) != expected:
                raise Conflict(f"{record.name} {record.type} is not what it was thought to be", hint="read it again")
            return
        await self._change(record, expected)

    async def delete(self, expected: RecordSet) -> None:
        check_record(expected, self._zone)
        expected = normal(expected)
        try:
            await self._change(None, expected)
        except Conflict:
            if await self.get(expected.name, expected.type) is not None:
                raise

    async def _change(self, record: RecordSet | None, expected: RecordSet | None) -> None:
        """Send the change. When its answer is lost, the zone says what became of it."""
        about = record or expected
        assert about is not None
        # Looked up beforehand, so that failing to find the zone is no change with an unknown outcome.
        await self._calls.repeated(self._zone, self._zone_name)
        for attempt in range(CHANGE_TRIES_MAX):
            try:
                await self._calls.once(about.name, partial(self._post, record, expected), changes=True)
                return
            except OutcomeUnknown:
                now = await self.get(about.name, about.type)
                if now == record:
                    return
                if now != expected:
                    raise Conflict(f"{about.name} {about.type} was changed by somebody else") from None
                if attempt == CHANGE_TRIES_MAX - 1:
                    raise

    def _post(self, record: RecordSet | None, expected: RecordSet | None) -> None:
        body: dict[str, Any] = {}
        if expected is not None:
            body["deletions"] = [_wire(expected)]
        if record is not None:
            body["additions"] = [_wire(record)]
        self._request("POST", f"/managedZones/{quote(self._zone_name())}/changes", data=body)

    def _get(self, name: str, type: str) -> RecordSet | None:
        rows = self._rows({"name": f"{name}.", "type": type})
        return next((record for record in map(_record, rows) if record is not None), None)

    def _rows(self, query: Mapping[str, str]) -> Rows:
        path = f"/managedZones/{quote(self._zone_name())}/rrsets"
        return self._paged(path, "rrsets", query)

    def _zone_name(self) -> str:
        """The managed zone's own name, looked up by its domain once."""
        if not self._managed_zone:
            rows = self._paged("/managedZones", "managedZones", {"dnsName": f"{self._zone}."})
            public = [row for row in rows if row.get("visibility", "public") == "public"]
            if not public:
                raise NotFound(
                    f"project {self._project} has no public managed zone for {self._zone}",
                    hint=f"`gcloud dns managed-zones create NAME --dns-name={self._zone}. --description=…`",
                )
            if len(public) > 1:
                names = ", ".join(sorted(str(row["name"]) for row in public))
                raise Invalid(
                    f"{self._zone} is the domain of several managed zones: {names}", hint="delete all but one"
                )
            self._managed_zone = str(public[0]["name"])
        return self._managed_zone

    def _paged(self, path: str, key: str, query: Mapping[str, str]) -> Rows:
        rows: Rows = []
        token = None
        while True:
            answer = self._request("GET", path, query_params={**query, **({"pageToken": token} if token else {})})
            rows += answer.get(key, ())
            token = answer.get("nextPageToken")
            if not token:
                return rows
            if len(rows) > ROWS_MAX:
                raise Invalid(f"more than {ROWS_MAX} rows at {path}")

    def _request(self, method: str, path: str, **more: Any) -> Mapping[str, Any]:
        answer = self._connection.api_request(
            method=method, path=f"/projects/{quote(self._project)}{path}", timeout=self._timeout_s, **more
        )
        return dict(answer)

    async def close(self) -> None:
        self._calls.close()
        self._session.close()


def _record(row: Mapping[str, Any]) -> RecordSet | None:
    """None for a type that is not ours, and for a routing policy's set, which has no plain values."""
    if row.get("type") not in TYPES or not row.get("rrdatas"):
        return None
    type = str(row["type"])
    values = tuple(unquote_txt(str(value)) if type == "TXT" else str(value) for value in row["rrdatas"])
    return normal(RecordSet(str(row["name"]), type, int(row.get("ttl", 0)), values))


def _wire(record: RecordSet) -> dict[str, Any]:
    return {
        "kind": "dns#resourceRecordSet",
        "name": f"{record.name}.",
        "type": record.type,
        "ttl": record.ttl_s,
        "rrdatas": [_value(record.type, value) for value in record.values],
    }


def _value(type: str, value: str) -> str:
    """As Cloud DNS writes it: names in values with the trailing dot, TXT quoted."""
    if type == "TXT":
        return quote_txt(value)
    return f"{value}." if type in ("CNAME", "SRV") and not value.endswith(".") else value


def _translate(error: Exception, subject: str, changes: bool) -> YunheError:
    status = status_of(error)
    if changes and status in (404, 409, 412):
        if status == 404 and "managedZone" in said(error):
            return NotFound(f"{subject}: {said(error)}", hint="the zone was deleted")
        return Conflict(f"{subject}: the zone holds something else: {said(error)}", hint="read it again")
    return translate(error, subject, changes)
