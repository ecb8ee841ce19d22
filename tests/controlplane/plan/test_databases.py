"""Plans of databases: empty after apply, honest about what restarts and what it costs, and no column lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.api.load import load_texts
from controlplane.cli.lab import cells_of
from controlplane.plan.model import Action, Recorded
from controlplane.plan.plan import Plan, make_plan
from controlplane.plan.render import plan_plain, render_plan
from providers.base.errors import Invalid

EXAMPLE = (Path(__file__).parents[3] / "examples" / "vehicle.yaml").read_text()
APPLIED = make_plan(load_texts([("f.yaml", EXAMPLE)]), Recorded()).recorded_after()


def planned(text: str, *, prune: bool = True) -> Plan:
    return make_plan(load_texts([("f.yaml", text)]), APPLIED, prune=prune)


def edited(old: str, new: str, count: int = 1) -> Plan:
    assert old in EXAMPLE
    return planned(EXAMPLE.replace(old, new, count))


def the(plan: Plan, kind: str, name: str) -> Action:
    [action] = [a for a in plan.actions if (a.kind, a.name) == (kind, name)]
    return action


def test_the_example_is_two_clouds_four_nodes_and_twenty_edges() -> None:
    plan = make_plan(load_texts([("f.yaml", EXAMPLE)]), Recorded())
    kinds = [a.kind for a in plan.actions]
    assert {k: kinds.count(k) for k in kinds} == {"Cloud": 2, "Database": 4, "DatabaseNode": 4}
    databases = plan_plain(plan)["databases"]
    assert [len(d["nodes"]) for d in databases if d["role"] == "edge"] == [10, 10]
    assert the(plan, "DatabaseNode", "fleet-us/fleet-us-1").monthly_usd == pytest.approx(119.136, abs=1)
    assert the(plan, "DatabaseNode", "fleet-hz/fleet-hz-1").monthly_usd is None, "not published is not nothing"
    assert "2 of unknown price" in render_plan(plan)
    for cell in cells_of(plan.desired):
        assert len(cell.zones) == 2, "a zone with databases has an agent, brokers or not"


def test_plan_is_empty_after_apply_and_the_hash_names_what_databases_say() -> None:
    assert planned(EXAMPLE).empty
    assert edited("lease: 3s", "lease: 4s").hash != edited("lease: 3s", "lease: 5s").hash


def test_what_is_read_at_the_start_restarts_the_nodes_one_after_the_other() -> None:
    action = the(edited("lease: 3s", "lease: 5s"), "Database", "fleet-hz")
    assert action.what == "lease 3s -> 5s; its nodes restart, one after the other" and action.downtime_ms > 0
    taken = the(edited("lease: 3s", "lease: 3s\n  createTables: true"), "Database", "fleet-hz")
    assert taken.what == "createTables unset -> true; its nodes restart, one after the other"
    edges = the(edited("keepLocal: 1h #", "keepLocal: 2h #"), "Database", "cars-hz")
    assert edges.what == "upload.keepLocal 1h -> 2h; 10 edges restart"


def test_a_new_column_is_named_for_the_cloud_and_for_the_edges_that_share_its_tables() -> None:
    plan = edited("{name: gear, type: uint8}", "{name: gear, type: uint8}\n        - {name: abs, type: bool}")
    for name in ("fleet-hz", "cars-hz"):
        assert "tables.powertrain 8 columns -> + abs bool" in the(plan, "Database", name).what
    assert [a.name for a in plan.actions] == ["fleet-hz", "cars-hz"]


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("        - {name: gear, type: uint8}\n", "", "f.yaml:4", "column gear would go"),
        ("{name: gear,", "{name: gears,", "spec.tables[0]", "column 8, the field gear, would be the field gears"),
        ("{name: gear, type: uint8}", "{name: gear, type: uint8, nullable: false}", "spec.tables[0]", "was nullable"),
        ("{name: module, type: uint8,", "{name: module, type: uint16,", "spec.tables[1]", "type of the tag module"),
        ("role: cloud\n  cloud: aliyun-hz", "role: cloud\n  cloud: aws-use1", "spec.cloud", "cannot move"),
        ("zones: [use1-az4, use1-az5]", "zones: [use1-az5, use1-az4]", "spec", "its disk would stay behind"),
        ("region: us-east-1", "region: us-west-2", "", "while"),
    ],
)
def test_what_would_leave_data_behind_is_refused(old: str, new: str, place: str, says: str) -> None:
    if "region" in old:
        text = EXAMPLE.replace(old, new).replace("use1-az4, use1-az5", "usw2-az1, usw2-az2")
    else:
        text = EXAMPLE.replace(old, new, 1)
    assert text != EXAMPLE
    with pytest.raises(Invalid) as caught:
        planned(text)
    assert place in caught.value.message and says in caught.value.message


def test_edges_and_nodes_come_and_go_by_name() -> None:
    fewer = the(edited("edges: 10", "edges: 8"), "Edges", "cars-hz")
    assert fewer.what == "stop: cars-hz-9, cars-hz-10; what is not uploaded stays on their flash"
    assert "cars-hz-11" in the(edited("edges: 10", "edges: 12"), "Edges", "cars-hz").what
    less = the(planned(EXAMPLE.replace("nodes: 2", "nodes: 1")), "DatabaseNode", "fleet-us/fleet-us-2")
    assert less.monthly_usd is not None and less.monthly_usd < 0
    more = the(planned(EXAMPLE.replace("nodes: 2", "nodes: 3")), "Database", "fleet-us")
    assert more.what == "nodes 2 -> 3; its nodes restart" and more.downtime_ms > 0


def test_deleting_says_what_stays_and_edges_go_before_their_target() -> None:
    clouds = "---".join(EXAMPLE.split("---")[:2])
    plan = planned(clouds)
    names = [a.name for a in plan.actions if a.kind == "Database"]
    assert names == ["cars-hz", "cars-us", "fleet-hz", "fleet-us"]
    assert "what it has in the bucket stays" in the(plan, "Database", "fleet-hz").what
    assert planned(clouds, prune=False).empty
