"""An edge database as its application uses it: writes are acked as their table's log says, flushes are paced.

    write ──► waits while its table is full ──► queue ──► a turn: all queued rows, one sync for all that wait ──► ack
    keeper ──► a table half full, or rows too old ──► flush ──► pause in proportion to what the flush took
               rows of `periodic` tables unsynced too long ──► sync

The store is used by one worker at a time. A flush of an ordinary table takes tens of milliseconds, for which writes
wait; the pause after it is what keeps the vehicle's processor for others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema, WalSync
from providers.base.clock import Clock
from providers.base.errors import Full, Unavailable, YunheError

T = TypeVar("T")
log = logging.getLogger(__name__)


class Worker(Protocol):
    """Runs what blocks, one call at a time: a thread of its own, or in tests whoever calls."""

    async def __call__(self, what: Callable[[], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Of one edge database."""

    flush_share_max: float = 0.25
    """Of one core, what flushing may take: after a flush of 50 ms nothing is flushed for 150 ms. Tables that push back
    are flushed at once."""
    keeper_ms: float = 50
    """Between two looks at what is to be flushed or synced."""
    wait_ms_max: float = 5_000
    """How long a write waits for room before it is refused."""
    queued_max: int = 10_000
    """Writes that wait for their turn; more are refused."""


@dataclass(slots=True)
class _Write:
    table: str
    rows: pa.Table
    deletes: bool
    done: asyncio.Future[None]


@dataclass(slots=True)
class _Age:
    """Of a table's rows in memory, by the monotonic clock: of the oldest, and of the oldest that is not synced."""

    first_ms: float | None = None
    unsynced_ms: float | None = None


@dataclass(slots=True)
class Counters:
    """Since the start. Write amplification is bytes written to flash by bytes of rows taken."""

    rows: int = 0
    row_bytes: int = 0
    syncs: int = 0
    flushes: int = 0
    file_bytes: int = 0
    refused: int = 0


class EdgeDatabase:
    """See the module."""

    def __init__(
        self, store: EdgeStore, *, clock: Clock, worker: Worker, settings: EdgeSettings = EdgeSettings()
    ) -> None:
        self._store = store
        self._clock = clock
        self._worker = worker
        self._settings = settings
        self._one_at_a_time = asyncio.Lock()
        self._queue: list[_Write] = []
        self._ages: dict[str, _Age] = {}
        self._room = asyncio.Event()
        self._written = asyncio.Event()
        self._may_flush_ms = 0.0
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self.counters = Counters()

    async def start(self) -> None:
        """Begin to serve. Rows that the last life left in the log count as written now."""
        now = self._clock.monotonic_ms()
        self._ages = {name: _Age(first_ms=now) for name in self._store.pending()}
        self._tasks = [asyncio.create_task(self._serve()), asyncio.create_task(self._keep())]

    async def close(self) -> None:
        """Ack or refuse what is queued, make the log durable, and stop. Rows in memory stay in the log; those of tables
        without one are flushed."""
        self._closing = True
        self._written.set()
        await asyncio.gather(*self._tasks)
        unlogged = [t.name for t in self._store.tables if t.options.wal is WalSync.OFF]
        for name in set(unlogged) & set(self._store.pending()):
            await self.flush(name)
        await self._exclusively(self._store.sync)

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create_table(self, schema: TableSchema) -> None:
        """As the store's."""
        await self._exclusively(lambda: self._store.create_table(schema))

    async def write(self, table: str, rows: pa.Table, *, deletes: bool = False) -> None:
        """Take rows; returns when they are as durable as the table's log promises.

        Raises:
            NotFound: no such table. Invalid: not rows of it. Full: memory stayed full, or the flash is; nothing was
                taken. Unavailable: it is not known whether they were, or the database closes.
        """
        if len(self._queue) >= self._settings.queued_max:
            self.counters.refused += 1
            raise Full(f"{len(self._queue)} writes wait for the flash", hint="write slower, or in larger batches")
        await self._wait_for_room(table)
        if self._closing:
            raise Unavailable("the edge database closes")
        write = _Write(table, rows, deletes, asyncio.get_running_loop().create_future())
        self._queue.append(write)
        self._written.set()
        await write.done

    async def scan(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """As the store's."""
        return await self._exclusively(lambda: self._store.scan(table, columns))

    async def flush(self, table: str) -> FileMeta | None:
        """Put the table's rows into a file now; None: there were none."""
        began_ms = self._clock.monotonic_ms()
        meta = await self._exclusively(lambda: self._store.flush(table))
        took_ms = self._clock.monotonic_ms() - began_ms
        self._may_flush_ms = began_ms + took_ms / self._settings.flush_share_max
        self._ages.pop(table, None)  # before anything is written after what was flushed
        if meta is not None:
            self.counters.flushes += 1
            self.counters.file_bytes += meta.size
        self._room.set()
        return meta

    async def with_store(self, what: Callable[[EdgeStore], T]) -> T:
        """What `what` finds, while it alone has the store; for a moment, as writes wait meanwhile."""
        return await self._exclusively(lambda: what(self._store))

    async def _wait_for_room(self, table: str) -> None:
        deadline = self._clock.monotonic_ms() + self._settings.wait_ms_max
        while self._store.pushes_back(table):
            if self._clock.monotonic_ms() >= deadline:
                self.counters.refused += 1
                raise Full(
                    f"memory stayed full for {self._settings.wait_ms_max / 1_000:.0f} s",
                    hint="write slower, or raise the table's limit",
                )
            self._room.clear()
            waiting = asyncio.ensure_future(self._room.wait())
            tick = asyncio.ensure_future(self._clock.sleep_ms(self._settings.keeper_ms))
            await asyncio.wait({waiting, tick}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            tick.cancel()

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self) -> None:
        while not self._closing or self._queue:
            await self._written.wait()
            self._written.clear()
            while self._queue:
                await self._turn()

    async def _turn(self) -> None:
        """All writes queued now, and one sync for those who wait for one."""
        writes, self._queue = self._queue, []
        outcomes = await self._exclusively(lambda: self._take(writes))
        now = self._clock.monotonic_ms()
        for write, error in zip(writes, outcomes, strict=True):
            if error is None:
                age = self._ages.setdefault(write.table, _Age())
                age.first_ms = now if age.first_ms is None else age.first_ms
                if self._store.options(write.table).wal is WalSync.PERIODIC and age.unsynced_ms is None:
                    age.unsynced_ms = now
                self.counters.rows += len(write.rows)
                self.counters.row_bytes += write.rows.nbytes
            if write.done.done():
                continue  # whoever wrote has gone
            if error is None:
                write.done.set_result(None)
            else:
                write.done.set_exception(error)

    def _take(self, writes: Sequence[_Write]) -> list[Exception | None]:
        outcomes: list[Exception | None] = []
        for write in writes:
            try:
                self._store.write(write.table, write.rows, deletes=write.deletes)
                outcomes.append(None)
            except Exception as error:  # whatever it is, it is this write's own
                outcomes.append(error)
        waiting = [
            at
            for at, w in enumerate(writes)
            if outcomes[at] is None and self._store.options(w.table).wal is WalSync.ALWAYS
        ]
        if waiting:
            try:
                self._sync()
            except YunheError as error:
                for at in waiting:
                    outcomes[at] = error
        return outcomes

    def _sync(self) -> None:
        self._store.sync()
        self.counters.syncs += 1
        for age in self._ages.values():
            age.unsynced_ms = None

    # ── keeping ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        while not self._closing:
            pressed = False
            try:
                pressed = await self._keep_once()
            except (Full, Unavailable) as error:
                log.error("edge-keeper: %s", error)
            if not pressed:
                await self._clock.sleep_ms(self._settings.keeper_ms)

    async def _keep_once(self) -> bool:
        """Whether a table was flushed for which writers waited: there may be another."""
        now = self._clock.monotonic_ms()
        options = self._store.options
        unsynced = {name: age.unsynced_ms for name, age in self._ages.items() if age.unsynced_ms is not None}
        if any(now - since >= options(name).wal_sync_interval_ms for name, since in unsynced.items()):
            await self._exclusively(self._sync)
        due = await self._exclusively(self._store.due)
        if due and self._store.pushes_back(due[0]):
            await self.flush(due[0])
            return True
        first = {name: age.first_ms for name, age in self._ages.items() if age.first_ms is not None}
        due += [name for name, since in first.items() if now - since >= options(name).flush_interval_ms]
        if due and now >= self._may_flush_ms:
            await self.flush(due[0])
        return False

    async def _exclusively(self, what: Callable[[], T]) -> T:
        async def alone() -> T:
            async with self._one_at_a_time:
                return await self._worker(what)

        # A caller who gives up does not stop a thread: the store stays taken until that has ended.
        return await asyncio.shield(asyncio.create_task(alone()))
