"""Alibaba Cloud DNS over the DNS core: single records with ids, where the core has sets of them.

A record keeps its id, line, TTL and status in the set's attributes; the set's values are those that are served: enabled
and of the default line. Sources: the API reference of Alidns 2015-01-09, its error list (document 2355841), the SDK
4.6.1.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from providers.base.errors import Full, Invalid, NotFound, YunheError
from providers.lab.control import ControlPlane
from providers.lab.control_aliyun_errors import Refused
from providers.lab.zones_dns import Action, Change, Records, Zone

Arguments = Mapping[str, str]
Answer = dict[str, Any]

DNS_ACTIONS = {
    "DescribeDomains": "describe_domains",
    "DescribeDomainRecords": "describe_records",
    "DescribeDomainRecordInfo": "describe_record",
    "AddDomainRecord": "add_record",
    "UpdateDomainRecord": "update_record",
    "DeleteDomainRecord": "delete_record",
}

TYPES = frozenset(["A", "AAAA", "CNAME", "TXT", "SRV", "MX", "NS", "CAA"])
PAGE_MAX = 500
TTL_S = (1, 86_400)
_LINE = "default"


@dataclass(frozen=True, slots=True)
class _Record:
    id: str
    rr: str
    type: str
    value: str
    ttl_s: int
    line: str = _LINE
    status: str = "ENABLE"

    @property
    def served(self) -> bool:
        return self.status == "ENABLE" and self.line == _LINE


class AliDnsActions:
    """One method an action: parameters in, answer out, `Refused` otherwise."""

    def __init__(self, plane: ControlPlane) -> None:
        self._dns = plane.dns
        self._rng = plane.rng
        self._page_max = plane.page_max
        self._lock = threading.Lock()

    def describe_domains(self, asked: Arguments) -> Answer:
        rows = [{"DomainId": zone.id, "DomainName": zone.name, "AliDomain": False} for zone in self._dns.zones()]
        return {"Domains": {"Domain": rows}, "TotalCount": len(rows), "PageNumber": 1, "PageSize": len(rows)}

    def describe_records(self, asked: Arguments) -> Answer:
        zone = self._zone(asked.get("DomainName", ""))
        rows = [_row(zone, record) for record in self._records(zone) if _matches(asked, record)]
        number = int(asked.get("PageNumber", "1"))
        size = min(max(int(asked.get("PageSize", "20")), 1), PAGE_MAX, self._page_max)
        some = rows[(number - 1) * size : number * size]
        return {
            "DomainRecords": {"Record": some},
            "TotalCount": len(rows),
            "PageNumber": number,
            "PageSize": size,
        }

    def describe_record(self, asked: Arguments) -> Answer:
        zone, record = self._find(asked)
        return _row(zone, record)

    def add_record(self, asked: Arguments) -> Answer:
        with self._lock:
            zone = self._zone(asked.get("DomainName", ""))
            record = _asked_for(asked, str(int(self._rng.token()[:15], 16)))
            self._check_free(zone, record)
            self._store(zone, record, [*self._set(zone, record.rr, record.type), record])
        return {"RecordId": record.id}

    def update_record(self, asked: Arguments) -> Answer:
        with self._lock:
            zone, now = self._find(asked)
            record = replace(_asked_for(asked, now.id), status=now.status)
            if record == now:
                raise Refused(400, "DomainRecordDuplicate", "The DNS record already exists.")
            self._check_free(zone, record, but=now.id)
            if (record.rr, record.type) != (now.rr, now.type):
                self._store(zone, now, [row for row in self._set(zone, now.rr, now.type) if row.id != now.id])
                self._store(zone, record, [*self._set(zone, record.rr, record.type), record])
            else:
                rows = self._set(zone, now.rr, now.type)
                self._store(zone, record, [record if row.id == now.id else row for row in rows])
        return {"RecordId": record.id}

    def delete_record(self, asked: Arguments) -> Answer:
        with self._lock:
            zone, record = self._find(asked)
            self._store(zone, record, [row for row in self._set(zone, record.rr, record.type) if row.id != record.id])
        return {"RecordId": record.id}

    # ---- records and sets

    def _zone(self, name: str) -> Zone:
        try:
            return self._dns.zone(name)
        except NotFound as error:
            raise Refused(400, "InvalidDomainName.NoExist", "The specified domain name does not exist.") from error

    def _find(self, asked: Arguments) -> tuple[Zone, _Record]:
        wanted = asked.get("RecordId", "")
        for zone in self._dns.zones():
            for record in self._records(zone):
                if record.id == wanted:
                    return zone, record
        raise Refused(400, "DomainRecordNotBelongToUser", "The DNS record does not exist in this account.")

    def _records(self, zone: Zone) -> list[_Record]:
        return [record for found in self._dns.list(zone.id) for record in _split(zone, found)]

    def _set(self, zone: Zone, rr: str, type: str) -> list[_Record]:
        found = self._dns.get(zone.id, _name(zone, rr), type)
        return _split(zone, found) if found else []

    def _check_free(self, zone: Zone, record: _Record, but: str = "") -> None:
        here = [row for row in self._records(zone) if row.rr == record.rr and row.line == record.line and row.id != but]
        if any(row.type == record.type and row.value == record.value for row in here):
            raise Refused(400, "DomainRecordDuplicate", "The DNS record already exists.")
        if any("CNAME" in (row.type, record.type) and row.type != "TXT" and record.type != "TXT" for row in here):
            raise Refused(400, "DomainRecordConflict", "The DNS record conflicts with other records.")

    def _store(self, zone: Zone, about: _Record, rows: list[_Record]) -> None:
        name = _name(zone, about.rr)
        served = [row for row in rows if row.served]
        attributes = {"records": [[row.id, row.value, row.ttl_s, row.line, row.status] for row in rows]}
        ttl_s = min((row.ttl_s for row in served), default=about.ttl_s)
        records = Records(name, about.type, ttl_s, tuple(row.value for row in served), attributes=attributes)
        try:
            self._dns.change(zone.id, [Change(Action.UPSERT if rows else Action.REMOVE, records)])
        except Full as error:
            raise Refused(400, "QuotaExceeded.Record", "The number of DNS records exceeds the quota.") from error
        except Invalid as error:
            raise Refused(400, "InvalidRR.Format", str(error)) from error
        except YunheError as error:
            raise Refused(500, "InternalError", str(error)) from error


def _split(zone: Zone, found: Records) -> list[_Record]:
    rr = "@" if found.name == zone.name else found.name.removesuffix("." + zone.name)
    kept = found.attributes.get("records")
    if kept is None:  # made by something else than this API
        kept = [
            [f"{found.version}{at:04}", value, found.ttl_s, _LINE, "ENABLE"] for at, value in enumerate(found.values)
        ]
    return [_Record(str(id), rr, found.type, value, ttl_s, line, status) for id, value, ttl_s, line, status in kept]


def _name(zone: Zone, rr: str) -> str:
    return zone.name if rr == "@" else f"{rr.lower()}.{zone.name}"


def _asked_for(asked: Arguments, record_id: str) -> _Record:
    rr, type, value = asked.get("RR", "").lower(), asked.get("Type", "").upper(), asked.get("Value", "")
    ttl_s = int(asked.get("TTL", "600"))
    if type not in TYPES:
        raise Refused(400, "InvalidType", f"The record type {type} is not supported.")
    if not rr or not value:
        raise Refused(400, "MissingParameter", "RR and Value are needed.")
    if not TTL_S[0] <= ttl_s <= TTL_S[1]:
        raise Refused(400, "QuotaExceeded.TTL", f"The TTL {ttl_s} is not supported by this edition.")
    if type in ("CNAME", "SRV"):
        value = value.rstrip(".")
    return _Record(record_id, rr, type, value, ttl_s, asked.get("Line") or _LINE)


def _matches(asked: Arguments, record: _Record) -> bool:
    """COMBINATION and ADVANCED take RRKeyWord, Type …, exact and fuzzy; EXACT and LIKE take KeyWord."""
    mode = asked.get("SearchMode", "LIKE" if asked.get("KeyWord") else "ADVANCED").upper()
    word = asked.get("KeyWord" if mode in ("LIKE", "EXACT") else "RRKeyWord", "").lower()
    exact = mode in ("EXACT", "COMBINATION")
    if word and not (record.rr == word if exact else word in record.rr):
        return False
    if mode in ("LIKE", "EXACT"):
        return True
    return asked.get("Type") in (None, "", record.type) and asked.get("Line") in (None, "", record.line)


def _row(zone: Zone, record: _Record) -> Answer:
    return {
        "DomainName": zone.name,
        "RecordId": record.id,
        "RR": record.rr,
        "Type": record.type,
        "Value": record.value,
        "TTL": record.ttl_s,
        "Line": record.line,
        "Status": record.status,
        "Locked": False,
    }
