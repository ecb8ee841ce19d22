"""Whole drills, with librdkafka over sockets, on a cluster in memory that recovers, does not, or lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.main import run as yunhe
from controlplane.drill import runner as runner_module
from controlplane.drill.checker import judge
from controlplane.drill.report import Report
from controlplane.drill.runner import Runner
from controlplane.drill.verdict import DRILLS, Measured
from controlplane.server.files import StateDir
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Invalid, NotFound, Unavailable
from providers.lab.processes import ProcessId
from tests.controlplane.drill.memory_cluster import ZONES, MemoryCluster


class MemoryLab:
    """`Breaker` and status over the cluster in memory."""

    def __init__(self, cluster: MemoryCluster, *, taken_over_after_s: float | None = 0.8) -> None:
        self.cluster = cluster
        self.taken_over_after_s = taken_over_after_s
        self.control_plane = 77
        self.restarts_on_return = False
        self.undone = 0
        self.on_kill: Callable[[], None] = lambda: None
        self._dead: list[int] = []
        self._others = ProcessId(1, "first")
        self.stale_looks = 0
        """How often, once the fault is undone, the status still names processes that are gone."""

    def status(self) -> dict[str, Any]:
        brokers = [
            {"id": n, "name": f"b-{n}", "zone": zone, "pid": n, "state": "Down" if n in self._dead else "Ready"}
            for n, zone in ZONES.items()
        ]
        cloud = {
            "name": "gcp",
            "state": "Degraded" if self._dead else "Ready",
            "sentence": "as told",
            "wal": {"mode": "object"},
            "bootstrapServers": self.cluster.bootstrap,
            "brokers": brokers,
            "agents": [],
        }
        return {"clouds": [cloud], "controlPlane": [{"pid": self.control_plane or None}]}

    def kill_broker(self, cloud: str, broker: dict[str, Any]) -> float:
        at_ms = SystemClock().monotonic_ms()
        if self.taken_over_after_s != 0:
            self.cluster.kill(broker["id"], taken_over_after_s=self.taken_over_after_s)
            self._dead.append(broker["id"])
        self.on_kill()
        return at_ms

    def kill_zone(self, cloud: dict[str, Any], zone: str) -> float:
        return self.kill_broker(cloud["name"], next(b for b in cloud["brokers"] if b["zone"] == zone))

    def kill_control_plane(self) -> float:
        self.control_plane = 0
        self.on_kill()
        return SystemClock().monotonic_ms()

    def undo(self) -> None:
        self.undone += 1
        for node in self._dead:
            self.cluster.revive(node)
        self._dead = []
        if not self.control_plane and self.restarts_on_return:
            self._others = ProcessId(1, "second")
        self.control_plane = 77

    def identities(self, clouds: Sequence[dict[str, Any]]) -> dict[str, ProcessId]:
        if self.undone and self.stale_looks:
            self.stale_looks -= 1
            raise NotFound("b-1 is said to be pid 1, which is no process of this lab")
        return {"gcp broker b-1": self._others}

    def alive(self, process: ProcessId) -> bool:
        return process == self._others

    def run(self, drill: str, cloud: str | None = None) -> Report:
        runner = Runner(
            StateDir(Path("/nowhere")),
            clock=SystemClock(),
            rng=SeededRng(4),
            say=lambda line: None,
            status=self.status,
            breaker=lambda: self,
        )
        return runner.run(drill, cloud)


@pytest.mark.parametrize("drill", ["broker-loss", "zone-loss"])
def test_a_takeover_passes_and_its_time_is_measured(drill: str) -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, taken_over_after_s=0.8)
        lab.stale_looks = 3
        report = lab.run(drill)
        plain = report.to_plain()
        assert report.passed, report.failures
        # Taken over after 0.8 s; a client's retry back-off comes on top.
        assert 800 <= plain["rto_ms"] < 3_000 and plain["acked"] > 400
        assert (plain["acked_lost"], plain["duplicated"], plain["reordered"], plain["corrupt"]) == (0, 0, 0, 0)
        assert lab.undone == 1 and len(cluster.deleted) == 1 and lab.stale_looks == 0
        events = [e["event"] for e in plain["timeline"]]
        order = ["traffic is steady", "first ack of an affected partition after it", "undone", "gcp is Ready again"]
        assert [e for e in events if e in order] == order and events[-1] == "read back and verified"
        assert [e["t_ms"] for e in plain["timeline"]] == sorted(e["t_ms"] for e in plain["timeline"])


def test_a_broker_that_loses_an_acked_batch_fails_the_drill_and_its_topic_is_kept() -> None:
    with MemoryCluster("lose") as cluster:
        lab = MemoryLab(cluster)
        report = lab.run("broker-loss")
        plain = report.to_plain()
        assert (plain["verdict"], plain["duplicated"]) == ("FAIL", 0) and plain["acked_lost"] > 0
        assert cluster.deleted == [] and any(name.startswith("drill-broker-loss-") for name in cluster.logs)


def test_a_fault_that_broke_nothing_proves_nothing() -> None:
    with MemoryCluster() as cluster:
        report = MemoryLab(cluster, taken_over_after_s=0).run("broker-loss")
        assert any("nobody took over" in failure for failure in report.failures)


def test_a_breached_objective_aborts_the_drill_and_undoes_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRILLS, "broker-loss", replace(DRILLS["broker-loss"], rto_ms_max=500))
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, taken_over_after_s=None)
        report = lab.run("broker-loss")
        assert lab.undone == 1 and not report.passed
        assert any("aborted" in event for _, event in report.timeline)
        assert any("is above 500 ms" in failure for failure in report.failures)
        assert report.to_plain()["acked_lost"] == 0


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_drill_undoes_its_fault(interruption: type[BaseException]) -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)

        def interrupt() -> None:
            raise interruption

        lab.on_kill = interrupt
        with pytest.raises(interruption):
            lab.run("broker-loss")
        assert lab.undone == 1 and lab.status()["clouds"][0]["state"] == "Ready"


def test_without_the_control_plane_traffic_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "WITHOUT_CONTROL_PLANE_MS", 1_000)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        report = lab.run("control-plane-loss")
        plain = report.to_plain()
        assert report.passed, report.failures
        assert 0 < plain["rto_ms"] < 1_500 and plain["failed_produces"] == 0 and lab.control_plane


def test_a_process_restarted_when_the_control_plane_returns_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "WITHOUT_CONTROL_PLANE_MS", 1_000)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        lab.restarts_on_return = True
        assert lab.run("control-plane-loss").failures == ["restarted or gone: gcp broker b-1"]


def test_a_pause_while_the_control_plane_is_gone_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "WITHOUT_CONTROL_PLANE_MS", 3_000)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        lab.on_kill = lambda: cluster.kill(1, taken_over_after_s=2.0)
        assert any("longest pause" in failure for failure in lab.run("control-plane-loss").failures)


def test_a_lab_that_is_not_ready_is_refused_and_nothing_is_broken() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        with pytest.raises(Invalid, match="no drill is named flood"):
            lab.run("flood")
        with pytest.raises(NotFound, match="no Cloud is named mars"):
            lab.run("broker-loss", "mars")
        lab._dead = [1]
        with pytest.raises(Unavailable, match="is Degraded"):
            lab.run("broker-loss")
        assert cluster.logs == {} and lab.undone == 0


def test_a_failed_verdict_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    failed = Report("broker-loss", "gcp", "object", Measured())
    monkeypatch.setattr(Runner, "run", lambda self, name, cloud: failed)
    assert yunhe(["drill", "run", "broker-loss", "-o", "json"]) == 1
    assert '"verdict": "FAIL"' in capfd.readouterr().out
    judged = judge({0: {0: 0}}, {0: [(0, 0)]})
    passed = Report("broker-loss", "gcp", "object", Measured(rto_ms=10.0, judgement=judged))
    monkeypatch.setattr(Runner, "run", lambda self, name, cloud: passed)
    assert yunhe(["drill", "run", "broker-loss", "-o", "json"]) == 0
    both = iter([passed, failed])
    monkeypatch.setattr(Runner, "run", lambda self, name, cloud: next(both))
    assert yunhe(["drill", "run", "broker-loss", "--runs", "2"]) == 1
    assert capfd.readouterr().out.splitlines()[-1].startswith("2 runs  FAIL  passed 1")


def test_a_lab_that_is_not_ready_for_the_next_run_fails_the_series(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judge({0: {0: 0}}, {0: [(0, 0)]})
    passed = Report("broker-loss", "gcp", "object", Measured(rto_ms=10.0, judgement=judged))
    runs = iter([passed])

    def run(self: Runner, name: str, cloud: str | None) -> Report:
        for report in runs:
            return report
        raise Unavailable("cloud gcp is Degraded")

    monkeypatch.setattr(Runner, "run", run)
    assert yunhe(["drill", "run", "broker-loss", "--runs", "3", "-o", "json"]) == 1
