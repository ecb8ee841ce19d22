"""From who leads what, and how busy it is, to moves: a pure decision.

A partition weighs its traffic and a constant, since an idle one costs something too: so one rule evens out traffic
where there is traffic, and counts where there is none, and the two never pull in different directions. A move has to
lessen the distance between the most and the least loaded broker; the most useful comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """When to move, and how much at once."""

    idle_weight: float = 32 << 10
    """Bytes a second for which a partition without traffic counts. Traffic below it is noise, and moves nothing."""
    band: float = 0.25
    """Part of the mean load by which the most loaded broker may be above the least loaded one. Rates are measured over
    seconds: a narrower band would follow their noise."""
    dwell_ms: float = 30_000
    """How long a partition stays where it was moved to, so that nothing goes to and fro."""
    moves_max: int = 16
    """Moves a turn: each is a short pause for its producers."""
    away_max: int = 8
    """Moves a turn away from slow brokers: each waits for what that broker has under way."""


@dataclass(frozen=True, slots=True)
class Move:
    """Lead `stream` on node `target` instead of `source`."""

    stream: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. `sentence` says it and why."""

    moves: tuple[Move, ...]
    sentence: str


def decide(
    owners: Mapping[int, int],
    nodes: Collection[int],
    rates: Mapping[int, float],
    moved_ms: Mapping[int, float],
    now_ms: float,
    policy: Policy,
    slow: Collection[int] = (),
) -> Decision:
    """`owners`: node by stream, of the streams that may be moved; `nodes`: who may lead; `rates`: bytes a second by
    stream, unknown ones idle; `moved_ms`: when streams were last moved; `slow`: nodes that should lead nothing, if
    others may. Streams of other nodes stay where they are.
    """
    well = [node for node in sorted(nodes) if node not in slow]
    if len(nodes) < 2 or not well:
        return Decision((), "nobody to share with")
    away = _away(owners, well, rates, policy, slow)
    if away:
        return Decision(away, f"broker {away[0].source} is slow: {len(away)} to move away")
    if len(well) < 2:
        return Decision((), "nobody to share with but a slow broker")
    led: dict[int, dict[int, float]] = {node: {} for node in well}
    for stream, node in owners.items():
        if node in led:
            led[node][stream] = policy.idle_weight + rates.get(stream, 0.0)
    load = {node: sum(weights.values()) for node, weights in led.items()}
    mean = sum(load.values()) / len(load)
    still = {stream for stream, at in moved_ms.items() if now_ms - at < policy.dwell_ms}
    moves: list[Move] = []
    reason = "loads are even"
    while len(moves) < policy.moves_max:
        source = max(load, key=lambda node: (load[node], -node))
        target = min(load, key=lambda node: (load[node], node))
        gap = load[source] - load[target]
        if gap <= max(policy.idle_weight, policy.band * mean):
            break
        best = _best(led[source], still, gap)
        if best is None:
            reason = f"broker {source} leads nothing that would even it out"
            break
        weight = led[source].pop(best)
        led[target][best] = weight
        load[source] -= weight
        load[target] += weight
        still.add(best)
        moves.append(Move(best, source, target))
    if not moves:
        return Decision((), reason)
    first = moves[0]
    return Decision(tuple(moves), f"{len(moves)} to move, the first from broker {first.source} to {first.target}")


def _away(
    owners: Mapping[int, int], well: Collection[int], rates: Mapping[int, float], policy: Policy, slow: Collection[int]
) -> tuple[Move, ...]:
    """The busiest streams of slow nodes, each to whoever carries least then. Where one was moved to lately is no reason
    to leave it there."""
    weights = {stream: policy.idle_weight + rates.get(stream, 0.0) for stream in owners}
    load = dict.fromkeys(well, 0.0)
    for stream, node in owners.items():
        if node in load:
            load[node] += weights[stream]
    leaving = sorted((s for s, node in owners.items() if node in slow), key=lambda s: (-weights[s], s))
    moves = []
    for stream in leaving[: policy.away_max]:
        target = min(load, key=lambda node: (load[node], node))
        load[target] += weights[stream]
        moves.append(Move(stream, owners[stream], target))
    return tuple(moves)


def _best(weights: Mapping[int, float], still: Collection[int], gap: float) -> int | None:
    """The stream whose move leaves the smallest gap, if any makes it smaller."""
    candidates = [(abs(gap - 2 * weight), stream) for stream, weight in weights.items() if stream not in still]
    if not candidates:
        return None
    left, stream = min(candidates)
    return stream if left < gap else None
