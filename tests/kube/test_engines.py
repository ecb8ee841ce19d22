"""Engines on a real API server, with its controllers and scheduler over kwok's nodes: what is rendered is taken, spread
over zones, rolled pod by pod, and made anew where a node is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from kubernetes import client

from controlplane.api.load import load_texts
from controlplane.operator.engines import Engines, Turn
from controlplane.operator.kube_api import KubeApi
from controlplane.plan.kubernetes import Rendered
from controlplane.plan.kubernetes_engines import render_engines
from controlplane.plan.resolve import resolve
from providers.base.errors import Invalid, NotFound
from tests.kube.cluster import Cluster, eventually
from tests.kube.upstream_crds import greptimedb_crds, strimzi_crds

ZONES = ("us-central1-a", "us-central1-b", "us-central1-c")
SETTLED_S = 50.0
"""Nine pods, one after the other, took eight seconds on a busy machine."""
NODES = {f"{zone}-{n}": zone for zone in ZONES for n in (1, 2, 3)}


def spec(namespace: str, *, cache: str = "512MiB", brokers: int = 6, deploy: str = "statefulsets") -> str:
    return f"""
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {{name: c}}
spec:
  provider: gcp
  region: us-central1
  zones: [{", ".join(ZONES)}]
  target: real
  real: {{bucket: streams}}
  kubernetes:
    namespace: {namespace}
    storageClass: manual-{namespace}
    credentialsSecret: bucket
    resources: {{cpu: 100m, memory: 128Mi}}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {{name: orders}}
spec:
  cloud: c
  brokers: {brokers}
  engine: automq
  automq: {{walCache: {cache}, deploy: {deploy}}}
"""


def agents(namespace: str) -> str:
    return (
        spec(namespace)
        .replace("  engine: automq\n", "")
        .replace("  automq: {walCache: 512MiB, deploy: statefulsets}\n", "")
        .replace(f"    namespace: {namespace}\n", f"    namespace: {namespace}\n    image: registry.example/yunhe:1\n")
    )


def database(namespace: str, nodes: int) -> str:
    return (
        spec(namespace).partition("---")[0]
        + f"""---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {{name: fleet}}
spec:
  role: cloud
  cloud: c
  engine: greptimedb
  nodes: {nodes}
  greptimedb: {{version: v1.0.0, etcd: ["etcd:2379"], kafka: ["orders:9092"]}}
"""
    )


def rendered(text: str) -> Rendered:
    specs = load_texts([("f.yaml", text)])
    [found] = render_engines(specs, resolve(specs))
    return found


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> Cluster:
    cluster.start_controllers()
    cluster.start_nodes(NODES)
    return cluster


@pytest.fixture
def core(api: client.ApiClient) -> client.CoreV1Api:
    return client.CoreV1Api(api)


@pytest.fixture
def volumes(nodes: Cluster, core: client.CoreV1Api, namespace: str) -> Iterator[None]:
    """Volumes of every zone, for the class that the spec names; kwok's nodes attach nothing."""
    name = f"manual-{namespace}"
    storage = client.StorageV1Api(core.api_client)
    kind = {"metadata": {"name": name}, "provisioner": "kubernetes.io/no-provisioner"}
    storage.create_storage_class({**kind, "volumeBindingMode": "WaitForFirstConsumer"})
    names = [f"{namespace}-{zone}-{n}" for zone in ZONES for n in range(5)]
    for volume in names:
        zone = volume.removeprefix(f"{namespace}-")[:-2]
        term = {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]}]}
        body = {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOncePod"],
            "storageClassName": name,
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": "test.example", "volumeHandle": volume},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        }
        core.create_persistent_volume({"metadata": {"name": volume}, "spec": body})
    yield
    for volume in names:
        core.delete_persistent_volume(volume)
    storage.delete_storage_class(name)


class World:
    """The engines under test, and what is there."""

    def __init__(self, core: client.CoreV1Api, namespace: str) -> None:
        self.engines = Engines(KubeApi(core.api_client))
        self.core = core
        self.namespace = namespace

    def turn(self, wanted: Rendered, owner: dict[str, Any] | None = None) -> Turn:
        return asyncio.run(self.engines.reconcile(wanted, owner))

    def settle(self, wanted: Rendered, watch: Callable[[], None] = lambda: None) -> list[str]:
        """Turns until all is settled; what each said."""
        said: list[str] = []

        def settled() -> bool:
            turn = self.turn(wanted)
            said.append(turn.sentence)
            watch()
            return turn.settled

        try:
            eventually(settled, "the engine is settled", SETTLED_S)
        except AssertionError as error:
            raise AssertionError("\n".join(dict.fromkeys(said))) from error
        return said

    def pods(self) -> dict[str, Any]:
        return {pod.metadata.name: pod for pod in self.core.list_namespaced_pod(self.namespace).items}

    def ready(self) -> set[str]:
        return {
            name
            for name, pod in self.pods().items()
            if pod.metadata.deletion_timestamp is None
            and any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
        }


@pytest.fixture
def world(core: client.CoreV1Api, namespace: str) -> World:
    return World(core, namespace)


def test_brokers_are_spread_over_zones_and_become_ready(volumes: None, world: World) -> None:
    world.settle(rendered(spec(world.namespace)))
    pods = world.pods()
    assert len(pods) == 9
    for zone in ZONES:
        there = [pod for name, pod in pods.items() if name.startswith(f"orders-{zone}")]
        assert {NODES[pod.spec.node_name] for pod in there} == {zone}
        assert len({pod.spec.node_name for pod in there}) == 2
    controllers = [pod for name, pod in pods.items() if name.startswith("orders-controller")]
    assert {NODES[pod.spec.node_name] for pod in controllers} == set(ZONES)


def test_a_change_is_rolled_one_pod_at_a_time_and_zone_by_zone(volumes: None, world: World) -> None:
    world.settle(rendered(spec(world.namespace)))
    before = {name: pod.metadata.uid for name, pod in world.pods().items()}
    fewest = [9]

    def watch() -> None:
        fewest[0] = min(fewest[0], len(world.ready()))

    said = world.settle(rendered(spec(world.namespace, cache="1GiB")), watch)
    after = {name: pod.metadata.uid for name, pod in world.pods().items()}
    assert set(before) == set(after)
    assert not set(before.values()) & set(after.values())
    assert fewest[0] >= 8
    order = [sentence.split()[1] for sentence in said if sentence.startswith("rolls ")]
    brokers = [name.rpartition("-")[0] for name in order if "controller" not in name]
    assert len(order) == len(set(order)) == 9
    assert ["controller" in name for name in order] == [True] * 3 + [False] * 6
    assert brokers == [f"orders-{zone}" for zone in ZONES for _ in (0, 1)]


def test_a_lost_nodes_pod_is_made_anew_in_its_zone_once_its_volume_is_free(volumes: None, world: World) -> None:
    wanted = rendered(spec(world.namespace))
    world.settle(wanted)
    victim = world.pods()[f"orders-{ZONES[0]}-0"]
    lost = victim.spec.node_name
    claim = world.core.read_namespaced_persistent_volume_claim(f"data-{victim.metadata.name}", world.namespace)
    storage = client.StorageV1Api(world.core.api_client)
    attachment = {
        "metadata": {"name": f"held-{world.namespace}"},
        "spec": {
            "attacher": "test.example",
            "nodeName": lost,
            "source": {"persistentVolumeName": claim.spec.volume_name},
        },
    }
    storage.create_volume_attachment(attachment)
    world.core.delete_node(lost)
    try:
        turn = world.turn(wanted)
        name = victim.metadata.name
        assert f"{name} waits: the volume of data-{name} is still attached to the lost {lost}" in turn.sentence
        storage.delete_volume_attachment(f"held-{world.namespace}")
        said = world.settle(wanted)
        assert any(f"makes {victim.metadata.name} anew: its node {lost} is lost" in sentence for sentence in said)
        back = world.pods()[victim.metadata.name]
        assert back.metadata.uid != victim.metadata.uid
        assert back.spec.node_name != lost
        assert NODES[back.spec.node_name] == ZONES[0]
    finally:
        _give_back(world, lost)  # the nodes are all tests'


def _give_back(world: World, node: str) -> None:
    labels = {"topology.kubernetes.io/zone": NODES[node], "kubernetes.io/hostname": node, "type": "kwok"}
    amounts = {"cpu": "64", "memory": "256Gi", "pods": "250"}
    status = {"capacity": amounts, "allocatable": amounts}
    world.core.create_node({"metadata": {"name": node, "labels": labels}, "status": status})


def test_what_is_no_longer_rendered_goes_and_its_claims_stay(volumes: None, world: World) -> None:
    world.settle(rendered(spec(world.namespace)))
    kept = world.core.create_namespaced_config_map(world.namespace, {"metadata": {"name": "somebody-elses"}})
    fewer = rendered(spec(world.namespace, brokers=2))
    said = world.settle(fewer)
    assert any(f"removed StatefulSet orders-{ZONES[2]}" in sentence for sentence in said)
    eventually(lambda: len(world.pods()) == 5, "the pods of a zone and of second brokers go")
    claims = world.core.list_namespaced_persistent_volume_claim(world.namespace).items
    assert len(claims) == 9
    asyncio.run(world.engines.retire(world.namespace, fewer.of))
    assert asyncio.run(world.engines.retire(world.namespace, fewer.of)).settled
    eventually(lambda: not world.pods(), "all pods go")
    assert len(world.core.list_namespaced_persistent_volume_claim(world.namespace).items) == 9
    assert world.core.read_namespaced_config_map("somebody-elses", world.namespace).metadata.uid == kept.metadata.uid


def test_an_unchanged_spec_changes_nothing_and_a_foreign_edit_is_put_right(volumes: None, world: World) -> None:
    wanted = rendered(spec(world.namespace))
    world.settle(wanted)
    apps = client.AppsV1Api(world.core.api_client)

    def versions() -> dict[str, str]:
        sets = apps.list_namespaced_stateful_set(world.namespace).items
        return {s.metadata.name: str(s.metadata.generation) for s in sets}

    before = versions()
    assert world.turn(wanted).sentence == "all is as it should be"
    assert versions() == before
    name = f"orders-{ZONES[1]}"
    apps.patch_namespaced_stateful_set_scale(name, world.namespace, {"spec": {"replicas": 0}})
    world.settle(wanted)
    assert apps.read_namespaced_stateful_set(name, world.namespace).spec.replicas == 2


def test_agents_run_a_pod_a_zone_and_belong_to_their_custom_resource(volumes: None, world: World) -> None:
    owner = world.core.create_namespaced_config_map(world.namespace, {"metadata": {"name": "stands-for-the-cr"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "stands-for-the-cr", "uid": owner.metadata.uid}
    wanted = rendered(agents(world.namespace))
    world.turn(wanted, reference)
    eventually(lambda: len(world.ready()) == 3, "an agent a zone is ready")
    assert {NODES[pod.spec.node_name] for pod in world.pods().values()} == set(ZONES)
    world.core.delete_namespaced_config_map("stands-for-the-cr", world.namespace)
    eventually(lambda: not world.pods(), "what belongs to the resource goes with it")


def test_a_refused_object_prunes_nothing(nodes: Cluster, world: World) -> None:
    wanted = rendered(spec(world.namespace))
    world.turn(wanted)
    broken = [dict(m) for m in wanted.manifests]
    broken[-1] = {**broken[-1], "spec": {**broken[-1]["spec"], "replicas": -1}}
    with pytest.raises(Invalid, match="greater than or equal to 0"):
        world.turn(replace(wanted, manifests=tuple(broken[1:])))
    assert {c.metadata.name for c in world.core.list_namespaced_config_map(world.namespace).items} >= {
        "orders-controller",
        *(f"orders-{zone}" for zone in ZONES),
    }


def test_upstream_objects_are_taken_by_their_documented_keys_alone(
    nodes: Cluster, world: World, api: client.ApiClient
) -> None:
    extensions = client.ApiextensionsV1Api(api)
    with pytest.raises(NotFound, match="is not known to this cluster"):
        world.turn(rendered(spec(world.namespace, deploy="strimzi")))
    for crd in (*strimzi_crds(), *greptimedb_crds()):
        extensions.create_custom_resource_definition(crd)
    objects = client.CustomObjectsApi(api)
    wants = [spec(world.namespace, deploy="strimzi"), database(world.namespace, 1), database(world.namespace, 3)]
    for text in wants:
        wanted = rendered(text)
        eventually(lambda wanted=wanted: world.turn(wanted), "the new kinds are served")
        for manifest in wanted.manifests:
            group, _, version = manifest["apiVersion"].partition("/")
            plural = f"{manifest['kind'].lower()}s"
            there = objects.get_namespaced_custom_object(
                group, version, world.namespace, plural, manifest["metadata"]["name"]
            )
            assert there["spec"] == manifest["spec"]
    unknown = dict(wanted.manifests[0])
    unknown["spec"] = {**unknown["spec"], "wal": {"noop": {}}}
    with pytest.raises(Invalid, match=r"noop: field not declared in schema"):
        world.turn(replace(wanted, manifests=(unknown,)))
