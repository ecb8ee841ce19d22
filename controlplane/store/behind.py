"""Writes that nobody waits for: a few threads carry them out, of each key only the newest.

          put                      a thread                   done
    (absent) ───► waiting(act) ─────────────────► in work ────────► (absent)
                   ▲   put: the newer act stands   │ put meanwhile, or failed: with back-off
                   └───────────────────────────────┘

What waits is bounded by the number of keys, for an act looks at what is to be written when its turn comes. It is lost
with the process, so whatever must be there after that is written with `now`.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from providers.base.clock import Clock
from providers.base.errors import Fenced, Unavailable, YunheError

log = logging.getLogger(__name__)

Act = Callable[[], None]
"""One write, idempotent, bounded in time. Raises YunheError: it comes again; Fenced: nothing is written any more."""


@dataclass(frozen=True, slots=True)
class BehindSettings:
    """Bounds of the writes behind."""

    threads: int = 4
    """Writes at once: a request is mostly waiting for the API server, which the threads share with everybody."""
    retry_min_ms: float = 250.0
    """First pause after a failure, doubled at each in a row: of the key, or of all when the far side is away."""
    retry_max_ms: float = 10_000.0
    look_ms: float = 250.0
    """Between two looks whether writing is allowed again."""
    end_within_ms: float = 10_000.0
    """A thread that has not ended by then is left alone: a call has its own, shorter limit."""


class Behind:
    """From any thread. No key is in two threads' hands at once."""

    def __init__(
        self, *, clock: Clock, allowed: Callable[[], bool] = lambda: True, settings: BehindSettings = BehindSettings()
    ) -> None:
        """`allowed`: asked before each write; while it says no, what is to be written waits."""
        self._clock, self._allowed, self._settings = clock, allowed, settings
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Hashable, tuple[float, Act]] = OrderedDict()
        self._working: set[Hashable] = set()
        self._failures: dict[Hashable, int] = {}
        self._away = 0
        self._away_until_ms = 0.0
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def put(self, key: Hashable, act: Act, *, after_ms: float = 0.0) -> None:
        """Carry `act` out soon, in place of one of this key that waits. `after_ms`: how long newer ones are waited for.

        Raises:
            Fenced: nothing is written any more.
        """
        with self._changed:
            self._refuse_when_stopped()
            # In the place of one that waits already, so that it is not put off again and again.
            due_ms = self._waiting[key][0] if key in self._waiting else self._clock.monotonic_ms() + after_ms
            self._waiting[key] = (due_ms, act)
            if len(self._threads) < self._settings.threads:
                name = f"behind-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
            self._changed.notify_all()

    def now(self, key: Hashable, act: Act) -> None:
        """Carry `act` out in the caller's thread, after one of this key that is in work and in place of one that waits.

        Raises:
            YunheError: it failed; what waited, waits again.
            Unavailable: writing is not allowed.
            Fenced: nothing is written any more.
        """
        with self._changed:
            while key in self._working:
                self._changed.wait()
            self._refuse_when_stopped()
            if not self._allowed():
                raise Unavailable("it is not certain that this replica still leads: nothing is written now")
            before = self._waiting.pop(key, None)
            self._working.add(key)
        try:
            act()
        except BaseException:
            with self._changed:
                if before is not None:
                    self._waiting.setdefault(key, before)
                self._working.discard(key)
                self._changed.notify_all()
            raise
        self._done(key)

    def busy(self, key: Hashable) -> bool:
        """Whether something of this key is not written yet."""
        with self._changed:
            return key in self._waiting or key in self._working

    def drain(self, within_ms: float) -> int:
        """Wait until all is written, for so long at most, and no longer than writing is allowed. Returns how many keys
        are not.
        """
        deadline_ms = self._clock.monotonic_ms() + within_ms
        with self._changed:
            while (left := len(self._waiting.keys() | self._working)) and not self._stopped and self._allowed():
                rest_ms = deadline_ms - self._clock.monotonic_ms()
                if rest_ms <= 0:
                    break
                self._changed.wait(min(rest_ms, self._settings.look_ms) / 1000)
            return left

    def stop(self) -> None:
        """Begin nothing any more; what waits is dropped. Returns when what was in work has ended."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._settings.end_within_ms / 1000)

    def _refuse_when_stopped(self) -> None:
        if self._stopped:
            raise Fenced("this replica of the operator has ended its writing")

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            key, act = taken
            try:
                act()
            except Fenced as error:
                log.info("writes nothing any more: %s", error.message)
                with self._changed:
                    self._working.discard(key)
                self.stop()
                return
            except YunheError as error:
                self._failed(key, act, error.message, everything=isinstance(error, Unavailable))
            except Exception:
                log.exception("writing %s failed with a bug", key)
                self._failed(key, act, "a bug", everything=False)
            else:
                self._done(key)

    def _take(self) -> tuple[Hashable, Act] | None:
        """The next that is due, now in work; None at the end."""
        with self._changed:
            while not self._stopped:
                now_ms = self._clock.monotonic_ms()
                wait_ms: float | None = None
                if self._waiting and not self._allowed():
                    wait_ms = self._settings.look_ms
                elif self._waiting and now_ms < self._away_until_ms:
                    wait_ms = self._away_until_ms - now_ms
                else:
                    for key, (due_ms, act) in self._waiting.items():
                        if key in self._working:
                            continue
                        if due_ms <= now_ms:
                            del self._waiting[key]
                            self._working.add(key)
                            return key, act
                        wait_ms = min(due_ms - now_ms, wait_ms if wait_ms is not None else due_ms - now_ms)
                self._changed.wait(wait_ms / 1000 if wait_ms is not None else None)
            return None

    def _done(self, key: Hashable) -> None:
        with self._changed:
            self._failures.pop(key, None)
            self._away = 0
            self._working.discard(key)
            self._changed.notify_all()

    def _failed(self, key: Hashable, act: Act, sentence: str, *, everything: bool) -> None:
        with self._changed:
            now_ms = self._clock.monotonic_ms()
            if everything:
                if now_ms >= self._away_until_ms:  # else another thread has met the same outage
                    self._away += 1
                    self._away_until_ms = now_ms + self._pause_ms(self._away)
                due_ms = now_ms
            else:
                self._failures[key] = self._failures.get(key, 0) + 1
                due_ms = now_ms + self._pause_ms(self._failures[key])
            if self._away == 1 if everything else self._failures[key] == 1:
                log.warning("%s is not written yet: %s", key, sentence)
            self._working.discard(key)
            if not self._stopped:
                newer = self._waiting.get(key, (due_ms, act))[1]
                self._waiting[key] = (due_ms, newer)
            self._changed.notify_all()

    def _pause_ms(self, failures: int) -> float:
        # The exponent is bounded, so that years of failures do not build a huge number.
        return float(min(self._settings.retry_max_ms, self._settings.retry_min_ms * 2.0 ** min(failures - 1, 30)))
