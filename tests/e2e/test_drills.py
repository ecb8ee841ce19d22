"""Drills on the real lab: a broker or zone is lost, a broker frozen, storage away, and no acked record is lost."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from controlplane.bench.fill import fill
from controlplane.drill.checker import judge
from controlplane.drill.faults import Faults
from controlplane.drill.probe import Probe, by_partition, create_topic, leaders, read_back
from controlplane.drill.verdict import each_acked
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock
from tests.e2e.conftest import RunningLab

BY_MODE = {"regional-block": "gcp", "block+express": "aws", "object": "plant"}


def drill(lab: RunningLab, name: str, cloud: str, *choices: str) -> dict[str, Any]:
    result = lab.yunhe("drill", "run", name, "--cloud", cloud, *choices, "-o", "json", timeout=180)
    assert result.returncode == 0, result.stderr + result.stdout
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("mode", BY_MODE)
def test_a_brokers_loss_loses_no_acked_record(lab: RunningLab, mode: str) -> None:
    report = drill(lab, "broker-loss", BY_MODE[mode])
    assert (report["verdict"], report["walMode"]) == ("PASS", mode)
    assert (report["acked_lost"], report["duplicated"], report["reordered"]) == (0, 0, 0)
    assert report["acked"] > 500 and 0 < report["rto_ms"] < 5_000
    events = [e["event"] for e in report["timeline"]]
    # An affected partition's last ack may well be older than the moment at which all were seen to be steady.
    assert (events[0], events[-1]) == ("produce started", "read back and verified")
    assert events.index("traffic is steady") < next(i for i, e in enumerate(events) if e.endswith("killed"))
    assert [e["t_ms"] for e in report["timeline"]] == sorted(e["t_ms"] for e in report["timeline"])


@pytest.mark.parametrize("mode", BY_MODE)
def test_a_zones_loss_loses_no_acked_record(lab: RunningLab, mode: str) -> None:
    report = drill(lab, "zone-loss", BY_MODE[mode])
    assert report["verdict"] == "PASS" and report["acked_lost"] == 0


def test_without_the_control_plane_no_produce_fails_and_nothing_is_restarted(lab: RunningLab) -> None:
    report = drill(lab, "control-plane-loss", "gcp")
    assert report["verdict"] == "PASS" and report["failures"] == []
    assert 0 < report["rto_ms"] < 1_500 and report["failed_produces"] == 0


@pytest.mark.parametrize("mode", BY_MODE)
def test_a_broker_frozen_between_write_and_ack_acks_nothing_that_recovery_has_not(lab: RunningLab, mode: str) -> None:
    """SIGSTOP under load: what was between its write and its ack stays there until another has taken over, and goes on
    then; what waits in its sockets, too."""
    report = drill(lab, "zombie-broker", BY_MODE[mode], "--seed", "185")
    assert (report["verdict"], report["acked_lost"], report["duplicated"]) == ("PASS", 0, 0)


# Cells are independent: in each cloud a drill of its own, at once.
@pytest.mark.parametrize(
    "wanted",
    [
        {
            "gcp": ("wal-loss", "--side", "volume", "--seed", "86"),
            "aws": ("wal-loss", "--side", "express", "--seed", "185"),
            "plant": ("wal-loss", "--side", "object", "--seed", "112"),
        },
        {
            "gcp": ("object-store-outage", "--seed", "86"),
            "aws": ("wal-loss", "--side", "volume", "--seed", "185"),
            "plant": ("object-store-outage", "--seed", "86"),
        },
        {
            "gcp": ("throttle", "--seed", "185"),
            "aws": ("object-store-outage", "--seed", "167"),
            "plant": ("throttle", "--seed", "86"),
        },
    ],
    ids=lambda wanted: ",".join(dict.fromkeys(args[0] for args in wanted.values())),
)
def test_storage_that_is_away_for_a_while_loses_no_acked_record(
    lab: RunningLab, wanted: dict[str, tuple[str, ...]]
) -> None:
    with ThreadPoolExecutor(len(wanted)) as pool:
        running = {cloud: pool.submit(drill, lab, args[0], cloud, *args[1:]) for cloud, args in wanted.items()}
        reports = {cloud: report.result() for cloud, report in running.items()}
    found = {cloud: (r["verdict"], r["acked_lost"], r["duplicated"], r["reordered"]) for cloud, r in reports.items()}
    assert found == dict.fromkeys(wanted, ("PASS", 0, 0, 0))


def test_a_move_takes_its_partition_along_without_copying(lab: RunningLab) -> None:
    cloud = lab.cloud("gcp")
    create_topic(cloud["bootstrapServers"], "moved", 1)
    [leader] = leaders(cloud["bootstrapServers"], "moved").values()
    target = next(b["id"] for b in cloud["brokers"] if b["id"] != leader)
    result = lab.yunhe("move", "moved-0", "--to", str(target), "--cloud", "gcp", "-o", "json")
    assert result.returncode == 0, result.stderr
    moved = json.loads(result.stdout)
    assert (moved["from"], moved["to"]) == (leader, target) and moved["took_ms"] < 5_000
    refused = lab.yunhe("move", "moved-0", "--to", "99", "--cloud", "gcp")
    assert refused.returncode == 1 and refused.stderr.startswith("error: ") and "hint:" in refused.stderr


@pytest.mark.parametrize("mode", BY_MODE)
def test_partitions_of_a_broker_lost_with_a_backlog_go_on_before_it_is_uploaded(lab: RunningLab, mode: str) -> None:
    cloud = lab.cloud(BY_MODE[mode])
    bootstrap, clock = cloud["bootstrapServers"], SystemClock()
    topic, backlog = f"lost-{cloud['name']}", f"backlog-{cloud['name']}"
    for name in (topic, backlog):
        create_topic(bootstrap, name, 4)
    led = leaders(bootstrap, backlog)
    victim = cloud["brokers"][0]
    probe = Probe(bootstrap, topic, 4, clock=clock)
    probe.start()
    faults = Faults(StateDir(lab.state_dir), clock)
    try:
        assert probe.wait_for(lambda acks: len(acks) > 200, 30_000)
        # Less than starts an upload, and more than is written before it is handed out.
        count = fill(bootstrap, backlog, 24 << 20, [p for p, leader in led.items() if leader == victim["id"]])
        at_ms = faults.kill_broker(cloud["name"], victim)
        assert probe.wait_for(lambda acks: each_acked(acks, range(4), 50, at_ms + 500), 45_000)
    finally:
        faults.undo()
        acks = probe.stop()
    logs = "".join(path.read_text() for path in (lab.state_dir / "agents").rglob("log"))
    assert f"handed-out node={victim['id']}" in logs, "nobody handed out before uploading"
    deadline = time.monotonic() + 60
    while lab.cloud(cloud["name"])["state"] != "Ready":
        assert time.monotonic() < deadline, "the lost broker's next life did not come up"
        time.sleep(0.2)
    bootstrap = lab.bootstrap(cloud["name"])
    judged = judge(by_partition(acks, 4), read_back(bootstrap, topic, 4, clock))
    assert judged.clean, judged
    assert sum(map(len, read_back(bootstrap, backlog, 4, clock).values())) == count
