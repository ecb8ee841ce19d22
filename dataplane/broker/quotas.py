"""How fast a client may be: Kafka's byte rates, by user and client id, as token buckets. No clock, no waiting.

A quota is a broker's: what is over it is served, answered with how long the client has to wait, and the connection is
not read for that time (KIP-219). Of the entities that fit a client the first one counts:

    user and client id · user and any client · user · any user and client id · any user and any client · any user ·
    client id · any client
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dataplane.ledger.security_state import SecurityState, entity_key

PRODUCER, CONSUMER = "producer_byte_rate", "consumer_byte_rate"
HONOURED = (PRODUCER, CONSUMER)
"""Names of quotas, both in bytes a second."""
USER, CLIENT = "user", "client-id"
BURST_S = 1.0
"""What may be saved up: seconds of the rate."""
THROTTLE_MAX_MS = 30_000
"""The longest that one answer makes a client wait. What is still owed then counts in the next one."""
BUCKETS_MAX = 10_000


@dataclass(slots=True)
class Bucket:
    """Tokens are bytes; below zero they are owed. `at_ms`: when they were last counted."""

    tokens: float
    at_ms: float

    def charge(self, size: int, rate: float, now_ms: float) -> float:
        """Take `size` bytes at `rate` bytes a second; how long to wait now, milliseconds."""
        earned = rate * max(0.0, now_ms - self.at_ms) / 1000
        self.tokens = min(self.tokens + earned, rate * BURST_S) - size
        self.at_ms = now_ms
        return 0.0 if self.tokens >= 0 else min(-self.tokens / rate * 1000, THROTTLE_MAX_MS)


@dataclass(frozen=True, slots=True)
class Limit:
    """A client's quota: the bytes a second, and with whom it shares them."""

    rate: float
    shared_by: tuple[str, str | None, str | None]


class Quotas:
    """The quotas of a cell as one broker keeps them."""

    def __init__(self, state: Callable[[], SecurityState]) -> None:
        self._state = state
        self._revision = -1
        self._limits: dict[tuple[str, str, str], Limit | None] = {}
        self._buckets: dict[tuple[str, str | None, str | None], Bucket] = {}

    @property
    def active(self) -> bool:
        """Whether anybody has a quota."""
        return bool(self._state().quotas)

    def charge(self, quota: str, user: str, client_id: str, size: int, now_ms: float) -> float:
        """Count `size` bytes; how long this client has to wait for it, milliseconds."""
        limit = self._limit(quota, user, client_id)
        if limit is None:
            return 0.0
        bucket = self._buckets.get(limit.shared_by)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:
                self._buckets.clear()
            bucket = self._buckets[limit.shared_by] = Bucket(limit.rate * BURST_S, now_ms)
        return bucket.charge(size, limit.rate, now_ms)

    def _limit(self, quota: str, user: str, client_id: str) -> Limit | None:
        state = self._state()
        if state.revision != self._revision or len(self._limits) >= BUCKETS_MAX:
            self._revision = state.revision
            self._limits.clear()
        key = (quota, user, client_id)
        if key not in self._limits:
            self._limits[key] = limit_of(state, quota, user, client_id)
        return self._limits[key]


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
