"""`yunhe explain wal CLOUD`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.cli import output
from controlplane.cli.output import Format
from controlplane.cli.plans import read_texts, recorded_here
from controlplane.server.files import StateDir
from providers.base.errors import NotFound
from providers.base.registry import PROVIDERS

if TYPE_CHECKING:
    from controlplane.api.specs import Specs

TYPICAL = {
    "aliyun": ("cn-hangzhou", ("cn-hangzhou-h", "cn-hangzhou-i", "cn-hangzhou-j")),
    "azure": ("westeurope", ("1", "2", "3")),
    "gcp": ("europe-west4", ("europe-west4-a", "europe-west4-b")),
    "aws": ("us-east-1", ("use1-az4", "use1-az5", "use1-az6")),
    "private": ("site-1", ("a", "b")),
}
"""A region and zones for who asks about a provider rather than about a Cloud of theirs."""


def wal(
    state_dir: StateDir,
    cloud: str,
    spec: Sequence[Path],
    *,
    price: bool = False,
    latency: bool = False,
    prices: Path | None = None,
    form: Format,
) -> None:
    """Explain the choice for a Cloud of the spec or of what is applied, or for a provider's typical region. `price`,
    `latency`: only these, as a table of all modes.

    Raises:
        NotFound: neither has that name.
        Invalid: the prices cannot be read.
    """
    from controlplane.cli.cost import prices_of
    from controlplane.plan.bill import HEADINGS, LATENCY_HEADINGS, cloud_cost, cloud_heading, cloud_rows, latency_rows
    from controlplane.plan.explain import explain_plain, render_explain, summary
    from controlplane.plan.resolve import Assumed, choice_for

    specs = _specs(state_dir, cloud, spec)
    assumed = Assumed(prices=None if prices is None else prices_of(prices))
    choice = choice_for(specs, cloud, assumed=assumed)
    text = render_explain(choice, cloud)
    if price or latency:
        text = f"cloud {cloud}   wal {choice.mode.value}   {summary(choice)}"
        if latency:
            text += f"\n\ndesign bands\n{output.table(LATENCY_HEADINGS, latency_rows(choice))}"
        if price:
            bill = cloud_cost(specs, cloud, assumed)
            text += f"\n\n{cloud_heading(bill)}\n{output.table(HEADINGS, cloud_rows(bill))}"
    output.data(explain_plain(choice, cloud), form, text)


def _specs(state_dir: StateDir, cloud: str, spec: Sequence[Path]) -> Specs:
    """Specs that have `cloud`: the given or applied ones, or a provider's typical region."""
    from controlplane.api.kinds import API_VERSION
    from controlplane.api.load import load_texts
    from controlplane.api.specs import Specs, from_plain

    known = recorded_here(state_dir).as_specs()
    specs = load_texts(read_texts(spec), known=known).merged_over(known) if spec else known
    if cloud in specs.clouds:
        return specs
    if cloud in PROVIDERS:
        region, zones = TYPICAL[cloud]
        plain = {
            "apiVersion": API_VERSION,
            "kind": "Cloud",
            "metadata": {"name": cloud},
            "spec": {"provider": cloud, "region": region, "zones": list(zones)},
        }
        return Specs.of([from_plain(plain)])
    clouds = ", ".join(specs.clouds)
    hint = f"give a provider: {', '.join(PROVIDERS)}"
    if clouds:
        hint = f"give a Cloud ({clouds}) or a provider ({', '.join(PROVIDERS)})"
    raise NotFound(f"no Cloud is named {cloud}", hint=f"{hint}; --spec FILE names Clouds that are not applied")
