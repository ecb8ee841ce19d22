"""What is promised of slow brokers, judged by counting windows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.balance.policy import Policy, decide
from dataplane.balance.slowness import Health, Key, SlowPolicy, adopted, judge, to_probe

POLICY = SlowPolicy()
A, B, C, D = (1, 1), (2, 1), (3, 1), (4, 1)


def watch(
    latency_ms: dict[Key, float | None], windows: int, health: dict[Key, Health] | None = None
) -> dict[Key, Health]:
    health = health or {}
    for _ in range(windows):
        health = judge(health, latency_ms, POLICY)
    return health


def slow(health: dict[Key, Health]) -> set[Key]:
    return {key for key, one in health.items() if one.slow}


def test_one_far_beyond_its_peers_for_several_windows_is_slow() -> None:
    far: dict[Key, float | None] = {A: 600, B: 4, C: 6}
    assert slow(watch(far, POLICY.bad_windows - 1)) == set()
    found = watch(far, POLICY.bad_windows)
    assert slow(found) == {A} and "600 ms" in found[A].sentence and "5 ms" in found[A].sentence


def test_a_few_bad_windows_among_good_ones_are_no_slowness() -> None:
    health: dict[Key, Health] = {}
    for turn in range(100):
        health = judge(health, {A: 900 if turn % 2 else 5, B: 4, C: 6}, POLICY)
        assert slow(health) == set()


def test_none_is_slow_while_all_are() -> None:
    assert slow(watch({A: 900, B: 800, C: 1_000}, 100)) == set()
    assert slow(watch({A: 5_000, B: 4_000}, 100)) == set()


def test_little_is_not_slow_however_little_the_peers_take() -> None:
    assert slow(watch({A: 100, B: 1, C: 1}, 100)) == set()


def test_of_two_brokers_one_is_slow_beyond_an_absolute_floor_alone() -> None:
    assert slow(watch({A: 900, B: 4}, 100)) == set()
    assert slow(watch({A: 1_100, B: 4}, POLICY.bad_windows)) == {A}
    assert slow(watch({A: 1_100}, 100)) == set(), "there is nobody to be compared with"


def test_who_wrote_nothing_is_neither_slow_nor_a_peer() -> None:
    idle: dict[Key, float | None] = {A: 900, B: None, C: None}
    assert slow(watch(idle, 100)) == set()
    assert to_probe(watch(idle, 1), idle, POLICY) == {B, C}, "they are asked to show how they are"
    calm: dict[Key, float | None] = {A: 5, B: None, C: None}
    assert to_probe(watch(calm, 9), calm, POLICY) == set(), "an idle cell writes nothing"


def test_a_slow_broker_is_well_again_after_many_windows_near_its_peers() -> None:
    found = watch({A: 600, B: 4, C: 6}, 5)
    near: dict[Key, float | None] = {A: 7, B: 4, C: 6}
    assert to_probe(found, near, POLICY) == {A}
    nearly = watch(near, POLICY.well_windows - 1, found)
    assert slow(nearly) == {A}
    assert slow(watch(near, 1, nearly)) == set()
    # One bad window begins the count anew.
    again = watch({A: 600, B: 4, C: 6}, 1, nearly)
    assert slow(watch(near, POLICY.well_windows - 1, again)) == {A}


def test_each_relapse_takes_longer_to_be_well_up_to_a_bound() -> None:
    health: dict[Key, Health] = {}
    took: list[int] = []
    for _ in range(9):
        health = watch({A: 600, B: 4, C: 6}, POLICY.bad_windows, health)
        assert slow(health) == {A}
        windows = 0
        while slow(health):
            health, windows = watch({A: 4, B: 4, C: 6}, 1, health), windows + 1
        took.append(windows)
    assert took == [15, 30, 60, 120, 240, 480, 480, 480, 480]
    forgiven = watch({A: 4, B: 4, C: 6}, POLICY.forgiven_windows, health)
    assert forgiven[A].relapses == 0


def test_a_slow_broker_of_which_nothing_is_heard_is_tried_again_in_the_end() -> None:
    found = watch({A: 600, B: 4, C: 6}, 5)
    unheard: dict[Key, float | None] = {A: None, B: 4, C: 6}
    assert slow(watch(unheard, POLICY.blind_windows - 1, found)) == {A}
    assert slow(watch(unheard, POLICY.blind_windows, found)) == set()


def test_the_next_controller_goes_on_from_what_the_last_one_said() -> None:
    near: dict[Key, float | None] = {A: 7, B: 4, C: 6}
    assert slow(watch(near, 1, {A: adopted("it was")})) == {A}
    assert slow(watch(near, POLICY.well_windows, {A: adopted("it was")})) == set()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.tuples(st.integers(1, 7), st.integers(1, 2)),
            st.one_of(st.none(), st.floats(0, 20_000)),
            max_size=7,
        ),
        max_size=60,
    )
)
def test_whatever_is_measured_few_are_slow_and_never_all(windows: list[dict[Key, float | None]]) -> None:
    health: dict[Key, Health] = {}
    for measured in windows:
        before, health = health, judge(health, measured, POLICY)
        assert health.keys() == measured.keys()
        named = slow(health)
        assert len(named) <= max(1, len(measured) // 3) and (not measured or len(named) < len(measured))
        for key in named - slow(before):
            mine, others = measured[key], [m for k, m in measured.items() if k != key and m is not None]
            assert mine is not None and others, "nobody becomes slow without a measurement"


def test_partitions_leave_a_slow_broker_a_few_at_a_time_busiest_first_and_none_comes() -> None:
    policy = Policy()
    owners = dict.fromkeys(range(20), 1) | {100: 2, 101: 3}
    rates = {7: 9e6, 3: 5e6}
    moved = dict.fromkeys(range(20), 0.0)  # just moved there, and no reason to stay
    turns = 0
    while True:
        decision = decide(owners, [1, 2, 3], rates, moved, 1_000, policy, {1})
        if not any(move.source == 1 for move in decision.moves):
            break
        assert len(decision.moves) <= policy.away_max and all(move.target != 1 for move in decision.moves)
        if not turns:
            assert [m.stream for m in decision.moves[:2]] == [7, 3] and "slow" in decision.sentence
        for move in decision.moves:
            owners[move.stream] = move.target
        turns += 1
    assert turns == 3 and 1 not in owners.values()
    back = decide(owners, [1, 2, 3], {}, {}, 1_000, policy)
    assert 1 in {m.target for m in back.moves}, "well again, it gets its share"


def test_nothing_leaves_a_slow_broker_that_is_alone() -> None:
    assert decide({1: 1, 2: 1}, [1], {}, {}, 0, Policy(), {1}).moves == ()
    assert decide({1: 1, 2: 2}, [1, 2], {}, {}, 0, Policy(), {1, 2}).moves == ()
