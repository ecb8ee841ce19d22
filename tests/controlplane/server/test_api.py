"""The control plane as a process, spoken to over HTTP. Its clouds are not running: only it is under test."""

from __future__ import annotations

import http.client
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

from controlplane.cli.client import Client
from controlplane.server.files import CONTROL_PLANE, StateDir
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable
from providers.lab.processes import ProcessRecord, ProcessTable, is_alive, python, stop, wait_ready

SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: hz}
spec: {provider: aliyun, region: cn-hangzhou, zones: [cn-hangzhou-h, cn-hangzhou-i]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec: {cloud: hz, brokers: 2}
"""
FILES = [("spec.yaml", SPEC)]


def start(state_dir: StateDir) -> ProcessRecord:
    argv = python("controlplane.server", "--state-dir", str(state_dir.root))
    record = ProcessTable(state_dir.root).start(CONTROL_PLANE, argv, log=state_dir.log)
    wait_ready(record, state_dir.ready, deadline_ms=time.monotonic() * 1000 + 20_000)
    return record


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[StateDir]:
    state_dir = StateDir(tmp_path / "state")
    state_dir.create()
    yield state_dir
    stop(ProcessTable(state_dir.root).everything())


def raw(state_dir: StateDir, method: str, path: str, token: str | None, body: str | None = None) -> tuple[int, Any]:
    port = json.loads(state_dir.ready.read_text())["port"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    value = response.status, json.loads(response.read())
    connection.close()
    return value


def test_every_refusal_is_json_with_one_sentence_and_nothing_is_open_without_the_token(state_dir: StateDir) -> None:
    record = start(state_dir)
    token = state_dir.read_token()
    assert state_dir.token.stat().st_mode & 0o777 == 0o600
    _, document = raw(state_dir, "GET", "/openapi.json", None)
    assert len(document["paths"]) >= 7
    for path, operations in document["paths"].items():
        for method in operations:
            if path == "/healthz":
                continue
            for wrong in (None, "", "0" * 32):
                status, answer = raw(state_dir, method.upper(), path.replace("{", "").replace("}", ""), wrong, "{}")
                assert status == 401, path
                assert set(answer) == {"kind", "error", "hint", "fields"}
    assert raw(state_dir, "GET", "/healthz", None)[1]["pid"] == record.pid
    assert raw(state_dir, "POST", "/v1/plans", token, '{"files": 3}')[0] == 400
    assert raw(state_dir, "POST", "/v1/plans", token, "{")[0] == 400
    assert raw(state_dir, "POST", "/v1/plans", token, " " * (9 << 20))[0] == 413
    assert raw(state_dir, "GET", "/v1/objects/Cat", token)[0] == 400
    status, answer = raw(state_dir, "GET", "/nowhere", token)
    assert status == 404 and set(answer) == {"kind", "error", "hint", "fields"}


def test_exactly_the_plan_that_was_shown_is_applied_and_a_stale_one_is_refused(state_dir: StateDir) -> None:
    start(state_dir)
    client = Client(state_dir)
    first = client.plan(FILES)
    other = client.plan([("spec.yaml", SPEC.replace("brokers: 2", "brokers: 3"))])
    assert not first["empty"] and first["hash"] != other["hash"]
    assert client.plan(FILES)["hash"] == first["hash"]

    operation = client.apply(first["hash"][:10])
    assert operation["plan"] == first["hash"] and operation["outcome"] is None
    with pytest.raises(Conflict, match="stale") as refused:
        client.apply(other["hash"])
    assert refused.value.hint is not None
    assert client.plan(FILES)["empty"]
    [cluster] = client.objects("brokercluster")
    assert cluster["spec"]["brokers"] == 2
    with pytest.raises(NotFound):
        client.apply("0123456789abcdef")


def test_a_wrong_spec_is_refused_with_its_place_and_changes_nothing(state_dir: StateDir) -> None:
    start(state_dir)
    client = Client(state_dir)
    with pytest.raises(Invalid, match=r"spec\.yaml:4:.*azzure") as refused:
        client.plan([("spec.yaml", SPEC.replace("aliyun", "azzure"))])
    assert refused.value.hint == "did you mean azure?"
    assert client.objects("Cloud") == []
    assert client.status()["state"] == "Stopped"


def test_status_says_why_a_cloud_is_not_there(state_dir: StateDir) -> None:
    start(state_dir)
    client = Client(state_dir)
    client.apply(client.plan(FILES)["hash"])
    eventually(lambda: client.status()["clouds"][0]["state"] == "Unavailable")
    [cloud] = client.status()["clouds"]
    assert "not running in the lab" in cloud["sentence"]
    assert cloud["wal"]["mode"] == "regional-block" and cloud["wal"]["reasons"]
    assert [b["state"] for b in cloud["brokers"]] == ["Pending", "Pending"]
    assert client.diff(FILES)["changes"] == []
    assert client.diff([("x", SPEC.replace("brokers: 2", "brokers: 4"))])["changes"][0]["fields"] == [
        {"field": "spec.brokers", "old": 2, "new": 4}
    ]


def test_sigterm_ends_it_cleanly_and_sigkill_loses_nothing(state_dir: StateDir) -> None:
    record = start(state_dir)
    client = Client(state_dir)
    operation = client.apply(client.plan(FILES)["hash"])
    port = json.loads(state_dir.ready.read_text())["port"]

    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: not is_alive(record.id))
    with pytest.raises(Unavailable, match="control plane is down"):
        client.status()

    again = start(state_dir)
    assert json.loads(state_dir.ready.read_text())["port"] == port, "the address stays"
    assert client.plan(FILES)["empty"]
    eventually(lambda: any(s["state"] == "Running" for s in client.operation(operation["id"])["steps"]))
    assert client.operation(operation["id"])["outcome"] is None, "it was taken up again"

    os.kill(again.pid, signal.SIGTERM)
    eventually(lambda: not is_alive(again.id))
    assert not state_dir.ready.exists()
    assert "Traceback" not in state_dir.log.read_text()


def test_a_second_control_plane_of_one_state_directory_is_refused_in_one_sentence(state_dir: StateDir) -> None:
    start(state_dir)
    second = subprocess.run(
        [sys.executable, "-m", "controlplane.server", "--state-dir", str(state_dir.root), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.startswith("error: a control plane of ") and "Traceback" not in second.stderr


def test_a_taken_port_is_named(state_dir: StateDir) -> None:
    record = start(state_dir)
    port = json.loads(state_dir.ready.read_text())["port"]
    stop([record.id])
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(Unavailable, match=f"port {port}.* taken by another program"):
            start(state_dir)
