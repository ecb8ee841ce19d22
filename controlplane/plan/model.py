"""The values that planning reads and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from controlplane.api.specs import Key, Specs, from_plain
from dataplane.contract.assignment import WalMode
from providers.base.errors import Corrupt


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is applied: the store holds exactly this."""

    specs: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)
    """(kind, name) → the object as `controlplane.api.specs.to_plain` wrote it."""
    revision: int = 0
    """Grows by one with each apply."""
    wal_modes: Mapping[str, str] = field(default_factory=dict)
    """BrokerCluster name → WAL mode chosen when it was first applied. Absent: the choice is made anew."""

    def as_specs(self) -> Specs:
        """The objects.

        Raises:
            Corrupt: the store holds something that is none.
        """
        try:
            return Specs.of(from_plain(plain) for plain in self.specs.values())
        except (ValueError, KeyError) as error:
            raise Corrupt(
                f"the store of revision {self.revision} holds an object that cannot be read: {error}"
            ) from error

    def settled(self) -> dict[str, WalMode]:
        """`wal_modes` by type."""
        return {name: WalMode(mode) for name, mode in self.wal_modes.items()}


class Verb(StrEnum):
    """What an action does. A move takes a broker to another zone and copies no data."""

    CREATE = "create"
    UPDATE = "update"
    MOVE = "move"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """A field before and after, in JSON terms; None: not set. `field` is dotted: spec.partitions."""

    field: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Action:
    """One line of a plan, with its blast radius."""

    verb: Verb
    kind: str
    """Cloud, BrokerCluster, Broker, Topic, Database, DatabaseNode (of role cloud) or Edges."""
    name: str
    """Brokers and topics are named within their cluster: aliyun-hz/b-1."""
    what: str
    """One phrase for the reader."""
    changes: tuple[Change, ...] = ()
    downtime_ms: int = 0
    """Predicted, the longest that one partition is not served: a design figure, by the WAL's RTO."""
    data_at_risk: str | None = None
    """What can be lost for ever; None: nothing."""
    api_calls: int = 0
    """Calls of the cloud's control API."""
    monthly_usd: float | None = 0.0
    """Change of the monthly price on the real cloud before any traffic; None: not known."""
