"""Statuses of the Kubernetes store: known at once, written behind, and what must be durable is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from controlplane.store.base import Operation, StepRecord, StepState, StoredPlan
from controlplane.store.conditions import Notice
from controlplane.store.kube_api import core_path, resources_path
from controlplane.store.kubernetes import KubernetesStore
from controlplane.store.resource_status import ORPHANS, difference
from providers.base.clock import SystemClock
from providers.base.errors import Fenced, Unavailable
from tests.controlplane.store.fake_kube import NAMESPACE, FakeKube

TOPIC, DATABASE, CLUSTER = ("Topic", "t"), ("Database", "d"), ("BrokerCluster", "c")
PROGRESSING = {"state": "Progressing", "sentence": "waits"}
READY = {"state": "Ready", "sentence": "serves", "clusters": ["c"]}


@pytest.fixture
def api() -> FakeKube:
    made = FakeKube()
    for key in (TOPIC, DATABASE, CLUSTER):
        made.resource(*key)
    return made


@pytest.fixture
def store(api: FakeKube) -> Iterator[KubernetesStore]:
    made = opened(api)
    yield made
    made.close()


def opened(api: FakeKube) -> KubernetesStore:
    return KubernetesStore(api.kube, NAMESPACE, clock=SystemClock())


def flush(store: KubernetesStore) -> None:
    assert store.behind.drain(10_000) == 0


class Gate:
    """Holds up each change of a resource's status at the API server until it is opened."""

    def __init__(self, api: FakeKube, method: str = "PATCH") -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        self._method = method
        api.before = self._before

    def _before(self, method: str, path: str) -> None:
        if method == self._method:
            self.reached.set()
            assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


def test_a_status_is_read_at_once_and_of_many_the_newest_is_written(api: FakeKube, store: KubernetesStore) -> None:
    gate = Gate(api)
    store.put_status(TOPIC, PROGRESSING)
    assert store.status(TOPIC) == PROGRESSING and store.statuses()[TOPIC] == PROGRESSING
    assert gate.reached.wait(10)
    for number in range(50):
        store.put_status(TOPIC, {**PROGRESSING, "looks": number})
    store.put_status(TOPIC, READY)
    gate.open()
    flush(store)
    assert api.status(*TOPIC)["detail"] == READY
    assert api.patches() == 2
    again = opened(api)
    assert again.status(TOPIC) == READY


def test_a_databases_status_is_durable_before_the_step_goes_on(api: FakeKube, store: KubernetesStore) -> None:
    gate = Gate(api)
    returned = threading.Event()

    def step() -> None:
        store.put_status(DATABASE, {"state": "Progressing", "pins": {"edge": "key"}})
        returned.set()

    asking = threading.Thread(target=step)
    asking.start()
    assert gate.reached.wait(10)
    assert not returned.is_set()
    gate.open()
    asking.join(10)
    assert returned.is_set() and api.status(*DATABASE)["detail"]["pins"] == {"edge": "key"}


@pytest.mark.parametrize("key", [DATABASE, ("Database", "without-a-resource")])
def test_a_databases_status_that_cannot_be_written_changes_nothing(
    api: FakeKube, store: KubernetesStore, key: tuple[str, str]
) -> None:
    store.put_status(key, {"pins": {"edge": "old"}})
    api.away = True
    with pytest.raises(Unavailable):
        store.put_status(key, {"pins": {"edge": "new"}})
    assert store.status(key) == {"pins": {"edge": "old"}}
    api.away = False
    flush(store)
    assert opened(api).status(key) == {"pins": {"edge": "old"}}


def test_a_write_whose_answer_was_lost_is_looked_at_again(api: FakeKube, store: KubernetesStore) -> None:
    store.put_status(DATABASE, {"pins": {"edge": "old"}})

    def lost(method: str, path: str) -> None:
        if method == "PATCH":
            api.after = lambda *_: None
            raise Unavailable("the answer was lost")

    api.after = lost
    with pytest.raises(Unavailable):
        store.put_status(DATABASE, {"pins": {"edge": "new"}})
    flush(store)
    assert api.status(*DATABASE)["detail"]["pins"] == {"edge": "old"}, "as this store and its callers know it"


def test_what_a_cluster_is_stopped_by_is_durable_and_the_rest_is_behind(api: FakeKube, store: KubernetesStore) -> None:
    status = {"cloud": "a", "agents": [{"name": "a-1", "pid": 1}], "state": "Progressing"}
    store.put_status(CLUSTER, status)
    assert api.status(*CLUSTER)["detail"] == status
    gate = Gate(api)
    store.put_status(CLUSTER, {**status, "state": "Ready", "agents": [{"name": "a-1", "pid": 2}]})
    gate.open()
    flush(store)
    assert api.status(*CLUSTER)["state"] == "Ready"


def test_statuses_arrive_when_the_api_server_was_away(api: FakeKube, store: KubernetesStore) -> None:
    api.away = True
    for number in range(20):
        store.put_status(TOPIC, {**PROGRESSING, "looks": number})
        store.put_status(("Topic", f"gone-{number}"), READY)
    store.put_status(TOPIC, READY)
    assert store.status(TOPIC) == READY
    api.away = False
    flush(store)
    assert api.status(*TOPIC)["detail"] == READY
    assert len(opened(api).statuses()) == 21


def test_a_close_writes_what_waits_and_nothing_after(api: FakeKube, store: KubernetesStore) -> None:
    gate = Gate(api)
    store.put_status(TOPIC, PROGRESSING)
    assert gate.reached.wait(10)
    store.put_status(TOPIC, READY)
    threading.Timer(0.02, gate.open).start()
    store.close()
    assert api.status(*TOPIC)["detail"] == READY
    with pytest.raises(Fenced):
        store.put_status(TOPIC, PROGRESSING)


def test_who_may_not_lead_any_more_writes_no_status(api: FakeKube) -> None:
    leads = threading.Event()
    leads.set()
    store = KubernetesStore(api.kube, NAMESPACE, clock=SystemClock(), leads=leads.is_set)
    store.put_status(TOPIC, PROGRESSING)
    flush(store)
    leads.clear()
    store.put_status(TOPIC, READY)
    with pytest.raises(Unavailable):
        store.put_status(DATABASE, {"pins": {"edge": "key"}})
    store.close()
    assert api.status(*TOPIC)["detail"] == PROGRESSING
    assert api.status(*DATABASE) == {}


def test_who_was_deposed_writes_no_status(api: FakeKube) -> None:
    told: list[str] = []
    first = KubernetesStore(api.kube, NAMESPACE, clock=SystemClock(), lost=lambda: told.append("lost"))
    second = opened(api)
    first.put_status(("Topic", "no-resource"), READY)  # meets the other's term
    first.behind.drain(10_000)
    assert told == ["lost"]
    patches = api.patches()
    for key in (TOPIC, DATABASE):
        with pytest.raises((Fenced, Unavailable)):
            first.put_status(key, READY)
            first.behind.now(key, lambda: None)
    first.close()
    assert api.patches() == patches
    second.put_status(TOPIC, PROGRESSING)
    second.close()
    assert api.status(*TOPIC)["detail"] == PROGRESSING


def test_what_has_not_changed_is_not_written_not_even_by_the_next_leader(api: FakeKube, store: KubernetesStore) -> None:
    status = {**READY, "hint": None, "brokers": [{"name": "b", "pid": None}]}
    store.resources.note(TOPIC, None, 1)
    store.put_status(TOPIC, status)
    flush(store)
    assert api.patches() == 1, "an accepted spec is shown with its first status"
    again = opened(api)
    again.resources.note(TOPIC, None, 1)
    again.put_status(TOPIC, status)
    again.close()
    assert api.patches() == 1


def test_a_status_that_another_wrote_is_written_again(api: FakeKube, store: KubernetesStore) -> None:
    store.put_status(TOPIC, READY)
    flush(store)
    api.patch(f"{resources_path(NAMESPACE, *TOPIC)}/status", {"status": {"state": "Failed", "detail": {"late": True}}})
    store.resources.seen("Topic", api.whole(resources_path(NAMESPACE, "Topic"))[0])
    flush(store)
    assert api.status(*TOPIC)["state"] == "Ready" and api.status(*TOPIC)["detail"] == READY


def test_a_list_from_before_the_newest_write_changes_nothing(api: FakeKube, store: KubernetesStore) -> None:
    old, _ = api.whole(resources_path(NAMESPACE, "Topic"))
    store.put_status(TOPIC, READY)
    flush(store)
    patches = api.patches()
    store.resources.seen("Topic", old)
    flush(store)
    assert api.patches() == patches and api.status(*TOPIC)["detail"] == READY


def test_statuses_move_with_their_resources(api: FakeKube, store: KubernetesStore) -> None:
    key = ("Topic", "late")
    store.put_status(key, READY)
    flush(store)
    assert core_path(NAMESPACE, "configmaps", ORPHANS) in api.objects and opened(api).status(key) == READY
    store = opened(api)
    api.resource(*key)
    uids = dict.fromkeys((TOPIC, DATABASE, CLUSTER, key), "u1")
    store.resources.resources_are(uids)
    flush(store)
    assert api.status(*key)["detail"] == READY
    assert store._maps.read(ORPHANS) == {"statuses": []}
    del api.objects[resources_path(NAMESPACE, *key)]
    store.put_status(key, PROGRESSING)  # it meets NotFound
    flush(store)
    assert store._maps.read(ORPHANS) == {"statuses": [[*key, PROGRESSING]]}
    store.forget_status(key)
    store.close()
    assert opened(api).statuses() == {}


def test_what_was_said_of_a_resource_is_not_said_of_the_next_of_its_name(api: FakeKube, store: KubernetesStore) -> None:
    notice = Notice("Refused", "too many", None)
    uids = dict.fromkeys((TOPIC, DATABASE, CLUSTER), "u1")
    store.resources.resources_are(uids)
    assert store.resources.note(TOPIC, notice)
    flush(store)
    assert not store.resources.note(TOPIC, notice), "no news"
    api.resource(*TOPIC, uid="u2")
    store.resources.resources_are({**uids, TOPIC: "u2"})
    assert store.resources.note(TOPIC, notice), "it is news to whoever has made it anew"
    flush(store)
    assert {c["type"]: c["message"] for c in api.status(*TOPIC)["conditions"]}["Degraded"] == "too many"


def test_a_forgotten_status_goes_from_its_resource(api: FakeKube, store: KubernetesStore) -> None:
    store.resources.note(TOPIC, None, 3)
    store.put_status(TOPIC, READY)
    flush(store)
    store.forget_status(TOPIC)
    assert store.status(TOPIC) == {} and TOPIC not in store.statuses()
    flush(store)
    assert api.status(*TOPIC) == {}
    assert opened(api).statuses() == {}


def test_progress_is_kept_back_and_failures_and_the_end_are_not(api: FakeKube, store: KubernetesStore) -> None:
    operation = Operation("op", "h", 1, (StepRecord("bucket/a", "a", "probe"), StepRecord("assign/a", "a", "publish")))
    store.accept(StoredPlan("h", 0, {"specs": []}, {}), operation)
    writes = sum(path.endswith("yunhe-operation-op") for _, path in api.calls)

    def written() -> int:
        return sum(path.endswith("yunhe-operation-op") for _, path in api.calls) - writes

    steps = operation.steps
    store.put_operation(replace(operation, steps=(replace(steps[0], state=StepState.RUNNING), steps[1])))
    assert written() == 0
    failed = replace(operation, steps=(replace(steps[0], state=StepState.FAILED), steps[1]))
    store.put_operation(failed)
    assert written() == 1
    for version in range(7, 17):
        store.put_operation(replace(failed, version=version))
    assert written() == 1, "no failure of its own"
    flush(store)
    assert written() == 2
    store.put_operation(replace(failed, outcome="Failed"))
    assert written() == 3
    found = opened(api).operation("op")
    assert found is not None and found.outcome == "Failed"


def test_what_an_accepted_plan_replaces_is_removed(api: FakeKube, store: KubernetesStore) -> None:
    for number in range(3):
        plan = StoredPlan("h", number, {"specs": [number]}, {})
        store.accept(plan, Operation(f"op-{number}", "h", 1, ()))
    flush(store)
    names = {path.rpartition("/")[2] for path in api.objects if "/configmaps/" in path}
    operations = {f"yunhe-operation-op-{number}" for number in range(3)}
    assert names == {"yunhe-head", "yunhe-statuses", "yunhe-recorded-3-0"} | operations


@pytest.mark.parametrize(
    ("before", "wanted", "patch"),
    [
        ({}, {"a": 1, "b": None}, {"a": 1}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}}, {"a": {"y": None}}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": {"x": 1}}, {"a": [1]}, {"a": [1]}),
        ({"a": [{"x": 1}]}, {"a": [{"x": 1, "y": None}]}, {}),
        ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
    ],
)
def test_a_difference_names_what_changes_and_nothing_else(
    before: dict[str, object], wanted: dict[str, object], patch: dict[str, object]
) -> None:
    assert difference(before, wanted) == patch
