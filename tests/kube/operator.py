"""An operator process over the tests' API server, and the resources that it carries out."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from controlplane.api.load import load_texts
from controlplane.cli.lab import Launch, cells_of, stop_everything
from controlplane.operator.chart import yaml_of
from controlplane.operator.manifests import NAME, Install, plain
from controlplane.server.files import StateDir
from controlplane.store.kube_api import Kube, core_path, resources_path
from providers.base.errors import NotFound
from tests.kube.cluster import Cluster, eventually

LEASE_S = 3.0

CLOUD = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [hall-a, hall-b]}
"""
CLUSTER = """\
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec: {cloud: plant, brokers: 2}
"""
TOPIC = """\
apiVersion: yunhe.io/v1alpha1
kind: Topic
metadata: {name: orders}
spec: {clusters: [main], partitions: 4}
"""


@dataclass
class Lab:
    """The clouds of a spec on this machine, with their agents, and without a control plane."""

    state_dir: StateDir

    def start(self, spec: str, *, agents: bool = False) -> None:
        cells = cells_of(load_texts([("spec.yaml", spec)]))
        if not agents:
            cells = [type(cell)(cell.name, cell.lab, cell.bucket, ()) for cell in cells]
        self.state_dir.create()
        Launch(self.state_dir).all(cells, timeout_s=60, control_plane=False)

    def stop(self) -> None:
        _, stuck = stop_everything(self.state_dir)
        assert not stuck


@dataclass
class Operator:
    """`python -m controlplane.operator`, replica by replica."""

    cluster: Cluster
    namespace: str
    folder: Path
    state_dir: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    arguments: tuple[str, ...] = ()
    kubeconfig: Path | None = None

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / f"operator-{len(self.running)}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "controlplane.operator", "--namespace", self.namespace,
                    "--kubeconfig", str(self.kubeconfig or self.cluster.kubeconfig), "--state-dir", str(self.state_dir),
                    "--host", "127.0.0.1", "--health-port", "0", "--webhook", "false",
                    "--lease-seconds", str(LEASE_S), *self.arguments,
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=dict(os.environ),
            )  # fmt: skip
        self.running.append(process)
        return process

    def log(self, number: int = -1) -> str:
        count = len(self.running)
        return (self.folder / f"operator-{number % count}.log").read_text()

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


@dataclass
class Resources:
    """What a user does with kubectl."""

    kube: Kube
    namespace: str

    def create(self, text: str) -> None:
        for document in yaml.safe_load_all(text):
            document["metadata"]["namespace"] = self.namespace
            self.kube.create(resources_path(self.namespace, document["kind"]), document)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.get(resources_path(self.namespace, kind, name))
        return found

    def patch(self, kind: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.patch(resources_path(self.namespace, kind, name), body)
        return found

    def annotate(self, kind: str, name: str, **annotations: str | None) -> None:
        named = {f"yunhe.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
        self.patch(kind, name, {"metadata": {"annotations": named}})

    def delete(self, kind: str, name: str) -> None:
        self.kube.delete(resources_path(self.namespace, kind, name))

    def gone(self, kind: str, name: str) -> bool:
        try:
            self.get(kind, name)
        except NotFound:
            return True
        return False

    def condition(self, kind: str, name: str, type_: str) -> dict[str, Any]:
        """Empty while it is not there."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((dict(c) for c in conditions if c["type"] == type_), {})

    def detail(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(kind, name).get("status", {}).get("detail", {})
        return found

    def until(self, what: str, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        return eventually(condition, what, timeout_s)

    def until_ready(self, kind: str, name: str) -> None:
        self.until(f"{kind} {name} Ready", lambda: self.condition(kind, name, "Ready").get("status") == "True")

    def events(self) -> list[dict[str, Any]]:
        return list(self.kube.listed(core_path(self.namespace, "events")))

    def recorded(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the operator has taken up, read from its ConfigMaps and not through its code."""
        try:
            head = _unpacked([self.kube.get(core_path(self.namespace, "configmaps", "yunhe-head"))])
            parts = [self.kube.get(core_path(self.namespace, "configmaps", part)) for part in head["recorded"]]
        except NotFound:
            return {}
        return {(kind, name): value for kind, name, value in _unpacked(parts)["specs"]} if parts else {}

    def leader(self) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/yunhe-operator"
        try:
            return str(self.kube.get(path)["spec"]["holderIdentity"])
        except NotFound:
            return ""


@contextmanager
def manifests_applied(cluster: Cluster, install: Install) -> Iterator[None]:
    """By kubectl, server-side, each field known to the API server; gone afterwards."""
    path = cluster.folder / f"{install.namespace}.yaml"
    path.write_text(yaml_of(plain(install)))
    command = [str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig)]
    server_side = ["apply", "--server-side", "--validate=strict", "-f", str(path)]
    for more in (["--dry-run=server"], []):
        done = subprocess.run([*command, *server_side, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        subprocess.run([*command, "delete", "-f", str(path), "--wait=false"], capture_output=True, check=True)


def account_kubeconfig(cluster: Cluster, namespace: str, folder: Path) -> Path:
    """A kubeconfig of the operator's own account, which has the rights of the manifests and no others."""
    with cluster.api_client() as api:
        body: Any = {"spec": {"expirationSeconds": 3600}}
        found: Any = client.CoreV1Api(api).create_namespaced_service_account_token(NAME, namespace, body)
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": found.status.token}
    path = folder / "account.kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def _unpacked(parts: list[dict[str, Any]]) -> Any:
    packed = b"".join(base64.b64decode(part["binaryData"]["z"]) for part in parts)
    return json.loads(zlib.decompress(packed))
