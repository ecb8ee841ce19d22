"""`yunhe up`, `status`, `down` over real processes: a private cloud with two brokers, and librdkafka as client."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, Producer

SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [a, b]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec: {cloud: plant, brokers: 2}
---
apiVersion: yunhe.io/v1alpha1
kind: Topic
metadata: {name: orders}
spec: {clusters: [main], partitions: 2}
"""


class Yunhe:
    """The command line over one state directory."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self.spec = folder / "spec.yaml"
        self.spec.write_text(SPEC)

    def __call__(self, *args: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "YUNHE_STATE_DIR": str(self.state_dir)}
        return subprocess.run(
            [sys.executable, "-m", "controlplane.cli.main", *args],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        result = self("up", str(self.spec), "--timeout", "60")
        assert result.returncode == 0, result.stderr
        return result

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self("status", "-o", "json").stdout))

    def processes(self) -> dict[int, str]:
        """All that lives under this state directory, found by psutil, not by the code under test: pid → command."""
        found = {}
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                mine = (
                    process.environ().get("YUNHE_PROCESS_OF") == str(self.state_dir) or str(self.state_dir) in command
                )
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = command
            except psutil.Error:
                continue
        return found

    def kill_everything(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        eventually(lambda: not self.processes())


@pytest.fixture
def yunhe(tmp_path: Path) -> Iterator[Yunhe]:
    yunhe = Yunhe(tmp_path)
    yield yunhe
    yunhe("down")
    left = yunhe.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == {}


def eventually(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


def produce(bootstrap: str, values: list[str]) -> None:
    failures: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "delivery.timeout.ms": 30_000})
    for value in values:
        producer.produce("orders", value, on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(40) == 0 and failures == []


def consume(bootstrap: str, count: int) -> list[str]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"g-{time.time_ns()}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(["orders"])
    values: list[str] = []
    deadline = time.monotonic() + 40
    while len(values) < count and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            values.append(message.value().decode())
    consumer.close()
    return values


def test_up_serves_kafka_a_second_up_is_a_no_op_and_down_leaves_nothing(yunhe: Yunhe) -> None:
    first = yunhe.up()
    headings, row = first.stdout.splitlines()[:2]
    assert headings.split() == ["CLOUD", "WAL", "BROKERS", "BOOTSTRAP", "STATE"]
    assert re.fullmatch(r"plant +object +2/2 +127\.0\.0\.1:\d+ +Ready", row)

    status = yunhe.status()
    assert status["state"] == "Ready"
    [cloud] = status["clouds"]
    assert (cloud["name"], cloud["provider"], cloud["state"]) == ("plant", "private", "Ready")
    assert cloud["wal"]["mode"] == "object" and cloud["wal"]["reasons"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", cloud["bootstrap"])
    assert [(b["id"], b["zone"], b["state"]) for b in cloud["brokers"]] == [(1, "a", "Ready"), (2, "b", "Ready")]
    assert [(a["zone"], a["state"]) for a in cloud["agents"]] == [("a", "Running"), ("b", "Running")]
    [control_plane] = status["controlPlane"]
    assert control_plane["state"] == "Running"
    shown = {b["pid"] for b in cloud["brokers"]} | {a["pid"] for a in cloud["agents"]} | {control_plane["pid"]}
    assert shown < set(yunhe.processes())

    produce(cloud["bootstrap"], [f"v{n}" for n in range(50)])
    assert sorted(consume(cloud["bootstrap"], 50)) == sorted(f"v{n}" for n in range(50))

    assert yunhe("move", "orders-0", "--to", "b-1").returncode == 0
    moved = json.loads(yunhe("move", "orders-0", "--to", "b-2", "-o", "json").stdout)
    assert (moved["from"], moved["to"]) == (1, 2)
    assert sorted(consume(cloud["bootstrap"], 50)) == sorted(f"v{n}" for n in range(50)), "a move loses nothing"

    before = yunhe.processes()
    second = yunhe.up()
    assert yunhe.processes() == before
    assert "nothing to do" in second.stderr
    assert yunhe("plan", str(yunhe.spec)).returncode == 0, "after apply, plan is empty"

    assert yunhe("down").returncode == 0
    assert yunhe.processes() == {}
    assert (yunhe.state_dir / "lab").is_dir(), "data stays"
    assert yunhe.status()["state"] in ("Down", "Stopped")
    assert yunhe("down", "--purge").returncode == 0
    assert not yunhe.state_dir.exists()


def test_up_after_kill_9_of_everything_recovers_all_acked_records_at_the_same_addresses(yunhe: Yunhe) -> None:
    yunhe.up()
    bootstrap = yunhe.status()["clouds"][0]["bootstrap"]
    produce(bootstrap, [f"v{n}" for n in range(100)])
    yunhe.kill_everything()
    assert yunhe.status()["clouds"][0]["state"] == "Down"

    yunhe.up()
    assert yunhe.status()["clouds"][0]["bootstrap"] == bootstrap
    assert sorted(consume(bootstrap, 100)) == sorted(f"v{n}" for n in range(100))


def test_status_tells_the_truth_while_the_control_plane_is_dead(yunhe: Yunhe) -> None:
    yunhe.up()
    before = yunhe.status()
    os.kill(before["controlPlane"][0]["pid"], signal.SIGKILL)
    eventually(lambda: yunhe.status()["controlPlane"][0]["state"] == "Down")

    now = yunhe.status()
    assert now["controlPlane"][0]["pid"] is None
    assert now["clouds"][0]["state"] == "Ready"
    pids = [b["pid"] for b in before["clouds"][0]["brokers"]]
    assert [b["pid"] for b in now["clouds"][0]["brokers"]] == pids
    produce(now["clouds"][0]["bootstrap"], ["while it is down"])
    assert "control plane is down" in yunhe("status").stdout

    victim = now["clouds"][0]["brokers"][1]["pid"]
    os.kill(victim, signal.SIGKILL)
    # Its agent starts it again by itself, and status sees that without the control plane.
    eventually(lambda: yunhe.status()["clouds"][0]["brokers"][1]["pid"] not in (None, victim))

    yunhe.up()
    after = yunhe.status()
    assert after["state"] == "Ready" and after["clouds"][0]["brokers"][0]["pid"] == pids[0]


def test_a_taken_port_is_one_sentence(yunhe: Yunhe) -> None:
    yunhe.up()
    address = json.loads((yunhe.state_dir / "lab/plant/address.json").read_text())
    assert yunhe("down").returncode == 0
    with socket.socket() as other:
        other.bind(("127.0.0.1", address["objects_port"]))
        other.listen()
        result = yunhe("up", str(yunhe.spec), "--timeout", "30")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(address["objects_port"]) in errors[0]
