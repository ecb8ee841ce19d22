"""Planned moves: the pause that each makes, and how soon a broker that is told to stop has handed all over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from controlplane.bench.figures import Figure, at_most
from controlplane.bench.lab import REGIONAL, Bench, one_cloud
from controlplane.cli import output
from controlplane.cli.kafka_admin import describe, reassign
from controlplane.drill.faults import Faults
from controlplane.drill.probe import Ack, Probe, create_topic, leaders
from controlplane.drill.run import STEADY_ACKS
from controlplane.drill.verdict import each_acked, longest_pause_ms
from providers.base.clock import sleep_blocking_ms
from providers.base.errors import Unavailable
from providers.lab.processes import ProcessId, is_alive

MOVES = 100
LED = 500
SETTLE_MS = 120_000
WATCHED_MS = 500
"""How long after a move a pause still counts as its own: clients may hear of it later than it is over."""
TICKS = 200
"""Acks a second of a partition that is moved: a gap is known to 5 ms."""
BUSY, BUSY_TICKS = 40, 10
"""Partitions under traffic of those of the broker that leaves and of the other's, and records a second of each: a
client sends a request a partition, five at a time, so that more would measure how soon it gets through its queue."""
STOP_MS = 30_000
BEFORE_MS = 3_000


def gaps(bench: Bench) -> list[Figure]:
    """One partition moved to and fro a hundred times under traffic: the longest pause between two acks of each move."""
    topic, pauses = "bench-gaps", []
    with bench.lab(one_cloud(REGIONAL, "brokers: 2, settings: {balanceIntervalMs: 0}")) as (clouds, _):
        bootstrap = clouds[0]["bootstrapServers"]
        create_topic(bootstrap, topic, 1)
        host, _, port = bootstrap.split(",")[0].partition(":")
        with _probe(bench, bootstrap, topic, 1, TICKS) as probe:
            for _ in range(MOVES):
                now = describe((host, int(port)), topic, timeout_s=10)
                target = next(node for node in sorted(now.brokers) if node != now.partitions[0].leader)
                began_ms = bench.clock.monotonic_ms()
                reassign(now.brokers[now.controller], topic, 0, target, timeout_s=30)
                over_ms = bench.clock.monotonic_ms()
                acks = _until_acked(probe, over_ms + WATCHED_MS)
                pauses.append(longest_pause_ms(acks, 0, began_ms, acks[-1].at_ms))
    pauses.sort()
    return [
        at_most("move_longest_ack_gap_p99", pauses[int(len(pauses) * 0.99) - 1] / 1000, "s", 0.15),
        Figure("move_longest_ack_gap_p50", round(pauses[len(pauses) // 2], 1), "ms"),
    ]


def _until_acked(probe: Probe, since_ms: float) -> list[Ack]:
    if not probe.wait_for(lambda acks: each_acked(acks, (0,), STEADY_ACKS, since_ms), SETTLE_MS):
        raise Unavailable("the moved partition does not ack")
    return probe.acks()


def shutdown(bench: Bench) -> list[Figure]:
    """SIGTERM a broker that leads 500 partitions under traffic: until metadata names another leader for each."""
    topic = "bench-shutdown"
    with bench.lab(one_cloud(REGIONAL, "brokers: 2, settings: {balanceIntervalMs: 0}")) as (clouds, _):
        cloud = clouds[0]
        bootstrap = cloud["bootstrapServers"]
        create_topic(bootstrap, topic, 2 * LED)
        led = leaders(bootstrap, topic)
        victim = cloud["brokers"][0]
        stays = ",".join(s for s in bootstrap.split(",") if not s.endswith(f":{victim['kafkaPort']}"))
        its = [p for p, leader in led.items() if leader == victim["id"]]
        busy = [p for p in its if p < BUSY]
        faults = Faults(bench.state_dir, bench.clock)
        with _probe(bench, bootstrap, topic, BUSY, BUSY_TICKS) as probe:
            try:
                process, began_ms = faults.stop_broker(cloud["name"], victim)
                over_ms = _until_nobody_is_led_by(bench, stays, topic, victim["id"], began_ms)
                _until_gone(bench, process, began_ms)
                gone_ms = bench.clock.monotonic_ms()
                if not probe.wait_for(lambda acks: each_acked(acks, busy, STEADY_ACKS, over_ms), SETTLE_MS):
                    raise Unavailable("not every partition acks after the broker has left")
            finally:
                faults.undo()
            acks = probe.acks()
    before = _longest_gap_ms(acks, busy, began_ms - BEFORE_MS, began_ms)
    longest = _longest_gap_ms(acks, busy, began_ms, acks[-1].at_ms)
    return [
        at_most("shutdown_all_handed_over", (over_ms - began_ms) / 1000, "s", 3.0),
        at_most("shutdown_failed_produces", probe.failed, "records", 0),
        Figure("shutdown_partitions", len(its), "partitions"),
        Figure("shutdown_process_gone", round((gone_ms - began_ms) / 1000, 3), "s"),
        Figure("shutdown_longest_ack_gap", round(longest / 1000, 3), "s", "just before", round(before / 1000, 3)),
    ]


def _longest_gap_ms(acks: Sequence[Ack], partitions: Sequence[int], from_ms: float, until_ms: float) -> float:
    """The longest time between two acks of one partition, as `longest_pause_ms`, in one pass over those of many."""
    last = dict.fromkeys(partitions, from_ms)
    longest = 0.0
    for ack in acks:
        if ack.partition in last and from_ms < ack.at_ms <= until_ms:
            longest = max(longest, ack.at_ms - last[ack.partition])
            last[ack.partition] = ack.at_ms
    return longest


def _until_nobody_is_led_by(bench: Bench, bootstrap: str, topic: str, node: int, began_ms: float) -> float:
    while bench.clock.monotonic_ms() - began_ms < STOP_MS:
        now = leaders(bootstrap, topic)
        if node not in now.values() and -1 not in now.values():
            return bench.clock.monotonic_ms()
        sleep_blocking_ms(20)
    raise Unavailable("the broker still leads partitions")


def _until_gone(bench: Bench, process: ProcessId, began_ms: float) -> None:
    while is_alive(process):
        if bench.clock.monotonic_ms() - began_ms > STOP_MS:
            raise Unavailable("the broker did not end")
        sleep_blocking_ms(20)


@contextlib.contextmanager
def _probe(bench: Bench, bootstrap: str, topic: str, partitions: int, ticks: int) -> Iterator[Probe]:
    """Traffic that is steady on every partition. Failed produces are an error where nothing is allowed to fail."""
    probe = Probe(bootstrap, topic, partitions, clock=bench.clock, ticks_a_second=ticks)
    probe.start()
    try:
        if not probe.wait_for(lambda acks: each_acked(acks, range(partitions), 3, 0), SETTLE_MS):
            raise Unavailable("no steady traffic on the partitions")
        yield probe
    finally:
        probe.stop()
    output.progress(f"{len(probe.acks())} acks, {probe.failed} failed")
