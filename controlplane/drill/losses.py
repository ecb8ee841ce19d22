"""Drills that take processes away: a broker, a zone, the control plane; and one that stops a broker for a while."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from controlplane.drill.checker import judge
from controlplane.drill.probe import Probe, by_partition, create_topic, leaders, read_back
from controlplane.drill.run import PARTITIONS, STEADY_TIMEOUT_MS, Recipe, Run
from controlplane.drill.verdict import each_acked, first_ack_after, longest_pause_ms, recovery
from providers.base.clock import sleep_blocking_ms
from providers.base.errors import Unavailable
from providers.lab.processes import ProcessId

ABORT_GRACE_MS = 1_000
"""Beyond the objective, before a drill is aborted: the acks that make traffic steady come a while after the first."""
RECOVER_TIMEOUT_MS = 45_000
WITHOUT_CONTROL_PLANE_MS = 5_000
"""How long traffic has to go on without a control plane."""
END_TIMEOUT_MS = 30_000
"""How long a thawed broker may take to learn that it was fenced, and end."""
CLINGING_TICKS_A_SECOND = 50


class BrokerLoss(Recipe):
    """A broker is killed, and kept down."""

    def watch(self, run: Run) -> None:
        led, victim = victim_of(run)
        fault_ms = run.breaker.kill_broker(run.cloud["name"], victim)
        run.event(f"broker {victim['name']} in zone {victim['zone']} killed", fault_ms)
        run.attempt(lambda: await_takeover(run, led, {victim["id"]}, fault_ms))


class ZoneLoss(Recipe):
    """All that is in a zone is gone."""

    def watch(self, run: Run) -> None:
        led, victim = victim_of(run)
        doomed = {b["id"] for b in run.cloud["brokers"] if b["zone"] == victim["zone"]}
        fault_ms = run.breaker.kill_zone(run.cloud, victim["zone"])
        run.event(f"zone {victim['zone']} is gone, with {len(doomed)} broker(s)", fault_ms)
        run.attempt(lambda: await_takeover(run, led, doomed, fault_ms))


class ZombieBroker(Recipe):
    """A broker stands still while another takes over, and then goes on where it was: with requests in its sockets, and
    with writes that were done and not acked. A second client keeps asking it alone, and is judged by itself.
    """

    # A frozen broker keeps its connections: how soon a client goes elsewhere is the client's own time-out.
    request_timeout_ms = 3_000

    def __init__(self) -> None:
        self._clinging: Probe | None = None

    def prepare(self, run: Run) -> None:
        topic = f"{run.topic}-clinging"
        create_topic(run.bootstrap, topic, len(PARTITIONS), run.login)
        run.topics.append(topic)
        self._clinging = Probe(
            run.bootstrap,
            topic,
            len(PARTITIONS),
            clock=run.clock,
            login=run.login,
            ticks_a_second=CLINGING_TICKS_A_SECOND,
            request_timeout_ms=int(END_TIMEOUT_MS + RECOVER_TIMEOUT_MS),
            clings=True,
        )
        self._clinging.start()

    def watch(self, run: Run) -> None:
        led, victim = victim_of(run)
        known = run.breaker.identities([{**run.cloud, "brokers": [victim], "agents": []}])
        fault_ms = run.breaker.freeze_broker(run.cloud["name"], victim)
        run.event(f"broker {victim['name']} in zone {victim['zone']} frozen", fault_ms)

        def taken_over_and_thawed() -> None:
            await_takeover(run, led, {victim["id"]}, fault_ms)
            run.wait_until(fault_ms + run.choices.away_ms)
            run.breaker.thaw()
            run.event(f"broker {victim['name']} thawed")
            self._await_end(run, known)

        run.attempt(taken_over_and_thawed)

    def _await_end(self, run: Run, known: dict[str, ProcessId]) -> None:
        thawed_ms = run.clock.monotonic_ms()
        while any(run.breaker.alive(process) for process in known.values()):
            if run.clock.monotonic_ms() - thawed_ms > END_TIMEOUT_MS:
                run.unkept(f"{', '.join(known)} was fenced, and still ran {END_TIMEOUT_MS / 1000:.0f} s after its thaw")
                return
            sleep_blocking_ms(20)
        run.event(f"the thawed broker has ended, {run.clock.monotonic_ms() - thawed_ms:.0f} ms after its thaw")

    def close(self) -> None:
        if self._clinging is not None:
            self._clinging.stop(flush_ms=0)

    def read(self, run: Run) -> None:
        if self._clinging is None:
            return
        acks = self._clinging.stop(flush_ms=0)
        found = read_back(run.bootstrap, run.topics[-1], len(PARTITIONS), run.clock, run.login)
        judged = judge(by_partition(acks, len(PARTITIONS)), found)
        run.event(f"{judged.acked} records acked to the client that stayed, {judged.acked_lost} of them lost")
        if not judged.acked:
            run.unkept("nothing was acked to the client that stayed with the broker: nothing was shown of it")
        # It sends again what was refused, without numbers by which a broker could tell: its records may be there twice,
        # and in another order. What was acked to it has to be there.
        if judged.acked_lost or judged.corrupt:
            lost = f"{judged.acked_lost} records acked to the client that stayed with the broker are lost"
            run.unkept(f"{lost}, {judged.corrupt} corrupt; among others, {judged.examples[0]}")


class ControlPlaneLoss(Recipe):
    """The control plane is killed; nothing else may change."""

    def __init__(self) -> None:
        self._before: dict[str, ProcessId] = {}

    def watch(self, run: Run) -> None:
        self._before = run.breaker.identities(run.status()["clouds"])
        fault_ms = run.breaker.kill_control_plane()
        run.event("control plane killed", fault_ms)
        run.attempt(lambda: self._await_indifference(run, fault_ms))

    def _await_indifference(self, run: Run, fault_ms: float) -> None:
        until_ms = fault_ms + WITHOUT_CONTROL_PLANE_MS
        went_on = run.probe.wait_for(
            lambda acks: each_acked(acks, PARTITIONS, 1, until_ms), WITHOUT_CONTROL_PLANE_MS + STEADY_TIMEOUT_MS
        )
        acks = run.probe.acks()
        if went_on:
            firsts = [first_ack_after(acks, p, fault_ms) for p in PARTITIONS]
            run.measured.rto_ms = max(first - fault_ms for first in firsts if first is not None)
            ends = [first_ack_after(acks, p, until_ms) or until_ms for p in PARTITIONS]
            # To the first ack after the end, so that a pause at the very end is measured whole.
            pauses = [longest_pause_ms(acks, p, fault_ms, end) for p, end in zip(PARTITIONS, ends, strict=True)]
            run.measured.pause_ms = max(pauses)
            run.event(
                f"{WITHOUT_CONTROL_PLANE_MS / 1000:.0f} s without it, longest pause {run.measured.pause_ms:.0f} ms"
            )
        run.compare(self._before, "without it")

    def settled(self, run: Run) -> None:
        # A control plane's return is a test of its own: it must find all as it should be, and touch nothing.
        run.compare(self._before, "when it was back")


def victim_of(run: Run) -> tuple[dict[int, int], dict[str, Any]]:
    """Who leads what, and whom the seed chooses among those that lead a partition.

    Raises:
        Unavailable: nobody of the cloud's brokers leads one, or nobody says.
    """
    led = leaders(run.bootstrap, run.topic, run.login)
    leading = [b for b in run.cloud["brokers"] if b["id"] in led.values()]
    if not leading:
        raise Unavailable(f"no broker of {run.cloud['name']} leads a partition of {run.topic}; nothing was broken")
    return led, run.choices.one_of("victim", leading)


def await_takeover(run: Run, led: dict[int, int], doomed: Collection[int], fault_ms: float) -> None:
    """Until every partition acks again; what the doomed had led must be led by others then."""
    affected = sorted(p for p, leader in led.items() if leader in doomed)
    limit_ms = run.drill.rto_ms_max
    if not run.steady(fault_ms, limit_ms + ABORT_GRACE_MS):
        run.event(f"not every partition acks after {limit_ms:.0f} ms: aborted")
        run.undo()
        run.steady(fault_ms, RECOVER_TIMEOUT_MS)
    acks, measured = run.probe.acks(), run.measured
    recovered = [r for p in affected if (r := recovery(acks, p, fault_ms)) is not None]
    if recovered and len(recovered) == len(affected) and run.steady(fault_ms, 0):
        slowest = max(recovered, key=lambda r: r.first_after_ms)
        measured.rto_ms = slowest.first_after_ms - fault_ms
        measured.pause_ms = max(r.first_after_ms - r.last_before_ms for r in recovered)
        run.event("last ack of an affected partition before the pause", max(r.last_before_ms for r in recovered))
        run.event("first ack of an affected partition after it", min(r.first_after_ms for r in recovered))
        run.event(f"every partition acks again, {measured.rto_ms:.0f} ms after the fault", slowest.first_after_ms)
    # Without this, a fault that broke nothing would pass: the victim would just have gone on.
    now = leaders(run.bootstrap, run.topic, run.login)
    measured.still_led = tuple(p for p in affected if now.get(p, -1) in doomed)
