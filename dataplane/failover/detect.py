"""Who is lost, and who should stand for controller: a pure decision over what was heard.

Heartbeats travel between brokers directly. Silence is the only sign of death that counts: an error of the bucket or of
a cloud's control API never is. Where the host of a silent broker answers that nobody listens there, its process is
gone, and less silence is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import BrokerStatus, CellState

REFUSED_SHARE = 4
"""The part of a session for which silence is enough where connections are refused."""
LIVE_SHARE = 3
"""One in so many of the brokers that are live or fenced stays live: a survivor holds at most two recovered WALs, were
they spread evenly, and the last of three brokers serves all."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest heartbeat of a peer, as received here. Times are this node's monotonic milliseconds."""

    node: NodeEpoch
    at_ms: float
    controller_silent: bool
    """The sender does not hear the controller either."""


@dataclass(frozen=True, slots=True)
class Sight:
    """All that the decision depends on."""

    me: NodeEpoch
    now_ms: float
    serving_since_ms: float
    """When this node joined, or last resumed after a pause: nobody is called silent before a whole session has passed
    since.
    """
    ledger_read_ms: float
    live_since_ms: Mapping[NodeEpoch, float]
    """When this node first saw each live epoch in the ledger: who has just joined has had no time to be heard."""
    heard: Mapping[int, Heard]
    session_timeout_ms: float
    refused: frozenset[NodeEpoch] = frozenset()
    """Epochs at whose address the host refuses connections."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now. `sentence` says it and why."""

    stand: bool
    fence: tuple[NodeEpoch, ...]
    controller_silent: bool
    sentence: str


def judge(state: CellState, sight: Sight) -> Verdict:
    """Decide from the ledger's state and what was heard."""
    me, timeout = sight.me, sight.session_timeout_ms
    live = [b.id for b in state.live()]
    if me not in live:
        return Verdict(False, (), False, "this broker is not live in the ledger: it judges nobody")
    if sight.now_ms - sight.serving_since_ms < timeout:
        return Verdict(False, (), False, "listening: a whole session has not passed yet")
    if sight.now_ms - sight.ledger_read_ms > timeout:
        return Verdict(False, (), False, "the bucket has not answered lately: nobody is declared dead meanwhile")

    silent = [n for n in live if n != me and _is_silent(sight, n)]
    heard = [n for n in live if n != me and n not in silent]
    controller = state.controller
    if controller is None or controller not in live:
        # Nobody leads. The lowest node that is heard stands at once, the others after it has had a chance.
        first = min([me.node, *(n.node for n in heard)])
        if first == me.node:
            return Verdict(True, (), True, "no live controller; this is the lowest node heard")
        return Verdict(False, (), True, f"no live controller; waiting for node {first} to stand")
    if controller == me:
        if silent:
            victims = tuple(sorted(silent, key=lambda n: n.node))[: _fence_room(state)]
            if not victims:
                why = f"{len(silent)} silent, but as many as may be fenced at once already are"
                return Verdict(False, (), False, why)
            names = ", ".join(str(v.node) for v in victims)
            why = "gone, their hosts say" if sight.refused.issuperset(victims) else f"silent for {timeout:.0f} ms"
            return Verdict(False, victims, False, f"{why}: {names}")
        return Verdict(False, (), False, f"controller of {len(live)} brokers, all heard")
    if controller not in silent:
        return Verdict(False, (), False, f"controller {controller.node} is heard")
    # A candidate needs most of the brokers that it hears (itself one of them) not to hear the controller either. Who
    # hears
    # nobody at all is more likely cut off than alone: it waits three times as long, so that it does not depose the
    # others' controller again and again.
    voters = 1 + len(heard)
    agreeing = 1 + sum(1 for n in heard if sight.heard[n.node].controller_silent)
    if agreeing * 2 <= voters:
        return Verdict(
            False, (), True, f"controller {controller.node} is silent here, but only for {agreeing} of {voters}"
        )
    if not heard and len(silent) > 1 and _silence_ms(sight, controller) < 3 * timeout:
        return Verdict(False, (), True, "nobody is heard: perhaps it is this node that is cut off")
    first = min([me.node, *(n.node for n in heard if n != controller)])
    if first != me.node:
        return Verdict(False, (), True, f"controller {controller.node} is silent; node {first} stands first")
    return Verdict(True, (), True, f"controller {controller.node} is silent for {agreeing} of {voters}")


def _is_silent(sight: Sight, node: NodeEpoch) -> bool:
    timeout = sight.session_timeout_ms / (REFUSED_SHARE if node in sight.refused else 1)
    return _silence_ms(sight, node) > timeout


def _silence_ms(sight: Sight, node: NodeEpoch) -> float:
    heard = sight.heard.get(node.node)
    since = max(sight.serving_since_ms, sight.live_since_ms.get(node, 0.0))
    if heard is not None and heard.node == node:
        since = max(since, heard.at_ms)
    return sight.now_ms - since


def _fence_room(state: CellState) -> int:
    """How many more brokers may be fenced now.

    Whoever is fenced and still leads streams counts: its clients wait. At most half of all that serve or still lead may
    be so at once, but always one, so that a controller that is itself cut off takes no more from the cell before others
    serve what it took. Whoever leads nothing any more takes nothing from clients while its bytes wait for the bucket.
    But survivors hold these, and none of it comes back before they are written: a third of all stays live.
    """
    live = len(state.live())
    fenced = [b.id for b in state.brokers.values() if b.status is BrokerStatus.FENCED]
    leading = {s.open.owner for s in state.streams.values()}
    unserved = len(leading.intersection(fenced))
    by_service = max(1, (live + unserved) // 2) - unserved
    by_number = live - -(-(live + len(fenced)) // LIVE_SHARE)
    return max(0, min(by_service, by_number))
