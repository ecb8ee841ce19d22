"""What the kinds of sides share: their retry budget, bounded device calls, and the gate that lets successes out in
number order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from providers.base.clock import Clock
from providers.base.errors import NotFound, Unavailable, YunheError, invariant

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How long a side tries before it says `Unavailable`. Every retry carries the same bytes under the same name."""

    attempts_max: int = 7
    """Requests, the first included. Seven with the pauses below take 2.5 s of pauses: longer than a failed-over load
    balancer, shorter than a session time-out is for clients."""
    backoff_ms: float = 40
    """Pause after the first failure; doubles with each."""
    backoff_max_ms: float = 1000
    """Longest pause."""
    give_up_ms: float = 5_000
    """Once attempts have failed for so long, a side beside which there is another makes no further one: acks wait for
    both as long as one is tried, and a place that says nothing takes a time-out an attempt. One that is alone is tried
    to the last attempt."""

    def pause_ms(self, attempt: int) -> float:
        """Pause after attempt number `attempt`, counted from 0."""
        return float(min(self.backoff_max_ms, self.backoff_ms * 2**attempt))

    def left_ms(self, began_ms: float, clock: Clock) -> float:
        """How long attempts that began at `began_ms` may go on where there is another side."""
        return max(0.0, began_ms + self.give_up_ms - clock.monotonic_ms())


class DeviceCalls:
    """Calls to a block device, which bounds them in time: a volume that is gone counts as one that cannot be reached
    (its zone may come back)."""

    def __init__(self, retry: RetrySettings, clock: Clock) -> None:
        self._retry = retry
        self._clock = clock

    async def once(self, call: Awaitable[T]) -> T:
        """Await one call."""
        try:
            return await call
        except NotFound as error:
            raise Unavailable(f"the volume is gone: {error.message}") from error

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that may be repeated (all but writes), until it is answered.

        Raises:
            Unavailable: `attempts_max` attempts failed.
        """
        for attempt in range(self._retry.attempts_max - 1):
            try:
                return await self.once(call())
            except Unavailable:
                await self._clock.sleep_ms(self._retry.pause_ms(attempt))
        return await self.once(call())


class OrderGate:
    """Lets number n through once n and all numbers below it have succeeded, and none once a lower one has failed.

    A name or offset beyond a hole is durable, and yet not vouched for: a fencer may take the hole.
    """

    def __init__(self, start: int = 1) -> None:
        self._next = start
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._failed: YunheError | None = None

    def check(self) -> None:
        """Raise what closed the gate, if it is closed."""
        if self._failed is not None:
            raise self._failed

    def fail(self, error: YunheError) -> None:
        """Close the gate for good: whoever waits, and whoever comes, gets `error`."""
        if self._failed is None:
            self._failed = error
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(self._failed)
        self._waiting.clear()

    async def succeed(self, number: int) -> None:
        """`number` is durable: return when all below it are too.

        Raises:
            YunheError: what `fail` was given.
        """
        self.check()
        invariant(number >= self._next, "a number succeeds once", number=number, next=self._next)
        if number > self._next:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[number] = waiter
            await waiter
            return
        self._next += 1
        while self._next in self._waiting:
            waiter = self._waiting.pop(self._next)
            if not waiter.done():
                waiter.set_result(None)
            self._next += 1
