"""`yunhe explain wal CLOUD`: a WalChoice as text, and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from controlplane.plan.cost import Cost, Load
from controlplane.plan.wal import Alternative, WalChoice
from controlplane.plan.wal_table import Band
from dataplane.contract.assignment import WalMode

_LABEL_WIDTH = 11


def render_explain(choice: WalChoice, cloud: str) -> str:
    """The text, without a final newline."""
    lines = [
        f"cloud {cloud}   wal {choice.mode.value}   {summary(choice)}",
        *_block("because", [f"row {choice.row} of the decision table", *choice.reasons]),
        *_block("fence", [_fence(choice)]),
        *_block("rpo", [f"{choice.rpo}, when a zone is lost"]),
        *_block("rto", [f"{band_text(choice.rto_s)} s (design)"]),
        *_block("produce", [f"p50 {band_text(choice.p50_ms)} ms, p99 {band_text(choice.p99_ms)} ms (design)"]),
        *_block(
            "failover", ["needs the cloud's control API" if choice.failover_needs_cloud_api else "needs no cloud API"]
        ),
        *_block("full at", [f"{_size(choice.bytes_max)} not uploaded, a broker; then appends are pushed back"]),
        *_block("price", _price(choice.price, choice.load)),
        *_block("compared", _compared(choice)),
    ]
    if choice.warnings:
        lines += _block("beware", list(choice.warnings))
    lines += _block("rejected", [line for other in choice.rejected for line in _rejected(other)])
    return "\n".join(lines)


def explain_plain(choice: WalChoice, cloud: str) -> dict[str, Any]:
    """The same as JSON-ready data; a price that is not known is null."""
    plain = asdict(choice)
    plain["mode"] = choice.mode.value
    for name in ("price", "baseline"):
        plain[name]["total"] = getattr(choice, name).total
    for other, shown in zip(choice.rejected, plain["rejected"], strict=True):
        if other.price is not None:
            shown["price"]["total"] = other.price.total
    return {"cloud": cloud, "summary": summary(choice), **plain}


def summary(choice: WalChoice) -> str:
    """One line that says what the mode means in this cloud."""
    zones = _and(choice.zones)
    match choice.mode:
        case WalMode.REGIONAL_BLOCK if choice.attach_zones_max == 1:
            return "a zone-redundant volume a broker, taken over by the cloud's API"
        case WalMode.REGIONAL_BLOCK if len(choice.zones) == 1:
            return f"a zone-redundant volume a broker, attached in zone {zones}"
        case WalMode.REGIONAL_BLOCK if choice.attach_zones_max < len(choice.zones):
            return f"a volume a broker, attached in {choice.attach_zones_max} of the zones {zones}"
        case WalMode.REGIONAL_BLOCK:
            return f"a volume a broker, attached in zones {zones}"
        case WalMode.BLOCK_EXPRESS:
            return "no multi-zone volume here, so both logs are durable before an ack"
        case WalMode.OBJECT:
            return "an append is durable when its object is created"
        case WalMode.ZONAL_BLOCK:
            return "a volume in one zone; its death loses what is not uploaded, as was accepted"


def _fence(choice: WalChoice) -> str:
    if choice.preempt_aborts is None:
        return choice.fence
    flight = "aborts" if choice.preempt_aborts else "does not abort"
    return f"{choice.fence}; it {flight} writes in flight"


def _price(cost: Cost, load: Load) -> list[str]:
    routing = "with" if load.zone_local else "without"
    return [
        f"{_usd(cost.total)} a month on the real cloud, at {load.ingest_mib_s:g} MiB/s, fan-out {load.fan_out:g}, "
        f"{load.retention_days:g} days, {routing} zone-local clients",
        *_parts(cost),
    ]


def _compared(choice: WalChoice) -> list[str]:
    ours, theirs = choice.price.total, choice.baseline.total
    ratio = f"{theirs / ours:.1f} times ours" if ours and theirs else "ratio unknown"
    return [f"{_usd(theirs)} a month ({ratio}): {choice.baseline_name}", *_parts(choice.baseline)]


def _parts(cost: Cost) -> list[str]:
    lines = [
        f"nodes {_usd(cost.compute)}, volumes {_usd(cost.volumes)}, storage {_usd(cost.storage)}, "
        f"requests {_usd(cost.requests)}, between zones {_usd(cost.cross_zone)}, egress {_usd(cost.egress)}",
        f"= {cost.formula}",
        "with " + " ".join(f"{name}={_number(value)}" for name, value in cost.symbols),
    ]
    if cost.unknown:
        lines.append(f"unknown: {', '.join(cost.unknown)}; the known parts add up to {_usd(cost.known)}")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _rejected(other: Alternative) -> list[str]:
    lines = [f"{other.mode:<16}{other.why}"]
    if other.p99_ms is not None and other.rto_s is not None and other.price is not None:
        bands = f"rto {band_text(other.rto_s)} s, p99 {band_text(other.p99_ms)} ms"
        lines.append(f"{'':<16}row {other.row}: rpo {other.rpo}, {bands}, {_usd(other.price.total)} a month")
    return lines


def _block(label: str, items: list[str]) -> list[str]:
    return [f"  {label if index == 0 else '':<{_LABEL_WIDTH}}{item}" for index, item in enumerate(items)]


def _usd(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f} USD"


def band_text(band: Band) -> str:
    """`5-10`, or `1` where both ends are the same."""
    return f"{band[0]}-{band[1]}" if band[0] != band[1] else str(band[0])


def _and(items: tuple[str, ...]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _size(size: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= scale:
            return f"{size / scale:g} {unit}" if size % scale == 0 else f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
