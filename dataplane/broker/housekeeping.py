"""What a node does beside serving: it lets old records go, merges small objects, and deletes what nothing refers to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from dataplane.broker.compacting import Compactor
from dataplane.broker.orphans import OrphanCollector
from dataplane.broker.partitions import PartitionSet
from dataplane.broker.retaining import Append, Retainer
from dataplane.contract.assignment import BrokerSettings
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import CellState
from dataplane.stream.reader import ObjectReader
from providers.base.clock import Clock
from providers.base.objects import ObjectStore


def housekeeping(
    me: NodeEpoch,
    *,
    cluster: str,
    incarnation: str,
    settings: BrokerSettings,
    state: Callable[[], CellState],
    partitions: PartitionSet,
    reader: ObjectReader,
    store: ObjectStore,
    append: Append,
    busy: Callable[[], bool],
    clock: Clock,
) -> list[Coroutine[Any, Any, None]]:
    """The loops of it, each to be run until cancelled. `busy`: whether what is not urgent should wait."""
    retainer = Retainer(
        me,
        state=state,
        partitions=lambda: partitions,
        reader=reader,
        append=append,
        clock=clock,
        interval_ms=settings.retention_interval_ms,
    )
    compactor = Compactor(
        me,
        cluster=cluster,
        incarnation=incarnation,
        state=state,
        partitions=lambda: partitions,
        reader=reader,
        bucket=store,
        append=append,
        busy=busy,
        clock=clock,
        interval_ms=settings.compaction_interval_ms,
        bytes_per_s=settings.compaction_bytes_per_s,
    )
    orphans = OrphanCollector(
        me, cluster=cluster, state=state, bucket=store, clock=clock, interval_ms=settings.orphan_interval_ms
    )
    return [retainer.run(), compactor.run(), orphans.run()]
