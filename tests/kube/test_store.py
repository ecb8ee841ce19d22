"""The Kubernetes store keeps the promises of the SQLite store, on a real API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from controlplane.api.kinds import API_VERSION
from controlplane.store.base import PLANS_KEPT_MAX, Operation, StepRecord, StepState, StoredPlan
from controlplane.store.conditions import Notice
from controlplane.store.config_maps import PART_BYTES
from controlplane.store.kube_api import Kube, core_path, resources_path
from controlplane.store.kubernetes import KubernetesStore
from dataplane.contract.assignment import Generation
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Conflict, Corrupt, Fenced, Invalid
from tests.kube.cluster import Cluster
from tests.kube.crds import install

WITHIN_MS = 20_000.0

Opener = Callable[[], KubernetesStore]


@pytest.fixture
def kube(cluster: Cluster) -> Iterator[Kube]:
    with cluster.api_client() as api:
        install(api)
    kube = Kube(cluster.kubeconfig)
    yield kube
    kube.close()


@pytest.fixture
def opened(kube: Kube, namespace: str) -> Opener:
    return lambda: KubernetesStore(kube, namespace, clock=SystemClock())


def a_plan(base: int, hash_: str = "abcd1234") -> StoredPlan:
    return StoredPlan(hash_, base, {"specs": [["Topic", "t", {"n": base}]], "revision": base + 1}, {"text": "…"})


def an_operation(id_: str = "op-1") -> Operation:
    return Operation(id_, "abcd1234", 1, (StepRecord("bucket/a", "a", "probe"), StepRecord("assign/a", "a", "publish")))


def test_accepted_state_survives_reopening(opened: Opener) -> None:
    store = opened()
    assert store.recorded() is None and store.revision() == 0
    store.accept(a_plan(0), an_operation())
    store.put_status(("Topic", "t"), {"state": "Ready"})
    store.close()
    again = opened()
    assert again.recorded() == {"specs": [["Topic", "t", {"n": 0}]], "revision": 1}
    assert again.revision() == 1
    assert again.statuses() == {("Topic", "t"): {"state": "Ready"}}
    assert [o.id for o in again.unfinished()] == ["op-1"]


def test_stale_plan_is_refused_and_changes_nothing(opened: Opener) -> None:
    store = opened()
    store.accept(a_plan(0), an_operation("op-1"))
    with pytest.raises(Conflict, match="stale"):
        store.accept(a_plan(0, "ffff0000"), an_operation("op-2"))
    assert store.revision() == 1
    assert [o.id for o in store.unfinished()] == ["op-1"]


def test_a_later_apply_supersedes_the_unfinished_one_for_good(opened: Opener) -> None:
    store = opened()
    store.accept(a_plan(0), an_operation("op-1"))
    store.accept(a_plan(1, "ffff0000"), an_operation("op-2"))
    store.put_operation(replace(an_operation("op-1"), outcome="Done"))
    for one in (store, opened()):
        first = one.operation("op-1")
        assert first is not None and first.outcome == "Superseded"


def test_generations_grow_over_restarts(opened: Opener) -> None:
    store = opened()
    first, second = store.next_generation(), store.next_generation()
    again = opened()
    third = again.next_generation()
    assert first < second < third
    again.outgrow(Generation(third.incarnation + 7, 3))
    assert again.next_generation() > Generation(third.incarnation + 7, 3)


def test_outgrow_leaves_a_store_alone_that_is_ahead(opened: Opener) -> None:
    store = opened()
    mine = store.next_generation()
    store.outgrow(Generation(mine.incarnation - 5, 1000))
    assert store.next_generation() == Generation(mine.incarnation, mine.revision + 1)


def test_a_plan_is_found_by_the_beginning_of_its_hash(opened: Opener) -> None:
    store = opened()
    store.put_plan(a_plan(0, "abcd1111"))
    store.put_plan(a_plan(0, "abcd2222"))
    store = opened()
    found = store.plan("abcd1")
    assert found is not None and found.hash == "abcd1111"
    assert store.plan("9999") is None
    with pytest.raises(Invalid, match="more than one"):
        store.plan("abcd")


def test_plans_are_bounded_and_the_newest_stay(opened: Opener, kube: Kube, namespace: str) -> None:
    store = opened()
    for number in range(PLANS_KEPT_MAX + 5):
        store.put_plan(a_plan(0, f"{number:08x}"))
    assert store.plan(f"{0:08x}") is None
    assert store.plan(f"{PLANS_KEPT_MAX + 4:08x}") is not None
    names = [found["metadata"]["name"] for found in kube.listed(core_path(namespace, "configmaps"))]
    assert len([name for name in names if name.startswith("yunhe-plan-")]) == PLANS_KEPT_MAX


def test_journal_comes_back_with_its_states(opened: Opener) -> None:
    store = opened()
    store.accept(a_plan(0), an_operation())
    steps = (replace(an_operation().steps[0], state=StepState.DONE, sentence="won"), an_operation().steps[1])
    store.put_operation(replace(an_operation(), steps=steps, version=3))
    store.close()
    [found] = opened().unfinished()
    assert found.steps[0].state is StepState.DONE and found.steps[1].state is StepState.PENDING
    assert found.version == 3


def test_another_versions_state_is_refused_in_one_sentence(opened: Opener) -> None:
    store = opened()
    store._put_head({"version": 99})
    with pytest.raises(Invalid, match="another version"):
        opened()


def test_a_damaged_state_is_corrupt_and_not_overwritten(opened: Opener, kube: Kube, namespace: str) -> None:
    opened()
    path = core_path(namespace, "configmaps", "yunhe-head")
    kube.patch(path, {"binaryData": {"z": "bm90IGNvbXByZXNzZWQ="}})
    with pytest.raises(Corrupt, match="yunhe-head"):
        opened()
    assert kube.get(path)["binaryData"]["z"] == "bm90IGNvbXByZXNzZWQ="


def test_of_two_replicas_the_one_that_opened_last_writes(opened: Opener, kube: Kube, namespace: str) -> None:
    told: list[str] = []
    first = KubernetesStore(kube, namespace, clock=SystemClock(), lost=lambda: told.append("lost"))
    first.accept(a_plan(0), an_operation("op-1"))
    second = opened()
    with pytest.raises(Fenced):
        first.put_operation(replace(an_operation("op-1"), outcome="Done"))
    with pytest.raises(Fenced):
        first.accept(a_plan(1, "ffff"), an_operation("op-2"))
    assert told == ["lost"]  # said once; nothing is written from then on
    assert [o.id for o in second.unfinished()] == ["op-1"] and second.revision() == 1
    second.accept(a_plan(1, "ffff"), an_operation("op-3"))
    assert second.revision() == 2


def test_what_is_too_large_for_one_object_is_split(opened: Opener) -> None:
    # Hex of random bytes: at most halved by compression.
    rng = SystemRng()
    text = "".join(rng.token() for _ in range(3 * PART_BYTES // 32))
    store = opened()
    store.accept(StoredPlan("abcd", 0, {"specs": text}, {}), an_operation())
    assert len(store._head["recorded"]) > 1
    assert opened().recorded() == {"specs": text}


def test_what_a_crash_left_is_swept(opened: Opener, kube: Kube, namespace: str) -> None:
    store = opened()
    store._maps.write_parts("yunhe-recorded-1", {"never": "became true"})
    again = opened()
    names = [found["metadata"]["name"] for found in kube.listed(core_path(namespace, "configmaps"))]
    assert "yunhe-recorded-1-0" not in names
    again.accept(a_plan(0), an_operation())


def test_a_resource_shows_its_status_with_conditions(opened: Opener, kube: Kube, namespace: str) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": "Topic",
        "metadata": {"name": "t"},
        "spec": {"clusters": ["c"], "partitions": 1},
    }
    kube.create(resources_path(namespace, "Topic"), body)
    store, key = opened(), ("Topic", "t")
    store.resources.note(key, None, 1)
    store.put_status(key, {"state": "Progressing", "sentence": "waits", "zones": {"a": 1, "b": 2}})
    assert store.behind.drain(WITHIN_MS) == 0
    shown = kube.get(resources_path(namespace, "Topic", "t"))["status"]
    times = {c["type"]: (c["status"], c["lastTransitionTime"]) for c in shown["conditions"]}
    assert {type_: status for type_, (status, _) in times.items()} == {
        "Ready": "False", "Progressing": "True", "Degraded": "False",
    }  # fmt: skip
    assert shown["observedGeneration"] == 1

    store.put_status(key, {"state": "Ready", "sentence": "serves", "zones": {"a": 1}})
    store.resources.note(key, Notice("Invalid", "Topic t: spec.partitions: too many", "write fewer"))
    assert store.behind.drain(WITHIN_MS) == 0
    shown = kube.get(resources_path(namespace, "Topic", "t"))["status"]
    conditions = {c["type"]: c for c in shown["conditions"]}
    assert conditions["Ready"]["status"] == "True" and shown["detail"]["zones"] == {"a": 1}
    assert conditions["Degraded"]["message"] == "Topic t: spec.partitions: too many (write fewer)"
    again = opened()
    status = {"state": "Ready", "sentence": "serves", "zones": {"a": 1}}
    assert again.status(key) == status
    # What it has is what was written, to the last null: the next leader has nothing to write again.
    before = kube.get(resources_path(namespace, "Topic", "t"))
    again.resources.note(key, Notice("Invalid", "Topic t: spec.partitions: too many", "write fewer"))
    again.put_status(key, status)
    again.close()
    assert kube.get(resources_path(namespace, "Topic", "t")) == before
