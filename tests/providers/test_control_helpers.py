"""What the control adapters of all clouds share: waiting within a bound, and limits that are checked before anything is
sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from providers.base.dns import RecordSet
from providers.base.errors import Invalid, NotFound, Unavailable
from providers.base.record_sets import check_record, check_zone, normal
from providers.base.volume_api import VolumeSpec
from providers.base.volume_limits import GIB, VolumeLimits, check_spec
from providers.base.waiting import WaitSettings, wait_for


class Clock:
    """Moves only by sleeping, and notes each sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic_ms(self) -> float:
        return sum(self.slept)

    def wall_ms(self) -> int:
        return int(sum(self.slept))

    async def sleep_ms(self, duration_ms: float) -> None:
        self.slept.append(duration_ms)


SETTINGS = WaitSettings(wait_timeout_ms=1000, poll_ms=50, poll_ms_max=300)


def looks(*answers: object) -> Callable[[], Awaitable[object]]:
    left = iter(answers)

    async def look() -> object:
        answer = next(left, None)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return look


def test_wait_looks_less_and_less_often_and_within_its_bound() -> None:
    clock = Clock()
    with pytest.raises(Unavailable) as caught:
        asyncio.run(wait_for("creating v", looks(), SETTINGS, clock, hint="ask again"))
    assert clock.slept == [50, 100, 200, 300, 300] and caught.value.hint == "ask again"


def test_wait_survives_looks_without_an_answer_but_no_other_error() -> None:
    clock = Clock()
    assert asyncio.run(wait_for("v", looks(Unavailable("down"), None, "done"), SETTINGS, clock)) == "done"
    with pytest.raises(NotFound):
        asyncio.run(wait_for("v", looks(NotFound("gone")), SETTINGS, clock))
    with pytest.raises(Unavailable) as caught:
        asyncio.run(wait_for("v", looks(*[Unavailable("still down")] * 20), SETTINGS, clock))
    assert "still down" in str(caught.value.__cause__)


LIMITS = {"disk": VolumeLimits((1, 2), 3, (4, 100), iops_max=1000, iops_min=100, mib_s_max=0, iops_per_gib_max=50)}
SPEC = VolumeSpec("wal-1", "disk", 4 * GIB, ("a", "b"), share_max=3, iops=200)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"kind": "other"}, "one of: disk"),
        ({"name": "1wal"}, "letter first"),
        ({"name": "wal-"}, "no hyphen last"),
        ({"name": "w" * 64}, "63"),
        ({"size_bytes": 4 * GIB - 1}, "4 to 100"),
        ({"size_bytes": 101 * GIB}, "4 to 100"),
        ({"zones": ()}, "1 to 2"),
        ({"zones": ("a", "a")}, "different"),
        ({"zones": ("a", "b", "c")}, "1 to 2"),
        ({"share_max": 4}, "1 to 3"),
        ({"iops": 50}, "100 to 1000"),
        ({"iops": 1001}, "100 to 1000"),
        ({"iops": 201}, "50 a GiB"),
        ({"mib_s": 1}, "leave it out"),
    ],
)
def test_each_limit_is_refused_with_what_is_possible(wrong: dict[str, object], hint: str) -> None:
    assert check_spec(SPEC, LIMITS) is LIMITS["disk"]
    with pytest.raises(Invalid) as caught:
        check_spec(replace(SPEC, **wrong), LIMITS)
    assert caught.value.hint is not None and hint in caught.value.hint


@pytest.mark.parametrize(
    "record",
    [
        RecordSet("a.example.test", "A", 60, ("10.0.0.300",)),
        RecordSet("a.example.test", "AAAA", 60, ("10.0.0.1",)),
        RecordSet("a.example.test", "CNAME", 60, ("b.example.test", "c.example.test")),
        RecordSet("a.example.test", "SRV", 60, ("10 5 70000 b.example.test",)),
        RecordSet("a.example.test", "TXT", 60, ("line\nbreak",)),
        RecordSet("a.example.test", "A", 2**31, ("10.0.0.1",)),
        RecordSet("A.example.test", "A", 60, ("10.0.0.1",)),
        RecordSet("a.*.example.test", "A", 60, ("10.0.0.1",)),
        RecordSet("notexample.test", "A", 60, ("10.0.0.1",)),
        RecordSet("a.example.test", "A", 60, ("10.0.0.1", "10.0.0.1")),
    ],
)
def test_records_that_no_zone_can_hold_are_invalid(record: RecordSet) -> None:
    with pytest.raises(Invalid):
        check_record(record, "example.test")


def test_records_have_one_form() -> None:
    assert check_zone("Example.Test.") == "example.test"
    aaaa = normal(RecordSet("a.example.test", "AAAA", 60, ("2001:DB8:0::1", "::1")))
    assert aaaa.values == ("2001:db8::1", "::1")
    srv = normal(RecordSet("a.example.test", "SRV", 60, ("1 2 3 B.example.test.",)))
    assert srv.values == ("1 2 3 b.example.test",)
