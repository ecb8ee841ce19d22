"""What is measured of a fault, and when a drill fails: pure functions over acks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.drill.checker import judge
from controlplane.drill.probe import Ack
from controlplane.drill.report import Report, summary
from controlplane.drill.verdict import (
    DRILLS,
    Measured,
    each_acked,
    failures,
    first_ack_after,
    longest_pause_ms,
    recovery,
)

CLEAN = judge({0: {0: 0}}, {0: [(0, 0)]})
GOOD = Measured(rto_ms=900.0, pause_ms=910.0, judgement=CLEAN)


def acks(*times: float, partition: int = 0) -> list[Ack]:
    return [Ack(partition, i, i, at) for i, at in enumerate(times)]


def test_recovery_is_counted_from_the_pause_not_from_an_ack_that_was_on_its_way() -> None:
    found = recovery(acks(80, 90, 101, 3_000, 3_001, 3_020), 0, fault_ms=100)
    assert found is not None
    assert (found.last_before_ms, found.first_after_ms) == (101, 3_000)


def test_a_partition_that_never_acked_again_has_not_recovered() -> None:
    assert recovery(acks(80, 90), 0, fault_ms=100) is None
    assert recovery(acks(80, 90, 120, partition=1), 0, fault_ms=100) is None


def test_the_longest_pause_counts_the_silence_at_both_ends() -> None:
    assert longest_pause_ms(acks(10, 20, 30), 0, from_ms=0, until_ms=100) == 70
    assert longest_pause_ms([], 0, from_ms=0, until_ms=100) == 100
    assert longest_pause_ms(acks(60, 65, 90), 0, from_ms=0, until_ms=100) == 60


def test_the_first_ack_after_a_fault_is_of_that_partition() -> None:
    both = sorted([*acks(10, 120), *acks(105, partition=1)], key=lambda a: a.at_ms)
    assert first_ack_after(both, 0, 100) == 120 and first_ack_after(both, 2, 100) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), max_size=60), st.integers(0, 100), st.integers(0, 9))
def test_each_acked_counts_every_partition_for_itself(raw: list[tuple[int, int]], since: int, count: int) -> None:
    found = [Ack(p, i, i, at) for i, (p, at) in enumerate(sorted(raw, key=lambda r: r[1]))]
    counted = {p: sum(1 for a in found if a.partition == p and a.at_ms > since) for p in range(4)}
    assert each_acked(found, range(4), count, since) == (min(counted.values()) >= count)


def test_a_drill_passes_when_all_objectives_are_kept() -> None:
    assert all(failures(drill, GOOD) == [] for drill in DRILLS.values())


@pytest.mark.parametrize(
    "broken",
    [
        {"rto_ms": None},
        {"rto_ms": 30_001.0},
        {"still_led": (2,)},
        {"restarted": ("gcp broker b-1",)},
        {"unkept": ("it still ran",)},
        {"failed_produces": 1, "first_error": "timed out"},
        {"judgement": None},
        {"judgement": judge({}, {})},
        {"judgement": judge({0: {0: 0}}, {0: []})},
        {"judgement": judge({0: {0: 0}}, {0: [(0, 0), (1, 0)]})},
        {"judgement": judge({0: {0: 1, 1: 0}}, {0: [(0, 1), (1, 0)]})},
        {"judgement": judge({0: {0: 0}}, {0: [(0, 0), (1, None)]})},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", DRILLS)
def test_each_objective_that_is_not_kept_fails_every_drill(name: str, broken: dict[str, object]) -> None:
    measured = replace(GOOD, **broken)  # type: ignore[arg-type]
    assert failures(DRILLS[name], measured)
    assert Report(name, "gcp", "object", measured).to_plain()["verdict"] == "FAIL"


@pytest.mark.parametrize("pause", [None, 1_501.0])
def test_a_pause_without_the_control_plane_fails_its_drill(pause: float | None) -> None:
    assert failures(DRILLS["control-plane-loss"], replace(GOOD, pause_ms=pause))


def test_what_could_not_be_read_back_is_unknown_and_not_zero() -> None:
    bad = Report("broker-loss", "gcp", "object", replace(GOOD, judgement=None), acked=7)
    assert bad.to_plain()["acked_lost"] is None and "unknown" in bad.text()
    good = Report("broker-loss", "gcp", "object", GOOD, acked=7)
    both = summary([good, bad])
    assert (both["verdict"], both["passed"], both["acked"], both["acked_lost"]) == ("FAIL", 1, 14, None)


def test_the_report_ends_with_the_verdict_in_one_line() -> None:
    report = Report("zone-loss", "aws", "block+express", replace(GOOD, still_led=(1,)), acked=7, trouble=["late"])
    *above, last = report.text().splitlines()
    assert last.startswith("drill zone-loss  FAIL  aws  block+express  rto 0.9 s  acked 7  acked lost 0")
    assert above == ["  late", "  nobody took over partitions 1"]


def test_the_timeline_is_in_order_of_time() -> None:
    report = Report("zone-loss", "aws", "object", GOOD, timeline=[(5.0, "later"), (1.0, "sooner")])
    assert [e["event"] for e in report.to_plain()["timeline"]] == ["sooner", "later"]
