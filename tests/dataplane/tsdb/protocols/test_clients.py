"""Promises to clients that nobody here wrote: InfluxDB's own of versions 1, 2 and 3, and Telegraf's payloads."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from influxdb import InfluxDBClient as Client1
from influxdb.exceptions import InfluxDBClientError
from influxdb_client import InfluxDBClient as Client2
from influxdb_client import Point, WriteOptions, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException
from influxdb_client_3 import InfluxDBClient3
from influxdb_client_3.exceptions import InfluxDBError

from tests.dataplane.tsdb.protocols.served import Served, served

USERS = {"ada": "secret"}
AUTH = {"Authorization": "Token ada:secret"}


@pytest.fixture
def server() -> Iterator[Served]:
    with served(users=USERS) as one:
        one.session.headers.update(AUTH)
        yield one


def test_influxdbs_first_client_writes(server: Served) -> None:
    client = Client1("127.0.0.1", server.port, "ada", "secret", "public", gzip=True, timeout=10)
    assert client.ping().startswith("yunhe")
    points = [
        {
            "measurement": "cpu load",
            "tags": {"host": f"h {at % 3}"},
            "time": at,
            "fields": {"v": at / 2, "n": at, "s": "x=1"},
        }
        for at in range(2_000)
    ]
    assert client.write_points(points, time_precision="ms", batch_size=700)
    assert server.rows('SELECT host, count(*), sum(v), sum(n)::INT FROM "cpu load" GROUP BY 1 ORDER BY 1') == [
        [f"h {h}", len(r), sum(r) / 2, sum(r)] for h, r in ((h, range(h, 2_000, 3)) for h in range(3))
    ]
    with pytest.raises(InfluxDBClientError, match=r"partial write.*line 2, column 5: field"):
        client.write(["m f=1 1", "m f=x 2"], {"db": "public"}, protocol="line")
    assert server.rows("SELECT f FROM m") == [[1.0]]
    client.close()


def test_influxdbs_second_client_writes_at_once_and_in_batches(server: Served) -> None:
    with Client2(server.url, token="ada:secret", org="-", enable_gzip=True) as client:
        assert client.ping()
        sync = client.write_api(write_options=SYNCHRONOUS)
        when = datetime(2026, 8, 21, 12, 0, 0, 123_000, tzinfo=UTC)
        point = Point("weather").tag("city", "Zürich, CH").field("t", 21.5).field("ok", True).field("note", 'a "b"\nc')
        sync.write("public", record=point.time(when, WritePrecision.US), write_precision=WritePrecision.US)
        assert server.rows("SELECT * FROM weather") == [
            ["Zürich, CH", int(when.timestamp() * 1_000) * 1_000_000, 'a "b"\nc', True, 21.5]
        ]
        with pytest.raises(ApiException, match="line 1, column") as refused:
            sync.write("public", record="weather t=true 1")
        assert refused.value.status == 400
        with pytest.raises(ApiException) as unknown:
            sync.write("elsewhere", record="m f=1")
        assert unknown.value.status == 404
        errors: list[Any] = []
        with client.write_api(
            write_options=WriteOptions(batch_size=500, flush_interval=100), error_callback=lambda *e: errors.append(e)
        ) as batching:
            for at in range(3_000):
                batching.write("public", record=Point("batched").tag("c", f"{at % 10}").field("i", at).time(at))
        assert not errors
        assert server.rows("SELECT count(*), sum(i)::INT FROM batched") == [[3_000, sum(range(3_000))]]


def test_influxdbs_third_client_writes(server: Served) -> None:
    # It says "Bearer": our users write user:password as its token.
    with InfluxDBClient3(host=server.url, token="ada:secret", database="public", write_options=None) as client:
        client.write(["m,a=b f=1.5,i=2i 1000", "m,a=c f=2.5 2000"], write_precision="us")
        with pytest.raises(InfluxDBError, match="line 2"):
            client.write(["m f=3 3", "m f=x 4"])
    found = server.rows("SELECT a, f, i, greptime_timestamp FROM m ORDER BY f")
    assert [row[:3] for row in found[:2]] == [["b", 1.5, 2], ["c", 2.5, None]]


TELEGRAF = b"""\
cpu,cpu=cpu0,host=car-17 usage_user=1.5,usage_system=0.3,usage_idle=98.2,usage_nice=0 1755777600000000000
cpu,cpu=cpu-total,host=car-17 usage_user=2.25,usage_system=0.5,usage_idle=97.25,usage_nice=0 1755777600000000000
mem,host=car-17 total=8589934592i,used=4294967296i,used_percent=50,available=4294967296i 1755777600000000000
disk,device=nvme0n1p2,fstype=ext4,host=car-17,mode=rw,path=/ free=107374182400i,inodes_free=1234567i 1755777600000000000
disk,device=nvme0n1p3,fstype=ext4,host=car-17,path=/var/my\\ data free=53687091200i,inodes_free=7i 1755777600000000000
net,host=car-17,interface=eth0 bytes_sent=18446744073709551615u,bytes_recv=123456789i,drop_in=0i 1755777600000000000
system,host=car-17 load1=0.42,load5=0.36,n_cpus=8i,uptime_format="12 days,  3:04" 1755777600000000000
system,host=car-17 uptime=1047840i 1755777600000000000
procstat,host=car-17,pattern=.*,process_name=kworker/0:1 memory_rss=0i,running=true 1755777600000000000
"""  # fmt: skip


def test_a_payload_of_telegrafs_arrives_whole(server: Served) -> None:
    headers = {
        **AUTH,
        "Content-Encoding": "gzip",
        "Content-Type": "text/plain; charset=utf-8",
        "User-Agent": "Telegraf/1.30",
    }
    for _ in range(3):  # again and again: the same rows
        answer = server.post("/api/v2/write?bucket=public&org=&precision=ns", gzip.compress(TELEGRAF), headers=headers)
        assert answer.status_code == 204, answer.text
    assert [t.name for t in server.database.tables()] == ["cpu", "disk", "mem", "net", "procstat", "system"]
    assert server.rows("SELECT cpu, usage_idle FROM cpu ORDER BY 1") == [["cpu-total", 97.25], ["cpu0", 98.2]]
    # Two lines of one series and time are one row.
    assert server.rows("SELECT load1, n_cpus, uptime_format, uptime FROM system") == [
        [0.42, 8, "12 days,  3:04", 1047840]
    ]
    assert server.rows("SELECT path, free FROM disk ORDER BY free") == [
        ["/var/my data", 53687091200], ["/", 107374182400],
    ]  # fmt: skip
    assert server.rows("SELECT bytes_sent FROM net") == [[2**64 - 1]]
    assert server.rows("SELECT process_name, running FROM procstat") == [["kworker/0:1", True]]
