"""A user's own prices over the catalogue's: a discount, another region, what the catalogue does not know.

The form is the one in which the catalogue was gathered (docs/cost.md): `entries`, each naming a provider and a storage
class, and `providers` for what belongs to no class. What is not written stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from providers.base.capabilities import BlockClass, BlockPrice, Capabilities, Economics, ObjectClass, ObjectPrice
from providers.base.errors import Invalid
from providers.base.registry import PROVIDERS

_BLOCK = {"price_gib_month": "gib", "price_iops": "iops", "price_mbps": "mib_s"}
_OBJECT = {"price_gib_month": "gib", "ingest_gib": "ingest_gib", "retrieve_gib": "retrieve_gib"}
_REQUESTS = ("put", "get")


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices as a file states them. Entries by (provider, class name), provider facts by provider."""

    entries: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    providers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_prices(plain: object, file: str) -> Prices:
    """Prices from a file's plain values; keys that say no price (sources, limits, notes) are passed over.

    Raises:
        Invalid: not of that form, an unknown provider, a price that is no number or is negative.
    """
    if not isinstance(plain, Mapping):
        raise Invalid(f"{file} holds no prices", hint="it has `entries` and `providers`; see docs/cost.md")
    entries: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in _list(plain.get("entries", []), f"{file}: entries"):
        provider, name = row.get("provider"), row.get("name")
        if provider not in PROVIDERS or not isinstance(name, str):
            raise Invalid(
                f"{file}: an entry names a provider and a class, not {provider!r} and {name!r}",
                hint=f"providers: {', '.join(PROVIDERS)}",
            )
        _check_entry(row, f"{file}: {provider} {name}")
        entries[(provider, name)] = row
    providers = plain.get("providers", {})
    if not isinstance(providers, Mapping):
        raise Invalid(f"{file}: providers maps a provider to its prices")
    for provider, facts in providers.items():
        if provider not in PROVIDERS or not isinstance(facts, Mapping):
            raise Invalid(f"{file}: {provider!r} is no provider", hint=f"one of: {', '.join(PROVIDERS)}")
        _economics(Economics(None, "", None, None, ""), facts, f"{file}: {provider}")
    return Prices(entries, providers)


def overlay_prices(capabilities: Capabilities, prices: Prices) -> Capabilities:
    """The facts with those prices in place of the catalogue's.

    Raises:
        Invalid: an entry names a class that the catalogue does not have for that provider.
    """
    provider = capabilities.provider
    known = {entry.name for entry in _classes(capabilities)}
    for of, name in prices.entries:
        if of == provider and name not in known and name not in _CATALOGUED_ELSEWHERE:
            raise Invalid(
                f"{provider} has no storage class {name!r} in the catalogue", hint=f"one of: {', '.join(sorted(known))}"
            )

    def block(entry: BlockClass) -> BlockClass:
        row = prices.entries.get((provider, entry.name))
        return entry if row is None else replace(entry, price=_block_price(entry.price, row))

    def store(entry: ObjectClass) -> ObjectClass:
        row = prices.entries.get((provider, entry.name))
        return entry if row is None else replace(entry, price=_object_price(entry.price, row))

    def block_or_none(entry: BlockClass | None) -> BlockClass | None:
        return None if entry is None else block(entry)

    facts = prices.providers.get(provider)
    return replace(
        capabilities,
        objects=tuple(store(entry) for entry in capabilities.objects),
        express=None if capabilities.express is None else store(capabilities.express),
        regional_blocks=tuple(block(entry) for entry in capabilities.regional_blocks),
        zonal_block=block_or_none(capabilities.zonal_block),
        zonal_shared_block=block_or_none(capabilities.zonal_shared_block),
        baseline_block=block_or_none(capabilities.baseline_block),
        economics=capabilities.economics if facts is None else _economics(capabilities.economics, facts, provider),
    )


_CATALOGUED_ELSEWHERE = frozenset(
    # Classes of the study that no row of the decision table uses.
    ["io1", "essd-pl0", "essd-pl2", "essd-pl3", "premium-ssd-lrs", "standard-ssd-zrs", "regional-pd-ssd"]
)


def _classes(capabilities: Capabilities) -> list[BlockClass | ObjectClass]:
    volumes = (capabilities.zonal_block, capabilities.zonal_shared_block, capabilities.baseline_block)
    stores = (*capabilities.objects, capabilities.express)
    every = (*capabilities.regional_blocks, *volumes, *stores)
    return [entry for entry in every if entry is not None]


def _block_price(price: BlockPrice, row: Mapping[str, Any]) -> BlockPrice:
    stated = {ours: row[theirs] for theirs, ours in _BLOCK.items() if theirs in row}
    if "price_tier_month" in row:
        stated["tiers"] = _tiers(row["price_tier_month"])
    elif "gib" in stated and price.tiers:
        stated["tiers"] = ()  # a price by size replaces the steps
    return replace(price, **stated)


def _object_price(price: ObjectPrice, row: Mapping[str, Any]) -> ObjectPrice:
    stated = {ours: row[theirs] for theirs, ours in _OBJECT.items() if theirs in row}
    requests = row.get("requests") or {}
    stated |= {name: requests[name] for name in _REQUESTS if name in requests}
    return replace(price, **stated)


def _tiers(plain: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """{P10_128GiB: 29.57} as ((128, 29.57),)."""
    sized = ((int(name.rpartition("_")[2].removesuffix("GiB")), float(usd)) for name, usd in plain.items())
    return tuple(sorted(sized))


def _economics(known: Economics, facts: Mapping[str, Any], where: str) -> Economics:
    stated: dict[str, Any] = {}
    zone = facts.get("inter_az_gib")
    if isinstance(zone, Mapping) and "total" in zone:
        stated["inter_az_gib"] = _number(zone["total"], f"{where}: inter_az_gib.total")
    node = facts.get("compute_ref")
    if isinstance(node, Mapping):
        stated |= {
            ours: _number(node[theirs], f"{where}: compute_ref.{theirs}")
            for theirs, ours in (("usd_month", "node_usd_month"), ("net_baseline_mibs", "node_mib_s"))
            if theirs in node
        }
        if "sku" in node:
            stated["node"] = str(node["sku"]).removeprefix("Standard_")
    egress = facts.get("internet_egress_gib")
    if isinstance(egress, Mapping):
        if "free" in egress:
            stated["egress_free_gib"] = _number(egress["free"], f"{where}: internet_egress_gib.free")
        if "tiers" in egress:
            stated["egress_gib"] = _steps(egress["tiers"], f"{where}: internet_egress_gib.tiers")
    return replace(known, **stated)


def _steps(plain: object, where: str) -> tuple[tuple[float | None, float], ...]:
    steps: list[tuple[float | None, float]] = []
    for step in plain if isinstance(plain, list) else [plain]:
        if not isinstance(step, list) or len(step) != 2:
            raise Invalid(f"{where} is a list of [up to GiB or null, USD a GiB]")
        usd = _number(step[1], where)
        if usd is None:
            raise Invalid(f"{where} has a step without a price")
        steps.append((_number(step[0], where), usd))
    return tuple(steps)


def _check_entry(row: Mapping[str, Any], where: str) -> None:
    for name in (*_BLOCK, *_OBJECT):
        if name in row:
            _number(row[name], f"{where}: {name}")
    requests = row.get("requests") or {}
    if not isinstance(requests, Mapping):
        raise Invalid(f"{where}: requests maps put and get to USD per 1,000")
    for name in _REQUESTS:
        if name in requests:
            _number(requests[name], f"{where}: requests.{name}")
    tiers = row.get("price_tier_month")
    if tiers is not None:
        try:
            _tiers(tiers)
        except (AttributeError, TypeError, ValueError) as error:
            raise Invalid(f"{where}: price_tier_month maps names such as P10_128GiB to USD") from error


def _number(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise Invalid(f"{where} is a number of 0 or more, or null where it is unknown, not {value!r}")
    return value


def _list(plain: object, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(plain, list) or not all(isinstance(row, Mapping) for row in plain):
        raise Invalid(f"{where} is a list of mappings")
    return plain
