"""A load of produce or fetch requests as dense as a client can make it, the same for every broker under test.

    python -m controlplane.bench.load produce --broker 127.0.0.1:9092 --topic t --batch-bytes 65536 --seconds 5

Requests are made once and sent again and again, so that little of the two cores goes to the client: what is measured is
the broker. Each connection keeps `--window` requests in flight and has a partition of its own. Each answer's error code
is looked at, and its latency counts from the moment at which the request was due (with `--rate`) or handed to the
socket, so that a broker that stalls cannot hide it. Prints one JSON object. Protocol: Kafka's Produce v7, Fetch v11.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from crc32c import crc32c

RECEIVE_BYTES = 4 << 20
STALL_S = 60
"""A run in which no answer comes for so long is given up."""
_clock = time.perf_counter  # noqa: TID251 -- the measuring instrument itself


def encode_batch(records: int, record_bytes: int) -> bytes:
    """A v2 record batch of records without key whose values have `record_bytes` bytes that do not compress."""
    body = bytearray()
    for i in range(records):
        value = os.urandom(record_bytes)  # noqa: TID251 -- content only; nothing depends on it
        fields = b"\0" + _varint(0) + _varint(i) + _varint(-1) + _varint(len(value)) + value + _varint(0)
        body += _varint(len(fields)) + fields
    now_ms = int(time.time() * 1000)  # noqa: TID251 -- a record's timestamp
    covered = struct.pack(">hiqqqhii", 0, records - 1, now_ms, now_ms, -1, -1, -1, records) + body
    return struct.pack(">qiibI", 0, len(covered) + 9, -1, 2, crc32c(covered)) + covered


def _varint(value: int) -> bytes:
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def produce_frame(topic: str, partition: int, batch: bytes) -> bytes:
    """A whole request with its length, acks from all."""
    body = (
        struct.pack(">hhi", 0, 7, 0)
        + _string("bench")
        + struct.pack(">hhi", -1, -1, 30_000)
        + struct.pack(">i", 1)
        + _string(topic)
        + struct.pack(">iii", 1, partition, len(batch))
        + batch
    )
    return struct.pack(">i", len(body)) + body


def fetch_frame(topic: str, partition: int, bytes_max: int) -> bytes:
    """A whole request without a session, from the first offset on, that waits for no more than is there."""
    body = (
        struct.pack(">hhi", 1, 11, 0)
        + _string("bench")
        + struct.pack(">iiiibii", -1, 500, 1, bytes_max, 0, 0, -1)
        + struct.pack(">i", 1)
        + _string(topic)
        + struct.pack(">iiiqqi", 1, partition, -1, 0, -1, bytes_max)
        + struct.pack(">i", 0)
        + _string("")
    )
    return struct.pack(">i", len(body)) + body


@dataclass(slots=True)
class Connection:
    """One socket: what is still to be sent, since when each answer is due, and what of an answer has arrived."""

    sock: socket.socket
    topic: str
    frame: bytes
    sending: memoryview = field(default_factory=lambda: memoryview(b""))
    due: deque[float] = field(default_factory=deque)
    received: bytearray = field(default_factory=bytearray)
    skip: int = 0
    writing: bool = False


@dataclass(slots=True)
class Result:
    """What a run saw. Latencies in seconds."""

    answers: int = 0
    payload_bytes: int = 0
    latencies: list[float] = field(default_factory=list)

    def plain(self, seconds: float, batch_bytes: int) -> dict[str, float]:
        ordered = sorted(self.latencies) or [0.0]

        def at(share: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 3)

        return {
            "requests": self.answers,
            "requests_s": round(self.answers / seconds, 1),
            "mb_s": round((self.payload_bytes or self.answers * batch_bytes) / 1e6 / seconds, 2),
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "max_ms": round(ordered[-1] * 1e3, 3),
            "seconds": round(seconds, 3),
        }


class Failed(Exception):
    """The broker refused something, or left."""


class Load:
    """A number of connections under one selector; `run` is the whole life of it."""

    def __init__(self, connections: Sequence[Connection], *, window: int, fetch: bool, rate: float) -> None:
        """`rate`: requests a second over all connections, 0 for as many as go."""
        self._connections = connections
        self._window = window
        self._fetch = fetch
        self._rate = rate
        self._selector = selectors.DefaultSelector()
        for connection in connections:
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)
        self._buffer = bytearray(RECEIVE_BYTES)

    def run(self, warm_s: float, seconds: float) -> tuple[Result, float]:
        """Load for `warm_s`, then measure for `seconds`; the result and how long the measured part took."""
        result, sent = Result(), 0
        begin = _clock()
        measured_from = begin + warm_s
        end = measured_from + seconds
        measuring = False
        last_answer = begin
        while True:
            now = _clock()
            if now >= end:
                return result, now - measured_from
            if not measuring and now >= measured_from:
                measuring, measured_from, end = True, now, now + seconds
                result.answers = result.payload_bytes = 0
                result.latencies.clear()
            if now - last_answer > STALL_S:
                raise Failed("no answer for a minute")
            timeout = min(0.1, end - now)
            if self._rate:
                while begin + sent / self._rate <= now:
                    self._send(self._connections[sent % len(self._connections)], begin + sent / self._rate)
                    sent += 1
                timeout = max(0.0, min(timeout, begin + sent / self._rate - now))
            else:
                for connection in self._connections:
                    while len(connection.due) < self._window and not connection.writing:
                        self._send(connection, _clock())
            for key, events in self._selector.select(timeout):
                connection = key.data
                if events & selectors.EVENT_WRITE:
                    self._flush(connection)
                if events & selectors.EVENT_READ:
                    before = result.answers
                    self._receive(connection, result)
                    if result.answers != before:
                        last_answer = _clock()

    def _send(self, connection: Connection, due: float) -> None:
        connection.due.append(due)
        if connection.sending:
            connection.sending = memoryview(bytes(connection.sending) + connection.frame)
        else:
            connection.sending = memoryview(connection.frame)
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            while connection.sending:
                connection.sending = connection.sending[connection.sock.send(connection.sending) :]
        except BlockingIOError:
            pass
        if bool(connection.sending) != connection.writing:
            connection.writing = bool(connection.sending)
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.writing else 0)
            self._selector.modify(connection.sock, mask, connection)

    def _receive(self, connection: Connection, result: Result) -> None:
        try:
            size = connection.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        if not size:
            raise Failed("the broker closed the connection")
        view = memoryview(self._buffer)[:size]
        if connection.skip:  # inside a fetch answer's records
            taken = min(connection.skip, len(view))
            connection.skip -= taken
            view = view[taken:]
        connection.received += view
        while not connection.skip and len(connection.received) >= 4:
            [length] = struct.unpack_from(">i", connection.received)
            head = 4 + (self._fetch_head(connection) if self._fetch else length)
            if len(connection.received) < head:
                break
            self._answer(connection, result)
            total = 4 + length
            connection.skip = max(0, total - len(connection.received))
            del connection.received[:total]

    def _fetch_head(self, connection: Connection) -> int:
        return 4 + 10 + 4 + 2 + len(connection.topic) + 4 + 4 + 2 + 24 + 4 + 4 + 4

    def _answer(self, connection: Connection, result: Result) -> None:
        result.answers += 1
        result.latencies.append(_clock() - connection.due.popleft())
        if not self._fetch:
            [error] = struct.unpack_from(">h", connection.received, 4 + 4 + 4 + 2 + len(connection.topic) + 4 + 4)
            if error:
                raise Failed(f"produce was answered with error {error}")
            return
        at = 4 + 4 + 10 + 4 + 2 + len(connection.topic) + 4
        [error] = struct.unpack_from(">h", connection.received, at + 4)
        [size] = struct.unpack_from(">i", connection.received, self._fetch_head(connection))
        if error:
            raise Failed(f"fetch was answered with error {error}")
        result.payload_bytes += max(0, size)


def connect(broker: str) -> socket.socket:
    """A non-blocking connection without Nagle's delay."""
    host, _, port = broker.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


def main() -> int:
    parser = argparse.ArgumentParser(description="Load one broker; print what it took, as JSON.")
    parser.add_argument("what", choices=["produce", "fetch"])
    parser.add_argument("--broker", required=True, help="host:port, the leader of every partition used")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--batch-bytes", type=int, default=65_536, help="about what one request carries")
    parser.add_argument("--record-bytes", type=int, default=1_024)
    parser.add_argument("--connections", type=int, default=1, help="connection i uses partition i")
    parser.add_argument("--window", type=int, default=5, help="requests in flight a connection")
    parser.add_argument("--rate", type=float, default=0, help="requests a second in all; 0: no limit")
    parser.add_argument("--warm-s", type=float, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    fetch = args.what == "fetch"
    batch = encode_batch(max(1, args.batch_bytes // (args.record_bytes + 8)), args.record_bytes)
    connections = []
    for i in range(args.connections):
        frame = fetch_frame(args.topic, i, args.batch_bytes) if fetch else produce_frame(args.topic, i, batch)
        connections.append(Connection(connect(args.broker), args.topic, frame))
    try:
        result, took = Load(connections, window=args.window, fetch=fetch, rate=args.rate).run(args.warm_s, args.seconds)
    except (Failed, OSError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(result.plain(took, len(batch))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
