"""Keys that wait to be reconciled: each at most once, a user's change ahead of every resync, failures with back-off.

        add                    get                       done
(absent) ───► waiting: user ─────────► in work ──────────────────► (absent)
           └► waiting: resync ─┘          │  └─ added meanwhile ─► waiting
                  ▲      later, retry     │
                  └───────────────────────┘
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from controlplane.store.base import Key
from providers.base.clock import Rng


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Bounds of a work queue."""

    keys_max: int = 100_000
    """Keys that may wait. A key is an object, so this is also how many objects one replica can look after; beyond it
    resyncs are dropped (they come again).
    """
    backoff_min_ms: float = 250.0
    """First retry of a failed key; doubled at each failure in a row, with up to a quarter of jitter."""
    backoff_max_ms: float = 30_000.0
    """Longest time between retries: how late the control plane may notice that a cloud is back."""


class WorkQueue:
    """Used from one event loop. A key is never in two workers' hands at once; added while in work, it comes again."""

    def __init__(self, *, rng: Rng, settings: QueueSettings = QueueSettings()) -> None:
        self._rng = rng
        self._settings = settings
        self._user: OrderedDict[Key, None] = OrderedDict()
        self._resync: OrderedDict[Key, None] = OrderedDict()
        self._working: set[Key] = set()
        self._again: dict[Key, bool] = {}
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._notify = asyncio.Event()

    def __len__(self) -> int:
        return len(self._user) + len(self._resync)

    def add(self, key: Key, *, user: bool) -> bool:
        """Ask for a turn of `key`. False when it was dropped because the queue is full (never for a user's change)."""
        if key in self._working:
            self._again[key] = self._again.get(key, False) or user
            return True
        if user:
            self._resync.pop(key, None)
            self._user[key] = None
        elif key not in self._user and key not in self._resync:
            if len(self) >= self._settings.keys_max:
                return False
            self._resync[key] = None
        self._notify.set()
        return True

    def add_later(self, key: Key, delay_ms: float) -> None:
        """Ask for a turn in `delay_ms`; of several the soonest stands."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_ms / 1000
        before = self._timers.get(key)
        if before is not None:
            if before.when() <= due:
                return
            before.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key, user=False)

    async def get(self) -> Key:
        """The next key, now in work until `done` or `retry`."""
        while True:
            for waiting in (self._user, self._resync):
                if waiting:
                    key, _ = waiting.popitem(last=False)
                    self._working.add(key)
                    return key
            self._notify.clear()
            await self._notify.wait()

    def done(self, key: Key) -> None:
        """The turn succeeded."""
        self._failures.pop(key, None)
        self._finish(key)

    def retry(self, key: Key) -> float:
        """The turn failed: it comes again after the returned ms, or at once if it was asked for meanwhile."""
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        settings = self._settings
        # The exponent is bounded, so that a key that fails for a year does not build a huge number.
        delay_ms: float = min(settings.backoff_max_ms, settings.backoff_min_ms * 2.0 ** min(failures - 1, 30))
        delay_ms *= self._rng.uniform(1.0, 1.25)
        self._finish(key)
        self.add_later(key, delay_ms)
        return delay_ms

    def _finish(self, key: Key) -> None:
        self._working.discard(key)
        if (user := self._again.pop(key, None)) is not None:
            self.add(key, user=user)

    def close(self) -> None:
        """Cancel what would come later."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
