"""A clock that is turned by hand."""

from __future__ import annotations


class HandClock:
    """Stands still until `now_ms` is set, or somebody sleeps, which takes no time but this clock's."""

    def __init__(self, now_ms: float = 0.0) -> None:
        self.now_ms = now_ms

    def monotonic_ms(self) -> float:
        return self.now_ms

    def wall_ms(self) -> int:
        return int(self.now_ms)

    async def sleep_ms(self, duration_ms: float) -> None:
        self.now_ms += duration_ms
