"""Promises of the database over HTTP: GreptimeDB's answers to SQL, partial writes, bounds, who may ask, and an orderly
end."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import requests

from dataplane.metrics.page import Page
from dataplane.tsdb.protocols.http_guard import HttpSettings
from providers.base.errors import Conflict, Corrupt, Fenced, Full, Internal, OutcomeUnknown, Unavailable, YunheError
from tests.dataplane.tsdb.protocols.memory import MemoryDatabase
from tests.dataplane.tsdb.protocols.served import Served, served


@pytest.fixture
def server() -> Iterator[Served]:
    with served() as one:
        yield one


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


CREATE = (
    "CREATE TABLE t (host STRING, ts TIMESTAMP(3) TIME INDEX, v DOUBLE, n BIGINT, up BOOLEAN, note STRING, "
    "PRIMARY KEY (host))"
)
INSERT = (
    "INSERT INTO t VALUES ('a', 1702433141000, 0.5, 9007199254740993, true, 'x,\"y\"'), "
    "('b', 1702433142000, NULL, NULL, NULL, NULL)"
)
SELECT = "SELECT host, ts, v, n, up, note FROM t ORDER BY host"


def filled(server: Served) -> None:
    for sql in (CREATE, INSERT):
        assert server.post("/v1/sql", {"sql": sql}).status_code == 200


# ── SQL ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sql_is_answered_in_greptimedbs_json(server: Served) -> None:
    created = server.post("/v1/sql?db=public", {"sql": CREATE}).json()
    assert created["output"] == [{"affectedrows": 0}]
    assert server.get("/v1/sql", params={"sql": INSERT}).json()["output"] == [{"affectedrows": 2}]
    answer = server.post("/v1/sql", {"sql": SELECT + "; SELECT 1 AS one"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-greptime-format"] == "greptimedb_v1"
    assert isinstance(answer.json().pop("execution_time_ms"), int)
    first, second = answer.json()["output"]
    assert first == {
        "records": {
            "schema": {
                "column_schemas": [
                    {"name": "host", "data_type": "String"},
                    {"name": "ts", "data_type": "TimestampMillisecond"},
                    {"name": "v", "data_type": "Float64"},
                    {"name": "n", "data_type": "Int64"},
                    {"name": "up", "data_type": "Boolean"},
                    {"name": "note", "data_type": "String"},
                ]
            },
            "rows": [
                ["a", 1702433141000, 0.5, 9007199254740993, True, 'x,"y"'],
                ["b", 1702433142000, None, None, None, None],
            ],
            "total_rows": 2,
        }
    }
    assert second["records"]["rows"] == [[1]]


def test_the_other_formats_are_greptimedbs(server: Served) -> None:
    filled(server)

    def asked(form: str, **more: str) -> requests.Response:
        answer = server.get("/v1/sql", params={"sql": SELECT, "format": form, **more})
        assert answer.status_code == 200, answer.text
        return answer

    assert asked("csv").content == b'a,1702433141000,0.5,9007199254740993,true,"x,""y"""\r\nb,1702433142000,,,,\r\n'
    named = list(csv.reader(io.StringIO(asked("csvWithNamesAndTypes").text)))
    assert named[:2] == [
        ["host", "ts", "v", "n", "up", "note"],
        ["String", "TimestampMillisecond", "Float64", "Int64", "Boolean", "String"],
    ]
    assert len(list(csv.reader(io.StringIO(asked("csvWithNames").text)))) == 3
    assert asked("json", limit="1").json()["data"] == [
        {"host": "a", "ts": 1702433141000, "v": 0.5, "n": 9007199254740993, "up": True, "note": 'x,"y"'}
    ]
    few = server.get("/v1/sql", params={"sql": "SELECT host, v FROM t ORDER BY host", "format": "table"}).text
    assert few == '┌─host─┬─v────┐\n│ "a"  │ 0.5  │\n│ "b"  │ null │\n└──────┴──────┘\n'
    for compression in ("", "zstd", "lz4"):
        table = pa.ipc.open_file(asked("arrow", compression=compression).content).read_all()
        assert table.column("n").to_pylist() == [9007199254740993, None]
        assert table.schema.field("ts").type == pa.timestamp("ms")
    assert len(pa.ipc.open_stream(asked("arrow_stream").content).read_all()) == 2


@pytest.mark.parametrize(
    ("params", "status", "code", "says"),
    [
        ({"sql": ""}, 400, 1004, "sql is missing"),
        ({"sql": "SELEC 1"}, 501, 1001, "SELEC"),
        ({"sql": "SELECT nothing FROM nowhere"}, 400, None, "nowhere"),
        ({"sql": "DROP TABLE nowhere"}, 400, 4001, "nowhere"),
        ({"sql": CREATE}, 400, 4000, "exists"),
        ({"sql": SELECT, "format": "xml"}, 400, 1004, "format 'xml' is not there"),
        ({"sql": SELECT, "limit": "-1"}, 400, 1004, "limit"),
        ({"sql": "SELECT 1; SELECT 2", "format": "csv"}, 400, 1004, "one statement"),
        ({"sql": SELECT, "db": "other"}, 404, 4004, "no database 'other'"),
    ],
)
def test_what_is_wrong_is_said_in_greptimedbs_form(
    server: Served, params: dict[str, str], status: int, code: int | None, says: str
) -> None:
    filled(server)
    answer = server.get("/v1/sql", params=params)
    body = answer.json()
    assert answer.status_code == status, body
    assert set(body) == {"code", "error", "execution_time_ms"}
    assert code is None or body["code"] == code
    assert says in body["error"]


def test_numbers_that_json_cannot_hold_are_null(server: Served) -> None:
    assert server.rows("SELECT 'nan'::DOUBLE, 'inf'::FLOAT, [1.5, 'nan'::DOUBLE], 1.10::DECIMAL(4,2)") == [
        [None, None, [1.5, None], "1.10"]
    ]


# ── writes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "/v1/influxdb/write?db=public&precision=ms",
        "/write?db=memory&precision=ms&rp=autogen",
        "/v1/influxdb/api/v2/write?bucket=public&precision=ms&org=x",
        "/api/v2/write?bucket=memory/autogen&precision=ms",
        "/api/v3/write_lp?db=public&precision=millisecond",
    ],
)
def test_every_path_of_influxdb_writes(server: Served, path: str) -> None:
    answer = server.post(path, "cpu,host=a load=0.5 1667446797450\n")
    assert (answer.status_code, answer.text) == (204, "")
    assert server.rows("SELECT host, load, greptime_timestamp FROM cpu") == [["a", 0.5, 1667446797450000000]]


def test_a_partial_write_stores_the_good_lines_and_tells_line_and_column(server: Served) -> None:
    answer = server.post("/v1/influxdb/write", "m f=1 1\nm f=abc 2\n\nm f=3 3\nm,x f=1\n")
    body = answer.json()
    assert answer.status_code == 400
    assert (body["code"], body["line"], body["column"]) == ("invalid", 2, 5)
    assert (body["accepted"], body["refused"]) == (2, 2)
    assert [(e["line_number"], e["column"], e["original_line"]) for e in body["data"]] == [
        (2, 5, "m f=abc 2"),
        (5, 4, "m,x f=1"),
    ]
    assert "line 2, column 5" in body["message"] == body["error"]
    assert server.rows("SELECT f FROM m ORDER BY f") == [[1.0], [3.0]]


def test_nothing_is_stored_where_partial_writes_are_not_accepted(server: Served) -> None:
    answer = server.post("/api/v3/write_lp?db=public&accept_partial=false", "m f=1 1\nm f=abc 2\n")
    assert answer.status_code == 400
    assert answer.json()["accepted"] == 0
    assert "m" not in server.database.schemas


def test_an_unknown_bucket_or_precision_is_refused(server: Served) -> None:
    answer = server.post("/api/v2/write?bucket=other", "m f=1")
    assert (answer.status_code, answer.json()["code"]) == (404, "not found")
    assert server.post("/api/v2/write?precision=day", "m f=1").status_code == 400
    assert not server.database.schemas


def test_opentsdbs_points_arrive_and_bad_ones_are_told(server: Served) -> None:
    good = {"metric": "sys.cpu", "timestamp": 1346846400, "value": 18, "tags": {"host": "web01", "dc": "lga"}}
    assert server.post("/v1/opentsdb/api/put", json=good).status_code == 204
    again = {**good, "timestamp": 1346846400123, "value": "9.5"}
    assert server.post("/api/put", json=[again]).status_code == 204
    assert server.rows('SELECT * FROM "sys.cpu" ORDER BY 3') == [
        ["lga", "web01", 1346846400000, 18.0],
        ["lga", "web01", 1346846400123, 9.5],
    ]
    bad = [{**good, "value": "x"}, {**good, "metric": ""}, {**good, "tags": {"new": "1"}}, 7, {**good, "value": 1}]
    answer = server.post("/api/put?details", json=bad)
    assert answer.status_code == 400
    told = answer.json()
    assert (told["success"], told["failed"]) == (1, 4)
    assert [e["datapoint"] for e in told["errors"]] == bad[:4]
    assert "value is missing" in told["errors"][0]["error"]
    assert server.post("/api/put?summary", json=good).json() == {"success": 1, "failed": 0}
    assert server.post("/api/put", "{").json()["error"]["code"] == 400


def test_arrow_streams_arrive_in_the_tables_types(server: Served) -> None:
    assert server.post("/v1/sql", {"sql": CREATE}).status_code == 200

    def sent(table: pa.Table, name: str = "t") -> requests.Response:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return server.post(f"/v1/arrow/write?table={name}", sink.getvalue())

    hosts = pa.array(["a", "b"]).dictionary_encode()
    table = pa.table({"ts": pa.array([1, 2], pa.timestamp("ms")), "host": hosts, "n": pa.array([7, None], pa.int16())})
    assert sent(table).json()["output"] == [{"affectedrows": 2}]
    assert server.rows("SELECT host, ts, n, v FROM t ORDER BY ts") == [["a", 1, 7, None], ["b", 2, None, None]]
    assert sent(table, "nowhere").json()["code"] == 4001
    for wrong in (
        table.append_column("x", table["ts"]),
        table.drop_columns(["n"]).append_column("n", pa.array(["x", "y"])),
        table.drop_columns(["ts"]).append_column("ts", pa.array([1, 2], pa.timestamp("ns"))),
    ):
        assert sent(wrong).status_code == 400, wrong.schema
    for body in (b"", b"hello", b"\xff" * 100):
        assert server.post("/v1/arrow/write?table=t", body).status_code == 400
    assert len(server.rows("SELECT * FROM t")) == 2


# ── bounds and faults ───────────────────────────────────────────────────────────────────────────────────────────────


def test_bodies_are_inflated_within_bounds() -> None:
    with served(settings=HttpSettings(body_bytes_max=100_000)) as server:
        body = "".join(f"m f={at} {at}\n" for at in range(1_000)).encode()
        packed = {"Content-Encoding": "gzip"}
        assert server.post("/write", gzip.compress(body), headers=packed).status_code == 204
        assert server.rows("SELECT count(*) FROM m") == [[1_000]]
        bomb = gzip.compress(b"m f=1 1\n" * 2_000_000)
        assert len(bomb) < 100_000
        for payload, headers in ((bomb, packed), (b"m f=1 1\n" * 20_000, {})):
            answer = server.post("/write", payload, headers=headers)
            assert answer.status_code == 413
            assert "larger than 100000 bytes" in answer.json()["error"]
        assert server.post("/write", b"no gzip at all", headers=packed).status_code == 400
        assert server.rows("SELECT count(*) FROM m") == [[1_000]]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Full("memory stayed full", hint="write slower"), 503, 6000),
        (Unavailable("it closes"), 503, 5000),
        (OutcomeUnknown("who knows"), 503, 5000),
        (Fenced("another owns it"), 503, 4007),
        (Conflict("somebody was first"), 503, 4009),
        (Corrupt("a page's checksum"), 500, 1003),
        (Internal("a bug"), 500, 1003),
    ],
)
def test_the_databases_errors_have_their_status(error: YunheError, status: int, code: int) -> None:
    with served() as server:
        filled(server)
        server.database.refuse = error
        answer = server.post("/v1/sql", {"sql": INSERT})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert error.message in answer.json()["error"]
        assert ("Retry-After" in answer.headers) == (status == 503)
        influx = server.post("/api/v2/write", "m f=1")
        assert (influx.status_code, influx.json()["code"]) == (
            status, "conflict" if code == 4009 else "unavailable" if status == 503 else "internal error",
        )  # fmt: skip
        assert server.post("/api/put", json={"metric": "m", "timestamp": 1, "value": 1}).status_code == status


class Held(MemoryDatabase):
    """Writes wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.held = asyncio.Event()

    def let_go(self, server: Served) -> None:
        assert self.held is not None
        server.loop.call_soon_threadsafe(self.held.set)


def writing(server: Served, count: int) -> tuple[list[threading.Thread], list[requests.Response]]:
    answers: list[requests.Response] = []

    def write(at: int) -> None:
        answers.append(requests.post(f"{server.url}/write", f"m f={at} {at}", timeout=30))

    threads = [threading.Thread(target=write, args=(at,)) for at in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def test_more_requests_than_there_are_places_come_again() -> None:
    database = Held()
    with served(database, settings=HttpSettings(requests_max=2)) as server:
        threads, answers = writing(server, 2)
        until(lambda: database.waiting == 2)
        refused = server.post("/write", "m f=9 9")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert server.get("/health").status_code == 200
        assert "yunhe_http_requests_under_way 2" in server.get("/metrics").text
        database.let_go(server)
        for thread in threads:
            thread.join(30)
        assert [a.status_code for a in answers] == [204, 204]
        assert server.post("/write", "m f=9 9").status_code == 204
        assert server.rows("SELECT count(*) FROM m") == [[3]]


def test_a_request_that_takes_too_long_is_answered() -> None:
    database = Held()
    with served(database, settings=HttpSettings(request_ms_max=100, requests_max=1)) as server:
        assert server.post("/write", "m f=1 1").status_code == 504
        # One that sends slowly holds its place no longer.
        with socket.create_connection(("127.0.0.1", server.port), 10) as slow:
            slow.sendall(b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nm f=")
            assert b" 504 " in slow.recv(1_000)
        database.let_go(server)
        assert server.post("/write", "m f=1 1").status_code == 204


def test_the_end_lets_requests_under_way_finish() -> None:
    database = Held()
    with served(database) as server:
        threads, answers = writing(server, 3)
        until(lambda: database.waiting == 3)
        stopped = server.stop()

        def refuses() -> bool:
            try:
                socket.create_connection(("127.0.0.1", server.port), 1).close()
            except OSError:
                return True
            return False

        until(refuses)
        assert not stopped.done()
        database.let_go(server)
        stopped.result(30)
        for thread in threads:
            thread.join(30)
        assert [a.status_code for a in answers] == [204, 204, 204]
        assert len(database.rows("m")) == 3


# ── who may ask ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_known_users_may_ask() -> None:
    with served(users={"ada": "pass:word"}) as server:
        basic = "Basic " + b64encode(b"ada:pass:word").decode()
        for headers, query in (
            ({"Authorization": basic}, ""),
            ({"x-greptime-auth": basic}, ""),
            ({"Authorization": "Token ada:pass:word"}, ""),
            ({"Authorization": "Bearer ada:pass:word"}, ""),
            ({}, "?u=ada&p=pass:word"),
        ):
            assert server.post("/write" + query, "m f=1 1", headers=headers).status_code == 204, headers
        for headers, query, code in (
            ({}, "", 7003),
            ({"Authorization": "Digest x"}, "", 7003),
            ({"Authorization": "Basic ???"}, "", 7003),
            ({"Authorization": "Basic " + b64encode(b"ada:wrong").decode()}, "", 7002),
            ({"Authorization": "Basic " + b64encode(b"bob:pass:word").decode()}, "", 7002),
            ({}, "?u=ada", 7002),
        ):
            answer = server.post("/v1/sql" + query, {"sql": "SELECT 1"}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, code), headers
            assert "WWW-Authenticate" in answer.headers
        for path in ("/config", "/v1/sql?sql=SELECT%201"):
            assert server.get(path).status_code == 401
        for path in ("/health", "/ping", "/ready", "/metrics", "/status", "/v1/influxdb/ping", "/v1/influxdb/health"):
            assert server.get(path).status_code in (200, 204), path
        assert "pass:word" not in server.get("/config", headers={"Authorization": basic}).text


# ── of this process ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_process_tells_of_itself() -> None:
    is_ready = True

    def figures(page: Page) -> None:
        page.counter("yunhe_edge_rows_total", "Rows taken.", 7)

    with served(ready=lambda: is_ready, figures=figures, config={"node": "car-1"}) as server:
        assert server.get("/v1/influxdb/ping").status_code == server.get("/ping").status_code == 204
        assert server.session.head(server.url + "/ping", timeout=10).status_code == 204
        assert server.get("/health").json()["status"] == "pass"
        assert server.get("/ready").status_code == 200
        is_ready = False
        assert server.get("/ready").status_code == 503
        server.post("/write", "m f=1 1\nbad")
        status = server.get("/status").json()
        assert (status["name"], status["role"], status["tables"]) == ("memory", "edge", 1)
        assert server.get("/config").json()["node"] == "car-1"
        metrics = server.get("/metrics").text
        assert 'yunhe_http_requests_total{route="influx_v1",status="400"} 1' in metrics
        assert "yunhe_http_rows_total 1\n" in metrics
        assert "yunhe_http_refused_total 1\n" in metrics
        assert "yunhe_edge_rows_total 7\n" in metrics
        # Labels are bounded: whatever path is asked for.
        for at in range(20):
            assert server.get(f"/nowhere/{at}").status_code == 404
        assert server.get("/metrics").text.count("404") == 1
        assert server.get("/write").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/v1/prometheus/write", "/v1/prometheus/api/v1/query?query=up", "/v1/promql", "/v1/otlp/v1/metrics",
        "/v1/loki/api/v1/push", "/v1/splunk/services/collector", "/v1/elasticsearch/_bulk", "/v1/ingest",
        "/v1/pipelines/x", "/query?q=CREATE+DATABASE+x", "/api/v2/query",
    ],
)  # fmt: skip
def test_what_is_not_there_says_so_and_what_is(server: Served, path: str) -> None:
    for answer in (server.post(path, b"x"), server.get(path)):
        body: dict[str, Any] = answer.json()
        assert answer.status_code == 501
        assert body["code"] == 1001
        assert "not implemented" in body["error"]
        assert "/v1/sql" in body["error"]
