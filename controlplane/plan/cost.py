"""What a cluster costs a month on the real cloud, and what three-way replicated Kafka would: pure arithmetic over
stated symbols.

Symbols: W MiB/s written, F fan-out, D days kept, Z zones, N nodes, S seconds a month (730 h); M = W*S/1024 GiB written
a month, R = W*86400*D/1024 GiB kept. A price that is not published is None, and so is every sum that needs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dataplane.contract.assignment import WalMode
from providers.base.capabilities import BlockClass, Capabilities, ObjectPrice

SECONDS_A_MONTH = 730 * 3600
NODE_MIB_S_ASSUMED = 238.0
"""Where a node's network baseline is not published: that of the AWS node, whose size all reference nodes share."""
WAL_GIB_MIN = 20
"""A broker's WAL volume on a real cloud: below this, volumes are slow or not sold."""
UPLOAD_MIB = 16
"""Bytes of a typical uploaded object; two puts for each, since compaction writes it again."""
EXPRESS_BATCH_S = 0.05
OBJECT_BATCH_S = 0.25
OBJECT_WAL_MIB = 8
"""A WAL object is put when it is this large, or when its batch time is over."""
KAFKA_REPLICAS = 3
KAFKA_DISK_USED = 0.7
KAFKA_ZONES = 3
KAFKA_CONTROLLERS_AS_NODES = 1.5
"""Three controllers of half a broker's price each."""
HEADROOM = 1.3


@dataclass(frozen=True, slots=True)
class Load:
    """What an estimate assumes. It is printed with every price."""

    ingest_mib_s: float = 100.0
    fan_out: float = 3.0
    retention_days: float = 7.0
    peak_over_mean: float = 2.0
    zone_local: bool = False
    """Whether clients are led to brokers of their own zone. Brokers do not do so yet, so crossing zones is charged."""


@dataclass(frozen=True, slots=True)
class Cost:
    """USD a month by part; None is unknown. `formula` shows how, `unknown` names the symbols without a value."""

    nodes: int
    compute: float | None
    wal: float | None
    storage: float | None
    requests: float | None
    cross_zone: float | None
    formula: str
    symbols: tuple[tuple[str, float | None], ...]
    """The formula's symbols with their values; None: not published or not verified."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """Symbols without a value."""
        return tuple(name for name, value in self.symbols if value is None)

    @property
    def total(self) -> float | None:
        return add(self.compute, self.wal, self.storage, self.requests, self.cross_zone)

    @property
    def known(self) -> float:
        """The sum of the parts that are known."""
        return sum(
            part for part in (self.compute, self.wal, self.storage, self.requests, self.cross_zone) if part is not None
        )


def add(*parts: float | None) -> float | None:
    """The sum, None when a part is."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def times(*factors: float | None) -> float | None:
    """The product, None when a factor is; but nothing times an unknown price is nothing."""
    known = [factor for factor in factors if factor is not None]
    if any(factor == 0 for factor in known):
        return 0.0
    return math.prod(known) if len(known) == len(factors) else None


def volume_month(block: BlockClass, gib: float, mib_s: float) -> float | None:
    """One volume of `gib` that carries `mib_s`."""
    if block.price.tiers:
        return next((usd for size, usd in block.price.tiers if size >= gib), times(gib, block.price.gib))
    extra = max(0.0, mib_s - block.mib_s_included) if block.mib_s_included is not None else 0.0
    return add(times(max(gib, block.size_gib[0]), block.price.gib), times(extra, block.price.mib_s))


def cluster_month(
    capabilities: Capabilities, mode: WalMode, block: BlockClass | None, load: Load, *, wal_bytes: int
) -> Cost:
    """A cluster of ours with that WAL, sized for `load`."""
    zones, store, express = len(capabilities.zones), capabilities.object_class, capabilities.express
    economics, object_price = capabilities.economics, store.price if store else ObjectPrice()
    copies = 2 if mode is WalMode.BLOCK_EXPRESS else 1
    nodes = _nodes(capabilities, load.ingest_mib_s * (load.fan_out + 1 + copies), zones, HEADROOM)
    written, kept = _volumes(load)
    put = 2 * load.ingest_mib_s / UPLOAD_MIB
    if mode is WalMode.OBJECT:
        put += max(nodes / OBJECT_BATCH_S, load.ingest_mib_s / OBJECT_WAL_MIB)
    get = (0.1 + (1.25 if load.zone_local else 0.0)) * load.ingest_mib_s
    formula = "N*p_node + R*p_obj + (put*p_put + get*p_get)*S/1000"
    symbols: list[tuple[str, float | None]] = [
        *_load_symbols(load, zones, nodes, written, kept),
        ("put", put),
        ("get", get),
        ("p_node", economics.node_usd_month),
        ("p_obj", object_price.gib),
        ("p_put", object_price.put),
        ("p_get", object_price.get),
    ]
    wal: float | None = 0.0
    wal_gib = max(wal_bytes / (1 << 30), WAL_GIB_MIN)
    if mode is not WalMode.OBJECT:
        volume = volume_month(block, wal_gib, load.ingest_mib_s / nodes) if block is not None else None
        wal = times(nodes, volume)
        formula += " + N*p_volume"
        symbols += [("wal_gib", wal_gib), ("p_volume", volume)]
    if mode is WalMode.BLOCK_EXPRESS:
        price = express.price if express else ObjectPrice()
        puts = max(nodes / EXPRESS_BATCH_S, load.ingest_mib_s / OBJECT_WAL_MIB)
        wal = add(
            wal,
            times(puts * SECONDS_A_MONTH / 1000, price.put),
            times(written, price.ingest_gib),
            times(nodes * wal_gib, price.gib),
        )
        formula += " + put_x*p_put_x*S/1000 + M*p_ingest_x + N*wal_gib*p_x"
        symbols += [("put_x", puts), ("p_put_x", price.put), ("p_ingest_x", price.ingest_gib), ("p_x", price.gib)]
    crossing = 0.0 if load.zone_local else (zones - 1) / zones * (1 + load.fan_out)
    if crossing:
        formula += " + M*p_xaz*(Z-1)/Z*(1+F)"
        symbols.append(("p_xaz", economics.inter_az_gib))
    return Cost(
        nodes=nodes,
        compute=times(nodes, economics.node_usd_month),
        wal=wal,
        storage=times(kept, object_price.gib),
        requests=times(SECONDS_A_MONTH / 1000, add(times(put, object_price.put), times(get, object_price.get))),
        cross_zone=times(written, economics.inter_az_gib, crossing),
        formula=formula,
        symbols=tuple(symbols),
    )


def kafka_month(capabilities: Capabilities, load: Load) -> Cost:
    """The baseline: Kafka with three replicas in three zones on the provider's usual zonal disk, consumers reading in
    their own zone (KIP-392)."""
    block, economics = capabilities.baseline_block, capabilities.economics
    out = load.ingest_mib_s * (KAFKA_REPLICAS - 1 + load.fan_out)
    nodes = _nodes(capabilities, out, KAFKA_ZONES, HEADROOM * load.peak_over_mean)
    written, kept = _volumes(load)
    crossing = (KAFKA_ZONES - 1) / KAFKA_ZONES + (KAFKA_REPLICAS - 1)
    p_blk = block.price.gib if block else None
    return Cost(
        nodes=nodes,
        compute=times(nodes + KAFKA_CONTROLLERS_AS_NODES, economics.node_usd_month),
        wal=0.0,
        storage=times(kept * KAFKA_REPLICAS / KAFKA_DISK_USED, p_blk),
        requests=0.0,
        cross_zone=times(written, economics.inter_az_gib, crossing),
        formula="(N+1.5)*p_node + R*3/0.7*p_blk + M*p_xaz*((Z-1)/Z + 2)",
        symbols=(
            *_load_symbols(load, KAFKA_ZONES, nodes, written, kept),
            ("p_node", economics.node_usd_month),
            ("p_blk", p_blk),
            ("p_xaz", economics.inter_az_gib),
        ),
    )


def standing_month(capabilities: Capabilities, mode: WalMode, block: BlockClass | None, wal_bytes: int) -> float | None:
    """What one broker costs a month before any traffic: its node and its WAL's space."""
    wal_gib = max(wal_bytes / (1 << 30), WAL_GIB_MIN)
    parts = [capabilities.economics.node_usd_month]
    if mode is not WalMode.OBJECT:
        parts.append(volume_month(block, wal_gib, 0.0) if block is not None else None)
    if mode is WalMode.BLOCK_EXPRESS:
        parts.append(times(wal_gib, capabilities.express.price.gib if capabilities.express else None))
    return add(*parts)


def _nodes(capabilities: Capabilities, out_mib_s: float, zones: int, headroom: float) -> int:
    baseline = capabilities.economics.node_mib_s or NODE_MIB_S_ASSUMED
    share = (zones - 1) / zones if zones > 1 else 1.0
    return max(3, math.ceil(out_mib_s * headroom / (baseline * share)))


def _volumes(load: Load) -> tuple[float, float]:
    """(M, R)."""
    return load.ingest_mib_s * SECONDS_A_MONTH / 1024, load.ingest_mib_s * 86_400 * load.retention_days / 1024


def _load_symbols(
    load: Load, zones: int, nodes: int, written: float, kept: float
) -> tuple[tuple[str, float | None], ...]:
    return (
        ("W", load.ingest_mib_s),
        ("F", load.fan_out),
        ("D", load.retention_days),
        ("Z", zones),
        ("N", nodes),
        ("S", SECONDS_A_MONTH),
        ("M", written),
        ("R", kept),
    )
