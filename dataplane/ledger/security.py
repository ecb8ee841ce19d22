"""The commands that change `SecurityState`, and their fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataplane.ledger.entry import Command, Entry
from dataplane.ledger.rules import require
from dataplane.ledger.security_state import AclBinding, ScramKeys, entity_key

if TYPE_CHECKING:
    from dataplane.ledger.state import CellState

ACLS_MAX = USERS_MAX = QUOTA_ENTITIES_MAX = 10_000
"""Of each in a cell: they travel in every snapshot."""


def acls_created(acls: Sequence[AclBinding]) -> Command:
    """These hold from now on; those that there are already stay as they are."""
    return {"kind": "acls-created", "acls": [dataclasses.astuple(acl) for acl in acls]}


def acls_deleted(acls: Sequence[AclBinding]) -> Command:
    """Exactly these hold no more."""
    return {"kind": "acls-deleted", "acls": [dataclasses.astuple(acl) for acl in acls]}


def scram_changed(upserts: Sequence[tuple[str, str, ScramKeys]], deletions: Sequence[tuple[str, str]]) -> Command:
    """Salted keys of (user, mechanism) are set, or go. All of it or nothing."""
    return {
        "kind": "scram-changed",
        "upserts": [[user, mechanism, dataclasses.asdict(keys)] for user, mechanism, keys in upserts],
        "deletions": [list(one) for one in deletions],
    }


def quotas_changed(changes: Sequence[tuple[Mapping[str, str | None], Mapping[str, float | None]]]) -> Command:
    """(entity, quota → value, None taking it away) for each entity."""
    return {"kind": "quotas-changed", "changes": [[dict(entity), dict(values)] for entity, values in changes]}


def _acls_created(state: CellState, command: Command, entry: Entry) -> None:
    security = state.security
    there = set(security.acls)
    new = [a for a in dict.fromkeys(AclBinding(*plain) for plain in command["acls"]) if a not in there]
    require(len(there) + len(new) <= ACLS_MAX, f"{len(there)} ACLs and {len(new)} more: {ACLS_MAX} at most")
    security.acls.extend(new)
    security.revision += 1


def _acls_deleted(state: CellState, command: Command, entry: Entry) -> None:
    gone = {AclBinding(*plain) for plain in command["acls"]}
    state.security.acls = [acl for acl in state.security.acls if acl not in gone]
    state.security.revision += 1


def _scram_changed(state: CellState, command: Command, entry: Entry) -> None:
    scram = state.security.scram
    for user, mechanism in command["deletions"]:
        require(mechanism in scram.get(user, {}), f"user {user} has no credential of {mechanism}")
    new = {user for user, _, _ in command["upserts"]} - scram.keys()
    require(len(scram) + len(new) <= USERS_MAX, f"{len(scram)} users and {len(new)} more: {USERS_MAX} at most")
    for user, mechanism in command["deletions"]:
        scram[user].pop(mechanism, None)
    for user, mechanism, keys in command["upserts"]:
        scram.setdefault(user, {})[mechanism] = ScramKeys(**keys)
    for user, _ in command["deletions"]:
        if not scram.get(user, True):
            del scram[user]
    state.security.revision += 1


def _quotas_changed(state: CellState, command: Command, entry: Entry) -> None:
    quotas = state.security.quotas
    keyed: list[tuple[str, dict[str, Any]]] = [(entity_key(entity), values) for entity, values in command["changes"]]
    new = {key for key, _ in keyed} - quotas.keys()
    require(
        len(quotas) + len(new) <= QUOTA_ENTITIES_MAX,
        f"{len(quotas)} entities with quotas and {len(new)} more: {QUOTA_ENTITIES_MAX} at most",
    )
    for key, values in keyed:
        held = quotas.setdefault(key, {})
        for name, value in values.items():
            if value is None:
                held.pop(name, None)
            else:
                held[name] = float(value)
        if not held:
            del quotas[key]
    state.security.revision += 1


SECURITY_FOLDS: Mapping[str, Callable[[CellState, Command, Entry], None]] = {
    "acls-created": _acls_created,
    "acls-deleted": _acls_deleted,
    "scram-changed": _scram_changed,
    "quotas-changed": _quotas_changed,
}
