"""The operator keeps its promises on a real API server, killed, paused, edited and deleted under."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from controlplane.api.load import load_texts
from controlplane.operator.manifests import Install
from controlplane.server.files import StateDir
from controlplane.store.kube_api import Kube, resources_path
from providers.base.errors import Conflict, Invalid
from providers.lab.processes import ProcessTable
from tests.kube.cluster import Cluster
from tests.kube.crds import install
from tests.kube.operator import (
    CLOUD,
    CLUSTER,
    TOPIC,
    Lab,
    Operator,
    Resources,
    account_kubeconfig,
    manifests_applied,
)
from tests.kube.test_engines import ZONES, spec


@pytest.fixture
def resources(cluster: Cluster, namespace: str) -> Iterator[Resources]:
    with cluster.api_client() as api:
        install(api)
    kube = Kube(cluster.kubeconfig)
    yield Resources(kube, namespace)
    kube.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(StateDir(tmp_path / "state"))
    yield made
    made.stop()


@pytest.fixture
def operator(cluster: Cluster, namespace: str, tmp_path: Path, lab: Lab) -> Iterator[Operator]:
    made = Operator(cluster, namespace, tmp_path, lab.state_dir.root)
    yield made
    made.end()


def test_resources_become_a_cluster_that_serves_and_go_without_a_trace(
    lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD + "---\n" + CLUSTER, agents=True)
    operator.start()
    resources.create("---\n".join((CLOUD, CLUSTER, TOPIC)))
    for kind, name in (("Cloud", "plant"), ("BrokerCluster", "main"), ("Topic", "orders")):
        resources.until_ready(kind, name)
    assert resources.get("BrokerCluster", "main")["status"]["replicas"] == 2
    for kind, name in (("Cloud", "plant"), ("BrokerCluster", "main"), ("Topic", "orders")):
        resources.delete(kind, name)
    for kind, name in (("Topic", "orders"), ("BrokerCluster", "main"), ("Cloud", "plant")):
        resources.until(f"{kind} {name} is gone", lambda kind=kind, name=name: resources.gone(kind, name))
    assert operator.running[0].poll() is None
    operator.running[0].send_signal(signal.SIGTERM)
    assert operator.running[0].wait(20) == 0
    assert resources.leader() == "", "the lease is given up at the end"


def test_a_bad_resource_is_told_in_the_clis_words_and_holds_up_no_other(
    lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD)
    operator.start()
    resources.create(TOPIC)  # its cluster is not there
    resources.create(CLOUD)
    resources.until_ready("Cloud", "plant")
    degraded = resources.until("Topic refused", lambda: resources.condition("Topic", "orders", "Degraded"))
    specs = load_texts([("x.yaml", CLOUD)])
    with pytest.raises(Invalid) as said:
        load_texts([("x.yaml", TOPIC)], known=specs)
    words = said.value.message.partition("spec.clusters")[2]
    assert degraded["reason"] == "Refused" and words and words in degraded["message"]
    assert any(e["reason"] == "Refused" and e["type"] == "Warning" for e in resources.events())
    resources.create(CLUSTER)
    resources.until("Topic taken up", lambda: resources.condition("Topic", "orders", "Degraded")["status"] == "False")
    # An update that cannot be carried out leaves what runs as it was.
    resources.patch("Topic", "orders", {"spec": {"clusters": ["main", "nowhere"]}})
    refused = resources.until("update refused", lambda: _refused(resources, "Topic", "orders"))
    assert "no BrokerCluster is named nowhere" in refused["message"]
    found = resources.get("Topic", "orders")
    assert found["status"]["observedGeneration"] < found["metadata"]["generation"]
    assert resources.recorded()["Topic", "orders"]["spec"]["clusters"] == ["main"]


def _refused(resources: Resources, kind: str, name: str) -> dict[str, Any] | None:
    found = resources.condition(kind, name, "Degraded")
    return found if found.get("reason") == "Refused" else None


def test_a_leader_that_is_killed_in_the_middle_is_followed_by_the_other_replica(
    lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD + "---\n" + CLUSTER, agents=True)
    first = operator.start()
    holder = resources.until("a leader", resources.leader)
    second = operator.start()
    resources.create("---\n".join((CLOUD, CLUSTER, TOPIC)))
    resources.until("a plan is accepted", lambda: resources.recorded())
    first.kill()
    resources.until("the other leads", lambda: resources.leader() not in ("", holder))
    for kind, name in (("Cloud", "plant"), ("BrokerCluster", "main"), ("Topic", "orders")):
        resources.until_ready(kind, name)
    assert second.poll() is None
    assert sorted(resources.recorded()) == [("BrokerCluster", "main"), ("Cloud", "plant"), ("Topic", "orders")]


def test_a_frozen_leader_writes_nothing_once_another_leads(lab: Lab, operator: Operator, resources: Resources) -> None:
    lab.start(CLOUD)
    first = operator.start()
    holder = resources.until("a leader", resources.leader)
    resources.create(CLOUD)
    resources.until_ready("Cloud", "plant")
    first.send_signal(signal.SIGSTOP)
    operator.start()
    resources.until("the other leads", lambda: resources.leader() not in ("", holder))
    resources.create(CLUSTER)
    resources.until("the other works", lambda: ("BrokerCluster", "main") in resources.recorded())
    first.send_signal(signal.SIGCONT)
    assert first.wait(30) == 1, "it ends, so that nothing of what it believed is left"


def test_resources_are_taken_up_after_the_api_server_was_away_and_etcd_has_forgotten(
    cluster: Cluster, lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD)
    operator.arguments = ("--lease-seconds", "15")
    process = operator.start()
    resources.create(CLOUD)
    resources.until_ready("Cloud", "plant")
    cluster.stop_apiserver()
    cluster.compact()
    cluster.start_apiserver()
    resources.create(CLUSTER)
    resources.until("taken up", lambda: ("BrokerCluster", "main") in resources.recorded())
    resources.until_ready("Cloud", "plant")
    # An outage longer than the lease ends it; whoever runs it starts it anew.
    cluster.stop_apiserver()
    try:
        assert process.wait(30) == 1
        assert "was not renewed" in operator.log()
    finally:
        cluster.start_apiserver()
    operator.start()
    resources.create(TOPIC)
    resources.until("taken up", lambda: ("Topic", "orders") in resources.recorded())


def test_of_two_who_edit_one_resource_the_later_stands_whole(
    lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD)
    operator.start()
    resources.create(CLOUD + "---\n" + CLUSTER)
    resources.until("taken up", lambda: ("BrokerCluster", "main") in resources.recorded())
    seen = resources.get("BrokerCluster", "main")
    resources.patch("BrokerCluster", "main", {"spec": {"brokers": 3}})
    late = {**seen, "spec": {**seen["spec"], "brokers": 4}}
    with pytest.raises(Conflict):
        resources.kube.replace(resources_path(resources.namespace, "BrokerCluster", "main"), late)
    for brokers in (5, 6, 4):
        resources.patch("BrokerCluster", "main", {"spec": {"brokers": brokers}})

    def settled() -> bool:
        found = resources.get("BrokerCluster", "main")
        return bool(found["status"].get("observedGeneration") == found["metadata"]["generation"])

    resources.until("the last edit counts", settled)
    assert resources.recorded()["BrokerCluster", "main"]["spec"]["brokers"] == 4


def test_a_resource_deleted_while_it_is_applied_leaves_nothing(
    lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD + "---\n" + CLUSTER, agents=True)
    operator.start()
    resources.create("---\n".join((CLOUD, CLUSTER, TOPIC)))
    resources.until("a plan is accepted", lambda: resources.recorded())
    for kind, name in (("Cloud", "plant"), ("BrokerCluster", "main"), ("Topic", "orders")):
        resources.delete(kind, name)
    for kind, name in (("Topic", "orders"), ("BrokerCluster", "main"), ("Cloud", "plant")):
        resources.until(f"{kind} {name} is gone", lambda kind=kind, name=name: resources.gone(kind, name))
    assert resources.recorded() == {}
    running = [Path(f"/proc/{p.pid}/cmdline").read_bytes() for p in ProcessTable(lab.state_dir.root).everything()]
    assert running and not [line for line in running if b"dataplane.broker" in line]


def test_a_deletion_that_others_need_waits_and_says_for_whom(
    lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD)
    operator.start()
    resources.create("---\n".join((CLOUD, CLUSTER, TOPIC)))
    resources.until("taken up", lambda: len(resources.recorded()) == 3)
    resources.delete("BrokerCluster", "main")
    waits = resources.until(
        "it says why", lambda: _because(resources.condition("BrokerCluster", "main", "Progressing"), "InUse")
    )
    assert "Topic orders" in waits["message"]
    resources.delete("Topic", "orders")
    resources.until("both go", lambda: resources.gone("BrokerCluster", "main") and resources.gone("Topic", "orders"))


def _because(condition: dict[str, Any], reason: str) -> dict[str, Any] | None:
    return condition if condition.get("reason") == reason else None


def test_a_paused_resource_waits_until_its_time_and_its_deletion_with_it(
    lab: Lab, operator: Operator, resources: Resources
) -> None:
    lab.start(CLOUD)
    operator.start()
    resources.create(CLOUD + "---\n" + CLUSTER)
    resources.until("taken up", lambda: ("BrokerCluster", "main") in resources.recorded())
    resources.annotate("BrokerCluster", "main", paused_until="true")
    resources.patch("BrokerCluster", "main", {"spec": {"brokers": 4}})
    resources.until(
        "it says so", lambda: _because(resources.condition("BrokerCluster", "main", "Progressing"), "Paused")
    )
    resources.create(TOPIC)  # others go on, over what the paused one was
    resources.until("the topic is taken up", lambda: ("Topic", "orders") in resources.recorded())
    assert resources.recorded()["BrokerCluster", "main"]["spec"]["brokers"] == 2
    until = datetime.now(UTC) + timedelta(seconds=2)
    resources.annotate("BrokerCluster", "main", paused_until=until.isoformat())
    resources.until("its time has come", lambda: resources.recorded()["BrokerCluster", "main"]["spec"]["brokers"] == 4)
    assert datetime.now(UTC) >= until


def test_with_approve_a_plan_waits_for_its_hash(lab: Lab, operator: Operator, resources: Resources) -> None:
    lab.start(CLOUD)
    operator.arguments = ("--approve",)
    operator.start()
    resources.create(CLOUD)
    waits = resources.until(
        "it waits", lambda: _because(resources.condition("Cloud", "plant", "Progressing"), "AwaitsApproval")
    )
    shown = re.search(r"plan ([0-9a-f]{8}) waits", waits["message"])
    assert shown is not None
    resources.annotate("Cloud", "plant", approve="00000000")
    assert resources.recorded() == {}
    resources.annotate("Cloud", "plant", approve=shown[1])
    resources.until_ready("Cloud", "plant")
    resources.patch("Cloud", "plant", {"spec": {"zones": ["hall-a", "hall-b", "hall-c"]}})
    resources.until(
        "an old approval is not for a new plan",
        lambda: _because(resources.condition("Cloud", "plant", "Progressing"), "AwaitsApproval"),
    )


def test_one_spec_gives_one_plan_through_three_doors(
    resources: Resources, operator: Operator, lab: Lab, tmp_path: Path
) -> None:
    """The command line's plan, the operator's, and the hash that Pulumi's preview shows (tests/stacks holds that to the
    command line's) are one."""
    text = (Path(__file__).parents[2] / "examples" / "four-clouds.yaml").read_text()
    (tmp_path / "spec.yaml").write_text(text)
    shown = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", "plan", str(tmp_path / "spec.yaml"), "-o", "json"],
        env={**os.environ, "YUNHE_STATE_DIR": str(tmp_path / "empty")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 2, shown.stderr
    operator.arguments = ("--approve",)
    resources.create(text)
    operator.start()  # now, so that it sees all of it at once
    first = next(yaml.safe_load_all(text))
    kind, name = first["kind"], first["metadata"]["name"]
    waits = resources.until(
        "it waits", lambda: _because(resources.condition(kind, name, "Progressing"), "AwaitsApproval")
    )
    assert f"plan {json.loads(shown.stdout)['plan'][:8]} waits" in waits["message"]


def test_the_rights_of_the_manifests_are_enough(
    cluster: Cluster, lab: Lab, operator: Operator, resources: Resources, api: client.ApiClient, tmp_path: Path
) -> None:
    """An engine in the operator's own namespace, and one in another that the manifests name."""
    lab.start(CLOUD)
    elsewhere = f"{resources.namespace}-engines"
    client.CoreV1Api(api).create_namespace({"metadata": {"name": elsewhere}})
    rights = Install(
        namespace=resources.namespace, engine_namespaces=(elsewhere,), webhook=False, priority_classes=False
    )
    with manifests_applied(cluster, rights):
        operator.kubeconfig = account_kubeconfig(cluster, resources.namespace, tmp_path)
        operator.start()
        there = spec(elsewhere, brokers=3).replace("name: c}", "name: d}").replace("cloud: c", "cloud: d")
        there = there.replace("bucket: streams", "bucket: other").replace("orders", "parcels")
        resources.create("---\n".join((CLOUD, spec(resources.namespace, brokers=3), there)))
        resources.until_ready("Cloud", "plant")
        for name in ("orders", "parcels"):
            resources.until(
                "its engine",
                lambda name=name: f"{name}-" in resources.get("BrokerCluster", name)["status"]["sentence"],
            )
        apps = client.AppsV1Api(api)
        assert len(apps.list_namespaced_stateful_set(elsewhere).items) == 4
        objects = (("BrokerCluster", "orders"), ("BrokerCluster", "parcels"), ("Cloud", "c"), ("Cloud", "d"))
        for kind, name in (*objects, ("Cloud", "plant")):
            resources.delete(kind, name)
            resources.until(f"{name} goes", lambda kind=kind, name=name: resources.gone(kind, name))
        assert not apps.list_namespaced_stateful_set(elsewhere).items
    client.CoreV1Api(api).delete_namespace(elsewhere)
    assert "forbidden" not in operator.log()


def test_an_engine_on_kubernetes_is_made_for_its_resource_and_goes_with_it(
    cluster: Cluster, resources: Resources, operator: Operator, api: client.ApiClient
) -> None:
    cluster.start_controllers()
    cluster.start_nodes({f"{zone}-{n}": zone for zone in ZONES for n in (1, 2, 3)})
    operator.start()
    namespace, apps = resources.namespace, client.AppsV1Api(api)
    resources.create(spec(namespace, brokers=3))

    def owners() -> dict[str, str]:
        sets = apps.list_namespaced_stateful_set(namespace).items
        return {s.metadata.name: s.metadata.owner_references[0].uid for s in sets}

    uid = resources.get("BrokerCluster", "orders")["metadata"]["uid"]
    wanted = dict.fromkeys(("orders-controller", *(f"orders-{zone}" for zone in ZONES)), uid)
    resources.until("its StatefulSets", lambda: owners() == wanted)
    # Its pods wait for volumes, which this cluster has none of, and the resource says what is waited for.
    resources.until(
        "it says so", lambda: "orders-" in resources.condition("BrokerCluster", "orders", "Ready")["message"]
    )
    resources.patch("BrokerCluster", "orders", {"spec": {"brokers": 2}})
    resources.until("a zone's set goes", lambda: len(owners()) == 3)
    for kind, name in (("Cloud", "c"), ("BrokerCluster", "orders")):
        resources.delete(kind, name)
    resources.until("both go", lambda: resources.gone("Cloud", "c") and resources.gone("BrokerCluster", "orders"))
    assert not owners()
    core = client.CoreV1Api(api)
    assert not core.list_namespaced_service(namespace).items
