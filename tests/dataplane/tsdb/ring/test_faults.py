"""Promises of the ring when writers die, stop, lie or hammer: nobody else is harmed, no torn record is taken, memory
and files are given back.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.tsdb.ring import client
from dataplane.tsdb.ring.channel import Kind, error_content, frame, message
from dataplane.tsdb.ring.client import RingWriter
from dataplane.tsdb.ring.encode import record_of
from dataplane.tsdb.ring.layout import PUBLISHED, WRITER_WAITS
from dataplane.tsdb.ring.records import Declared, take
from dataplane.tsdb.ring.server import RingSettings
from dataplane.tsdb.schema.tables import Column
from providers.base.errors import Full, Invalid, Unavailable, YunheError
from tests.dataplane.tsdb.ring.recorder import served, until
from tests.dataplane.tsdb.ring.test_ring import EVERY, SPEED, declared, every, speed

WRITER = """
import os, signal, sys
from pathlib import Path
from dataplane.tsdb.ring.client import RingWriter
from tests.dataplane.tsdb.ring.test_ring import declared, speed

class Dying(RingWriter):
    def stop(self, how):
        # In the middle of a record: its head and half of its rows are in the ring, and no word says that it is there.
        at = self._published % self.ring_bytes
        record = bytes(range(200))
        self._ring[at : at + len(record)] = record
        print("stopped", flush=True)
        os.kill(os.getpid(), how)

writer = Dying.connect(Path(sys.argv[1]), ring_bytes=1 << 16)
table = declared(writer)
for number in range(100):
    table.write(speed(number))
writer.stop(getattr(signal, sys.argv[2]))
table.write(speed(100))
writer.flush()
"""


def writer_process(path: Path, how: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[4]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), how],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_a_killed_writer_loses_only_what_it_had_not_published(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, server, path):
        with await asyncio.to_thread(RingWriter.connect, path) as other:
            table = await asyncio.to_thread(declared, other, "other")
            process = await asyncio.to_thread(writer_process, path, "SIGKILL")
            assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
            process.stdout.close()  # type: ignore[union-attr]
            await until(lambda: len(server._connections) == 1)
            assert [row[0] for row in recorder.plain("speed")] == list(range(100))
            table.write(speed(1))
            await asyncio.to_thread(other.flush)
            assert recorder.plain("other")[0][0] == 1
            assert server._pool_bytes == other.ring_bytes


async def test_a_stopped_writer_holds_up_nobody_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async with served(tmp_path) as (recorder, server, path):
        process = await asyncio.to_thread(writer_process, path, "SIGSTOP")
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "stopped\n"
            await until(lambda: len(recorder.plain("speed")) == 100)
            with await asyncio.to_thread(RingWriter.connect, path) as other:
                table = await asyncio.to_thread(declared, other, "other")
                for number in range(50):
                    table.write(speed(number))
                    await asyncio.to_thread(other.flush, wait_ms=2_000)
            assert len(recorder.plain("other")) == 50
            assert len(recorder.plain("speed")) == 100
            process.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(process.wait) == 0
            assert [row[0] for row in recorder.plain("speed")] == list(range(101))
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        await until(lambda: not server._connections)


# ── what a writer may put into its memory ─────────────────────────────────────────────────────────────────────────────

KNOWN = [Declared("every", EVERY), Declared("speed", SPEED)]


def ring_of(count: int) -> bytes:
    """Records of both tables, of several sizes."""
    records, number = [], 1
    for at in range(count):
        which = at % 2
        rows = every(1 + at % 5, at) if which == 0 else speed(*range(at, at + 1 + at % 3))
        [batch] = rows.combine_chunks().to_batches()
        records.append(record_of(KNOWN[which].columns, KNOWN[which].shapes, which, number, batch))
        number += 1
    return b"".join(records)


GOOD = ring_of(12)


def test_the_good_bytes_are_good() -> None:
    taken = take([GOOD], KNOWN, 1)
    assert taken.broken is None and taken.records == 12 and taken.rows == 28


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 7))
def test_no_record_with_a_flipped_bit_is_taken(at: int, bit: int) -> None:
    bad = bytearray(GOOD)
    bad[at] ^= 1 << bit
    taken = take([bytes(bad)], KNOWN, 1)
    assert taken.broken is not None
    assert taken.records < 12
    whole = take([GOOD], KNOWN, 1)
    for (name, _, rows), (_, _, expected) in zip(
        sorted(taken.tables, key=lambda its: its[0]), sorted(whole.tables, key=lambda its: its[0]), strict=False
    ):
        if name == "every" or len(taken.tables) == 2:
            assert rows.equals(expected.slice(0, len(rows)))


def sealed(record: bytearray) -> bytes:
    """With a checksum that fits, as a hostile writer has it."""
    record[4:8] = struct.pack("<I", crc32c(bytes(record[8:])))
    return bytes(record)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_nothing_that_a_hostile_writer_writes_is_more_than_refused(data: st.DataObject) -> None:
    """Any words anywhere in a record, under a checksum that fits: rows, or a sentence, and no exception."""
    which = data.draw(st.integers(0, 1))
    rows = every(data.draw(st.integers(1, 9)), 3) if which == 0 else speed(1, 2, 3)
    [batch] = rows.combine_chunks().to_batches()
    record = bytearray(record_of(KNOWN[which].columns, KNOWN[which].shapes, which, 1, batch))
    for _ in range(data.draw(st.integers(1, 4))):
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        at = data.draw(st.integers(0, len(record) // width - 1)) * width
        edge = 1 << (8 * width)
        value = data.draw(st.sampled_from([0, 1, edge - 1, edge // 2, edge // 2 - 1]) | st.integers(0, edge - 1))
        record[at : at + width] = value.to_bytes(width, "little")
    taken = take([sealed(record)], KNOWN, 1)
    if taken.broken is not None:
        assert len(str(taken.broken)) > 20
    for _, _, its in taken.tables:
        its.validate(full=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=0, max_size=300).map(lambda b: b[: len(b) // 8 * 8]), min_size=1, max_size=2))
def test_garbage_is_refused(pieces: list[bytes]) -> None:
    taken = take(pieces, KNOWN, 1)
    assert not taken.rows and (taken.broken is not None or not any(pieces))


# ── hostile writers at a living database ──────────────────────────────────────────────────────────────────────────────


async def hung_up_on(path: Path, what: Callable[[RingWriter, Any], None]) -> YunheError:
    """Why the database hangs up on a writer that does that."""

    def main() -> YunheError:
        with RingWriter.connect(path, ring_bytes=1 << 16) as writer:
            table = declared(writer, "hostile")
            what(writer, table)
            with pytest.raises(YunheError) as caught:
                for _ in range(100):
                    writer._send(frame(Kind.WAKE))
                    writer._receive(100)
            return caught.value

    return await asyncio.to_thread(main)


async def test_hostile_words_end_their_own_connection_only(tmp_path: Path) -> None:
    def published(value: int) -> Callable[[RingWriter, Any], None]:
        def write(writer: RingWriter, _: Any) -> None:
            writer._long[PUBLISHED] = value
            writer._word[WRITER_WAITS] = 0xFFFF_FFFF

        return write

    def garbage(writer: RingWriter, _: Any) -> None:
        writer._ring[:64] = bytes(range(64))
        writer._long[PUBLISHED] = 64

    def undeclared(writer: RingWriter, table: Any) -> None:
        table._number = 7
        table.write(speed(1))

    def null_time(writer: RingWriter, table: Any) -> None:
        table.columns = tuple(Column(c.id, c.name, c.type, c.role, True) for c in table.columns)
        table.write(_without_time())

    def header(writer: RingWriter, table: Any) -> None:
        writer._view[:64] = b"\xff" * 64  # the reader has its own idea of all this
        writer._long[PUBLISHED] = 1 << 40

    async with served(tmp_path) as (recorder, server, path):
        with await asyncio.to_thread(RingWriter.connect, path) as other:
            good = await asyncio.to_thread(declared, other)
            for number, (what, why) in enumerate(
                (
                    (published(1 << 63), "has published"),
                    (published(12), "has published"),
                    (published((1 << 16) + 8), "has published"),
                    (garbage, "record 1 of the ring"),
                    (undeclared, "is for table 7"),
                    (null_time, "'ts' of table 'hostile' has no nulls"),
                    (header, "has published"),
                )
            ):
                error = await hung_up_on(path, what)
                assert isinstance(error, Invalid) and why in str(error), (what, error)
                good.write(speed(number))
                await asyncio.to_thread(other.flush, wait_ms=2_000)
            assert [row[0] for row in recorder.plain("speed")] == list(range(7))
            assert not recorder.plain("hostile")
            await until(lambda: len(server._connections) == 1)
            assert server._pool_bytes == other.ring_bytes


def _without_time() -> Any:
    return pa.table({"ts": pa.array([None], pa.timestamp("ms")), "kmh": pa.array([1.0], pa.float32())})


async def test_the_memory_cannot_be_shortened_under_the_reader(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, path):

        def main() -> None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            sock.sendall(message(Kind.HELLO, {"version": 1, "ring_bytes": 1 << 16}))
            _, fds, _, _ = socket.recv_fds(sock, 1 << 16, 4)
            try:
                for size in (0, 4_096, 1 << 20):
                    with pytest.raises(PermissionError):
                        os.ftruncate(fds[0], size)
            finally:
                os.close(fds[0])
                sock.close()

        await asyncio.to_thread(main)


async def test_a_bad_message_is_answered_with_a_sentence_and_harms_nobody(tmp_path: Path) -> None:
    hello = message(Kind.HELLO, {"version": 1, "ring_bytes": 1 << 16})
    bad = [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<IB", 0, 1),
        struct.pack("<IB", 1 << 30, 1),
        frame(Kind.WAKE),
        frame(Kind.HELLO, b"[" * 100_000),
        frame(Kind.HELLO, b"\xff"),
        message(Kind.HELLO, {"version": 2}),
        message(Kind.HELLO, {"version": 1, "ring_bytes": "all"}),
        message(Kind.HELLO, {"version": 1, "ring_bytes": 1 << 50}),
        hello + hello,
        hello + frame(Kind.FLUSH, b"1"),
        hello + frame(99, b""),  # type: ignore[arg-type]
        hello + frame(Kind.DECLARE, b"no"),
    ]
    async with served(tmp_path) as (_, server, path):

        def said(data: bytes) -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(path))
                try:
                    sock.sendall(data)
                except OSError:
                    pass  # it has hung up by then
                found = b""
                while part := _received(sock):
                    found += part
                return found

        for data in bad:
            answer = await asyncio.to_thread(said, data)
            assert b'"message":' in answer, (data[:40], answer)
        for plain in ({}, {"table": 1, "columns": []}, {"table": "t", "columns": [1]}, {"table": "t", "columns": [{}]}):
            with await asyncio.to_thread(RingWriter.connect, path, ring_bytes=1 << 16) as writer:
                writer._send(message(Kind.DECLARE, plain))
                assert b"Invalid" in await asyncio.to_thread(writer._answer, Kind.DECLARED, 5_000)
        await until(lambda: not server._connections and not server._pool_bytes)


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except ConnectionResetError:
        return b""


def test_why_a_database_hung_up_before_the_first_word_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ring.sock"))
        listener.listen()

        def late(kind: Kind, content: dict[str, Any]) -> bytes:
            with listener.accept()[0] as database:
                database.sendall(message(Kind.FAREWELL, error_content(Full("no ring left"))))
            return message(kind, content)

        monkeypatch.setattr(client, "message", late)
        with pytest.raises(Full, match="no ring left"):
            RingWriter.connect(tmp_path / "ring.sock")


async def test_a_writer_that_does_not_read_its_answers_is_hung_up_on(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, server, path):

        def main() -> None:
            with RingWriter.connect(path, ring_bytes=1 << 16) as writer:
                for _ in range(1_000):
                    writer._send(message(Kind.DECLARE, {"table": "x", "columns": [1]}) * 200)

        with pytest.raises(YunheError):
            await asyncio.to_thread(main)
        await until(lambda: not server._connections)


async def test_wake_ups_by_the_thousand_leave_the_database_to_others(tmp_path: Path) -> None:
    async with served(tmp_path, RingSettings(turn_ms=20)) as (recorder, _, path):
        with (
            await asyncio.to_thread(RingWriter.connect, path) as hammer,
            await asyncio.to_thread(RingWriter.connect, path) as other,
        ):
            done = False

            def hammering() -> None:
                while not done:
                    hammer._send(frame(Kind.WAKE) * 100)

            task = asyncio.create_task(asyncio.to_thread(hammering))
            table = await asyncio.to_thread(declared, other)
            for number in range(20):
                table.write(speed(number))
                await asyncio.to_thread(other.flush, wait_ms=2_000)
            done = True
            await task
            assert len(recorder.plain("speed")) == 20


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    gc.collect()
    before = open_rings()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        async with served(tmp_path) as (_, _, path):
            for _ in range(3):
                with await asyncio.to_thread(RingWriter.connect, path) as writer:
                    table = await asyncio.to_thread(declared, writer)
                    table.write(speed(1))
            left = await asyncio.to_thread(RingWriter.connect, path)
        with pytest.raises(Unavailable):
            await asyncio.to_thread(left.flush) if left.number else left._send(frame(Kind.WAKE))
        left.close()
        del left, table, writer
        gc.collect()
    assert open_rings() == before


def open_rings() -> list[str]:
    """Shared memory and sockets that this process holds open, and nobody else's test has to do with."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # closed meanwhile: the one of this look
        if "memfd:" in target or target.startswith("socket:"):
            found.append(target)
    return sorted(found)
