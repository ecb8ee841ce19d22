"""From decisions to what is told: assignments for a cell's agents, and the volumes that its brokers need. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from controlplane.api.autoscale import scale_of
from controlplane.api.kinds import BrokerCluster
from controlplane.api.kubernetes import Kubernetes
from controlplane.api.listeners import security_of
from controlplane.plan.kubernetes_agents import broker_host
from controlplane.plan.placement import PlacedBroker
from controlplane.plan.placement import agent_name as agent_name
from controlplane.plan.resolve import ResolvedCluster
from dataplane.contract.assignment import (
    Assignment,
    BrokerSettings,
    BrokerSpec,
    DiskCacheSpec,
    Generation,
    MetricsSpec,
    WalMode,
)
from providers.base.capabilities import BlockClass, Capabilities
from providers.base.errors import invariant
from providers.base.registry import StoreAddress, VolumesAddress

GIB = 1 << 30
UNNUMBERED = Generation(0, 0)
"""Rendered assignments have no number yet: they get one only if they differ from what was published last."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a cell's storage is. `express`: directory buckets by zone."""

    bucket: StoreAddress
    volumes: VolumesAddress | None = None
    express: Mapping[str, StoreAddress] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VolumeNeed:
    """A volume that must exist and be attached beforehand in `zones`. `redundant`: one volume over all of them."""

    id: str
    size_bytes: int
    zones: tuple[str, ...]
    share_max: int


def assignments(
    cell: str,
    cluster: BrokerCluster,
    resolved: ResolvedCluster,
    places: Places,
    told: Iterable[str],
    kubernetes: Kubernetes | None = None,
) -> dict[str, Assignment]:
    """An assignment for each agent, by name: in zones with brokers, and an empty one for agents of the zones `told`,
    which were told something before. `kubernetes`: where the agents are pods, whose names brokers then listen on.
    """
    for broker in resolved.brokers:
        invariant(broker.wal.express in (None, *places.express), "a WAL in a bucket that the cell has not")
    zones = {broker.zone for broker in resolved.brokers} | set(told)
    spec, cache = cluster.spec, cluster.spec.settings.disk_cache
    settings = BrokerSettings(
        heartbeat_interval_ms=spec.settings.heartbeat_interval_ms,
        session_timeout_ms=spec.settings.session_timeout_ms,
        upload_interval_ms=spec.settings.upload_interval_ms,
        upload_bytes=spec.settings.upload_bytes,
        cache_bytes_max=spec.settings.cache_bytes_max,
        balance_interval_ms=spec.settings.balance_interval_ms,
        retention_interval_ms=spec.settings.retention_interval_ms,
        compaction_interval_ms=spec.settings.compaction_interval_ms,
        compaction_bytes_per_s=spec.settings.compaction_bytes_per_s,
        orphan_interval_ms=spec.settings.orphan_interval_ms,
        disk_cache=DiskCacheSpec(cache.path, cache.size) if cache is not None else None,
        zone_reads=spec.settings.zone_reads,
        scale=scale_of(spec.autoscale),
        metrics=MetricsSpec(spec.settings.metrics.enabled, spec.settings.metrics.host, spec.settings.metrics.port),
    )
    rendered = {}
    for zone in sorted(zones):
        host = broker_host(cell, zone, kubernetes, spec.listeners.host)
        brokers = tuple(_broker(b, host) for b in resolved.brokers if b.zone == zone)
        name = agent_name(cell, zone)
        rendered[name] = Assignment(
            cell=cell,
            cluster=cluster.metadata.name,
            agent=name,
            zone=zone,
            generation=UNNUMBERED,
            bucket=places.bucket,
            brokers=brokers,
            # All that the cell has, whatever its brokers' WALs are on now: a survivor, or a broker's next life, reads
            # the log of whom it recovers, and that one's WAL may have been of another mode.
            volumes=places.volumes,
            express=dict(places.express),
            settings=settings,
            security=security_of(spec.listeners, spec.authorization),
        )
    return rendered


def _broker(placed: PlacedBroker, host: str) -> BrokerSpec:
    return BrokerSpec(placed.node_id, placed.name, placed.zone, placed.wal, host, spare=placed.spare)


def emptied(newest: Assignment) -> Assignment:
    """What an agent is told when its cluster is removed: run nothing."""
    return replace(newest, brokers=(), generation=UNNUMBERED)


def differs(rendered: Assignment, newest: Assignment | None) -> bool:
    """Whether the agent must be told anew. The number alone is no difference."""
    return newest is None or replace(rendered, generation=newest.generation) != newest


def volumes(facts: Capabilities, resolved: ResolvedCluster) -> tuple[VolumeNeed, ...]:
    """The volumes that the brokers' WALs are on, sized by what the class sells."""
    needs = []
    for broker in resolved.brokers:
        wal = broker.wal
        if wal.volume is None:
            continue
        block = _class(facts, resolved, wal.mode)
        least = max(wal.bytes_max, block.size_gib[0] * GIB)
        size = -(-least // GIB) * GIB
        share = min(max(len(wal.volume_zones), 2), resolved.choice.share_max or 2)
        needs.append(VolumeNeed(wal.volume, size, wal.volume_zones, share))
    return tuple(needs)


def _class(facts: Capabilities, resolved: ResolvedCluster, mode: WalMode) -> BlockClass:
    zonal = tuple(c for c in (facts.zonal_block, facts.zonal_shared_block) if c is not None)
    found = [c for c in (*facts.regional_blocks, *zonal) if c.name == resolved.choice.block]
    invariant(bool(found), "a WAL on a volume without a class of volume", cluster=resolved.name, mode=mode)
    return found[0]
