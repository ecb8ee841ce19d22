"""Two replicas never hold the lease at once by their own clocks, and a silent holder is followed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from controlplane.operator.lease import Election, LeaseSettings, may_take, observe
from providers.base.clock import SystemRng
from providers.base.errors import Invalid
from tests.controlplane.store.fake_kube import NAMESPACE, FakeKube
from tests.hand_clock import HandClock


def lease(holder: str, renewed: str = "t0", seconds: int = 15) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": seconds}}


def test_a_holder_is_silent_by_the_time_that_passed_here() -> None:
    seen = observe(None, lease("a"), 1_000)
    assert not may_take(seen, lease("a"), "b", 16_000)
    assert may_take(seen, lease("a"), "b", 16_001)
    again = observe(seen, lease("a", "t1"), 16_001)
    assert not may_take(again, lease("a", "t1"), "b", 20_000), "a renewal begins the time anew"
    assert observe(again, lease("a", "t1"), 25_000) is again


def test_nobodys_and_ones_own_lease_may_be_taken_at_once() -> None:
    for there in ({}, lease(""), lease("me")):
        assert may_take(observe(None, there, 0), there, "me", 0)


@pytest.mark.parametrize("seed", range(20))
def test_no_two_lead_at_once_whatever_their_clocks_say(seed: int) -> None:
    """Replicas with clocks of their own, that stop and go on, over one lease with compare-and-set. A leader believes in
    itself for `renew_within_ms` since it asked for its last renewal."""
    rng = random.Random(seed)
    settings = LeaseSettings()
    offset = [rng.uniform(0, 1e9) for _ in range(3)]
    seen: list[Any] = [None] * 3
    believes = [float("-inf")] * 3
    frozen = [0.0] * 3
    there: dict[str, Any] = {}
    changes = 0
    for step in range(4_000):
        now = step * 100.0
        leading = [n for n in range(3) if now - believes[n] < settings.renew_within_ms]
        assert len(leading) <= 1, f"{leading} at {now}"
        n = rng.randrange(3)
        if now < frozen[n]:
            continue
        if rng.random() < 0.002:
            frozen[n] = now + rng.uniform(0, 60_000)
            continue
        seen[n] = observe(seen[n], there, now + offset[n])
        if may_take(seen[n], there, f"r{n}", now + offset[n]):
            changes += 1
            there = lease(f"r{n}", f"t{changes}")
            believes[n] = now
    assert changes > 100


def test_a_lease_that_cannot_be_renewed_in_time_is_refused() -> None:
    assert LeaseSettings.lasting(3_000).renew_within_ms < 3_000
    with pytest.raises(Invalid, match="a lease lasts 1 s or more"):
        LeaseSettings.lasting(900)


def test_a_holder_is_certain_of_it_for_as_long_as_no_other_may_take_it() -> None:
    api, clock, settings = FakeKube(), HandClock(), LeaseSettings()

    def replica(name: str) -> Election:
        return Election(api.kube, NAMESPACE, name, clock=clock, rng=SystemRng(), settings=settings)

    first, second = replica("a"), replica("b")
    assert not first.holds
    assert first._try() and first.holds
    assert not second._try() and not second.holds
    clock.now_ms = settings.renew_within_ms
    assert not first.holds, "another call could end after its lease, as when the process was stopped"
    assert first._try() and first.holds, "it was only slow"
    second._try()
    clock.now_ms += settings.duration_ms + 1
    assert second._try() and second.holds
    assert not first.holds
    assert not first._try() and not first.holds
