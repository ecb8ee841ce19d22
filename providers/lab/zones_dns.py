"""The DNS API of an emulated cloud, without a wire form: zones and record sets that change in atomic batches.

Nothing here answers DNS queries; clients of the lab read the API. Durable before a call returns, blocking, thread-safe.
Errors say by `fields["code"]` which case it is.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from providers.base.errors import Conflict, Full, Invalid, NotFound
from providers.lab.state_file import StateFile

NO_SUCH_ZONE = "no_such_zone"
NO_SUCH_RECORD = "no_such_record"
"""Conflict: what should be deleted or replaced is not there."""
EXISTS = "exists"
"""Conflict: what should be created is there already."""
DIFFERS = "differs"
"""Conflict: it is there, with other values, TTL or version than expected."""
OUTSIDE = "outside"
"""Invalid: the name is not in the zone."""

ZONES_MAX = 500
"""Route 53's default quota of hosted zones an account."""
RECORDS_MAX = 10_000
"""Record sets a zone: Route 53's default and GCP's."""


@dataclass(frozen=True, slots=True)
class Records:
    """All records of one name and type. `name`: lower case, fully qualified, without the trailing dot; `values` as in a
    zone file, in the caller's order."""

    name: str
    type: str
    ttl_s: int
    values: tuple[str, ...]
    version: int = 0
    """Set by the zone: grows with each change, never used twice. For ETags."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """A dialect's own (record ids …); no part of a comparison."""

    def same(self, other: Records) -> bool:
        """Equal but for version, attributes and the values' order."""
        return (self.name, self.type, self.ttl_s, sorted(self.values)) == (
            other.name,
            other.type,
            other.ttl_s,
            sorted(other.values),
        )


class Action(StrEnum):
    CREATE = "create"
    """Where nothing is."""
    DELETE = "delete"
    """Exactly that: name, type, TTL and values."""
    UPSERT = "upsert"
    """Whatever is there."""
    REMOVE = "remove"
    """By name and type, whatever its values; it must be there."""


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a batch. `version`: only where the record set has it now (0: only where there is none)."""

    action: Action
    records: Records
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Zone:
    """A domain. `version` grows with every change of its records."""

    id: str
    name: str
    version: int = 1


class DnsZones:
    """One account's DNS."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._lock = threading.RLock()
        plain = file.load() or {"zones": [], "records": {}}
        self._zones = {row["id"]: Zone(**row) for row in plain["zones"]}
        self._records: dict[str, dict[tuple[str, str], Records]] = {
            zone: {
                (row["name"], row["type"]): Records(**{**row, "values": tuple(row["values"])})
                for row in plain["records"].get(zone, ())
            }
            for zone in self._zones
        }

    def zones(self) -> list[Zone]:
        """By name."""
        with self._lock:
            return sorted(self._zones.values(), key=lambda zone: (zone.name, zone.id))

    def zone(self, name_or_id: str) -> Zone:
        """By id or, with or without its dot, by name.

        Raises:
            NotFound: NO_SUCH_ZONE.
        """
        with self._lock:
            if name_or_id in self._zones:
                return self._zones[name_or_id]
            wanted = plain_name(name_or_id)
            for zone in self.zones():
                if zone.name == wanted:
                    return zone
            raise NotFound(f"no zone {name_or_id}", code=NO_SUCH_ZONE, zone=name_or_id)

    def create_zone(self, name: str, zone_id: str) -> Zone:
        """A zone of that name; the one that is there is returned as it is.

        Raises:
            Full: there are too many.
        """
        with self._lock:
            wanted = plain_name(name)
            for zone in self._zones.values():
                if zone.name == wanted:
                    return zone
            if len(self._zones) >= ZONES_MAX:
                raise Full(f"{ZONES_MAX} zones are the quota")
            made = Zone(zone_id, wanted)
            self._save({**self._zones, made.id: made}, {**self._records, made.id: {}})
            return made

    def remove_zone(self, name_or_id: str) -> None:
        """Remove a zone.

        Raises:
            NotFound: NO_SUCH_ZONE.
            Conflict: it holds records.
        """
        with self._lock:
            zone = self.zone(name_or_id)
            if self._records[zone.id]:
                raise Conflict(f"zone {zone.name} holds records", zone=zone.name)
            zones = {id_: kept for id_, kept in self._zones.items() if id_ != zone.id}
            self._save(zones, {id_: self._records[id_] for id_ in zones})

    def get(self, zone_id: str, name: str, type: str) -> Records | None:
        """The record set, or None.

        Raises:
            NotFound: NO_SUCH_ZONE.
        """
        with self._lock:
            return self._records[self.zone(zone_id).id].get((plain_name(name), type))

    def list(self, zone_id: str) -> list[Records]:
        """All of a zone, by name and type.

        Raises:
            NotFound: NO_SUCH_ZONE.
        """
        with self._lock:
            found = self._records[self.zone(zone_id).id]
            return [found[key] for key in sorted(found)]

    def change(self, zone_id: str, batch: Sequence[Change]) -> Zone:
        """All changes, one after the other, or none.

        Raises:
            NotFound: NO_SUCH_ZONE.
            Conflict: NO_SUCH_RECORD, EXISTS, DIFFERS; `fields["index"]` is the change that does not fit.
            Invalid: OUTSIDE.
            Full: the zone has too many record sets.
        """
        with self._lock:
            zone = self.zone(zone_id)
            zone = replace(zone, version=zone.version + 1)
            found = dict(self._records[zone.id])
            for index, change in enumerate(batch):
                _apply(found, zone, change, index)
            if len(found) > RECORDS_MAX:
                raise Full(f"{RECORDS_MAX} record sets are the quota of a zone")
            self._save({**self._zones, zone.id: zone}, {**self._records, zone.id: found})
            return zone

    def _save(self, zones: Mapping[str, Zone], records: Mapping[str, dict[tuple[str, str], Records]]) -> None:
        """On disk first, then in memory."""
        self._file.save(
            {
                "zones": [asdict(zone) for zone in zones.values()],
                "records": {zone: [asdict(row) for row in found.values()] for zone, found in records.items()},
            }
        )
        self._zones, self._records = dict(zones), dict(records)


def plain_name(name: str) -> str:
    """Lower case, without the trailing dot."""
    return name.lower().rstrip(".")


def _apply(found: dict[tuple[str, str], Records], zone: Zone, change: Change, index: int) -> None:
    wanted = replace(change.records, name=plain_name(change.records.name), version=zone.version)
    if wanted.name != zone.name and not wanted.name.endswith("." + zone.name):
        raise Invalid(f"{wanted.name} is not in zone {zone.name}", code=OUTSIDE, index=index)
    key = (wanted.name, wanted.type)
    now = found.get(key)
    about: dict[str, Any] = {"index": index, "name": wanted.name, "type": wanted.type}
    if change.version is not None and change.version != (now.version if now else 0):
        raise Conflict(f"{wanted.type} {wanted.name} has another version", code=DIFFERS, **about)
    match change.action:
        case Action.CREATE if now is not None:
            raise Conflict(f"{wanted.type} {wanted.name} exists", code=EXISTS, **about)
        case Action.DELETE | Action.REMOVE if now is None:
            raise Conflict(f"{wanted.type} {wanted.name} is not there", code=NO_SUCH_RECORD, **about)
        case Action.DELETE if now is not None and not now.same(wanted):
            raise Conflict(f"{wanted.type} {wanted.name} has other values", code=DIFFERS, **about)
        case Action.DELETE | Action.REMOVE:
            del found[key]
        case Action.CREATE | Action.UPSERT:
            found[key] = wanted
