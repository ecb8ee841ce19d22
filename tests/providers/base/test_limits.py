"""How often a store may be asked: each decision, by the times that it is given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from providers.base.limits import Breaker, BreakerState, RetryBudget, TokenBucket


def test_rate_is_kept_over_any_stretch_of_time() -> None:
    bucket = TokenBucket(100)
    now_ms, sent = 0.0, 0
    while now_ms < 10_000:
        wait_ms = bucket.take(now_ms, 1_000)
        assert wait_ms is not None
        now_ms += wait_ms
        sent += 1
    assert 1_000 <= sent <= 100 + 1_000 + 1  # a second's worth was saved up


def test_nobody_waits_longer_than_said_and_who_would_takes_nothing() -> None:
    bucket = TokenBucket(10)
    waits = [bucket.take(0, 500) for _ in range(50)]
    good = [wait for wait in waits if wait is not None]
    assert len(good) == 15 and max(good) <= 500
    assert waits[15:] == [None] * 35
    assert bucket.take(600, 0) == 0  # what was refused was not taken


@given(st.lists(st.booleans(), max_size=300))
def test_repeats_stay_a_share_of_the_requests(fails: list[bool]) -> None:
    budget, asked, repeats = RetryBudget(0.1, 5), 0, 0
    for failed in fails:
        budget.asked()
        asked += 1
        while failed and budget.spend():
            repeats += 1
    assert repeats <= 5 + 0.1 * asked


def test_breaker_opens_after_failures_in_a_row_and_closes_on_any_answer() -> None:
    breaker = Breaker(3, 500)
    breaker.failed(0)
    breaker.failed(1)
    breaker.answered()
    for at_ms in (2, 3, 4):
        assert breaker.admit(at_ms) is None
        breaker.failed(at_ms)
    assert breaker.state(5) is BreakerState.OPEN
    assert breaker.admit(104) == 400
    assert breaker.state(504) is BreakerState.HALF_OPEN
    assert breaker.admit(504) is None
    assert breaker.admit(505) is not None  # one asks for all
    breaker.answered()
    assert breaker.state(505) is BreakerState.CLOSED
    assert breaker.admit(505) is None


def test_a_caller_that_never_reports_back_holds_up_nobody_for_ever() -> None:
    breaker = Breaker(1, 500)
    breaker.failed(0)
    assert breaker.admit(500) is None  # and is cancelled
    assert breaker.admit(999) is not None
    assert breaker.admit(1_000) is None


def test_breaker_stays_open_while_the_one_that_asks_fails() -> None:
    breaker = Breaker(1, 500)
    breaker.failed(0)
    for round_ in range(1, 5):
        at_ms = round_ * 600.0
        assert breaker.admit(at_ms) is None
        breaker.failed(at_ms + 50)
        assert breaker.admit(at_ms + 60) is not None
