"""Microsoft.Network/dnsZones over the lab's DNS core: zones and record sets, with ETags as the condition of a change.

Sources: azure-mgmt-dns 9.0.0 (paths, bodies); the Azure DNS REST reference (record sets: If-Match, If-None-Match). Its
errors come without the `error` envelope. Not here: aliases, metadata, deleting a zone, other types than below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from providers.base.errors import Conflict, Full, Invalid, NotFound
from providers.lab.control import ControlPlane
from providers.lab.control_azure import Place, Refused, check_version, json_body, page, reply
from providers.lab.wire import Reply, Request
from providers.lab.zones_dns import Action, Change, Records, Zone

VERSIONS = ("2016-04-01", "2018-05-01")
TTL_S_MAX = 2_147_483_647
VALUES_MAX = 20

TYPES = ("A", "AAAA", "CNAME", "TXT", "SRV")


class AzureDnsZones:
    """The DNS zones of one resource group."""

    def __init__(self, plane: ControlPlane, subscription: str, group: str) -> None:
        self._plane = plane
        self._dns = plane.dns
        self._root = f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/dnszones"

    def answer(self, request: Request, place: Place) -> Reply:
        """
        Raises:
            Refused: in all cases that are errors.
        """
        check_version(request, *VERSIONS, "dnsZones")
        match request.method, *place.parts:
            case "GET", "dnsZones":
                return reply(200, {"value": [self._zone(zone) for zone in self._dns.zones()]})
            case "GET", "dnsZones", zone:
                return reply(200, self._zone(self._find(zone, "dnsZones")))
            case "PUT", "dnsZones", zone:
                return self._create(zone)
            case "GET", "dnsZones", zone, "recordsets" | "all":
                return self._list(request, self._find(zone, "dnsZones"), None)
            case "GET", "dnsZones", zone, type_:
                return self._list(request, self._find(zone, f"dnsZones/{type_}"), type_.upper())
            case method, "dnsZones", zone, type_, name:
                return self._record(request, method, self._find(zone, f"dnsZones/{type_}"), type_.upper(), name)
        raise Refused(405, "MethodNotAllowed", f"{request.method} is not emulated here.")

    def _find(self, name: str, kind: str) -> Zone:
        for zone in self._dns.zones():
            if zone.name == name.lower():
                return zone
        if kind == "dnsZones":
            raise Refused(404, "ResourceNotFound", f"The Resource 'Microsoft.Network/dnszones/{name}' was not found.")
        raise Refused(
            404,
            "ParentResourceNotFound",
            f"Failed to perform the request on resource(s) of type '{kind}', because the parent resource "
            f"'{self._root}/{name}' could not be found.",
        )

    def _create(self, name: str) -> Reply:
        known = {zone.name for zone in self._dns.zones()}
        zone = self._dns.create_zone(name, f"Z{self._plane.rng.token()[:20].upper()}")
        return reply(200 if zone.name in known else 201, self._zone(zone))

    def _zone(self, zone: Zone) -> dict[str, Any]:
        return {
            "id": f"{self._root}/{zone.name}",
            "name": zone.name,
            "type": "Microsoft.Network/dnszones",
            "location": "global",
            "etag": _etag(zone.id, zone.version),
            "properties": {
                "zoneType": "Public",
                "maxNumberOfRecordSets": 10_000,
                # Its own NS and SOA sets count.
                "numberOfRecordSets": len(self._dns.list(zone.id)) + 2,
                "nameServers": [f"ns{number}-01.azure-dns.example." for number in (1, 2)],
            },
        }

    def _list(self, request: Request, zone: Zone, type_: str | None) -> Reply:
        rows = [self._shown(zone, records) for records in self._dns.list(zone.id) if type_ in (None, records.type)]
        if type_ is None:
            rows += self._own(zone)
        return page(self._plane, request, rows)

    def _own(self, zone: Zone) -> list[dict[str, Any]]:
        """The sets that every zone has."""
        servers = {"NSRecords": [{"nsdname": f"ns{number}-01.azure-dns.example."} for number in (1, 2)]}
        start = {"SOARecord": {"host": "ns1-01.azure-dns.example.", "serialNumber": zone.version}}
        common = {"name": "@", "etag": _etag(zone.id, 0)}
        return [
            {
                **common,
                "id": f"{self._root}/{zone.name}/{kind}/@",
                "type": f"Microsoft.Network/dnszones/{kind}",
                "properties": {"fqdn": f"{zone.name}.", "TTL": ttl, "provisioningState": "Succeeded", **values},
            }
            for kind, ttl, values in (("NS", 172_800, servers), ("SOA", 3600, start))
        ]

    def _record(self, request: Request, method: str, zone: Zone, type_: str, name: str) -> Reply:
        if type_ not in TYPES:
            raise Refused(400, "BadRequest", f"records of type {type_} are not emulated", bare=True)
        full = zone.name if name == "@" else f"{name}.{zone.name}"
        now = self._dns.get(zone.id, full, type_)
        match method:
            case "GET":
                if now is None:
                    raise Refused(404, "NotFound", f"The resource record '{name}' does not exist.", bare=True)
                return reply(200, self._shown(zone, now))
            case "PUT":
                records = _records(full.lower(), type_, json_body(request).get("properties") or {})
                version = self._condition(request, zone, now)
                self._change(zone, Change(Action.UPSERT, records, version=version))
                made = self._dns.get(zone.id, full, type_)
                if made is None:
                    raise Refused(409, "Conflict", "The record set is gone again.", bare=True)
                return reply(201 if now is None else 200, self._shown(zone, made))
            case "DELETE":
                if now is None:
                    return reply(204, None)
                self._change(zone, Change(Action.REMOVE, now, version=self._condition(request, zone, now)))
                return reply(200, None)
        raise Refused(405, "MethodNotAllowed", f"{method} is not supported here.")

    def _condition(self, request: Request, zone: Zone, now: Records | None) -> int | None:
        """The version that the change is for; None: any. What does not hold already is refused here, what changes from
        here on by the core."""
        match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
        version = 0 if now is None else now.version
        if none_match == "*":
            if now is not None:
                raise _unmet("*", "If-None-Match", _etag(zone.id, version))
            return 0
        if match is None:
            return None
        if now is None or match not in ("*", _etag(zone.id, version)):
            raise _unmet(match, "If-Match", _etag(zone.id, version) if now else "")
        return version if match != "*" else None

    def _change(self, zone: Zone, change: Change) -> None:
        try:
            self._dns.change(zone.id, [change])
        except Conflict as error:
            raise Refused(412, "PreconditionFailed", f"The condition was not satisfied: {error}.", bare=True) from error
        except Invalid as error:
            raise Refused(400, "BadRequest", error.message, bare=True) from error
        except (NotFound, Full) as error:
            raise Refused(409, "Conflict", error.message, bare=True) from error

    def _shown(self, zone: Zone, records: Records) -> dict[str, Any]:
        name = "@" if records.name == zone.name else records.name[: -len(zone.name) - 1]
        return {
            "id": f"{self._root}/{zone.name}/{records.type}/{name}",
            "name": name,
            "type": f"Microsoft.Network/dnszones/{records.type}",
            "etag": _etag(zone.id, records.version),
            "properties": {
                "fqdn": f"{records.name}.",
                "TTL": records.ttl_s,
                "provisioningState": "Succeeded",
                **_fields(records),
            },
        }


def _unmet(condition: str, header: str, now: str) -> Refused:
    said = f"The condition '{condition}' in the {header} header was not satisfied. The current was '{now}'."
    return Refused(412, "PreconditionFailed", said, bare=True)


def _etag(zone: str, version: int) -> str:
    return hashlib.sha256(f"{zone} {version}".encode()).hexdigest()[:32]


def _fields(records: Records) -> dict[str, Any]:
    values = records.values
    match records.type:
        case "A":
            return {"ARecords": [{"ipv4Address": value} for value in values]}
        case "AAAA":
            return {"AAAARecords": [{"ipv6Address": value} for value in values]}
        case "CNAME":
            return {"CNAMERecord": {"cname": values[0]}}
        case "TXT":
            return {"TXTRecords": [{"value": [v[at : at + 255] for at in range(0, len(v), 255)]} for v in values]}
    rows = [value.split() for value in values]
    return {
        "SRVRecords": [
            {"priority": int(row[0]), "weight": int(row[1]), "port": int(row[2]), "target": row[3]} for row in rows
        ]
    }


def _records(name: str, type_: str, properties: Mapping[str, Any]) -> Records:
    ttl = properties.get("TTL")
    if not isinstance(ttl, int) or not 1 <= ttl <= TTL_S_MAX:
        raise Refused(400, "BadRequest", f"The value '{ttl}' of TTL is invalid.", bare=True)
    values = _values(type_, properties)
    if not 1 <= len(values) <= VALUES_MAX:
        raise Refused(400, "BadRequest", f"A record set has 1 to {VALUES_MAX} records.", bare=True)
    if len(set(values)) != len(values):
        raise Refused(400, "BadRequest", "A record set holds no record twice.", bare=True)
    return Records(name, type_, ttl, tuple(values))


def _values(type_: str, properties: Mapping[str, Any]) -> Sequence[str]:
    match type_:
        case "A":
            return [str(row["ipv4Address"]) for row in properties.get("ARecords") or ()]
        case "AAAA":
            return [str(row["ipv6Address"]) for row in properties.get("AAAARecords") or ()]
        case "CNAME":
            return [str(row["cname"]) for row in [properties.get("CNAMERecord")] if row]
        case "TXT":
            texts = [row["value"] for row in properties.get("TXTRecords") or ()]
            if any(len(part) > 255 for text in texts for part in text):
                raise Refused(400, "BadRequest", "A string of a TXT record has at most 255 characters.", bare=True)
            return ["".join(text) for text in texts]
    rows = properties.get("SRVRecords") or ()
    return [f"{row['priority']} {row['weight']} {row['port']} {row['target']}" for row in rows]
