"""Rolling by zone, one at a time, never below quorum; a lost node's volume is used again only when it is free."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.plan.kubernetes_roll import (
    Attachment,
    Nodes,
    Pod,
    Wanted,
    next_to_roll,
    quorum_of,
    to_replace,
)

ZONES = ("a", "b", "c")
CONTROLLERS, BROKERS = Wanted("controller", 3, quorum_of(3)), Wanted("broker", 6)


def cluster(current: bool = False) -> list[Pod]:
    controllers = [Pod(f"c-{n}", "controller", "", f"node-c{n}", True, current) for n in range(3)]
    brokers = [Pod(f"b-{zone}-{n}", "broker", zone, f"node-{zone}{n}", True, current) for zone in ZONES for n in (0, 1)]
    return [*controllers, *brokers]


def rolled(pods: list[Pod], pod: Pod) -> list[Pod]:
    return [replace(p, current=True) if p.name == pod.name else p for p in pods]


def test_every_pod_is_rolled_once_controllers_first_and_then_zone_by_zone() -> None:
    pods, order = cluster(), []
    while (turn := next_to_roll(pods, (CONTROLLERS, BROKERS))).pod is not None:
        order.append(turn.pod.name)
        pods = rolled(pods, turn.pod)
    assert turn.done
    assert order == ["c-0", "c-1", "c-2", "b-a-0", "b-a-1", "b-b-0", "b-b-1", "b-c-0", "b-c-1"]


def test_a_zone_that_was_begun_is_finished_before_another() -> None:
    pods = [replace(p, current=p.part == "controller" or p.name == "b-c-1") for p in cluster()]
    turn = next_to_roll(pods, (CONTROLLERS, BROKERS))
    assert turn.pod is not None
    assert turn.pod.name == "b-c-0"


def test_nobody_is_rolled_while_the_last_one_is_not_ready() -> None:
    pods = [replace(p, current=True, ready=False) if p.name == "c-0" else p for p in cluster()]
    turn = next_to_roll(pods, (CONTROLLERS, BROKERS))
    assert turn.pod is None
    assert turn.sentence == "waits for c-0, of the new revision, to be ready"


def test_nobody_is_rolled_while_a_pod_leaves_or_is_missing() -> None:
    leaving = [replace(p, leaving=True) if p.name == "b-b-1" else p for p in cluster()]
    assert next_to_roll(leaving, (CONTROLLERS, BROKERS)).sentence == "waits for b-b-1 to end"
    missing = [p for p in cluster() if p.name != "b-b-1"]
    assert next_to_roll(missing, (CONTROLLERS, BROKERS)).sentence == "waits: 5 of 6 broker pods are there"


def test_an_old_pod_that_is_not_ready_goes_first_since_it_takes_nothing_away() -> None:
    pods = [replace(p, ready=False) if p.name == "b-c-1" else p for p in cluster()]
    turn = next_to_roll(pods, (CONTROLLERS, BROKERS))
    assert turn.pod is not None
    assert turn.pod.name == "b-c-1"
    assert "not ready" in turn.sentence


def test_a_single_pod_is_rolled_too() -> None:
    turn = next_to_roll([Pod("c-0", "controller", "", "n", True, False)], (Wanted("controller", 1, quorum_of(1)),))
    assert turn.pod is not None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=9, max_size=9), st.integers(0, 8))
def test_no_turn_takes_more_than_one_ready_pod_from_a_full_house(
    states: list[tuple[bool, bool, bool]], lost: int
) -> None:
    """Whatever the pods' states: a ready pod is rolled only if all others are there and ready."""
    pods = [
        replace(pod, ready=ready, current=current, leaving=leaving)
        for pod, (ready, current, leaving) in zip(cluster(), states, strict=True)
    ]
    pods = pods[:lost] if lost < 8 else pods
    turn = next_to_roll(pods, (CONTROLLERS, BROKERS))
    if turn.pod is None:
        assert turn.sentence or all(pod.current for pod in pods)
        return
    assert not turn.pod.current
    assert not any(pod.leaving for pod in pods)
    assert len(pods) == 9
    if turn.pod.ready:
        assert all(pod.ready for pod in pods)
        controllers = [pod for pod in pods if pod.part == "controller" and pod != turn.pod]
        assert sum(pod.ready for pod in controllers) >= quorum_of(3)


def test_a_lost_nodes_pod_comes_back_only_after_its_volume_is_detached() -> None:
    pod = Pod("b-a-0", "broker", "a", "node-a0", False, True, claims=("data-b-a-0",))
    attached = Attachment("csi-1", "node-a0", "data-b-a-0")
    held = to_replace([pod], Nodes(frozenset({"node-b0"})), [attached])
    assert held.pods == ()
    assert held.waits == ("b-a-0 waits: the volume of data-b-a-0 is still attached to the lost node-a0",)
    elsewhere = Attachment("csi-2", "node-b0", "data-b-a-0")
    assert to_replace([pod], Nodes(frozenset({"node-b0"})), [elsewhere]).pods == (pod,)


def test_a_node_that_only_does_not_answer_is_not_lost() -> None:
    pod = Pod("b-a-0", "broker", "a", "node-a0", False, True)
    assert to_replace([pod], Nodes(frozenset({"node-a0"})), []).pods == ()
    off = Nodes(frozenset({"node-a0"}), frozenset({"node-a0"}))
    assert to_replace([pod], off, []).pods == (pod,)


def test_a_pod_without_a_node_is_left_to_the_scheduler() -> None:
    assert to_replace([Pod("b-a-0", "broker", "a", None, False, True)], Nodes(frozenset()), []).pods == ()
