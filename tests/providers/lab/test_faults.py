"""Faults are pure: the same seed and requests give the same verdicts, and every one ends by itself. Time is a number
here, so nothing waits."""

from __future__ import annotations

import statistics

import pytest

from providers.base.errors import Invalid, NotFound
from providers.lab.calls import Call
from providers.lab.fault import FOR_MS_MAX, Fault, Kind
from providers.lab.faults import CALM, FAULTS_MAX, Faults, Verdict
from providers.lab.latency import Latency, duration_ms, profile

PUT = Call("objects", "put", size=4096)
GET = Call("objects", "get")
ATTACH = Call("compute", "attach")


def fault(kind: str, *, at_ms: float = 0, for_ms: float = 60_000, **more: object) -> Fault:
    return Fault.of({"id": "f-1", "kind": kind, "from_ms": at_ms, "until_ms": at_ms + for_ms, **more}, at_ms)


def in_force(*faults: Fault, now_ms: float = 0) -> Faults:
    made = Faults()
    made.add(faults, now_ms)
    return made


def test_same_seed_and_same_requests_give_the_same_verdicts() -> None:
    def run(seed: int) -> list[Verdict]:
        some = fault("error", status=503, rate=0.3, seed=seed, latency="p50=5ms,p99=50ms")
        faults = in_force(some)
        return [faults.judge(PUT if i % 3 else GET, i * 10.0) for i in range(500)]

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_a_rate_is_the_share_of_requests_that_it_happens_to() -> None:
    faults = in_force(fault("error", status=503, rate=0.3, seed=4))
    hit = sum(faults.judge(PUT, 0).error is not None for _ in range(4_000))
    assert 0.27 < hit / 4_000 < 0.33


def test_a_restart_goes_on_in_the_sequence() -> None:
    some = fault("error", status=503, rate=0.5, seed=3)
    whole = in_force(some)
    expected = [whole.judge(PUT, 0) for _ in range(200)]
    first = in_force(some)
    seen = [first.judge(PUT, 0) for _ in range(90)]
    second = Faults()
    second.add([kept for kept, _ in first.live(0)], 0, matched={kept.id: matched for kept, matched in first.live(0)})
    seen += [second.judge(PUT, 0) for _ in range(110)]
    assert seen == expected


def test_a_fault_ends_by_itself() -> None:
    faults = in_force(fault("reset", at_ms=1_000, for_ms=101_000), now_ms=1_000)
    assert faults.judge(PUT, 999) == CALM, "not before it begins"
    assert faults.judge(PUT, 1_000).unavailable
    assert faults.judge(PUT, 101_999).unavailable
    assert faults.judge(PUT, 102_000) == CALM
    assert faults.live(102_000) == [] and not faults.any()


def test_no_fault_is_without_an_end_or_lasts_more_than_a_day() -> None:
    with pytest.raises(Invalid, match="for_ms"):
        Fault.of({"id": "x", "kind": "reset"}, 0)
    with pytest.raises(Invalid, match="day"):
        Fault.of({"id": "x", "kind": "reset", "for_ms": FOR_MS_MAX + 1}, 0)
    with pytest.raises(Invalid, match="day"):
        Fault.of({"id": "x", "kind": "reset", "from_ms": 0, "until_ms": 1e15}, 5)
    with pytest.raises(Invalid):
        Fault.of({"id": "x", "kind": "reset", "for_ms": 0}, 0)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"kind": "error"}, "status"),
        ({"kind": "error", "status": 200}, "status"),
        ({"kind": "boom"}, "no kind"),
        ({"kind": "latency"}, "needs a latency"),
        ({"kind": "latency", "latency": "fast"}, "duration"),
        ({"kind": "latency", "latency": "5ms", "service": "s3"}, "no service"),
        ({"kind": "latency", "latency": "5ms", "verb": "fetch"}, "no verb"),
        ({"kind": "reset", "rate": 1.5}, "probability"),
        ({"kind": "reset", "rate": "1"}, "wrong type"),
        ({"kind": "reset", "rate": True}, "wrong type"),
        ({"kind": "reset", "colour": "red"}, "unknown field"),
        ({"kind": "zone-loss"}, "needs the zone"),
        ({"kind": "throttle"}, "needs a rate"),
        ({"kind": "clock-skew"}, "how far"),
        ({"kind": "clock-skew", "skew_ms": 1e6, "rate": 0.5}, "one clock"),
        ({"kind": "io-error", "service": "dns"}, "not a fault of dns"),
        ({"kind": "slow-disk"}, "needs a latency or a rate"),
        ({"kind": "reset", "id": "../x"}, "name a fault"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(given: dict[str, object], match: str) -> None:
    with pytest.raises(Invalid, match=match) as caught:
        Fault.of({"id": "x", "for_ms": 1_000, **given}, 0)
    assert "\n" not in caught.value.message


def test_only_the_matching_service_verb_and_zone_are_hit() -> None:
    faults = in_force(fault("error", status=503, service="control"))
    assert faults.judge(ATTACH, 0).error == (503, "")
    assert faults.judge(PUT, 0) == CALM
    faults = in_force(fault("error", status=503, verb="writes"))
    assert faults.judge(PUT, 0).error and not faults.judge(GET, 0).error
    faults = in_force(fault("reset", zone="z-1"))
    assert faults.judge(Call("volumes", "write", "z-1"), 0).unavailable
    assert faults.judge(Call("volumes", "write", "z-2"), 0) == CALM
    assert faults.judge(PUT, 0) == CALM


def test_a_zones_loss_takes_what_it_holds_and_its_callers_and_nothing_else() -> None:
    faults = in_force(fault("zone-loss", zone="use1-az4"))
    lost = [
        Call("express", "append", "use1-az4"),
        Call("sessions", "session", "use1-az4"),
        Call("volumes", "write", "use1-az4"),
        Call("objects", "put", caller_zone="use1-az4"),
    ]
    stays = [
        Call("express", "append", "use1-az5"),
        Call("volumes", "write", "use1-az5"),
        Call("objects", "put"),
        Call("objects", "put", caller_zone="use1-az5"),
        Call("compute", "attach"),
    ]
    assert all(faults.judge(call, 0).unavailable for call in lost)
    assert [faults.judge(call, 0) for call in stays] == [CALM] * len(stays)
    attach_there = Call("compute", "attach", "use1-az4")
    assert faults.judge(attach_there, 0).error == (503, ""), "the regional API answers that it cannot"
    assert faults.severed("use1-az4", 0) and not faults.severed("use1-az5", 0)


def test_waits_add_up_and_the_first_outcome_decides() -> None:
    one = Fault.of({"id": "a", "kind": "latency", "latency": "5ms", "for_ms": 1e4}, 0)
    two = Fault.of({"id": "b", "kind": "lost", "latency": "7ms", "for_ms": 1e4}, 0)
    three = Fault.of({"id": "c", "kind": "reset", "for_ms": 1e4}, 0)
    verdict = in_force(one, two, three).judge(PUT, 0)
    assert verdict.latency_ms == 12 and verdict.drop_answer and not verdict.unavailable


def test_a_throttle_lets_its_rate_through_and_no_more() -> None:
    faults = in_force(fault("throttle", requests_s=10))
    through = sum(not faults.judge(PUT, ms).throttled for ms in range(0, 10_000, 20))
    assert 100 <= through <= 110, "ten a second for ten seconds, and a second's worth at once"
    faults = in_force(fault("throttle", bytes_s=8192))
    through = sum(not faults.judge(PUT, ms).throttled for ms in range(0, 10_000, 20))
    assert 20 <= through <= 22


def test_a_slow_disk_serves_one_request_behind_the_other() -> None:
    faults = in_force(fault("slow-disk", bytes_s=4096))
    assert [faults.judge(PUT, 0).latency_ms for _ in range(3)] == [1000, 2000, 3000]
    assert faults.judge(PUT, 10_000).latency_ms == 1000, "idle since"
    assert faults.judge(Call("objects", "list"), 0) == CALM, "a listing reads no object"


def test_a_full_disk_takes_no_write_and_serves_reads() -> None:
    faults = in_force(fault("disk-full"))
    assert faults.judge(PUT, 0).full and faults.judge(Call("volumes", "write", "z"), 0).full
    assert faults.judge(GET, 0) == CALM and faults.judge(ATTACH, 0) == CALM


def test_a_ramp_grows_over_its_time() -> None:
    faults = in_force(fault("latency", latency="2ms,ramp=50x/10m", for_ms=3_600_000))
    assert faults.judge(GET, 0).latency_ms == pytest.approx(2)
    assert faults.judge(GET, 300_000).latency_ms == pytest.approx(2 * 25.5)
    assert faults.judge(GET, 1_200_000).latency_ms == pytest.approx(100)


def test_a_lognormal_latency_has_its_median_and_its_tail() -> None:
    latency = Latency.parse("p50=20ms,p99=150ms")
    waits = sorted(latency.at(i / 10_000, 0) for i in range(10_000))
    assert statistics.median(waits) == pytest.approx(20, rel=0.01)
    assert waits[9_900] == pytest.approx(150, rel=0.02)


@pytest.mark.parametrize("text", ["50ms", "20ms..80ms", "p50=20ms,p99=150ms", "2ms,ramp=50x/600000ms"])
def test_a_latency_is_written_as_it_is_read(text: str) -> None:
    assert Latency.parse(text).text() == text
    assert Latency.parse(Latency.parse(text).text()) == Latency.parse(text)


@pytest.mark.parametrize("text", ["", "5", "fast", "-5ms", "80ms..20ms", "p50=0ms,p99=1ms", "5ms,ramp=fast", "9h..2d"])
def test_a_malformed_latency_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        Latency.parse(text)


def test_durations_have_units() -> None:
    assert [duration_ms(text) for text in ("500ms", "101s", "10m", "2h", "1d")] == [500, 101e3, 6e5, 7.2e6, 8.64e7]


def test_adding_is_all_or_nothing_and_bounded() -> None:
    faults = Faults()
    many = [Fault.of({"id": f"f-{i}", "kind": "reset", "for_ms": 1e4}, 0) for i in range(FAULTS_MAX + 1)]
    with pytest.raises(Invalid, match="at most"):
        faults.add(many, 0)
    assert faults.live(0) == []
    faults.add(many[:-1], 0)
    with pytest.raises(NotFound, match="nope"):
        faults.clear(["f-1", "nope"])
    assert len(faults.live(0)) == FAULTS_MAX, "nothing was cleared"
    assert faults.clear(["f-1"]) == ["f-1"]


def test_a_skewed_clock_is_off_only_while_the_fault_lasts() -> None:
    faults = in_force(fault("clock-skew", skew_ms=-1_200_000, for_ms=5_000))
    assert faults.skew_ms(4_999) == -1_200_000 and faults.skew_ms(5_000) == 0
    assert faults.judge(PUT, 0) == CALM, "nothing else happens"


def test_a_profile_is_off_until_asked_for_and_slower_where_providers_say_so() -> None:
    faults = Faults()
    assert faults.judge(PUT, 0) == CALM
    faults.expect(profile("real", "aws"))
    express = statistics.median(faults.judge(Call("express", "append", "z"), 0).latency_ms for _ in range(500))
    standard = statistics.median(faults.judge(PUT, 0).latency_ms for _ in range(500))
    assert 3 < express < 5, "single-digit ms"
    assert 30 < standard < 40, "tens of ms"
    faults.expect(profile("off", "aws"))
    assert faults.judge(PUT, 0) == CALM
    with pytest.raises(Invalid, match="imagined"):
        profile("imagined", "aws")


def test_every_row_of_a_profile_says_what_it_was_made_of() -> None:
    for provider in ("aliyun", "azure", "gcp", "aws", "private"):
        rows = profile("real", provider)
        assert {row.service for row in rows} >= {"objects"}
        assert all(row.words and row.source and row.confidence for row in rows)


def test_a_fault_travels_whole() -> None:
    some = fault("latency", latency="5ms", service="express", verb="append", zone="use1-az4", rate=0.25, seed=9)
    assert Fault.of(some.plain(), 0) == some
    assert some.kind is Kind.LATENCY
