"""Object stores for tests: real server processes of the lab, and the in-memory store, behind one face.

`start_object_server(dialect, tmp_path)` gives a running server; `.address(bucket)` is what an adapter opens. End it
with `.close()` or as a context manager.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from providers.base.clock import SystemClock, SystemRng
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store

START_S_MAX = 20.0

ADMIN_TOKEN = "admin-of-the-test"

CREDENTIALS: dict[str, dict[str, Any]] = {
    "aliyun": {"access_key": "LABKEY", "secret_key": "lab-secret"},
    "s3": {"access_key": "LABKEY", "secret_key": "lab-secret"},
    "azure": {"account": "labaccount", "account_key": base64.b64encode(b"lab-key-of-thirty-two-bytes-long").decode()},
    "gcp": {"anonymous": True},
}

PROVIDER = {"aliyun": "aliyun", "azure": "azure", "gcp": "gcp", "s3": "aws"}


class ObjectServer:
    """A lab object server as a process of its own."""

    def __init__(self, dialect: str, tmp_path: Path) -> None:
        self.dialect = dialect
        self.root = tmp_path / "objects"
        self.credentials = tmp_path / "credentials.json"
        self.credentials.write_text(json.dumps({**CREDENTIALS[dialect], "admin_token": ADMIN_TOKEN}))
        self._ready = tmp_path / "ready.json"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def argv(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "providers.lab.objects_server", "--dialect", self.dialect),
            *("--root", str(self.root), "--port", str(port)),
            *("--credentials", str(self.credentials), "--ready-file", str(self._ready)),
        ]

    def start(self) -> None:
        """Start, on the same port as before if there was one, and return when it listens."""
        self._ready.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.argv(self.port))
        deadline = time.monotonic() + START_S_MAX
        while not self._ready.exists():
            assert self.process.poll() is None, "the object server ended at once"
            assert time.monotonic() < deadline, "the object server did not get ready"
            time.sleep(0.01)
        self.port = int(json.loads(self._ready.read_text())["port"])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def address(self, bucket: str, provider: str | None = None) -> StoreAddress:
        return StoreAddress(
            provider or PROVIDER[self.dialect], bucket, "us-east-1", self.endpoint, str(self.credentials)
        )

    def kill(self) -> None:
        """kill -9: no handler runs."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    def set_faults(self, *rules: dict[str, Any], seed: int = 0) -> None:
        """Replace the fault rules; none: all is well again. See `providers.lab.faults.Rule`."""
        self._admin("POST", json.dumps({"seed": seed, "rules": list(rules)}).encode())

    def requests(self) -> list[tuple[str, str, int]]:
        """The newest requests: method, target, status (0: no answer was sent)."""
        return [(method, target, status) for method, target, status in self._admin("GET", None)["requests"]]

    def _admin(self, method: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.endpoint}/-/faults", data=body, method=method)
        request.add_header("authorization", f"Bearer {ADMIN_TOKEN}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return dict(json.loads(answer.read()))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def __enter__(self) -> ObjectServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_object_server(dialect: str, tmp_path: Path) -> ObjectServer:
    """A running server of `aliyun`, `azure`, `gcp` or `s3`, its files under `tmp_path`."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    server = ObjectServer(dialect, tmp_path)
    server.start()
    return server


@dataclass(frozen=True)
class Kind:
    """An implementation of ObjectStore that the conformance suite runs over."""

    name: str
    dialect: str | None
    """None: in memory."""
    provider: str = ""
    bucket: str = ""
    appends: bool = False
    """S3 Express: appends, and lists in no order."""


KINDS = (
    Kind("memory", None),
    Kind("memory-express", None, appends=True),
    Kind("aliyun", "aliyun", "aliyun", "yunhe-aliyun"),
    Kind("azure", "azure", "azure", "yunhe-azure"),
    Kind("gcp", "gcp", "gcp", "yunhe-gcp"),
    Kind("aws", "s3", "aws", "yunhe-aws"),
    Kind("private", "s3", "private", "yunhe-private"),
    Kind("aws-express", "s3", "aws", "yunhe--use1-az4--x-s3", appends=True),
)


class Subject:
    """One kind, running: open as many stores onto its bucket as a test wants."""

    def __init__(self, kind: Kind, tmp_path: Path) -> None:
        self.kind = kind
        self.server = start_object_server(kind.dialect, tmp_path) if kind.dialect else None
        if self.server is None:
            from providers.memory.faults import World
            from providers.memory.objects import MemoryBucket

            self.world = World(SystemClock(), SystemRng())
            self.bucket = MemoryBucket(self.world, "bucket", append_supported=kind.appends)

    def open(self) -> ObjectStore:
        if self.server is None:
            from providers.memory.faults import Process
            from providers.memory.objects import MemoryObjectStore

            return MemoryObjectStore(Process(self.world, "test"), self.bucket)
        address = self.server.address(self.kind.bucket, self.kind.provider)
        return open_store(address, clock=SystemClock(), rng=SystemRng())

    def lose_answers(self, method: str = "") -> None:
        """From now on requests (of an HTTP method) are carried out and their answers lost."""
        if self.server is None:
            self.bucket.faults = replace(self.bucket.faults, lost_response=1.0, timeout_ms=20.0)
        else:
            self.server.set_faults({"method": method, "drop_answer": True})

    def heal(self) -> None:
        if self.server is None:
            from providers.memory.faults import CALM

            self.bucket.faults = CALM
            self.bucket.down = False
        else:
            self.server.set_faults()

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
