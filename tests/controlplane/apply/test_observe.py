"""What a cluster's state is said to be, from what was read."""

from __future__ import annotations

from dataclasses import replace

from controlplane.api.load import load_texts
from controlplane.apply.observe import Observed, view
from controlplane.plan.resolve import resolve
from dataplane.contract.assignment import AgentReport, BrokerReport, Generation, ProcessState
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import Broker, BrokerStatus, CellState, WalState

SPEC = """
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [a, b]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec: {cloud: plant, brokers: 2}
"""
RESOLVED = resolve(load_texts([("s", SPEC)]))["main"]
G1, G2 = Generation(1, 1), Generation(1, 2)


def broker(node: int, status: BrokerStatus = BrokerStatus.LIVE) -> Broker:
    wal = WalState("object", ["bucket"])
    return Broker(node, 3, f"b-{node}", "a", "127.0.0.1", 9000 + node, 1, wal, status, "silent for 1500 ms")


def a_report(
    zone: str, node: int, generation: Generation = G1, state: ProcessState = ProcessState.RUNNING
) -> AgentReport:
    running = BrokerReport(node, f"b-{node}", 100 + node, state, "127.0.0.1", 9000 + node, f"b-{node} did {state}")
    return AgentReport(f"plant-{zone}", zone, 7, "i", generation, (running,))


HEALTHY = Observed(
    cell="plant",
    state=CellState(term=1, controller=NodeEpoch(1, 3), brokers={1: broker(1), 2: broker(2)}),
    reports={"a": a_report("a", 1), "b": a_report("b", 2)},
    published={"a": G1, "b": G1},
    broker_alive=lambda zone, pid: True,
    agent_pid=lambda zone: 50,
)


def test_ready_when_all_brokers_serve_under_a_controller() -> None:
    seen = view(RESOLVED, HEALTHY, was_ready=False)
    assert seen.ready and seen.plain["bootstrap"] == "127.0.0.1:9001"
    assert seen.plain["bootstrapServers"] == "127.0.0.1:9001,127.0.0.1:9002"


def test_a_broker_that_waits_for_its_new_settings_serves_clients_and_the_cluster_is_not_ready() -> None:
    told = replace(HEALTHY, waiting=frozenset({"b"}))
    outdated = replace(HEALTHY.reports["a"].brokers[0], outdated=True)
    runs = replace(HEALTHY, reports={**HEALTHY.reports, "a": replace(HEALTHY.reports["a"], brokers=(outdated,))})
    for observed, broker_state in ((told, ["Ready", "Switching"]), (runs, ["Switching", "Ready"])):
        seen = view(RESOLVED, observed, was_ready=True)
        assert seen.state == "Progressing" and "is to start anew" in seen.sentence
        assert [b["state"] for b in seen.plain["brokers"]] == broker_state
        assert seen.plain["bootstrapServers"] == "127.0.0.1:9001,127.0.0.1:9002"


def test_a_slow_broker_is_shown_serves_clients_and_nothing_waits_for_it() -> None:
    slow = replace(HEALTHY.reports["b"].brokers[0], slow="its WAL acks in 600 ms, those of its peers in 5 ms")
    observed = replace(HEALTHY, reports={**HEALTHY.reports, "b": replace(HEALTHY.reports["b"], brokers=(slow,))})
    seen = view(RESOLVED, observed, was_ready=True)
    assert seen.ready and [b["state"] for b in seen.plain["brokers"]] == ["Ready", "Slow"]
    assert "b-2 is slow" in seen.sentence and "600 ms" in seen.sentence
    assert seen.plain["bootstrapServers"] == "127.0.0.1:9001,127.0.0.1:9002"


def test_a_fenced_broker_degrades_and_is_not_given_to_clients() -> None:
    state = replace(
        HEALTHY.state, brokers={1: broker(1, BrokerStatus.FENCED), 2: broker(2)}, controller=NodeEpoch(2, 3)
    )
    seen = view(RESOLVED, replace(HEALTHY, state=state), was_ready=True)
    assert seen.state == "Degraded" and "epoch 3 is fenced: silent for 1500 ms" in seen.sentence
    assert seen.plain["bootstrapServers"] == "127.0.0.1:9002"


def test_before_it_was_ever_ready_a_lack_is_a_start_and_no_degradation() -> None:
    seen = view(RESOLVED, replace(HEALTHY, state=CellState()), was_ready=False)
    assert seen.state == "Progressing" and "has not joined yet" in seen.sentence


def test_an_agent_behind_its_newest_assignment_is_not_ready() -> None:
    seen = view(RESOLVED, replace(HEALTHY, published={"a": G1, "b": G2}), was_ready=True)
    assert not seen.ready and seen.sentence == "agent b: has not carried out its newest assignment yet"
    refused = replace(a_report("b", 2), refused="it is for agent x")
    seen = view(
        RESOLVED,
        replace(HEALTHY, published={"a": G1, "b": G2}, reports={**HEALTHY.reports, "b": refused}),
        was_ready=True,
    )
    assert "refused its assignment: it is for agent x" in seen.sentence


def test_a_process_that_is_gone_is_seen_before_its_agent_says_so() -> None:
    seen = view(RESOLVED, replace(HEALTHY, broker_alive=lambda zone, pid: pid != 102), was_ready=True)
    assert [b["state"] for b in seen.plain["brokers"]] == ["Ready", "Exited"]


def test_a_held_broker_says_so() -> None:
    reports = {**HEALTHY.reports, "b": a_report("b", 2, state=ProcessState.HELD)}
    seen = view(RESOLVED, replace(HEALTHY, reports=reports), was_ready=True)
    assert seen.plain["brokers"][1]["state"] == "Held"


def test_without_a_live_controller_it_is_not_ready() -> None:
    seen = view(RESOLVED, replace(HEALTHY, state=replace(HEALTHY.state, controller=NodeEpoch(1, 2))), was_ready=True)
    assert not seen.ready and "no controller" in seen.sentence


def test_a_broker_on_another_wal_than_it_shall_have_serves_and_is_not_ready() -> None:
    other = broker(2)
    other.wal = WalState("regional-block", ["volume"], volume="main-b-2-wal")
    seen = view(
        RESOLVED, replace(HEALTHY, state=replace(HEALTHY.state, brokers={1: broker(1), 2: other})), was_ready=True
    )
    assert not seen.ready and seen.state == "Progressing", "a change that is meant is no degradation"
    assert [b["state"] for b in seen.plain["brokers"]] == ["Ready", "Switching"]
    assert seen.plain["brokers"][1]["walMode"] == "regional-block"
    assert seen.plain["bootstrapServers"] == "127.0.0.1:9001,127.0.0.1:9002", "it serves, and is given to clients"
    assert "b-2: serves on wal regional-block, and is to change to object" in seen.sentence


def test_a_dead_agent_is_shown_although_its_brokers_serve() -> None:
    seen = view(RESOLVED, replace(HEALTHY, agent_pid=lambda zone: 50 if zone == "a" else None), was_ready=True)
    assert seen.state == "Degraded" and seen.sentence == "agent b is down"
    assert [a["state"] for a in seen.plain["agents"]] == ["Running", "Down"]


def test_spare_brokers_are_shown_and_nothing_waits_for_them() -> None:
    autoscaled = resolve(load_texts([("s", SPEC.replace("brokers: 2", "brokers: 2, autoscale: {brokersMax: 4}"))]))
    both = {
        zone: replace(one, brokers=(*one.brokers, *a_report(zone, node, state=ProcessState.SPARE).brokers))
        for (zone, one), node in zip(HEALTHY.reports.items(), (3, 4), strict=True)
    }
    seen = view(autoscaled["main"], replace(HEALTHY, reports=both), was_ready=True)
    assert (seen.state, seen.sentence) == ("Ready", "2 brokers serve, 2 are spare")
    assert [b["state"] for b in seen.plain["brokers"]] == ["Ready", "Ready", "Spare", "Spare"]
    assert seen.plain["bootstrapServers"] == "127.0.0.1:9001,127.0.0.1:9002"

    # One that is needed starts, and then serves as the others do.
    starting = replace(both["a"], brokers=(*HEALTHY.reports["a"].brokers, *a_report("a", 3).brokers))
    begun = replace(HEALTHY, reports={**both, "a": starting})
    assert view(autoscaled["main"], begun, was_ready=True).ready
    serves = replace(begun, state=replace(HEALTHY.state, brokers={**HEALTHY.state.brokers, 3: broker(3)}))
    seen = view(autoscaled["main"], serves, was_ready=True)
    assert (seen.state, seen.sentence) == ("Ready", "3 brokers serve, 1 is spare")
    assert "127.0.0.1:9003" in seen.plain["bootstrapServers"]
