"""`yunhe cost`: what each cloud of a spec costs a month in each WAL mode, beside the same load on Kafka. As plain data
and as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.api.specs import Specs
from controlplane.plan.cost import Cost, Load, add, kafka_month
from controlplane.plan.engine_shape import EngineShape
from controlplane.plan.explain import band_text
from controlplane.plan.resolve import Assumed, choice_for, facts_of
from controlplane.plan.wal import WalChoice
from providers.base.capabilities import CATALOGUE_DATE
from providers.base.prices import overlay_prices

KAFKA_LOCAL_HOURS = 12
"""What tiered Kafka keeps on its disks."""

PARTS = ("compute", "volumes", "storage", "requests", "cross_zone", "egress")
"""Of a month's bill, as `Cost` names them."""


@dataclass(frozen=True, slots=True)
class ModeCost:
    """One WAL mode in one cloud. `why`: what speaks against it; None for the chosen one. `cost` is None where the cloud
    has no such mode."""

    mode: str
    row: str | None
    chosen: bool
    why: str | None
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class CloudCost:
    """A cloud's month: each WAL mode, and Kafka under the same load."""

    cloud: str
    provider: str
    region: str
    zones: tuple[str, ...]
    load: Load
    engine: EngineShape
    modes: tuple[ModeCost, ...]
    kafka: tuple[tuple[str, Cost], ...]

    @property
    def chosen(self) -> Cost:
        """The chosen mode's."""
        return next(mode.cost for mode in self.modes if mode.chosen and mode.cost is not None)


def cloud_costs(specs: Specs, assumed: Assumed) -> list[CloudCost]:
    """Each cloud of `specs`, in its order.

    Raises:
        Invalid: a WAL mode or an objective is not possible there; an unknown class in the prices.
    """
    return [cloud_cost(specs, name, assumed) for name in specs.clouds]


def cloud_cost(specs: Specs, name: str, assumed: Assumed) -> CloudCost:
    """One cloud of `specs`. Raises: as `cloud_costs`."""
    choice = choice_for(specs, name, assumed=assumed)
    facts = facts_of(specs.clouds[name])
    if assumed.prices is not None:
        facts = overlay_prices(facts, assumed.prices)
    disks = facts.baseline_block.name if facts.baseline_block else "disks of your own"
    replicated = f"Kafka, 3 replicas on {disks}"
    kafka = (
        (f"{replicated}, follower fetch", kafka_month(facts, choice.load)),
        (f"{replicated}, no follower fetch", kafka_month(facts, choice.load, follower_fetch=False)),
        (
            f"{replicated}, follower fetch, tiered after {KAFKA_LOCAL_HOURS} h",
            kafka_month(facts, choice.load, local_hours=KAFKA_LOCAL_HOURS),
        ),
    )
    modes = (
        ModeCost(choice.mode.value, choice.row, True, None, choice.price),
        *(ModeCost(other.mode, other.row, False, other.why, other.price) for other in choice.rejected),
    )
    return CloudCost(name, choice.provider, choice.region, choice.zones, choice.load, assumed.engine, modes, kafka)


# -- as data


def bill_plain(clouds: Sequence[CloudCost], *, overlay: str | None) -> dict[str, Any]:
    """JSON-ready; what is not known is null. `overlay`: the file whose prices were laid over the catalogue."""
    return {
        "catalogue": {"date": CATALOGUE_DATE, "currency": "USD", "overlay": overlay},
        "period": "month of 730 h",
        "clouds": [_cloud_plain(cloud) for cloud in clouds],
        "total": {
            "chosen": add(*(cloud.chosen.total for cloud in clouds)),
            "kafka": add(*(cloud.kafka[0][1].total for cloud in clouds)),
        },
    }


def cost_plain(cost: Cost) -> dict[str, Any]:
    """One month's parts, and how they came about."""
    return {
        **{part: getattr(cost, part) for part in PARTS},
        "total": cost.total,
        "known": cost.known,
        "unknown": list(cost.unknown),
        "nodes": cost.nodes,
        "formula": cost.formula,
        "symbols": dict(cost.symbols),
    }


def _cloud_plain(cloud: CloudCost) -> dict[str, Any]:
    return {
        "cloud": cloud.cloud,
        "provider": cloud.provider,
        "region": cloud.region,
        "zones": list(cloud.zones),
        "engine": cloud.engine.name,
        "load": {name: getattr(cloud.load, name) for name in Load.__dataclass_fields__},
        "modes": [
            {
                "mode": mode.mode,
                "row": mode.row,
                "chosen": mode.chosen,
                "why": mode.why,
                "cost": None if mode.cost is None else cost_plain(mode.cost),
            }
            for mode in cloud.modes
        ],
        "kafka": [{"name": name, "cost": cost_plain(cost)} for name, cost in cloud.kafka],
    }


# -- as text

HEADINGS = ("", "NODES", *(part.upper().replace("_", "-") for part in PARTS), "TOTAL", "KAFKA/THIS")


def cloud_heading(cloud: CloudCost) -> str:
    """The line above a cloud's table."""
    load = cloud.load
    routing = "with" if load.zone_local else "without"
    return (
        f"cloud {cloud.cloud}   {cloud.provider} {cloud.region}   USD a month at {load.ingest_mib_s:g} MiB/s, "
        f"fan-out {load.fan_out:g}, {load.retention_days:g} days, {routing} zone-local clients"
    )


def cloud_rows(cloud: CloudCost) -> list[tuple[str, ...]]:
    """The table's rows: modes, the chosen one marked, then Kafka."""
    baseline = cloud.kafka[0][1].total
    rows: list[tuple[str, ...]] = [
        _row(f"{mode.mode} (chosen)" if mode.chosen else _label(mode), mode.cost, baseline)
        for mode in cloud.modes
        if mode.cost is not None
    ]
    return rows + [_row(name, cost, baseline) for name, cost in cloud.kafka]


def _label(mode: ModeCost) -> str:
    return mode.mode if mode.row is None else f"{mode.mode}, row {mode.row}"


def _row(name: str, cost: Cost, baseline: float | None) -> tuple[str, ...]:
    ratio = f"{baseline / cost.total:.1f}" if baseline and cost.total else "-"
    total = _usd(cost.total) if cost.total is not None else f"{_usd(cost.known)} + {', '.join(cost.unknown)}"
    return (name, str(cost.nodes), *(_usd(getattr(cost, part)) for part in PARTS), total, ratio)


def _usd(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def latency_rows(choice: WalChoice) -> list[tuple[str, ...]]:
    """`yunhe explain wal --latency`: each mode's design bands."""
    rows: list[tuple[str, ...]] = [
        (
            f"{choice.mode.value} (chosen)",
            choice.row,
            band_text(choice.p50_ms),
            band_text(choice.p99_ms),
            band_text(choice.rto_s),
            choice.rpo,
        )
    ]
    for other in choice.rejected:
        if other.p50_ms is not None and other.p99_ms is not None and other.rto_s is not None:
            bands = (band_text(other.p50_ms), band_text(other.p99_ms), band_text(other.rto_s))
            rows.append((other.mode, other.row or "-", *bands, other.rpo or "-"))
    return rows


LATENCY_HEADINGS = ("", "ROW", "P50 MS", "P99 MS", "RTO S", "RPO OF A ZONE'S LOSS")
