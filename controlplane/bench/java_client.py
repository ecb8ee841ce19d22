"""Apache Kafka's own ProducerPerformance: the load that engines are compared with in public."""

from __future__ import annotations

import re
import subprocess

from controlplane.bench import peers
from providers.base.errors import Unavailable

RECORDS = 500_000
RECORD_BYTES = 1_024
PROPERTIES = ("acks=all", "linger.ms=5", "batch.size=65536")
RUN_S_MAX = 300
_SUMMARY = re.compile(r"records sent, ([\d.]+) records/sec \(([\d.]+) MB/sec\).* ([\d.]+) ms 50th.* ([\d.]+) ms 99th")


def producer_performance(bootstrap: str, topic: str) -> dict[str, float]:
    """One run in a JVM of its own: `mb_s` (10^6 bytes), `p50_ms`, `p99_ms`.

    Raises:
        Unavailable: Kafka's jars cannot be had, or the run failed.
    """
    java = ["java", "-Xmx512m", "-cp", f"{peers.jars()}/*", "org.apache.kafka.tools.ProducerPerformance"]
    load = ["--topic", topic, "--num-records", str(RECORDS), "--record-size", str(RECORD_BYTES), "--throughput", "-1"]
    done = subprocess.run(
        [*java, *load, "--producer-props", f"bootstrap.servers={bootstrap}", *PROPERTIES],
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    found = _SUMMARY.findall(done.stdout)
    if done.returncode or not found:
        raise Unavailable(f"ProducerPerformance failed: {(done.stderr or done.stdout)[-300:]}")
    records_s, _, p50, p99 = (float(number) for number in found[-1])
    return {"mb_s": records_s * RECORD_BYTES / 1e6, "p50_ms": p50, "p99_ms": p99}
