"""An edge database as its application uses it (`engine.Database`): writes are acked as their tables' logs say, flushes
are paced.

    write ──► waits while its table is full ──► queue ──► a turn: all queued rows, one sync for all that wait ──► ack
    keeper ──► a table nearly full, or rows too old ──► flush ──► pause in proportion to what the flush took, the
               shorter the fuller memory is
               rows of `periodic` tables unsynced too long ──► sync
    query ──► a snapshot, whose files stay while it is read ──► the query engine, beside all that

The store is used by one worker at a time. A flush of an ordinary table takes milliseconds, for which writes wait; the
pause after it is what keeps the vehicle's processor for others.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import pyarrow as pa

from dataplane.tsdb.edge.intake import Put
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.query.engine import TableView
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import (
    Column,
    ColumnType,
    TableOptions,
    TableSchema,
    WalSync,
    at_least,
    grown,
)
from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Full, Internal, Invalid, NotFound, Unavailable, YunheError

T = TypeVar("T")
log = logging.getLogger(__name__)


class Worker(Protocol):
    """Runs what blocks, one call at a time: a thread of its own, or in tests whoever calls."""

    async def __call__(self, what: Callable[[], T]) -> T: ...


class Queries(Protocol):
    """The query engine, as far as an edge uses it."""

    async def query(self, select: str, tables: Mapping[str, TableView], now_ms: int) -> pa.Table: ...


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Of one edge database."""

    flush_share_max: float = 0.25
    """Of the time, what flushing may take: after a flush of 50 ms nothing is flushed for 150 ms. The share rises to all
    of it as memory fills, for a flush takes longer on slow flash and beside others. Tables that push back are flushed
    at once."""
    keeper_ms: float = 50
    """Between two looks at what is to be flushed or synced, at most."""
    wait_ms_max: float = 5_000
    """How long a write waits for room before it is refused."""
    queued_max: int = 10_000
    """Writes that wait for their turn; more are refused."""


@dataclass(slots=True)
class _Write:
    puts: Sequence[Put]
    done: asyncio.Future[None]


@dataclass(slots=True)
class Counters:
    """Since the start. Write amplification is bytes written to flash by bytes of rows taken."""

    rows: int = 0
    row_bytes: int = 0
    log_bytes: int = 0
    syncs: int = 0
    flushes: int = 0
    file_bytes: int = 0
    refused: int = 0


class EdgeDatabase:
    """See the module."""

    def __init__(
        self,
        store: EdgeStore,
        *,
        clock: Clock,
        worker: Worker,
        settings: EdgeSettings = EdgeSettings(),
        name: str = "edge",
        queries: Queries | None = None,
    ) -> None:
        """`queries`: None refuses them."""
        self.name = name
        self._queries = queries
        self._store = store
        self._clock = clock
        self._worker = worker
        self._settings = settings
        self._one_at_a_time = asyncio.Lock()
        self._queue: list[_Write] = []
        self._flush_by_ms: dict[str, float] = {}
        """Of each table with rows in memory, when the oldest is to be in a file, by the monotonic clock."""
        self._sync_by_ms = math.inf
        """When all that is written is to be synced."""
        self._room = asyncio.Event()
        self._written = asyncio.Event()
        self._may_flush_ms = 0.0
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self.counters = Counters()

    async def start(self) -> None:
        """Begin to serve. Rows that the last life left in the log count as written now."""
        now = self._clock.monotonic_ms()
        self._flush_by_ms = {n: now + self._store.options(n).flush_interval_ms for n in self._store.pending()}
        self._tasks = [asyncio.create_task(self._serve()), asyncio.create_task(self._keep())]

    async def close(self) -> None:
        """Ack or refuse what is queued, make the log durable, and stop. Rows in memory stay in the log; those of tables
        without one are flushed."""
        self._closing = True
        self._written.set()
        await asyncio.gather(*self._tasks)
        unlogged = [t.name for t in self._store.tables if t.options.wal is WalSync.OFF]
        for name in set(unlogged) & set(self._store.pending()):
            await self.flush_table(name)
        await self._exclusively(self._store.sync)

    # ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def role(self) -> str:
        return "edge"

    @property
    def in_doubt(self) -> str | None:
        """Why it takes nothing more until it is opened anew; None: it does."""
        return self._store.in_doubt

    @property
    def memory_bytes(self) -> int:
        """Of the rows in no file yet."""
        return self._store.memory_bytes

    def tables(self) -> Sequence[TableSchema]:
        """As of the protocol."""
        return sorted(self._store.tables, key=lambda table: table.name)

    def table(self, name: str) -> TableSchema | None:
        """As of the protocol."""
        try:
            return self._store.table(name)
        except NotFound:
            return None

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        """As of the protocol; durable when it returns."""
        schema = TableSchema(name, tuple(replace(c, id=at) for at, c in enumerate(columns, 1)), options=options)

        def create() -> TableSchema:
            try:
                self._store.create_table(schema)
            except AlreadyExists:
                if not if_not_exists:
                    raise
            return self._store.table(name)

        return await self._exclusively(create)

    async def drop_table(self, name: str, *, if_exists: bool = False) -> bool:
        """As of the protocol. Files that the cloud has stay there."""
        if if_exists and self.table(name) is None:
            return False
        await self._empty(name, drop=True)
        return True

    async def truncate_table(self, name: str) -> None:
        """As of the protocol. Files that the cloud has stay there."""
        await self._empty(name, drop=False)

    async def add_columns(self, name: str, columns: Sequence[Column]) -> TableSchema:
        """As of the protocol."""
        return await self._evolve(name, lambda schema: grown(schema, columns))

    async def widen_column(self, name: str, column: str, wider: ColumnType) -> TableSchema:
        """As of the protocol."""
        return await self._evolve(name, lambda schema: at_least(schema, column, wider))

    async def set_options(self, name: str, options: TableOptions) -> TableSchema:
        """As of the protocol. What is in memory is flushed under the old ones first."""

        def changed(schema: TableSchema) -> TableSchema:
            if options.append_mode != schema.options.append_mode and self._store.files(name):
                raise Invalid(
                    f"table {name!r} has rows: whether it appends is settled by then",
                    hint="make another table, or truncate this one",
                )
            if options == schema.options:
                return schema
            return replace(schema, options=options, version=schema.version + 1)

        return await self._evolve(name, changed)

    async def _evolve(self, name: str, change: Callable[[TableSchema], TableSchema]) -> TableSchema:
        def evolve() -> TableSchema:
            present = self._store.table(name)
            changed = change(present)
            if changed is not present:
                self._store.change_table(changed)
            return changed

        return await self._exclusively(evolve)

    async def _empty(self, name: str, *, drop: bool) -> None:
        await self._exclusively(lambda: self._store.empty_table(name, drop=drop))
        self._flush_by_ms.pop(name, None)
        self._room.set()

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, rows: Sequence[Rows]) -> int:
        """As of the protocol; of all the tables' rows all are taken or none.

        Raises:
            NotFound: no such table. Invalid: not rows of it. Full: memory stayed full, or the flash is; nothing was
                taken. Unavailable: it is not known whether they were, or the database closes.
        """
        await self._put([Put(each.table, each.data) for each in rows])
        return sum(len(each.data) for each in rows)

    async def delete(self, table: str, keys: pa.Table) -> int:
        """As of the protocol."""
        await self._put([Put(table, keys, deletes=True)])
        return len(keys)

    async def _put(self, puts: Sequence[Put]) -> None:
        if len(self._queue) >= self._settings.queued_max:
            self.counters.refused += 1
            raise Full(f"{len(self._queue)} writes wait for the flash", hint="write slower, or in larger batches")
        await self._wait_for_room(puts)
        if self._closing:
            raise Unavailable("the edge database closes")
        write = _Write(puts, asyncio.get_running_loop().create_future())
        self._queue.append(write)
        self._written.set()
        await write.done

    async def query(self, select: str) -> pa.Table:
        """As of the protocol. Writes and flushes go on meanwhile."""
        if self._queries is None:
            raise Invalid("this edge database was opened without its query engine")
        snapshot = await self._exclusively(self._store.snapshot)
        try:
            return await self._queries.query(select, snapshot, self._clock.wall_ms())
        finally:
            await self._exclusively(lambda: self._store.release(snapshot))

    async def with_store(self, what: Callable[[EdgeStore], T]) -> T:
        """What `what` finds, while it alone has the store; for a moment, as writes wait meanwhile."""
        return await self._exclusively(lambda: what(self._store))

    async def scan(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """As the store's."""
        return await self._exclusively(lambda: self._store.scan(table, columns))

    async def flush(self, table: str | None = None) -> None:
        """As of the protocol."""
        if table is not None and self.table(table) is None:
            raise NotFound(f"there is no table {table!r}")
        for name in [table] if table is not None else self._store.pending():
            await self.flush_table(name)

    async def flush_table(self, table: str) -> FileMeta | None:
        """Put the table's rows into a file now; None: there were none, or the table has gone meanwhile."""

        began_ms = self._clock.monotonic_ms()

        def flush() -> FileMeta | None:
            return self._store.flush(table) if table in self._store else None

        async def timed() -> FileMeta | None:
            nonlocal began_ms
            began_ms = self._clock.monotonic_ms()
            return await self._worker(flush)

        meta = await self._alone(timed)
        took_ms = self._clock.monotonic_ms() - began_ms
        share = self._settings.flush_share_max
        self._may_flush_ms = began_ms + took_ms / (share + (1 - share) * self._store.crowding)
        self._flush_by_ms.pop(table, None)  # before anything is written after what was flushed
        if meta is not None:
            self.counters.flushes += 1
            self.counters.file_bytes += meta.size
        self._room.set()
        return meta

    async def _wait_for_room(self, puts: Sequence[Put]) -> None:
        if not self._full(puts):
            return
        deadline = self._clock.monotonic_ms() + self._settings.wait_ms_max
        while self._full(puts):
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

    def _full(self, puts: Sequence[Put]) -> bool:
        return any(self._store.pushes_back(put.table) for put in puts)

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
        outcomes: list[Exception | None]
        try:
            outcomes = await self._exclusively(lambda: self._take(writes))
        except Exception as bug:  # whoever waits has to hear of it
            log.exception("edge-turn-failed")
            outcomes = [Internal(f"the turn failed: {bug}")] * len(writes)
        now = self._clock.monotonic_ms()
        for write, error in zip(writes, outcomes, strict=True):
            if error is None:
                for put in write.puts:
                    self._note(put, now)
            if write.done.done():
                continue  # whoever wrote has gone
            if error is None:
                write.done.set_result(None)
            else:
                write.done.set_exception(error)

    def _note(self, put: Put, now: float) -> None:
        self.counters.rows += len(put.data)
        if put.table not in self._store:
            return  # dropped meanwhile
        options = self._store.options(put.table)
        flush_by = now + options.flush_interval_ms
        self._flush_by_ms[put.table] = min(flush_by, self._flush_by_ms.get(put.table, flush_by))
        if options.wal is WalSync.PERIODIC:
            self._sync_by_ms = min(self._sync_by_ms, now + options.wal_sync_interval_ms)

    def _take(self, writes: Sequence[_Write]) -> list[Exception | None]:
        taken, logged = self._store.taken_bytes, self._store.logged_bytes
        outcomes = self._store.take([write.puts for write in writes])
        self.counters.row_bytes += self._store.taken_bytes - taken
        self.counters.log_bytes += self._store.logged_bytes - logged
        waiting = [at for at, write in enumerate(writes) if outcomes[at] is None and self._waits(write)]
        if waiting:
            try:
                self._sync()
            except YunheError as error:
                for at in waiting:
                    outcomes[at] = error
        return outcomes

    def _waits(self, write: _Write) -> bool:
        return any(self._store.options(put.table).wal is WalSync.ALWAYS for put in write.puts)

    def _sync(self) -> None:
        self._store.sync()
        self.counters.syncs += 1
        self._sync_by_ms = math.inf

    # ── keeping ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        while not self._closing:
            wait_ms = self._settings.keeper_ms
            try:
                wait_ms = await self._keep_once()
            except (Full, Unavailable) as error:
                log.error("edge-keeper: %s", error)
            if wait_ms > 0:
                await self._clock.sleep_ms(wait_ms)

    async def _keep_once(self) -> float:
        """How long until it is to look again, ms: 0 where writers wait for a flush."""
        now = self._clock.monotonic_ms()
        if now >= self._sync_by_ms:
            await self._exclusively(self._sync)
        presses = self._store.presses
        if presses or now >= self._may_flush_ms:
            due = await self._exclusively(self._store.due)
            due += [name for name, by_ms in self._flush_by_ms.items() if now >= by_ms]
            if not due:
                return self._settings.keeper_ms
            await self.flush_table(due[0])
            if presses:
                return 0.0
        return min(self._settings.keeper_ms, max(1.0, self._may_flush_ms - self._clock.monotonic_ms()))

    async def _exclusively(self, what: Callable[[], T]) -> T:
        return await self._alone(lambda: self._worker(what))

    async def _alone(self, what: Callable[[], Awaitable[T]]) -> T:
        async def alone() -> T:
            async with self._one_at_a_time:
                return await what()

        # A caller who gives up does not stop a thread: the store stays taken until that has ended.
        return await asyncio.shield(asyncio.create_task(alone()))
