"""One run of one drill: steady traffic, a fault, what must hold meanwhile, the undoing, the reading back.

    steady ──(a while)──fault──► watch ──► undo ──► undone ──► Ready, steady again ──► settled ──► read back ──► report
                                  └─ an objective breached: undo at once

What is broken, what must hold and what is measured is the drill's own (`Recipe`). What goes wrong before the fault is
an error, and nothing was broken; what goes wrong after it is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from controlplane.cli.kafka_login import OPEN, KafkaLogin
from controlplane.drill.checker import judge
from controlplane.drill.course import Course, Status
from controlplane.drill.faults import Breaker
from controlplane.drill.probe import Ack, Probe, by_partition, read_back
from controlplane.drill.report import Report
from controlplane.drill.seeds import Choices
from controlplane.drill.verdict import Drill, each_acked
from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import NotFound, Unavailable
from providers.lab.processes import ProcessId

PARTITIONS = range(4)
STEADY_ACKS = 50
"""Acks of every partition before the fault, and after it: traffic is steady then."""
STEADY_TIMEOUT_MS = 30_000
READY_TIMEOUT_MS = 90_000
"""Longer than an agent's longest back-off and a whole session: an exiting broker's next life comes up within it."""
GROW_TIMEOUT_MS = 5_000
"""How long a broker is given to take back a side of its WAL that has returned; then it is restarted, for its next life
has all sides."""
POLL_MS = 100


class Recipe:
    """What one drill breaks, and what must hold. One object a run; the default of each step is nothing to do."""

    request_timeout_ms = 30_000
    """How long the probe's client waits for a broker that does not answer; librdkafka's own default."""

    def prepare(self, run: Run) -> None:
        """Before any traffic."""

    def watch(self, run: Run) -> None:
        """Break it, and see what holds while it is broken. What this raises before anything is broken is an error."""
        raise NotImplementedError

    def undone(self, run: Run) -> None:
        """Right after the fault has ended."""

    def settled(self, run: Run) -> None:
        """Once the cloud is Ready and traffic steady again."""

    def read(self, run: Run) -> None:
        """Judge what else was written than the probe's records."""

    def close(self) -> None:
        """End what `prepare` has begun, however the run ended; only what was written is left."""


class Run(Course):
    """See the module. Recipes use its public parts."""

    def __init__(
        self,
        drill: Drill,
        cloud: dict[str, Any],
        topic: str,
        recipe: Recipe,
        choices: Choices,
        report: Report,
        *,
        clock: Clock,
        say: Callable[[str], None],
        status: Status,
        breaker: Breaker,
        login: KafkaLogin = OPEN,
    ) -> None:
        self.drill = drill
        self.login = login
        self.cloud = cloud
        self.bootstrap = str(cloud["bootstrapServers"])
        self.topics = [topic]
        """The probe's, and whatever the recipe creates: removed when the drill passes."""
        self.choices = choices
        self.probe = Probe(
            self.bootstrap,
            topic,
            len(PARTITIONS),
            clock=clock,
            login=login,
            ticks_a_second=choices.ticks_a_second,
            padding=choices.padding,
            request_timeout_ms=recipe.request_timeout_ms,
        )
        self._recipe = recipe
        super().__init__(report, clock=clock, say=say, status=status, breaker=breaker)

    @property
    def topic(self) -> str:
        """The probe's."""
        return self.topics[0]

    def execute(self) -> Report:
        """Raises Unavailable, or what the fault itself raises, when nothing was broken."""
        acks: list[Ack] | None = None
        try:
            self._recipe.prepare(self)
            self.probe.start()
            self.event("produce started")
            if not self.steady(0, STEADY_TIMEOUT_MS):
                raise Unavailable(f"no steady traffic on {self.cloud['name']}; nothing was broken")
            self.event("traffic is steady")
            sleep_blocking_ms(self.choices.wait_ms)
            try:
                self._recipe.watch(self)
            finally:
                # Also when interrupted: what was broken is put right before anything else.
                self.undo()
            self.attempt(lambda: self._recipe.undone(self))
            self.attempt(self._await_ready)
            self.attempt(lambda: self._recipe.settled(self))
            self.attempt(self._restore_sides)
            acks = self.probe.stop()
        finally:
            if acks is None:
                self.probe.stop(flush_ms=0)
            self._recipe.close()
        self._judge(acks)
        self.attempt(lambda: self._recipe.read(self))
        return self.report

    # ── for recipes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def steady(self, since_ms: float, timeout_ms: float) -> bool:
        """Wait until every partition has so many acks since then that traffic is steady; False: not in time."""
        return self.probe.wait_for(lambda acks: each_acked(acks, PARTITIONS, STEADY_ACKS, since_ms), timeout_ms)

    def status(self) -> dict[str, Any]:
        """The whole status document of now."""
        return self._status()

    def mine(self) -> dict[str, Any] | None:
        """The cloud in the status of now."""
        return self._mine(self._status())

    def _mine(self, status: dict[str, Any]) -> dict[str, Any] | None:
        return next((c for c in status["clouds"] if c["name"] == self.cloud["name"]), None)

    def compare(self, before: dict[str, ProcessId], when: str) -> None:
        """Note which processes of `before` are not the same any more."""
        changed = sorted(name for name, known in before.items() if not self.breaker.alive(known))
        self.measured.restarted = tuple(sorted({*self.measured.restarted, *changed}))
        self.event(f"{len(before) - len(changed)} of {len(before)} processes are the same {when}")

    def await_ready(self, *, until: Callable[[dict[str, Any]], bool] = lambda cloud: True) -> dict[str, Any]:
        """Wait until the cloud is Ready, with its control plane, and `until` says so of its status, which is returned.

        Raises:
            Unavailable: it did not become so in time.
        """
        deadline = self.clock.monotonic_ms() + READY_TIMEOUT_MS
        while True:
            status = self._status()
            mine = self._mine(status)
            if mine is not None and mine["state"] == "Ready" and all(c["pid"] for c in status["controlPlane"]):
                try:
                    # Right after a restart the last reports may be those of the processes before.
                    self.breaker.identities([mine])
                    if until(mine):
                        return mine
                except NotFound:
                    pass
            if self.clock.monotonic_ms() > deadline:
                why = mine["sentence"] if mine is not None else "it is not in the status any more"
                raise Unavailable(f"cloud {self.cloud['name']} did not become Ready again: {why}")
            sleep_blocking_ms(POLL_MS)

    # ── afterwards ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _await_ready(self) -> None:
        self.await_ready()
        self.event(f"{self.cloud['name']} is Ready again")
        if not self.steady(self.clock.monotonic_ms(), STEADY_TIMEOUT_MS):
            raise Unavailable("traffic did not go on after the fault was undone")

    def _restore_sides(self) -> None:
        """The next run begins with the WALs that this one began with."""
        deadline = self.clock.monotonic_ms() + GROW_TIMEOUT_MS
        while (lacking := self._lacking_sides()) and self.clock.monotonic_ms() < deadline:
            sleep_blocking_ms(POLL_MS)
        for broker in lacking:
            name, epoch = broker["name"], broker["epoch"]
            self.breaker.restart_broker(broker)
            self.await_ready(until=lambda cloud, n=name, e=epoch: _of(cloud, n)["epoch"] > e)  # type: ignore[misc]
            self.event(f"{name} was restarted, and has all sides of its WAL again")
        if lacking and (left := self._lacking_sides()):
            raise Unavailable(f"the WALs of {', '.join(b['name'] for b in left)} have not all their sides again")

    def _lacking_sides(self) -> list[dict[str, Any]]:
        """Brokers that ack on fewer sides than when the run began."""
        now = self.mine() or self.cloud
        before = {b["name"]: set(b.get("walSides") or ()) for b in self.cloud["brokers"]}
        return [b for b in now["brokers"] if before.get(b["name"], set()) - set(b.get("walSides") or ())]

    def _judge(self, acks: Sequence[Ack]) -> None:
        measured = self.measured
        self.report.acked = len(acks)
        measured.failed_produces = self.probe.failed
        measured.first_error = next(iter(self.probe.errors), "")
        self.event(f"{len(acks)} records acked, {measured.failed_produces} failed")

        def read_and_judge() -> None:
            found = read_back(self.bootstrap, self.topic, len(PARTITIONS), self.clock, self.login)
            measured.judgement = judge(by_partition(acks, len(PARTITIONS)), found)
            self.event("read back and verified")

        self.attempt(read_and_judge)


def _of(cloud: dict[str, Any], broker: str) -> dict[str, Any]:
    found: dict[str, Any] = next(b for b in cloud["brokers"] if b["name"] == broker)
    return found
