"""The lab's Google Cloud as a process, and its service account: what the tests of the control adapters run against."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from providers.base.registry import AccountAddress
from tests.conformance.google_keys import service_account

START_S_MAX = 20.0
ADMIN_TOKEN = "admin-of-the-test"
PROJECT = "lab-project"
REGION = "us-central1"
ZONES = tuple(f"{REGION}-{letter}" for letter in "abc")
DOMAIN = "example.test"


class GcpControlServer:
    """`python -m providers.lab.control_server --provider gcp`, started in the constructor."""

    def __init__(self, tmp_path: Path) -> None:
        self._folder = tmp_path
        self._server_credentials = tmp_path / "server.json"
        self._server_credentials.write_text(
            json.dumps({"service_account": service_account(PROJECT, "yunhe"), "admin_token": ADMIN_TOKEN})
        )
        self.port = 0
        self.start()
        self.credentials = self.key_file("client.json", service_account(PROJECT, "yunhe"))

    def start(self) -> None:
        """On the same port as before, if there was one."""
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "providers.lab.control_server", "--provider", "gcp", "--region", REGION),
                *("--zones", ",".join(ZONES), "--root", str(self._folder / "control"), "--port", str(self.port)),
                *("--credentials", str(self._server_credentials), "--ready-file", str(ready)),
                *("--dns-zone", DOMAIN, "--instances-per-zone", "2"),
            ]
        )
        deadline = time.monotonic() + START_S_MAX
        while not ready.exists():
            assert self.process.poll() is None, "the control server ended at once"
            assert time.monotonic() < deadline, "the control server did not get ready"
            time.sleep(0.01)
        self.port = int(json.loads(ready.read_text())["port"])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def key_file(self, name: str, account: dict[str, Any]) -> str:
        """A client's credentials file."""
        path = self._folder / name
        path.write_text(json.dumps({"service_account": account}))
        return str(path)

    def address(self, credentials: str | None = None) -> AccountAddress:
        return AccountAddress("gcp", REGION, "", "", self.endpoint, credentials or self.credentials)

    def admin(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One of the server's admin calls."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/-/{path}", data=data)
        request.add_header("authorization", f"Bearer {ADMIN_TOKEN}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return dict(json.loads(answer.read()))

    def set_faults(self, *rules: dict[str, Any]) -> None:
        self.admin("faults", {"seed": 0, "rules": list(rules)})

    def requests(self) -> list[tuple[str, str, int]]:
        """The newest requests: method, target and verb, status (0: no answer was sent)."""
        return [(method, target, status) for method, target, status in self.admin("faults")["requests"]]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
