"""Runs a drill: steady traffic, a fault, what must hold meanwhile, the undoing, the reading back, the verdict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.cli.status import read_status
from controlplane.drill.checker import Acked, Judgement, judge
from controlplane.drill.faults import Faults
from controlplane.drill.probe import Ack, Probe, create_topic, delete_topic, leaders, read_back
from controlplane.server.files import StateDir
from providers.base.clock import Clock, Rng, sleep_blocking_ms
from providers.base.errors import Invalid, NotFound, Unavailable, YunheError
from providers.lab.processes import ProcessId, is_alive

PARTITIONS = 4
STEADY_ACKS = 50
"""Acks of every partition before the fault, and after it: traffic is steady then."""
SILENT_CONTROL_PLANE_MS = 5_000
"""How long traffic has to go on without a control plane."""
STEADY_TIMEOUT_MS = 30_000
RECOVER_TIMEOUT_MS = 45_000
READY_TIMEOUT_MS = 60_000
POLL_MS = 100


@dataclass(frozen=True, slots=True)
class Drill:
    """A drill as a value. `rto_ms_max`: from the fault to the first ack of the partition that waited longest; None: no
    produce may fail, no process restart.
    """

    name: str
    what: str
    rto_ms_max: float | None


DRILLS: dict[str, Drill] = {
    d.name: d
    for d in (
        Drill("broker-loss", "SIGKILL the broker that leads most partitions; another zone takes over", 5_000),
        Drill("zone-loss", "a zone with its agent, brokers, volumes and express bucket is gone", 10_000),
        Drill("control-plane-loss", "SIGKILL the control plane; traffic goes on, nothing is restarted", None),
    )
}


@dataclass(slots=True)
class Report:
    """What a drill found; `to_plain` is the contract of `-o json`."""

    drill: str
    cloud: str
    wal_mode: str
    rto_ms: float | None = None
    judgement: Judgement | None = None
    failures: list[str] = field(default_factory=list)
    timeline: list[tuple[float, str]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and self.judgement is not None and self.judgement.clean

    def to_plain(self) -> dict[str, Any]:
        judged = self.judgement or Judgement(0, 0, 0, 0, 0, ())
        return {
            "drill": self.drill,
            "cloud": self.cloud,
            "walMode": self.wal_mode,
            "verdict": "PASS" if self.passed else "FAIL",
            "rto_ms": None if self.rto_ms is None else round(self.rto_ms, 1),
            "acked": judged.acked,
            "acked_lost": judged.acked_lost,
            "duplicated": judged.duplicated,
            "reordered": judged.reordered,
            "unacked_present": judged.unacked_present,
            "failures": [*self.failures, *judged.examples],
            "timeline": [{"t_ms": round(at, 1), "event": event} for at, event in self.timeline],
        }


class Runner:
    """Runs drills on the lab of one state directory, one at a time."""

    def __init__(self, state_dir: StateDir, *, clock: Clock, rng: Rng, say: Callable[[str], None]) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._rng = rng
        self._say = say

    def run(self, name: str, cloud: str | None) -> Report:
        """Run one drill. Without `cloud`, on the first one.

        Raises:
            Invalid: no such drill, or one that this cloud cannot have. NotFound: no such cloud.
            Unavailable: the lab is not Ready, so that nothing was broken.
        """
        drill = DRILLS.get(name)
        if drill is None:
            raise Invalid(f"no drill is named {name}", hint=f"one of: {', '.join(DRILLS)}")
        target = self._ready_cloud(cloud)
        zones = {b["zone"] for b in target["brokers"]}
        if drill.rto_ms_max is not None and len(zones) < 2:
            raise Invalid(
                f"{name} needs brokers in two zones, and {target['name']} has them in {len(zones)}",
                hint="nobody would be left to take over",
            )
        report = Report(name, target["name"], target["wal"]["mode"])
        topic = f"drill-{name}-{self._rng.token()[:8]}"
        create_topic(target["bootstrapServers"], topic, PARTITIONS)
        probe = Probe(target["bootstrapServers"], topic, PARTITIONS, clock=self._clock)
        faults = Faults(self._state_dir, self._clock)
        began_ms = self._clock.monotonic_ms()

        def event(what: str) -> None:
            at = self._clock.monotonic_ms() - began_ms
            report.timeline.append((at, what))
            self._say(f"  {at / 1000:6.2f} s  {what}")

        try:
            probe.start()
            if not probe.wait_for(_each_has(STEADY_ACKS, 0), STEADY_TIMEOUT_MS):
                raise Unavailable(f"no steady traffic on {target['name']}; nothing was broken")
            event("traffic is steady")
            try:
                self._break(drill, target, topic, probe, faults, report, event)
            finally:
                faults.undo()
                event("undone")
            self._await_ready(target["name"], event)
        finally:
            acks = probe.stop()
        event(f"{len(acks)} records acked, {len(probe.errors)} failed")
        if probe.errors and drill.rto_ms_max is None:
            report.failures.append(f"{len(probe.errors)} produces failed, the first: {probe.errors[0]}")
        report.judgement = judge(
            _by_partition(acks), read_back(_bootstrap(self._state_dir, target), topic, PARTITIONS, self._clock)
        )
        event("read back and judged")
        delete_topic(_bootstrap(self._state_dir, target), topic)
        return report

    # ── the parts of a run ──────────────────────────────────────────────────────────────────────────────────────────

    def _ready_cloud(self, name: str | None) -> dict[str, Any]:
        status = read_status(self._state_dir)
        clouds = {c["name"]: c for c in status["clouds"]}
        if not clouds:
            raise Unavailable("no lab runs here", hint="start one with `yunhe up examples/four-clouds.yaml`")
        chosen = name or next(iter(clouds))
        if chosen not in clouds:
            raise NotFound(f"no Cloud is named {chosen}", hint=f"known: {', '.join(clouds)}")
        if clouds[chosen]["state"] != "Ready":
            raise Unavailable(
                f"cloud {chosen} is {clouds[chosen]['state']}: {clouds[chosen]['sentence']}",
                hint="a drill begins from Ready; see `yunhe status`",
            )
        found: dict[str, Any] = clouds[chosen]
        return found

    def _break(
        self,
        drill: Drill,
        cloud: dict[str, Any],
        topic: str,
        probe: Probe,
        faults: Faults,
        report: Report,
        event: Callable[[str], None],
    ) -> None:
        if drill.rto_ms_max is None:
            self._without_control_plane(cloud, probe, faults, report, event)
            return
        led = leaders(cloud["bootstrapServers"], topic)
        brokers = {b["id"]: b for b in cloud["brokers"]}
        victim = brokers[max(brokers, key=lambda node: sum(1 for leader in led.values() if leader == node))]
        if drill.name == "zone-loss":
            doomed = {b["id"] for b in cloud["brokers"] if b["zone"] == victim["zone"]}
            faults.kill_zone(cloud, victim["zone"])
            event(f"zone {victim['zone']} is gone, with {len(doomed)} broker(s)")
        else:
            doomed = {victim["id"]}
            faults.kill_broker(cloud["name"], victim)
            event(f"broker {victim['name']} in zone {victim['zone']} killed")
        at_ms = self._clock.monotonic_ms()
        affected = {p for p, leader in led.items() if leader in doomed}
        if not affected:
            report.failures.append("the victim led no partition of the probe: nothing was shown")
        # An ack that was on its way when the fault struck is none of the survivor's: the first one after a gap is
        # looked
        # for, and a partition that never paused would show as an RTO of nothing.
        again = probe.wait_for(
            lambda acks: all(_acks_after(acks, p, at_ms) >= STEADY_ACKS for p in range(PARTITIONS)), RECOVER_TIMEOUT_MS
        )
        if not again:
            report.failures.append(f"not every partition acked again within {RECOVER_TIMEOUT_MS / 1000:.0f} s")
            return
        with_gap = [_first_after_gap(probe, p, at_ms) for p in sorted(affected)]
        report.rto_ms = max(with_gap, default=0.0) - at_ms if with_gap else 0.0
        event(f"every partition acks again; the longest waited {report.rto_ms:.0f} ms for its first ack")
        if report.rto_ms > drill.rto_ms_max:
            report.failures.append(f"RTO {report.rto_ms:.0f} ms is above {drill.rto_ms_max:.0f} ms")

    def _without_control_plane(
        self,
        cloud: dict[str, Any],
        probe: Probe,
        faults: Faults,
        report: Report,
        event: Callable[[str], None],
    ) -> None:
        before = faults.identities(read_status(self._state_dir)["clouds"])
        faults.kill_control_plane()
        event("control plane killed")
        at_ms = self._clock.monotonic_ms()
        until_ms = at_ms + SILENT_CONTROL_PLANE_MS

        def went_on(acks: list[Ack]) -> bool:
            return all(any(a.partition == p and a.at_ms >= until_ms for a in reversed(acks)) for p in range(PARTITIONS))

        if not probe.wait_for(went_on, SILENT_CONTROL_PLANE_MS + STEADY_TIMEOUT_MS):
            report.failures.append("traffic stopped while the control plane was gone")
        report.rto_ms = 0.0
        restarted = [name for name, known in before.items() if not is_alive(ProcessId(known.pid, known.started))]
        if restarted:
            report.failures.append(f"restarted or gone: {', '.join(sorted(restarted))}")
        event(f"{SILENT_CONTROL_PLANE_MS / 1000:.0f} s without it; {len(before)} processes are the same")

    def _await_ready(self, cloud: str, event: Callable[[str], None]) -> None:
        deadline = self._clock.monotonic_ms() + READY_TIMEOUT_MS
        while True:
            status = read_status(self._state_dir)
            mine = next(c for c in status["clouds"] if c["name"] == cloud)
            control_plane = all(c["pid"] for c in status["controlPlane"])
            if mine["state"] == "Ready" and control_plane:
                event(f"{cloud} is Ready again")
                return
            if self._clock.monotonic_ms() > deadline:
                raise Unavailable(f"cloud {cloud} did not become Ready again: {mine['sentence']}")
            sleep_blocking_ms(POLL_MS)


def _bootstrap(state_dir: StateDir, cloud: dict[str, Any]) -> str:
    """Addresses as they are now."""
    try:
        clouds = read_status(state_dir)["clouds"]
        return str(next(c["bootstrapServers"] for c in clouds if c["name"] == cloud["name"]))
    except (YunheError, StopIteration):
        return str(cloud["bootstrapServers"])


def _by_partition(acks: Sequence[Ack]) -> Acked:
    found: dict[int, dict[int, int]] = {p: {} for p in range(PARTITIONS)}
    for ack in acks:
        found[ack.partition][ack.number] = ack.offset
    return found


def _each_has(count: int, since_ms: float) -> Callable[[list[Ack]], bool]:
    return lambda acks: all(_acks_after(acks, p, since_ms) >= count for p in range(PARTITIONS))


def _acks_after(acks: Sequence[Ack], partition: int, since_ms: float) -> int:
    return sum(1 for a in acks if a.partition == partition and a.at_ms > since_ms)


def _first_after_gap(probe: Probe, partition: int, fault_ms: float) -> float:
    """When the longest pause of this partition that ends after the fault was over."""
    found: list[float] = []

    def look(acks: list[Ack]) -> bool:
        times = [a.at_ms for a in acks if a.partition == partition]
        gaps = [(b - a, b) for a, b in itertools.pairwise(times) if b > fault_ms]
        found.append(max(gaps)[1] if gaps else fault_ms)
        return True

    probe.wait_for(look, 1)
    return found[-1]
