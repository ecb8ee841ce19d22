"""Calls of a cloud's synchronous SDK, from asyncio: a bounded pool of threads, a time-out a call, retries for calls
that may be repeated, and limits on how often a cloud is asked at all.

    call ─► breaker open? ─► rate limit ─► thread ─► SDK ─► answer or translated error
              │ Unavailable    │ waits, bounded                │ Unavailable, and it may be repeated:
                               │ Unavailable past that         └─ pause with full jitter, inside the call's time
                                                                  and the store's retry budget
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from providers.base.clock import Clock, Rng
from providers.base.credentials import read_credentials
from providers.base.errors import Invalid, OutcomeUnknown, Unavailable, YunheError
from providers.base.limits import Breaker, RetryBudget, TokenBucket

__all__ = [
    "KEY_BYTES_MAX",
    "SdkCalls",
    "StoreHealth",
    "StoreSettings",
    "check_key",
    "check_limit",
    "check_range",
    "health_of_open_stores",
    "read_all",
    "read_credentials",
]

T = TypeVar("T")

KEY_BYTES_MAX = 1024
"""The shortest limit among the clouds: S3, GCS and OSS; Azure's is 1,024 characters."""

READ_BYTES = 1 << 20
"""A body is read in steps of so many bytes, so that an abandoned call notices."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Bounds of an object-store client."""

    threads: int = 8
    """Calls at once, and connections kept. More wait their turn; a call beyond eight gains little on one bucket from
    one process."""
    connect_timeout_ms: int = 2_000
    """Milliseconds for a connection to be made. A region's endpoint answers within tens; a dead one should be known
    before a lease runs out."""
    read_timeout_ms: int = 10_000
    """Milliseconds of silence on a connection before the call fails. Long enough for a slow 99.9th percentile of a
    cloud's store."""
    call_timeout_ms: int = 30_000
    """Milliseconds a call may take altogether, its wait for a thread and its retries included."""
    retry_max: int = 2
    """Repeats of a call that may be repeated: reads, listings, deletes and unconditional puts. Conditional puts and
    appends have none."""
    retry_pause_ms: int = 100
    """Milliseconds before the first repeat, doubled each time, with full jitter."""
    retry_share: float = 0.1
    """Repeats as a share of all first attempts of a store, and `retry_saved_max` more: an outage is not made worse by
    asking three times as often."""
    retry_saved_max: int = 20
    """Repeats that a store has saved up at most, and at its start: enough for a passing failure of all threads."""
    requests_per_s_max: int = 5_000
    """Requests a second of one account from this process. Below what each cloud lets one account do (`limits.py`), so
    that it is we who wait rather than the cloud that refuses; far above what a broker makes."""
    rate_wait_ms_max: int = 1_000
    """Milliseconds that a call waits for its turn under that limit; past them it is `Unavailable`, and unsent."""
    breaker_failures: int = 20
    """Failures in a row after which a store is left alone. Above what a passing fault does to eight threads with their
    repeats."""
    breaker_open_ms: int = 500
    """Milliseconds for which it is left alone, before one call tries again. Short: recovery waits for it."""
    list_objects_max: int = 100_000
    """Objects a listing reads where the store has no order (S3 Express) or cannot start in the middle: more is
    `Invalid`."""


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What `status` shows of an open store."""

    name: str
    breaker: str
    """closed, open or half-open (`limits.Breaker`)."""
    failures_in_a_row: int
    in_flight: int
    requests: int
    """Attempts since it was opened, repeats included."""
    repeats: int
    refused: int
    """Attempts that were not sent: breaker, rate limit."""
    failed: int = 0
    """Attempts that the store did not answer, or answered with its own failure or that it was asked too often."""


_open: weakref.WeakSet[SdkCalls] = weakref.WeakSet()
_accounts: weakref.WeakValueDictionary[str, _Account] = weakref.WeakValueDictionary()


def health_of_open_stores() -> Sequence[StoreHealth]:
    """Of every store that is open in this process, by name."""
    return sorted((calls.health() for calls in list(_open)), key=lambda health: health.name)


class _Account:
    """The rate limit that stores of one account share."""

    def __init__(self, per_s: float) -> None:
        self.bucket = TokenBucket(per_s)


class _Running:
    """One call in its thread."""

    def __init__(self) -> None:
        self.abandoned = False
        """Nobody waits for it any more: it timed out or was cancelled."""


_thread = threading.local()


def read_all(read: Callable[[int], bytes]) -> bytes:
    """All that `read(bytes_max)` gives until it gives nothing, in a thread of `SdkCalls`: the way to read a body, so
    that a far side that trickles does not hold a thread whose caller has long gone.

    Raises:
        Unavailable: nobody waits for it any more.
    """
    running: _Running | None = getattr(_thread, "running", None)
    chunks = []
    while chunk := read(READ_BYTES):
        chunks.append(chunk)
        if running is not None and running.abandoned:
            raise Unavailable("the call was abandoned while its answer came in")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class SdkCalls:
    """Runs blocking calls for one store. `translate(error, subject, changes)` turns the SDK's exceptions into ours;
    `changes` says that the call changes something, so that a lost answer is `OutcomeUnknown` rather than
    `Unavailable`. Stores with the same `account` share its rate limit."""

    def __init__(
        self,
        name: str,
        settings: StoreSettings,
        translate: Callable[[Exception, str, bool], YunheError],
        *,
        clock: Clock,
        rng: Rng,
        account: str | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self._name = name
        self._translate = translate
        self._rng = rng
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix=name)
        self._closed = False
        self._budget = RetryBudget(settings.retry_share, settings.retry_saved_max)
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_open_ms)
        self._account = _accounts.get(account or "") or _Account(settings.requests_per_s_max)
        if account:
            _accounts[account] = self._account
        self._in_flight = self._requests = self._repeats = self._refused = self._failed = 0
        _open.add(self)

    async def once(self, subject: str, call: Callable[[], T], *, changes: bool) -> T:
        """Run `call` in a thread, one single time.

        Raises:
            Unavailable: not answered in time; `OutcomeUnknown` when it `changes` something. Or not sent: the store has
                been failing, or the account's rate is used up.
            YunheError: what `translate` makes of the SDK's exception.
        """
        self._budget.asked()
        return await self._attempt(subject, call, changes, self.settings.call_timeout_ms)

    async def repeated(self, subject: str, call: Callable[[], T], *, changes: bool = False) -> T:
        """`once`, repeated while the store is `Unavailable`, inside the call's time and the store's retry budget: for
        calls whose repetition does no harm."""
        self._budget.asked()
        deadline_ms = self.clock.monotonic_ms() + self.settings.call_timeout_ms
        for attempt in range(self.settings.retry_max + 1):
            try:
                left_ms = deadline_ms - self.clock.monotonic_ms()
                return await self._attempt(subject, call, changes, left_ms)
            except Unavailable:
                pause_ms = self._rng.uniform(0, self.settings.retry_pause_ms * 2**attempt)
                out_of_time = self.clock.monotonic_ms() + pause_ms >= deadline_ms
                if attempt == self.settings.retry_max or out_of_time or not self._budget.spend():
                    raise
                self._repeats += 1
                await self.clock.sleep_ms(pause_ms)
        raise AssertionError  # the loop above returns or raises

    async def _attempt(self, subject: str, call: Callable[[], T], changes: bool, timeout_ms: float) -> T:
        if self._closed:
            raise Invalid(f"{self._name} is closed")
        await self._admit(subject)
        running = _Running()
        sent = False

        def run() -> T:
            nonlocal sent
            sent = True
            if running.abandoned:
                # Looked at after `sent` was set, and there the other way round: what was called unsent is not sent now.
                raise Unavailable("nobody waits for the call any more")
            _thread.running = running
            try:
                return call()
            finally:
                _thread.running = None

        self._in_flight += 1
        self._requests += 1
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                result = await asyncio.get_running_loop().run_in_executor(self._pool, run)
        except TimeoutError as error:
            running.abandoned = True
            self._breaker.failed(self.clock.monotonic_ms())
            self._failed += 1
            if not sent:
                raise Unavailable(f"{self._name}: {subject} found no free thread in time") from error
            kind = OutcomeUnknown if changes else Unavailable
            raise kind(f"{self._name}: {subject} did not end in time") from error
        except YunheError as error:
            self._judge(error)
            raise
        except Exception as error:
            told = self._translate(error, subject, changes)
            self._judge(told)
            raise told from error
        finally:
            running.abandoned = True
            self._in_flight -= 1
        self._breaker.answered()
        return result

    async def _admit(self, subject: str) -> None:
        now_ms = self.clock.monotonic_ms()
        wait_ms = self._breaker.admit(now_ms)
        if wait_ms is not None:
            self._refused += 1
            raise Unavailable(
                f"{self._name} has failed {self._breaker.failures} times in a row: {subject} was not sent",
                hint=f"it is tried again in {wait_ms:.0f} ms",
            )
        turn_ms = self._account.bucket.take(now_ms, self.settings.rate_wait_ms_max)
        if turn_ms is None:
            self._refused += 1
            raise Unavailable(
                f"{self._name}: more than {self.settings.requests_per_s_max} requests a second: {subject} was not sent",
                hint="ask less often, or raise requests_per_s_max to what the account's quota allows",
            )
        if turn_ms > 0:
            await self.clock.sleep_ms(turn_ms)

    def _judge(self, error: YunheError) -> None:
        """A refusal is an answer: only silence and the store's own failures count against it."""
        if isinstance(error, Unavailable):
            self._breaker.failed(self.clock.monotonic_ms())
            self._failed += 1
        else:
            self._breaker.answered()

    def health(self) -> StoreHealth:
        breaker = self._breaker
        return StoreHealth(
            self._name,
            breaker.state(self.clock.monotonic_ms()).value,
            breaker.failures,
            self._in_flight,
            self._requests,
            self._repeats,
            self._refused,
            self._failed,
        )

    def close(self) -> None:
        """Refuse further calls; those that wait for a thread are cancelled, those that run end by their own
        time-outs."""
        self._closed = True
        _open.discard(self)
        self._pool.shutdown(wait=False, cancel_futures=True)


def check_key(key: str) -> None:
    """
    Raises:
        Invalid: not an ASCII path of 1 to 1,024 bytes without leading slash.
    """
    if not key or key.startswith("/") or len(key) > KEY_BYTES_MAX or not key.isascii() or not key.isprintable():
        raise Invalid(
            f"{key[:80]!r} is no object key",
            hint=f"a key has 1 to {KEY_BYTES_MAX} printable ASCII characters and no leading slash",
        )


def check_range(start: int, length: int | None) -> None:
    """
    Raises:
        Invalid: a negative start or length.
    """
    if start < 0 or (length is not None and length < 0):
        raise Invalid(f"a range starts at 0 or later and is not negative, not {start}, {length}")


def check_limit(limit: int) -> None:
    """
    Raises:
        Invalid: a listing without room for one object.
    """
    if limit < 1:
        raise Invalid(f"a listing has room for at least one object, not {limit}")
