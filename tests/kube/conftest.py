"""One Kubernetes control plane a test process; a namespace a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from kubernetes import client

from tests.kube.cluster import CannotBuild, Cluster, programs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """etcd and kube-apiserver. `start_controllers` and `start_nodes` add the rest."""
    try:
        binaries = programs()
    except CannotBuild as error:
        pytest.skip(f"no Kubernetes control plane here: {error}")
    running = Cluster(tmp_path_factory.mktemp("kube"), binaries)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def kubeconfig(cluster: Cluster) -> Path:
    return cluster.kubeconfig


@pytest.fixture
def api(cluster: Cluster) -> Iterator[client.ApiClient]:
    with cluster.api_client() as opened:
        yield opened


@pytest.fixture
def namespace(api: client.ApiClient) -> Iterator[str]:
    """A new namespace; what is in it goes with the test's control plane."""
    name = f"t-{uuid4().hex[:10]}"
    client.CoreV1Api(api).create_namespace({"metadata": {"name": name}})
    yield name
    client.CoreV1Api(api).delete_namespace(name)
