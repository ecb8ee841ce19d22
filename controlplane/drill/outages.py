"""Drills that take storage away and leave every process be: a side of the WAL, the bucket, most of its answers.

Where acks should go on, the longest time without one is measured, and that nothing was restarted. Where they cannot
(`Drill.stops`), that they did stop, and how soon after the return they go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controlplane.drill.run import PARTITIONS, POLL_MS, STEADY_TIMEOUT_MS, Recipe, Run
from controlplane.drill.seeds import Choices
from controlplane.drill.verdict import first_ack_after, longest_pause_ms
from providers.base.clock import sleep_blocking_ms
from providers.base.errors import Unavailable
from providers.lab.processes import ProcessId

STOP_GRACE_MS = 1_000
"""What was written just before the fault may still be acked so long after it."""
RETURN_TIMEOUT_MS = 90_000
"""How long after the return of what was away traffic is waited for."""
SHRINK_TIMEOUT_MS = 60_000
"""How long a broker may take to give up a side that is away, before the drill is aborted."""
Fault = dict[str, Any]


class Outage(Recipe):
    """What the drills of this module share. `what`: for the timeline."""

    request_timeout_ms = 10_000
    """Shorter than some outages, so that clients ask again while the first request still waits."""

    def __init__(self, faults: Sequence[Fault], what: str) -> None:
        self._faults = faults
        self._what = what
        self._before: dict[str, ProcessId] = {}
        self._fault_ms = 0.0

    def watch(self, run: Run) -> None:
        self._before = run.breaker.identities([run.cloud])
        self._fault_ms = run.breaker.strike(run.cloud["name"], self._faults)
        run.event(self._what, self._fault_ms)
        run.attempt(lambda: self.meanwhile(run))

    def meanwhile(self, run: Run) -> None:
        """Until the fault is to end."""
        run.wait_until(self._fault_ms + run.choices.away_ms)
        if run.drill.stops:
            late = [a for a in run.probe.acks() if a.at_ms > self._fault_ms + STOP_GRACE_MS]
            if late:
                run.unkept(f"{len(late)} records were acked meanwhile: nothing was shown")

    def undone(self, run: Run) -> None:
        if run.undone_ms is None:
            return
        if not run.steady(run.undone_ms, RETURN_TIMEOUT_MS):
            raise Unavailable(f"not every partition acks {RETURN_TIMEOUT_MS / 1000:.0f} s after the end of the fault")
        acks = run.probe.acks()
        if run.drill.stops:
            firsts = [first for p in PARTITIONS if (first := first_ack_after(acks, p, run.undone_ms)) is not None]
            run.measured.rto_ms = max(firsts) - run.undone_ms
            run.event(f"every partition acks again, {run.measured.rto_ms:.0f} ms after the return", max(firsts))
            run.measured.pause_ms = max(longest_pause_ms(acks, p, self._fault_ms, max(firsts)) for p in PARTITIONS)
            return
        # To the acks after its end, so that a pause at the very end is measured whole.
        until_ms = acks[-1].at_ms
        run.measured.pause_ms = max(longest_pause_ms(acks, p, self._fault_ms, until_ms) for p in PARTITIONS)
        run.measured.rto_ms = run.measured.pause_ms
        run.event(f"longest pause {run.measured.pause_ms:.0f} ms")

    def settled(self, run: Run) -> None:
        if not run.drill.stops:
            run.compare(self._before, "afterwards")


class WalLoss(Outage):
    """A side of every broker's WAL is away."""

    def __init__(self, side: str, faults: Sequence[Fault], what: str) -> None:
        super().__init__(faults, what)
        self._side = side

    def meanwhile(self, run: Run) -> None:
        if run.drill.stops:
            super().meanwhile(run)
            return
        deadline = self._fault_ms + SHRINK_TIMEOUT_MS
        while not (gave_up := [b["name"] for b in _without(run.mine(), self._side)]):
            if run.clock.monotonic_ms() > deadline:
                run.unkept(f"no broker has given up the side {self._side}: nothing was shown")
                return
            sleep_blocking_ms(POLL_MS)
        run.event(f"{', '.join(gave_up)} acks without the side {self._side}")
        if not run.steady(run.clock.monotonic_ms(), STEADY_TIMEOUT_MS):
            run.event("not every partition acks on the side that is left: aborted")
        run.wait_until(self._fault_ms + run.choices.away_ms)


def _without(cloud: dict[str, Any] | None, side: str) -> list[dict[str, Any]]:
    """Brokers that ack without that side."""
    brokers = cloud["brokers"] if cloud is not None else []
    return [b for b in brokers if b.get("walSides") is not None and side not in b["walSides"]]


# ── which faults a seed chooses ─────────────────────────────────────────────────────────────────────────────────────


def wal_loss(side: str, cloud: dict[str, Any], choices: Choices) -> WalLoss:
    """The side errs, cuts connections, or says nothing at all. A volume beside an express bucket may be away in one
    zone only.
    """
    how, fault = _silence(choices, "wal-loss")
    services = {"volume": ("volumes",), "express": ("express", "sessions"), "object": ("objects",)}[side]
    zone, where = "", "everywhere"
    if side == "volume" and cloud["wal"]["mode"] == "block+express":
        zone = choices.one_of("zone", ["", *sorted({b["zone"] for b in cloud["brokers"]})])
        where = f"in zone {zone}" if zone else where
    # Of the bucket only the WAL, by its names in a path or in a query: its loss altogether is a drill of its own.
    names = ("/wal/", "%2Fwal%2F") if side == "object" else ("",)
    faults = [{**fault, "service": service, "zone": zone, "contains": name} for service in services for name in names]
    return WalLoss(side, faults, f"the WAL's side {side} {how} {where}")


def object_store_outage(cloud: dict[str, Any], choices: Choices) -> Outage:
    """The bucket errs, cuts connections, or says nothing at all."""
    how, fault = _silence(choices, "object-store-outage")
    return Outage([{**fault, "service": "objects"}], f"the bucket {how}")


def throttle(cloud: dict[str, Any], choices: Choices) -> Outage:
    """A share of the requests is refused as 503 (which may have been done, as far as a client knows), or all beyond a
    rate as this cloud throttles.
    """
    if choices.between("throttle", 0, 1) < 0.5:
        share = choices.between("share", 0.3, 0.8)
        fault: Fault = {"kind": "error", "status": 503, "rate": share, "seed": choices.seed}
        what = f"the bucket answers 503 to {share:.0%} of the requests"
    else:
        rate = choices.between("requests", 4, 12)
        fault = {"kind": "throttle", "requests_s": rate, "seed": choices.seed}
        what = f"the bucket says slow down beyond {rate:.0f} requests a second"
    return Outage([{**fault, "service": "objects"}], what)


def _silence(choices: Choices, drill: str) -> tuple[str, Fault]:
    ways: tuple[tuple[str, Fault], ...] = (
        ("errs", {"kind": "error", "status": 503}),
        ("cuts connections", {"kind": "reset"}),
        ("says nothing", {"kind": "timeout"}),
    )
    return choices.one_of(f"{drill}:how", ways)
