"""Cloud DNS v1 over the lab's zones: managedZones, rrsets and changes.

Record sets are kept as they came (`rrdatas`), names without the trailing dot. Each zone shows the NS and SOA records
that a real one is born with; they cannot be changed.
Source: Cloud DNS API v1 reference.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from providers.base.errors import Conflict, Full, Invalid, NotFound
from providers.lab import zones_dns
from providers.lab.control import ControlPlane
from providers.lab.control_gcp_wire import Refusal, number, page, timestamp
from providers.lab.wire import Request
from providers.lab.zones_dns import Action, Change, Records, Zone

CHANGES_MAX = 1_000
"""Changes that can still be read; the oldest are forgotten, all of them at a restart."""
CHANGE_ROWS_MAX = 1_000
"""Additions, and deletions, of one change (quota page)."""
BIRTH_TTL_S = 21_600
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class DnsApi:
    """Answers below `/dns/v1/projects/<project>/`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._changes: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def verb(self, method: str, parts: Sequence[str]) -> str:
        match method, parts:
            case "GET", ["managedZones"]:
                return "managedZones.list"
            case "POST", ["managedZones"]:
                return "managedZones.create"
            case _, ["managedZones", _]:
                return f"managedZones.{method.lower()}"
            case "GET", ["managedZones", _, "rrsets"]:
                return "resourceRecordSets.list"
            case "POST", ["managedZones", _, "changes"]:
                return "changes.create"
            case "GET", ["managedZones", _, "changes", *rest]:
                return "changes.get" if rest else "changes.list"
        return ""

    def answer(self, request: Request, project: str, parts: Sequence[str]) -> Any:
        """
        Raises:
            Refusal
        """
        match request.method, parts:
            case "GET", ["managedZones"]:
                return self._list_zones(request)
            case "POST", ["managedZones"]:
                return self._create_zone(json.loads(request.body))
            case "GET", ["managedZones", name]:
                return _zone_plain(self._zone(name))
            case "GET", ["managedZones", name, "rrsets"]:
                return self._list_records(request, self._zone(name))
            case "POST", ["managedZones", name, "changes"]:
                return self._change(self._zone(name), json.loads(request.body))
            case "GET", ["managedZones", name, "changes"]:
                zone = self._zone(name)
                rows, more = page(
                    [row for key, row in self._changes.items() if key.startswith(f"{zone.id}/")],
                    request,
                    self._plane.page_max,
                )
                return {"kind": "dns#changesListResponse", "changes": list(rows), **more}
            case "GET", ["managedZones", name, "changes", change]:
                found = self._changes.get(f"{self._zone(name).id}/{change}")
                if found is None:
                    raise Refusal(
                        404, "notFound", f"The 'parameters.changeId' resource named '{change}' does not exist."
                    )
                return found
        raise Refusal(501, "notImplemented", f"{request.method} {request.path} is not emulated")

    # ---- zones

    def _zone(self, name: str) -> Zone:
        for zone in self._plane.dns.zones():
            if name in (_zone_name(zone), number(zone.id)):
                return zone
        raise Refusal(404, "notFound", f"The 'parameters.managedZone' resource named '{name}' does not exist.")

    def _list_zones(self, request: Request) -> dict[str, Any]:
        wanted = request.query.get("dnsName")
        zones = [zone for zone in self._plane.dns.zones() if wanted in (None, f"{zone.name}.")]
        rows, more = page(zones, request, self._plane.page_max)
        return {"kind": "dns#managedZonesListResponse", "managedZones": [_zone_plain(zone) for zone in rows], **more}

    def _create_zone(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name, domain = str(asked.get("name", "")), str(asked.get("dnsName", ""))
        if NAME.fullmatch(name) is None or not domain.endswith("."):
            raise Refusal(400, "invalid", "Invalid value for 'entity.managedZone'")
        if any(_zone_name(zone) == name for zone in self._plane.dns.zones()):
            raise Refusal(409, "alreadyExists", f"The resource 'entity.managedZone' named '{name}' already exists")
        made = self._plane.dns.create_zone(domain, name)
        if made.id != name:
            # The core has one zone a domain; Google allows several, served by different name servers.
            raise Refusal(400, "managedZoneDnsNameNotAvailable", f"'{domain}' is taken by '{_zone_name(made)}'")
        return _zone_plain(made)

    # ---- record sets

    def _list_records(self, request: Request, zone: Zone) -> dict[str, Any]:
        name, type = request.query.get("name"), request.query.get("type")
        if type is not None and name is None:
            raise Refusal(400, "required", "The 'parameters.name' parameter is required with 'parameters.type'")
        rows = [*_born_with(zone), *map(_plain, self._plane.dns.list(zone.id))]
        rows = [row for row in rows if name in (None, row["name"]) and type in (None, row["type"])]
        rows.sort(key=lambda row: (row["name"], row["type"]))
        found, more = page(rows, request, self._plane.page_max)
        return {"kind": "dns#resourceRecordSetsListResponse", "rrsets": list(found), **more}

    def _change(self, zone: Zone, asked: Mapping[str, Any]) -> dict[str, Any]:
        batch: list[Change] = []
        places: list[str] = []
        for field, action in (("deletions", Action.DELETE), ("additions", Action.CREATE)):
            rows = asked.get(field) or []
            if len(rows) > CHANGE_ROWS_MAX:
                raise Refusal(403, "quotaExceeded", f"more than {CHANGE_ROWS_MAX} {field} in one change")
            for at, row in enumerate(rows):
                place = f"entity.change.{field}[{at}]"
                batch.append(Change(action, _records(row, zone, place)))
                places.append(f"'{place}' resource named '{row['name']} ({row['type']})'")
        if not batch:
            raise Refusal(400, "required", "The 'entity.change' parameter is required but was missing.")
        try:
            after = self._plane.dns.change(zone.id, batch)
        except Conflict as error:
            raise _refusal(error, places[error.fields["index"]]) from error
        except Invalid as error:
            raise Refusal(400, "invalid", f"Invalid value for {places[error.fields['index']]}: {error}") from error
        except Full as error:
            raise Refusal(403, "quotaExceeded", str(error)) from error
        except NotFound as error:
            raise Refusal(404, "notFound", str(error)) from error
        change = {
            "kind": "dns#change",
            "id": str(after.version),
            "startTime": timestamp(self._plane.clock.wall_ms()),
            "status": "done",
            **{field: asked[field] for field in ("additions", "deletions") if asked.get(field)},
        }
        self._changes[f"{zone.id}/{after.version}"] = change
        while len(self._changes) > CHANGES_MAX:
            self._changes.popitem(last=False)
        return change


def _refusal(error: Conflict, place: str) -> Refusal:
    match error.fields["code"]:
        case zones_dns.EXISTS:
            return Refusal(409, "alreadyExists", f"The {place} already exists")
        case zones_dns.NO_SUCH_RECORD:
            return Refusal(404, "notFound", f"The {place} does not exist.")
    return Refusal(412, "conditionNotMet", f"Precondition not met for {place}")


def _records(row: Mapping[str, Any], zone: Zone, place: str) -> Records:
    try:
        name, type, ttl, values = str(row["name"]), str(row["type"]), int(row["ttl"]), tuple(map(str, row["rrdatas"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(400, "required", f"'{place}' lacks or has a bad {error}") from error
    if not name.endswith(".") or not values or len(set(values)) != len(values) or ttl < 0:
        raise Refusal(400, "invalid", f"Invalid value for '{place}'")
    if zones_dns.plain_name(name) == zone.name and type in ("NS", "SOA"):
        raise Refusal(400, "invalidZoneApex", f"'{place}': the zone's own {type} records stay as they are")
    return Records(zones_dns.plain_name(name), type, ttl, values)


def _plain(records: Records) -> dict[str, Any]:
    return {
        "kind": "dns#resourceRecordSet",
        "name": f"{records.name}.",
        "type": records.type,
        "ttl": records.ttl_s,
        "rrdatas": list(records.values),
        "signatureRrdatas": [],
    }


def _born_with(zone: Zone) -> list[dict[str, Any]]:
    servers = tuple(f"ns-cloud-a{at}.googledomains.com." for at in range(1, 5))
    start = f"{servers[0]} cloud-dns-hostmaster.google.com. 1 21600 3600 259200 300"
    return [
        _plain(Records(zone.name, "NS", BIRTH_TTL_S, servers)),
        _plain(Records(zone.name, "SOA", BIRTH_TTL_S, (start,))),
    ]


def _zone_name(zone: Zone) -> str:
    return zone.id.lower()


def _zone_plain(zone: Zone) -> dict[str, Any]:
    return {
        "kind": "dns#managedZone",
        "id": number(zone.id),
        "name": _zone_name(zone),
        "dnsName": f"{zone.name}.",
        "description": "",
        "visibility": "public",
        "nameServers": _born_with(zone)[0]["rrdatas"],
    }
