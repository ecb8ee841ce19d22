"""What agents are told of databases, as values: trust that is not taken away, uploads that stay, peers, turns."""

from __future__ import annotations

from dataclasses import replace

from controlplane.api.databases import Upload
from controlplane.apply.render import Places
from controlplane.apply.render_databases import bare, node_specs, peers_of, staged_databases, with_databases
from controlplane.plan.databases import ResolvedDatabase
from dataplane.contract.assignment import AgentReport, DatabaseReport, Generation, ProcessState
from dataplane.contract.database import DatabaseRole, DatabaseSpec, UploadSpec
from providers.base.registry import StoreAddress

BUCKET = StoreAddress("private", "bucket", "site")
NODES = tuple(DatabaseSpec("fleet", f"fleet-{i}", DatabaseRole.CLOUD, zone) for i, zone in ((1, "a"), (2, "b")))
FLEET = ResolvedDatabase("fleet", "plant", DatabaseRole.CLOUD, NODES)
EDGE = DatabaseSpec("cars", "cars-1", DatabaseRole.EDGE, "a")
CARS = ResolvedDatabase("cars", "plant", DatabaseRole.EDGE, (EDGE,), Upload(to="fleet"), "yard")
OLD, NEW = Generation(1, 1), Generation(1, 2)


def test_an_edge_that_has_no_pin_here_keeps_the_trust_that_was_told_and_one_that_is_gone_loses_it() -> None:
    before = {"fleet-1": replace(NODES[0], trust={"kept": "01", "gone": "02", "changed": "03"})}
    pins = {"fleet": {"kept": "", "changed": "04", "new": "05"}}
    first, second = node_specs([FLEET], buckets={}, pins=pins, told=before)
    assert first.trust == {"changed": "04", "kept": "01", "new": "05"}
    assert second.trust == {"changed": "04", "new": "05"}


def test_an_edge_waits_for_its_targets_bucket_and_keeps_what_it_was_told_when_that_is_away() -> None:
    assert node_specs([CARS], buckets={}, pins={}, told={}) == []
    [told] = node_specs([CARS], buckets={"yard": BUCKET}, pins={}, told={})
    assert told.upload == UploadSpec("fleet", BUCKET)
    assert node_specs([CARS], buckets={}, pins={}, told={"cars-1": told}) == [told]


def said(state: ProcessState = ProcessState.RUNNING) -> DatabaseReport:
    return DatabaseReport("fleet", "fleet-1", 7, state, "h", 4000, 5000, "")


def test_peers_are_known_by_reports_or_else_by_what_was_told() -> None:
    agent = AgentReport("plant-a", "a", 1, "i", OLD, (), databases=(said(),))
    assert peers_of([FLEET, CARS], [agent], []) == {"fleet": {"fleet-1": "h:4000", "fleet-2": ""}}
    assignments = with_databases(bare("plant", ["a", "b"], Places(BUCKET)), NODES, {"fleet": {"fleet-2": "h:9"}})
    assert [d.node for d in assignments["plant-b"].databases] == ["fleet-2"]
    again = peers_of([FLEET], [agent], assignments.values())
    assert again == {"fleet": {"fleet-1": "h:4000", "fleet-2": "h:9"}}
    alone = replace(FLEET, nodes=NODES[:1])
    assert peers_of([alone], [agent], []) == {}, "a single node has nobody to hear"


def test_one_node_at_a_time_starts_anew_and_trust_waits_for_no_turn() -> None:
    told = {node.node: (node, OLD) for node in NODES}
    wanted = [replace(node, lease_ms=9, trust={"e": "01"}) for node in NODES]
    serving = {node.node: (replace(said(), node=node.node), OLD) for node in NODES}
    first, second = staged_databases(wanted, told, serving)
    assert (first.lease_ms, second.lease_ms, second.trust) == (9, 3_000, {"e": "01"})
    told["fleet-1"] = (wanted[0], NEW)
    assert staged_databases(wanted, told, serving)[1].lease_ms == 3_000, "the first has not carried it out yet"
    serving["fleet-1"] = (said(ProcessState.STARTING), NEW)
    assert staged_databases(wanted, told, serving)[1].lease_ms == 3_000
    serving["fleet-1"] = (said(), NEW)
    assert staged_databases(wanted, told, serving) == wanted
