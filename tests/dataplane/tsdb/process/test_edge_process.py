"""Promises of the edge process: it says when it serves, keeps what it acked through SIGKILL, ends cleanly on SIGTERM,
and says why it cannot start.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataplane.contract.codec import to_json
from dataplane.contract.database import ColumnSpec, DatabaseConfig, DatabaseRole, DatabaseSpec, TableSpec
from dataplane.tsdb.ring.client import RingWriter
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType
from providers.base.registry import StoreAddress

TABLE = TableSpec(
    "engine",
    (ColumnSpec("ts", "timestamp[ms]", "time"), ColumnSpec("rpm", "float64")),
    {"append_mode": True, "wal": "always"},
)


def config(folder: Path, *tables: TableSpec) -> DatabaseConfig:
    spec = DatabaseSpec("fleet", "car-1", DatabaseRole.EDGE, "zone-a", tables=tables)
    address = StoreAddress("memory", "bucket", "nowhere")
    return DatabaseConfig("cell", address, spec, str(folder / "db"), str(folder / "ready"))


@contextlib.contextmanager
def process(what: DatabaseConfig, folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process, serving; killed at the end if it still is there."""
    ready = Path(what.ready_file)
    ready.unlink(missing_ok=True)
    started = begin(what, folder)
    try:
        until = time.monotonic() + 60
        while not ready.exists():
            assert started.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.02)
        yield started, json.loads(ready.read_text())
    finally:
        started.kill()
        started.wait()


def begin(what: DatabaseConfig, folder: Path) -> subprocess.Popen[str]:
    (folder / "config").write_bytes(to_json(what))
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dataplane.tsdb.process", "--config", str(folder / "config")],
            stderr=log,
            text=True,
        )


def sql(port: int, statement: str) -> Any:
    url = f"http://127.0.0.1:{port}/v1/sql?" + urllib.parse.urlencode({"sql": statement})
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["output"][0]["records"]["rows"]


def lines(port: int, *numbers: int) -> None:
    line(port, "".join(f"engine rpm={n} {n}\n" for n in numbers))


def line(port: int, text: str) -> None:
    body = text.encode()
    url = f"http://127.0.0.1:{port}/v1/influxdb/api/v2/write?precision=ms"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        assert answer.status == 204


def test_what_was_acked_survives_a_kill_and_a_clean_end_exits_with_0(tmp_path: Path) -> None:
    what = config(tmp_path, TABLE)
    with process(what, tmp_path) as (first, ready):
        assert ready["pid"] == first.pid and len(bytes.fromhex(ready["public_key"])) == 32
        lines(ready["http_port"], 1, 2, 3)
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    with process(what, tmp_path) as (second, again):
        assert again["public_key"] == ready["public_key"]
        assert sql(again["http_port"], "SELECT ts, rpm FROM engine ORDER BY ts") == [[1, 1.0], [2, 2.0], [3, 3.0]]
        lines(again["http_port"], 4)
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 0, (tmp_path / "log").read_text()
    with process(what, tmp_path) as (_, last):
        assert sql(last["http_port"], "SELECT count(*) FROM engine") == [[4]]


def test_tables_follow_the_spec_where_they_can_and_stay_where_they_cannot(tmp_path: Path) -> None:
    with process(config(tmp_path, TABLE), tmp_path) as (_, ready):
        lines(ready["http_port"], 1)
    grown = replace(TABLE, columns=(*TABLE.columns, ColumnSpec("gear", "int8"), ColumnSpec("v", "float64", decimals=2)))
    with process(config(tmp_path, grown), tmp_path) as (_, ready):
        assert sql(ready["http_port"], "SELECT rpm, gear FROM engine") == [[1.0, None]]
        line(ready["http_port"], "engine v=0.07000000000000001 3")
        assert sql(ready["http_port"], "SELECT v FROM engine WHERE v IS NOT NULL") == [[0.07]]
    other = replace(grown, columns=(*grown.columns[:-1], ColumnSpec("v", "float64", decimals=3)))
    with process(config(tmp_path, other), tmp_path):
        pass
    assert "stays as it is: column 'v' has 2 decimals, and the spec says 3 decimals" in (tmp_path / "log").read_text()
    narrower = replace(TABLE, columns=(TABLE.columns[0], ColumnSpec("rpm", "int8")))
    with process(config(tmp_path, narrower), tmp_path) as (_, ready):
        lines(ready["http_port"], 2)
        assert sql(ready["http_port"], "SELECT count(rpm) FROM engine") == [[2]]
    assert "table 'engine' stays as it is: column 'rpm' cannot become int8" in (tmp_path / "log").read_text()


def test_rows_of_the_ring_are_there_for_sql(tmp_path: Path) -> None:
    with process(config(tmp_path, TABLE), tmp_path) as (_, ready):
        columns = (Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME), Column(2, "rpm", ColumnType.FLOAT64))
        with RingWriter.connect(tmp_path / "db" / "ring.sock") as writer:
            stamps = pa.array(range(50), pa.timestamp("ms"))
            writer.declare("engine", columns).write(pa.table({"ts": stamps, "rpm": pa.array(range(50), pa.float64())}))
            writer.flush()
        assert sql(ready["http_port"], "SELECT count(*), max(rpm) FROM engine") == [[50, 49.0]]


def test_it_says_why_it_cannot_start(tmp_path: Path) -> None:
    what = config(tmp_path, TABLE)
    with process(what, tmp_path):
        second = tmp_path / "second"
        second.mkdir()
        other = begin(what, second)
        assert other.wait(60) == 1
        assert "error: another process has the edge database" in (second / "log").read_text()
    (tmp_path / "config").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "dataplane.tsdb.process", "--config", str(tmp_path / "config")],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: DatabaseConfig")


def test_with_users_nobody_else_is_served_and_without_them_nobody_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text('{"fleet": "s3cret"}')
    plain = config(tmp_path, TABLE)
    guarded = replace(plain, spec=replace(plain.spec, users=str(tmp_path / "users.json")))
    with process(guarded, tmp_path) as (_, ready):
        url = f"http://127.0.0.1:{ready['http_port']}/v1/sql?sql=SHOW+TABLES"
        for password, status in ((None, 401), ("wrong", 401), ("s3cret", 200)):
            request = urllib.request.Request(url)
            if password is not None:
                token = base64.b64encode(f"fleet:{password}".encode()).decode()
                request.add_header("Authorization", f"Basic {token}")
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    assert answer.status == status
            except urllib.error.HTTPError as error:
                assert error.code == status
    open_to_all = replace(plain, spec=replace(plain.spec, host="0.0.0.0"))
    refused = begin(open_to_all, tmp_path)
    assert refused.wait(60) == 1
    assert "without users everybody who reaches 0.0.0.0" in (tmp_path / "log").read_text()
