"""A load that two brokers do not carry, and no control plane: a spare broker starts, leads partitions, hands them over
and goes when the load has gone. Producers notice nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from confluent_kafka import Producer

from controlplane.drill.checker import judge
from controlplane.drill.probe import Probe, by_partition, create_topic, leaders, read_back
from providers.base.clock import SystemClock
from tests.running_lab import CLOUDS, SPEC, running
from tests.scenario.test_slow_broker import until

PARTITIONS = 6
POLICY = ", autoscale: {brokersMax: 3, brokerMiBs: 1, outAfter: 1s, inAfter: 5s, coolDown: 1s}"


def test_a_spare_broker_comes_and_goes_with_the_load_while_no_control_plane_runs(tmp_path: Path) -> None:
    with running(tmp_path, SPEC % {**CLOUDS[0], "more": POLICY}) as lab:
        cloud = lab.cloud("gcp")
        assert cloud["state"] == "Ready" and cloud["sentence"] == "2 brokers serve, 1 is spare"
        assert [b["state"] for b in cloud["brokers"]] == ["Ready", "Ready", "Spare"]
        spare = cloud["brokers"][2]["id"]
        bootstrap, clock = cloud["bootstrapServers"], SystemClock()
        for topic in ("t", "load"):
            create_topic(bootstrap, topic, PARTITIONS)
        os.kill(lab.status()["controlPlane"][0]["pid"], signal.SIGKILL)
        probe = Probe(bootstrap, "t", PARTITIONS, clock=clock)
        probe.start()
        over = threading.Event()
        load = threading.Thread(target=produce, args=(bootstrap, over))
        load.start()
        try:
            until("it leads some", lambda: spare in leaders(bootstrap, "load").values(), 60)
            seen = len(probe.acks())
            assert probe.wait_for(lambda acks: len(acks) > seen + 200, 30_000)
            over.set()
            load.join()
            led = ("t", "load")
            until("it leads none", lambda: all(spare not in leaders(bootstrap, t).values() for t in led), 60)
            # The next control plane finds things as they are.
            assert lab.yunhe("up", str(lab.spec), "--timeout", "90").returncode == 0
            until("status says so", lambda: lab.cloud("gcp")["brokers"][2]["state"] == "Spare", 30)
        finally:
            over.set()
            load.join()
            acks = probe.stop()
        assert probe.failed == 0
        judged = judge(by_partition(acks, PARTITIONS), read_back(bootstrap, "t", PARTITIONS, clock))
        assert judged.clean, judged


def produce(bootstrap: str, over: threading.Event) -> None:
    """Some 3 MiB/s."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "log_level": 0})
    while not over.is_set():
        for number in range(8 * PARTITIONS):
            producer.produce("load", os.urandom(8 << 10), partition=number % PARTITIONS)
        producer.poll(0)
        time.sleep(0.125)
    producer.flush(30)
