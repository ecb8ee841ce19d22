"""The balancer's hands: each broker measures what it leads and how soon its WAL acks, and says so in its heartbeats;
the controller decides, and asks the owners to move. Its own heartbeats say which brokers are slow, so that each knows
it of itself, and whoever becomes controller next knows it of all. A request of a controller that was deposed is
harmless: moves are the owners' own entries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dataplane.balance.meter import RateMeter
from dataplane.balance.policy import Move, Policy, decide
from dataplane.balance.scaling import Used
from dataplane.balance.slowness import Health, Key, SlowPolicy, adopted, judge, to_probe
from dataplane.broker.autoscaler import Autoscaler
from dataplane.broker.partitions import PartitionSet
from dataplane.broker.peers import Message, Peers, ask_to_move
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import CellState
from dataplane.wal.base import Wal
from providers.base.clock import Clock
from providers.base.errors import Conflict, Unavailable

log = logging.getLogger(__name__)

REPORTED_MAX = 50
"""Busy streams that a heartbeat names; the others count as idle."""
MOVE_TIMEOUT_MS = 5_000


@dataclass(frozen=True, slots=True)
class _Report:
    """What a broker said of itself."""

    node: NodeEpoch
    rates: dict[int, float]
    leaving: bool
    ack_ms: float | None
    """How soon its WAL acked in its last window; None: it wrote nothing, or does not measure."""
    used: Used


class Balancer:
    """See the module. `move`: `Node.move`. `leaving`: whether this node is handing everything over. `on_health` is told
    why this broker counts as slow, and None when it is well again."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        state: Callable[[], CellState],
        partitions: Callable[[], PartitionSet],
        move: Callable[[int, int], Awaitable[str | None]],
        leaving: Callable[[], bool],
        peers: Peers,
        wal: Wal,
        on_health: Callable[[str | None], None],
        clock: Clock,
        interval_ms: float,
        autoscaler: Autoscaler,
        policy: Policy | None = None,
        slow_policy: SlowPolicy | None = None,
    ) -> None:
        self._me = me
        self._key: Key = (me.node, me.epoch)
        self._wal = wal
        self._on_health = on_health
        self._slow_policy = slow_policy or SlowPolicy()
        self._state = state
        self._partitions = partitions
        self._move = move
        self._leaving = leaving
        self._peers = peers
        self._clock = clock
        self._interval_ms = interval_ms
        self._autoscaler = autoscaler
        self._policy = policy or Policy()
        self._meter = RateMeter()
        self._busy: list[tuple[int, int]] = []  # as measured last: heartbeats are far more frequent
        self._reports: dict[int, _Report] = {}
        self._moved_ms: dict[int, float] = {}
        self._ack_ms: float | None = None
        self._health: dict[Key, Health] = {}  # while this node is the controller
        self._told: dict[Key, str] = {}  # who is slow, by the controller's last word
        self._probed: set[Key] = set()
        self.sentence = "listening"

    async def run(self) -> None:
        """Measure, and while this node is the controller balance, until cancelled."""
        while True:
            await self._clock.sleep_ms(self._interval_ms)
            totals = [(p.id, p.traffic_bytes) for p in self._partitions().everything() if not p.closed]
            self._meter.observe(self._clock.monotonic_ms(), totals)
            self._busy = self._meter.heaviest(REPORTED_MAX)
            self._autoscaler.measure(self._clock.monotonic_ms(), sum(self._meter.rates.values()))
            self._ack_ms = self._wal.ack_ms()
            if self._key in self._probed:
                self._wal.probe()
            if self._state().controller != self._me:
                self._health = {}
                self._autoscaler.deposed()
            elif not self._leaving():
                await self._turn()

    def report(self) -> Message:
        """What a heartbeat says of this node's load and, of the controller's node, what it says of others."""
        said: Message = {"busy": self._busy, "leaving": self._leaving(), "ack_ms": self._ack_ms}
        said |= self._autoscaler.report()
        if self._state().controller == self._me:
            said["slow"] = [[*key, why] for key, why in sorted(self._told.items())]
            said["probed"] = sorted(map(list, self._probed))
        return said

    def hear(self, message: Message) -> None:
        """Take in a peer's heartbeat."""
        node = NodeEpoch(message["node"], message["epoch"])
        load = message.get("load") or {}
        rates = {int(stream): float(rate) for stream, rate in load.get("busy", ())[:REPORTED_MAX]}
        used = self._autoscaler.used(load)
        self._reports[node.node] = _Report(node, rates, bool(load.get("leaving")), load.get("ack_ms"), used)
        self._autoscaler.hear(load)
        if self._state().controller == node and node != self._me:
            self._tell(
                {(slow, epoch): why for slow, epoch, why in load.get("slow", ())},
                {(probed, epoch) for probed, epoch in load.get("probed", ())},
            )

    def slow(self) -> set[int]:
        """Nodes that count as slow, by the controller's last word."""
        live = {(b.node, b.epoch) for b in self._state().live()}
        return {node for node, epoch in self._told.keys() & live}

    def _tell(self, slow: dict[Key, str], probed: set[Key]) -> None:
        before, self._told, self._probed = self._told.get(self._key), slow, probed
        if (now := slow.get(self._key)) != before:
            self._on_health(now)

    def leaving(self) -> set[int]:
        """Nodes that have said that they are handing everything over."""
        live = {b.node: b.id for b in self._state().live()}
        return {n for n, report in self._reports.items() if report.leaving and live.get(n) == report.node}

    async def _turn(self) -> None:
        now_ms = self._clock.monotonic_ms()
        self._moved_ms = {s: at for s, at in self._moved_ms.items() if now_ms - at < self._policy.dwell_ms}
        state = self._state()
        # Only brokers that have been heard as what they are now: who has just joined says so within a heartbeat.
        nodes = {self._me.node}
        rates = dict(self._meter.rates)
        ack_ms: dict[Key, float | None] = {self._key: self._ack_ms}
        used: dict[int, Used] = {}
        for broker in state.live():
            report = self._reports.get(broker.node)
            if report is not None and report.node == broker.id and not report.leaving:
                nodes.add(broker.node)
                rates |= report.rates
                ack_ms[broker.node, broker.epoch] = report.ack_ms
                used[broker.node] = report.used
        self._judge(ack_ms)
        if len(nodes) == len(state.live()):  # of one that is silent, or leaves, it is not known yet what it carries
            self._autoscaler.turn(now_ms, state.term, used)
        owners = {s.id: s.open.node for s in state.streams.values() if state.is_live(s.open.owner)}
        slow = {node for node, _ in self._told}
        decision = decide(owners, nodes, rates, self._moved_ms, now_ms, self._policy, slow)
        if decision.sentence != self.sentence:
            log.info("balance", extra={"sentence": decision.sentence})
        self.sentence = decision.sentence
        for move in decision.moves:
            self._moved_ms[move.stream] = self._clock.monotonic_ms()
        if any(move.source in slow for move in decision.moves):
            # At once: one after another they would each wait for the slow WAL.
            outcomes = await asyncio.gather(*(self._carry_out(move) for move in decision.moves))
            for move, refused in zip(decision.moves, outcomes, strict=True):
                self._note(move, refused)
            return
        for move in decision.moves:
            refused = await self._carry_out(move)
            self._note(move, refused)
            if refused is not None:
                return  # things are not as they were thought to be: decide again

    def _note(self, move: Move, refused: str | None) -> None:
        if refused is not None:
            log.info("balance-move-refused", extra={"stream": move.stream, "why": refused})

    def _judge(self, ack_ms: dict[Key, float | None]) -> None:
        """One more window of every broker's WAL."""
        before = self._health or {key: adopted(why) for key, why in self._told.items() if key in ack_ms}
        self._health = judge(before, ack_ms, self._slow_policy)
        slow = {key: one.sentence for key, one in self._health.items() if one.slow}
        for node, epoch in slow.keys() - self._told.keys():
            log.warning("broker-slow", extra={"node": node, "epoch": epoch, "why": slow[node, epoch]})
        for node, epoch in (self._told.keys() - slow.keys()) & ack_ms.keys():
            log.warning("broker-well-again", extra={"node": node, "epoch": epoch})
        self._tell(slow, to_probe(self._health, ack_ms, self._slow_policy))

    async def _carry_out(self, move: Move) -> str | None:
        state = self._state()
        stream = state.streams.get(move.stream)
        if stream is None or state.controller != self._me:
            return "the state has changed meanwhile"
        owner = state.owner_of(stream)
        if owner is None or owner.node == move.target:
            return "the partition has another owner now"
        try:
            if owner.id == self._me:
                return await self._move(move.stream, move.target)
            answer = await ask_to_move(self._peers, owner, move.stream, move.target, MOVE_TIMEOUT_MS)
        except (Conflict, Unavailable) as error:
            return error.message
        said: str | None = answer.get("error")
        return said
