"""A cap on bytes a second, kept by whoever sends: bytes are good to be sent once their own time on the line is over.

Nothing is saved up while the line is idle, so that what was sent never exceeds the cap times the time, but for what one
request holds.
"""

from __future__ import annotations

from providers.base.clock import Clock


class Throttle:
    """Of one line, which several senders share in the order in which they ask."""

    def __init__(self, bytes_per_s: int | None, clock: Clock) -> None:
        """`bytes_per_s`: None takes what the line does."""
        self._per_ms = bytes_per_s / 1_000 if bytes_per_s is not None else None
        self._clock = clock
        self._free_ms = 0.0

    async def take(self, count: int) -> None:
        """Return when `count` bytes may be sent."""
        if self._per_ms is None:
            return
        now = self._clock.monotonic_ms()
        self._free_ms = max(now, self._free_ms) + count / self._per_ms
        await self._clock.sleep_ms(self._free_ms - now)
