"""What a connection promises: answers in the order of the requests, back-pressure instead of refusals while the WAL is
full, bounds on what one client can make the broker hold. Spoken to over a real socket, byte by byte.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from dataplane.broker.connected import ConnectedProducers
from dataplane.broker.engine import Busy, Done, KafkaError
from dataplane.broker.net import KafkaServer, ServerSettings
from dataplane.stream.batch import BatchHeader
from providers.base.clock import LoopClock, SeededRng
from providers.base.loops import run_loop
from tests.dataplane.stream.batches import batch

NOT_LEADER, TIMED_OUT = 6, 7


class Log:
    """A partition whose room and acks the test gives out."""

    leader_epoch = start_offset = 0

    def __init__(self) -> None:
        self.room = 1_000_000
        self.waiting: list[tuple[int, Done]] = []
        self.taken: list[bytes] = []
        self.records = b""

    @property
    def high_watermark(self) -> int:
        return len(self.taken)

    last_stable_offset = high_watermark

    def begin(self, data: bytearray | memoryview, header: BatchHeader, done: Done) -> None:
        if self.room <= 0:
            raise Busy(TIMED_OUT, "full")
        self.room -= 1
        self.taken.append(bytes(data))
        self.waiting.append((len(self.taken) - 1, done))

    def ack(self) -> None:
        for offset, done in self.waiting:
            done(offset, None)
        self.waiting.clear()

    def read_cached(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> list[bytes]:
        return [self.records]

    def watch(self, wake: Callable[[], None]) -> None: ...

    def unwatch(self, wake: Callable[[], None]) -> None: ...


class OnePartition:
    """An engine with partition t-0."""

    def __init__(self) -> None:
        self.log = Log()

    def leader(self, topic: str, partition: int) -> None:
        return None

    def partition(self, topic: str, partition: int) -> Any:
        if (topic, partition) != ("t", 0):
            raise KafkaError(NOT_LEADER, "elsewhere")
        return self.log

    writable = partition
    connected = ConnectedProducers()

    def on_partitions_changed(self, callback: object) -> None: ...

    def answer(self, op: str, handler: object) -> None: ...


def produce(correlation_id: int, records: bytes, timeout_ms: int = 30_000, topic: str = "t") -> bytes:
    name = struct.pack(">h", len(topic)) + topic.encode()
    body = struct.pack(">hhihhhi", 0, 7, correlation_id, -1, -1, -1, timeout_ms)
    body += struct.pack(">i", 1) + name + struct.pack(">iii", 1, 0, len(records)) + records
    return struct.pack(">i", len(body)) + body


def fetch(correlation_id: int) -> bytes:
    body = struct.pack(">hhih", 1, 4, correlation_id, -1) + struct.pack(">iiiib", -1, 0, 1, 1 << 30, 0)
    body += struct.pack(">ih", 1, 1) + b"t" + struct.pack(">iiqi", 1, 0, 0, 1 << 30)
    return struct.pack(">i", len(body)) + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Correlation id and error code of the next produce answer."""
    frame = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
    [correlation_id] = struct.unpack_from(">i", frame)
    [error] = struct.unpack_from(">h", frame, 4 + 4 + 3 + 4 + 4)
    return correlation_id, error


def over_a_socket(
    test: Callable[[Log, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    settings: ServerSettings | None = None,
) -> None:
    async def main() -> None:
        engine = OnePartition()
        server = KafkaServer(engine, clock=LoopClock(), rng=SeededRng(1), settings=settings)  # type: ignore[arg-type]
        port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(20):
                await test(engine.log, reader, writer)
        finally:
            writer.close()
            await server.close()

    run_loop(main())  # as a broker runs


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 -- of the broker's insides, which have no event for tests
        await asyncio.sleep(0.001)


def test_answers_come_in_the_order_of_the_requests_whatever_is_known_first() -> None:
    async def test(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(produce(1, batch(b"a")) + produce(2, batch(b"b"), topic="x") + produce(3, batch(b"c")))
        await until(lambda: len(log.taken) == 2)
        log.ack()
        assert [await answer(reader) for _ in range(3)] == [(1, 0), (2, NOT_LEADER), (3, 0)]

    over_a_socket(test)


def test_a_full_wal_holds_a_connection_back_and_refuses_nothing() -> None:
    async def test(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        log.room = 2
        records = [batch(b"%d" % i + bytes(40_000)) for i in range(20)]
        writer.write(b"".join(produce(i, r) for i, r in enumerate(records)))
        await until(lambda: len(log.taken) == 2)
        await asyncio.sleep(0.05)
        assert len(log.taken) == 2, "nothing overtakes the request that waits"
        for _ in range(9):
            log.room += 2
            await until(lambda: log.room == 0)
            log.ack()
        assert [await answer(reader) for _ in range(20)] == [(i, 0) for i in range(20)]
        assert [taken[12:] for taken in log.taken] == [r[12:] for r in records]

    over_a_socket(test)


def test_a_request_that_waits_for_room_keeps_its_own_records() -> None:
    async def test(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        log.room = 0
        sent = [batch(b"%d" % i) for i in range(6)]
        # Small enough for the connection's own buffer, where the next ones move up as soon as one is handled.
        writer.write(b"".join(produce(i, records) for i, records in enumerate(sent)))
        for count in range(1, len(sent) + 1):
            log.room = 1
            await until(lambda count=count: len(log.taken) == count)  # type: ignore[misc]
        log.ack()
        assert [await answer(reader) for _ in sent] == [(i, 0) for i in range(len(sent))]
        assert [taken[12:] for taken in log.taken] == [records[12:] for records in sent]

    over_a_socket(test)


def test_a_client_that_does_not_want_to_wait_for_room_is_told() -> None:
    async def test(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        log.room = 0
        writer.write(produce(1, batch(b"a"), timeout_ms=30) + produce(2, batch(b"b"), timeout_ms=10))
        assert [await answer(reader) for _ in range(2)] == [(1, TIMED_OUT), (2, TIMED_OUT)]
        assert not log.taken

    over_a_socket(test)


def test_large_and_small_frames_arrive_whole_however_they_are_cut() -> None:
    async def test(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sizes = [1, 20_000, 5, 16_370, 16_400, 70_000, 3, 8_000, 8_000, 8_000, 300_000]
        records = [batch(bytes([i]) * size) for i, size in enumerate(sizes)]
        stream = b"".join(produce(i, r) for i, r in enumerate(records))
        cuts = [0, 3, 4, 9, 200, 20_100, 20_101, 36_000, 60_000, 130_000, 131_000, len(stream)]
        for start, end in itertools.pairwise(cuts):
            writer.write(stream[start:end])
            await writer.drain()
            await asyncio.sleep(0.005)
        await until(lambda: len(log.taken) == len(records))
        log.ack()
        assert [await answer(reader) for _ in records] == [(i, 0) for i in range(len(records))]
        assert [taken[12:] for taken in log.taken] == [r[12:] for r in records]

    over_a_socket(test)


def test_requests_in_flight_are_bounded() -> None:
    async def test(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(produce(i, batch(b"a")) for i in range(20)))
        await until(lambda: len(log.taken) == 4)
        await asyncio.sleep(0.05)
        assert len(log.taken) == 4
        while len(log.taken) < 20 or log.waiting:
            log.ack()
            await asyncio.sleep(0.001)
        assert [await answer(reader) for _ in range(20)] == [(i, 0) for i in range(20)]

    over_a_socket(test, ServerSettings(requests_in_flight_max=4))


def test_a_reader_that_does_not_read_is_not_served_without_bound_and_is_cut_off() -> None:
    async def test(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        log.records = bytes(4 << 20)
        served = 0

        def counting(offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> list[bytes]:
            nonlocal served
            served += 1
            return [log.records]

        log.read_cached = counting  # type: ignore[method-assign]
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"".join(fetch(i) for i in range(50)))
        await until(lambda: served > 0)
        await asyncio.sleep(0.2)
        assert served < 8, "no more is answered than the socket takes, and a little"
        await asyncio.sleep(0.3)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        received = 0
        try:
            while chunk := await reader.read(1 << 20):
                received += len(chunk)
        except ConnectionError:
            pass
        assert received < 50 * len(log.records), "it was cut off"

    over_a_socket(test, ServerSettings(write_timeout_ms=300))
