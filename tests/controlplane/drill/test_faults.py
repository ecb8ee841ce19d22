"""Faults touch the lab's own processes only, and are undone whatever happens. Real processes, which do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.drill.faults import FAULT_MS, HOLD_MS, Faults
from controlplane.server.files import CONTROL_PLANE, StateDir, agent_name
from providers.base.clock import SystemClock
from providers.base.errors import Invalid, NotFound, Unavailable
from providers.lab.processes import ProcessTable, is_alive, stop
from providers.lab.running import lab as emulated

IDLE = [sys.executable, "-c", "import signal; signal.pause()"]


class Lab:
    """A state directory with one agent, one broker and a control plane, all idle."""

    def __init__(self, root: Path) -> None:
        self.state_dir = StateDir(root)
        self.table = ProcessTable(root)
        self.relaunched = 0
        agent = self.state_dir.agent("gcp", "zone-a")
        agent.mkdir(parents=True)
        self.hold = agent / "holds" / "b-1"
        self.broker = self.table.start("b-1", IDLE, log=root / "log")
        self.agent = self.table.start(agent_name("gcp", "zone-a"), IDLE, log=root / "log")
        self.control_plane = self.table.start(CONTROL_PLANE, IDLE, log=root / "log")

    @property
    def cloud(self) -> dict[str, Any]:
        return {
            "name": "gcp",
            "brokers": [{"id": 1, "name": "b-1", "zone": "zone-a", "pid": self.broker.pid}],
            "agents": [{"zone": "zone-a", "pid": self.agent.pid}],
        }

    def faults(self) -> Faults:
        def relaunch() -> None:
            self.relaunched += 1

        return Faults(self.state_dir, SystemClock(), relaunch=relaunch)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        assert stop(made.table.everything()) == []


def test_a_killed_broker_is_held_until_the_fault_is_undone(lab: Lab) -> None:
    clock = SystemClock()
    faults = lab.faults()
    before_ms = clock.monotonic_ms()
    at_ms = faults.kill_broker("gcp", lab.cloud["brokers"][0])
    assert before_ms <= at_ms <= clock.monotonic_ms()
    assert gone(lab, lab.broker.pid) and is_alive(lab.agent.id)
    until = json.loads(lab.hold.read_text())["until_wall_ms"]
    assert 0 < until - clock.wall_ms() <= HOLD_MS
    faults.undo()
    assert list(lab.hold.parent.iterdir()) == [] and lab.relaunched == 1


def test_a_pid_that_is_not_the_labs_is_never_killed(lab: Lab) -> None:
    """An old status may name a pid that the system has given to somebody else."""
    stranger = subprocess.Popen(IDLE)
    try:
        broker = {**lab.cloud["brokers"][0], "pid": stranger.pid}
        cloud = {**lab.cloud, "brokers": [broker]}
        with pytest.raises(NotFound, match="no process of this lab"):
            lab.faults().kill_broker("gcp", broker)
        with pytest.raises(NotFound, match="no process of this lab"):
            lab.faults().kill_zone(cloud, "zone-a")
        with pytest.raises(NotFound, match="no process of this lab"):
            lab.faults().identities([cloud])
        assert stranger.poll() is None and is_alive(lab.agent.id) and not lab.hold.exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_zones_agent_and_brokers_die_together(lab: Lab) -> None:
    lab.faults().kill_zone(lab.cloud, "zone-a")
    assert gone(lab, lab.broker.pid) and gone(lab, lab.agent.pid) and is_alive(lab.control_plane.id)


def test_the_control_planes_death_leaves_every_other_process_the_same(lab: Lab) -> None:
    faults = lab.faults()
    before = faults.identities([lab.cloud])
    assert set(before) == {"gcp broker b-1", "gcp agent zone-a"}
    faults.kill_control_plane()
    assert gone(lab, lab.control_plane.pid) and all(faults.alive(p) for p in before.values())
    with pytest.raises(NotFound, match="does not run"):
        faults.kill_control_plane()


def test_a_restarted_process_is_not_the_same(lab: Lab) -> None:
    faults = lab.faults()
    before = faults.identities([lab.cloud])
    faults.kill_broker("gcp", lab.cloud["brokers"][0])
    assert gone(lab, lab.broker.pid)
    lab.broker = lab.table.start("b-1", IDLE, log=lab.state_dir.root / "log")
    assert not faults.alive(before["gcp broker b-1"]) and faults.alive(before["gcp agent zone-a"])


def test_a_frozen_broker_is_thawed_when_the_fault_is_undone(lab: Lab) -> None:
    faults = lab.faults()
    faults.freeze_broker("gcp", lab.cloud["brokers"][0])
    assert until(lambda: stands_still(lab.broker.pid))
    faults.undo()
    assert until(lambda: not stands_still(lab.broker.pid)) and is_alive(lab.broker.id)


def test_faults_of_the_lab_are_cleared_when_they_are_undone_and_others_are_left_alone(tmp_path: Path) -> None:
    with emulated("plant=private:plant:a", state_dir=tmp_path, control=False) as clouds:
        plant = clouds["plant"]
        plant.fault("latency", latency="1ms", for_s=60)
        faults = Faults(StateDir(tmp_path), SystemClock(), relaunch=lambda: None)
        with pytest.raises(Invalid):
            faults.strike("plant", [{"kind": "reset", "service": "objects"}, {"kind": "error", "status": 7}])
        assert [fault["kind"] for fault in plant.faults()] == ["latency"]
        faults.strike("plant", [{"kind": "reset", "service": "objects"}])
        faults.strike("plant", [{"kind": "error", "status": 503, "service": "objects"}])
        assert sorted(fault["kind"] for fault in plant.faults()) == ["error", "latency", "reset"]
        assert all(fault["left_s"] <= FAULT_MS / 1000 for fault in plant.faults())
        faults.undo()
        faults.undo()
        assert [fault["kind"] for fault in plant.faults()] == ["latency"]
        with pytest.raises(Unavailable, match="no emulated cloud"):
            faults.strike("mars", [{"kind": "reset"}])


def test_undo_tries_everything_and_says_what_is_left(lab: Lab) -> None:
    def fails() -> None:
        raise Unavailable("a server did not come up")

    faults = Faults(lab.state_dir, SystemClock(), relaunch=fails)
    faults.kill_broker("gcp", lab.cloud["brokers"][0])
    with pytest.raises(Unavailable, match="a server did not come up"):
        faults.undo()
    assert not lab.hold.exists()


def gone(lab: Lab, pid: int) -> bool:
    """Whether it ends soon; a child of this test is a zombie until looked at."""
    return until(lambda: all(p.pid != pid for p in lab.table.everything()))


def stands_still(pid: int) -> bool:
    return "State:\tT" in Path(f"/proc/{pid}/status").read_text()


def until(condition: Callable[[], bool]) -> bool:
    clock = SystemClock()
    deadline = clock.monotonic_ms() + 5_000
    while not condition():
        if clock.monotonic_ms() > deadline:
            return False
    return True
