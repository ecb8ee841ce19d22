"""Which WAL an AutoMQ cluster gets: what the cloud can do, and what the installed edition has. Pure.

The open edition has one WAL, the object WAL; whatever else is asked for falls back to it, in words. The enterprise
edition also has a volume a broker, which Kubernetes detaches and attaches: it is never attached in two places.
"""

from __future__ import annotations

from dataclasses import replace

from controlplane.api.kinds import BrokerCluster
from controlplane.api.kubernetes import AutoMq
from controlplane.plan.engine_shape import AUTOMQ
from controlplane.plan.wal import WalChoice, Wants, choose_wal
from controlplane.plan.wal_table import Drive
from dataplane.contract.assignment import WalMode
from providers.base.capabilities import Capabilities

_OPEN = frozenset({Drive.OBJECT})
_ENTERPRISE = frozenset({Drive.OBJECT, Drive.FORCED, Drive.ZONAL})


def automq_of(cluster: BrokerCluster) -> AutoMq:
    """The cluster's `automq`, or what is taken where it is left out."""
    return cluster.spec.automq or AutoMq()


def choose_automq_wal(facts: Capabilities, cluster: BrokerCluster, wants: Wants) -> WalChoice:
    """The mode, with a warning where it is another one than was asked for.

    Raises:
        Invalid: as `choose_wal`; an objective that the fallback cannot meet is refused with the reason.
    """
    wants = replace(wants, engine=AUTOMQ)
    if automq_of(cluster).edition == "enterprise":
        return choose_wal(facts, wants, driven=_ENTERPRISE)
    asked = wants.mode or wants.settled
    said = "the open edition of AutoMQ has no WAL but the object WAL"
    if asked not in (None, WalMode.OBJECT):
        said = f"wal {asked} is asked for, and {said}: it falls back to object"
    choice = choose_wal(facts, replace(wants, mode=WalMode.OBJECT, settled=None), driven=_OPEN)
    return replace(choice, reasons=(said, *choice.reasons), edition_notes=(said,))
