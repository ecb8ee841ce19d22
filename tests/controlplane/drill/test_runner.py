"""Whole drills, with librdkafka over sockets, on a cluster in memory that recovers, does not, or lies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.main import run as yunhe
from controlplane.drill import losses, outages
from controlplane.drill import run as run_module
from controlplane.drill.checker import judge
from controlplane.drill.report import Report
from controlplane.drill.runner import Runner
from controlplane.drill.seeds import Choices
from controlplane.drill.verdict import DRILLS, Measured
from controlplane.server.files import StateDir
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Invalid, NotFound, Unavailable
from providers.lab.processes import ProcessId
from tests.controlplane.drill.memory_cluster import ZONES, MemoryCluster


class MemoryLab:
    """`Breaker` and status over the cluster in memory."""

    def __init__(self, cluster: MemoryCluster, *, taken_over_after_s: float | None = 0.8, mode: str = "object") -> None:
        self.cluster = cluster
        self.mode = mode
        self.sides = {n: ["volume", "express"] if mode == "block+express" else [mode] for n in ZONES}
        self.struck: list[dict[str, Any]] = []
        self.on_strike: Callable[[], None] = lambda: None
        self.on_return: Callable[[], None] = lambda: None
        self.restarted: list[str] = []
        self.zombie_acks = self.zombie_stays = False
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
            {
                "id": n,
                "name": f"b-{n}",
                "zone": zone,
                "pid": n,
                "state": "Down" if n in self._dead else "Ready",
                "epoch": 1 + self.restarted.count(f"b-{n}"),
                "walSides": list(self.sides[n]),
            }
            for n, zone in ZONES.items()
        ]
        cloud = {
            "name": "gcp",
            "state": "Degraded" if self._dead else "Ready",
            "sentence": "as told",
            "wal": {"mode": self.mode},
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

    def freeze_broker(self, cloud: str, broker: dict[str, Any]) -> float:
        at_ms = SystemClock().monotonic_ms()
        assert self.taken_over_after_s is not None
        self.cluster.freeze(broker["id"], taken_over_after_s=self.taken_over_after_s)
        return at_ms

    def thaw(self) -> None:
        self.cluster.thaw(acks=self.zombie_acks)
        if not self.zombie_stays:
            self._others = ProcessId(1, "its next life")

    def strike(self, cloud: str, faults: Sequence[dict[str, Any]]) -> float:
        self.struck += faults
        at_ms = SystemClock().monotonic_ms()
        self.on_strike()
        return at_ms

    def restart_broker(self, broker: dict[str, Any]) -> None:
        self.restarted.append(broker["name"])
        self.sides[broker["id"]] = ["volume", "express"]

    def undo(self) -> None:
        self.undone += 1
        if self.struck:
            self.on_return()
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

    def run(self, drill: str, cloud: str | None = None, **choices: Any) -> Report:
        runner = Runner(
            StateDir(Path("/nowhere")),
            clock=SystemClock(),
            rng=SeededRng(4),
            say=lambda line: None,
            status=self.status,
            breaker=lambda: self,
        )
        return runner.run(drill, cloud, **choices)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drills begin at once, and what is away is so for a second and a half."""
    monkeypatch.setattr(Choices, "wait_ms", 0.0)
    monkeypatch.setattr(Choices, "away_ms", 1_500.0)


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


def test_an_interrupted_drill_of_two_clients_leaves_none_of_them_producing() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)

        def interrupt(*args: object) -> float:
            raise KeyboardInterrupt

        lab.freeze_broker = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            lab.run("zombie-broker")
        assert [t for t in threading.enumerate() if t.name == "probe"] == []


def test_without_the_control_plane_traffic_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "WITHOUT_CONTROL_PLANE_MS", 1_000)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        report = lab.run("control-plane-loss")
        plain = report.to_plain()
        assert report.passed, report.failures
        assert 0 < plain["rto_ms"] < 1_500 and plain["failed_produces"] == 0 and lab.control_plane


def test_a_process_restarted_when_the_control_plane_returns_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "WITHOUT_CONTROL_PLANE_MS", 1_000)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        lab.restarts_on_return = True
        assert lab.run("control-plane-loss").failures == ["restarted or gone: gcp broker b-1"]


def test_a_pause_while_the_control_plane_is_gone_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "WITHOUT_CONTROL_PLANE_MS", 3_000)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        lab.on_kill = lambda: cluster.kill(1, taken_over_after_s=2.0)
        assert any("longest pause" in failure for failure in lab.run("control-plane-loss").failures)


@pytest.mark.parametrize("drill", ["object-store-outage", "throttle"])
def test_an_outage_that_no_ack_waits_for_passes_and_its_longest_pause_is_measured(drill: str) -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="regional-block")
        report = lab.run(drill)
        assert report.passed, report.failures
        assert {fault["service"] for fault in lab.struck} == {"objects"} and lab.undone == 1
        assert report.measured.rto_ms is not None and report.measured.rto_ms > 0


def test_a_process_that_ends_in_an_outage_fails_the_drill() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="regional-block")
        lab.on_strike = lambda: setattr(lab, "_others", ProcessId(1, "second"))
        assert lab.run("object-store-outage").failures == ["restarted or gone: gcp broker b-1"]


def test_a_pause_in_an_outage_that_no_ack_should_wait_for_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRILLS, "object-store-outage", replace(DRILLS["object-store-outage"], rto_ms_max=700))
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="regional-block")
        lab.on_strike = lambda: cluster.set_away(True)
        lab.on_return = lambda: cluster.set_away(False)
        [failure] = lab.run("object-store-outage").failures
        assert failure.startswith("RTO ") and failure.endswith("is above 700 ms")


@pytest.mark.parametrize("drill", ["object-store-outage", "wal-loss"])
def test_where_nothing_can_be_acked_meanwhile_the_time_from_the_return_is_measured(drill: str) -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="object")
        lab.on_strike = lambda: cluster.set_away(True)
        lab.on_return = lambda: cluster.set_away(False)
        report = lab.run(drill)
        assert report.passed, report.failures
        assert report.measured.rto_ms is not None and report.measured.rto_ms > 0
        assert report.measured.pause_ms is not None and report.measured.pause_ms > 1_400


def test_acks_that_should_have_stopped_show_that_nothing_was_broken() -> None:
    with MemoryCluster() as cluster:
        report = MemoryLab(cluster, mode="object").run("wal-loss")
        assert any("were acked meanwhile: nothing was shown" in failure for failure in report.failures)


@pytest.mark.parametrize(("side", "services"), [("volume", {"volumes"}), ("express", {"express", "sessions"})])
def test_with_another_side_acks_go_on_and_a_side_that_stays_away_comes_back_with_the_next_life(
    side: str, services: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "GROW_TIMEOUT_MS", 300)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="block+express")
        lab.on_strike = lambda: lab.sides[1].remove(side)
        report = lab.run("wal-loss", side=side)
        assert report.passed, report.failures
        assert {fault["service"] for fault in lab.struck} == services and lab.restarted == ["b-1"]
        assert (report.side, report.to_plain()["side"]) == (side, side)


def test_a_side_that_grows_back_needs_no_restart() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="block+express")
        lab.on_strike = lambda: lab.sides[1].remove("volume")
        lab.on_return = lambda: lab.sides[1].append("volume")
        assert lab.run("wal-loss").passed and lab.restarted == []


def test_a_side_that_nobody_gives_up_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "SHRINK_TIMEOUT_MS", 500)
    with MemoryCluster() as cluster:
        failures = MemoryLab(cluster, mode="block+express").run("wal-loss", side="express").failures
        assert failures == ["no broker has given up the side express: nothing was shown"]


def test_a_side_that_the_wal_does_not_have_is_refused() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="object")
        with pytest.raises(Invalid, match="a WAL of mode object has no side volume"):
            lab.run("wal-loss", side="volume")
        with pytest.raises(Invalid, match="broker-loss takes no side"):
            lab.run("broker-loss", side="object")
        assert cluster.logs == {}


def test_a_thawed_broker_that_refuses_what_waited_and_ends_passes() -> None:
    with MemoryCluster() as cluster:
        report = MemoryLab(cluster, taken_over_after_s=0.5).run("zombie-broker")
        assert report.passed, report.failures
        assert len(cluster.deleted) == 2


def test_a_thawed_broker_that_acks_what_is_kept_nowhere_fails_the_drill() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, taken_over_after_s=0.5)
        lab.zombie_acks = True
        failures = lab.run("zombie-broker").failures
        assert any("acked to the client that stayed with the broker are lost" in failure for failure in failures)


def test_a_thawed_broker_that_goes_on_running_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "END_TIMEOUT_MS", 500)
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, taken_over_after_s=0.5)
        lab.zombie_stays = True
        assert any("still ran" in failure for failure in lab.run("zombie-broker").failures)


def test_a_seed_repeats_its_choices_and_is_reported() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster, mode="regional-block")
        first = lab.run("throttle", seed=7)
        faults, lab.struck = lab.struck, []
        assert lab.run("throttle", seed=7).seed == first.to_plain()["seed"] == 7 and lab.struck == faults
        assert "seed 7" in first.text()


def test_a_lab_that_is_not_ready_is_refused_and_nothing_is_broken() -> None:
    with MemoryCluster() as cluster:
        lab = MemoryLab(cluster)
        with pytest.raises(Invalid, match="no drill is named flood"):
            lab.run("flood")
        with pytest.raises(NotFound, match="no Cloud is named mars"):
            lab.run("broker-loss", "mars")
        lab.mode, lab.sides[1] = "block+express", ["express"]
        with pytest.raises(Unavailable, match="b-1 of gcp acks on express alone"):
            lab.run("broker-loss")
        lab._dead = [1]
        with pytest.raises(Unavailable, match="is Degraded"):
            lab.run("broker-loss")
        assert cluster.logs == {} and lab.undone == 0


def test_a_failed_verdict_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    failed = Report("broker-loss", "gcp", "object", Measured())
    monkeypatch.setattr(Runner, "run", lambda self, name, cloud, **choices: failed)
    assert yunhe(["drill", "run", "broker-loss", "-o", "json"]) == 1
    assert '"verdict": "FAIL"' in capfd.readouterr().out
    judged = judge({0: {0: 0}}, {0: [(0, 0)]})
    passed = Report("broker-loss", "gcp", "object", Measured(rto_ms=10.0, judgement=judged))
    monkeypatch.setattr(Runner, "run", lambda self, name, cloud, **choices: passed)
    assert yunhe(["drill", "run", "broker-loss", "-o", "json"]) == 0
    both, seeds = iter([passed, failed]), []

    def run(self: Runner, name: str, cloud: str | None, *, seed: int | None, side: str | None) -> Report:
        seeds.append(seed)
        return next(both)

    monkeypatch.setattr(Runner, "run", run)
    assert yunhe(["drill", "run", "broker-loss", "--runs", "2", "--seed", "41"]) == 1
    assert seeds == [41, 42]
    assert capfd.readouterr().out.splitlines()[-1].startswith("2 runs  FAIL  passed 1")


def test_a_lab_that_is_not_ready_for_the_next_run_fails_the_series(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judge({0: {0: 0}}, {0: [(0, 0)]})
    passed = Report("broker-loss", "gcp", "object", Measured(rto_ms=10.0, judgement=judged))
    runs = iter([passed])

    def run(self: Runner, name: str, cloud: str | None, **choices: Any) -> Report:
        for report in runs:
            return report
        raise Unavailable("cloud gcp is Degraded")

    monkeypatch.setattr(Runner, "run", run)
    assert yunhe(["drill", "run", "broker-loss", "--runs", "3", "-o", "json"]) == 1
