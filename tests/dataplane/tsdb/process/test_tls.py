"""TLS on a database's port: real clients are served by https and in no other way, a new certificate is taken over
without a restart, and files that will not do are said in one sentence."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS

from dataplane.contract.database import DatabaseConfig
from dataplane.contract.security import TlsSpec
from tests.dataplane.broker.secured import Authority
from tests.dataplane.tsdb.process.test_edge_process import TABLE, begin, config, process


def secured(folder: Path) -> DatabaseConfig:
    plain = config(folder, TABLE)
    return replace(plain, spec=replace(plain.spec, tls=TlsSpec(str(folder / "s.pem"), str(folder / "s.key"))))


def test_clients_are_served_by_https_alone_and_a_new_certificate_is_taken_over(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue("s", "edge")
    with process(secured(tmp_path), tmp_path) as (started, ready):
        url, ca = f"https://127.0.0.1:{ready['http_port']}", str(authority.file)
        with InfluxDBClient(url=f"{url}/v1/influxdb", token="", org="", ssl_ca_cert=ca) as client:
            client.write_api(write_options=SYNCHRONOUS).write("public", record="engine rpm=7 1700000000000000000")
        asked = requests.get(f"{url}/v1/sql", params={"sql": "SELECT rpm FROM engine"}, verify=ca, timeout=30)
        assert asked.json()["output"][0]["records"]["rows"] == [[7.0]]
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{url}/v1/sql", timeout=30)
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(f"{url.replace('https', 'http')}/v1/sql", timeout=30)

        before = ssl.get_server_certificate(("127.0.0.1", ready["http_port"]))
        authority.issue("s", "edge, next year")
        until = time.monotonic() + 30
        while (now := ssl.get_server_certificate(("127.0.0.1", ready["http_port"]))) == before:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert now.strip() == (tmp_path / "s.pem").read_text().strip() and started.poll() is None
        (tmp_path / "s.pem").write_text("half a")
        until = time.monotonic() + 30
        while "certificate-not-reloaded" not in (tmp_path / "log").read_text():
            assert time.monotonic() < until
            time.sleep(0.2)
        assert ssl.get_server_certificate(("127.0.0.1", ready["http_port"])) == now, "the old one stays"


@pytest.mark.parametrize("wrong", ["s.pem", "s.key"])
def test_files_that_will_not_do_are_said_in_one_sentence(tmp_path: Path, wrong: str) -> None:
    Authority(tmp_path).issue("s", "edge")
    (tmp_path / wrong).write_text("-----BEGIN NOTHING-----\n")
    started = begin(secured(tmp_path), tmp_path)
    assert started.wait(60) == 1
    said = (tmp_path / "log").read_text()
    assert f"error: TLS with {tmp_path / 's.pem'} cannot be had" in said and "Traceback" not in said
