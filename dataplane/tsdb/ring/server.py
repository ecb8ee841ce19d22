"""The ring's reader: a Unix socket where writers get a ring each, and turns that hand their rows to the database.

    writers ──► rings ──► a turn: copy, check, decode (a thread) ──► one table of rows each ──► Database.write
                 ▲ room again, once copied                                        └─► FLUSHED, for who asked

A ring each, and not one for all: a writer that dies or stops in the middle of a record harms its own ring only, and its
socket says which of the two it was. Turns are as far apart as the settings say, for a turn costs as much for one row of
a table as for a hundred; a writer that is asleep for want of room or asks for a flush has one at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dataplane.tsdb.engine import Database, Rows
from dataplane.tsdb.ring.connection import Connection
from dataplane.tsdb.ring.declare import as_the_table, declare
from dataplane.tsdb.ring.layout import RING_BYTES_MIN
from dataplane.tsdb.ring.memory import RingMemory
from dataplane.tsdb.ring.records import Taken, take
from providers.base.clock import Clock
from providers.base.errors import (
    AlreadyExists,
    Full,
    Internal,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RingSettings:
    """Of the ring's reader."""

    ring_bytes: int = 2 << 20
    """Of a writer that does not say. At 350,000 points a second it is half full after a quarter of a second."""
    ring_bytes_max: int = 16 << 20
    pool_bytes_max: int = 32 << 20
    """Of all rings together; a writer for whom there is none left is refused."""
    connections_max: int = 64
    tables_max: int = 4_096
    """That one connection declares."""
    turn_ms: float = 200
    """Between the beginnings of two turns, and so how old a row may get before it is stored without a flush. A turn
    costs some 30 µs a table whatever it holds: shorter ones cost processor time."""
    turn_ms_min: float = 0.5
    """Between a look that found nothing and the next one."""
    idle_ms: float = 500
    """The longest sleep without a look into the rings: writers wake the reader, this is for one that does not."""
    retry_ms: float = 20
    """Before rows that found the database full are offered again; the rings fill up meanwhile."""
    unavailable_ms_max: float = 10_000
    """How long rows are offered to a database that is unavailable before they are refused."""
    mode: int = 0o600
    """Of the socket: who may write."""


@dataclass(slots=True)
class Counters:
    """Since the start."""

    connections: int = 0
    turns: int = 0
    records: int = 0
    rows: int = 0
    values: int = 0
    """Of all columns, tags and times included."""
    refused_rows: int = 0
    waits: int = 0
    """Times that the database was full."""


class RingServer:
    """See the module."""

    def __init__(
        self, database: Database, path: Path, *, clock: Clock, settings: RingSettings = RingSettings()
    ) -> None:
        """`path`: of the socket; its folder is there."""
        self._database = database
        self._path = path
        self._clock = clock
        self._settings = settings
        self._connections: dict[int, Connection] = {}
        self._pool_bytes = 0
        self._urgent = asyncio.Event()
        # Of its own: the loop's threads may all be writers that wait for room.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ring")
        self._closing = False
        self._listener: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._serving: dict[int, asyncio.Task[None]] = {}
        self.counters = Counters()

    async def start(self) -> None:
        """Begin to listen. A socket that a dead process left is replaced.

        Raises:
            AlreadyExists: somebody listens there. Invalid: the path is no place for a socket.
        """
        probe = socket.socket(socket.AF_UNIX)
        listener = socket.socket(socket.AF_UNIX)
        try:
            if self._path.is_socket():
                try:
                    probe.connect(str(self._path))
                except ConnectionRefusedError:
                    self._path.unlink()
                else:
                    raise AlreadyExists(f"somebody listens at {self._path}")
            listener.bind(str(self._path))
            self._path.chmod(self._settings.mode)
            listener.listen(self._settings.connections_max)
        except OSError as error:
            listener.close()
            raise Invalid(f"no socket can be made at {self._path}: {error}") from error
        except AlreadyExists:
            listener.close()
            raise
        finally:
            probe.close()
        listener.setblocking(False)
        self._listener = listener
        self._tasks = [asyncio.create_task(self._accept(listener)), asyncio.create_task(self._run())]

    async def close(self) -> None:
        """Take what is published by now, say good-bye, and stop. What the database does not take meanwhile was not
        acked to its writer."""
        if self._listener is None:
            return
        accepting, running = self._tasks
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        self._listener.close()
        self._listener = None
        for connection in self._connections.values():
            connection.hang_up()
        self._closing = True
        self._urgent.set()
        await running
        await asyncio.gather(*self._serving.values())
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._thread.shutdown()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, say
                log.error("ring-accept-failed: %s", error)
                await self._clock.sleep_ms(self._settings.retry_ms)
                continue
            sock.setblocking(False)
            self.counters.connections += 1
            number = self.counters.connections
            connection = Connection(
                number,
                sock,
                ring=self._ring,
                declare=lambda content: declare(self._database, content),
                urge=self._urgent.set,
                pause=lambda: self._clock.sleep_ms(1),
                tables_max=self._settings.tables_max,
            )
            if len(self._connections) >= self._settings.connections_max:
                connection.hang_up(Full(f"{len(self._connections)} writers are connected, and there can be no more"))
                connection.close()
                continue
            self._connections[number] = connection
            self._serving[number] = asyncio.create_task(connection.serve())

    def _ring(self, size: int | None) -> RingMemory:
        settings = self._settings
        size = settings.ring_bytes if size is None else size
        if not RING_BYTES_MIN <= size <= settings.ring_bytes_max or size & (size - 1):
            raise Invalid(
                f"a ring of {size} bytes cannot be had",
                hint=f"a power of two from {RING_BYTES_MIN} to {settings.ring_bytes_max}",
            )
        if self._pool_bytes + size > settings.pool_bytes_max:
            raise Full(f"{self._pool_bytes} bytes of rings are in use, of {settings.pool_bytes_max}")
        try:
            memory = RingMemory(size)
        except OSError as error:
            raise Unavailable(f"the machine gives no memory for a ring: {error.strerror}") from error
        self._pool_bytes += size
        return memory

    def _tidy(self) -> None:
        """Give back what belongs to writers that are gone, once their rows are taken."""
        for number, connection in list(self._connections.items()):
            if not connection.ended or not self._serving[number].done() or _waiting(connection):
                continue
            del self._connections[number]
            del self._serving[number]
            if connection.memory is not None:
                self._pool_bytes -= connection.memory.size
            connection.close()

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        while True:
            began_ms = self._clock.monotonic_ms()
            self._urgent.clear()
            try:
                busy = await self._turn()
            except Exception:  # a bug here; what was taken in this turn was not acked
                log.exception("ring-turn-failed")
                busy = False
            if not self._closing:
                self._tidy()
            elif not busy:
                return
            if busy:
                spent_ms = self._clock.monotonic_ms() - began_ms
                await self._until_urged(self._settings.turn_ms - spent_ms)
            elif self._sleeps():
                await self._until_urged(self._settings.idle_ms if self._connections else None)
                # However often it is urged: a writer that does nothing else shall not keep the processor busy.
                await self._clock.sleep_ms(self._settings.turn_ms_min)
                for connection in self._connections.values():
                    if connection.memory is not None:
                        connection.memory.wake()

    async def _until_urged(self, for_ms: float | None) -> None:
        """Until a writer wants a turn, but not longer than so; None: as long as that takes."""
        if self._closing or (for_ms is not None and for_ms <= 0):
            await asyncio.sleep(0)
            return
        if for_ms is None:
            await self._urgent.wait()
            return
        waiting = asyncio.ensure_future(self._urgent.wait())
        tick = asyncio.ensure_future(self._clock.sleep_ms(for_ms))
        await asyncio.wait({waiting, tick}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        tick.cancel()

    def _sleeps(self) -> bool:
        """Ask all writers to wake the reader; false: one has published meanwhile."""
        asleep = True
        for connection in self._connections.values():
            if connection.memory is not None and not connection.ended:
                with contextlib.suppress(Invalid):  # the next turn says it
                    asleep &= connection.memory.sleep()
        return asleep

    async def _turn(self) -> bool:
        """Move what is published; false: nothing was."""
        waiting = [c for c in self._connections.values() if _waiting(c)]
        if not waiting:
            for connection in self._connections.values():
                connection.send_room()
            return False
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, lambda: [_taken(connection) for connection in waiting])
        for connection in waiting:
            connection.send_room()
        await self._store(waiting, found)
        self.counters.turns += 1
        for connection, taken in zip(waiting, found, strict=True):
            self.counters.records += taken.records
            connection.next_record += taken.records
            if taken.broken is not None:
                connection.hang_up(taken.broken)
                continue
            connection.stored = connection.next_record - 1
            connection.answer_flush()
        return True

    async def _store(self, connections: Sequence[Connection], found: Sequence[Taken]) -> None:
        """Hand over the rows, those of one table from all writers together, and tell the writers what was refused."""
        parts: dict[str, list[tuple[Connection, int, pa.Table]]] = {}
        for connection, taken in zip(connections, found, strict=True):
            for name, version, rows in taken.tables:
                parts.setdefault(name, []).append((connection, version, rows))
        rows = []
        for name, its in parts.items():
            schema = self._database.table(name)
            same = [as_the_table(schema, version, part) for _, version, part in its]
            rows.append(Rows(name, same[0] if len(same) == 1 else _together(same)))
        told = False
        for table, error in await self._written(rows):
            if error is None:
                self.counters.rows += len(table.data)
                self.counters.values += table.data.num_columns * len(table.data)
                continue
            if not told:
                log.warning("ring-refused: %d rows of table %s: %s", len(table.data), table.table, error)
                told = True
            self.counters.refused_rows += len(table.data)
            for connection, _, part in parts[table.table]:
                connection.refused += len(part)
                connection.error = error

    async def _written(self, rows: Sequence[Rows]) -> list[tuple[Rows, YunheError | None]]:
        """What became of each table's rows."""
        if not rows:
            return []
        error = await self._write(rows)
        if isinstance(error, (Invalid, NotFound)) and len(rows) > 1:
            # None of them was taken: one table's fault shall not be the others'.
            return [(its, await self._write([its])) for its in rows]
        return [(its, error) for its in rows]

    async def _write(self, rows: Sequence[Rows]) -> YunheError | None:
        """Write, again and again while the database pushes back; the error, where that does not help."""
        began_ms = self._clock.monotonic_ms()
        while True:
            try:
                await self._database.write(rows)
            except OutcomeUnknown as error:
                return error
            except (Full, Unavailable) as error:
                self.counters.waits += 1
                patient = isinstance(error, Full) and not self._closing
                if not patient and self._clock.monotonic_ms() - began_ms > self._settings.unavailable_ms_max:
                    return error
                await self._clock.sleep_ms(self._settings.retry_ms)
            except YunheError as error:
                return error
            except Exception as error:  # a bug there; whose rows they were is told
                log.exception("ring-write-failed")
                return Internal(f"the database failed: {type(error).__name__}: {error}")
            else:
                return None


def _waiting(connection: Connection) -> bool:
    """Whether it has published what is to be taken; a broken ring has nothing any more."""
    if connection.memory is None:
        return False
    try:
        return connection.memory.published() > 0
    except Invalid as error:
        connection.hang_up(error)
        connection.memory.give_up()
        return False


def _taken(connection: Connection) -> Taken:
    """What a writer has published, checked and decoded. Runs in a thread, beside the loop."""
    assert connection.memory is not None
    try:
        pieces = connection.memory.take()
    except Invalid as error:
        return Taken(broken=error)
    taken = take(pieces, list(connection.declared), connection.next_record)
    if taken.broken is not None:
        connection.memory.give_up()
    return taken


def _together(parts: Sequence[pa.Table]) -> pa.Table:
    """Rows of several writers, who may have declared different columns."""
    return pa.concat_tables(parts, promote_options="default")


def socket_path(folder: Path) -> Path:
    """Where an edge process that keeps its files in `folder` listens."""
    return folder / "ring.sock"
