"""A running cluster's WAL becomes one of another mode: what a plan says of it. Pure.

Each broker in turn hands its partitions over, ends its epoch, and begins the next one on the new WAL. Nothing is
copied: what the old WAL holds is uploaded before the epoch ends, or recovered from it by the next one.
"""

from __future__ import annotations

from controlplane.plan.model import Action, Change, Verb
from controlplane.plan.placement import PlacedBroker
from controlplane.plan.resolve import ResolvedCluster
from dataplane.contract.assignment import WalMode, WalSpec

HANDOVER_MS = 300
"""Longest pause of a partition that is handed over to another broker: as `yunhe bench move` measures it."""


def switched_cluster(before: ResolvedCluster, now: ResolvedCluster, changes: tuple[Change, ...]) -> Action:
    """The cluster's line: the modes, how it is done, and the month's price of both."""
    old, new = before.choice, now.choice
    how = "broker by broker" if now.lasting > 1 else "its one broker restarts, and nobody serves meanwhile"
    price = f"{_usd(old.price.total)} -> {_usd(new.price.total)} a month at {new.load.ingest_mib_s:g} MiB/s"
    return Action(
        Verb.UPDATE,
        "BrokerCluster",
        now.name,
        f"wal {old.mode.value} -> {new.mode.value}, {how}; {price}",
        changes,
        data_at_risk=f"from then on, when a zone is lost: {new.rpo}" if new.mode is WalMode.ZONAL_BLOCK else None,
    )


def switched_broker(before: ResolvedCluster, now: ResolvedCluster, old: PlacedBroker, new: PlacedBroker) -> Action:
    """A broker's line. With nobody to hand over to, its next life recovers the old WAL: that takes as long as a
    failover."""
    alone = now.lasting == 1
    change = Change("wal.mode", old.wal.mode.value, new.wal.mode.value)
    costs = (before.choice.standing_usd_month, now.choice.standing_usd_month)
    what = "restarts on" if alone else "hands its partitions over and restarts on"
    return Action(
        Verb.UPDATE,
        "Broker",
        f"{now.name}/{new.name}",
        f"{what} wal {new.wal.mode.value}",
        (change,),
        downtime_ms=before.choice.rto_s[1] * 1000 if alone else HANDOVER_MS,
        api_calls=calls_to_make(new.wal) + calls_to_remove(old.wal),
        monthly_usd=None if costs[0] is None or costs[1] is None else costs[1] - costs[0],
    )


def calls_to_make(wal: WalSpec) -> int:
    """Calls of the cloud's API: a volume is created and attached in each of its zones, an express bucket created."""
    return (1 + len(wal.volume_zones) if wal.volume else 0) + (1 if wal.express else 0)


def calls_to_remove(wal: WalSpec) -> int:
    """Calls that detach and delete its volume. Buckets stay."""
    return 1 + len(wal.volume_zones) if wal.volume else 0


def _usd(value: float | None) -> str:
    return "an unknown price" if value is None else f"{value:,.0f} USD"
