"""What resources say shall be: one mistake holds up nobody else, and nothing that runs goes by mistake."""

from __future__ import annotations

import random
from typing import Any

import pytest

from controlplane.api.kinds import API_VERSION
from controlplane.api.specs import Key
from controlplane.operator.wanted import Wanted, wanted
from controlplane.plan.model import Recorded

NOW_MS = 1_800_000_000_000


def custom(kind: str, name: str, spec: dict[str, Any], generation: int = 1, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "uid": f"{kind}-{name}", "generation": generation, **metadata},
        "spec": spec,
    }


CLOUD = custom("Cloud", "plant", {"provider": "private", "region": "p", "zones": ["a"]})
CLUSTER = custom("BrokerCluster", "main", {"cloud": "plant", "brokers": 1})


def topic(name: str, *clusters: str, **metadata: Any) -> dict[str, Any]:
    return custom("Topic", name, {"clusters": list(clusters), "partitions": 1}, **metadata)


def look(*customs: dict[str, Any], after: Wanted | None = None, now_ms: int = NOW_MS) -> Wanted:
    by_key: dict[Key, dict[str, Any]] = {(c["kind"], c["metadata"]["name"]): c for c in customs}
    recorded = after.plan.recorded_after() if after is not None else Recorded()
    return wanted(by_key, recorded, now_ms)


def keys(found: Wanted) -> list[Key]:
    return sorted(found.specs.plain())


def test_one_bad_resource_leaves_the_others_their_plan() -> None:
    found = look(CLOUD, CLUSTER, topic("good", "main"), topic("bad", "nowhere"), custom("Cloud", "odd", {"zones": []}))
    assert keys(found) == [("BrokerCluster", "main"), ("Cloud", "plant"), ("Topic", "good")]
    assert set(found.notices) == {("Topic", "bad"), ("Cloud", "odd")}
    assert "no BrokerCluster is named nowhere" in found.notices["Topic", "bad"].sentence
    assert set(found.accepted) == set(keys(found))


def test_a_refused_change_counts_as_what_was_recorded() -> None:
    first = look(CLOUD, CLUSTER, topic("t", "main"))
    second = look(CLOUD, CLUSTER, topic("t", "main", "nowhere", generation=2), topic("u", "main"), after=first)
    assert second.specs.topics["t"].spec.clusters == ("main",)
    assert keys(second) == [("BrokerCluster", "main"), ("Cloud", "plant"), ("Topic", "t"), ("Topic", "u")]
    assert ("Topic", "t") not in second.accepted


def test_a_change_that_only_the_planner_refuses_is_found_among_many() -> None:
    base = [CLOUD, CLUSTER, *(topic(f"t{n}", "main") for n in range(40))]
    first = look(*base)
    moved = custom("Cloud", "plant", {"provider": "private", "region": "elsewhere", "zones": ["a"]}, generation=2)
    assert not look(moved, CLUSTER).notices, "it is possible where nothing is recorded"
    second = look(moved, *base[1:], *(topic(f"u{n}", "main") for n in range(40)), after=first)
    assert list(second.notices) == [("Cloud", "plant")]
    assert second.specs.clouds["plant"].spec.region == "p"
    assert len(second.specs.topics) == 80


def test_a_deletion_that_others_need_waits_and_one_together_with_them_goes() -> None:
    first = look(CLOUD, CLUSTER, topic("t", "main"))
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    leaving = {**CLUSTER, "metadata": {**CLUSTER["metadata"], **going}}
    waits = look(CLOUD, leaving, topic("t", "main"), after=first)
    assert keys(waits) == keys(first)
    assert waits.notices["BrokerCluster", "main"].reason == "InUse" and waits.plan.empty
    together = look(CLOUD, leaving, topic("t", "main", **going), after=first)
    assert keys(together) == [("Cloud", "plant")] and not together.notices


def test_a_resource_that_is_gone_without_a_trace_shall_go() -> None:
    first = look(CLOUD, CLUSTER, topic("t", "main"))
    assert keys(look(CLOUD, CLUSTER, after=first)) == [("BrokerCluster", "main"), ("Cloud", "plant")]


@pytest.mark.parametrize(
    ("until", "paused"),
    [("true", True), ("2030-01-01T00:00:00Z", True), ("2020-01-01T00:00:00+02:00", False), ("tomorrow", True),
     ("2030-01-01T00:00:00", True)],
)  # fmt: skip
def test_a_pause_holds_changes_until_its_end_and_what_is_unreadable_counts_as_one(until: str, paused: bool) -> None:
    first = look(CLOUD, CLUSTER)
    more = {**CLUSTER["spec"], "brokers": 2}
    changed = custom("BrokerCluster", "main", more, 2, annotations={"yunhe.io/paused-until": until})
    second = look(CLOUD, changed, after=first)
    assert second.plan.empty is paused
    assert (("BrokerCluster", "main") in second.notices) is paused
    if until.startswith("2030") and until.endswith("Z"):
        assert second.resume_ms == 1_893_456_000_000
        assert not look(CLOUD, changed, after=first, now_ms=second.resume_ms).plan.empty


@pytest.mark.parametrize("seed", range(20))
def test_of_random_resources_as_many_count_as_go_together(seed: int) -> None:
    """What counts goes together, and none of the rest would have gone with it."""
    rng = random.Random(seed)
    customs = [CLOUD, custom("Cloud", "far", {"provider": "private", "region": "q", "zones": ["a", "b"]})]
    for n in range(6):
        cloud = rng.choice(["plant", "far", "nowhere"])
        customs.append(custom("BrokerCluster", f"c{n}", {"cloud": cloud, "brokers": rng.choice([1, 2, 40])}))
    customs += [
        topic(f"t{n}", *rng.sample([f"c{m}" for m in range(7)], rng.choice([1, 2])), generation=1) for n in range(12)
    ]
    found = look(*rng.sample(customs, len(customs)))
    # Which of two clusters of one cloud counts is a matter of order; that one does is not.
    for one in customs:
        key = (one["kind"], one["metadata"]["name"])
        if key not in found.specs.plain():
            kept = [c for c in customs if (c["kind"], c["metadata"]["name"]) in found.specs.plain()]
            assert look(*kept, one).notices, f"{key} would have gone with the others"
    assert not look(*[c for c in customs if (c["kind"], c["metadata"]["name"]) in found.specs.plain()]).notices
