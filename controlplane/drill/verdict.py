"""What each drill promises, and whether what was measured keeps it: values and pure functions."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from controlplane.drill.checker import Judgement
from controlplane.drill.probe import Ack


@dataclass(frozen=True, slots=True)
class Drill:
    """A drill as a value: its fault, and its objectives beside those of every drill (no acked record lost, duplicated,
    reordered or corrupt; no produce given up; all as before at the end).
    """

    name: str
    what: str
    rto_ms_max: float
    """From the fault to the first ack of the partition that waited longest for it."""
    pause_ms_max: float | None = None
    """The longest pause between two acks of any partition while the fault lasts; None: only the RTO counts."""
    takes_over: bool = True
    """Partitions of the lost brokers must have other leaders afterwards. Otherwise nothing may have been restarted."""


DRILLS: dict[str, Drill] = {
    d.name: d
    for d in (
        Drill("broker-loss", "SIGKILL the broker that leads most partitions; another zone takes over", 5_000),
        Drill("zone-loss", "a zone with its agent, brokers, volumes and express bucket is gone", 10_000),
        # 1.5 s is the silence after which a cell calls a broker lost: a longer pause would be a failover.
        Drill(
            "control-plane-loss",
            "SIGKILL the control plane; traffic goes on, nothing is restarted",
            rto_ms_max=1_500,
            pause_ms_max=1_500,
            takes_over=False,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """One partition over a fault. Times are of the monotonic clock."""

    partition: int
    last_before_ms: float
    first_after_ms: float


def recovery(acks: Sequence[Ack], partition: int, fault_ms: float) -> Recovery | None:
    """When the partition acked again: at the end of its longest pause that ends after the fault, since an ack that was
    on its way when the fault struck is not yet a survivor's. None: it has not.
    """
    times = [a.at_ms for a in acks if a.partition == partition]
    pauses = [(b - a, a, b) for a, b in itertools.pairwise(times) if b > fault_ms]
    if not pauses:
        return None
    _, before, after = max(pauses)
    return Recovery(partition, before, after)


def first_ack_after(acks: Sequence[Ack], partition: int, fault_ms: float) -> float | None:
    """When the first ack arrived after the fault, whoever sent it."""
    return next((a.at_ms for a in acks if a.partition == partition and a.at_ms > fault_ms), None)


def longest_pause_ms(acks: Sequence[Ack], partition: int, from_ms: float, until_ms: float) -> float:
    """The longest time without an ack between two moments."""
    inside = [a.at_ms for a in acks if a.partition == partition and from_ms < a.at_ms < until_ms]
    return max(b - a for a, b in itertools.pairwise([from_ms, *inside, until_ms]))


def each_acked(acks: Sequence[Ack], partitions: Collection[int], count: int, since_ms: float) -> bool:
    """Whether each of the partitions has at least `count` acks later than `since_ms`. `acks` are in order of time."""
    seen = dict.fromkeys(partitions, 0)
    for ack in acks[bisect_right(acks, since_ms, key=lambda a: a.at_ms) :]:
        if ack.partition in seen:
            seen[ack.partition] += 1
    return all(n >= count for n in seen.values())


@dataclass(slots=True)
class Measured:
    """What a run found. None: it could not be measured."""

    rto_ms: float | None = None
    pause_ms: float | None = None
    still_led: tuple[int, ...] = ()
    """Partitions that a lost broker still leads, by metadata."""
    restarted: tuple[str, ...] = ()
    failed_produces: int = 0
    first_error: str = ""
    judgement: Judgement | None = None


def failures(drill: Drill, measured: Measured) -> list[str]:
    """Each objective that is not kept, in one sentence; none: PASS."""
    found = []
    if measured.rto_ms is None:
        found.append("not every partition acked again")
    elif measured.rto_ms > drill.rto_ms_max:
        found.append(f"RTO {measured.rto_ms:.0f} ms is above {drill.rto_ms_max:.0f} ms")
    if drill.pause_ms_max is not None and (measured.pause_ms is None or measured.pause_ms > drill.pause_ms_max):
        shown = "was not measured" if measured.pause_ms is None else f"is {measured.pause_ms:.0f} ms"
        found.append(f"the longest pause between acks {shown}; {drill.pause_ms_max:.0f} ms is allowed")
    if measured.still_led:
        found.append(f"nobody took over partitions {', '.join(map(str, measured.still_led))}")
    if measured.restarted:
        found.append(f"restarted or gone: {', '.join(measured.restarted)}")
    if measured.failed_produces:
        found.append(f"{measured.failed_produces} produces failed, the first: {measured.first_error}")
    judged = measured.judgement
    if judged is None:
        found.append("the records could not be read back")
    elif not judged.acked:
        found.append("nothing was acked: nothing was shown")
    elif not judged.clean:
        found += judged.examples
    return found
