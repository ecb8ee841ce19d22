"""Object stores for tests: in memory, real server processes of the lab, and judges that nobody here wrote, behind one
face.

`start_object_server(dialect, tmp_path)` gives a running server of the lab; `.address(bucket)` is what an adapter opens.
End it with `.close()` or as a context manager. A `Kind` is a store that the conformance suite runs over, a `Subject`
one that runs; what is not the lab's is in `tests/conformance/judges/`.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from providers.base.clock import SystemClock, SystemRng
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store
from tests.conformance.google_keys import service_account

START_S_MAX = 20.0

ADMIN_TOKEN = "admin-of-the-test"

CREDENTIALS: dict[str, dict[str, Any]] = {
    "aliyun": {"access_key": "LABKEY", "secret_key": "lab-secret"},
    "s3": {"access_key": "LABKEY", "secret_key": "lab-secret"},
    "azure": {"account": "labaccount", "account_key": base64.b64encode(b"lab-key-of-thirty-two-bytes-long").decode()},
    "gcp": {"service_account": service_account("lab-project", "yunhe")},
}

PROVIDER = {"aliyun": "aliyun", "azure": "azure", "gcp": "gcp", "s3": "aws"}


class ObjectServer:
    """A lab object server as a process of its own."""

    def __init__(self, dialect: str, tmp_path: Path, credentials: Mapping[str, Any] | None = None) -> None:
        self.dialect = dialect
        self.root = tmp_path / "objects"
        self.credentials = tmp_path / "credentials.json"
        self.credentials.write_text(json.dumps({**(credentials or CREDENTIALS[dialect]), "admin_token": ADMIN_TOKEN}))
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

    def skew_clock(self, skew_ms: int) -> None:
        """The server's clock is so far ahead, from now on."""
        fault = {"id": "skew", "kind": "clock-skew", "skew_ms": skew_ms, "for_ms": 600_000}
        self._admin("POST", json.dumps({"add": [fault]}).encode())

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


def start_object_server(dialect: str, tmp_path: Path, credentials: Mapping[str, Any] | None = None) -> ObjectServer:
    """A running server of `aliyun`, `azure`, `gcp` or `s3`, its files under `tmp_path`; `credentials` instead of the
    suite's own."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    server = ObjectServer(dialect, tmp_path, credentials)
    server.start()
    return server


class Judge(Protocol):
    """A running object store with the bucket that a kind names, or one that the adapter may create."""

    def address(self, bucket: str, provider: str | None = None) -> StoreAddress:
        """What an adapter opens."""
        ...

    def close(self) -> None:
        """End it; nothing of it stays."""
        ...


class NotInstallable(Exception):
    """A judge cannot be had on this machine; its tests are skipped with this reason."""


@dataclass(frozen=True)
class Kind:
    """An implementation of ObjectStore that the conformance suite runs over."""

    name: str
    dialect: str | None
    """The lab's, when it is the lab's server; None: in memory, or a judge's."""
    provider: str = ""
    bucket: str = ""
    appends: bool = False
    """It has appends, to objects born by `create_appendable`."""
    express: bool = False
    """S3 Express: every object takes appends, and listings are in no order."""
    judge: Callable[[Path], Judge] | None = None
    """Starts a judge with its files under a folder, or raises NotInstallable. None: the lab, or in memory."""
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Tests that are expected to fail, each with its reason: by name, or by name with its parameters, `test_x[4096]`,
    this kind's own left out. An unexpected success is a failure."""
    races: frozenset[str] = frozenset()
    """Of the gaps, those that a race decides: such a test fails only at times."""
    prefix: str = ""
    """Put before every key: a run's own id where the bucket is not the suite's own."""
    creates_bucket: bool = True
    """False: the bucket is given, and not touched itself."""

    def has(self, need: str) -> bool:
        """Whether a test marked `needs(need)` can run over this kind. `faults`: failures can be made to happen;
        `server`: besides, the server's requests can be looked at, and it can be stopped; `appends`, `express`; `no-…`:
        the contrary."""
        if need.startswith("no-"):
            return not self.has(need[3:])
        lab = self.dialect is not None
        memory = self.dialect is None and self.judge is None
        facts = {"faults": lab or memory, "server": lab, "wire": not memory}
        return {**facts, "appends": self.appends, "express": self.express}[need]


_COLLECTED = "test_parts_of_a_killed_process_are_collected"

AZURE_GAPS = {
    _COLLECTED: (
        "blocks staged over an object that exists go with its next put, or a week later: no call removes them alone "
        "(those under a free name are collected)"
    )
}
"""Of the Blob service itself, and so of the lab's and of azurite."""

GCS_SESSIONS = {
    _COLLECTED: "Google lists no sessions of resumable uploads; it drops them itself after a week",
}
"""Of the service itself."""

KINDS = (
    Kind("memory", None),
    Kind("memory-express", None, appends=True, express=True),
    Kind("aliyun", "aliyun", "aliyun", "yunhe-aliyun", appends=True),
    Kind("azure", "azure", "azure", "yunhe-azure", appends=True, gaps=AZURE_GAPS),
    Kind("gcp", "gcp", "gcp", "yunhe-gcp", gaps=GCS_SESSIONS),
    Kind("aws", "s3", "aws", "yunhe-aws"),
    Kind("private", "s3", "private", "yunhe-private"),
    Kind("aws-express", "s3", "aws", "yunhe--use1-az4--x-s3", appends=True, express=True),
)
"""Memory and the lab: what every run covers."""


class Subject:
    """One kind, running: open as many stores onto its bucket as a test wants."""

    def __init__(self, kind: Kind, tmp_path: Path) -> None:
        self.kind = kind
        self.server = start_object_server(kind.dialect, tmp_path) if kind.dialect else None
        self._judge: Judge | None = kind.judge(tmp_path) if kind.judge else self.server
        if self._judge is None:
            from providers.memory.faults import World
            from providers.memory.objects import MemoryBucket

            self.world = World(SystemClock(), SystemRng())
            self.bucket = MemoryBucket(self.world, "bucket", append_supported=kind.appends)

    @property
    def address(self) -> StoreAddress:
        assert self._judge is not None, "memory has no address"
        return self._judge.address(self.kind.bucket, self.kind.provider)

    def open(self) -> ObjectStore:
        if self._judge is None:
            from providers.memory.faults import Process
            from providers.memory.objects import MemoryObjectStore

            return MemoryObjectStore(Process(self.world, "test"), self.bucket)
        return open_store(self.address, clock=SystemClock(), rng=SystemRng())

    def lose_answers(self, method: str = "") -> None:
        """From now on requests (of an HTTP method) are carried out and their answers lost."""
        if self.server is None:
            self.bucket.faults = replace(self.bucket.faults, lost_response=1.0, timeout_ms=20.0)
        else:
            self.server.set_faults({"method": method, "drop_answer": True})

    def heal(self) -> None:
        if self.server is not None:
            self.server.set_faults()
        elif self._judge is None:
            from providers.memory.faults import CALM

            self.bucket.faults = CALM
            self.bucket.down = False

    def close(self) -> None:
        if self._judge is not None:
            self._judge.close()


def changes_of(subject: Subject, key: str) -> list[tuple[str, str, int]]:
    """Requests that may change `key`, as the server counted them. A GCS upload names its object in the body, so every
    upload counts there."""
    assert subject.server is not None
    seen = [row for row in subject.server.requests() if row[0] in ("PUT", "POST", "DELETE")]
    return [row for row in seen if key in unquote(row[1]) or row[1].startswith("/upload/")]
