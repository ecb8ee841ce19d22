"""The judge of drills sees every kind of damage, whatever else is right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.main import run as yunhe
from controlplane.drill.checker import judge
from controlplane.drill.runner import Report, Runner

logs = st.integers(2, 40).map(lambda n: [(i, i) for i in range(n)])


def acked(log: list[tuple[int, int]]) -> dict[int, dict[int, int]]:
    return {0: {number: offset for offset, number in log}}


@given(logs)
def test_a_log_as_it_was_acked_is_clean(log: list[tuple[int, int]]) -> None:
    judged = judge(acked(log), {0: log})
    assert judged.clean and judged.acked == len(log)


@given(logs, st.data())
def test_each_record_that_is_missing_is_counted_lost(log: list[tuple[int, int]], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(log), min_size=1))
    judged = judge(acked(log), {0: [r for r in log if r not in gone]})
    assert judged.acked_lost == len(gone) and not judged.clean


@given(logs, st.data())
def test_a_record_that_comes_again_is_a_duplicate(log: list[tuple[int, int]], data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(log))
    assert judge(acked(log), {0: [*log, (len(log), again[1])]}).duplicated == 1


@given(logs, st.data())
def test_swapped_neighbours_are_reordered_and_not_where_they_were_acked(
    log: list[tuple[int, int]], data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(log) - 2))
    swapped = list(log)
    swapped[i], swapped[i + 1] = (i, log[i + 1][1]), (i + 1, log[i][1])
    judged = judge(acked(log), {0: swapped})
    assert judged.reordered == 1 and judged.acked_lost == 2


def test_an_unacked_record_may_be_there_or_not() -> None:
    judged = judge({0: {0: 0}}, {0: [(0, 0), (1, 1)]})
    assert judged.clean and judged.unacked_present == 1


def test_a_partition_that_is_gone_is_lost_whole() -> None:
    assert judge({0: {0: 0}, 1: {0: 0, 1: 1}}, {0: [(0, 0)]}).acked_lost == 2


def test_a_failed_verdict_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report("broker-loss", "gcp", "regional-block", 10.0, judge({0: {0: 0}}, {0: []}))
    monkeypatch.setattr(Runner, "run", lambda self, name, cloud: report)
    assert yunhe(["drill", "run", "broker-loss", "-o", "json"]) == 1
    passed = Report("broker-loss", "gcp", "regional-block", 10.0, judge({0: {0: 0}}, {0: [(0, 0)]}))
    monkeypatch.setattr(Runner, "run", lambda self, name, cloud: passed)
    assert yunhe(["drill", "run", "broker-loss", "-o", "json"]) == 0
