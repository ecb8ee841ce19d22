"""How many brokers a cluster may run by itself, as a spec says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt

from controlplane.api.model import Model
from controlplane.api.quantities import Duration, duration_ms
from dataplane.contract.assignment import ScaleSpec

BROKERS_MAX = 64
"""Of one cluster."""


class Autoscale(Model):
    """Spare brokers, which the cell starts and stops by itself: its agents know them beforehand, so that no control
    plane is needed to start one. As with Kubernetes' HorizontalPodAutoscaler, as many brokers shall run as bring their
    use, on average, to `targetPercent`."""

    brokers_max: Annotated[StrictInt, Field(ge=2, le=BROKERS_MAX)]
    """The most brokers at once; `brokers` is the least. Those between are spare."""
    target_percent: Annotated[StrictInt, Field(ge=10, le=90)] = 60
    """Use of a broker that is aimed at: the share of one processor that its loop takes, or of `brokerMiBs`, whichever
    is greater."""
    broker_mib_s: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = Field(default=None, alias="brokerMiBs")
    """What a broker carries, MiB/s written and read together: its host's network, or what its volume takes. Left out:
    only the processor counts."""
    out_after: Duration = "5s"
    """How long more brokers have to be needed before one is started."""
    in_after: Duration = "10m"
    """How long fewer brokers have to be enough before one is stopped."""
    cool_down: Duration = "30s"
    """Between two changes."""


def scale_of(autoscale: Autoscale | None) -> ScaleSpec | None:
    """As brokers are told it."""
    if autoscale is None:
        return None
    return ScaleSpec(
        brokers_max=autoscale.brokers_max,
        target=autoscale.target_percent / 100,
        broker_bytes_per_s=autoscale.broker_mib_s << 20 if autoscale.broker_mib_s is not None else None,
        out_after_ms=duration_ms(autoscale.out_after),
        in_after_ms=duration_ms(autoscale.in_after),
        cool_down_ms=duration_ms(autoscale.cool_down),
    )
