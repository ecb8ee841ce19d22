"""How soon a broker that comes (back) is put to use."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

from controlplane.bench.figures import Figure, at_most
from controlplane.bench.lab import REGIONAL, Bench, one_cloud
from controlplane.cli.kafka_admin import Cluster, describe
from controlplane.drill.faults import Faults
from controlplane.drill.probe import create_topic
from providers.base.clock import sleep_blocking_ms
from providers.base.errors import Unavailable

TOPIC = "bench-balance"
PARTITIONS = 12
SPREAD = 1
"""By how many partitions an even load may differ."""
WAIT_MS = 60_000
LOOK_MS = 20


def balance(bench: Bench) -> list[Figure]:
    """A broker is killed, kept away until the others lead everything, and let back: how long from its first heartbeat
    in the metadata to the first partition that it leads, and to an even load.
    """
    with bench.lab(one_cloud(REGIONAL, "brokers: 2")) as (clouds, _):
        cloud = clouds[0]
        create_topic(cloud["bootstrapServers"], TOPIC, PARTITIONS)
        faults = Faults(bench.state_dir, bench.clock)
        nodes = set(_ask(cloud["bootstrapServers"]).brokers)

        def led() -> Counter[int]:
            now = _ask(cloud["bootstrapServers"])
            found = Counter(dict.fromkeys(now.brokers, 0))
            found.update(p.leader for p in now.partitions.values() if p.leader is not None)
            return found

        try:
            faults.kill_broker(cloud["name"], cloud["brokers"][0])
            _until(bench, "the others lead everything", lambda: sum(led().values()) == PARTITIONS and len(led()) == 1)
        finally:
            faults.undo()
        back_ms = _until(bench, "the broker is back", lambda: set(led()) == nodes)
        first_ms = _until(bench, "it leads a partition", lambda: min(led().values()) > 0)
        even_ms = _until(bench, "the load is even", lambda: max(led().values()) - min(led().values()) <= SPREAD)
    return [
        at_most("broker_added_first_partition", (first_ms - back_ms) / 1000, "s", 3),
        at_most("broker_added_even_load", (even_ms - back_ms) / 1000, "s", 10),
    ]


def _ask(bootstrap: str) -> Cluster:
    """What whoever answers first says of the topic."""
    for server in bootstrap.split(","):
        host, _, port = server.rpartition(":")
        with contextlib.suppress(Unavailable):
            return describe((host, int(port)), TOPIC, timeout_s=5)
    raise Unavailable("no broker answers")


def _until(bench: Bench, what: str, condition: Callable[[], bool]) -> float:
    """When it came about."""
    began_ms = bench.clock.monotonic_ms()
    while bench.clock.monotonic_ms() - began_ms < WAIT_MS:
        with contextlib.suppress(Unavailable):  # asked of a broker that is just going
            if condition():
                return bench.clock.monotonic_ms()
        sleep_blocking_ms(LOOK_MS)
    raise Unavailable(f"not within {WAIT_MS // 1000} s: {what}")
