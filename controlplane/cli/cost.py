"""`yunhe cost SPEC`: the month's bill on real clouds, before there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.cli import output
from controlplane.cli.output import Format
from controlplane.cli.plans import read_texts
from providers.base.errors import Invalid

if TYPE_CHECKING:
    from controlplane.plan.cost import Load
    from controlplane.plan.resolve import Assumed
    from providers.base.prices import Prices

PRICES_BYTES_MAX = 4 << 20


def cost(spec: Sequence[Path], assumed: Assumed, *, prices: Path | None, form: Format) -> None:
    """Price each cloud of `spec` in each WAL mode, and Kafka beside it.

    Raises:
        Invalid: the spec or the prices are wrong.
    """
    from controlplane.api.load import load_texts
    from controlplane.plan.bill import HEADINGS, bill_plain, cloud_costs, cloud_heading, cloud_rows

    specs = load_texts(read_texts(spec))
    if not specs.clouds:
        raise Invalid("the spec holds no Cloud to price", hint="add one, as in examples/four-clouds.yaml")
    clouds = cloud_costs(specs, assumed)
    plain = bill_plain(clouds, overlay=None if prices is None else str(prices))
    lines = []
    for cloud in clouds:
        lines += [cloud_heading(cloud), output.table(HEADINGS, cloud_rows(cloud)), ""]
    catalogue = plain["catalogue"]
    over = f", under the prices of {prices}" if prices else ""
    lines.append(f"prices as of {catalogue['date']}{over}; formulas and sources: docs/cost.md, -o json")
    output.data(plain, form, "\n".join(lines))


def assumptions(
    *,
    engine: str,
    prices: Path | None,
    ingest: float | None,
    fan_out: float | None,
    days: float | None,
    zone_local: bool,
    egress_share: float | None,
) -> Assumed:
    """What the options say, where they say anything.

    Raises:
        Invalid: an unknown engine, a prices file that cannot be read.
    """
    from controlplane.plan.engine_shape import ENGINES
    from controlplane.plan.resolve import Assumed

    if engine not in ENGINES:
        raise Invalid(f"no engine is named {engine}", hint=f"one of: {', '.join(ENGINES)}")
    load = _load(ingest, fan_out, days, zone_local, egress_share)
    return Assumed(load, None if prices is None else prices_of(prices), ENGINES[engine])


def _load(
    ingest: float | None, fan_out: float | None, days: float | None, zone_local: bool, egress_share: float | None
) -> Load | None:
    """None when no option says anything: then the spec's objectives hold."""
    from controlplane.plan.cost import Load

    said = {"ingest_mib_s": ingest, "fan_out": fan_out, "retention_days": days, "egress_share": egress_share}
    stated = {name: value for name, value in said.items() if value is not None}
    return Load(**stated, zone_local=zone_local) if stated or zone_local else None


def prices_of(path: Path) -> Prices:
    """The prices in a YAML file.

    Raises:
        Invalid: unreadable, or not of the form that docs/cost.md shows.
    """
    import yaml

    from providers.base.prices import read_prices

    try:
        if path.stat().st_size > PRICES_BYTES_MAX:
            raise Invalid(f"{path} is larger than {PRICES_BYTES_MAX >> 20} MiB")
        plain = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Invalid(f"{path} cannot be read: {error}", hint="it is a YAML file, see docs/cost.md") from error
    return read_prices(plain, str(path))
