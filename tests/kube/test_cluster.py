"""What the other tests stand on: pods run on kwok's nodes, the API server comes back, etcd forgets."""

from __future__ import annotations

import pytest
from kubernetes import client

from controlplane.store.kube_api import Kube, core_path
from providers.base.errors import Invalid, Unavailable
from tests.kube.cluster import Cluster, eventually


def test_a_stateful_set_gets_ready_on_kwoks_nodes(cluster: Cluster, api: client.ApiClient, namespace: str) -> None:
    cluster.start_controllers()
    cluster.start_nodes({"node-a": "zone-a", "node-b": "zone-b"})
    apps = client.AppsV1Api(api)
    labels = {"app": "x"}
    spec = {
        "serviceName": "x",
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "none"}]}},
    }
    apps.create_namespaced_stateful_set(namespace, {"metadata": {"name": "x"}, "spec": spec})
    eventually(lambda: apps.read_namespaced_stateful_set("x", namespace).status.ready_replicas == 2, "two ready pods")


def test_the_api_server_comes_back_with_what_it_had(cluster: Cluster, namespace: str) -> None:
    kube = Kube(cluster.kubeconfig)
    kube.create(core_path(namespace, "configmaps"), {"metadata": {"name": "kept"}, "data": {"a": "1"}})
    cluster.stop_apiserver()
    with pytest.raises(Unavailable):
        kube.get(core_path(namespace, "configmaps", "kept"))
    cluster.start_apiserver()
    assert kube.get(core_path(namespace, "configmaps", "kept"))["data"] == {"a": "1"}
    kube.close()


def test_a_compacted_revision_is_gone(cluster: Cluster, namespace: str) -> None:
    kube = Kube(cluster.kubeconfig)
    maps = core_path(namespace, "configmaps")
    old = kube.create(maps, {"metadata": {"name": "a"}})["metadata"]["resourceVersion"]
    kube.create(maps, {"metadata": {"name": "b"}})
    cluster.compact()
    # Its cache would answer for etcd.
    cluster.stop_apiserver()
    cluster.start_apiserver()
    exactly = {"resourceVersion": old, "resourceVersionMatch": "Exact"}
    with pytest.raises(Invalid, match=r"(?i)compact|too old|expired"):
        kube.get(maps, **exactly)
    kube.close()
