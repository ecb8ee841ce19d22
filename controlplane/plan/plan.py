"""A plan: the actions from what is applied to what is desired, and a hash that says exactly this plan and no other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from controlplane.api.specs import Specs
from controlplane.plan.diff import diff, refuse_relocation
from controlplane.plan.model import Action, Recorded
from controlplane.plan.resolve import ResolvedCluster, resolve
from providers.base.capabilities import Probed
from providers.base.errors import Conflict, Invalid

HASH_FORMAT = 1
HASH_CHARS_SHOWN = 8
HASH_CHARS_MIN = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """`desired` is the whole state after the plan, objects that stay included; `resolved` has each cluster's WAL and
    brokers for it."""

    base_revision: int
    """Revision of the store that the plan starts from."""
    desired: Specs
    resolved: Mapping[str, ResolvedCluster]
    actions: tuple[Action, ...]
    hash: str
    """sha256 over base revision, desired state and actions: it changes exactly when one of them does."""

    @property
    def empty(self) -> bool:
        return not self.actions

    @property
    def exit_code(self) -> int:
        """What `yunhe plan` exits with: 0 nothing to do, 2 changes. (1 is an error.)"""
        return 0 if self.empty else 2

    def recorded_after(self) -> Recorded:
        """What the store holds once the plan is applied."""
        return Recorded(
            specs=self.desired.plain(),
            revision=self.base_revision + 1,
            wal_modes={name: cluster.choice.mode.value for name, cluster in self.resolved.items()},
        )

    def require(self, hash_prefix: str) -> None:
        """Refuse to apply another plan than the one that was approved.

        Raises:
            Invalid: too short to mean one plan.
            Conflict: the plan has changed since: another base revision, other specs, other facts.
        """
        if len(hash_prefix) < HASH_CHARS_MIN:
            raise Invalid(f"a plan is named by at least {HASH_CHARS_MIN} characters of its hash, not {hash_prefix!r}")
        if not self.hash.startswith(hash_prefix.lower()):
            raise Conflict(
                f"plan {hash_prefix} is stale: what would be applied now is "
                f"{self.hash[:HASH_CHARS_SHOWN]}, on revision {self.base_revision}",
                hint="run `yunhe plan` again and look at it",
                expected=hash_prefix,
                actual=self.hash,
            )


def make_plan(
    desired: Specs, recorded: Recorded, *, prune: bool = False, probed: Mapping[str, Probed] | None = None
) -> Plan:
    """Plan `desired` over what is recorded.

    `prune`: objects that are recorded and not in `desired` are deleted; without it they stay as they are.
    `probed`: findings about clouds, by name.

    Raises:
        Invalid: a WAL or a change is not possible; says where it was written.
        Corrupt: the recorded objects cannot be read.
    """
    present = recorded.as_specs()
    whole = desired if prune else desired.merged_over(present)
    refuse_relocation(whole, present)
    settled = recorded.settled()
    before = resolve(present, probed=probed, settled=settled)
    resolved = resolve(whole, probed=probed, settled=settled)
    actions = diff(whole, resolved, present, before)
    return Plan(recorded.revision, whole, resolved, actions, _hash(recorded.revision, whole, actions))


def _hash(revision: int, desired: Specs, actions: tuple[Action, ...]) -> str:
    objects = desired.plain()
    content: dict[str, Any] = {
        "format": HASH_FORMAT,
        "revision": revision,
        "desired": [objects[key] for key in sorted(objects)],
        "actions": [asdict(action) for action in actions],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
