"""Waiting until a cloud's control API shows a change done. Some changes there have no end of their own to await: one
asks again, less and less often."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from providers.base.clock import Clock
from providers.base.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WaitSettings:
    """Bounds of a wait for a control API."""

    wait_timeout_ms: float = 120_000
    """Milliseconds until a change that the cloud accepted must show. Creating, attaching and detaching take seconds,
    a minute on a bad day."""
    poll_ms: float = 50
    """Milliseconds before the first look, doubled each time. Small, so that a quick change is seen quickly."""
    poll_ms_max: float = 3_000
    """Milliseconds between looks at most: long changes are to cost few requests of the account's rate limit."""


async def wait_for(
    subject: str, look: Callable[[], Awaitable[T | None]], settings: WaitSettings, clock: Clock, *, hint: str = ""
) -> T:
    """What `look` returns once it is not None. An `Unavailable` look is looked at again: the change goes on whether we
    can see it or not.

    Raises:
        Unavailable: not done in time; repeating the call is how to learn.
        YunheError: what `look` raises but `Unavailable`.
    """
    deadline_ms = clock.monotonic_ms() + settings.wait_timeout_ms
    pause_ms = settings.poll_ms
    last: Unavailable | None = None
    while True:
        try:
            found = await look()
            if found is not None:
                return found
            last = None
        except Unavailable as error:
            last = error
        if clock.monotonic_ms() + pause_ms > deadline_ms:
            seconds = settings.wait_timeout_ms / 1000
            raise Unavailable(f"{subject} was not done after {seconds:g} s", hint=hint or None) from last
        await clock.sleep_ms(pause_ms)
        pause_ms = min(pause_ms * 2, settings.poll_ms_max)
