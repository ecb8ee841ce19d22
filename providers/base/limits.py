"""How often a cloud may be asked, and when not at all: decisions as functions of the time, without waiting.

                 failures in a row              open_ms later, one caller
    closed ───────────────────────────► open ───────────────────────────► half-open
       ▲                                  ▲                                   │
       └───────── its answer: any ────────┼────────────────────────────────────┤
                                          └──────── its answer: unavailable ───┘

Sources of the numbers that callers hand in: each cloud's own request limits (S3: 3,500 writes and 5,500 reads a second
and prefix; OSS: 10,000 requests a second and account; Azure: 20,000 a second and account; GCS: 1,000 writes and 5,000
reads a second and bucket, at first).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class TokenBucket:
    """So many permits a second, and a second's worth of them saved up."""

    def __init__(self, per_s: float) -> None:
        self._per_ms = per_s / 1000
        self._burst = max(per_s, 1.0)
        self._level = self._burst
        self._at_ms: float | None = None

    def take(self, now_ms: float, wait_ms_max: float) -> float | None:
        """Take one permit: the milliseconds to wait before it is good. None, and none taken, when that is more than
        `wait_ms_max`."""
        if self._at_ms is not None:
            self._level = min(self._burst, self._level + (now_ms - self._at_ms) * self._per_ms)
        self._at_ms = now_ms
        wait_ms = max(0.0, (1 - self._level) / self._per_ms)
        if wait_ms > wait_ms_max:
            return None
        self._level -= 1
        return wait_ms


class RetryBudget:
    """Retries are at most `share` of the requests, and `saved_max` more: when a cloud fails as a whole, asking it three
    times as often does not help it."""

    def __init__(self, share: float, saved_max: float) -> None:
        self._share = share
        self._saved_max = saved_max
        self._saved = saved_max

    def asked(self) -> None:
        """A first attempt was made."""
        self._saved = min(self._saved_max, self._saved + self._share)

    def spend(self) -> bool:
        """Whether one more retry is to be had; it is spent if so."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class BreakerState(enum.Enum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(slots=True)
class Breaker:
    """Stops asking a store that has been unavailable `failures_max` times in a row; every `open_ms` one caller asks for
    all."""

    failures_max: int
    open_ms: float
    failures: int = 0
    """In a row, until now."""
    _asked_ms: float | None = None
    """When the one caller went; None while closed."""

    def state(self, now_ms: float) -> BreakerState:
        if self._asked_ms is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_ms < self._asked_ms + self.open_ms else BreakerState.HALF_OPEN

    def admit(self, now_ms: float) -> float | None:
        """None: go ahead. Otherwise the milliseconds after which somebody may try again. A caller that went ahead and
        never reported back holds up nobody: the next one goes `open_ms` after it."""
        if self.state(now_ms) is BreakerState.OPEN:
            assert self._asked_ms is not None
            return self._asked_ms + self.open_ms - now_ms
        if self._asked_ms is not None:
            self._asked_ms = now_ms
        return None

    def answered(self) -> None:
        """The store answered, whatever it said."""
        self.failures = 0
        self._asked_ms = None

    def failed(self, now_ms: float) -> None:
        """The store was unavailable, or its answer was lost."""
        self.failures += 1
        if self.failures >= self.failures_max:
            self._asked_ms = now_ms
