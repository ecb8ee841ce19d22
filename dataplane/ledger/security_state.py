"""Who may log in, who may do what, and how fast: the part of a cell's state that its ACLs, SCRAM credentials and quotas
are. Passwords are not in it; of a user there are salted keys (`scram.py` of the broker says what they can do).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class AclBinding:
    """One ACL; numbers are Kafka's codes."""

    resource_type: int
    resource_name: str
    pattern_type: int
    principal: str
    host: str
    operation: int
    permission: int


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """A user's salted keys under one mechanism; bytes as hex digits."""

    salt: str
    iterations: int
    stored_key: str
    server_key: str


@dataclass(slots=True)
class SecurityState:
    revision: int = 0
    """Grows with every change: what was concluded from an older one is out of date."""
    acls: list[AclBinding] = field(default_factory=list)
    scram: dict[str, dict[str, ScramKeys]] = field(default_factory=dict)
    """User → mechanism → keys."""
    quotas: dict[str, dict[str, float]] = field(default_factory=dict)
    """`entity_key` → Kafka's name of a quota → its value."""


def entity_key(entity: Mapping[str, str | None]) -> str:
    """One text for an entity: its parts (`user`, `client-id`) by name, None standing for the default one."""
    return json.dumps(dict(entity), sort_keys=True, separators=(",", ":"))


def entity_of(key: str) -> dict[str, str | None]:
    """The inverse of `entity_key`."""
    entity: dict[str, str | None] = json.loads(key)
    return entity


def load_security(plain: Mapping[str, Any] | None) -> SecurityState:
    """From a snapshot; one from before there was any has none."""
    if plain is None:
        return SecurityState()
    return SecurityState(
        revision=plain["revision"],
        acls=[AclBinding(**acl) for acl in plain["acls"]],
        scram={
            user: {mechanism: ScramKeys(**keys) for mechanism, keys in by_mechanism.items()}
            for user, by_mechanism in plain["scram"].items()
        },
        quotas={key: dict(values) for key, values in plain["quotas"].items()},
    )
