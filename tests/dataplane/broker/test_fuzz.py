"""Whatever arrives, the broker answers in the protocol or closes that connection, and goes on serving the others: a
seeded storm of requests, whole and spoiled, against the codec and against a real broker. A failure names its seed.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from dataplane.broker import wire
from dataplane.broker.wire_primitives import Malformed
from dataplane.broker.wire_produce import decode_produce
from dataplane.contract.assignment import BrokerSettings
from tests.dataplane.broker.cell_in_thread import RunningCell, running_cell
from tests.dataplane.broker.requests import SERVED, Maker, read_answer, spoil
from tests.dataplane.stream.batches import batch

SEED = int(os.environ.get("YUNHE_FUZZ_SEED", "20261126"))
"""Another one a night finds more; in `make test` it is always the same."""
ROUNDS = int(os.environ.get("YUNHE_FUZZ_ROUNDS", "1"))
"""How long: one round is a few seconds."""
STORM, CALM = "storm", "calm"
NAMES = (STORM, STORM, STORM, "group", "group", "", "__consumer_offsets", "a b", "größe", ".", "range", "consumer", "1")
QUIET_S = 0.01
"""How long an answer is waited for that may never come: a long poll, a member that waits for others."""


@pytest.mark.parametrize("part", range(4))
def test_hostile_frames_are_read_as_a_request_or_refused(part: int) -> None:
    rng = random.Random(f"{SEED}-codec-{part}")
    maker = Maker(rng, NAMES)
    refused = read = 0
    for _ in range(ROUNDS):
        for api_key, version in SERVED[part::4]:
            whole = maker.frame(api_key, version, 7)
            if api_key == wire.PRODUCE:
                assert decode_produce(memoryview(bytearray(whole))).correlation_id == 7
            else:
                request = wire.decode(whole)
                assert (request.api_key, request.version, request.correlation_id) == (api_key, version, 7)
                assert request.body is not None
            for _ in range(40):
                # The header's api key and version are what bring a frame to its reader.
                spoiled = whole[:4] + spoil(whole, rng)[4:]
                try:
                    if api_key == wire.PRODUCE:
                        decode_produce(memoryview(bytearray(spoiled)))
                    else:
                        wire.decode(spoiled)
                    read += 1
                except Malformed:
                    refused += 1
    assert refused > 200 and read > 200, "the storm is one-sided"


BILLIONS = (
    struct.pack(">hhih", 3, 9, 1, -1) + b"\0" + b"\xff\xff\xff\xff\x0f",
    struct.pack(">hhih", 1, 12, 1, -1) + b"\0" + bytes(25) + b"\xfe\xff\xff\xff\x0f" + bytes(20),
    struct.pack(">hhih", 16, 4, 1, -1) + b"\0" + b"\xff\xff\xff\xff\x0f" + bytes(20),
    struct.pack(">hhihi", 3, 1, 1, -1, 2**31 - 1),
    struct.pack(">hhihi", 42, 0, 1, -1, 2**30) + bytes(8),
)


def test_a_count_of_billions_in_a_small_frame_takes_no_memory() -> None:
    # In a process of its own, with little memory: kio's reader takes what the count asks for, and aborts.
    code = (
        "import resource, sys\n"
        "from dataplane.broker import wire\n"
        "from dataplane.broker.wire_primitives import Malformed\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "for frame in sys.argv[1:]:\n"
        "    try:\n"
        "        wire.decode(bytes.fromhex(frame))\n"
        "    except Malformed:\n"
        "        print('refused')\n"
    )
    command = [sys.executable, "-c", code, *(frame.hex() for frame in BILLIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n" * len(BILLIONS)), done.stderr[-300:]


class Line:
    """One connection of the storm: it is made anew whenever the broker has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self.closed = 0

    def send(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        try:
            self._socket.sendall(data)
        except OSError:
            self.drop()

    def answer(self, wait_s: float) -> bytes | None:
        """The next answer; None: there is none yet, or the broker has closed the connection."""
        if self._socket is None:
            return None
        data = b""
        self._socket.settimeout(wait_s)
        try:
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
                more = self._socket.recv(1 << 16)
                self._socket.settimeout(10)
                if not more:
                    self.closed += 1
                    self.drop()
                    return None
                data += more
        except TimeoutError:
            assert not data, "half an answer"
            self.drop()
            return None
        except ConnectionError:
            self.closed += 1
            self.drop()
            return None
        assert len(data) == 4 + int.from_bytes(data[:4], "big"), "one answer a request"
        return data[4:]

    def drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class Calm:
    """A client of good will, beside the storm."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0})
        self._bootstrap = bootstrap
        self.acked: list[bytes] = []

    def go_on(self) -> None:
        value = b"%d" % len(self.acked)
        failed: list[object] = []
        self._producer.produce(CALM, value, partition=0, on_delivery=lambda e, _: failed.append(e) if e else None)
        assert self._producer.flush(20) == 0 and not failed, f"a calm client was refused: {failed}"
        self.acked.append(value)

    def read_back(self) -> list[bytes]:
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "calm"})
        consumer.assign([TopicPartition(CALM, 0, 0)])
        found: list[bytes] = []
        deadline = time.monotonic() + 20
        while len(found) < len(self.acked) and time.monotonic() < deadline:
            found += [message.value() or b"" for message in consumer.consume(1_000, timeout=0.2)]
        consumer.close()
        return found


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with running_cell(1, settings=BrokerSettings(balance_interval_ms=0)) as running:
        admin = AdminClient({"bootstrap.servers": running.bootstrap})
        for future in admin.create_topics([NewTopic(STORM, 2), NewTopic(CALM, 1)]).values():
            future.result(30)
        yield running
        assert running.trouble == [], "an exception that nobody caught"


@pytest.fixture(autouse=True)
def no_handler_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A handler that raises closes the connection, and is a bug all the same."""
    caplog.set_level(logging.WARNING, "dataplane.broker")
    yield
    failures = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not failures, [f"{r.getMessage()}: {r.exc_info and r.exc_info[1]!r}" for r in failures]


SPARED = {19, 20}
"""CreateTopics and DeleteTopics, which could take away the ground that the storm and the calm client stand on: of
these, only whole frames about other topics are sent."""


def test_a_storm_of_requests_is_answered_in_the_protocol_and_disturbs_nobody(cell: RunningCell) -> None:
    rng = random.Random(f"{SEED}-storm")
    maker, calm, line = Maker(rng, NAMES), Calm(cell.bootstrap), Line(cell.brokers[0].port)
    elsewhere = Maker(rng, [name for name in NAMES if name not in (STORM, "__consumer_offsets")])
    numbers = itertools.count(1)
    before = resident_bytes()
    answered = 0
    for _ in range(ROUNDS):
        for i, (api_key, version) in enumerate(SERVED):
            for _ in range(4):
                number = next(numbers)
                frame = (elsewhere if api_key in SPARED else maker).frame(api_key, version, number)
                line.send(len(frame).to_bytes(4, "big") + frame)
                answer = line.answer(QUIET_S)
                if answer is not None:
                    correlation_id, _ = read_answer(api_key, version, answer)
                    assert correlation_id == number
                    answered += 1
                spoiled = spoil(frame, rng)
                if int.from_bytes(spoiled[:2], "big") in SPARED:
                    continue
                line.send(len(spoiled).to_bytes(4, "big") + spoiled)
                line.answer(QUIET_S)
            if i % 10 == 0:
                calm.go_on()
    line.drop()
    assert answered > len(SERVED) * 2
    assert line.closed > 100, "spoiled frames are refused by closing their connection"
    assert calm.read_back() == calm.acked
    assert cell.longest_turn_s < 1, "no request keeps the others waiting"
    assert resident_bytes() - before < 300 << 20


def test_streams_of_rubbish_close_their_own_connections_alone(cell: RunningCell) -> None:
    rng = random.Random(f"{SEED}-rubbish")
    calm = Calm(cell.bootstrap)
    for i in range(300 * ROUNDS):
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.randbytes(rng.choice((1, 3, 4, 9, 100, 20_000)))
        elif kind == 1:
            data = struct.pack(">i", rng.choice((0, -1, 7, 2**31 - 1, -(2**31), 100 << 20))) + rng.randbytes(50)
        elif kind == 2:
            data = b"GET /%d HTTP/1.1\r\nHost: broker\r\n\r\n" % i
        else:
            data = b"\x16\x03\x01" + rng.randbytes(200)
        with socket.create_connection(("127.0.0.1", cell.brokers[0].port), timeout=10) as rude:
            rude.sendall(data)
            if rng.random() < 0.5:
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if i % 50 == 0:
            calm.go_on()
    assert calm.read_back()[-len(calm.acked) :] == calm.acked


def test_damaged_batches_are_refused_as_corrupt_and_never_kept(cell: RunningCell) -> None:
    rng = random.Random(f"{SEED}-batches")
    line = Line(cell.brokers[0].port)
    end_before = cell.see(lambda: cell.brokers[0].engine.partition(STORM, 1).high_watermark)
    codes: set[int] = set()
    for number in range(400 * ROUNDS):
        good = bytearray(batch(*(rng.randbytes(rng.randint(0, 60)) for _ in range(rng.randint(1, 5)))))
        # From the length on: base offset and leader epoch are the broker's to set, whatever they were.
        at = rng.choice([i for i in range(8, len(good)) if not 12 <= i < 16])
        good[at] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del good[rng.randrange(1, len(good)) :]
        body = struct.pack(">hhihhhi", 0, 7, number, -1, -1, -1, 1_000) + struct.pack(">ih", 1, len(STORM))
        body += STORM.encode() + struct.pack(">iii", 1, 1, len(good)) + bytes(good)
        line.send(len(body).to_bytes(4, "big") + body)
        answer = line.answer(5)
        assert answer is not None, "a damaged batch is answered"
        correlation_id, said = read_answer(0, 7, answer)
        assert correlation_id == number
        codes.add(said.responses[0].partition_responses[0].error_code)
    assert codes <= {2, 87}, "CORRUPT_MESSAGE, or INVALID_RECORD for one that holds none or several"
    assert 2 in codes
    assert cell.see(lambda: cell.brokers[0].engine.partition(STORM, 1).high_watermark) == end_before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
