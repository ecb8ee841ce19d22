"""One run of one drill of a database: steady writes, a fault, what must hold, the undoing, the reading back.

    tables made ──► writers ──steady──► fault ──► watch ──► undo ──► undone ──► Ready, steady ──► all acked points in
                                                                                the cloud ──► read back ──► report

`run.py` does the same for brokers. What goes wrong before the fault is an error, and nothing was broken; what goes
wrong after it is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from controlplane.drill.course import Course, Status
from controlplane.drill.faults import Breaker
from controlplane.drill.points import (
    Writer,
    acked_of,
    count_points,
    create_table,
    merged,
    read_points,
    value_of,
    wait_for,
)
from controlplane.drill.points_checker import judge_points
from controlplane.drill.probe import Ack
from controlplane.drill.report import Report
from controlplane.drill.seeds import Choices
from controlplane.drill.verdict import Drill, each_acked
from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import Unavailable

EDGES_MAX = 4
"""Edges that are written to: enough to be several, and few enough for a small machine."""
STEADY_ACKS = 10
STEADY_TIMEOUT_MS = 30_000
READY_TIMEOUT_MS = 90_000
ARRIVE_TIMEOUT_MS = 90_000
"""How long the last acked point may take to the cloud: flush, upload with its back-off, import."""
POLL_MS = 200


class DatabaseRecipe:
    """What one drill breaks, and what must hold."""

    at_edges = True
    at_cloud = False
    """Where points are written."""

    def watch(self, run: DatabaseRun) -> None:
        """Break it, and see what holds meanwhile. What this raises before anything is broken is an error."""
        raise NotImplementedError

    def undone(self, run: DatabaseRun) -> None:
        """Right after the fault has ended."""


class DatabaseRun(Course):
    """See the module. `database` is the cloud one, `edges` upload to it; both as `yunhe status` has them."""

    def __init__(
        self,
        drill: Drill,
        database: dict[str, Any],
        edges: Sequence[dict[str, Any]],
        table: str,
        recipe: DatabaseRecipe,
        choices: Choices,
        report: Report,
        *,
        clock: Clock,
        say: Callable[[str], None],
        status: Status,
        breaker: Breaker,
    ) -> None:
        self.drill = drill
        self.name = str(database["name"])
        self.cloud = str(database["cloud"])
        self.edges = [(one["cloud"], node) for one in edges for node in one["nodes"]][:EDGES_MAX]
        """(Cloud, node) of the edges that are written to."""
        self.table = table
        self.choices = choices
        self._recipe = recipe
        super().__init__(report, clock=clock, say=say, status=status, breaker=breaker)
        self._urls = tuple(database["http"])
        pace = {"clock": clock, "pause_ms": 1_000 / choices.ticks_a_second * 4}
        writers: list[Writer] = []
        if recipe.at_edges:
            for _, node in self.edges:
                url = (f"http://{node['host']}:{node['httpPort']}",)
                writers.append(Writer(len(writers), str(node["name"]), lambda u=url: u, table, **pace))  # type: ignore[misc, arg-type]
        if recipe.at_cloud:
            writers.append(Writer(len(writers), f"{self.name}-direct", lambda: self._urls, table, **pace))  # type: ignore[arg-type]
        self.writers = writers

    def execute(self) -> Report:
        """Raises Unavailable, or what the fault itself raises, when nothing was broken."""
        if not self.writers:
            raise Unavailable(f"no edge uploads to {self.name}", hint="a Database with role edge and `upload.to`")
        try:
            self._create()
            for writer in self.writers:
                writer.start()
            self.event("writes started")
            if not self.steady(0, STEADY_TIMEOUT_MS):
                first = next((error for writer in self.writers for error in writer.errors), "no error")
                raise Unavailable(f"no steady writes to {self.name}; nothing was broken: {first}")
            self.event("writes are steady")
            sleep_blocking_ms(self.choices.wait_ms)
            try:
                self._recipe.watch(self)
            finally:
                self.undo()
            self.attempt(lambda: self._recipe.undone(self))
            self.attempt(self._await_ready)
        finally:
            for writer in self.writers:
                writer.stop()
        self.attempt(self._judge)
        return self.report

    # ── for recipes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def acks(self) -> list[Ack]:
        """Of all writers, in order of time."""
        return merged(self.writers)

    def indexes(self) -> range:
        """The writers, as acks name them."""
        return range(len(self.writers))

    def steady(self, since_ms: float, timeout_ms: float, among: Sequence[int] | None = None) -> bool:
        """Wait until every writer (or those `among`) has so many acks since then that writes are steady."""
        wanted = list(self.indexes() if among is None else among)
        return wait_for(lambda: each_acked(self.acks(), wanted, STEADY_ACKS, since_ms), timeout_ms, self.clock)

    def now(self) -> dict[str, Any]:
        """The database in the status of now; where it is reached is remembered for the writers.

        Raises:
            Unavailable: it is not in the status any more.
        """
        found = next((d for d in self._status()["databases"] if d["name"] == self.name), None)
        if found is None:
            raise Unavailable(f"Database {self.name} is not in the status any more")
        if found["http"]:
            self._urls = tuple(found["http"])
        return dict(found)

    def owner(self) -> dict[str, Any]:
        """The node that owns the database. Raises Unavailable: nobody says that it does."""
        now = self.now()
        node = next((n for n in now["nodes"] if n["name"] == now["owner"]), None)
        if node is None:
            raise Unavailable(f"no node of {self.name} says that it owns it; nothing was broken")
        return dict(node)

    def count(self) -> int | None:
        """How many points the cloud shows; None: nobody answers."""
        for url in self._urls:
            try:
                return count_points(url, self.table)
            except Unavailable:
                continue
        return None

    # ── before and afterwards ───────────────────────────────────────────────────────────────────────────────────────

    def _create(self) -> None:
        # First in the cloud: an edge's files of a table that is not there are refused.
        create_table(self._urls[0], self.table)
        for _, node in self.edges if self._recipe.at_edges else ():
            create_table(f"http://{node['host']}:{node['httpPort']}", self.table)

    def _await_ready(self) -> None:
        until = self.clock.monotonic_ms() + READY_TIMEOUT_MS
        while (now := self.now())["state"] != "Ready":
            if self.clock.monotonic_ms() > until:
                raise Unavailable(f"Database {self.name} did not become Ready again: {now['sentence']}")
            sleep_blocking_ms(POLL_MS)
        self.event(f"{self.name} is Ready again")
        if not self.steady(self.clock.monotonic_ms(), STEADY_TIMEOUT_MS):
            raise Unavailable("writes did not go on after the fault was undone")

    def _judge(self) -> None:
        """Wait until all that was acked has arrived, or no more does, then read it back."""
        acked = acked_of(self.writers)
        total = sum(map(len, acked.values()))
        self.report.acked = total
        failed = sum(writer.failed for writer in self.writers)
        self.event(f"{total} points acked, {failed} requests without an ack")
        arrived = wait_for(lambda: (self.count() or 0) >= total, ARRIVE_TIMEOUT_MS, self.clock)
        self.event("all acked points are in the cloud" if arrived else "not all acked points are in the cloud")
        self.now()
        sent = {writer.series: writer.sent for writer in self.writers}
        first = {writer.series: writer.first_ms for writer in self.writers}
        self.measured.judgement = judge_points(acked, sent, first, value_of, read_points(self._urls[0], self.table))
        self.event("read back and verified")
