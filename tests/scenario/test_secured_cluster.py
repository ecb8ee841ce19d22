"""A cluster that is secured from its spec on, with real processes: clients log in, brokers know each other."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from controlplane.cli.kafka_login import read_login
from controlplane.drill.probe import leaders
from tests.dataplane.broker.secured import ADMIN, ADMIN_PASSWORD, Authority
from tests.running_lab import RunningLab, running

SECRET = "a secret of the brokers of this test"
NEW_SECRET = "another secret of the same brokers"
SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [hall-a, hall-b]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: plant}
spec:
  cloud: plant
  brokers: 2
  listeners:
    protocol: SASL_SSL
    tls: {certificateFile: FOLDER/server.pem, keyFile: FOLDER/server.key}
    sasl: {users: 'file:FOLDER/users.json'}
    peerSecret: file:FOLDER/peers.json
  authorization: {superUsers: ['User:admin']}
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    folder = tmp_path_factory.mktemp("secured")
    Authority(folder).issue("server", "brokers")
    (folder / "users.json").write_text(json.dumps({ADMIN: ADMIN_PASSWORD}))
    (folder / "peers.json").write_text(json.dumps({"secret": SECRET}))
    with running(folder, SPEC.replace("FOLDER", str(folder))) as lab:
        yield lab


def config(lab: RunningLab, password: str = ADMIN_PASSWORD) -> dict[str, Any]:
    return {
        "bootstrap.servers": lab.bootstrap("plant"),
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": ADMIN,
        "sasl.password": password,
        "ssl.ca.location": str(lab.spec.parent / "ca.pem"),
        "log_level": 0,
    }


def test_a_lost_brokers_partitions_are_served_again_by_one_that_knows_the_secret(secured: RunningLab) -> None:
    admin = AdminClient(config(secured))
    admin.create_topics([NewTopic("t", 4)])["t"].result(30)
    failed: list[KafkaError] = []
    producer = Producer({**config(secured), "enable.idempotence": True})

    def told(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    def produce_everywhere() -> None:
        for partition in range(4):
            producer.produce("t", b"x", partition=partition, on_delivery=told)
        assert producer.flush(60) == 0 and failed == []

    produce_everywhere()
    leaders = {p.leader for p in admin.list_topics("t", timeout=10).topics["t"].partitions.values()}
    assert leaders == {1, 2}
    # The other broker hears of it by a heartbeat that does not come, and by nothing else.
    victim = next(b for b in secured.cloud("plant")["brokers"] if b["id"] == 1)
    os.kill(victim["pid"], signal.SIGKILL)
    produce_everywhere()

    deadline = time.monotonic() + 60
    while {b["state"] for b in secured.cloud("plant")["brokers"]} != {"Ready"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    produce_everywhere()


def login_file(lab: RunningLab, password: str = ADMIN_PASSWORD) -> str:
    """What the command line logs in with; the password is in a file of its own."""
    folder = lab.spec.parent
    (folder / "password").write_text(password + "\n")
    lines = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": ADMIN,
        "sasl.password": f"file:{folder / 'password'}",
        "ssl.ca.location": str(folder / "ca.pem"),
    }
    path = folder / "client.properties"
    path.write_text("# of this test\n" + "".join(f"{name} = {value}\n" for name, value in lines.items()))
    return str(path)


def test_a_drill_over_a_secured_cluster_gives_its_verdict(secured: RunningLab) -> None:
    done = secured.yunhe("drill", "run", "broker-loss", "--command-config", login_file(secured), "-o", "json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (0, "PASS"), report
    assert report["acked"] > 0 and report["acked_lost"] == 0


def test_a_partition_of_a_secured_cluster_is_moved_by_who_logs_in(secured: RunningLab) -> None:
    admin = AdminClient(config(secured))
    admin.create_topics([NewTopic("moved", 1)])["moved"].result(30)
    leader = leaders(secured.bootstrap("plant"), "moved", read_login(Path(login_file(secured))))[0]
    for to in (3 - leader, leader):
        done = secured.yunhe("move", "moved-0", "--to", str(to), "--command-config", login_file(secured))
        assert done.returncode == 0, done.stderr
        assert admin.list_topics("moved", timeout=10).topics["moved"].partitions[0].leader == to
    admin.delete_topics(["moved"])["moved"].result(30)


def test_whoever_is_not_let_in_is_told_so_and_how(secured: RunningLab) -> None:
    wrong = login_file(secured, "not that one")
    for command in (("move", "t-0", "--to", "1"), ("drill", "run", "broker-loss")):
        done = secured.yunhe(*command, "--command-config", wrong)
        assert done.returncode == 1 and "not let" in done.stderr and "command-config" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and "not that one" not in done.stderr


def test_a_wrong_password_does_not_get_in(secured: RunningLab) -> None:
    errors: list[int] = []
    admin = AdminClient({**config(secured, "wrong"), "error_cb": lambda error: errors.append(error.code())})
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=5)
    admin.poll(0)
    assert KafkaError._AUTHENTICATION in errors


def test_the_brokers_secret_is_changed_while_they_serve(secured: RunningLab) -> None:
    """Host by host in any order: first the new one beside the old, then it alone."""
    folder = secured.spec.parent
    admin = AdminClient(config(secured))
    admin.create_topics([NewTopic("changing", 4)])["changing"].result(30)
    failed: list[KafkaError] = []
    producer = Producer({**config(secured), "enable.idempotence": True})
    before = {b["id"]: b["pid"] for b in secured.cloud("plant")["brokers"]}

    def told(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    def logged(word: str) -> int:
        return sum(log.read_text().count(word) for log in secured.state_dir.glob("agents/*/run/*/log"))

    def serve_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            for partition in range(4):
                producer.produce("changing", b"x", partition=partition, on_delivery=told)
            assert producer.flush(30) == 0 and failed == []

    for held in ({"secret": NEW_SECRET, "accepted": [SECRET]}, {"secret": NEW_SECRET}):
        seen = logged("peer-secrets-reloaded")
        (folder / "peers.json").write_text(json.dumps(held))
        serve_until(lambda seen=seen: logged("peer-secrets-reloaded") == seen + 2)  # type: ignore[misc]
    # They hear each other still: a move needs both.
    login = ("--command-config", login_file(secured))
    for to in ("1", "2", "1"):
        assert secured.yunhe("move", "changing-0", "--to", to, *login).returncode == 0
    assert {b["id"]: b["pid"] for b in secured.cloud("plant")["brokers"]} == before, "nobody was restarted, or fenced"
    assert logged("peer-not-trusted") == 0
    admin.delete_topics(["changing"])["changing"].result(30)


def test_no_secret_is_in_logs_status_plans_or_on_the_bucket(secured: RunningLab) -> None:
    shown = [secured.yunhe(*words).stdout for words in (("status", "-o", "json"), ("plan", str(secured.spec)))]
    files = [path for path in secured.state_dir.rglob("*") if path.is_file() and path.stat().st_size <= 256 << 20]
    assert len(files) > 10
    kept = [path.read_bytes() for path in files]
    for secret in (SECRET, NEW_SECRET, ADMIN_PASSWORD):
        assert not any(secret in text for text in shown)
        assert [path for path, data in zip(files, kept, strict=True) if secret.encode() in data] == []
    assert any(b"scram-changed" in data for data in kept), "the ledger was among them"
