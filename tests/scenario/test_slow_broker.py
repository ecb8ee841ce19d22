"""A broker's volume grows slow under a running producer: its partitions are led elsewhere within seconds, status says
why, and they come again once the volume is well."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from controlplane.drill.checker import judge
from controlplane.drill.probe import Probe, by_partition, create_topic, leaders, read_back
from providers.base.clock import SystemClock
from tests.running_lab import CLOUDS, SPEC, running

GCP = CLOUDS[0]
PARTITIONS = 6


def until(what: str, condition: Callable[[], bool], seconds: float) -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what} did not come about within {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - began


def test_a_slow_volumes_broker_leads_nothing_until_it_is_well(tmp_path: Path) -> None:
    spec = (SPEC % {**GCP, "more": ""}).replace("brokers: 2", "brokers: 3")
    with running(tmp_path, spec) as lab:
        cloud = lab.cloud("gcp")
        assert len(cloud["brokers"]) == 3
        zones = [b["zone"] for b in cloud["brokers"]]
        [victim] = [b for b in cloud["brokers"] if zones.count(b["zone"]) == 1]
        bootstrap, clock = cloud["bootstrapServers"], SystemClock()
        create_topic(bootstrap, "t", PARTITIONS)
        probe = Probe(bootstrap, "t", PARTITIONS, clock=clock)
        probe.start()
        try:
            until("it leads some", lambda: victim["id"] in leaders(bootstrap, "t").values(), 30)
            assert probe.wait_for(lambda acks: len(acks) > 200, 30_000)
            fault = ("latency", "--latency", "700ms", "--service", "volumes", "--verb", "write")
            put = lab.yunhe("lab", "fault", "add", *fault, "--zone", victim["zone"], "--for", "5m")
            assert put.returncode == 0, put.stderr
            # Detection takes five seconds; the rest is for a busy machine.
            until("it leads nothing", lambda: victim["id"] not in leaders(bootstrap, "t").values(), 30)
            until("status says so", lambda: "Slow" in [b["state"] for b in lab.cloud("gcp")["brokers"]], 20)
            cloud, shown = lab.cloud("gcp"), lab.yunhe("status").stdout
            assert cloud["state"] == "Ready" and f"{victim['name']} is slow" in shown and "2/3" in shown
            assert f"{victim['name']} is slow" in cloud["sentence"]
            assert lab.yunhe("lab", "fault", "clear").returncode == 0
            until("it leads some again", lambda: victim["id"] in leaders(bootstrap, "t").values(), 60)
            until("status is calm", lambda: {b["state"] for b in lab.cloud("gcp")["brokers"]} == {"Ready"}, 20)
        finally:
            acks = probe.stop()
        assert probe.failed == 0
        judged = judge(by_partition(acks, PARTITIONS), read_back(bootstrap, "t", PARTITIONS, clock))
        assert judged.clean, judged
