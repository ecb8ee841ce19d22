"""`yunhe bench bill`: the requests that the lab's meter counts in a run, beside those that the cost formulas expect of
the same cluster under the same load.

The load is paced and the brokers are few: what is held against the run are the formulas and the engine's constants in
them (`plan/engine_shape.py`), not the sizing of nodes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace

from confluent_kafka import Producer

from controlplane.bench.figures import Figure, beside
from controlplane.bench.lab import DUAL, REGIONAL, SITE, Bench, one_cloud
from controlplane.drill.probe import create_topic
from controlplane.plan.cost import Load, Requests
from controlplane.plan.engine_shape import EMBEDDED
from dataplane.contract.assignment import WalMode
from providers.base.clock import Clock, SeededRng, SystemRng
from providers.base.errors import Unavailable
from providers.lab.running import RunningLab

MODES: Mapping[WalMode, Mapping[str, str]] = {
    WalMode.REGIONAL_BLOCK: REGIONAL,
    WalMode.OBJECT: SITE,
    WalMode.BLOCK_EXPRESS: DUAL,
}
BROKERS = 2
TOPIC = "bill"
MIB_S = 4.0
RECORD_BYTES = 16 << 10
SETTLE_S = 25
"""Before the meter begins: start-up's own requests are over, and uploads come at their interval."""
RUN_S = 60
APART_MAX = 0.10
"""Of the formula's figure: what the project promises."""


def bill(bench: Bench) -> list[Figure]:
    """See the module."""
    return [figure for mode, where in MODES.items() for figure in _run(bench, mode, where)]


def _run(bench: Bench, mode: WalMode, where: Mapping[str, str]) -> list[Figure]:
    with bench.lab(one_cloud(where, f"brokers: {BROKERS}")) as (clouds, _):
        bootstrap: str = clouds[0]["bootstrapServers"]
        create_topic(bootstrap, TOPIC, 2 * BROKERS)
        lab = RunningLab(bench.state_dir.root, clock=bench.clock, rng=SystemRng())
        cloud = lab.cloud(clouds[0]["name"])
        load = _Paced(bootstrap, bench.clock)
        load.run(SETTLE_S)
        cloud.reset_meter()
        written = load.run(RUN_S)
        seen = cloud.bill(cloud.meter(since_reset=True)).per_second
        load.close()
    # The run ends before a stream has enough for its first merge.
    expected = Requests.of(mode, Load(ingest_mib_s=written), replace(EMBEDDED, merge_mib=None), BROKERS)
    figures = []
    for name, row in (("put", "objects.put"), ("get", "objects.get"), ("put_express", "express.put")):
        formula = getattr(expected, name)
        if formula:
            label = f"{name} {mode.value}"
            figures.append(beside(label, seen.get(row, 0.0), "requests/s", "the formula's", formula, within=APART_MAX))
    return figures


class _Paced:
    """An ordinary producer that writes MIB_S over all partitions."""

    def __init__(self, bootstrap: str, clock: Clock) -> None:
        self._clock = clock
        self._record = os.urandom(RECORD_BYTES)  # noqa: TID251 -- content that does not compress
        self._failed: list[str] = []
        self._rng = SeededRng(1)
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "log_level": 0})

    def run(self, seconds: float) -> float:
        """Write for so long; the MiB/s that were acked.

        Raises:
            Unavailable: a record was refused, or the broker fell behind.
        """
        began_ms = self._clock.monotonic_ms()
        sent, each_ms = 0, RECORD_BYTES / (MIB_S * (1 << 20)) * 1000
        due_ms = began_ms
        while (now_ms := self._clock.monotonic_ms()) - began_ms < seconds * 1000:
            while due_ms <= now_ms:
                self._producer.produce(TOPIC, self._record, partition=sent % (2 * BROKERS), on_delivery=self._done)
                sent += 1
                # As many independent producers do: a time between two records that has no memory.
                due_ms -= each_ms * math.log(1.0 - self._rng.uniform(0, 1))
            self._producer.poll(max(0.0, min(0.05, (due_ms - now_ms) / 1000)))
        left = self._producer.flush(10)
        if left or self._failed:
            raise Unavailable(f"{left} records without ack, {len(self._failed)} refused: {self._failed[:1]}")
        return sent * RECORD_BYTES / (1 << 20) / ((self._clock.monotonic_ms() - began_ms) / 1000)

    def _done(self, error: object, message: object) -> None:
        if error is not None:
            self._failed.append(str(error))

    def close(self) -> None:
        self._producer.flush(10)
