"""What a broker costs that holds many partitions and has nothing to do."""

from __future__ import annotations

import os
from pathlib import Path

from controlplane.bench.figures import Figure, at_most
from controlplane.bench.lab import REGIONAL, Bench, one_cloud
from controlplane.drill.probe import create_topic
from providers.base.clock import sleep_blocking_ms

TOPICS = 2
PARTITIONS = 1_000
SETTLE_MS = 15_000
"""Creating them leaves garbage and a balancer's first look behind."""
LOOK_MS = 30_000


def idle(bench: Bench) -> list[Figure]:
    """One broker with 2,000 partitions and no client: resident memory, and processor time over half a minute."""
    with bench.lab(one_cloud(REGIONAL, "brokers: 1")) as (clouds, _):
        broker = clouds[0]["brokers"][0]
        empty = resident_bytes(broker["pid"])
        for i in range(TOPICS):
            create_topic(clouds[0]["bootstrapServers"], f"bench-idle-{i}", PARTITIONS)
        sleep_blocking_ms(SETTLE_MS)
        used, at_ms = _cpu_s(broker["pid"]), bench.clock.monotonic_ms()
        sleep_blocking_ms(LOOK_MS)
        share = (_cpu_s(broker["pid"]) - used) / ((bench.clock.monotonic_ms() - at_ms) / 1000)
        resident = resident_bytes(broker["pid"])
    return [
        at_most("idle_2000_partitions_memory", resident / (1 << 20), "MiB", 250),
        at_most("idle_2000_partitions_cpu", 100 * share, "% of a core", 2),
        Figure("idle_no_partition_memory", round(empty / (1 << 20), 1), "MiB"),
    ]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
