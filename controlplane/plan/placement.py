"""Which broker runs in which zone, with which volume or bucket: a pure function of the spec and the WAL choice.

Broker b-i has node id i and runs in zone (i - 1) mod Z, so names, ids and zones of those that stay never change when
others come or go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count as count_from
from itertools import islice

from controlplane.plan.wal import WalChoice
from dataplane.contract.assignment import WalMode, WalSpec
from providers.base.errors import invariant


@dataclass(frozen=True, slots=True)
class PlacedBroker:
    """A broker and its place. `wal` goes into the assignment as it is; `wal.express` names the express zone, which is
    also the bucket's key there."""

    node_id: int
    name: str
    zone: str
    wal: WalSpec
    spare: int = 0
    """Its rank among the spare brokers, from 1; 0: it always runs."""

    @property
    def takers(self) -> tuple[str, ...]:
        """Zones whose brokers may take its WAL over without the cloud's API. Empty: any zone, for the WAL is in a
        bucket."""
        return self.wal.volume_zones if self.wal.mode in (WalMode.REGIONAL_BLOCK, WalMode.ZONAL_BLOCK) else ()


def agent_name(cell: str, zone: str) -> str:
    """An agent's name: there is one a zone, and cells may share a bucket."""
    return f"{cell}-{zone}"


def place(
    cluster: str,
    zones: Sequence[str],
    count: int | None,
    per_zone: Mapping[str, int] | None,
    choice: WalChoice,
    spares: int = 0,
) -> tuple[PlacedBroker, ...]:
    """Place `count` brokers over `zones`, or as many in each zone as `per_zone` says, ordered by node id; and after
    them `spares` more, in zones that have one: it is a broker that tells a zone's agent when they are needed."""
    width = len(zones)
    if per_zone is None:
        ordinals = list(range(1, (count or 0) + 1))
    else:
        ordinals = sorted(
            1 + index + round_ * width for index, zone in enumerate(zones) for round_ in range(per_zone.get(zone, 0))
        )
    peopled = {zones[(ordinal - 1) % width] for ordinal in ordinals}
    lasting = tuple(_placed(cluster, ordinal, zones, peopled, choice) for ordinal in ordinals)
    later = (n for n in count_from(ordinals[-1] + 1) if zones[(n - 1) % width] in peopled)
    return lasting + tuple(
        replace(_placed(cluster, ordinal, zones, peopled, choice), spare=rank)
        for rank, ordinal in enumerate(islice(later, spares), 1)
    )


def _placed(cluster: str, ordinal: int, zones: Sequence[str], peopled: set[str], choice: WalChoice) -> PlacedBroker:
    index = (ordinal - 1) % len(zones)
    name, zone = f"b-{ordinal}", zones[index]
    volume = f"{cluster}-{name}-wal"
    mode = WalMode.OBJECT if zone in choice.object_zones else choice.mode
    match mode:
        case WalMode.OBJECT:
            wal = WalSpec(mode, choice.bytes_max)
        case WalMode.REGIONAL_BLOCK:
            wal = WalSpec(mode, choice.bytes_max, volume, _attach_zones(index, zones, peopled, choice))
        case WalMode.ZONAL_BLOCK:
            wal = WalSpec(mode, choice.bytes_max, volume, (zone,))
        case WalMode.BLOCK_EXPRESS:
            express = dict(choice.express_of)[zone]
            invariant(express != zone, "both sides of a dual WAL in one zone", broker=name, zone=zone)
            wal = WalSpec(mode, choice.bytes_max, volume, (zone,), express)
    return PlacedBroker(ordinal, name, zone, wal)


def _attach_zones(index: int, zones: Sequence[str], peopled: set[str], choice: WalChoice) -> tuple[str, ...]:
    """The broker's own zone, then as many others as a volume reaches.

    Lower-numbered zones come first, since brokers fill zones from there: another broker's zone is among them from the
    second broker on, and adding brokers or zones later changes nothing for those that run.
    """
    others = [*range(index - 1, -1, -1), *range(index + 1, len(zones))]
    ordered = sorted(others, key=lambda i: zones[i] not in peopled)
    return tuple(zones[i] for i in [index, *ordered][: choice.attach_zones_max])
