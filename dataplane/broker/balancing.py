"""The balancer's hands: each broker measures what it leads and says so in its heartbeats; the controller decides, and
asks the owners to move. A request of a controller that was deposed is harmless: moves are the owners' own entries.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dataplane.balance.meter import RateMeter
from dataplane.balance.policy import Move, Policy, decide
from dataplane.broker.partitions import PartitionSet
from dataplane.broker.peers import Message, Peers, ask_to_move
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import CellState
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


class Balancer:
    """See the module. `move`: `Node.move`. `leaving`: whether this node is handing everything over."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        state: Callable[[], CellState],
        partitions: Callable[[], PartitionSet],
        move: Callable[[int, int], Awaitable[str | None]],
        leaving: Callable[[], bool],
        peers: Peers,
        clock: Clock,
        interval_ms: float,
        policy: Policy | None = None,
    ) -> None:
        self._me = me
        self._state = state
        self._partitions = partitions
        self._move = move
        self._leaving = leaving
        self._peers = peers
        self._clock = clock
        self._interval_ms = interval_ms
        self._policy = policy or Policy()
        self._meter = RateMeter()
        self._busy: list[tuple[int, int]] = []  # as measured last: heartbeats are far more frequent
        self._reports: dict[int, _Report] = {}
        self._moved_ms: dict[int, float] = {}
        self.sentence = "listening"

    async def run(self) -> None:
        """Measure, and while this node is the controller balance, until cancelled."""
        while True:
            await self._clock.sleep_ms(self._interval_ms)
            totals = [(p.id, p.traffic_bytes) for p in self._partitions().everything() if not p.closed]
            self._meter.observe(self._clock.monotonic_ms(), totals)
            self._busy = self._meter.heaviest(REPORTED_MAX)
            if self._state().controller == self._me and not self._leaving():
                await self._turn()

    def report(self) -> Message:
        """What a heartbeat says of this node's load."""
        return {"busy": self._busy, "leaving": self._leaving()}

    def hear(self, message: Message) -> None:
        """Take in a peer's heartbeat."""
        node = NodeEpoch(message["node"], message["epoch"])
        load = message.get("load") or {}
        rates = {int(stream): float(rate) for stream, rate in load.get("busy", ())[:REPORTED_MAX]}
        self._reports[node.node] = _Report(node, rates, bool(load.get("leaving")))

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
        for broker in state.live():
            report = self._reports.get(broker.node)
            if report is not None and report.node == broker.id and not report.leaving:
                nodes.add(broker.node)
                rates |= report.rates
        owners = {s.id: s.open.node for s in state.streams.values() if state.is_live(s.open.owner)}
        decision = decide(owners, nodes, rates, self._moved_ms, now_ms, self._policy)
        if decision.sentence != self.sentence:
            log.info("balance", extra={"sentence": decision.sentence})
        self.sentence = decision.sentence
        for move in decision.moves:
            self._moved_ms[move.stream] = self._clock.monotonic_ms()
            refused = await self._carry_out(move)
            if refused is not None:
                log.info("balance-move-refused", extra={"stream": move.stream, "why": refused})
                return  # things are not as they were thought to be: decide again

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
