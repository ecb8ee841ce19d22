"""The world that simulated processes share, and how a request fares on its way through it.

    process --latency--> place: the effect happens here, at one moment --latency--> process

A request to a place (a bucket, a disk) may be refused, be applied while its answer is lost, be applied long after its
sender was told "unknown", or be applied twice. All chance is drawn from the world's `Rng` and all waiting is on its
`Clock`, so that the same seed gives the same trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from providers.base.clock import Clock, Rng
from providers.base.errors import OutcomeUnknown, Unavailable, YunheError, invariant

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Faults:
    """How a place behaves. Probabilities are a request's, from 0 to 1, and exclude each other; times in
    milliseconds."""

    latency_ms: tuple[float, float] = (0.5, 3.0)
    """Time of each of the two ways, uniform between these: a small read of a zonal store."""
    unavailable: float = 0.0
    """Refused, nothing changed."""
    throttled: float = 0.0
    """Refused with the far side's wish to slow down, nothing changed."""
    lost_response: float = 0.0
    """Applied, and the answer lost."""
    delayed: float = 0.0
    """The sender hears nothing; a change is applied up to `delayed_ms_max` later: the zombie's late write."""
    duplicated: float = 0.0
    """Applied and answered, and applied once more up to `delayed_ms_max` later. Object stores only: a device's
    command is never carried out twice."""
    delayed_ms_max: float = 30_000.0
    """Longer than any fail-over under test, so that late requests meet a new owner."""
    timeout_ms: float = 1_000.0
    """When the sender gives up."""
    late_max: int = 10_000
    """Late requests of one world that may be pending; more is a runaway test."""

    def __post_init__(self) -> None:
        total = self.unavailable + self.throttled + self.lost_response + self.delayed + self.duplicated
        invariant(0 <= total <= 1, "the chances of faults add up to at most 1", total=total)


CALM = Faults()
"""Latency alone."""


class World:
    """Clock, randomness and trace of one simulation."""

    def __init__(self, clock: Clock, rng: Rng) -> None:
        self.clock = clock
        self.rng = rng
        self.trace: list[str] = []
        """What happened, in order: the same seed gives the same list."""
        self.late: set[asyncio.Task[None]] = set()

    def note(self, event: str) -> None:
        self.trace.append(f"{self.clock.monotonic_ms():.3f} {event}")

    def apply_late(self, what: str, apply: Callable[[], object], faults: Faults) -> None:
        """Apply at a random later time; the outcome is told to nobody."""
        invariant(len(self.late) < faults.late_max, "late requests pile up", pending=len(self.late))
        delay_ms = self.rng.uniform(0, faults.delayed_ms_max)

        async def land() -> None:
            await self.clock.sleep_ms(delay_ms)
            try:
                apply()
                self.note(f"{what}: applied late")
            except YunheError as error:
                self.note(f"{what}: refused late, {type(error).__name__}")

        task = asyncio.create_task(land())
        self.late.add(task)
        task.add_done_callback(self.late.discard)

    async def settle(self) -> None:
        """Return once no late request is pending."""
        while self.late:
            await asyncio.wait(set(self.late))


class Place:
    """What requests go to. Change `faults` and `down` at any time."""

    def __init__(self, world: World, name: str, faults: Faults = CALM) -> None:
        self.world = world
        self.name = name
        self.faults = faults
        self.down = False
        """An outage: every request is refused."""

    def process_killed(self, process: Process) -> None:
        """A process is gone; what it had under way here may be torn."""


class Process:
    """A simulated process: frozen, killed and cut off independently of all others."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.cut_from: set[str] = set()
        """Names of the places that it cannot reach."""
        self.killed = False
        self._awake = asyncio.Event()
        self._awake.set()
        self._places: dict[str, Place] = {}

    def freeze(self) -> None:
        """Nothing it awaits here returns until `thaw`; what is on its way arrives all the same."""
        self.world.note(f"{self.name} freezes")
        self._awake.clear()

    def thaw(self) -> None:
        self.world.note(f"{self.name} thaws")
        self._awake.set()

    def kill(self) -> None:
        """Nothing it awaits here ever returns: cancel its tasks. Writes under way to a disk are torn."""
        self.world.note(f"{self.name} is killed")
        self.killed = True
        for place in self._places.values():
            place.process_killed(self)

    async def running(self) -> None:
        """Return when the process runs; never, once it is killed."""
        await self._awake.wait()
        if self.killed:
            await asyncio.Event().wait()

    async def call(self, place: Place, what: str, apply: Callable[[], T], *, changes: bool, repeats: bool = False) -> T:
        """Send one request, whose effect at `place` is `apply`.

        Raises:
            Unavailable: refused, cut off, or a read without an answer.
            OutcomeUnknown: a change without an answer.
            YunheError: what `apply` raises.
        """
        world, faults = self.world, place.faults
        self._places[place.name] = place
        await self.running()
        label = f"{self.name} {what} at {place.name}"
        fate = self._fate(faults, changes=changes, repeats=repeats)
        if fate != "well":
            world.note(f"{label}: {fate}")
        cut = place.name in self.cut_from
        await world.clock.sleep_ms(world.rng.uniform(*faults.latency_ms))
        if cut or place.name in self.cut_from:
            await self._give_up(faults)
            raise Unavailable(f"{place.name} cannot be reached from {self.name}")
        if place.down or fate in ("unavailable", "throttled"):
            await self.running()
            raise Unavailable(f"{place.name} {'asks to slow down' if fate == 'throttled' else 'is unavailable'}")
        if fate == "delayed":
            if changes:
                world.apply_late(label, apply, faults)
            await self._give_up(faults)
            raise _unanswered(what, changes)
        result, failure = _attempt(apply)
        world.note(f"{label}: {'ok' if failure is None else type(failure).__name__}")
        if fate == "duplicated":
            world.apply_late(label, apply, faults)
        await world.clock.sleep_ms(world.rng.uniform(*faults.latency_ms))
        if fate == "lost response" or place.name in self.cut_from:
            await self._give_up(faults)
            raise _unanswered(what, changes)
        await self.running()
        if failure is not None:
            raise failure
        return result[0]

    def _fate(self, faults: Faults, *, changes: bool, repeats: bool) -> str:
        chance = self.world.rng.uniform(0, 1)
        for fate, probability in (
            ("unavailable", faults.unavailable),
            ("throttled", faults.throttled),
            ("lost response", faults.lost_response),
            ("delayed", faults.delayed),
            ("duplicated", faults.duplicated if changes and repeats else 0.0),
        ):
            if chance < probability:
                return fate
            chance -= probability
        return "well"

    async def _give_up(self, faults: Faults) -> None:
        await self.world.clock.sleep_ms(faults.timeout_ms)
        await self.running()


def _attempt(apply: Callable[[], T]) -> tuple[tuple[T, ...], YunheError | None]:
    try:
        return (apply(),), None
    except YunheError as error:
        return (), error


def _unanswered(what: str, changes: bool) -> Unavailable:
    kind = OutcomeUnknown if changes else Unavailable
    return kind(f"{what}: no answer")
