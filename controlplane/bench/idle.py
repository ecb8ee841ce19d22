"""What a broker costs that holds many partitions and has nothing to do."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from controlplane.bench.figures import Figure, at_most
from controlplane.bench.lab import REGIONAL, Bench, one_cloud
from controlplane.drill.probe import create_topic, leaders
from providers.base.clock import sleep_blocking_ms
from providers.base.errors import Unavailable

TOPICS = 4
PARTITIONS = 1_000
SETTLE_MS = 15_000
"""Creating them leaves garbage and a balancer's first look behind."""
LOOK_MS = 30_000


def idle(bench: Bench) -> list[Figure]:
    """Two brokers with 2,000 partitions each and no client: resident memory, and processor time over half a minute, of
    the one that uses more. One of them is the controller.
    """
    with bench.lab(one_cloud(REGIONAL, "brokers: 2")) as (clouds, _):
        bootstrap, pids = clouds[0]["bootstrapServers"], [broker["pid"] for broker in clouds[0]["brokers"]]
        empty = max(map(resident_bytes, pids))
        led: Counter[int] = Counter()
        for i in range(TOPICS):
            create_topic(bootstrap, f"bench-idle-{i}", PARTITIONS)
            led.update(leaders(bootstrap, f"bench-idle-{i}").values())
        if set(led.values()) != {TOPICS * PARTITIONS // len(pids)}:
            raise Unavailable(f"partitions are not spread evenly: {dict(led)}")
        sleep_blocking_ms(SETTLE_MS)
        used, at_ms = [_cpu_s(pid) for pid in pids], bench.clock.monotonic_ms()
        sleep_blocking_ms(LOOK_MS)
        took_s = (bench.clock.monotonic_ms() - at_ms) / 1000
        share = max((_cpu_s(pid) - before) / took_s for pid, before in zip(pids, used, strict=True))
        resident = max(map(resident_bytes, pids))
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
