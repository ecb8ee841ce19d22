"""Writes behind: the newest of each key, one at a time, again after failures, nothing once it is stopped."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from controlplane.store.behind import Behind, BehindSettings
from providers.base.clock import SystemClock
from providers.base.errors import Fenced, Invalid, Unavailable

SOON = BehindSettings(retry_min_ms=1.0, retry_max_ms=5.0, look_ms=2.0)
WITHIN_MS = 10_000.0


@pytest.fixture
def behind() -> Iterator[Behind]:
    made = Behind(clock=SystemClock(), settings=SOON)
    yield made
    made.stop()


def test_of_writes_that_wait_only_the_newest_is_carried_out(behind: Behind) -> None:
    written: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def held() -> None:
        begun.set()
        assert go.wait(10)
        written.append(0)

    behind.put("a", held)
    assert begun.wait(10)
    for number in range(1, 100):
        behind.put("a", lambda number=number: written.append(number))  # type: ignore[misc]
    go.set()
    assert behind.drain(WITHIN_MS) == 0
    assert written == [0, 99]


def test_no_key_is_written_by_two_at_once_and_the_last_value_stands(behind: Behind) -> None:
    there, at_once, most = dict[int, int](), Counter[int](), Counter[int]()

    def write(key: int, value: int) -> None:
        at_once[key] += 1
        most[key] = max(most[key], at_once[key])
        there[key] = value
        at_once[key] -= 1

    for value in range(200):
        for key in range(5):
            behind.put(key, lambda key=key, value=value: write(key, value))  # type: ignore[misc]
            if value % 50 == 0:
                behind.now(key, lambda key=key, value=value: write(key, value))  # type: ignore[misc]
    assert behind.drain(WITHIN_MS) == 0
    assert set(most.values()) == {1}
    assert there == dict.fromkeys(range(5), 199)


@pytest.mark.parametrize("error", [Unavailable("away"), Invalid("refused"), RuntimeError("a bug")])
def test_what_fails_comes_again_until_it_is_written(behind: Behind, error: Exception) -> None:
    written: list[str] = []
    tries = iter([error, error, error])

    def write() -> None:
        if (failure := next(tries, None)) is not None:
            raise failure
        written.append("a")

    behind.put("a", write)
    assert behind.drain(WITHIN_MS) == 0
    assert written == ["a"]


def test_a_key_that_is_refused_holds_up_no_other(behind: Behind) -> None:
    written = threading.Event()

    def refused() -> None:
        raise Invalid("refused")

    behind.put("bad", refused)
    behind.put("good", written.set)
    assert written.wait(10)
    assert behind.drain(20.0) == 1, "and it is not forgotten"


def test_while_the_far_side_is_away_it_is_not_asked_for_each_key() -> None:
    asked = Counter[int]()
    behind = Behind(clock=SystemClock(), settings=BehindSettings(threads=2, retry_min_ms=60_000.0))

    def away(key: int) -> None:
        asked[key] += 1
        raise Unavailable("away")

    for key in range(100):
        behind.put(key, lambda key=key: away(key))  # type: ignore[misc]
    assert behind.drain(50.0) == 100
    behind.stop()
    assert asked.total() <= 2, "a thread each, and then the pause"


def test_now_waits_for_the_one_in_work_and_raises_what_failed(behind: Behind) -> None:
    written: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def held() -> None:
        begun.set()
        assert go.wait(10)
        written.append("behind")

    behind.put("a", held)
    assert begun.wait(10)
    asking = threading.Thread(target=behind.now, args=("a", lambda: written.append("now")))
    asking.start()
    go.set()
    asking.join(10)
    assert written == ["behind", "now"]

    def refused() -> None:
        raise Invalid("refused")

    with pytest.raises(Invalid):
        behind.now("a", refused)
    assert not behind.busy("a")


def test_nothing_is_written_while_it_is_not_allowed_nor_after_the_stop() -> None:
    allowed = threading.Event()
    written: list[str] = []
    behind = Behind(clock=SystemClock(), allowed=allowed.is_set, settings=SOON)
    behind.put("a", lambda: written.append("a"))
    with pytest.raises(Unavailable):
        behind.now("b", lambda: written.append("b"))
    assert behind.drain(WITHIN_MS) == 1, "it does not wait for what may not be"
    assert written == []
    allowed.set()
    assert behind.drain(WITHIN_MS) == 0
    assert written == ["a"]
    allowed.clear()
    behind.put("a", lambda: written.append("late"))
    behind.stop()
    allowed.set()
    with pytest.raises(Fenced):
        behind.put("a", lambda: written.append("after"))
    with pytest.raises(Fenced):
        behind.now("a", lambda: written.append("after"))
    assert written == ["a"]


def test_one_that_is_fenced_ends_all_writing() -> None:
    written: list[str] = []
    behind = Behind(clock=SystemClock(), settings=BehindSettings(threads=1))
    go = threading.Event()

    def fenced() -> None:
        assert go.wait(10)
        raise Fenced("another leads")

    behind.put("a", fenced)
    behind.put("b", lambda: written.append("b"))
    go.set()
    behind.drain(WITHIN_MS)
    with pytest.raises(Fenced):
        behind.put("c", lambda: written.append("c"))
    assert written == []


def test_a_stop_returns_when_what_was_in_work_has_ended(behind: Behind) -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go.wait(10)
        ended.set()

    behind.put("a", slow)
    assert begun.wait(10)
    threading.Timer(0.02, go.set).start()
    behind.stop()
    assert ended.is_set()
