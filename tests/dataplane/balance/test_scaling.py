"""When spare brokers are asked for, and when they may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.balance.scaling import Extreme, Scaler, Used
from dataplane.contract.assignment import ScaleSpec

SPEC = ScaleSpec(
    brokers_max=5, target=0.6, broker_bytes_per_s=None, out_after_ms=5_000, in_after_ms=60_000, cool_down_ms=10_000
)


class World:
    """Two lasting brokers, the spare ones that were asked for, and a load that they share evenly, a look a second."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.scaler = Scaler(SPEC, 0, self.now_ms)
        self.lasting = 2
        self.said: list[str] = []

    def pass_(self, seconds: int, load: float) -> int:
        for _ in range(seconds):
            count = self.lasting + self.scaler.spares
            each = min(load / count, 1.0)
            brokers = [Used(each, 0)] * self.lasting + [Used(each, rank + 1) for rank in range(self.scaler.spares)]
            if (why := self.scaler.turn(self.now_ms, brokers)) is not None:
                self.said.append(why)
            self.now_ms += 1_000
        return self.scaler.spares


def test_a_load_that_stays_gets_as_many_brokers_as_it_needs_and_no_more() -> None:
    world = World()
    assert world.pass_(4, 1.7) == 0, "not at the first look"
    assert world.pass_(3, 1.7) == 1, "1.7 at 60 % each are three brokers"
    assert world.pass_(600, 1.7) == 1, "a broker more changes nothing of the need"
    assert world.said == ["1 broker more: the load needs 3 at 60% each"]


def test_a_peak_that_goes_by_starts_nothing() -> None:
    world = World()
    for _ in range(20):
        assert world.pass_(4, 2.0) == world.pass_(2, 0.5) == 0


def test_no_more_than_the_greatest_number_however_great_the_load() -> None:
    world = World()
    assert world.pass_(100, 50.0) == 3
    assert len(world.said) >= 2, "brokers that are wholly used do not show how much they lack"


def test_a_load_that_has_gone_takes_the_brokers_one_by_one() -> None:
    world = World()
    world.pass_(100, 50.0)
    left = [world.pass_(1, 0.3) for _ in range(200)]
    assert left.index(2) >= 59
    assert left.index(1) - left.index(2) == left.index(0) - left.index(1) == 10, "with a pause between two"
    assert left[-1] == 0


def test_a_lasting_broker_that_is_missed_is_replaced_while_it_is_needed() -> None:
    world = World()
    assert world.pass_(20, 1.0) == 0
    world.lasting = 1
    assert world.pass_(20, 1.0) == 1
    world.lasting = 2
    assert world.pass_(100, 1.0) == 0
    world.lasting = 1
    assert world.pass_(100, 0.1) == 0, "one is enough for that"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 20), st.sampled_from([min, max]))
def test_the_extreme_of_a_window_is_what_a_list_of_all_says(numbers: list[int], window: int, pick: object) -> None:
    kept = Extreme(window, pick)  # type: ignore[arg-type]
    for now, number in enumerate(numbers):
        kept.add(now, number)
        plain = pick(numbers[max(0, now - window) : now + 1])  # type: ignore[operator]
        assert kept.of_window(now) == (plain if now >= window else None)
        assert len(kept._kept) <= 10
