"""Drills on the real lab: a broker or zone is lost, a broker frozen, and no acked record is lost."""

from __future__ import annotations

import json

import pytest

from controlplane.drill.probe import create_topic, leaders
from tests.running_lab import BY_MODE, RunningLab


@pytest.mark.parametrize("mode", BY_MODE)
def test_a_brokers_loss_loses_no_acked_record(lab: RunningLab, mode: str) -> None:
    report = lab.drill("broker-loss", BY_MODE[mode])
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
    report = lab.drill("zone-loss", BY_MODE[mode])
    assert report["verdict"] == "PASS" and report["acked_lost"] == 0


def test_without_the_control_plane_no_produce_fails_and_nothing_is_restarted(lab: RunningLab) -> None:
    report = lab.drill("control-plane-loss", "gcp")
    assert report["verdict"] == "PASS" and report["failures"] == []
    assert 0 < report["rto_ms"] < 1_500 and report["failed_produces"] == 0


@pytest.mark.parametrize("mode", BY_MODE)
def test_a_broker_frozen_between_write_and_ack_acks_nothing_that_recovery_has_not(lab: RunningLab, mode: str) -> None:
    """SIGSTOP under load: what was between its write and its ack stays there until another has taken over, and goes on
    then; what waits in its sockets, too."""
    report = lab.drill("zombie-broker", BY_MODE[mode], "--seed", "185")
    assert (report["verdict"], report["acked_lost"], report["duplicated"]) == ("PASS", 0, 0)


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
