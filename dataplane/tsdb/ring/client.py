"""A writer: connect, declare a table, write rows into shared memory, ask for them to be durable.

    with RingWriter.connect(path) as writer:
        table = writer.declare("speed", [Column(1, "ts", TIMESTAMP_MS, TIME), Column(2, "kmh", FLOAT32)], create=True)
        table.write(batch)        # into the ring: no system call while the reader keeps up
        writer.flush()            # returns once all rows so far are stored as the table's WAL policy says

Blocking, for use by one thread at a time: one connection a thread is how several write.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from dataplane.contract.codec import to_plain
from dataplane.tsdb.ring.channel import (
    STORED,
    UPTO,
    Frames,
    Kind,
    columns_content,
    content_of,
    error_of,
    frame,
    message,
)
from dataplane.tsdb.ring.encode import RowForm, record_of
from dataplane.tsdb.ring.layout import (
    CLOSED,
    CONSUMED,
    HEADER_BYTES,
    MAGIC,
    PREAMBLE,
    PUBLISHED,
    READER_SLEEPS,
    ROWS_MAX,
    VERSION,
    WRAP,
    WRITER_WAITS,
    Shapes,
)
from dataplane.tsdb.ring.memory import Fence
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions
from providers.base.clock import Clock, SystemClock
from providers.base.errors import Full, Invalid, Unavailable, YunheError

WAIT_MS_MAX = 10_000


class RingTable:
    """A declared table: `columns` as records carry them."""

    def __init__(self, writer: RingWriter, number: int, name: str, columns: tuple[Column, ...]) -> None:
        self.name = name
        self.columns = columns
        self._writer = writer
        self._number = number
        self._shapes = Shapes([column.type for column in columns])
        self._schema = pa.schema([(column.name, column.type.arrow) for column in columns])
        self._row: RowForm | None = None

    def write(self, rows: pa.Table | pa.RecordBatch, *, wait_ms: float = WAIT_MS_MAX) -> int:
        """Put rows into the ring, in as many records as they need; returns the last one's number. Columns by name;
        those that can be null may be left out.

        Raises:
            Invalid: not rows of the table; none was taken. Full: no room within `wait_ms`; rows before the first that
                found none are in the ring, `fields["written"]` of them. Unavailable: the database has hung up.
        """
        batch, number, written = self._conformed(rows), self._writer.number, 0
        while written < len(batch):
            count = min(len(batch) - written, ROWS_MAX)
            record = self._record(batch.slice(written, count))
            while len(record) > self._writer.record_bytes_max:
                if count == 1:
                    raise Invalid(
                        f"a row of {len(record)} bytes does not fit a ring of {self._writer.ring_bytes}",
                        hint="ask for a larger ring",
                    )
                count = max(1, min(count // 2, count * self._writer.record_bytes_max // len(record)))
                record = self._record(batch.slice(written, count))
            try:
                number = self._writer.put(record, wait_ms)
            except Full as error:
                error.fields["written"] = written
                raise
            written += count
        return number

    def write_row(self, values: Sequence[Any], *, wait_ms: float = WAIT_MS_MAX) -> int:
        """One row of numbers, none null, in the order of `columns`; times as numbers in their unit.

        Raises:
            Invalid, Full, Unavailable: as `write`.
        """
        if self._row is None:
            self._row = RowForm(self.columns, self._shapes, self._number)
        return self._writer.put(self._row.pack(self._writer.number + 1, values), wait_ms)

    def _record(self, batch: pa.RecordBatch) -> bytes:
        return record_of(self.columns, self._shapes, self._number, self._writer.number + 1, batch)

    def _conformed(self, rows: pa.Table | pa.RecordBatch) -> pa.RecordBatch:
        if unknown := sorted(set(rows.schema.names) - set(self._schema.names)):
            raise Invalid(f"column {unknown[0]!r} is not declared of table {self.name!r}")
        arrays = []
        for column in self.columns:
            if column.name in rows.schema.names:
                found = rows.column(column.name)
                array = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
                if array.type != column.type.arrow:
                    raise Invalid(f"column {column.name!r} is {column.type}, not {array.type}")
            else:
                array = pa.nulls(rows.num_rows, column.type.arrow)
            if array.null_count and not column.nullable:
                raise Invalid(f"column {column.name!r} of table {self.name!r} cannot be null")
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


class RingWriter:
    """See the module."""

    def __init__(self, sock: socket.socket, memory: mmap.mmap, size: int, clock: Clock) -> None:
        """Use `connect`."""
        self.ring_bytes = size
        self.record_bytes_max = size // 2
        """So that a record finds room however the ring's end lies."""
        self.number = 0
        """Of the last record in the ring."""
        self._sock = sock
        self._map = memory
        self._clock = clock
        self._view = memoryview(memory)
        self._long = self._view[:HEADER_BYTES].cast("Q")
        self._word = self._view[:HEADER_BYTES].cast("I")
        self._ring = self._view[HEADER_BYTES:]
        self._fence = Fence()
        self._frames = Frames()
        self._arrived: list[tuple[int, bytes]] = []
        self._published = 0
        self._refused = 0
        self._why: YunheError | None = None

    @classmethod
    def connect(
        cls, path: Path, *, ring_bytes: int | None = None, wait_ms: float = WAIT_MS_MAX, clock: Clock | None = None
    ) -> RingWriter:
        """Raises Unavailable: nobody serves there. Full: the database has no ring left. Invalid: no such size."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(wait_ms / 1_000)
        fds: list[int] = []
        try:
            sock.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # it has hung up, and said why: that can still be read
                sock.sendall(message(Kind.HELLO, {"version": VERSION, "ring_bytes": ring_bytes}))
            frames = Frames()
            found: list[tuple[int, bytes]] = []
            while not found:
                data, got, _, _ = socket.recv_fds(sock, 1 << 16, 4)
                fds += got
                if not data:
                    raise Unavailable(f"the database at {path} hung up")
                found = list(frames.feed(data))
            kind, payload = found[0]
            if kind == Kind.FAREWELL:
                raise error_of(content_of(payload))
            if kind != Kind.WELCOME or len(fds) != 1:
                raise Invalid(f"whoever listens at {path} is no ring of a database")
            size = content_of(payload).get("ring_bytes")
            memory = mmap.mmap(fds[0], 0)
            if bytes(memory[: PREAMBLE.size]) != PREAMBLE.pack(
                MAGIC, VERSION, HEADER_BYTES, len(memory) - HEADER_BYTES
            ):
                raise Invalid(f"the memory from {path} is no ring of version {VERSION}")
            if size != len(memory) - HEADER_BYTES:
                raise Invalid(f"the ring from {path} has not the size that it was said to have")
            return cls(sock, memory, len(memory) - HEADER_BYTES, clock or SystemClock())
        except OSError as error:
            sock.close()
            raise Unavailable(f"no database serves a ring at {path}: {error}") from error
        except YunheError:
            sock.close()
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def declare(
        self,
        table: str,
        columns: Iterable[Column],
        *,
        options: TableOptions | None = None,
        create: bool = False,
        wait_ms: float = WAIT_MS_MAX,
    ) -> RingTable:
        """Say which columns the records of a table carry. `create`: what is not there is made, with `options`.

        Raises:
            NotFound: no such table or column. Invalid: what is wrong with it. Full: too many tables.
        """
        content = {"table": table, "columns": columns_content(columns), "create": create}
        if options is not None:
            content["options"] = to_plain(options)
        self._send(message(Kind.DECLARE, content))
        answer = content_of(self._answer(Kind.DECLARED, wait_ms))
        if "error" in answer:
            raise error_of(answer["error"])
        held = tuple(
            Column(at, c["name"], ColumnType(c["type"]), ColumnRole(c["role"]), c["nullable"], c.get("decimals"))
            for at, c in enumerate(answer["columns"], 1)
        )
        return RingTable(self, answer["id"], table, held)

    def put(self, record: bytes | bytearray, wait_ms: float) -> int:
        """Publish one encoded record, which carries `number` + 1; returns that.

        Raises:
            Full: no room within `wait_ms`. Unavailable: the database has hung up.
        """
        length, size = len(record), self.ring_bytes
        at = self._published % size
        rest = size - at
        need = length if length <= rest else rest + length
        if self._word[CLOSED]:
            raise self._hung_up()
        used = self._published - self._long[CONSUMED]
        if used + need > size:
            self._wait_for_room(need, wait_ms)
            used = self._published - self._long[CONSUMED]
        self._fence()  # the reader has copied what lay here before anything else is put in its place
        if length > rest:
            self._ring[at : at + 4] = WRAP.to_bytes(4, "little")
            at = 0
        self._ring[at : at + length] = record
        self._fence()  # the record is there before the word that says so
        self._published += need
        self._long[PUBLISHED] = self._published
        self.number += 1
        self._fence()  # published before the reader's sleep is looked at: it does the same the other way around
        if self._word[READER_SLEEPS]:
            self._word[READER_SLEEPS] = 0
            self._send(frame(Kind.WAKE))
        elif used < size // 2 <= used + need:
            self._send(frame(Kind.WAKE))
        return self.number

    def flush(self, *, wait_ms: float = WAIT_MS_MAX) -> int:
        """Wait until all rows so far are stored, as durable as their tables' logs promise; returns the last record's
        number.

        Raises:
            Unavailable: not within `wait_ms`, or the database has hung up; what was not flushed may be lost. What else
                the database refused rows for since the last flush: those are not stored, `fields["rows"]` of them.
        """
        if not self.number:
            return 0
        self._send(frame(Kind.FLUSH, UPTO.pack(self.number)))
        stored = 0
        while stored < self.number:
            payload = self._answer(Kind.FLUSHED, wait_ms)
            stored, refused = STORED.unpack_from(payload)
            if refused > self._refused:
                error = error_of(json.loads(payload[STORED.size :] or b"{}"))
                error.fields["rows"], self._refused = refused - self._refused, refused
                raise error
        return stored

    def close(self) -> None:
        """Hang up. Rows in the ring are still taken; nobody says so."""
        if self._map.closed:
            return
        self._sock.close()
        for view in (self._long, self._word, self._ring, self._view):
            view.release()
        self._map.close()

    def __enter__(self) -> RingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _wait_for_room(self, need: int, wait_ms: float) -> None:
        deadline = self._clock.monotonic_ms() + wait_ms
        while True:
            self._word[WRITER_WAITS] = 1
            self._fence()
            used = self._published - self._long[CONSUMED]
            if used + need <= self.ring_bytes:
                self._word[WRITER_WAITS] = 0
                return
            self._send(frame(Kind.WAKE))
            left = deadline - self._clock.monotonic_ms()
            if left <= 0:
                raise Full(f"the ring holds {used} bytes of {self.ring_bytes}", hint="write slower, or wait for room")
            self._receive(left)

    def _send(self, data: bytes) -> None:
        try:
            self._sock.settimeout(WAIT_MS_MAX / 1_000)
            self._sock.sendall(data)
        except OSError:
            raise self._hung_up() from None

    def _answer(self, kind: Kind, wait_ms: float) -> bytes:
        deadline = self._clock.monotonic_ms() + wait_ms
        while True:
            for at, (its, payload) in enumerate(self._arrived):
                if its == kind:
                    del self._arrived[at]
                    return payload
            left = deadline - self._clock.monotonic_ms()
            if left <= 0:
                raise Unavailable(f"the database did not answer within {wait_ms:.0f} ms")
            self._receive(left)

    def _receive(self, for_ms: float) -> None:
        """What the database says next, or nothing within `for_ms`."""
        self._sock.settimeout(for_ms / 1_000)
        try:
            data = self._sock.recv(1 << 16)
        except TimeoutError:
            return
        except OSError:
            raise self._hung_up() from None
        if not data:
            raise self._hung_up()
        for kind, payload in self._frames.feed(data):
            if kind == Kind.FAREWELL:
                self._why = error_of(content_of(payload))
            elif kind != Kind.ROOM:
                self._arrived.append((kind, payload))

    def _hung_up(self) -> YunheError:
        """Why the database has; it may have said so before."""
        self._sock.settimeout(0.1)
        try:
            while self._why is None and (data := self._sock.recv(1 << 16)):
                for kind, payload in self._frames.feed(data):
                    if kind == Kind.FAREWELL:
                        self._why = error_of(content_of(payload))
        except OSError:
            pass
        return self._why or Unavailable(
            "the database has hung up", hint="connect again; what was not flushed may be lost"
        )
