"""Which WAL a cluster gets: a pure function of what the cloud can do and what the user wants, with reasons and with
what was rejected.

The table is `wal_table.py`, the prices `cost.py`, the text `explain.py`.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field

from controlplane.plan.cost import Cost, Load, cluster_month, kafka_month, standing_month
from controlplane.plan.engine_shape import EMBEDDED, EngineShape
from controlplane.plan.wal_table import (
    ALL_DRIVES,
    NO_ROW,
    ROWS,
    Band,
    Drive,
    Finding,
    Row,
    express_zone_for,
    regional_block,
)
from dataplane.contract.assignment import WalMode, WalSpec
from providers.base.capabilities import BlockClass, Capabilities, Scope
from providers.base.errors import Invalid

_WAL_BYTES_DEFAULT = WalSpec(WalMode.OBJECT).bytes_max
_ATTACH_ZONES_UNKNOWN = 2
"""Where the provider names no bound: Aliyun says that a regional volume has copies in at least two zones."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What the user asks of a WAL. Durations in milliseconds; None: not asked."""

    mode: WalMode | None = None
    """None: choose."""
    settled: WalMode | None = None
    """What an earlier apply chose. Better knowledge of a cloud never changes a running cluster's WAL by itself."""
    accept_zone_loss_rpo: bool = False
    bytes_max: int | None = None
    """Un-uploaded bytes a broker; None: the default, or what `survive_object_outage_ms` needs."""
    produce_p99_ms: int | None = None
    rpo_zone_loss_ms: int | None = None
    survive_object_outage_ms: int | None = None
    upload_interval_ms: int = 10_000
    """Longest time that an acked record is only in the WAL: the loss of zonal-block."""
    brokers: int = 1
    """How many share the writes."""
    load: Load = field(default_factory=Load)
    engine: EngineShape = EMBEDDED
    """Whose requests the price counts."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A mode that was not chosen, why, and what it would have given. Bands are None where the provider has no such
    mode."""

    mode: str
    why: str
    row: str | None = None
    rpo: str | None = None
    p50_ms: Band | None = None
    p99_ms: Band | None = None
    rto_s: Band | None = None
    price: Cost | None = None


@dataclass(frozen=True, slots=True)
class WalChoice:
    """The mode, and all that placement, status and `explain` need to know of it."""

    provider: str
    region: str
    zones: tuple[str, ...]
    mode: WalMode
    row: str
    """Line of the decision table."""
    reasons: tuple[str, ...]
    rejected: tuple[Alternative, ...]
    fence: str
    preempt_aborts: bool | None
    rpo: str
    rto_s: Band
    p50_ms: Band
    p99_ms: Band
    failover_needs_cloud_api: bool
    warnings: tuple[str, ...]
    bytes_max: int
    block: str | None
    """Class of the WAL's volumes."""
    attach_zones_max: int
    """Zones in which one volume is attached at once; 0 without a volume."""
    share_max: int | None
    """Hosts that may attach one volume."""
    express_of: tuple[tuple[str, str], ...]
    """(zone, express zone its brokers write to), for block+express."""
    object_zones: tuple[str, ...]
    """Zones whose brokers use the object WAL though the mode is block+express: they have no express zone but their
    own."""
    standing_usd_month: float | None
    """A broker's month before any traffic."""
    load: Load
    price: Cost
    baseline: Cost
    baseline_name: str
    edition_notes: tuple[str, ...] = ()
    """What the edition of an engine that is not ours lacks, so that the choice is narrower than the cloud's."""


def choose_wal(capabilities: Capabilities, wants: Wants, *, driven: Set[Drive] = ALL_DRIVES) -> WalChoice:
    """The first row of the table whose needs are met.

    `driven`: what this version's data plane can carry out there; a row that needs more is passed over, and says so.

    Raises:
        Invalid: no row fits, the wanted mode is not possible, or an objective is below what the chosen mode gives. The
        message holds the reasons.
    """
    _require_store(capabilities)
    rows = ROWS[capabilities.provider]
    chosen: Row | None = None
    failed: dict[str, str] = {}
    for row in rows:
        obstacle = _obstacle(row, capabilities, wants, driven)
        if obstacle is None and chosen is None:
            chosen = row
        elif obstacle is not None:
            failed[row.number] = obstacle
    if chosen is None:
        raise _none_fits(capabilities, wants, rows, failed)
    choice = _choice(chosen, capabilities, wants, driven, failed)
    _hold_objectives(choice, chosen, wants)
    return choice


def _require_store(capabilities: Capabilities) -> None:
    store = capabilities.object_class
    if store is None:
        raise Invalid(
            f"{capabilities.provider} {capabilities.region} has no object storage, and every cell "
            "keeps its ledger and its records there",
            hint="give it an S3-compatible store",
        )
    if store.create_if_absent is False:
        number = " (row 19 of the decision table)" if capabilities.provider == "private" else ""
        raise Invalid(
            f"{store.name} cannot create an object only if it is absent{number}: no ledger and no "
            "fence is possible on it",
            hint="use a store that honours If-None-Match: *, or its equivalent",
        )


def _obstacle(row: Row, capabilities: Capabilities, wants: Wants, driven: Set[Drive]) -> str | None:
    """Why `row` cannot be taken; None when it can."""
    wanted = wants.mode or wants.settled
    if wanted is not None and row.mode is not wanted:
        return _because_wanted(wants)
    if row.mode is WalMode.ZONAL_BLOCK and not wants.accept_zone_loss_rpo:
        return "loses acked records with its zone, and acceptZoneLossRpo is not set"
    unmet = [finding for finding in row.needs(capabilities) if not finding.holds]
    if unmet:
        return "; ".join(_sentence(finding) for finding in unmet)
    if row.drive not in driven:
        return f"{row.drive.value} is not driven by this version's data plane here"
    return None


def _because_wanted(wants: Wants) -> str:
    if wants.mode is not None:
        return f"{wants.mode.value} is asked for"
    return f"{wants.settled.value if wants.settled else ''} was chosen when the cluster was first applied"


def _sentence(finding: Finding) -> str:
    return f"{finding.need}: {finding.why}"


def _none_fits(capabilities: Capabilities, wants: Wants, rows: tuple[Row, ...], failed: dict[str, str]) -> Invalid:
    place = f"{capabilities.provider} {capabilities.region}"
    wanted = wants.mode or wants.settled
    if wanted is not None:
        why = [f"row {row.number}: {failed[row.number]}" for row in rows if row.mode is wanted]
        reasons = "; ".join(why) or NO_ROW.get((capabilities.provider, wanted), "no such mode there")
        hint = "write `mode: auto`, or drop mode" if wants.mode is not None else "restore what the cloud could do then"
        return Invalid(f"{place} cannot have wal.mode {wanted.value}: {reasons}", hint=hint)
    reasons = "; ".join(f"row {row.number} ({row.mode.value}): {failed[row.number]}" for row in rows)
    zonal = any(row.mode is WalMode.ZONAL_BLOCK for row in rows)
    accept = "set `acceptZoneLossRpo: true` to accept that a zone's death loses the tail" if zonal else None
    return Invalid(f"no WAL mode is possible on {place}: {reasons}", hint=accept)


def _choice(
    row: Row, capabilities: Capabilities, wants: Wants, driven: Set[Drive], failed: dict[str, str]
) -> WalChoice:
    block = _block_of(row.mode, capabilities)
    bytes_max = _wal_bytes(row, block, wants)
    price = cluster_month(capabilities, row.mode, block, wants.load, wal_bytes=bytes_max, engine=wants.engine)
    disks = capabilities.baseline_block.name if capabilities.baseline_block else "disks of your own"
    return WalChoice(
        provider=capabilities.provider,
        region=capabilities.region,
        zones=capabilities.zones,
        mode=row.mode,
        row=row.number,
        reasons=tuple(_sentence(finding) for finding in row.needs(capabilities))
        + ((_because_wanted(wants),) if wants.mode or wants.settled else ()),
        rejected=tuple(_rejected(row, capabilities, wants, driven, failed)),
        fence=_fence(row, block),
        preempt_aborts=block.preempt_aborts if block and row.mode is not WalMode.BLOCK_EXPRESS else None,
        rpo=_rpo(row, capabilities, wants),
        rto_s=row.rto_s,
        p50_ms=row.p50_ms,
        p99_ms=row.p99_ms,
        failover_needs_cloud_api=row.api,
        warnings=tuple(_warnings(row, capabilities, wants)),
        bytes_max=bytes_max,
        block=block.name if block else None,
        attach_zones_max=_attach_zones_max(row, block),
        share_max=block.share_max if block else None,
        express_of=_express_of(row, capabilities),
        object_zones=_object_zones(row, capabilities),
        standing_usd_month=standing_month(capabilities, row.mode, block, bytes_max),
        load=wants.load,
        price=price,
        baseline=kafka_month(capabilities, wants.load),
        baseline_name=f"Kafka, 3 replicas on {disks}, 3 zones, follower fetch",
    )


def _block_of(mode: WalMode, capabilities: Capabilities) -> BlockClass | None:
    match mode:
        case WalMode.REGIONAL_BLOCK:
            return regional_block(capabilities)
        case WalMode.BLOCK_EXPRESS:
            return capabilities.zonal_block
        case WalMode.ZONAL_BLOCK:
            return capabilities.zonal_shared_block
        case WalMode.OBJECT:
            return None


def _fence(row: Row, block: BlockClass | None) -> str:
    # The table says "pr" where the kind of reservation is the probe's finding.
    kind = block.reservations.value if block and block.reservations else ""
    return row.fence.replace("pr preempt", f"{kind} preempt") if row.fence == "pr preempt" else row.fence


def _attach_zones_max(row: Row, block: BlockClass | None) -> int:
    if block is None:
        return 0
    if row.drive is not Drive.PREATTACHED:
        return 1
    zones = block.zones_max or _ATTACH_ZONES_UNKNOWN
    return min(zones, block.share_max or zones)


def _express_of(row: Row, capabilities: Capabilities) -> tuple[tuple[str, str], ...]:
    if row.mode is not WalMode.BLOCK_EXPRESS:
        return ()
    pairs = ((zone, express_zone_for(capabilities, zone)) for zone in capabilities.zones)
    return tuple((zone, express) for zone, express in pairs if express is not None)


def _object_zones(row: Row, capabilities: Capabilities) -> tuple[str, ...]:
    if row.mode is not WalMode.BLOCK_EXPRESS:
        return ()
    return tuple(zone for zone in capabilities.zones if express_zone_for(capabilities, zone) is None)


def _rpo(row: Row, capabilities: Capabilities, wants: Wants) -> str:
    store = capabilities.object_class
    if row.mode is WalMode.OBJECT and store is not None and store.scope is Scope.SITE:
        return "as the site's erasure coding"
    return f"up to {wants.upload_interval_ms / 1000:g} s of acked records" if row.loses_tail else "0"


def _wal_bytes(row: Row, block: BlockClass | None, wants: Wants) -> int:
    """What a broker's WAL holds. A stated outage of the object store sizes it: W times T, shared by the brokers."""
    if wants.survive_object_outage_ms is None or row.mode is WalMode.OBJECT:
        return wants.bytes_max or _WAL_BYTES_DEFAULT
    outage_s = wants.survive_object_outage_ms / 1000
    needed = math.ceil(wants.load.ingest_mib_s * outage_s / wants.brokers) << 20
    if wants.bytes_max is not None and wants.bytes_max < needed:
        raise Invalid(
            f"wal.bytesMax of {wants.bytes_max >> 20} MiB is full after "
            f"{wants.bytes_max / (1 << 20) * wants.brokers / wants.load.ingest_mib_s:.0f} s "
            f"without the object store, and surviveObjectOutage asks for {outage_s:g} s",
            hint=(
                f"at {wants.load.ingest_mib_s:g} MiB/s over {wants.brokers} brokers it takes "
                f"{needed >> 20} MiB a broker; state objectives.ingestMiBs if you write less"
            ),
        )
    needed = max(needed, wants.bytes_max or _WAL_BYTES_DEFAULT)
    if block is not None and needed > block.size_gib[1] << 30:
        raise Invalid(
            f"surviveObjectOutage asks for a WAL of {needed >> 30} GiB a broker, and {block.name} "
            f"ends at {block.size_gib[1]} GiB",
            hint="run more brokers, or ask for less",
        )
    return needed


def _rejected(
    chosen: Row, capabilities: Capabilities, wants: Wants, driven: Set[Drive], failed: dict[str, str]
) -> list[Alternative]:
    """Rows of the chosen mode that stand above it and failed, then every other mode with its best row."""
    rows = ROWS[capabilities.provider]
    found = [
        _alternative(row, failed[row.number], capabilities, wants)
        for row in rows[: rows.index(chosen)]
        if row.mode is chosen.mode
    ]
    for mode in WalMode:
        if mode is chosen.mode:
            continue
        of_mode = [row for row in rows if row.mode is mode]
        if not of_mode:
            found.append(Alternative(mode.value, NO_ROW[(capabilities.provider, mode)]))
            continue
        best = next((row for row in of_mode if row.number not in failed), of_mode[0])
        why = "; or ".join(dict.fromkeys(failed[r.number] for r in of_mode if r.number in failed))
        if best.number not in failed:
            why = f"row {chosen.number} stands above it"
        found.append(_alternative(best, why, capabilities, wants))
    if capabilities.provider == "aws":
        found.append(Alternative("express-quorum", "two of three express zones (row 14) is not here yet"))
    return found


def _alternative(row: Row, why: str, capabilities: Capabilities, wants: Wants) -> Alternative:
    block = _block_of(row.mode, capabilities)
    wal_bytes = wants.bytes_max or _WAL_BYTES_DEFAULT
    price = cluster_month(capabilities, row.mode, block, wants.load, wal_bytes=wal_bytes, engine=wants.engine)
    rpo = _rpo(row, capabilities, wants)
    return Alternative(row.mode.value, why, row.number, rpo, row.p50_ms, row.p99_ms, row.rto_s, price)


def _warnings(row: Row, capabilities: Capabilities, wants: Wants) -> list[str]:
    found = list(row.warnings)
    store = capabilities.object_class
    if store is not None and store.create_if_absent is None:
        found.append(
            f"that {store.name} creates only if absent is not probed; apply probes it and refuses a store that fails"
        )
    if store is not None and store.scope is Scope.ZONAL:
        found.append(f"{store.name} is lost with its zone, and with it the ledger and all uploaded records")
    if store is not None and store.scope is Scope.SITE:
        found.append("the loss of the site is the loss of the cell")
    if len(capabilities.zones) == 1:
        found.append("one zone only: no broker is left to take over when it dies")
    if row.api:
        found.append("failover needs the cloud's control API, which is down in just the outages that matter")
    alone = _object_zones(row, capabilities)
    if alone:
        found.append(f"brokers in {', '.join(alone)} use the object WAL: no express zone there but their own (row 15)")
    asked = wants.produce_p99_ms
    if asked is not None and row.p99_ms[0] <= asked < row.p99_ms[1]:
        found.append(f"produceP99Ms {asked} is inside the design band {_band(row.p99_ms)} ms: measure it")
    return found


def _hold_objectives(choice: WalChoice, row: Row, wants: Wants) -> None:
    """Refuse what the chosen mode cannot give; the next mode down is never taken silently (row 20)."""
    mode = choice.mode.value
    if wants.produce_p99_ms is not None and wants.produce_p99_ms < row.p99_ms[0]:
        raise Invalid(
            f"produceP99Ms {wants.produce_p99_ms} is below the {_band(row.p99_ms)} ms of {mode}, "
            f"which is what {choice.provider} {choice.region} can have",
            hint=_faster(choice, wants.produce_p99_ms) or f"ask for {row.p99_ms[1]} or more",
        )
    if wants.rpo_zone_loss_ms is not None and row.loses_tail and wants.rpo_zone_loss_ms < wants.upload_interval_ms:
        raise Invalid(
            f"rpoZoneLoss of {wants.rpo_zone_loss_ms} ms is less than {mode} may lose with its zone, {choice.rpo}",
            hint="choose another mode, or a shorter settings.uploadIntervalMs",
        )
    if wants.survive_object_outage_ms and (choice.mode is WalMode.OBJECT or choice.object_zones):
        raise Invalid(
            f"surviveObjectOutage cannot be kept: the object WAL of {choice.provider} {choice.region} "
            "stops with the object store",
            hint="; ".join(f"{other.mode}: {other.why}" for other in choice.rejected if other.mode == "regional-block")
            or None,
        )


def _faster(choice: WalChoice, asked_ms: int) -> str | None:
    fast = [other for other in choice.rejected if other.p99_ms is not None and other.p99_ms[0] <= asked_ms]
    return "; ".join(f"{other.mode} was rejected: {other.why}" for other in fast) or None


def _band(band: Band) -> str:
    return f"{band[0]}-{band[1]}"
