"""`yunhe wal switch` on the real lab, under traffic: no produce fails, nothing acked is lost, it is done in time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane.drill.checker import judge
from controlplane.drill.probe import Ack, Probe, by_partition, create_topic, read_back
from providers.base.clock import SystemClock
from tests.running_lab import RunningLab

PARTITIONS = 4
IN_TIME_MS = 60_000
BY_CLOUD = {"gcp": "regional-block", "aws": "block+express"}


def switch(lab: RunningLab, cloud: str, mode: str) -> dict[str, Any]:
    result = lab.yunhe("wal", "switch", cloud, "--to", mode, "--cloud", cloud, "-o", "json", timeout=240)
    assert result.returncode == 0, result.stderr + result.stdout
    done: dict[str, Any] = json.loads(result.stdout)
    assert done["mode"] == mode and {b["walMode"] for b in done["brokers"]} == {mode}
    return done


def flows(probe: Probe, clock: SystemClock) -> bool:
    """Whether every partition is acked from now on."""
    began_ms = clock.monotonic_ms()

    def all_acked(acks: list[Ack]) -> bool:
        return all(sum(a.partition == p and a.at_ms > began_ms for a in acks) > 20 for p in range(PARTITIONS))

    return probe.wait_for(all_acked, 30_000)


@pytest.mark.parametrize("cloud", BY_CLOUD)
def test_a_wal_is_switched_and_back_with_no_failed_produce_and_nothing_lost(lab: RunningLab, cloud: str) -> None:
    bootstrap, clock = lab.bootstrap(cloud), SystemClock()
    topic = f"switched-{cloud}"
    create_topic(bootstrap, topic, PARTITIONS)
    epochs = {b["id"]: b["epoch"] for b in lab.cloud(cloud)["brokers"]}
    probe = Probe(bootstrap, topic, PARTITIONS, clock=clock, ticks_a_second=100)
    probe.start()
    try:
        assert flows(probe, clock)
        there = switch(lab, cloud, "object")
        assert flows(probe, clock)
        back = switch(lab, cloud, BY_CLOUD[cloud])
        assert flows(probe, clock)
    finally:
        acks = probe.stop()
    assert probe.failed == 0, probe.errors
    judged = judge(by_partition(acks, PARTITIONS), read_back(lab.bootstrap(cloud), topic, PARTITIONS, clock))
    assert judged.clean, judged
    assert there["took_ms"] < IN_TIME_MS and back["took_ms"] < IN_TIME_MS
    assert all(b["epoch"] >= epochs[b["id"]] + 2 for b in back["brokers"]), "each restarted with each switch"
    steps = [s["id"] for s in there["steps"] if s["id"].startswith(("switch/", "retire-volumes/"))]
    assert steps == [f"switch/{cloud}/b-1", f"switch/{cloud}/b-2", f"retire-volumes/{cloud}"]
    again = lab.yunhe("wal", "switch", cloud, "--to", BY_CLOUD[cloud])
    assert again.returncode == 0 and lab.cloud(cloud)["state"] == "Ready"


def test_a_mode_that_the_cloud_has_not_the_means_for_is_refused_and_changes_nothing(lab: RunningLab) -> None:
    before = lab.cloud("plant")
    refused = lab.yunhe("wal", "switch", "plant", "--to", "regional-block")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: private plant cannot have wal.mode regional-block: ")
    assert "hint: yunhe explain wal plant" in refused.stderr
    unknown = lab.yunhe("wal", "switch", "plant", "--to", "paper")
    assert unknown.returncode == 1 and "'paper' is no WAL mode" in unknown.stderr
    elsewhere = lab.yunhe("wal", "switch", "plant", "--to", "object", "--cloud", "gcp")
    assert elsewhere.returncode == 1 and "is in plant, not in gcp" in elsewhere.stderr
    assert [(b["epoch"], b["walMode"]) for b in lab.cloud("plant")["brokers"]] == [
        (b["epoch"], b["walMode"]) for b in before["brokers"]
    ]


def test_a_plan_shows_the_steps_and_the_price_and_begins_nothing(lab: RunningLab) -> None:
    shown = lab.yunhe("wal", "switch", "gcp", "--to", "object", "--plan")
    assert shown.returncode == 0, shown.stderr
    assert "wal regional-block -> object, broker by broker" in shown.stdout and " USD a month at " in shown.stdout
    assert {b["walMode"] for b in lab.cloud("gcp")["brokers"]} == {"regional-block"}


def test_an_interrupted_switch_goes_on_when_it_is_given_again(lab: RunningLab) -> None:
    """The command dies, the operation goes on; the next command waits for its end, and a third turns it round."""
    command = [sys.executable, "-m", "controlplane.cli.main", "wal", "switch", "gcp", "--to", "object"]
    with subprocess.Popen(
        [*command, "--state-dir", str(lab.state_dir)], stderr=subprocess.PIPE, cwd=Path.cwd(), text=True
    ) as begun:
        assert begun.stderr is not None
        said = []
        for line in begun.stderr:
            said.append(line)
            if "create-if-absent holds" in line:  # the first step: the operation has begun
                break
        begun.send_signal(signal.SIGKILL)
    assert "create-if-absent holds" in said[-1], said
    switch(lab, "gcp", "object")
    switch(lab, "gcp", "regional-block")
