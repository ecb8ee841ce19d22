"""Brokers lost with much that only their WALs hold, and a whole zone of them: how long until others ack."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controlplane.bench.figures import Figure, at_most
from controlplane.bench.fill import fill
from controlplane.bench.lab import DUAL, REGIONAL, SITE, Bench, one_cloud
from controlplane.cli import output
from controlplane.drill.checker import judge
from controlplane.drill.faults import Faults
from controlplane.drill.probe import Ack, Probe, by_partition, create_topic, leaders, read_back
from controlplane.drill.run import STEADY_ACKS
from controlplane.drill.verdict import each_acked, recovery
from providers.base.clock import sleep_blocking_ms
from providers.base.errors import Corrupt, Unavailable

TOPIC, BACKLOG = "bench-loss", "bench-backlog"
BACKLOG_BYTES = 256 << 20
RUNS = 3
# Nothing is uploaded before the broker is lost (a third of the WAL is the most that starts an upload), nor moved.
CLUSTER = (
    "brokers: 3, wal: {bytesMax: 1GiB}, settings: {uploadBytes: 1GiB, uploadIntervalMs: 3600000, balanceIntervalMs: 0}"
)
MODES = {"regional-block": REGIONAL, "block+express": DUAL, "object": SITE}
BACKLOG_PARTITIONS = 6
ZONES = {**REGIONAL, "zones": "us-central1-a, us-central1-b, us-central1-c"}
ZONE_PARTITIONS = 24
SETTLE_MS = 60_000
LOOK_MS = 200
_HANDED_OUT = re.compile(r" handed-out .*\bms=([0-9.]+)")


def backlog_lost(bench: Bench) -> list[Figure]:
    """SIGKILL a broker whose WAL alone holds 256 MiB: from there to the first ack of the partition that waits longest,
    by librdkafka; and from the beginning of the fence to the entry that gives its partitions to others.
    """
    figures: list[Figure] = []
    for label, where in MODES.items():
        acked: list[float] = []
        ready: list[float] = []
        for run in range(RUNS):
            with bench.lab(one_cloud(where, CLUSTER)) as (clouds, _):
                took_ms, ready_ms = _lose_one(bench, clouds[0])
                output.progress(f"{label} {run + 1}: first ack after {took_ms:.0f} ms, handed out in {ready_ms:.0f} ms")
                acked.append(took_ms / 1000)
                ready.append(ready_ms / 1000)
        figures.append(at_most(f"kill_to_first_ack 256_MiB {label}", statistics.median(acked), "s", 2.5))
        figures.append(at_most(f"fence_to_ready 256_MiB {label}", statistics.median(ready), "s", 1.0))
    return figures


def _lose_one(bench: Bench, cloud: Mapping[str, Any]) -> tuple[float, float]:
    bootstrap = cloud["bootstrapServers"]
    for topic in (BACKLOG, TOPIC):
        create_topic(bootstrap, topic, BACKLOG_PARTITIONS)
    led = leaders(bootstrap, TOPIC)
    victim = next(b for b in cloud["brokers"] if b["id"] in led.values())
    its = [p for p, leader in led.items() if leader == victim["id"]]
    filled = [p for p, leader in leaders(bootstrap, BACKLOG).items() if leader == victim["id"]]
    records = fill(bootstrap, BACKLOG, BACKLOG_BYTES, filled)
    faults = Faults(bench.state_dir, bench.clock)
    with _traffic(bench, bootstrap, BACKLOG_PARTITIONS) as probe:
        try:
            fault_ms = faults.kill_broker(cloud["name"], victim)
            acks = _until_steady(probe, its, fault_ms)
        finally:
            faults.undo()
    _verify(bench, bootstrap, probe.acks(), records)
    return max(_waited_ms(acks, p, fault_ms) for p in its), _handed_out_ms(bench)


def _verify(bench: Bench, bootstrap: str, acks: Sequence[Ack], records: int) -> None:
    """Nothing acked is lost: a figure without that would be worth nothing."""
    for topic in (TOPIC, BACKLOG):
        _until_led(bench, bootstrap, topic)
    found = read_back(bootstrap, TOPIC, BACKLOG_PARTITIONS, bench.clock)
    judged = judge(by_partition(acks, BACKLOG_PARTITIONS), found)
    if not judged.clean:
        raise Corrupt(f"acked records are not as they were: {judged.examples}")
    held = sum(len(of_one) for of_one in read_back(bootstrap, BACKLOG, BACKLOG_PARTITIONS, bench.clock).values())
    if held != records:
        raise Corrupt(f"{records} records of the backlog were acked, and {held} are there")


def _until_led(bench: Bench, bootstrap: str, topic: str) -> None:
    """The lost broker comes back, and partitions move to it."""
    began_ms = bench.clock.monotonic_ms()
    while bench.clock.monotonic_ms() - began_ms < SETTLE_MS:
        with contextlib.suppress(Unavailable):
            if all(leader >= 0 for leader in leaders(bootstrap, topic).values()):
                return
        sleep_blocking_ms(LOOK_MS)
    raise Unavailable(f"{topic} has partitions without a leader")


def zone_lost(bench: Bench) -> list[Figure]:
    """A zone of three with 4 of 12 brokers: from the first signal until every partition acks again."""
    waited: list[float] = []
    with bench.lab(one_cloud(ZONES, "brokers: 12")) as (clouds, _):
        cloud = clouds[0]
        bootstrap = cloud["bootstrapServers"]
        create_topic(bootstrap, TOPIC, ZONE_PARTITIONS)
        led = leaders(bootstrap, TOPIC)
        zone = cloud["brokers"][0]["zone"]
        lost = {b["id"] for b in cloud["brokers"] if b["zone"] == zone}
        faults = Faults(bench.state_dir, bench.clock)
        with _traffic(bench, bootstrap, ZONE_PARTITIONS) as probe:
            try:
                fault_ms = faults.kill_zone(cloud, zone)
                acks = _until_steady(probe, range(ZONE_PARTITIONS), fault_ms)
            finally:
                faults.undo()
        waited = [_waited_ms(acks, p, fault_ms) / 1000 for p, leader in led.items() if leader in lost]
    return [
        at_most("zone_lost_to_all_acking", max(waited), "s", 4.0),
        Figure("zone_lost_brokers", len(lost), f"of {len(cloud['brokers'])} brokers"),
    ]


@contextlib.contextmanager
def _traffic(bench: Bench, bootstrap: str, partitions: int) -> Iterator[Probe]:
    probe = Probe(bootstrap, TOPIC, partitions, clock=bench.clock)
    probe.start()
    try:
        _until_steady(probe, range(partitions), 0)
        yield probe
    finally:
        probe.stop()
    if probe.failed:
        raise Unavailable(f"{probe.failed} produces failed: {probe.errors[0]}")


def _until_steady(probe: Probe, partitions: Sequence[int], since_ms: float) -> list[Ack]:
    if not probe.wait_for(lambda acks: each_acked(acks, partitions, STEADY_ACKS, since_ms), SETTLE_MS):
        raise Unavailable("not every partition acks")
    return probe.acks()


def _waited_ms(acks: Sequence[Ack], partition: int, fault_ms: float) -> float:
    found = recovery(acks, partition, fault_ms)
    if found is None:
        raise Unavailable(f"partition {partition} did not ack again")
    return found.first_after_ms - fault_ms


def _handed_out_ms(bench: Bench) -> float:
    """What the survivor that took over says of itself."""
    for path in sorted(bench.state_dir.root.rglob("*.log")) + sorted(bench.state_dir.root.rglob("log")):
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                found = _HANDED_OUT.search(line)
                if found is not None:
                    return float(found[1])
    raise Unavailable("no survivor says that it handed the partitions out")
