"""The lab's HTTP server: whatever comes is answered or cut off, streams are bounded, framing is taken off."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.bench.raw_objects import Target
from providers.base.clock import SystemClock
from tests.conformance.stores import ObjectServer, start_object_server

RSS_BYTES_MAX = 160 << 20
STREAM_BYTES = 1 << 30


ANONYMOUS = b'{"anonymous": true}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """An anonymous GCS, so that requests are written by hand."""
    running = ObjectServer("gcp", tmp_path_factory.mktemp("wire"))
    running.credentials.write_bytes(ANONYMOUS)
    with running:
        running.start()
        answer = ask(running, request("POST", "/storage/v1/b", b'{"name": "bucket"}'))
        assert answer.startswith(b"HTTP/1.1 200 ")
        yield running


def connect(server: ObjectServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: lab", *headers]
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def put(key: str, data: bytes) -> bytes:
    """A single-request upload of GCS's."""
    head = b'--x\r\ncontent-type: application/json\r\n\r\n{"name": "%s"}\r\n--x\r\n\r\n' % key.encode()
    path = "/upload/storage/v1/b/bucket/o?uploadType=multipart"
    return request("POST", path, head + data + b"\r\n--x--", "content-type: multipart/related; boundary=x")


def read_answer(connection: socket.socket, kept: bytearray) -> tuple[int, bytes]:
    """Status and body of the next answer; `kept` holds what came beyond it."""
    while b"\r\n\r\n" not in kept:
        data = connection.recv(1 << 16)
        if not data:
            raise ConnectionError("closed")
        kept += data
    head, _, _ = bytes(kept).partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    end = len(head) + 4 + (int(found[1]) if found else 0)
    while len(kept) < end:
        data = connection.recv(1 << 20)
        if not data:
            raise ConnectionError("cut short")
        kept += data
    body = bytes(kept[len(head) + 4 : end])
    del kept[:end]
    return int(head.split()[1]), body


def ask(server: ObjectServer, raw: bytes) -> bytes:
    """Send bytes; the answer, awaited, and whatever else comes until the server closes, or for a while."""
    with connect(server) as connection:
        connection.sendall(raw)
        got = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while data := connection.recv(1 << 16):
                got += data
                connection.settimeout(0.5)
        return got


def test_pipelined_requests_are_answered_in_order(server: ObjectServer) -> None:
    with connect(server) as connection:
        requests = [put(f"pipe-{i}", b"%d" % i) for i in range(200)]
        requests += [request("GET", f"/download/storage/v1/b/bucket/o/pipe-{i}?alt=media") for i in range(200)]
        connection.sendall(b"".join(requests))
        kept = bytearray()
        answers = [read_answer(connection, kept) for _ in requests]
    assert [status for status, _ in answers] == [200] * 400
    assert [body for _, body in answers[200:]] == [b"%d" % i for i in range(200)]


def test_request_that_comes_byte_by_byte_is_whole(server: ObjectServer) -> None:
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in put("slowly", b"abc"):
            connection.sendall(bytes([byte]))
        assert read_answer(connection, bytearray())[0] == 200


@pytest.mark.parametrize("size", [0, 1, 5_000, 300_000, 3_000_000])
@pytest.mark.parametrize("chunk", [1_000, 70_000])
def test_chunked_body_of_any_size_is_the_object(size: int, chunk: int, server: ObjectServer) -> None:
    data = os.urandom(size)
    whole = put("chunked", data)
    head, _, body = whole.partition(b"\r\n\r\n")
    head = re.sub(rb"content-length: \d+", b"Transfer-Encoding: chunked", head)
    with connect(server) as connection:
        connection.sendall(head + b"\r\n\r\n")
        for at in range(0, len(body), chunk):
            piece = body[at : at + chunk]
            connection.sendall(b"%x;ext=1\r\n" % len(piece) + piece + b"\r\n")
        connection.sendall(b"0\r\nx-trailer: 1\r\n\r\n")
        kept = bytearray()
        assert read_answer(connection, kept)[0] == 200
        connection.sendall(request("GET", "/download/storage/v1/b/bucket/o/chunked?alt=media"))
        assert read_answer(connection, kept) == (200, data)


def test_expect_is_answered_before_the_body_is_sent(server: ObjectServer) -> None:
    head, _, body = put("expected", b"x" * 10).partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_answer(connection, bytearray())[0] == 200


HOSTILE = {
    "not http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50 + b"\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nhost: a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two lengths": b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length and chunks": b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "another coding": b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "signed length": b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nabcde",
    "negative length": b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
    "huge length": b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
    "too large": b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999999\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\n c\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
    "bare line feed": b"GET / HTTP/1.1\nhost: a\n\n\r\n\r\n",
    "control character": b"GET / HTTP/1.1\r\nhost: a\r\nx-a: b\x00c\r\n\r\n",
    "endless head": b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x-a: b\r\n" * 20_000,
    "many headers": b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: b\r\n" * 1_000 + b"\r\n",
    "bad chunk size": b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n\r\n",
    "long chunk": b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    "endless chunk line": b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"a" * 100_000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_refused_and_the_next_client_is_served(what: str, server: ObjectServer) -> None:
    got = ask(server, HOSTILE[what])
    assert re.match(rb"HTTP/1\.1 (400|411|413|431|501) ", got), got[:100]
    assert len(re.findall(rb"HTTP/1\.1 \d\d\d ", got)) == 1
    assert b"close" in got.partition(b"\r\n\r\n")[0].lower()
    assert ask(server, put("after", b"x")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("what", ["{", "[1, 2]", "[" * 100_000, '"a"', "\xff", '{"name": 5}', '{"name": null}'])
def test_malformed_documents_are_refused(what: str, server: ObjectServer) -> None:
    got = ask(server, request("POST", "/storage/v1/b", what.encode("latin-1")))
    assert re.match(rb"HTTP/1\.1 [245]\d\d ", got), got[:100]
    assert ask(server, put("after", b"x")).startswith(b"HTTP/1.1 200 ")


def test_random_bytes_never_bring_it_down(server: ObjectServer) -> None:
    for seed in range(60):
        noise = hashlib.shake_256(b"%d" % seed).digest(500 + 37 * seed)
        good = put("noise", noise)
        at = seed * 7 % len(good)
        ask_quickly(server, good[:at] + noise[:20] + good[at:])
    assert ask(server, put("after", b"x")).startswith(b"HTTP/1.1 200 ")
    assert server.process is not None and server.process.poll() is None


def ask_quickly(server: ObjectServer, raw: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1 << 16):
                pass


def data_files(server: ObjectServer) -> list[str]:
    return sorted(path.name for path in (server.root / "data").iterdir())


def test_client_that_leaves_in_the_middle_of_a_body_leaves_nothing(server: ObjectServer) -> None:
    before = data_files(server)
    for size in (1_000, 2_000_000, 9_000_000):
        whole = put("left", bytes(10_000_000))
        with connect(server) as connection:
            connection.sendall(whole[:size])
    deadline = time.monotonic() + 10
    while data_files(server) != before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ask(server, request("GET", "/storage/v1/b/bucket/o/left")).startswith(b"HTTP/1.1 404 ")


def test_client_that_does_not_take_its_answer_costs_bounded_memory(s3: ObjectServer) -> None:
    to = target(s3)
    with connect(s3) as connection:
        upload(connection, to, "unread", os.urandom(1 << 20), 48)
        before = rss_bytes(s3)
        idle = []
        for _ in range(8):
            idle.append(connect(s3))
            idle[-1].sendall(to.signed("GET", "unread", {}, None))
        for one in idle:
            assert one.recv(1) == b"H"
        assert rss_bytes(s3) - before < 8 * (6 << 20)
        for one in idle:
            one.close()


def rss_bytes(server: ObjectServer) -> int:
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes(server: ObjectServer) -> int:
    assert server.process is not None
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def target(server: ObjectServer) -> Target:
    """Signs requests to S3's dialect, where a put of any size is one request."""
    address = server.address("bucket")
    return Target(address, json.loads(Path(str(address.credentials_file)).read_bytes()), SystemClock())


def upload(connection: socket.socket, to: Target, key: str, piece: bytes, times: int) -> None:
    """Send `piece` so many times as one object."""
    connection.sendall(to.signed("PUT", key, {}, len(piece) * times))
    for _ in range(times):
        connection.sendall(piece)
    connection.settimeout(120)
    status, body = read_answer(connection, bytearray())
    assert status == 200, body[:300]


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[ObjectServer]:
    with start_object_server("s3", tmp_path) as running:
        with connect(running) as connection:
            connection.sendall(target(running).signed("PUT", "", {}, 0))
            assert read_answer(connection, bytearray())[0] == 200
        yield running


def test_a_gibibyte_streams_through_in_bounded_memory(s3: ObjectServer) -> None:
    piece, to = os.urandom(1 << 20), target(s3)
    with connect(s3) as connection:
        upload(connection, to, "large", piece, STREAM_BYTES >> 20)
        connection.sendall(to.signed("GET", "large", {}, None))
        kept = bytearray()
        while b"\r\n\r\n" not in kept:
            kept += connection.recv(1 << 16)
        assert kept.startswith(b"HTTP/1.1 200 ") and b"content-length: %d" % STREAM_BYTES in kept.lower()
        del kept[: kept.find(b"\r\n\r\n") + 4]
        seen, digest = len(kept), hashlib.blake2b(kept)
        buffer = memoryview(bytearray(1 << 20))
        while seen < STREAM_BYTES:
            count = connection.recv_into(buffer)
            assert count
            digest.update(buffer[:count])
            seen += count
    expected = hashlib.blake2b()
    for _ in range(STREAM_BYTES >> 20):
        expected.update(piece)
    assert digest.digest() == expected.digest()
    assert peak_rss_bytes(s3) < RSS_BYTES_MAX
