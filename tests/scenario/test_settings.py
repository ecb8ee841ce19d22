"""New settings of a running cluster, under traffic: its brokers take them one after the other, and no produce fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.drill.checker import judge
from controlplane.drill.probe import Ack, Probe, by_partition, create_topic, read_back
from providers.base.clock import SystemClock
from tests.running_lab import RunningLab

PARTITIONS = 4
CLOUD = "plant"
SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: plant}
spec: {cloud: plant, brokers: 2, settings: {uploadIntervalMs: %d}}
"""


def intervals(lab: RunningLab) -> list[int]:
    """What each broker of the cluster was started with, in milliseconds, by what its agent wrote for it."""
    configs = [json.loads(path.read_text()) for path in lab.state_dir.glob("**/run/b-*/config.json")]
    return [c["settings"]["upload_interval_ms"] for c in configs if c["cluster"] == CLOUD]


@pytest.mark.timeout(300)
def test_brokers_take_new_settings_one_by_one_and_no_produce_fails(lab: RunningLab, tmp_path: Path) -> None:
    bootstrap, clock = lab.bootstrap(CLOUD), SystemClock()
    create_topic(bootstrap, "settings", PARTITIONS)
    before = {b["name"]: b["pid"] for b in lab.cloud(CLOUD)["brokers"]}
    probe = Probe(bootstrap, "settings", PARTITIONS, clock=clock, ticks_a_second=100)
    probe.start()
    try:
        for wanted_ms in (4_000, 10_000):
            spec = tmp_path / "spec.yaml"
            spec.write_text(SPEC % wanted_ms)
            shown = lab.yunhe("plan", str(spec))
            assert "its brokers restart one by one" in shown.stdout, shown.stdout + shown.stderr
            applied = lab.yunhe("apply", str(spec), timeout=240)
            assert applied.returncode == 0, applied.stderr + applied.stdout
            assert intervals(lab) == [wanted_ms, wanted_ms]
            after = {b["name"]: b["pid"] for b in lab.cloud(CLOUD)["brokers"]}
            assert after.keys() == before.keys() and not set(after.values()) & set(before.values())
            before, began_ms = after, clock.monotonic_ms()

            def flows(acks: list[Ack], since_ms: float = began_ms) -> bool:
                return all(sum(a.partition == p and a.at_ms > since_ms for a in acks) > 20 for p in range(PARTITIONS))

            assert probe.wait_for(flows, 30_000)
    finally:
        acks = probe.stop()
    assert probe.failed == 0, probe.errors
    judged = judge(by_partition(acks, PARTITIONS), read_back(lab.bootstrap(CLOUD), "settings", PARTITIONS, clock))
    assert judged.clean, judged
