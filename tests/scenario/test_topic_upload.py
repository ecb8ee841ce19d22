"""Edges that upload by a topic, from the spec on, with real processes: what an edge acked is in the cloud database
once, though the database's owner is killed meanwhile; brokers want a login, and all ports speak TLS."""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from tests.dataplane.broker.secured import ADMIN, ADMIN_PASSWORD, Authority
from tests.running_lab import RunningLab, running

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
---
apiVersion: yunhe.io/v1alpha1
kind: Topic
metadata: {name: points}
spec: {clusters: [plant], partitions: 2}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: fleet}
spec:
  role: cloud
  cloud: plant
  nodes: 2
  tls: {certificateFile: FOLDER/server.pem, keyFile: FOLDER/server.key}
  createTables: true
  tables:
  - name: motor
    columns: [{name: ts, type: timestamp_ms, role: time}, {name: car, type: string, role: tag}, {name: n, type: int64}]
    options: {appendMode: true, flushInterval: 1s}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: cars}
spec:
  role: edge
  cloud: plant
  edges: 2
  tls: {certificateFile: FOLDER/server.pem, keyFile: FOLDER/server.key}
  upload: {to: fleet, via: {cluster: plant, topic: points, login: 'file:FOLDER/login.json', caFile: FOLDER/ca.pem}}
"""
NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    folder = tmp_path_factory.mktemp("topic-upload")
    Authority(folder).issue("server", "brokers")
    (folder / "users.json").write_text(json.dumps({ADMIN: ADMIN_PASSWORD}))
    (folder / "login.json").write_text(json.dumps({"username": ADMIN, "password": ADMIN_PASSWORD}))
    (folder / "peers.json").write_text(json.dumps({"secret": "a secret of the brokers of this test"}))
    with running(folder, SPEC.replace("FOLDER", str(folder))) as lab:
        yield lab


def database(lab: RunningLab, name: str) -> dict[str, Any]:
    shown = lab.yunhe("database", "show", name, "-o", "json")
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def trusting(lab: RunningLab) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(lab.spec.parent / "ca.pem"))


def write(lab: RunningLab, port: int, car: str, numbers: range) -> None:
    lines = "\n".join(f"motor,car={car} n={n}i {NOW_MS + n}" for n in numbers)
    url = f"https://127.0.0.1:{port}/v1/influxdb/write?db=public&precision=ms"
    with urllib.request.urlopen(
        urllib.request.Request(url, lines.encode()), timeout=10, context=trusting(lab)
    ) as answer:
        assert answer.status == 204


def rows(lab: RunningLab) -> list[tuple[str, int]]:
    """What each node that answers says; empty, while none does."""
    sql = urllib.parse.urlencode({"sql": "SELECT car, n FROM motor ORDER BY car, n"}).encode()
    for node in database(lab, "fleet")["nodes"]:
        try:
            with urllib.request.urlopen(
                f"https://127.0.0.1:{node['httpPort']}/v1/sql", sql, timeout=10, context=trusting(lab)
            ) as answer:
                found = json.load(answer)["output"][0]["records"]["rows"]
                return [(str(car), int(n)) for car, n in found]
        except OSError:
            continue
    return []


def until(what: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_what_edges_acked_is_in_the_cloud_once_though_the_owner_is_killed(plant: RunningLab) -> None:
    ports = {node["name"]: node["httpPort"] for node in database(plant, "cars")["nodes"]}
    assert len(ports) == 2 and database(plant, "cars")["uploadVia"] == "topic points of plant"
    wanted = []
    for car, port in ports.items():
        write(plant, port, car, range(20))
        wanted += [(car, n) for n in range(20)]
    until(lambda: rows(plant) == sorted(wanted))

    fleet = database(plant, "fleet")
    [owner] = [node for node in fleet["nodes"] if node["name"] == fleet["owner"]]
    for car, port in ports.items():
        write(plant, port, car, range(20, 40))
        wanted += [(car, n) for n in range(20, 40)]
    os.kill(owner["pid"], signal.SIGKILL)
    for car, port in ports.items():
        write(plant, port, car, range(40, 60))
        wanted += [(car, n) for n in range(40, 60)]
    until(lambda: len(rows(plant)) >= len(wanted))
    assert rows(plant) == sorted(wanted), "each once, by a table that merges nothing"
    assert not [p for p in plant.state_dir.glob("**/quarantine/*") if "topic=" in p.name]
    assert plant.yunhe("plan", str(plant.spec)).returncode == 0, "nothing is left to do"


def test_the_mysql_wire_speaks_tls_and_nothing_else(plant: RunningLab) -> None:
    port = database(plant, "fleet")["nodes"][0]["mysqlPort"]
    with pytest.raises(pymysql.err.OperationalError, match="insecure transport"):
        pymysql.connect(host="127.0.0.1", port=port, user="u", ssl_disabled=True)
    secure = pymysql.connect(host="127.0.0.1", port=port, user="u", ssl=trusting(plant))
    with secure as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM motor")
        assert cursor.fetchall() == ((120,),)


def test_so_does_the_postgres_wire(plant: RunningLab) -> None:
    [address, *_] = database(plant, "fleet")["postgres"]
    assert address.endswith("/public?sslmode=require")
    with pytest.raises(psycopg.OperationalError, match="without TLS are refused"):
        psycopg.connect(address.replace("require", "disable"), user="u")
    with psycopg.connect(address, user="u") as connection:
        assert connection.execute("SELECT count(*) FROM motor").fetchall() == [(120,)]
        assert connection.execute("SELECT count(*) + %s FROM motor", (1,)).fetchall() == [(121,)]


def test_no_password_is_in_what_agents_are_told(plant: RunningLab) -> None:
    told = [path.read_bytes() for path in plant.state_dir.rglob("*.json") if path.is_file()]
    assert any(b"login.json" in text for text in told)
    assert not any(ADMIN_PASSWORD.encode() in text for text in told)


def test_another_topic_is_shown_as_a_restart_of_the_edges(plant: RunningLab, tmp_path: Path) -> None:
    spec = tmp_path / "other.yaml"
    spec.write_text(
        plant.spec.read_text().replace("topic: points,", "topic: others,")
        + "---\napiVersion: yunhe.io/v1alpha1\nkind: Topic\nmetadata: {name: others}\n"
        "spec: {clusters: [plant], partitions: 1}\n"
    )
    plan = plant.yunhe("plan", str(spec))
    assert plan.returncode == 2
    assert "upload.via.topic points -> others; 2 edges restart" in plan.stdout
