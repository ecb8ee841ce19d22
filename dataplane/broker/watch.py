"""A node's part in failover: it tells the others that it lives, judges who does not, stands for controller, fences,
takes over.

One turn a heartbeat interval; each turn ends in one sentence that says what was concluded, and why.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from dataplane.broker.peers import Message, Peers
from dataplane.contract.assignment import BrokerSettings
from dataplane.failover.detect import Heard, Sight, Verdict, judge
from dataplane.failover.recovered import Recovered
from dataplane.failover.run import OpenReaders, take_over
from dataplane.failover.takeover import taker
from dataplane.ledger.commands import NodeEpoch, broker_fenced, controller_elected, objects_removed
from dataplane.ledger.entry import Command
from dataplane.ledger.log import Ledger
from dataplane.ledger.object_names import lane_prefix
from dataplane.ledger.state import Broker, BrokerStatus, CellState
from providers.base.clock import Clock
from providers.base.errors import Unavailable, YunheError
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

HURRY = 5
"""Turns in a heartbeat interval while somebody is probably dead."""

TAKEOVER_PATIENCE_MS = 5_000
"""How long one survivor may take before the next one tries as well."""
UPLOAD_PATIENCE_MS = 30_000
"""The same once the streams have been handed out: what is left is to write what is owed, and a second one at it would
only double the work. Who is lost meanwhile is followed at once."""

GARBAGE_AGE_MS = 60_000
"""An object that nothing refers to is deleted this long after the controller saw it: reads under way may still want
it.
"""

GARBAGE_BATCH_MAX = 500

SNAPSHOT_ENTRIES = 200
"""Entries after which the controller stores a snapshot: what a joining broker reads at most, in about a second."""

STALE_LEDGER_MS = 10_000
"""An owner that has not read the ledger for so long, while others can, refuses clients: it may have been fenced."""


OPENING_MS_MAX = 30_000.0
"""How long a node that has joined may take to open its WAL before the others call it lost."""

T = TypeVar("T")


class Append(Protocol):
    """`Node.append`."""

    def __call__(
        self, decide: Callable[[CellState], Sequence[Command] | None], *, term: int = 0
    ) -> Awaitable[str | None]: ...


class Watch:
    """See the module. `behind` is called when a peer has seen more of the ledger than this node. `load`: what
    heartbeats say of this node's load."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        settings: BrokerSettings,
        ledger: Ledger[CellState],
        append: Append,
        open_readers: OpenReaders,
        store: ObjectStore,
        peers: Peers,
        cluster: str,
        incarnation: str,
        clock: Clock,
        recovered: Recovered,
        behind: Callable[[], None],
        load: Callable[[], Message],
    ) -> None:
        self._me = me
        self._load = load
        self._settings = settings
        self._ledger = ledger
        self._append = append
        self._open_readers = open_readers
        self._store = store
        self._peers = peers
        self._cluster = cluster
        self._incarnation = incarnation
        self._clock = clock
        self._recovered = recovered
        self._behind = behind
        self._heard: dict[int, Heard] = {}
        self._peer_ledger_age_ms: dict[int, tuple[float, float]] = {}
        self._serving_since_ms = clock.monotonic_ms()
        self._controller_silent = False
        self._fenced_since_ms: dict[NodeEpoch, float] = {}
        self._takeovers: dict[NodeEpoch, asyncio.Task[None]] = {}
        self._takeovers_begun = 0
        self._acting: asyncio.Task[None] | None = None
        self._live_since_ms: dict[NodeEpoch, float] = {}
        self._garbage_since_ms: dict[str, float] = {}
        self.sentence = "listening"

    async def run(self) -> None:
        """Beat and judge until cancelled."""
        last_ms = self._clock.monotonic_ms()
        try:
            while True:
                await self._clock.sleep_ms(self._settings.heartbeat_interval_ms / (HURRY if self._refused() else 1))
                now = self._clock.monotonic_ms()
                if now - last_ms > self._settings.session_timeout_ms / 2:
                    # This process was stopped or starved: what it heard is old through its own fault.
                    self._serving_since_ms = now
                last_ms = now
                sentence = self._turn(now)
                if sentence != self.sentence:
                    log.info("judged", extra={"sentence": sentence})
                self.sentence = sentence
        finally:
            tasks = [*self._takeovers.values(), *([self._acting] if self._acting is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _turn(self, now_ms: float) -> str:
        self.announce()
        verdict = self._judge(now_ms)
        self._controller_silent = verdict.controller_silent
        if self._acting is None or self._acting.done():
            if self._acting is not None:
                self._acting.result()  # whatever it could not deal with ends the node
            self._acting = asyncio.create_task(self._act(verdict))
        self.begin_takeovers()
        return verdict.sentence

    def _refused(self) -> frozenset[NodeEpoch]:
        """Live epochs whose hosts say that nobody listens."""
        live = self._ledger.state.live()
        return frozenset(b.id for b in live if self._peers.refuses((b.host, b.peer_port)))

    def _judge(self, now_ms: float) -> Verdict:
        return judge(
            self._ledger.state,
            Sight(
                me=self._me,
                now_ms=now_ms,
                serving_since_ms=self._serving_since_ms,
                ledger_read_ms=self._ledger.last_read_ms,
                live_since_ms=self._live_since(now_ms),
                heard=self._heard,
                session_timeout_ms=self._settings.session_timeout_ms,
                refused=self._refused(),
            ),
        )

    async def _act(self, verdict: Verdict) -> None:
        """What the verdict asks for. Apart from the beat: a slow bucket must not silence this node."""
        try:
            if verdict.stand:
                await self._stand()
                verdict = self._judge(self._clock.monotonic_ms())  # whom it was elected for, it fences now
            if verdict.fence:
                await self._fence(verdict.fence, verdict.sentence)
            await self._keep_house()
        except Unavailable as error:
            log.warning("bucket-unavailable", extra={"error": str(error)})

    def _live_since(self, now_ms: float) -> dict[NodeEpoch, float]:
        live = [b.id for b in self._ledger.state.live()]
        self._live_since_ms = {node: self._live_since_ms.get(node, now_ms) for node in live}
        return self._live_since_ms

    # ── heartbeats ──────────────────────────────────────────────────────────────────────────────────────────────────

    def announce(self) -> None:
        """Tell every live broker that this one lives, and how far it has read the ledger."""
        _beat(
            self._me,
            self._ledger,
            self._peers,
            self._clock,
            controller_silent=self._controller_silent,
            load=self._load(),
        )

    def hear(self, message: Message) -> None:
        """Take in a peer's heartbeat or hint."""
        now = self._clock.monotonic_ms()
        node = NodeEpoch(message["node"], message["epoch"])
        self._heard[node.node] = Heard(node, now, bool(message["controller_silent"]))
        self._peer_ledger_age_ms[node.node] = (now, float(message["ledger_age_ms"]))
        if message["seq"] > self._ledger.seq:
            self._behind()

    def ledger_is_stale(self) -> bool:
        """True when this node has not read the ledger for long and some peer has: it may have been fenced."""
        now = self._clock.monotonic_ms()
        if now - self._ledger.last_read_ms <= STALE_LEDGER_MS:
            return False
        return any(now - at + age < STALE_LEDGER_MS for at, age in self._peer_ledger_age_ms.values())

    # ── controller ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stand(self) -> None:
        me, term = self._me, self._ledger.state.term
        refused = await self._append(
            lambda state: [controller_elected(term + 1, me)] if state.term == term and state.is_live(me) else None
        )
        log.info("stood", extra={"term": term + 1, "refused": refused})

    async def _fence(self, victims: Sequence[NodeEpoch], reason: str) -> None:
        me, term = self._me, self._ledger.state.term

        def decide(state: CellState) -> list[Command] | None:
            if state.term != term or state.controller != me:
                return None
            return [broker_fenced(v, by=me, reason=reason) for v in victims if state.is_live(v)] or None

        refused = await self._append(decide, term=term)
        log.warning("fenced", extra={"victims": [v.node for v in victims], "reason": reason, "refused": refused})

    async def _keep_house(self) -> None:
        """The controller's: snapshots, so that a joining broker reads little, and objects that nothing refers to."""
        if self._ledger.state.controller != self._me:
            self._garbage_since_ms.clear()
            return
        if self._ledger.seq - self._ledger.snapshot_seq >= SNAPSHOT_ENTRIES:
            await self._ledger.snapshot()
            await self._ledger.collect()
        now = self._clock.monotonic_ms()
        self._garbage_since_ms = {name: self._garbage_since_ms.get(name, now) for name in self._ledger.state.garbage}
        due = [name for name, since in self._garbage_since_ms.items() if now - since > GARBAGE_AGE_MS][
            :GARBAGE_BATCH_MAX
        ]
        if due:
            term = self._ledger.state.term
            await self._store.delete(due)
            await self._append(lambda state: [objects_removed(due, term)] if state.term == term else None)

    # ── takeovers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_takeovers(self) -> None:
        """Begin each recovery that is this node's turn. Called when the ledger has moved, and once a turn."""
        now = self._clock.monotonic_ms()
        fenced = {b.id for b in self._ledger.state.brokers.values() if b.status is BrokerStatus.FENCED}
        self._fenced_since_ms = {n: self._fenced_since_ms.get(n, now) for n in fenced}
        for victim, since_ms in self._fenced_since_ms.items():
            broker = self._ledger.state.brokers.get(victim.node)
            if victim in self._takeovers or broker is None or broker.id != victim:
                continue
            if victim.node == self._me.node:
                continue
            handed_out = not self._ledger.state.owned(victim)
            turn = int((now - since_ms) // (UPLOAD_PATIENCE_MS if handed_out else TAKEOVER_PATIENCE_MS))
            if taker(self._ledger.state, broker, turn) == self._me:
                task = asyncio.create_task(self._take_over(broker))
                self._takeovers[victim] = task
                task.add_done_callback(functools.partial(self._takeover_ended, victim))

    def _takeover_ended(self, victim: NodeEpoch, task: asyncio.Task[None]) -> None:
        del self._takeovers[victim]

    async def _take_over(self, victim: Broker) -> None:
        self._takeovers_begun += 1
        lane = f"{self._incarnation}-takeover-{self._takeovers_begun}"
        try:
            outcome = await take_over(
                victim,
                me=self._me,
                ledger=self._ledger,
                open_readers=self._open_readers,
                store=self._store,
                name_prefix=lane_prefix(self._cluster, self._me, lane, victim.id),
                clock=self._clock,
                recovered=self._recovered,
                handed_out=self._tell,
            )
            log.warning("took-over", extra={"sentence": outcome.sentence})
        except YunheError as error:
            log.error("takeover-failed", extra={"node": victim.node, "epoch": victim.epoch, "error": str(error)})
            await self._clock.sleep_ms(self._settings.ledger_poll_interval_ms)
            return
        self._tell()

    def _tell(self) -> None:
        """The ledger has moved, by an entry of a takeover: here and elsewhere, partitions are to be opened."""
        self.announce()
        self._behind()


async def heard_while(
    work: Awaitable[T], *, me: NodeEpoch, ledger: Ledger[CellState], peers: Peers, clock: Clock, interval_ms: float
) -> T:
    """Await what a node that has joined does before it serves, and let the others hear it meanwhile. To open a WAL may
    take longer than a session lasts, and whoever was fenced for that would be so again in the next life.
    """

    async def beat() -> None:
        until_ms = clock.monotonic_ms() + OPENING_MS_MAX
        while clock.monotonic_ms() < until_ms:
            _beat(me, ledger, peers, clock, controller_silent=False, load={})
            await clock.sleep_ms(interval_ms)

    beating = asyncio.create_task(beat())
    try:
        return await work
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


def _beat(
    me: NodeEpoch, ledger: Ledger[CellState], peers: Peers, clock: Clock, *, controller_silent: bool, load: Message
) -> None:
    message: Message = {
        "op": "beat",
        "node": me.node,
        "epoch": me.epoch,
        "seq": ledger.seq,
        "controller_silent": controller_silent,
        "ledger_age_ms": clock.monotonic_ms() - ledger.last_read_ms,
        "load": load,
    }
    others = {(b.host, b.peer_port) for b in ledger.state.live() if b.node != me.node}
    peers.forget_all_but(others)
    for address in sorted(others):
        peers.send(address, message)
