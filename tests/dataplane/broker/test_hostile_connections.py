"""What connections may cost: their number, a host's share of them, the memory of frames that are begun and not ended,
the time that one may take. Over real sockets, small bounds, and always with a client of good will beside.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

import pytest

from dataplane.broker import wire
from dataplane.broker.net import KafkaServer, ServerSettings
from dataplane.broker.wire_primitives import Malformed
from providers.base.clock import LoopClock, SeededRng
from providers.base.loops import run_loop
from tests.dataplane.broker.test_connections import Log, OnePartition, answer, produce, until
from tests.dataplane.broker.test_fuzz import resident_bytes
from tests.dataplane.stream.batches import batch

MIB = 1 << 20
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Place:
    """A listener, and clients from several addresses of loopback."""

    def __init__(self, server: KafkaServer, log: Log, port: int) -> None:
        self.server = server
        self.log = log
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, host: str = "127.0.0.1") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(host, 0))
        self._writers.append(writer)
        return reader, writer

    async def is_served(self, streams: Streams, size: int = 10) -> bool:
        """Whether a produce request gets its answer on this connection."""
        reader, writer = streams
        writer.write(produce(5, batch(bytes(size))))
        begun = len(self.log.taken)
        try:
            async with asyncio.timeout(10):
                while len(self.log.taken) == begun:
                    if reader.at_eof():
                        return False
                    await asyncio.sleep(0.001)
                self.log.ack()
                return await answer(reader) == (5, 0)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False

    async def is_closed(self, streams: Streams) -> bool:
        """Wait for the broker's end of the connection."""
        try:
            async with asyncio.timeout(10):
                return await streams[0].read() == b""
        except ConnectionError:
            return True

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


def over(settings: ServerSettings, test: Callable[[Place], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = OnePartition()
        server = KafkaServer(engine, clock=LoopClock(), rng=SeededRng(1), settings=settings)  # type: ignore[arg-type]
        place = Place(server, engine.log, await server.start("127.0.0.1", 0))
        try:
            async with asyncio.timeout(30):
                await test(place)
        finally:
            place.hang_up()
            await server.close()

    run_loop(main())


def begun(size: int, sent: int) -> bytes:
    """A Produce frame of `size` bytes, of which `sent` arrive."""
    return (struct.pack(">ihhih", size, 0, 7, 1, -1) + bytes(sent))[: sent + 4]


def test_a_flood_from_one_host_leaves_room_for_others() -> None:
    async def test(place: Place) -> None:
        flood = [await place.connect() for _ in range(60)]
        await until(lambda: len(place.server.connections) == 20)
        other = await place.connect("127.0.0.2")
        assert await place.is_served(other)
        assert await place.is_served(flood[0]), "those that came first stay"
        assert await place.is_closed(flood[-1])
        for _, writer in flood:
            writer.close()
        await until(lambda: place.server.hosts["127.0.0.1"] == 0)
        assert await place.is_served(await place.connect()), "room is given back"

    over(ServerSettings(connections_per_host_max=20), test)


def test_a_flood_from_everywhere_is_bounded() -> None:
    async def test(place: Place) -> None:
        flood = [await place.connect(f"127.0.0.{i % 8 + 1}") for i in range(60)]
        await until(lambda: len(place.server.connections) == 30)
        assert await place.is_closed(flood[-1])
        assert await place.is_served(flood[0])

    over(ServerSettings(connections_max=30), test)


def test_frames_that_are_begun_and_not_ended_are_bounded_together_and_stop_nobody() -> None:
    async def test(place: Place) -> None:
        hostile = [await place.connect() for _ in range(30)]
        for _, writer in hostile:
            writer.write(begun(2 * MIB, 2 * MIB - 100))
        await until(lambda: place.server.frames.waiting > 0)
        most = 0
        calm = await place.connect("127.0.0.2")
        assert await place.is_served(calm), "a small request needs no room"
        for _ in range(3):
            serving = asyncio.ensure_future(place.is_served(calm, size=300_000))
            while not serving.done():
                most = max(most, place.server.frames.bytes_held)
                await asyncio.sleep(0.001)
            assert serving.result(), "a large one gets it once those that take too long are cut off"
        assert 0 < most <= 8 * MIB
        closed = [await place.is_closed(one) for one in hostile[:3]]
        assert all(closed), "the oldest are cut off first"

    over(ServerSettings(frames_bytes_max=8 * MIB, frame_patience_ms=100), test)


def test_frames_that_wait_for_the_wal_are_kept() -> None:
    async def test(place: Place) -> None:
        place.log.room = 0
        waiting = [await place.connect() for _ in range(12)]
        for _, writer in waiting:
            writer.write(produce(1, batch(bytes(900_000))))
        await until(lambda: place.server.frames.waiting > 0)
        await asyncio.sleep(0.5)  # five times the patience
        assert len(place.server.connections) == 12, "who waits for the WAL, or for room, is not cut off"
        place.log.room = 100
        await until(lambda: len(place.log.taken) == 12)
        place.log.ack()
        assert [await answer(reader) for reader, _ in waiting] == [(1, 0)] * 12
        assert place.server.frames.bytes_held == 0

    over(ServerSettings(frames_bytes_max=6 * MIB, frame_patience_ms=100), test)


def test_a_frame_that_is_never_ended_ends_its_connection() -> None:
    async def test(place: Place) -> None:
        half_open = await place.connect()
        half_open[1].write(begun(1 * MIB, 300_000))
        await until(lambda: place.server.frames.bytes_held > 0)
        assert await place.is_closed(half_open)
        assert place.server.frames.bytes_held == 0

    over(ServerSettings(frame_timeout_ms=100), test)


def test_announcing_a_large_frame_costs_nothing() -> None:
    async def test(place: Place) -> None:
        before = resident_bytes()
        for _ in range(30):
            _, writer = await place.connect()
            writer.write(begun(100 * MIB, 100))
        await until(lambda: sum(c.busy for c in place.server.connections) == 30)
        assert resident_bytes() - before < 50 * MIB
        assert await place.is_served(await place.connect("127.0.0.2"), size=1_000_000)

    over(ServerSettings(), test)


def test_only_produce_may_be_large() -> None:
    async def test(place: Place) -> None:
        for frame in (struct.pack(">ihhih", 3 * MIB, 3, 1, 1, -1), struct.pack(">ihhih", 3 * MIB, 999, 1, 1, -1)):
            rude = await place.connect()
            rude[1].write(frame)
            assert await place.is_closed(rude)
        assert await place.is_served(await place.connect(), size=1_000_000)

    over(ServerSettings(), test)


def test_a_request_of_too_many_items_is_refused_before_it_is_handled() -> None:
    def topics(count: int) -> bytes:
        return struct.pack(">hhihi", 3, 1, 1, -1, count) + b"\0\4name" * count

    def partitions(count: int) -> bytes:
        head = struct.pack(">hhih", 43, 1, 1, -1) + struct.pack(">bi", 0, 2)
        one = b"\0\4name" + struct.pack(">i", count // 2) + bytes(4 * (count // 2))
        return head + 2 * one + bytes(4)

    assert len(wire.decode(topics(wire.ITEMS_MAX)).body.topics) == wire.ITEMS_MAX
    assert wire.decode(partitions(wire.ITEMS_MAX - 2)).body is not None
    for frame in (topics(wire.ITEMS_MAX + 1), partitions(wire.ITEMS_MAX)):
        with pytest.raises(Malformed, match="items"):
            wire.decode(frame)


def test_a_connection_that_says_nothing_is_closed_in_the_end() -> None:
    async def test(place: Place) -> None:
        assert await place.is_closed(await place.connect())
        half_a_frame = await place.connect()
        half_a_frame[1].write(b"\0\0\1\0\0\3")
        assert await place.is_closed(half_a_frame)

    over(ServerSettings(idle_max_ms=100), test)
