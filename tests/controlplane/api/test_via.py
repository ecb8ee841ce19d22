"""An upload by a topic that cannot be is refused with its place and what would do; one that can be is what both sides
are told."""

from __future__ import annotations

import pytest

from controlplane.api.load import load_texts
from controlplane.api.specs import Specs
from controlplane.plan.databases import resolve_databases
from controlplane.plan.model import Recorded
from controlplane.plan.plan import make_plan
from controlplane.plan.render import render_plan
from dataplane.contract.database import TopicSpec
from dataplane.contract.security import ListenerProtocol, Mechanism
from providers.base.errors import Invalid
from tests.scenario.test_topic_upload import SPEC

VIA = "via: {cluster: plant, topic: points, login: 'file:FOLDER/login.json', caFile: FOLDER/ca.pem}"
TABLE = "options: {appendMode: true, flushInterval: 1s}"
SECOND = """\
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: trucks}
spec: {role: edge, cloud: plant, edges: 1, upload: {to: %s, via: {cluster: plant, topic: points, login: 'file:l'}}}
"""


def loaded(text: str) -> Specs:
    return load_texts([("f.yaml", text)])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("via: {cluster: plant,", "via: {cluster: plent,", "did you mean plant"),
        ("topic: points,", "topic: point,", "did you mean points"),
        ("clusters: [plant], partitions: 2", "clusters: [plant], partitions: 17", "a database consumes 16"),
        ("login: 'file:FOLDER/login.json', ", "", "wants a login"),
        ("login: 'file:FOLDER/login.json'", "login: '{\"username\": 1}'", "no reference"),
        ("protocol: SASL_SSL\n", "protocol: SASL_PLAINTEXT\n", "tls is set although"),
        (VIA, f"keepLocal: 1h, {VIA}", "are for uploads to the bucket"),
        (TABLE, "options: {memtableBytes: 2MiB}", "would not fit into a topic's records"),
        ("metadata: {name: points}", "metadata: {name: others}", "no Topic is named points"),
    ],
)
def test_a_wrong_via_is_refused_and_says_why(old: str, new: str, says: str) -> None:
    assert old in SPEC
    with pytest.raises(Invalid) as refused:
        loaded(SPEC.replace(old, new))
    assert says in f"{refused.value} {refused.value.hint}"


def test_a_topic_is_for_one_database_and_several_edges_may_share_it() -> None:
    topics = resolve_databases(loaded(SPEC + SECOND % "fleet"))["fleet"].nodes[0].topics
    assert [t.edges for t in topics] == [("cars-1", "cars-2", "trucks-1")]
    other = SPEC[SPEC.index("---\napiVersion: yunhe.io/v1alpha1\nkind: Database") :].split("---\n")[1]
    with pytest.raises(Invalid, match="carries files for fleet, by cars"):
        loaded(SPEC + SECOND % "depot" + "---\n" + other.replace("name: fleet", "name: depot"))


def test_both_sides_are_told_of_one_topic() -> None:
    specs = loaded(SPEC)
    found = resolve_databases(specs)
    wanted = TopicSpec(
        "plant",
        "points",
        2,
        (),
        ListenerProtocol.SASL_SSL,
        Mechanism.SCRAM_SHA_512,
        "file:FOLDER/login.json",
        "FOLDER/ca.pem",
    )
    assert found["cars"].via == wanted
    assert [topic.cluster for node in found["fleet"].nodes for topic in node.topics] == ["plant", "plant"]
    assert found["fleet"].nodes[0].topics[0].edges == ("cars-1", "cars-2")
    plan = make_plan(specs, Recorded())
    assert "uploads to fleet through topic points of plant" in render_plan(plan)
    applied = plan.recorded_after()
    assert make_plan(specs, applied).empty
    grown = make_plan(loaded(SPEC.replace("partitions: 2", "partitions: 3")), applied)
    assert [a.kind for a in grown.actions] == ["Topic"], "databases take that over while they run"
    skips = make_plan(loaded(SPEC.replace("topic: points,", "topic: points, skipGone: true,")), applied)
    [action] = skips.actions
    assert action.what == "upload.via.skipGone false -> true" and action.downtime_ms == 0
