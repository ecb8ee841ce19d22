"""How fast a client may be: Kafka's quotas, by user and client id, as token buckets. No clock, no waiting.

A quota is a broker's: what is over it is served, answered with how long the client has to wait, and the connection is
not read for that time (KIP-219). Of the entities that fit a client the first one counts:

    user and client id · user and any client · user · any user and client id · any user and any client · any user ·
    client id · any client
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dataplane.ledger.security_state import SecurityState, entity_key

PRODUCER, CONSUMER = "producer_byte_rate", "consumer_byte_rate"
REQUESTS = "request_percentage"
MUTATIONS = "controller_mutation_rate"
USER, CLIENT = "user", "client-id"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a quota counts. `units`: tokens a second for each 1 of its value. `burst_s`: what may be saved up, in
    seconds of the rate. `least`: the smallest value that is taken."""

    counts: str
    units: float
    burst_s: float
    least: float


BURST_S = 1.0
HONOURED: Mapping[str, Kind] = {
    PRODUCER: Kind("bytes a second", 1.0, BURST_S, 1.0),
    CONSUMER: Kind("bytes a second", 1.0, BURST_S, 1.0),
    REQUESTS: Kind("percent of a broker's one thread", 10.0, BURST_S, 0.01),
    MUTATIONS: Kind("partitions made or deleted a second", 1.0, 10.0, 0.001),
}
"""Quotas by name. Of a thread's time, tokens are milliseconds. Partitions come many at once, so that Kafka lets ten
seconds of them be saved up."""
THROTTLE_MAX_MS = 30_000
"""The longest that one answer makes a client wait. What is still owed then counts in the next one."""
BUCKETS_MAX = 10_000


@dataclass(slots=True)
class Bucket:
    """Tokens below zero are owed. `at_ms`: when they were last counted."""

    tokens: float
    at_ms: float

    def charge(self, size: float, rate: float, now_ms: float, burst_s: float = BURST_S) -> float:
        """Take `size` tokens at `rate` a second; how long to wait now, milliseconds."""
        earned = rate * max(0.0, now_ms - self.at_ms) / 1000
        self.tokens = min(self.tokens + earned, rate * burst_s) - size
        self.at_ms = now_ms
        return 0.0 if self.tokens >= 0 else min(-self.tokens / rate * 1000, THROTTLE_MAX_MS)


@dataclass(frozen=True, slots=True)
class Limit:
    """A client's quota: its value, and with whom it shares that."""

    rate: float
    shared_by: tuple[str, str | None, str | None]


class Quotas:
    """The quotas of a cell as one broker keeps them."""

    def __init__(self, state: Callable[[], SecurityState]) -> None:
        self._state = state
        self._revision = -1
        self._used: set[str] = set()
        self._limits: dict[tuple[str, str, str], Limit | None] = {}
        self._buckets: dict[tuple[str, str | None, str | None], Bucket] = {}

    @property
    def active(self) -> bool:
        """Whether anybody has a quota."""
        return bool(self._state().quotas)

    def used(self, quota: str) -> bool:
        """Whether anybody has this quota."""
        self._renew()
        return quota in self._used

    def charge(self, quota: str, user: str, client_id: str, size: float, now_ms: float) -> float:
        """Count `size`; how long this client has to wait for it, milliseconds."""
        return self._take(quota, user, client_id, size, now_ms, strict=False)[1]

    def take(self, quota: str, user: str, client_id: str, size: float, now_ms: float) -> tuple[bool, float]:
        """Count `size`, unless the client owes something already: (whether it may, how long it has to wait)."""
        return self._take(quota, user, client_id, size, now_ms, strict=True)

    def _take(
        self, quota: str, user: str, client_id: str, size: float, now_ms: float, *, strict: bool
    ) -> tuple[bool, float]:
        limit = self._limit(quota, user, client_id)
        if limit is None:
            return True, 0.0
        kind = HONOURED[quota]
        rate = limit.rate * kind.units
        bucket = self._buckets.get(limit.shared_by)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:
                self._buckets.clear()
            bucket = self._buckets[limit.shared_by] = Bucket(rate * kind.burst_s, now_ms)
        if strict and (owed_ms := bucket.charge(0, rate, now_ms, kind.burst_s)):
            return False, owed_ms
        return True, bucket.charge(size, rate, now_ms, kind.burst_s)

    def _limit(self, quota: str, user: str, client_id: str) -> Limit | None:
        state = self._renew()
        if len(self._limits) >= BUCKETS_MAX:
            self._limits.clear()
        key = (quota, user, client_id)
        if key not in self._limits:
            self._limits[key] = limit_of(state, quota, user, client_id)
        return self._limits[key]

    def _renew(self) -> SecurityState:
        state = self._state()
        if state.revision != self._revision:
            self._revision = state.revision
            self._limits.clear()
            self._used = {quota for values in state.quotas.values() for quota in values}
        return state


def limit_of(state: SecurityState, quota: str, user: str, client_id: str) -> Limit | None:
    """The quota that counts for a client, None when there is none."""
    user_and_client = [{USER: u, CLIENT: c} for u in (user, None) for c in (client_id, None)]
    ordered: list[dict[str, str | None]] = [
        *user_and_client[:2],
        {USER: user},
        *user_and_client[2:],
        {USER: None},
        {CLIENT: client_id},
        {CLIENT: None},
    ]
    for entity in ordered:
        rate = state.quotas.get(entity_key(entity), {}).get(quota)
        if rate is not None:
            # Under a default each has a rate of its own, not all together one.
            return Limit(rate, (quota, user if USER in entity else None, client_id if CLIENT in entity else None))
    return None
