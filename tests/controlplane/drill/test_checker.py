"""The judge of drills sees every kind of damage, whatever else is right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.drill.checker import judge

Log = list[tuple[int, int | None]]

logs = st.integers(2, 40).map(lambda n: [(i, i) for i in range(n)])


def acked(log: Log) -> dict[int, dict[int, int | None]]:
    return {0: {number: offset for offset, number in log if number is not None}}


@given(logs)
def test_a_log_as_it_was_acked_is_clean(log: Log) -> None:
    judged = judge(acked(log), {0: log})
    assert judged.clean and judged.acked == len(log)


@given(logs, st.data())
def test_each_record_that_is_missing_is_counted_lost(log: Log, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(log), min_size=1))
    judged = judge(acked(log), {0: [r for r in log if r not in gone]})
    assert judged.acked_lost == len(gone) and not judged.clean


@given(logs, st.data())
def test_each_missing_record_is_lost_whatever_of_the_others_was_acked(log: Log, data: st.DataObject) -> None:
    """Judged by sets: what was acked and is not there is lost, what was not acked is nobody's loss."""
    known = data.draw(st.sets(st.sampled_from(log)))
    there = data.draw(st.sets(st.sampled_from(log)))
    judged = judge(acked(sorted(known)), {0: sorted(there)})
    assert judged.acked_lost == len(known - there) and judged.unacked_present == len(there - known)
    assert (judged.duplicated, judged.reordered, judged.corrupt) == (0, 0, 0)


@given(logs, st.data())
def test_a_record_that_comes_again_is_a_duplicate(log: Log, data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(log))
    judged = judge(acked(log), {0: [*log, (len(log), again[1])]})
    assert (judged.duplicated, judged.acked_lost, judged.reordered) == (1, 0, 0)


@given(logs, st.data())
def test_swapped_neighbours_are_reordered_and_not_where_they_were_acked(log: Log, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(log) - 2))
    swapped = list(log)
    swapped[i], swapped[i + 1] = (i, log[i + 1][1]), (i + 1, log[i][1])
    judged = judge(acked(log), {0: swapped})
    assert judged.reordered == 1 and judged.acked_lost == 2


@given(logs, st.data())
def test_what_was_not_sent_to_the_partition_is_corrupt_and_hides_no_loss(log: Log, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(log) - 1))
    read: Log = list(log)
    read[i] = (i, None)
    judged = judge(acked(log), {0: read})
    assert (judged.corrupt, judged.acked_lost) == (1, 1) and not judged.clean


@given(logs, st.data())
def test_an_ack_that_names_no_offset_promises_that_the_record_is_there(log: Log, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(log) - 1))
    promised = acked(log)
    promised[0][i] = None
    assert judge(promised, {0: log}).clean
    assert judge(promised, {0: [r for r in log if r[1] != i]}).acked_lost == 1


def test_an_offset_that_goes_back_is_reordered() -> None:
    assert judge({}, {0: [(5, 0), (3, 1)]}).reordered == 1


def test_two_records_acked_at_one_offset_cannot_both_be_there() -> None:
    assert judge({0: {0: 0, 1: 0}}, {0: [(0, 1)]}).acked_lost == 1


def test_an_unacked_record_may_be_there_or_not() -> None:
    judged = judge({0: {0: 0}}, {0: [(0, 0), (1, 1)]})
    assert judged.clean and judged.unacked_present == 1


def test_a_partition_that_is_gone_is_lost_whole() -> None:
    assert judge({0: {0: 0}, 1: {0: 0, 1: 1}}, {0: [(0, 0)]}).acked_lost == 2
