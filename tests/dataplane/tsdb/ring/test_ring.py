"""Promises of the ring to those who write: rows arrive once, whole, in order, of every type; a flush means stored; full
pushes back, and refusals are told.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from dataplane.tsdb.ring.client import RingTable, RingWriter
from dataplane.tsdb.ring.server import RingServer, RingSettings
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, WalSync
from providers.base.clock import SystemClock
from providers.base.errors import AlreadyExists, Full, Invalid, NotFound, OutcomeUnknown, Unavailable
from tests.dataplane.tsdb.ring.recorder import Recorder, served, until

TIME = Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False)
SPEED = (TIME, Column(2, "kmh", ColumnType.FLOAT32), Column(3, "gear", ColumnType.INT8))
EVERY = (
    Column(1, "car", ColumnType.STRING, ColumnRole.TAG),
    TIME,
    *(Column(3 + at, f"f_{kind.name.lower()}", kind) for at, kind in enumerate(ColumnType)),
)


def speed(*numbers: int) -> pa.Table:
    return pa.table(
        {
            "ts": pa.array(numbers, pa.timestamp("ms")),
            "kmh": pa.array([float(n) for n in numbers], pa.float32()),
            "gear": pa.array([None if n % 3 == 0 else n % 7 for n in numbers], pa.int8()),
        }
    )


def declared(writer: RingWriter, name: str = "speed") -> RingTable:
    return writer.declare(name, SPEED, create=True)


def every(count: int, seed: int) -> pa.Table:
    """Rows with values of every type, of which some are null, and texts of every length."""
    columns = {}
    for at, column in enumerate(EVERY):
        kind = column.type
        values: list[object] = []
        for row in range(count):
            n = seed * 31 + row * 7 + at
            if column.role is not ColumnRole.TIME and n % 5 == 0:
                values.append(None)
            elif kind is ColumnType.STRING:
                values.append("é" * (n % 9) + str(n))
            elif kind is ColumnType.BINARY:
                values.append(bytes([n % 256]) * (n % 11))
            elif kind is ColumnType.BOOL:
                values.append(n % 2 == 0)
            else:
                values.append(n % 120)
        columns[column.name] = pa.array(values, kind.arrow)
    return pa.table(columns)


async def test_every_type_arrives_as_it_was_written(tmp_path: Path) -> None:
    # Records of many sizes, with nulls and without, follow each other and go around the ring's end many times.
    tables = [every(1 + (seed * 5) % 40, seed) for seed in range(150)]
    async with served(tmp_path) as (recorder, _, path):

        def write() -> None:
            with RingWriter.connect(path, ring_bytes=1 << 16) as writer:
                table = writer.declare("every", EVERY, create=True)
                for rows in tables:
                    table.write(rows)
                writer.flush()

        await asyncio.to_thread(write)
        assert recorder.all("every").cast(pa.schema(tables[0].schema)).equals(pa.concat_tables(tables))


async def test_rows_arrive_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    async with served(tmp_path, RingSettings(turn_ms=50)) as (recorder, _, path):

        def write() -> None:
            with RingWriter.connect(path) as writer:
                table, number = declared(writer), 0
                for size in (1, 2, 1, 3, 1, 1, 5, 2) * 50:
                    table.write(speed(*range(number, number + size)))
                    number += size
                writer.flush()

        await asyncio.to_thread(write)
        assert [row[0] for row in recorder.plain("speed")] == list(range(800))
        assert recorder.writes < 40, "records that are there together are handed over together"


async def test_single_rows_of_numbers_arrive(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, server, path):

        def write() -> None:
            with RingWriter.connect(path, ring_bytes=1 << 16) as writer:
                tables = [declared(writer, f"t{at}") for at in range(20)]
                for number in range(500):
                    for table in tables:
                        table.write_row((number, number / 2, number % 100))
                writer.flush()

        await asyncio.to_thread(write)
        for at in range(20):
            assert recorder.plain(f"t{at}") == [[n, n / 2, n % 100] for n in range(500)]
        assert server.counters.rows == 10_000


async def test_writers_at_the_same_time_lose_and_double_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, server, path):

        def write(which: int) -> None:
            with RingWriter.connect(path, ring_bytes=1 << 16) as writer:
                shared = declared(writer)
                for number in range(2_000):
                    shared.write_row((which * 10_000 + number, 1.0, 1))
                writer.flush()

        await asyncio.gather(*(asyncio.to_thread(write, which) for which in range(6)))
        times = [row[0] for row in recorder.plain("speed")]
        assert sorted(times) == [which * 10_000 + number for which in range(6) for number in range(2_000)]
        for which in range(6):
            its = [time for time in times if time // 10_000 == which]
            assert its == sorted(its), "each writer's own rows stay in order"
        assert server.counters.connections == 6


async def test_a_flush_means_that_the_database_has_the_rows(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, _, path):
        with await asyncio.to_thread(RingWriter.connect, path) as writer:
            table = await asyncio.to_thread(declared, writer)
            recorder.open.clear()
            table.write(speed(1))
            with pytest.raises(Unavailable):
                await asyncio.to_thread(writer.flush, wait_ms=100)
            recorder.open.set()
            assert await asyncio.to_thread(writer.flush) == 1
            assert recorder.plain("speed")[0][0] == 1


async def test_rows_arrive_without_a_flush(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, _, path):
        with await asyncio.to_thread(RingWriter.connect, path) as writer:
            table = await asyncio.to_thread(declared, writer)
            for number in range(3):
                table.write(speed(number))
                await until(lambda number=number: len(recorder.plain("speed")) > number)


async def test_a_full_ring_refuses_or_waits_and_loses_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, _, path):
        with await asyncio.to_thread(RingWriter.connect, path, ring_bytes=1 << 16) as writer:
            table = await asyncio.to_thread(declared, writer)
            recorder.open.clear()  # a database that takes its time
            taken = []
            with pytest.raises(Full):
                for number in range(100_000):
                    table.write_row((number, 0.0, 0), wait_ms=0)
                    taken.append(number)
            assert len(taken) < 6_000
            # Full is an answer and not a state: the same row goes in as soon as there is room.
            waiting = asyncio.create_task(asyncio.to_thread(table.write_row, (len(taken), 0.0, 0)))
            await asyncio.sleep(0.05)
            recorder.open.set()
            await waiting
            await asyncio.to_thread(writer.flush)
            assert [row[0] for row in recorder.plain("speed")] == [*taken, len(taken)]


async def test_a_database_that_is_full_makes_the_writer_wait(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, server, path):
        with await asyncio.to_thread(RingWriter.connect, path) as writer:
            table = await asyncio.to_thread(declared, writer)
            recorder.failing = [Full("memory stayed full"), Unavailable("the flash errs"), Full("memory stayed full")]
            table.write(speed(1, 2))
            await asyncio.to_thread(writer.flush)
            assert [row[0] for row in recorder.plain("speed")] == [1, 2]
            assert server.counters.waits == 3


async def test_refused_rows_are_told_to_who_wrote_them_and_to_nobody_else(tmp_path: Path) -> None:
    async with served(tmp_path, RingSettings(turn_ms=100)) as (recorder, _, path):

        def writer_of(name: str) -> tuple[RingWriter, RingTable]:
            writer = RingWriter.connect(path)
            return writer, declared(writer, name)

        one, its = await asyncio.to_thread(writer_of, "gone")
        other, good = await asyncio.to_thread(writer_of, "speed")
        with one, other:
            del recorder.schemas["gone"]
            its.write(speed(1, 2, 3))
            good.write(speed(4))
            with pytest.raises(NotFound, match="no table 'gone'") as caught:
                await asyncio.to_thread(one.flush)
            assert caught.value.fields["rows"] == 3
            await asyncio.to_thread(other.flush)
            await asyncio.to_thread(one.flush)  # told once
            assert [row[0] for row in recorder.plain("speed")] == [4]
            recorder.failing = [OutcomeUnknown("the answer was lost")]
            good.write(speed(5))
            with pytest.raises(OutcomeUnknown):
                await asyncio.to_thread(other.flush)


async def test_a_declaration_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, _, path):

        def main() -> None:
            with RingWriter.connect(path) as writer:
                with pytest.raises(NotFound, match="there is no table 'speed'"):
                    writer.declare("speed", SPEED)
                with pytest.raises(Invalid, match="time index"):
                    writer.declare("speed", SPEED[1:], create=True)
                writer.declare("speed", SPEED, create=True, options=TableOptions(wal=WalSync.OFF))
                with pytest.raises(Invalid, match=r"'kmh' of table 'speed' is float32, a field, not string, a field"):
                    writer.declare("speed", [TIME, Column(2, "kmh", ColumnType.STRING)])
                with pytest.raises(Invalid, match="'ts' of table 'speed' cannot be null, and is not declared"):
                    writer.declare("speed", SPEED[1:])
                with pytest.raises(NotFound, match="no column 'rpm'"):
                    writer.declare("speed", [TIME, Column(2, "rpm", ColumnType.UINT16)])
                table = writer.declare("speed", [TIME, Column(2, "rpm", ColumnType.UINT16)], create=True)
                table.write(pa.table({"ts": pa.array([1], pa.timestamp("ms")), "rpm": pa.array([900], pa.uint16())}))
                with pytest.raises(Invalid, match="cannot be null"):
                    table.write(pa.table({"rpm": pa.array([900], pa.uint16())}))
                with pytest.raises(Invalid, match="'gear' is not declared"):
                    table.write(speed(1))
                writer.flush()

        await asyncio.to_thread(main)
        assert recorder.schemas["speed"].options.wal is WalSync.OFF
        assert recorder.plain("speed") == [[1, None, None, 900]]


async def test_a_narrower_declaration_is_widened_and_so_is_one_from_before_the_table_was(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, _, path):
        wide = (TIME, Column(2, "kmh", ColumnType.FLOAT64), Column(3, "gear", ColumnType.INT64))
        await recorder.create_table("speed", wide, TableOptions())
        with await asyncio.to_thread(RingWriter.connect, path) as writer:
            table = await asyncio.to_thread(writer.declare, "speed", SPEED)
            table.write(speed(1))
            await asyncio.to_thread(writer.flush)
            assert recorder.plain("speed") == [[1, 1.0, 1]]


async def test_a_column_is_declared_with_its_decimals_or_has_the_table_s(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, _, path):

        def write() -> None:
            fine, plain = Column(2, "v", ColumnType.FLOAT64, decimals=2), Column(2, "v", ColumnType.FLOAT64)
            rows = pa.table({"ts": pa.array([1], pa.timestamp("ms")), "v": [7 * 0.01]})
            with RingWriter.connect(path) as writer:
                for column in (fine, plain):
                    table = writer.declare("fine", (TIME, column), create=True)
                    assert table.columns[1].decimals == 2
                    table.write(rows)
                writer.flush()
                with pytest.raises(Invalid, match="column 'v' of table 'fine' has 2 decimals"):
                    writer.declare("fine", (TIME, Column(2, "v", ColumnType.FLOAT64, decimals=3)))
                with pytest.raises(Invalid, match="cannot have 2 decimals"):
                    writer.declare("other", (TIME, Column(2, "n", ColumnType.INT8, decimals=2)), create=True)
                writer.declare("fine", (TIME, Column(3, "w", ColumnType.FLOAT32, decimals=0)), create=True)

        await asyncio.to_thread(write)
        assert recorder.all("fine").column("v").to_pylist() == [0.07, 0.07]
        assert [column.decimals for column in recorder.schemas["fine"].columns] == [None, 2, 0]
        assert "other" not in recorder.schemas


async def test_what_cannot_be_given_is_refused_with_the_reason(tmp_path: Path) -> None:
    settings = RingSettings(turn_ms=5, pool_bytes_max=1 << 17, tables_max=3)
    async with served(tmp_path, settings) as (_, server, path):

        def main() -> None:
            with pytest.raises(Invalid, match="a ring of 70000 bytes cannot be had"):
                RingWriter.connect(path, ring_bytes=70_000)
            with pytest.raises(Full, match="bytes of rings are in use"):
                RingWriter.connect(path)
            with RingWriter.connect(path, ring_bytes=1 << 16) as one:
                declared(one, "a")
                declared(one, "b")
                with (
                    RingWriter.connect(path, ring_bytes=1 << 16),
                    pytest.raises(Full, match="rings are in use"),
                ):
                    RingWriter.connect(path, ring_bytes=1 << 16)
                text = one.declare("text", [TIME, Column(2, "t", ColumnType.STRING)], create=True)
                row = {"ts": pa.array([1], pa.timestamp("ms")), "t": pa.array(["x" * 40_000])}
                with pytest.raises(Invalid, match="does not fit a ring"):
                    text.write(pa.table(row))
                with pytest.raises(Full, match="3 tables are declared"):
                    declared(one, "c")

        await asyncio.to_thread(main)
        await until(lambda: not server._pool_bytes)  # rings of those who left are given back


async def test_a_closing_database_takes_what_is_published_and_says_good_bye(tmp_path: Path) -> None:
    async with served(tmp_path, RingSettings(turn_ms=1_000)) as (recorder, server, path):
        with await asyncio.to_thread(RingWriter.connect, path) as writer:
            table = await asyncio.to_thread(declared, writer)
            table.write(speed(1))
            await asyncio.to_thread(writer.flush)
            table.write(speed(2))  # within the pause after a turn
            await server.close()
            assert [row[0] for row in recorder.plain("speed")] == [1, 2]
            with pytest.raises(Unavailable, match="hung up"):
                table.write(speed(3))
            with pytest.raises(Unavailable):
                await asyncio.to_thread(writer.flush)
        assert not path.exists()
        assert not [t for t in threading.enumerate() if t.name.startswith("ring")]


async def test_a_dead_process_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, path):
        second = RingServer(Recorder(), path, clock=SystemClock())  # type: ignore[arg-type]
        with pytest.raises(AlreadyExists):
            await second.start()
    import socket

    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "ring.sock"))
    left.close()
    async with served(tmp_path) as (_, _, path):
        with await asyncio.to_thread(RingWriter.connect, path):
            pass


async def test_one_writer_too_many_is_told_so(tmp_path: Path) -> None:
    async with served(tmp_path, RingSettings(connections_max=1)) as (_, _, path):
        first = await asyncio.to_thread(RingWriter.connect, path)
        with first, pytest.raises(Full, match="1 writers are connected"):
            await asyncio.to_thread(RingWriter.connect, path)
