"""Databases of a real lab: a vehicle's rows reach its cloud's clients; no drill loses or doubles a point."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest
import sqlalchemy
from influxdb_client import InfluxDBClient, Point, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS

from providers.base.clock import SystemClock
from tests.running_lab import RunningLab, running

SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [hall-a, hall-b]}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: fleet}
spec:
  role: cloud
  cloud: plant
  nodes: 2
  tables:
    - name: motor
      columns:
        - {name: vehicle, type: string, role: tag}
        - {name: ts, type: timestamp_ms, role: time}
        - {name: rpm, type: int64}
      options: {flushInterval: 500ms}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: cars}
spec: {role: edge, cloud: plant, edges: 4, upload: {to: fleet, interval: 200ms}}
"""
DRILLS = ("edge-power-cut", "import-interrupted", "region-failover", "bucket-throttle")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running(tmp_path_factory.mktemp("fleet"), SPEC) as lab:
        yield lab


def databases(lab: RunningLab) -> dict[str, dict[str, Any]]:
    shown = lab.yunhe("database", "list", "-o", "json")
    assert shown.returncode == 0, shown.stderr
    return {database["name"]: database for database in json.loads(shown.stdout)}


def until(found: Callable[[], Any], wanted: Any, within_s: float = 30) -> None:
    clock = SystemClock()
    deadline = clock.monotonic_ms() + within_s * 1_000
    while (last := found()) != wanted:
        assert clock.monotonic_ms() < deadline, f"{last!r} is not {wanted!r}"


def test_a_vehicles_points_reach_its_clouds_clients_in_seconds(lab: RunningLab) -> None:
    there = databases(lab)
    now_ms = SystemClock().wall_ms()
    for car, address in enumerate(there["cars"]["http"]):
        with InfluxDBClient(f"{address}/v1/influxdb", token="any:any", org="-") as client:
            points = [
                Point("motor").tag("vehicle", f"car-{car}").field("rpm", n).time(now_ms + n, WritePrecision.MS)
                for n in range(100)
            ]
            client.write_api(write_options=SYNCHRONOUS).write("public", record=points)
    host, _, port = next(node for node in there["fleet"]["mysql"] if node).partition(":")
    with pymysql.connect(host=host, port=int(port), user="root", database="public") as connection:

        def found() -> Any:
            with connection.cursor() as cursor:
                cursor.execute("SELECT vehicle, count(*), min(rpm), max(rpm) FROM motor GROUP BY vehicle ORDER BY 1")
                return list(cursor.fetchall())

        until(found, [(f"car-{car}", 100, 0, 99) for car in range(4)])
    engine = sqlalchemy.create_engine(there["fleet"]["postgres"][0].replace("postgres://", "greptimedb://root@"))
    try:
        with engine.connect() as dialect:
            motor = sqlalchemy.Table("motor", sqlalchemy.MetaData(), autoload_with=dialect)
            read = sqlalchemy.select(sqlalchemy.func.count(), sqlalchemy.func.max(motor.c.rpm))
            assert dialect.execute(read.where(motor.c.vehicle == "car-1")).one() == (100, 99)
    finally:
        engine.dispose()


@pytest.mark.parametrize("name", DRILLS)
def test_a_drill_loses_no_acked_point_and_doubles_none(lab: RunningLab, name: str) -> None:
    result: subprocess.CompletedProcess[str] = lab.yunhe(
        "drill", "run", name, "--cloud", "plant", "-o", "json", timeout=180
    )
    assert result.returncode == 0, result.stderr + result.stdout
    report = json.loads(result.stdout)
    assert report["acked"] > 100, report
    assert (report["acked_lost"], report["duplicated"]) == (0, 0), report
