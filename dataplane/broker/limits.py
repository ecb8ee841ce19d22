"""What one request costs its client beside bytes: time of the broker's thread, and partitions made or deleted."""

from __future__ import annotations

from collections.abc import Callable

from dataplane.broker.quotas import MUTATIONS, REQUESTS, Quotas
from dataplane.broker.request_time import RequestTime
from providers.base.clock import Clock


class Limits:
    """One request's, from the moment on that it is looked at. `mute` is told for how many milliseconds the connection
    must not be read."""

    __slots__ = ("_clock", "_mute", "_quotas", "_user", "_wait_ms", "client_id", "time")

    def __init__(self, quotas: Quotas, user: str, clock: Clock, mute: Callable[[float], None]) -> None:
        self._quotas = quotas
        self._user = user
        self._clock = clock
        self._mute = mute
        self._wait_ms = 0.0
        self.client_id = ""
        self.time = RequestTime(clock)

    @property
    def counts_mutations(self) -> bool:
        """Whether anybody has a quota of partitions made and deleted."""
        return self._quotas.used(MUTATIONS)

    def take(self, partitions: int, *, strict: bool) -> bool:
        """Count partitions to be made or deleted; False when they must not be now, which only `strict` clients hear."""
        now_ms, who = self._clock.monotonic_ms(), (self._user, self.client_id)
        if strict:
            may, wait_ms = self._quotas.take(MUTATIONS, *who, partitions, now_ms)
        else:
            may, wait_ms = True, self._quotas.charge(MUTATIONS, *who, partitions, now_ms)
        self._wait_ms = max(self._wait_ms, wait_ms)
        return may

    def settle(self) -> int:
        """The request is as good as answered: count its time; for how many milliseconds the client is told to wait."""
        now_ms = self._clock.monotonic_ms()
        spent_ms = self._quotas.charge(REQUESTS, self._user, self.client_id, self.time.ms, now_ms)
        wait_ms = max(self._wait_ms, spent_ms)
        if wait_ms >= 1:
            self._mute(wait_ms)
        return int(wait_ms)
