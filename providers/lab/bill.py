"""The bill of a run: what the meter counted, at the catalogue's prices. Pure.

Requests are billed as the clouds class them: what writes or lists at the price of a put (S3 and GCS "class A", OSS
"put-type", Azure "write" and "list" operations), what reads at that of a get, deletes for nothing. An answer that says
that the cloud could not (5xx, throttled) is not billed. What has no known price is counted and named, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from providers.base.capabilities import Capabilities, ObjectPrice

GIB = 1 << 30
HOURS_A_MONTH = 730
PUT_CLASS = frozenset({"put", "append", "copy", "upload", "part", "bucket", "list"})
GET_CLASS = frozenset({"get", "head", "other"})
SECONDS_A_MONTH = HOURS_A_MONTH * 3600


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a bill. `usd` None: the price is not known. `rate_usd`: per `unit`."""

    service: str
    what: str
    amount: float
    unit: str
    rate_usd: float | None
    usd: float | None


@dataclass(frozen=True, slots=True)
class Bill:
    """What a run cost. `usd` sums the lines whose price is known; `unpriced` names the others.

    `usd_month`: the same at this pace for a month of 730 hours; standing space counts as it is now. None when the run
    was too short to say.
    """

    elapsed_s: float
    lines: tuple[Line, ...]
    usd: float
    usd_month: float | None
    unpriced: tuple[str, ...]
    per_second: Mapping[str, float]
    """Requests a second by service and class, as `yunhe cost` has them: put, get."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def bill(snapshot: Mapping[str, Any], capabilities: Capabilities) -> Bill:
    """Price a meter's snapshot with a cloud's catalogue."""
    lines: list[Line] = []
    per_second: dict[str, float] = {}
    elapsed_s = float(snapshot["elapsed_s"])
    store = capabilities.object_class
    for service, price in (
        ("objects", store.price if store else ObjectPrice()),
        ("express", capabilities.express.price if capabilities.express else ObjectPrice()),
    ):
        rows = [row for row in snapshot["rows"] if row["service"] == service]
        for name, verbs, rate in (("put", PUT_CLASS, price.put), ("get", GET_CLASS, price.get)):
            count = sum(row["requests"] for row in rows if row["verb"] in verbs)
            if elapsed_s:
                per_second[f"{service}.{name}"] = count / elapsed_s
            if count:
                lines.append(_line(service, f"{name} requests", count, "request", _over(rate, 1000)))
        for what, key, rate in (
            ("uploaded", "bytes_in", price.ingest_gib),
            ("read", "bytes_out", price.retrieve_gib),
        ):
            if rate and (moved := sum(row[key] for row in rows)):
                lines.append(_line(service, what, moved / GIB, "GiB", rate))
    if crossed := crossing_bytes(snapshot["rows"]):
        rate = capabilities.economics.inter_az_gib
        lines.append(_line("network", "between zones", crossed / GIB, "GiB", rate))
    month_standing = 0.0
    for row in snapshot["standing"]:
        rate = _standing_rate(row["what"], capabilities)
        if row["gib_hours"] or row["bytes"]:
            lines.append(_line(row["what"], "space", row["gib_hours"], "GiB-hour", _over(rate, HOURS_A_MONTH)))
            month_standing += row["bytes"] / GIB * (rate or 0.0)
    running = sum(line.usd or 0.0 for line in lines if line.unit != "GiB-hour")
    return Bill(
        elapsed_s=elapsed_s,
        lines=tuple(lines),
        usd=sum(line.usd or 0.0 for line in lines),
        usd_month=running / elapsed_s * SECONDS_A_MONTH + month_standing if elapsed_s >= 1 else None,
        unpriced=tuple(f"{line.service} {line.what}" for line in lines if line.usd is None),
        per_second=per_second,
    )


def crossing_bytes(rows: Sequence[Mapping[str, Any]]) -> int:
    """Bytes between a caller and a bucket of different zones, where both are known."""
    return sum(
        row["bytes_in"] + row["bytes_out"]
        for row in rows
        if row["zone"] and row["caller_zone"] and row["zone"] != row["caller_zone"]
    )


def _line(service: str, what: str, amount: float, unit: str, rate: float | None) -> Line:
    return Line(service, what, amount, unit, rate, None if rate is None else amount * rate)


def _over(price: float | None, divisor: float) -> float | None:
    return None if price is None else price / divisor


def _standing_rate(what: str, capabilities: Capabilities) -> float | None:
    """USD per GiB and month. Classes that are sold by size step are priced by the GiB here: the lab's volumes are far
    below the smallest step."""
    match what:
        case "objects":
            return capabilities.object_class.price.gib if capabilities.object_class else None
        case "express":
            return capabilities.express.price.gib if capabilities.express else None
        case "volume:regional":
            return capabilities.regional_blocks[0].price.gib if capabilities.regional_blocks else None
        case "volume:zonal":
            return capabilities.zonal_block.price.gib if capabilities.zonal_block else None
    return None
