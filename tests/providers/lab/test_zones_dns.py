"""The emulated DNS API changes a zone by whole batches or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from providers.base.errors import Conflict, Invalid, NotFound
from providers.lab import zones_dns as dns
from providers.lab.state_file import StateFile
from providers.lab.zones_dns import Action, Change, DnsZones, Records

OLD = Records("www.example.test", "A", 60, ("10.0.0.1", "10.0.0.2"))
NEW = Records("www.example.test", "A", 60, ("10.0.0.3",))


@pytest.fixture
def zones(tmp_path: Path) -> DnsZones:
    made = DnsZones(StateFile(tmp_path / "dns.json"))
    made.create_zone("Example.test.", "Z1")
    made.change("Z1", [Change(Action.CREATE, OLD)])
    return made


def values(zones: DnsZones) -> tuple[str, ...] | None:
    found = zones.get("example.test", "WWW.example.test.", "A")
    return found.values if found else None


def test_batch_replaces_a_record_set_at_once(zones: DnsZones) -> None:
    zones.change("Z1", [Change(Action.DELETE, OLD), Change(Action.CREATE, NEW)])
    assert values(zones) == NEW.values


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (Change(Action.CREATE, OLD), dns.EXISTS),
        (Change(Action.DELETE, NEW), dns.DIFFERS),
        (Change(Action.DELETE, Records("other.example.test", "A", 60, ("10.0.0.1",))), dns.NO_SUCH_RECORD),
        (Change(Action.UPSERT, NEW, version=1), dns.DIFFERS),
    ],
)
def test_one_change_that_does_not_fit_leaves_the_whole_batch_undone(zones: DnsZones, change: Change, code: str) -> None:
    other = Change(Action.CREATE, Records("fresh.example.test", "A", 60, ("10.0.0.9",)))
    with pytest.raises(Conflict) as caught:
        zones.change("Z1", [other, change])
    assert caught.value.fields["code"] == code and caught.value.fields["index"] == 1
    assert zones.list("Z1") == [zones.get("Z1", OLD.name, "A")] and values(zones) == OLD.values


def test_names_outside_the_zone_are_refused(zones: DnsZones) -> None:
    with pytest.raises(Invalid):
        zones.change("Z1", [Change(Action.CREATE, Records("www.notexample.test", "A", 60, ("10.0.0.1",)))])
    with pytest.raises(NotFound):
        zones.zone("other.test")


def test_zone_survives_a_kill(zones: DnsZones, tmp_path: Path) -> None:
    again = DnsZones(StateFile(tmp_path / "dns.json"))
    assert again.list("Z1") == zones.list("Z1") and again.zones() == zones.zones()


def test_a_zone_is_removed_when_it_holds_no_records(zones: DnsZones, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="holds records"):
        zones.remove_zone("example.test")
    zones.change("Z1", [Change(Action.DELETE, OLD)])
    zones.remove_zone("Example.test.")
    assert zones.zones() == [] and DnsZones(StateFile(tmp_path / "dns.json")).zones() == []
    with pytest.raises(NotFound):
        zones.remove_zone("Z1")
