"""What each drill promises, and whether what was measured keeps it: values and pure functions."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.drill.checker import Judgement
from controlplane.drill.probe import Ack
from providers.base.errors import Invalid


@dataclass(frozen=True, slots=True)
class Drill:
    """A drill as a value: its fault, and its objectives beside those of every drill (no acked record lost, duplicated,
    reordered or corrupt; no produce given up; all as before at the end).
    """

    name: str
    what: str
    rto_ms_max: float
    """From the fault to the first ack of the partition that waited longest for it; where nothing can be acked while
    the fault lasts, from its end; where acks should go on, the longest time without one.
    """
    pause_ms_max: float | None = None
    """The longest pause between two acks of any partition while the fault lasts; None: only the RTO counts."""
    takes_over: bool = False
    """Partitions of the lost brokers must have other leaders afterwards."""
    stops: bool = False
    """Nothing can be acked while the fault lasts: that it was so shows that something was broken."""
    acks: str = "every partition"
    """What has to go on, for the sentence that says that it did not."""
    sides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """WAL mode → sides that can be lost, the one that is lost when none is named first."""


SIDES = {
    "regional-block": ("volume",),
    "zonal-block": ("volume",),
    "block+express": ("volume", "express"),
    "object": ("object",),
}
"""The sides of a WAL by its mode. Where there is only one, nothing can be acked without it."""

DRILLS: dict[str, Drill] = {
    d.name: d
    for d in (
        Drill("broker-loss", "SIGKILL a broker that leads partitions; another zone takes over", 5_000, takes_over=True),
        Drill(
            "zone-loss",
            "a zone with its agent, brokers, volumes and express bucket is gone",
            10_000,
            takes_over=True,
        ),
        Drill(
            "zombie-broker",
            "SIGSTOP a broker, another zone takes over, SIGCONT: the thawed one acks nothing that is lost, and ends",
            # The client's own time-out of a broker that does not answer comes first: three seconds.
            15_000,
            takes_over=True,
        ),
        Drill(
            "wal-loss",
            "a side of the WAL is away: with another, acks go on there alone; else they wait for its return",
            15_000,
            sides=SIDES,
        ),
        Drill(
            "object-store-outage",
            "the bucket answers nothing: a WAL that is not in it acks on, and nobody is declared dead",
            3_000,
        ),
        Drill("throttle", "the bucket says slow down to most requests: slower, and nothing ends", 3_000),
        # 1.5 s is the silence after which a cell calls a broker lost: a longer pause would be a failover.
        Drill(
            "control-plane-loss",
            "SIGKILL the control plane; traffic goes on, nothing is restarted",
            rto_ms_max=1_500,
            pause_ms_max=1_500,
        ),
    )
}


DATABASE_DRILLS: dict[str, Drill] = {
    d.name: d
    for d in (
        Drill(
            "edge-power-cut",
            "SIGKILL edges while they are written to: every acked point is in the cloud database once",
            # From the power's return: its agent's back-off, the start of a process, the recovery of its log.
            15_000,
            acks="every edge",
        ),
        Drill(
            "import-interrupted",
            "SIGKILL the owner of a cloud database while it imports: another node goes on, nothing comes twice",
            20_000,
            acks="the import",
        ),
        Drill(
            "region-failover",
            "SIGKILL the owner of a cloud database while clients write to it: another node takes over",
            10_000,
            acks="the database",
        ),
        Drill(
            "bucket-throttle",
            "the bucket refuses most requests: edges ack on, and all of it arrives, once",
            3_000,
            pause_ms_max=3_000,
            acks="every edge",
        ),
    )
}
"""Drills of databases: of points, in no WAL mode of brokers."""


def objectives(name: str, mode: str) -> Drill:
    """What a drill promises in a WAL mode."""
    if name in DATABASE_DRILLS:
        return DATABASE_DRILLS[name]
    drill = DRILLS[name]
    if name == "wal-loss" and len(SIDES[mode]) == 1:
        # Brokers that have ended wait for their agent's back-off, then recover, and the client looks for them again.
        return replace(drill, stops=True, rto_ms_max=30_000)
    if name == "object-store-outage" and mode == "object":
        return replace(drill, stops=True, rto_ms_max=10_000)
    if name == "throttle" and mode == "object":
        return replace(drill, rto_ms_max=15_000)
    return drill


def side_of(name: str, mode: str, asked: str | None) -> str | None:
    """Which side of the WAL a drill takes away; None: it is none of its business.

    Raises:
        Invalid: the drill takes none, or a WAL of this mode has no such side.
    """
    sides = DRILLS[name].sides.get(mode, ())
    if asked is None:
        return sides[0] if sides else None
    if not DRILLS[name].sides:
        raise Invalid(f"{name} takes no side", hint="wal-loss does")
    if asked not in sides:
        raise Invalid(f"a WAL of mode {mode} has no side {asked}", hint=f"one of: {', '.join(sides)}")
    return asked


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
    unkept: tuple[str, ...] = ()
    """What else the drill promises and was not so, in sentences; also that it showed nothing."""
    failed_produces: int = 0
    first_error: str = ""
    judgement: Judgement | None = None


def failures(drill: Drill, measured: Measured) -> list[str]:
    """Each objective that is not kept, in one sentence; none: PASS."""
    found = []
    if measured.rto_ms is None:
        found.append(
            f"not {drill.acks} acked again" if drill.acks.startswith("every") else f"{drill.acks} did not go on"
        )
    elif measured.rto_ms > drill.rto_ms_max:
        found.append(f"RTO {measured.rto_ms:.0f} ms is above {drill.rto_ms_max:.0f} ms")
    if drill.pause_ms_max is not None and (measured.pause_ms is None or measured.pause_ms > drill.pause_ms_max):
        shown = "was not measured" if measured.pause_ms is None else f"is {measured.pause_ms:.0f} ms"
        found.append(f"the longest pause between acks {shown}; {drill.pause_ms_max:.0f} ms is allowed")
    if measured.still_led:
        found.append(f"nobody took over partitions {', '.join(map(str, measured.still_led))}")
    if measured.restarted:
        found.append(f"restarted or gone: {', '.join(measured.restarted)}")
    found += measured.unkept
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
