"""A seed is all that a run's choices depend on, and seeds differ."""

from __future__ import annotations

from typing import Any

from controlplane.drill import outages
from controlplane.drill.seeds import SEED_MAX, Choices, fresh_seed
from providers.base.clock import SeededRng
from providers.lab.fault import Fault

CLOUD: dict[str, Any] = {"wal": {"mode": "block+express"}, "brokers": [{"zone": "z-1"}, {"zone": "z-2"}]}


def described(seed: int) -> tuple[object, ...]:
    choices = Choices(seed)
    made = [
        outages.wal_loss("volume", CLOUD, choices),
        outages.wal_loss("express", CLOUD, choices),
        outages.object_store_outage(CLOUD, choices),
        outages.throttle(CLOUD, choices),
    ]
    simple = (choices.wait_ms, choices.ticks_a_second, choices.padding, choices.away_ms)
    return (*simple, choices.one_of("victim", [1, 2]), [outage._faults for outage in made])


def test_one_seed_always_chooses_the_same() -> None:
    assert all(described(seed) == described(seed) for seed in range(50))


def test_fifty_seeds_choose_every_victim_every_way_to_fail_and_many_moments() -> None:
    choices = [Choices(seed) for seed in range(50)]
    assert {c.one_of("victim", [1, 2]) for c in choices} == {1, 2}
    assert len({round(c.wait_ms / 100) for c in choices}) > 20 and len({c.ticks_a_second for c in choices}) > 20
    volume = [outages.wal_loss("volume", CLOUD, c)._faults[0] for c in choices]
    assert {(f["kind"], f["zone"]) for f in volume} == {
        (kind, zone) for kind in ("error", "reset", "timeout") for zone in ("", "z-1", "z-2")
    }
    assert {outages.throttle(CLOUD, c)._faults[0]["kind"] for c in choices} == {"error", "throttle"}


def test_every_fault_that_a_seed_chooses_is_one_that_the_lab_has() -> None:
    for seed in range(50):
        for faults in described(seed)[-1]:  # type: ignore[attr-defined]
            for plain in faults:
                Fault.of({**plain, "id": "drill-1.1", "for_ms": 1_000}, now_ms=0)


def test_a_run_without_a_seed_gets_one_that_can_be_given_again() -> None:
    assert 0 <= fresh_seed(SeededRng(3)) <= SEED_MAX
