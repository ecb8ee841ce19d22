"""The one module that touches the wall clock and the source of randomness.

Everything else takes a `Clock` and a `Rng`, so that the simulator can hand in its own. ruff's banned-api keeps it so.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the code may know it. Deadlines and durations use `monotonic_ms`; only what is shown or stored uses
    `wall_ms`.
    """

    def monotonic_ms(self) -> float:
        """Milliseconds since an arbitrary origin; never goes back within one process."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch. May jump; no decision about ownership may depend on it."""
        ...

    async def sleep_ms(self, duration_ms: float) -> None:
        """Return after `duration_ms` milliseconds of this clock."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic_ms(self) -> float:
        return time.monotonic_ns() / 1e6

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep_ms(self, duration_ms: float) -> None:
        await asyncio.sleep(duration_ms / 1000)


class LoopClock:
    """The running event loop's clock: what simulation uses, since its loop's time is virtual."""

    def monotonic_ms(self) -> float:
        return asyncio.get_running_loop().time() * 1000

    def wall_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    async def sleep_ms(self, duration_ms: float) -> None:
        await asyncio.sleep(duration_ms / 1000)


class Rng(Protocol):
    """Randomness as the code may use it: ids and jitter."""

    def token(self) -> str:
        """A fresh 128-bit id, 32 hex digits."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        ...


class SystemRng:
    """Seeded by the operating system; each token is its own."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def token(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class SeededRng:
    """The same seed gives the same ids and jitter: for simulation and tests."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def token(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def sleep_blocking_ms(duration_ms: float) -> None:
    """Block the calling thread: for the command line's own polling, never inside an event loop."""
    time.sleep(duration_ms / 1000)


def backoff_ms(rng: Rng, attempt: int, *, first_ms: float, max_ms: float) -> float:
    """How long to pause after failed attempt number `attempt`, counted from 0: `first_ms`, doubled with each, at most
    `max_ms`; of that a random part between a half and the whole, so that those who failed together do not come back
    together."""
    full = min(max_ms, first_ms * 2**attempt)
    return rng.uniform(full / 2, full)
