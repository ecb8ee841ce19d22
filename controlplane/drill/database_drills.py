"""Drills of databases: edges that lose power, an owner that dies while it imports or takes writes, a bucket that says
slow down."""

from __future__ import annotations

from controlplane.drill.database_run import POLL_MS, DatabaseRecipe, DatabaseRun
from controlplane.drill.seeds import Choices
from controlplane.drill.verdict import first_ack_after, longest_pause_ms, recovery
from providers.base.clock import sleep_blocking_ms
from providers.base.errors import Invalid, Unavailable

ABORT_GRACE_MS = 1_000
RECOVER_TIMEOUT_MS = 60_000


class EdgePowerCut(DatabaseRecipe):
    """All edges that are written to are killed, and stay down for a while."""

    def watch(self, run: DatabaseRun) -> None:
        fault_ms = None
        for cloud, node in run.edges:
            at_ms = run.breaker.kill_broker(cloud, node)
            fault_ms = at_ms if fault_ms is None else fault_ms
        assert fault_ms is not None  # a run without writers has not begun
        run.event(f"{len(run.edges)} edges killed", fault_ms)
        run.wait_until(fault_ms + run.choices.away_ms)

    def undone(self, run: DatabaseRun) -> None:
        if run.undone_ms is None:
            return
        if not run.steady(run.undone_ms, RECOVER_TIMEOUT_MS):
            raise Unavailable("not every edge takes writes again")
        firsts = [first_ack_after(run.acks(), index, run.undone_ms) or run.undone_ms for index in run.indexes()]
        run.measured.rto_ms = max(firsts) - run.undone_ms
        run.event(f"every edge acks again, {run.measured.rto_ms:.0f} ms after power came back", max(firsts))


class _OwnerKilled(DatabaseRecipe):
    """The owner is killed, and stays down; another node takes over."""

    def watch(self, run: DatabaseRun) -> None:
        if len(run.now()["nodes"]) < 2:
            raise Invalid(f"Database {run.name} has one node: nobody would be left to take over", hint="nodes: 2")
        victim = run.owner()
        fault_ms = run.breaker.kill_broker(run.cloud, victim)
        run.event(f"owner {victim['name']} in zone {victim['zone']} killed", fault_ms)
        run.attempt(lambda: self.taken_over(run, str(victim["name"]), fault_ms))

    def taken_over(self, run: DatabaseRun, victim: str, fault_ms: float) -> None:
        """Until another node serves."""
        raise NotImplementedError

    def other_owner(self, run: DatabaseRun, victim: str) -> None:
        """Without this, a fault that broke nothing would pass."""
        until = run.clock.monotonic_ms() + RECOVER_TIMEOUT_MS
        while (owner := run.now()["owner"]) in (None, victim):
            if run.clock.monotonic_ms() > until:
                run.unkept(f"no other node than {victim} says that it owns {run.name}")
                return
            sleep_blocking_ms(POLL_MS)
        run.event(f"{owner} owns {run.name}")


class ImportInterrupted(_OwnerKilled):
    """While edges' files come in."""

    def taken_over(self, run: DatabaseRun, victim: str, fault_ms: float) -> None:
        # More points in the cloud than were acked until now: only somebody who imports can show those.
        acked = sum(len(writer.acked()) for writer in run.writers)
        limit_ms = run.drill.rto_ms_max + RECOVER_TIMEOUT_MS
        while (run.count() or 0) <= acked:
            if run.clock.monotonic_ms() - fault_ms > limit_ms:
                raise Unavailable(f"nothing is imported {limit_ms / 1000:.0f} s after the fault")
            sleep_blocking_ms(POLL_MS)
            run.now()
        run.measured.rto_ms = run.clock.monotonic_ms() - fault_ms
        run.event(f"files are imported again, {run.measured.rto_ms:.0f} ms after the fault")
        self.other_owner(run, victim)


class RegionFailover(_OwnerKilled):
    """While clients write to the cloud itself."""

    at_edges = False
    at_cloud = True

    def taken_over(self, run: DatabaseRun, victim: str, fault_ms: float) -> None:
        limit_ms = run.drill.rto_ms_max
        if not run.steady(fault_ms, limit_ms + ABORT_GRACE_MS):
            run.event(f"writes do not go on after {limit_ms:.0f} ms: aborted")
            run.undo()
            run.steady(fault_ms, RECOVER_TIMEOUT_MS)
        acks = run.acks()
        found = [recovery(acks, index, fault_ms) for index in run.indexes()]
        if all(found) and run.steady(fault_ms, 0):
            run.measured.rto_ms = max(one.first_after_ms for one in found if one is not None) - fault_ms
            run.event(f"writes go on, {run.measured.rto_ms:.0f} ms after the fault")
        self.other_owner(run, victim)


class BucketThrottle(DatabaseRecipe):
    """The bucket refuses most requests for a while: edges ack on, and what they send arrives later."""

    def __init__(self, choices: Choices) -> None:
        share = choices.between("share", 0.3, 0.8)
        self._fault = {"kind": "error", "status": 503, "rate": share, "seed": choices.seed, "service": "objects"}
        self._what = f"the bucket answers 503 to {share:.0%} of the requests"
        self._fault_ms = 0.0

    def watch(self, run: DatabaseRun) -> None:
        self._fault_ms = run.breaker.strike(run.cloud, [self._fault])
        run.event(self._what, self._fault_ms)
        run.wait_until(self._fault_ms + run.choices.away_ms)

    def undone(self, run: DatabaseRun) -> None:
        if run.undone_ms is None:
            return
        if not run.steady(run.undone_ms, RECOVER_TIMEOUT_MS):
            raise Unavailable("not every edge takes writes after the fault")
        acks = run.acks()
        # To the last ack, so that a pause at the very end is measured whole.
        pauses = [longest_pause_ms(acks, index, self._fault_ms, acks[-1].at_ms) for index in run.indexes()]
        run.measured.rto_ms = run.measured.pause_ms = max(pauses)
        run.event(f"longest pause of an edge {run.measured.pause_ms:.0f} ms")


def recipe_of(name: str, choices: Choices) -> DatabaseRecipe:
    """The recipe of a drill of `DATABASE_DRILLS`."""
    match name:
        case "edge-power-cut":
            return EdgePowerCut()
        case "import-interrupted":
            return ImportInterrupted()
        case "region-failover":
            return RegionFailover()
        case _:
            return BucketThrottle(choices)
