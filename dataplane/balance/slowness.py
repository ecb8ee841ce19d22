"""Which brokers are slow: a pure judgement, one a window, over how long each broker's WAL takes to ack.

A broker is slow beside its peers, never by itself: where all are slow together there is nowhere better to go.

    well ──(far beyond its peers, several windows)──► slow ──(near its peers, many windows)──► well
                                                        └──(nothing heard of it for long)────┘
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

Key = tuple[int, int]
"""A broker's life: (node id, epoch). The next life begins well."""


@dataclass(frozen=True, slots=True)
class SlowPolicy:
    """When a broker counts as slow, and when as well again. A window is a turn of the balancer."""

    factor: float = 5
    """How many times the median of its peers a broker's latency has to be."""
    floor_ms: float = 250
    """Latency below which nobody is slow: an object WAL's large blocks take as long where all is well."""
    alone_ms: float = 1_000
    """The same where only one peer can be compared with: one measurement is no median."""
    bad_windows: int = 5
    """Bad windows, less the good ones between them, that make a broker slow."""
    well_factor: float = 2
    """A slow broker is near its peers within so many times their median, or below half of `floor_ms`."""
    well_windows: int = 15
    """Windows near its peers, one after another, that make a slow broker well; doubled at each relapse."""
    relapses_max: int = 5
    """Relapses beyond which `well_windows` grows no more: eight minutes at one window a second."""
    forgiven_windows: int = 600
    """Good windows of a well broker after which its relapses are forgotten."""
    blind_windows: int = 600
    """Windows without any measurement after which a slow broker counts as well, so that traffic shows how it is."""
    share_max: float = 1 / 3
    """Part of the brokers that may be slow at once; one is allowed wherever there are two."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one broker. `bad`, `good`, `blind`: windows counted towards the next change."""

    slow: bool = False
    bad: int = 0
    good: int = 0
    blind: int = 0
    relapses: int = 0
    sentence: str = ""
    """While it is slow: what was seen when it became so."""


def adopted(sentence: str) -> Health:
    """A broker that an earlier controller called slow."""
    return Health(slow=True, relapses=1, sentence=sentence)


def judge(
    before: Mapping[Key, Health], latency_ms: Mapping[Key, float | None], policy: SlowPolicy
) -> dict[Key, Health]:
    """The health of every broker after one more window. `latency_ms`: of each broker that may lead; None: it wrote
    nothing. Others are forgotten.
    """
    after: dict[Key, Health] = {}
    for key, measured in latency_ms.items():
        health = before.get(key, Health())
        peers = _peers(key, before, latency_ms)
        if measured is None or not peers:
            after[key] = _unseen(health, policy)
        elif health.slow:
            after[key] = _slow(health, measured, statistics.median(peers), policy)
        else:
            after[key] = _well(health, _is_far(measured, peers, policy), policy)
    return _bounded(after, latency_ms, policy)


def to_probe(health: Mapping[Key, Health], latency_ms: Mapping[Key, float | None], policy: SlowPolicy) -> set[Key]:
    """Brokers that should write something to be measured by: slow ones, for else nobody would learn that they are well
    again; and all while one looks slow and has nobody to be compared with."""
    probed = {key for key, one in health.items() if one.slow}
    if probed or any(measured is not None and measured >= policy.floor_ms for measured in latency_ms.values()):
        probed |= {key for key, measured in latency_ms.items() if measured is None}
    return probed


def _peers(key: Key, before: Mapping[Key, Health], latency_ms: Mapping[Key, float | None]) -> list[float]:
    """What the others show; of the slow ones only where nobody else shows anything."""
    others = {k: ms for k, ms in latency_ms.items() if k != key and ms is not None}
    well = [ms for k, ms in others.items() if k not in before or not before[k].slow]
    return well or list(others.values())


def _is_far(measured: float, peers: Collection[float], policy: SlowPolicy) -> bool:
    floor_ms = policy.floor_ms if len(peers) > 1 else policy.alone_ms
    return measured >= floor_ms and measured >= policy.factor * statistics.median(peers)


def _well(health: Health, far: bool, policy: SlowPolicy) -> Health:
    if far:
        return replace(health, bad=min(health.bad + 1, policy.bad_windows), good=0)
    good = min(health.good + 1, policy.forgiven_windows)
    relapses = 0 if good == policy.forgiven_windows else health.relapses
    return replace(health, bad=max(0, health.bad - 1), good=good, relapses=relapses)


def _slow(health: Health, measured: float, median_ms: float, policy: SlowPolicy) -> Health:
    near = measured <= max(policy.well_factor * median_ms, policy.floor_ms / 2)
    good = health.good + 1 if near else 0
    if good < policy.well_windows << max(0, min(health.relapses, policy.relapses_max + 1) - 1):
        return replace(health, good=good, blind=0)
    return Health(relapses=health.relapses)


def _unseen(health: Health, policy: SlowPolicy) -> Health:
    if not health.slow:
        return health
    if health.blind + 1 >= policy.blind_windows:
        return Health(relapses=health.relapses)
    return replace(health, blind=health.blind + 1)


def _bounded(after: dict[Key, Health], latency_ms: Mapping[Key, float | None], policy: SlowPolicy) -> dict[Key, Health]:
    """Those that have gathered enough bad windows become slow, the worst first, as long as the bound allows."""

    def worst(key: Key) -> tuple[float, Key]:
        return -(latency_ms[key] or 0.0), key

    allowed = max(1, int(len(after) * policy.share_max)) if len(after) > 1 else 0
    slow = sorted((key for key, health in after.items() if health.slow), key=worst)
    for key in slow[allowed:]:  # there are fewer brokers than there were
        after[key] = Health(relapses=after[key].relapses)
    ripe = [key for key, one in after.items() if not one.slow and one.bad >= policy.bad_windows]
    for key in sorted(ripe, key=worst)[: max(0, allowed - len(slow))]:
        measured, peers = latency_ms[key], _peers(key, after, latency_ms)
        if measured is None or not peers:
            continue
        # Of the window that made it so: words that do not change with each measurement are logged and reported once.
        said = f"its WAL acks in {measured:.0f} ms, those of its peers in {statistics.median(peers):.0f} ms"
        after[key] = Health(slow=True, relapses=after[key].relapses + 1, sentence=said)
    return after
