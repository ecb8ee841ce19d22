"""A real Kubernetes control plane on loopback, for tests: etcd and kube-apiserver, and on demand
kube-controller-manager, kube-scheduler and kwok's nodes. `tools/kube/build.sh` builds the programs.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client, config

from providers.base.clock import SystemRng
from providers.base.ports import free_ports

READY_TIMEOUT_S = 60.0
TOKEN = "token-of-the-tests"
BUILD = Path(__file__).parents[2] / "tools" / "kube" / "build.sh"


class CannotBuild(Exception):
    """The programs cannot be had on this machine; the text says why."""


def programs() -> Path:
    """The folder of the built programs; built now if need be, which takes minutes."""
    done = subprocess.run([BUILD], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotBuild(done.stderr.strip() or f"{BUILD.name} exited with {done.returncode}")
    return Path(done.stdout.strip())


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = READY_TIMEOUT_S) -> Any:
    """The first true value of `condition`, which may also raise meanwhile."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
            last = value
        except Exception as error:
            last = error
        time.sleep(0.03)
    raise AssertionError(f"{what}: not within {timeout_s} s; last: {last!r}")


class Cluster:
    """`start` starts etcd and the API server; `stop` ends whatever was started."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self._binaries = binaries
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd, self._peer, self._api = free_ports("127.0.0.1", 3, SystemRng())

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def kubectl(self) -> Path:
        return self._binaries / "kubectl"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._api}"

    def start(self) -> None:
        key = rsa.generate_private_key(65537, 2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.folder / "sa.key").write_bytes(private)
        (self.folder / "sa.pub").write_bytes(public)
        (self.folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        self.start_etcd()
        self.start_apiserver()
        self._write_kubeconfig()
        namespaces = client.CoreV1Api(self.api_client())
        eventually(lambda: namespaces.read_namespace("default"), "the namespace default")

    def start_etcd(self) -> None:
        url, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peer}"
        self._run(
            "etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--name", "one",
            "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}", "--log-level", "error",
        )  # fmt: skip
        eventually(lambda: urllib.request.urlopen(f"{url}/health", timeout=1).status == 200, "etcd")

    def start_apiserver(self) -> None:
        """Start it, or start it again: on the same port, over the same data."""
        self._run(
            "kube-apiserver", "--etcd-servers", f"http://127.0.0.1:{self._etcd}", "--bind-address", "127.0.0.1",
            "--advertise-address", "127.0.0.1", "--secure-port", str(self._api), "--cert-dir", str(self.folder / "pki"),
            "--service-account-key-file", str(self.folder / "sa.pub"),
            "--service-account-signing-key-file", str(self.folder / "sa.key"),
            "--service-account-issuer", "https://kubernetes.default.svc", "--token-auth-file",
            str(self.folder / "tokens.csv"), "--endpoint-reconciler-type", "none", "--authorization-mode", "RBAC",
            "--service-cluster-ip-range", "10.96.0.0/16", "--allow-privileged=true",
        )  # fmt: skip
        eventually(self._api_ready, "kube-apiserver")

    def stop_apiserver(self, number: int = signal.SIGKILL) -> None:
        self._end("kube-apiserver", number)

    def start_controllers(self) -> None:
        """kube-controller-manager and kube-scheduler, unless they run."""
        if "kube-scheduler" in self._running:
            return
        manager, scheduler = free_ports("127.0.0.1", 2, SystemRng())
        self._run(
            "kube-controller-manager", "--kubeconfig", str(self.kubeconfig), "--leader-elect=false",
            "--service-account-private-key-file", str(self.folder / "sa.key"),
            "--use-service-account-credentials=false",
            "--secure-port", str(manager), "--bind-address", "127.0.0.1", "--cert-dir", str(self.folder / "kcm"),
            "--node-monitor-period", "1s", "--node-monitor-grace-period", "60s",
        )  # fmt: skip
        self._run(
            "kube-scheduler", "--kubeconfig", str(self.kubeconfig), "--leader-elect=false",
            "--secure-port", str(scheduler), "--bind-address", "127.0.0.1", "--cert-dir", str(self.folder / "sched"),
        )  # fmt: skip

    def start_nodes(self, zones: dict[str, str]) -> None:
        """Fake nodes (name: zone), which kwok keeps Ready and whose pods it lets run."""
        if "kwok" not in self._running:
            stages = sorted((self._binaries / "stages").iterdir())
            self._run(
                "kwok", "--kubeconfig", str(self.kubeconfig), "--manage-all-nodes=true",
                *(part for stage in stages for part in ("--config", str(stage))),
            )  # fmt: skip
        core = client.CoreV1Api(self.api_client())
        for name, zone in zones.items():
            labels = {
                "topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name, "type": "kwok",
                "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            }  # fmt: skip
            resources = {"cpu": "64", "memory": "256Gi", "pods": "250"}
            node = {
                "metadata": {"name": name, "labels": labels},
                "status": {"capacity": resources, "allocatable": resources},
            }
            try:
                core.create_node(node)
            except client.ApiException as error:
                if error.status != 409:
                    raise

        def ready() -> bool:
            return all(
                any(c.type == "Ready" and c.status == "True" for c in core.read_node(n).status.conditions or [])
                for n in zones
            )

        eventually(ready, "kwok's nodes")

    def compact(self) -> None:
        """Have etcd forget every revision but the newest. Who is behind gets 410 after a restart of the API server,
        whose cache remembers for a while.
        """
        base = f"http://127.0.0.1:{self._etcd}/v3/kv"
        key = base64.b64encode(b"\0").decode()
        revision = _post(f"{base}/range", {"key": key, "limit": 1})["header"]["revision"]
        _post(f"{base}/compaction", {"revision": revision, "physical": True})

    def api_client(self) -> client.ApiClient:
        return config.new_client_from_config(str(self.kubeconfig))

    def stop(self) -> None:
        for name in reversed(list(self._running)):
            self._end(name, signal.SIGTERM if name == "etcd" else signal.SIGKILL)

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.log").open("ab") as log:
            self._running[program] = subprocess.Popen(
                [self._binaries / program, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                cwd=self.folder, env={**os.environ, "GOMAXPROCS": "2"},
            )  # fmt: skip

    def _end(self, program: str, number: int) -> None:
        process = self._running.pop(program)
        process.send_signal(number)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _api_ready(self) -> bool:
        process = self._running["kube-apiserver"]
        if process.poll() is not None:
            raise AssertionError((self.folder / "kube-apiserver.log").read_text()[-2000:])
        context = ssl.create_default_context(cafile=str(self.folder / "pki" / "apiserver.crt"))
        asked = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
        return bool(urllib.request.urlopen(asked, context=context, timeout=2).status == 200)

    def _write_kubeconfig(self) -> None:
        authority = base64.b64encode((self.folder / "pki" / "apiserver.crt").read_bytes()).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "tests", "cluster": {"server": self.url, "certificate-authority-data": authority}},
            ],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
            "current-context": "tests",
        }
        self.kubeconfig.write_text(yaml.safe_dump(document))
        self.kubeconfig.chmod(0o600)


def _post(url: str, body: dict[str, Any]) -> Any:
    with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=10) as answer:
        return json.loads(answer.read())
