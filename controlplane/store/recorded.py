"""`Recorded` of the plan package as the store keeps it."""

from __future__ import annotations

from typing import Any

from controlplane.plan.model import Recorded
from controlplane.store.base import Plain


def recorded_of(plain: Plain | None) -> Recorded:
    """`Recorded` from the store's JSON."""
    if plain is None:
        return Recorded()
    specs = {(kind, name): value for kind, name, value in plain["specs"]}
    return Recorded(specs, plain["revision"], plain["walModes"])


def recorded_plain(recorded: Recorded) -> dict[str, Any]:
    """The store's JSON from `Recorded`."""
    return {
        "specs": [[kind, name, value] for (kind, name), value in recorded.specs.items()],
        "revision": recorded.revision,
        "walModes": dict(recorded.wal_modes),
    }
