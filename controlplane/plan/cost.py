"""What a cluster costs a month on the real cloud, and what three-way replicated Kafka would: pure arithmetic over
stated symbols.

Symbols: W MiB/s written (after compression), F fan-out, D days kept, Z zones, N nodes, S seconds a month (730 h);
M = W*S/1024 GiB written a month, R = W*86400*D/1024 GiB kept; the engine's own are in `engine_shape.py`. A price that
is not published is None, and so is every sum that needs it. `docs/cost.md` writes the formulas out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controlplane.plan.engine_shape import EMBEDDED, EngineShape
from dataplane.contract.assignment import WalMode
from providers.base.capabilities import BlockClass, Capabilities, Economics, ObjectPrice

SECONDS_A_MONTH = 730 * 3600
NODE_MIB_S_ASSUMED = 238.0
"""Where a node's network baseline is not published: that of the AWS node, whose size all reference nodes share."""
WAL_GIB_MIN = 20
"""A broker's WAL volume on a real cloud: below this, volumes are slow or not sold."""
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
    egress_share: float = 0.0
    """How much of what is written leaves the cloud once: 1.0 is a full mirror in one other cloud."""


@dataclass(frozen=True, slots=True)
class Cost:
    """USD a month by part; None is unknown. `formula` shows how, `unknown` names the symbols without a value."""

    nodes: int
    compute: float | None
    volumes: float | None
    """Block volumes, and the space of express buckets that stand in for one."""
    storage: float | None
    """What is kept in object storage."""
    requests: float | None
    """Of object stores, the WAL's included, and what some charge for each GiB that goes in."""
    cross_zone: float | None
    egress: float | None
    formula: str
    symbols: tuple[tuple[str, float | None], ...]
    """The formula's symbols with their values; None: not published or not verified."""

    @property
    def parts(self) -> tuple[float | None, ...]:
        """All parts of the total."""
        return self.compute, self.volumes, self.storage, self.requests, self.cross_zone, self.egress

    @property
    def unknown(self) -> tuple[str, ...]:
        """Symbols without a value."""
        return tuple(name for name, value in self.symbols if value is None)

    @property
    def total(self) -> float | None:
        return add(*self.parts)

    @property
    def known(self) -> float:
        """The sum of the parts that are known."""
        return sum(part for part in self.parts if part is not None)


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


def egress_month(economics: Economics, gib: float) -> float | None:
    """`gib` a month out of the cloud. Each step of the price holds up to its bound, what is free counted in."""
    if gib <= 0:
        return 0.0
    if not economics.egress_gib:
        return None
    total, below = 0.0, economics.egress_free_gib
    for bound, usd in economics.egress_gib:
        upto = gib if bound is None else min(gib, bound)
        total += max(0.0, upto - below) * usd
        below = max(below, upto)
    return total


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests a second that a cluster of ours makes, by how clouds bill them."""

    put: float
    get: float
    put_express: float

    @staticmethod
    def of(mode: WalMode, load: Load, engine: EngineShape, nodes: int) -> Requests:
        """The formulas of `put`, `get` and `put_x`."""
        written = load.ingest_mib_s
        uploads = written / engine.upload_mib
        if engine.upload_interval_s is not None and written > 0:
            uploads = max(uploads, nodes / engine.upload_interval_s)
        put = uploads * engine.puts_an_upload
        gap_s = nodes * engine.append_mib / written if written > 0 else math.inf  # between two appends to a broker
        if mode is WalMode.OBJECT:
            put += max(nodes / (engine.object_batch_s + gap_s), written / engine.wal_object_mib)
        gets_a_mib = engine.gets_a_mib + (engine.zone_local_gets_a_mib if load.zone_local else 0.0)
        standing = engine.standing_gets_a_cell_s + nodes * engine.standing_gets_a_broker_s
        get, entries = gets_a_mib * written + standing, uploads
        if engine.merge_mib is not None:
            merges = written / engine.merge_mib
            put += merges * engine.merge_puts
            get += merges * engine.merge_gets + uploads  # of each upload the index is read
            entries += merges
        get += (nodes + 1) * engine.entry_gets * entries
        express = 0.0
        if mode is WalMode.BLOCK_EXPRESS:
            express = max(nodes / max(engine.express_batch_s, gap_s), written / engine.wal_object_mib)
        return Requests(put, get, express)


def cluster_month(
    capabilities: Capabilities,
    mode: WalMode,
    block: BlockClass | None,
    load: Load,
    *,
    wal_bytes: int,
    engine: EngineShape = EMBEDDED,
) -> Cost:
    """A cluster of ours with that WAL, sized for `load`."""
    zones, store = len(capabilities.zones), capabilities.object_class
    economics, price = capabilities.economics, store.price if store else ObjectPrice()
    copies = 2 if mode is WalMode.BLOCK_EXPRESS else 1
    nodes = _nodes(capabilities, load.ingest_mib_s * (load.fan_out + 1 + copies), zones, HEADROOM)
    written, kept = _amounts(load)
    asked = Requests.of(mode, load, engine, nodes)
    formula = "N*p_node + R*p_obj + (put*p_put + get*p_get)*S/1000"
    symbols: list[tuple[str, float | None]] = [
        *_load_symbols(load, zones, nodes, written, kept),
        ("put", asked.put),
        ("get", asked.get),
        ("p_node", economics.node_usd_month),
        ("p_obj", price.gib),
        ("p_put", price.put),
        ("p_get", price.get),
    ]
    thousands = SECONDS_A_MONTH / 1000
    requests = times(thousands, add(times(asked.put, price.put), times(asked.get, price.get)))
    volumes: float | None = 0.0
    wal_gib = max(wal_bytes / (1 << 30), WAL_GIB_MIN)
    if mode is not WalMode.OBJECT:
        volume = volume_month(block, wal_gib, load.ingest_mib_s / nodes) if block is not None else None
        volumes = times(nodes, volume)
        formula += " + N*p_volume"
        symbols += [("wal_gib", wal_gib), ("p_volume", volume)]
    if mode is WalMode.BLOCK_EXPRESS:
        express = capabilities.express.price if capabilities.express else ObjectPrice()
        requests = add(requests, times(asked.put_express * thousands, express.put), times(written, express.ingest_gib))
        volumes = add(volumes, times(nodes * wal_gib, express.gib))
        formula += " + put_x*p_put_x*S/1000 + M*p_ingest_x + N*wal_gib*p_x"
        symbols += [("put_x", asked.put_express), ("p_put_x", express.put)]
        symbols += [("p_ingest_x", express.ingest_gib), ("p_x", express.gib)]
    crossing = 0.0 if load.zone_local else (zones - 1) / zones * (1 + load.fan_out)
    if crossing:
        formula += " + M*p_xaz*(Z-1)/Z*(1+F)"
        symbols.append(("p_xaz", economics.inter_az_gib))
    egress, formula = _egress(economics, load, written, formula, symbols)
    return Cost(
        nodes=nodes,
        compute=times(nodes, economics.node_usd_month),
        volumes=volumes,
        storage=times(kept, price.gib),
        requests=requests,
        cross_zone=times(written, economics.inter_az_gib, crossing),
        egress=egress,
        formula=formula,
        symbols=tuple(symbols),
    )


def kafka_month(
    capabilities: Capabilities, load: Load, *, follower_fetch: bool = True, local_hours: float | None = None
) -> Cost:
    """The baseline: Kafka with three replicas in three zones on the provider's usual zonal disk.

    `follower_fetch`: consumers read in their own zone (KIP-392). `local_hours`: with tiered storage, the hours kept on
    the disks; the rest is in the object store, whose requests are left out.
    """
    block, economics = capabilities.baseline_block, capabilities.economics
    tiered = local_hours is not None
    out = load.ingest_mib_s * (KAFKA_REPLICAS - 1 + load.fan_out + (1 if tiered else 0))
    nodes = _nodes(capabilities, out, KAFKA_ZONES, HEADROOM * load.peak_over_mean)
    written, kept = _amounts(load)
    on_disk = kept if local_hours is None else load.ingest_mib_s * 3600 * local_hours / 1024
    readers = 0.0 if follower_fetch else load.fan_out * (KAFKA_ZONES - 1) / KAFKA_ZONES
    crossing = (KAFKA_ZONES - 1) / KAFKA_ZONES + (KAFKA_REPLICAS - 1) + readers
    p_blk = block.price.gib if block else None
    store = capabilities.object_class
    p_obj = store.price.gib if store else None
    formula = f"(N+1.5)*p_node + {'L' if tiered else 'R'}*3/0.7*p_blk + M*p_xaz*((Z-1)/Z + 2"
    formula += ")" if follower_fetch else " + F*(Z-1)/Z)"
    symbols: list[tuple[str, float | None]] = [
        *_load_symbols(load, KAFKA_ZONES, nodes, written, kept),
        ("p_node", economics.node_usd_month),
        ("p_blk", p_blk),
        ("p_xaz", economics.inter_az_gib),
    ]
    if tiered:
        formula += " + R*p_obj"
        symbols += [("L", on_disk), ("p_obj", p_obj)]
    egress, formula = _egress(economics, load, written, formula, symbols)
    return Cost(
        nodes=nodes,
        compute=times(nodes + KAFKA_CONTROLLERS_AS_NODES, economics.node_usd_month),
        volumes=times(on_disk * KAFKA_REPLICAS / KAFKA_DISK_USED, p_blk),
        storage=times(kept, p_obj) if tiered else 0.0,
        requests=0.0,
        cross_zone=times(written, economics.inter_az_gib, crossing),
        egress=egress,
        formula=formula,
        symbols=tuple(symbols),
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


def _egress(
    economics: Economics, load: Load, written: float, formula: str, symbols: list[tuple[str, float | None]]
) -> tuple[float | None, str]:
    if not load.egress_share:
        return 0.0, formula
    usd = egress_month(economics, load.egress_share * written)
    symbols += [("x", load.egress_share), ("egress", usd)]
    return usd, formula + " + egress(x*M)"


def _nodes(capabilities: Capabilities, out_mib_s: float, zones: int, headroom: float) -> int:
    baseline = capabilities.economics.node_mib_s or NODE_MIB_S_ASSUMED
    share = (zones - 1) / zones if zones > 1 else 1.0
    return max(3, math.ceil(out_mib_s * headroom / (baseline * share)))


def _amounts(load: Load) -> tuple[float, float]:
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
