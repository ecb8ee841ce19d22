"""`yunhe up` of a cell that has only databases: real agents and a real lab; the databases' processes are stand-ins that
keep the contract of configuration and ready file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STAND_IN = Path(__file__).parents[1] / "dataplane" / "agent" / "stand_in_database.py"
CODE = """\
import sys
from controlplane.cli import lab, main
plain = lab.agent_config
lab.agent_config = lambda *a: {**plain(*a), "database_command": [sys.executable, %r]}
sys.exit(main.run(sys.argv[1:]))
"""
SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [a, b]}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: fleet}
spec:
  role: cloud
  cloud: plant
  nodes: 2
  tables: [{name: motor, columns: [{name: ts, type: timestamp_ms, role: time}, {name: rpm, type: float32}]}]
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: cars}
spec: {role: edge, cloud: plant, edges: 2, upload: {to: fleet}}
"""


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = folder / "spec.yaml"
        self.spec.write_text(SPEC)

    def yunhe(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", CODE % str(STAND_IN), *args],
            capture_output=True,
            text=True,
            env={**os.environ, "YUNHE_STATE_DIR": str(self.folder / "state")},
            timeout=100,
            check=False,
        )

    def database(self, name: str) -> dict[str, Any]:
        shown = self.yunhe("database", "show", name, "-o", "json")
        assert shown.returncode == 0, shown.stderr
        found: dict[str, Any] = json.loads(shown.stdout)
        return found

    def until(self, name: str, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        until = time.monotonic() + 40
        while not what(seen := self.database(name)):
            assert time.monotonic() < until, seen
            time.sleep(0.2)
        return seen

    def told(self, node: str) -> dict[str, Any]:
        [path] = (self.folder / "state").glob(f"**/data/{node}/told.json")
        told: dict[str, Any] = json.loads(path.read_text())
        return told


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        down = lab.yunhe("down", "--purge")
        assert down.returncode == 0, down.stderr


def test_up_trust_a_crash_and_life_without_the_control_plane(lab: Lab) -> None:
    up = lab.yunhe("up", str(lab.spec), "--timeout", "80", "-o", "json")
    assert up.returncode == 0, up.stderr
    status = json.loads(up.stdout)
    assert status["state"] == "Ready" and len(status["databases"]) == 2
    fleet = next(d for d in status["databases"] if d["name"] == "fleet")
    assert fleet["owner"] == "fleet-1" and fleet["http"][0].startswith("http://127.0.0.1:")
    text = lab.yunhe("status").stdout
    assert "fleet     cloud  2/2    fleet-1" in text and "cars      edge   2/2    to fleet" in text
    assert lab.yunhe("plan", str(lab.spec)).returncode == 0, "nothing is left to do"

    cars = lab.until("cars", lambda d: all(n["trusted"] for n in d["nodes"]))
    keys = {n["name"]: n["publicKey"] for n in cars["nodes"]}
    lab.until("fleet", lambda _: lab.told("fleet-1")["spec"]["trust"] == keys)
    assert list(lab.told("fleet-2")["peers"]) == ["fleet-1"]

    # An edge loses its flash, and comes back with another key.
    victim = cars["nodes"][0]
    [key] = (lab.folder / "state").glob(f"**/data/{victim['name']}/key")
    key.unlink()
    os.kill(victim["pid"], signal.SIGKILL)
    seen = lab.until("cars", lambda d: bool(d["strangers"]))
    assert seen["state"] == "Degraded" and seen["nodes"][0]["httpPort"] == victim["httpPort"]
    assert lab.told("fleet-1")["spec"]["trust"] == keys, "the other key is not taken over"
    trusted = lab.yunhe("database", "trust", victim["name"], "-o", "json")
    assert trusted.returncode == 0, trusted.stderr
    keys[victim["name"]] = json.loads(trusted.stdout)["publicKey"]
    lab.until("fleet", lambda _: lab.told("fleet-1")["spec"]["trust"] == keys)
    lab.until("cars", lambda d: d["state"] == "Ready")
    again = lab.yunhe("database", "trust", victim["name"])
    assert again.returncode == 1 and "shows no other key" in again.stderr

    os.kill(status["controlPlane"][0]["pid"], signal.SIGKILL)
    alone = lab.until("fleet", lambda d: "seen from this host" in d["sentence"])
    assert alone["state"] == "Ready" and len(alone["http"]) == 2
    assert "2 of 2 processes serve" in lab.yunhe("status", "plant").stdout
    unheard = lab.yunhe("database", "show", "fleat")
    assert unheard.returncode == 1 and "did you mean fleet?" in unheard.stderr
