"""Route 53's REST protocol over the DNS core: hosted zones by name, record sets, and change batches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from xml.etree import ElementTree

from providers.base.errors import Conflict, Full, Invalid, NotFound
from providers.lab import zones_dns as codes
from providers.lab.control import ControlPlane
from providers.lab.wire import Reply, Request, element, local, xml
from providers.lab.zones_dns import Action, Change, Records, Zone

_NAMESPACE = "https://route53.amazonaws.com/doc/2013-04-01/"

_PATH = re.compile(r"/2013-04-01/(hostedzonesbyname|hostedzone|change)(?:/([A-Za-z0-9]+))?(?:/(rrset))?/?")

CHANGES_MAX = 1000
"""ResourceRecord elements in one batch (Route 53 quotas)."""

_ACTIONS = {"CREATE": Action.CREATE, "DELETE": Action.DELETE, "UPSERT": Action.UPSERT}
_TYPES = {"A", "AAAA", "CAA", "CNAME", "MX", "NS", "PTR", "SOA", "SPF", "SRV", "TXT"}


class Route53:
    """The calls, by path."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._dns = plane.dns

    def answer(self, request: Request) -> Reply:
        try:
            match verb(request):
                case "ListHostedZonesByName":
                    return self._zones_by_name(request.query)
                case "ListHostedZones":
                    zones = element("HostedZones", *(self._zone(zone) for zone in self._dns.zones()))
                    return _answer("ListHostedZonesResponse", zones, ("IsTruncated", "false"), ("MaxItems", "100"))
                case "GetHostedZone":
                    return _answer("GetHostedZoneResponse", self._zone(self._dns.zone(_zone_id(request))))
                case "ListResourceRecordSets":
                    return self._list(_zone_id(request), request.query)
                case "ChangeResourceRecordSets":
                    return self._change(_zone_id(request), request.body)
                case "GetChange":
                    return _answer("GetChangeResponse", self._change_info())
            return error(400, "InvalidInput", f"{request.method} {request.raw_path} is not emulated")
        except NotFound as missing:
            return error(404, "NoSuchHostedZone", f"No hosted zone found with ID: {missing.fields.get('zone')}")
        except Conflict as refused:
            which = f"[name='{refused.fields.get('name')}.', type='{refused.fields.get('type')}']"
            said = {
                codes.EXISTS: f"Tried to create resource record set {which} but it already exists",
                codes.NO_SUCH_RECORD: f"Tried to delete resource record set {which} but it was not found",
                codes.DIFFERS: f"Tried to delete resource record set {which} but the values provided do not match",
            }
            return error(400, "InvalidChangeBatch", f"[{said.get(str(refused.fields.get('code')), refused.message)}]")
        except Invalid as refused:
            return error(400, "InvalidChangeBatch", f"[{refused.message}]")
        except Full as refused:
            return error(400, "LimitsExceeded", refused.message)

    def _zones_by_name(self, query: Mapping[str, str]) -> Reply:
        first = codes.plain_name(query.get("dnsname", ""))
        limit = min(int(query.get("maxitems", "100")), self._plane.page_max)
        found = [zone for zone in self._dns.zones() if _order(zone.name) >= _order(first)]
        found.sort(key=lambda zone: _order(zone.name))
        rest: list[tuple[str, object]] = [
            ("IsTruncated", "true" if len(found) > limit else "false"),
            ("MaxItems", limit),
        ]
        if len(found) > limit:
            rest += [("NextDNSName", found[limit].name + "."), ("NextHostedZoneId", found[limit].id)]
        zones = element("HostedZones", *(self._zone(zone) for zone in found[:limit]))
        return _answer("ListHostedZonesByNameResponse", zones, *rest)

    def _list(self, zone: str, query: Mapping[str, str]) -> Reply:
        limit = min(int(query.get("maxitems", "300")), self._plane.page_max)
        start = (_order(codes.plain_name(query.get("name", ""))), query.get("type", ""))
        rows = sorted(self._dns.list(zone), key=lambda row: (_order(row.name), row.type))
        if query.get("name"):
            rows = [row for row in rows if (_order(row.name), row.type) >= start]
        rest: list[tuple[str, object]] = [
            ("IsTruncated", "true" if len(rows) > limit else "false"),
            ("MaxItems", limit),
        ]
        if len(rows) > limit:
            rest += [("NextRecordName", rows[limit].name + "."), ("NextRecordType", rows[limit].type)]
        sets = element("ResourceRecordSets", *(_record_set(row) for row in rows[:limit]))
        return _answer("ListResourceRecordSetsResponse", sets, *rest)

    def _change(self, zone: str, body: bytes) -> Reply:
        root = ElementTree.fromstring(body)
        batch = [_change_of(node) for node in root.iter() if local(node.tag) == "Change"]
        if not batch or len(batch) > CHANGES_MAX:
            raise Invalid(f"a batch has 1 to {CHANGES_MAX} changes")
        self._dns.change(zone, batch)
        return _answer("ChangeResourceRecordSetsResponse", self._change_info())

    def _change_info(self) -> ElementTree.Element:
        now = datetime.fromtimestamp(self._plane.clock.wall_ms() / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return element("ChangeInfo", ("Id", "/change/C1"), ("Status", "INSYNC"), ("SubmittedAt", now))

    def _zone(self, zone: Zone) -> ElementTree.Element:
        return element(
            "HostedZone",
            ("Id", f"/hostedzone/{zone.id}"),
            ("Name", zone.name + "."),
            ("CallerReference", zone.id),
            element("Config", ("PrivateZone", "false")),
            ("ResourceRecordSetCount", len(self._dns.list(zone.id))),
        )


def error(status: int, code: str, message: str) -> Reply:
    """In Route 53's shape."""
    refusal = element("Error", ("Type", "Sender" if status < 500 else "Receiver"), ("Code", code), ("Message", message))
    document = element("ErrorResponse", refusal, ("RequestId", "0"), xmlns=_NAMESPACE)
    return Reply(status, {"Content-Type": "text/xml"}, xml(document))


def verb(request: Request) -> str:
    """The operation's name in the API reference."""
    found = _PATH.fullmatch(request.raw_path)
    match (request.method, *(found.groups() if found else ("", "", ""))):
        case "GET", "hostedzonesbyname", None, None:
            return "ListHostedZonesByName"
        case "GET", "hostedzone", None, None:
            return "ListHostedZones"
        case "GET", "hostedzone", _, None:
            return "GetHostedZone"
        case "GET", "hostedzone", _, "rrset":
            return "ListResourceRecordSets"
        case "POST", "hostedzone", _, "rrset":
            return "ChangeResourceRecordSets"
        case "GET", "change", _, None:
            return "GetChange"
    return ""


def _zone_id(request: Request) -> str:
    found = _PATH.fullmatch(request.raw_path)
    return (found and found.group(2)) or ""


def _answer(tag: str, *children: ElementTree.Element | tuple[str, object]) -> Reply:
    return Reply(200, {"Content-Type": "text/xml"}, xml(element(tag, *children, xmlns=_NAMESPACE)))


def _order(name: str) -> list[str]:
    """Route 53 sorts by labels, the last first (API reference, ListResourceRecordSets)."""
    return name.split(".")[::-1] if name else []


def _record_set(row: Records) -> ElementTree.Element:
    values = element("ResourceRecords", *(element("ResourceRecord", ("Value", value)) for value in row.values))
    name = row.name.replace("*", "\\052") + "."  # as Route 53 writes what is no letter, digit, hyphen or underscore
    return element("ResourceRecordSet", ("Name", name), ("Type", row.type), ("TTL", row.ttl_s), values)


def _change_of(node: ElementTree.Element) -> Change:
    """
    Raises:
        Invalid: malformed.
    """
    texts: dict[str, list[str]] = {}
    for child in node.iter():
        texts.setdefault(local(child.tag), []).append(child.text or "")
    action, kind = texts.get("Action", [""])[0], texts.get("Type", [""])[0]
    values = tuple(texts.get("Value", ()))
    if action not in _ACTIONS or kind not in _TYPES or not values or "TTL" not in texts:
        raise Invalid(f"Invalid Resource Record: {action} {kind} with {len(values)} value(s)")
    if kind == "TXT" and not all(value.startswith('"') and value.endswith('"') for value in values):
        raise Invalid("InvalidCharacterString (Value should be enclosed in quotation marks)")
    ttl_s = int(texts["TTL"][0])
    return Change(_ACTIONS[action], Records(texts["Name"][0], kind, ttl_s, values))
