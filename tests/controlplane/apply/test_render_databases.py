"""What agents are told of databases, as values: trust that is not taken away, uploads that stay, peers, turns."""

from __future__ import annotations

from dataclasses import replace

from controlplane.api.databases import Upload
from controlplane.apply.render import Places
from controlplane.apply.render_databases import bare, node_specs, peers_of, staged_databases, with_databases
from controlplane.plan.databases import ResolvedDatabase
from dataplane.contract.assignment import AgentReport, DatabaseReport, Generation, ProcessState
from dataplane.contract.database import DatabaseRole, DatabaseSpec, TopicSpec, UploadSpec, needs_restart
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


POINTS = TopicSpec("river", "points", 2, ())
BY_TOPIC = replace(
    CARS, via=POINTS, upload=Upload.model_validate({"to": "fleet", "via": {"cluster": "river", "topic": "points"}})
)
AT = {"river": ("h:1", "h:2")}


def test_an_edge_is_told_where_the_brokers_are_and_which_of_its_keys_is_known_without_a_restart() -> None:
    assert node_specs([BY_TOPIC], buckets={}, pins={}, told={}) == [], "it waits until brokers are known"
    [first] = node_specs([BY_TOPIC], buckets={}, pins={"fleet": {"cars-1": ""}}, told={}, brokers=AT)
    assert first.upload == UploadSpec("fleet", None, via=replace(POINTS, bootstrap=("h:1", "h:2")))
    assert first.pin is None
    told = {"cars-1": first}
    [pinned] = node_specs(
        [BY_TOPIC], buckets={}, pins={"fleet": {"cars-1": "ab"}}, told=told, brokers={"river": ("h:3",)}
    )
    assert pinned.pin == "ab" and pinned.upload is not None and pinned.upload.via is not None
    assert pinned.upload.via.bootstrap == ("h:3",) and not needs_restart(first, pinned)
    [kept] = node_specs([BY_TOPIC], buckets={}, pins={}, told={"cars-1": pinned})
    assert kept == pinned, "a control plane that begins anew takes nothing away"
    other = replace(BY_TOPIC, via=replace(POINTS, topic="others"))
    assert needs_restart(pinned, node_specs([other], buckets={}, pins={}, told={}, brokers=AT)[0])


def test_a_cloud_database_is_told_of_topics_whose_brokers_are_known() -> None:
    fleet = replace(FLEET, nodes=tuple(replace(n, topics=(POINTS, replace(POINTS, cluster="lake"))) for n in NODES))
    first, _ = node_specs([fleet], buckets={}, pins={}, told={}, brokers=AT)
    assert [(t.cluster, t.bootstrap) for t in first.topics] == [("river", ("h:1", "h:2"))]
    again, other = node_specs([fleet], buckets={}, pins={}, told={"fleet-1": first})
    assert again == first and other.topics == () and not needs_restart(other, replace(other, topics=first.topics))
