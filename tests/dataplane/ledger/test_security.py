"""ACLs, users and quotas in a cell's ledger: accepted whole or not at all, bounded, and kept in snapshots."""

from __future__ import annotations

import copy
import json

import pytest

from dataplane.ledger import security
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.security import acls_created, acls_deleted, quotas_changed, scram_changed
from dataplane.ledger.security_state import AclBinding, ScramKeys, entity_key, entity_of
from tests.dataplane.ledger.test_cell import Cell

READ_T = AclBinding(2, "t", 3, "User:a", "*", 3, 3)
WRITE_T = AclBinding(2, "t", 3, "User:a", "*", 4, 3)
KEYS = ScramKeys("00" * 16, 4_096, "11" * 32, "22" * 32)
SHA_256, SHA_512 = "SCRAM-SHA-256", "SCRAM-SHA-512"


@pytest.fixture
def cell() -> Cell:
    return Cell()


def test_an_acl_is_there_once_and_goes_as_it_came(cell: Cell) -> None:
    cell.ok(acls_created([READ_T, WRITE_T, READ_T]))
    cell.ok(acls_created([READ_T]))
    assert cell.state.security.acls == [READ_T, WRITE_T]
    cell.ok(acls_deleted([READ_T]))
    assert cell.state.security.acls == [WRITE_T]


def test_every_change_is_a_new_revision(cell: Cell) -> None:
    seen = [cell.state.security.revision]
    for command in (
        acls_created([READ_T]),
        acls_deleted([READ_T]),
        scram_changed([("a", SHA_256, KEYS)], []),
        quotas_changed([({"user": "a"}, {"producer_byte_rate": 1.0})]),
    ):
        cell.ok(command)
        seen.append(cell.state.security.revision)
    assert seen == sorted(set(seen))


def test_users_come_and_go_by_mechanism(cell: Cell) -> None:
    cell.ok(scram_changed([("a", SHA_256, KEYS), ("a", SHA_512, KEYS)], []))
    cell.ok(scram_changed([], [("a", SHA_256)]))
    assert cell.state.security.scram == {"a": {SHA_512: KEYS}}
    cell.ok(scram_changed([], [("a", SHA_512)]))
    assert cell.state.security.scram == {}


def test_a_deletion_of_nobody_changes_nothing_of_the_rest(cell: Cell) -> None:
    cell.ok(scram_changed([("a", SHA_256, KEYS)], []))
    before = copy.deepcopy(cell.state)
    cell.refused(scram_changed([("b", SHA_256, KEYS)], [("a", SHA_512)]), "no credential")
    assert cell.state == before


def test_quotas_change_one_by_one_and_an_empty_entity_goes(cell: Cell) -> None:
    a: dict[str, str | None] = {"user": "a"}
    default: dict[str, str | None] = {"client-id": None, "user": "a"}
    cell.ok(quotas_changed([(a, {"producer_byte_rate": 1.0, "consumer_byte_rate": 2.0}), (default, {"x": 3.0})]))
    cell.ok(quotas_changed([(a, {"producer_byte_rate": None, "consumer_byte_rate": 5.0}), (default, {"x": None})]))
    assert cell.state.security.quotas == {entity_key(a): {"consumer_byte_rate": 5.0}}
    assert entity_of(entity_key(default)) == default != entity_of(entity_key(a))


@pytest.mark.parametrize("limit", ["ACLS_MAX", "USERS_MAX", "QUOTA_ENTITIES_MAX"])
def test_what_a_cell_keeps_is_bounded(cell: Cell, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, limit, 1)
    one, two = {
        "ACLS_MAX": (acls_created([READ_T]), acls_created([WRITE_T])),
        "USERS_MAX": (scram_changed([("a", SHA_256, KEYS)], []), scram_changed([("b", SHA_256, KEYS)], [])),
        "QUOTA_ENTITIES_MAX": (
            quotas_changed([({"user": "a"}, {"x": 1.0})]),
            quotas_changed([({"user": "b"}, {"x": 1.0})]),
        ),
    }[limit]
    cell.ok(one)
    before = copy.deepcopy(cell.state)
    cell.refused(two, "at most")
    assert cell.state == before
    cell.ok(one)


def test_a_snapshot_keeps_them_and_an_old_one_has_none(cell: Cell) -> None:
    cell.ok(acls_created([READ_T]), scram_changed([("a", SHA_256, KEYS)], []))
    cell.ok(quotas_changed([({"user": None}, {"producer_byte_rate": 1.5})]))
    machine = CellMachine()
    plain = json.loads(json.dumps(machine.dump(cell.state)))
    assert machine.load(plain) == cell.state
    del plain["security"]
    assert machine.load(plain).security == CellMachine().initial().security
