"""Calls of a synchronous SDK: repeats inside a budget, bounded waiting, and threads that come back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from providers.base.blocking import SdkCalls, StoreSettings, health_of_open_stores, read_all
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    if isinstance(error, ConnectionError):
        return (OutcomeUnknown if changes else Unavailable)(f"{subject}: {error}")
    return Invalid(f"{subject}: {error}")


def calls_of(account: str | None = None, **settings: Any) -> SdkCalls:
    made = StoreSettings(**{"retry_pause_ms": 1, **settings})
    return SdkCalls("test", made, translate, clock=SystemClock(), rng=SeededRng(1), account=account)


class Failing:
    """Fails so many times, then answers."""

    def __init__(self, times: int, error: Callable[[], Exception] = lambda: ConnectionError("reset")) -> None:
        self.times = times
        self.error = error
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.asked <= self.times:
            raise self.error()
        return "answer"


def test_repeated_calls_are_repeated_and_single_ones_are_not() -> None:
    async def main() -> None:
        calls = calls_of()
        twice = Failing(2)
        assert await calls.repeated("k", twice) == "answer"
        assert twice.asked == 3
        once = Failing(1)
        with pytest.raises(OutcomeUnknown):
            await calls.once("k", once, changes=True)
        assert once.asked == 1
        calls.close()

    asyncio.run(main())


def test_definite_refusals_are_never_repeated() -> None:
    async def main() -> None:
        calls = calls_of()
        refused = Failing(9, lambda: ValueError("bad"))
        with pytest.raises(Invalid):
            await calls.repeated("k", refused)
        absent = Failing(9, lambda: NotFound("k"))
        with pytest.raises(NotFound):
            await calls.repeated("k", absent)
        assert (refused.asked, absent.asked) == (1, 1)
        calls.close()

    asyncio.run(main())


def test_an_outage_is_not_asked_three_times_as_often() -> None:
    async def main() -> None:
        calls = calls_of(breaker_failures=10_000)
        down = Failing(10_000)
        for _ in range(200):
            with pytest.raises(Unavailable):
                await calls.repeated("k", down)
        settings = calls.settings
        assert down.asked <= 200 * (1 + settings.retry_share) + settings.retry_saved_max
        assert calls.health().repeats == down.asked - 200
        calls.close()

    asyncio.run(main())


def test_repeats_end_with_the_time_of_the_call() -> None:
    async def main() -> None:
        calls = calls_of(call_timeout_ms=200, retry_max=1_000, retry_pause_ms=20, breaker_failures=10_000)
        down = Failing(10_000)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await calls.repeated("k", down)
        assert time.monotonic() - began < 5
        assert down.asked < 100
        calls.close()

    asyncio.run(main())


def test_a_store_that_fails_is_left_alone_and_tried_again() -> None:
    async def main() -> None:
        calls = calls_of(breaker_failures=5, breaker_open_ms=50, retry_max=0)
        store = Failing(5)
        for _ in range(5):
            with pytest.raises(Unavailable):
                await calls.repeated("k", store)
        with pytest.raises(Unavailable, match="was not sent") as caught:
            await calls.once("k", store, changes=True)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert caught.value.hint is not None
        assert store.asked == 5
        shown = calls.health()
        assert (shown.breaker, shown.failures_in_a_row, shown.refused) == ("open", 5, 1)
        assert shown in health_of_open_stores()
        deadline = time.monotonic() + 10
        while calls.health().breaker != "half-open":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        assert await calls.once("k", store, changes=True) == "answer"
        assert calls.health().breaker == "closed"
        calls.close()
        assert shown.name not in [health.name for health in health_of_open_stores()]

    asyncio.run(main())


def test_refusals_do_not_open_the_breaker() -> None:
    async def main() -> None:
        calls = calls_of(breaker_failures=3)
        for _ in range(10):
            with pytest.raises(NotFound):
                await calls.repeated("k", Failing(1, lambda: NotFound("k")))
        assert calls.health().breaker == "closed"
        calls.close()

    asyncio.run(main())


def test_stores_of_one_account_share_its_rate_and_nobody_waits_without_bound() -> None:
    async def main() -> None:
        one, other = (calls_of("account", requests_per_s_max=10, rate_wait_ms_max=0) for _ in range(2))
        results = await asyncio.gather(
            *(calls.once("k", Failing(0), changes=True) for calls in (one, other) for _ in range(20)),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert results.count("answer") in (10, 11)
        assert len(refused) == 40 - results.count("answer")
        assert all(error.hint for error in refused)
        one.close()
        other.close()

    asyncio.run(main())


def test_cancelled_callers_leave_no_thread_behind() -> None:
    """A far side that trickles: never silent for long enough to time out, never done."""

    async def main() -> None:
        calls = calls_of(threads=2)
        began, ended = threading.Semaphore(0), threading.Semaphore(0)

        def trickle(_: int) -> bytes:
            time.sleep(0.005)
            return b"x"

        def endless() -> bytes:
            began.release()
            try:
                return read_all(trickle)
            finally:
                ended.release()

        for _ in range(3):
            tasks = [asyncio.create_task(calls.repeated("k", endless)) for _ in range(2)]
            for _ in tasks:
                assert await asyncio.to_thread(began.acquire, timeout=10)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in tasks:
                assert await asyncio.to_thread(ended.acquire, timeout=10), "a thread is stuck"
        assert await calls.once("k", Failing(0), changes=False) == "answer"
        assert calls.health().in_flight == 0
        calls.close()

    asyncio.run(main())


def test_a_call_that_found_no_thread_was_not_sent() -> None:
    async def main() -> None:
        calls = calls_of(threads=1, call_timeout_ms=100)
        free = threading.Event()
        busy = asyncio.create_task(calls.once("k", lambda: free.wait(10), changes=True))
        await asyncio.sleep(0)
        waiting = Failing(0)
        with pytest.raises(Unavailable, match="no free thread") as caught:
            await calls.once("k", waiting, changes=True)
        assert not isinstance(caught.value, OutcomeUnknown)
        with pytest.raises(OutcomeUnknown):
            await busy
        free.set()
        assert waiting.asked == 0
        calls.close()

    asyncio.run(main())


def test_a_closed_store_refuses() -> None:
    async def main() -> None:
        calls = calls_of()
        calls.close()
        with pytest.raises(Invalid):
            await calls.once("k", Failing(0), changes=False)

    asyncio.run(main())


class Late(ThreadPoolExecutor):
    """Takes a call up just when it has been given up: too late to be cancelled, and not begun."""

    def __init__(self) -> None:
        super().__init__(1)
        self.taken: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.taken.append(fn)
        return future


def test_what_was_called_unsent_is_not_sent_by_a_thread_that_takes_it_up_at_that_moment() -> None:
    async def main() -> None:
        calls = calls_of(call_timeout_ms=20)
        calls._pool = late = Late()
        asked = Failing(0)
        with pytest.raises(Unavailable, match="no free thread") as caught:
            await calls.once("k", asked, changes=True)
        assert not isinstance(caught.value, OutcomeUnknown)
        with pytest.raises(Unavailable):
            late.taken[0]()
        assert asked.asked == 0
        calls.close()

    asyncio.run(main())
