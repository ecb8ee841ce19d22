"""Runs a drill: steady traffic, a fault, what must hold meanwhile, the undoing, the reading back.

What goes wrong before the fault is an error, and nothing was broken. What goes wrong after it is a finding: the drill
still undoes, reads back and reports.

    steady ──fault──► watch ──► undo ──► Ready again, steady again ──► read back ──► report
                        └─ an objective breached: undo at once
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.cli.status import read_status
from controlplane.drill.checker import judge
from controlplane.drill.faults import Breaker, Faults
from controlplane.drill.probe import Ack, Probe, by_partition, create_topic, delete_topic, leaders, read_back
from controlplane.drill.report import Report
from controlplane.drill.verdict import DRILLS, Drill, each_acked, first_ack_after, longest_pause_ms, recovery
from controlplane.server.files import StateDir
from providers.base.clock import Clock, Rng, sleep_blocking_ms
from providers.base.errors import Invalid, NotFound, Unavailable, YunheError
from providers.lab.processes import ProcessId

PARTITIONS = range(4)
STEADY_ACKS = 50
"""Acks of every partition before the fault, and after it: traffic is steady then."""
WITHOUT_CONTROL_PLANE_MS = 5_000
"""How long traffic has to go on without a control plane."""
STEADY_TIMEOUT_MS = 30_000
ABORT_GRACE_MS = 1_000
"""Beyond the objective, before a drill is aborted: `STEADY_ACKS` come half a second after the first ack."""
RECOVER_TIMEOUT_MS = 45_000
READY_TIMEOUT_MS = 60_000
POLL_MS = 100

Status = Callable[[], dict[str, Any]]
"""The status document of now."""


class Runner:
    """Runs drills on the lab of one state directory, one at a time. `status` and `breaker` are the lab's own unless a
    test hands in others.
    """

    def __init__(
        self,
        state_dir: StateDir,
        *,
        clock: Clock,
        rng: Rng,
        say: Callable[[str], None],
        status: Status | None = None,
        breaker: Callable[[], Breaker] | None = None,
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._say = say
        self._status: Status = status or (lambda: read_status(state_dir))
        self._breaker: Callable[[], Breaker] = breaker or (lambda: Faults(state_dir, clock))

    def run(self, name: str, cloud: str | None) -> Report:
        """Run one drill. Without `cloud`, on the first one of `yunhe status`.

        Raises:
            Invalid: no such drill, or one that this cloud cannot have. NotFound: no such cloud.
            Unavailable: the lab is not Ready, so that nothing was broken.
        """
        drill = DRILLS.get(name)
        if drill is None:
            raise Invalid(f"no drill is named {name}", hint=f"one of: {', '.join(DRILLS)}")
        target = ready_cloud(self._status(), cloud)
        zones = {b["zone"] for b in target["brokers"]}
        if drill.takes_over and len(zones) < 2:
            raise Invalid(
                f"{name} needs brokers in two zones, and {target['name']} has them in {len(zones)}",
                hint="nobody would be left to take over",
            )
        topic = f"drill-{name}-{self._rng.token()[:8]}"
        create_topic(target["bootstrapServers"], topic, len(PARTITIONS))
        one = _Run(drill, target, topic, clock=self._clock, say=self._say, status=self._status, breaker=self._breaker())
        report = one.run()
        if report.passed:
            delete_topic(target["bootstrapServers"], topic)
        else:
            self._say(f"  topic {topic} is kept, to be looked at")
        return report


def ready_cloud(status: dict[str, Any], name: str | None) -> dict[str, Any]:
    """The cloud named, or the first.

    Raises:
        NotFound: no such cloud. Unavailable: it is not Ready, or no lab runs.
    """
    clouds = {c["name"]: c for c in status["clouds"]}
    if not clouds:
        raise Unavailable("no lab runs here", hint="start one with `yunhe up examples/four-clouds.yaml`")
    chosen = name or next(iter(clouds))
    if chosen not in clouds:
        raise NotFound(f"no Cloud is named {chosen}", hint=f"known: {', '.join(clouds)}")
    found: dict[str, Any] = clouds[chosen]
    if found["state"] != "Ready":
        raise Unavailable(
            f"cloud {chosen} is {found['state']}: {found['sentence']}",
            hint="a drill begins from Ready; see `yunhe status`",
        )
    return found


class _Run:
    """One run of one drill."""

    def __init__(
        self,
        drill: Drill,
        cloud: dict[str, Any],
        topic: str,
        *,
        clock: Clock,
        say: Callable[[str], None],
        status: Status,
        breaker: Breaker,
    ) -> None:
        self._drill = drill
        self._cloud = cloud
        self._bootstrap = str(cloud["bootstrapServers"])
        self._topic = topic
        self._clock = clock
        self._say = say
        self._status = status
        self._breaker = breaker
        self._probe = Probe(self._bootstrap, topic, len(PARTITIONS), clock=clock)
        self._began_ms = clock.monotonic_ms()
        self._report = Report(drill.name, cloud["name"], cloud["wal"]["mode"])
        self._before: dict[str, ProcessId] = {}
        """Processes that must be the same afterwards, by name."""
        self._undone = False

    def run(self) -> Report:
        """Raises Unavailable, or what the fault itself raises, when nothing was broken."""
        acks: list[Ack] | None = None
        try:
            self._probe.start()
            self._event("produce started")
            if not self._probe.wait_for(lambda acks: _steady(acks, 0), STEADY_TIMEOUT_MS):
                raise Unavailable(f"no steady traffic on {self._cloud['name']}; nothing was broken")
            self._event("traffic is steady")
            try:
                self._watch()
            finally:
                # Also when interrupted: what was broken is put right before anything else.
                self._undo()
            self._attempt(self._await_steady)
            if self._before:
                # A control plane's return is a test of its own: it must find all as it should be, and touch nothing.
                self._compare(self._before, "when it was back")
            acks = self._probe.stop()
        finally:
            if acks is None:
                self._probe.stop(flush_ms=0)
        self._judge(acks)
        return self._report

    # ── the fault, and what must hold meanwhile ─────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        if self._drill.takes_over:
            self._lose_brokers()
        else:
            self._lose_control_plane()

    def _lose_brokers(self) -> None:
        led = leaders(self._bootstrap, self._topic)
        brokers = {b["id"]: b for b in self._cloud["brokers"]}
        victim = brokers[max(brokers, key=lambda node: sum(1 for leader in led.values() if leader == node))]
        if self._drill.name == "zone-loss":
            doomed = {b["id"] for b in self._cloud["brokers"] if b["zone"] == victim["zone"]}
            fault_ms = self._breaker.kill_zone(self._cloud, victim["zone"])
            self._event(f"zone {victim['zone']} is gone, with {len(doomed)} broker(s)", fault_ms)
        else:
            doomed = {victim["id"]}
            fault_ms = self._breaker.kill_broker(self._cloud["name"], victim)
            self._event(f"broker {victim['name']} in zone {victim['zone']} killed", fault_ms)
        affected = sorted(p for p, leader in led.items() if leader in doomed)
        self._attempt(lambda: self._await_takeover(affected, doomed, fault_ms))

    def _await_takeover(self, affected: list[int], doomed: set[int], fault_ms: float) -> None:
        if not affected:
            self._report.trouble.append("the victim led no partition of the probe: nothing was shown")
        if not self._probe.wait_for(lambda acks: _steady(acks, fault_ms), self._drill.rto_ms_max + ABORT_GRACE_MS):
            self._event(f"not every partition acks after {self._drill.rto_ms_max:.0f} ms: aborted")
            self._undo()
            self._probe.wait_for(lambda acks: _steady(acks, fault_ms), RECOVER_TIMEOUT_MS)
        acks, measured = self._probe.acks(), self._report.measured
        recovered = [r for p in affected if (r := recovery(acks, p, fault_ms)) is not None]
        if recovered and len(recovered) == len(affected) and _steady(acks, fault_ms):
            slowest = max(recovered, key=lambda r: r.first_after_ms)
            measured.rto_ms = slowest.first_after_ms - fault_ms
            measured.pause_ms = max(r.first_after_ms - r.last_before_ms for r in recovered)
            self._event("last ack of an affected partition before the pause", max(r.last_before_ms for r in recovered))
            self._event("first ack of an affected partition after it", min(r.first_after_ms for r in recovered))
            self._event(f"every partition acks again, {measured.rto_ms:.0f} ms after the fault", slowest.first_after_ms)
        # Without this, a fault that broke nothing would pass: the victim would just have gone on.
        now = leaders(self._bootstrap, self._topic)
        measured.still_led = tuple(p for p in affected if now.get(p, -1) in doomed)

    def _lose_control_plane(self) -> None:
        before = self._breaker.identities(self._status()["clouds"])
        fault_ms = self._breaker.kill_control_plane()
        self._event("control plane killed", fault_ms)
        self._attempt(lambda: self._await_indifference(before, fault_ms))
        self._before = before

    def _await_indifference(self, before: dict[str, ProcessId], fault_ms: float) -> None:
        until_ms = fault_ms + WITHOUT_CONTROL_PLANE_MS
        went_on = self._probe.wait_for(
            lambda acks: each_acked(acks, PARTITIONS, 1, until_ms), WITHOUT_CONTROL_PLANE_MS + STEADY_TIMEOUT_MS
        )
        acks, measured = self._probe.acks(), self._report.measured
        if went_on:
            firsts = [first_ack_after(acks, p, fault_ms) for p in PARTITIONS]
            measured.rto_ms = max(first - fault_ms for first in firsts if first is not None)
            ends = [first_ack_after(acks, p, until_ms) or until_ms for p in PARTITIONS]
            # To the first ack after the end, so that a pause at the very end is measured whole.
            pauses = [longest_pause_ms(acks, p, fault_ms, end) for p, end in zip(PARTITIONS, ends, strict=True)]
            measured.pause_ms = max(pauses)
            self._event(f"{WITHOUT_CONTROL_PLANE_MS / 1000:.0f} s without it, longest pause {measured.pause_ms:.0f} ms")
        self._compare(before, "without it")

    def _compare(self, before: dict[str, ProcessId], when: str) -> None:
        changed = sorted(name for name, known in before.items() if not self._breaker.alive(known))
        self._report.measured.restarted = tuple(sorted({*self._report.measured.restarted, *changed}))
        self._event(f"{len(before) - len(changed)} of {len(before)} processes are the same {when}")

    # ── afterwards ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _undo(self) -> None:
        if not self._undone and self._attempt(self._breaker.undo):
            self._undone = True
            self._event("undone")

    def _await_steady(self) -> None:
        """Until the cloud is Ready and every partition acks; the control plane, too, is back then."""
        deadline = self._clock.monotonic_ms() + READY_TIMEOUT_MS
        while True:
            status = self._status()
            mine = next((c for c in status["clouds"] if c["name"] == self._cloud["name"]), None)
            if mine is not None and mine["state"] == "Ready" and all(c["pid"] for c in status["controlPlane"]):
                try:
                    # Right after a restart the last reports may be those of the processes before.
                    self._breaker.identities([mine])
                    break
                except NotFound:
                    pass
            if self._clock.monotonic_ms() > deadline:
                why = mine["sentence"] if mine is not None else "it is not in the status any more"
                raise Unavailable(f"cloud {self._cloud['name']} did not become Ready again: {why}")
            sleep_blocking_ms(POLL_MS)
        self._event(f"{self._cloud['name']} is Ready again")
        since_ms = self._clock.monotonic_ms()
        if not self._probe.wait_for(lambda acks: _steady(acks, since_ms), STEADY_TIMEOUT_MS):
            raise Unavailable("traffic did not go on after the fault was undone")

    def _judge(self, acks: list[Ack]) -> None:
        measured = self._report.measured
        self._report.acked = len(acks)
        measured.failed_produces = self._probe.failed
        measured.first_error = next(iter(self._probe.errors), "")
        self._event(f"{len(acks)} records acked, {measured.failed_produces} failed")

        def read_and_judge() -> None:
            found = read_back(self._bootstrap, self._topic, len(PARTITIONS), self._clock)
            measured.judgement = judge(by_partition(acks, len(PARTITIONS)), found)
            self._event("read back and verified")

        self._attempt(read_and_judge)

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Do a step after the fault. What goes wrong then is a finding, not the end of the drill."""
        try:
            step()
        except (YunheError, OSError) as error:
            if str(error) not in self._report.trouble:
                self._report.trouble.append(str(error))
            self._event(f"trouble: {error}")
            return False
        return True

    def _event(self, what: str, at_ms: float | None = None) -> None:
        """Note it for the timeline; it happened just now, or at `at_ms`."""
        at = (self._clock.monotonic_ms() if at_ms is None else at_ms) - self._began_ms
        self._report.timeline.append((at, what))
        self._say(f"  {at / 1000:6.2f} s  {what}")


def _steady(acks: list[Ack], since_ms: float) -> bool:
    return each_acked(acks, PARTITIONS, STEADY_ACKS, since_ms)
