"""What a node has while it owns the database, for one epoch: a WAL, rows in memory, and the right to flush them.

    write ──► room ──► WAL: one record a write, many writes a block ──► durable ──► memory, ack
    keeper ──► tables that are large or old ──► SSTs ──► one manifest entry: files, and floors ──► WAL trimmed behind it

A table whose `wal` is off skips the WAL: what is in memory is lost with the node. `periodic` is `always` here, for a
bucket has no state between written and durable. An epoch ends once: with `dead`, when the WAL is fenced or the bucket
stayed away, or with `close`. What is acked by then is in the WAL, and the next owner puts it into files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pyarrow as pa

from dataplane.contract.assignment import WalMode, WalSpec
from dataplane.tsdb.cloud.flushing import Counters, Flusher, TenureSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import Logged, database_released
from dataplane.tsdb.cloud.manifest_state import TableState
from dataplane.tsdb.cloud.memory import TableMemory
from dataplane.tsdb.cloud.records import Section, encode, identity, section
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.schema.tables import TableSchema, WalSync
from dataplane.tsdb.sst.decimals import taken_in
from dataplane.tsdb.sst.memtable import Message, joined, message_of, size_of
from dataplane.tsdb.sst.order import OP_TYPE
from dataplane.tsdb.sst.writer import conformed
from dataplane.wal.commit import GroupCommit
from dataplane.wal.modes import WalPlaces, open_wal
from providers.base.clock import Clock
from providers.base.errors import Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TableRows:
    """What a write has for one table; `deletes`: keys of rows to be deleted, with `__op_type`."""

    table: str
    data: pa.Table
    deletes: bool = False


class Tenure:
    """See the module. `open` makes one."""

    def __init__(
        self, epoch: int, manifest: Manifest, files: SstFiles, *, clock: Clock, settings: TenureSettings
    ) -> None:
        self.epoch = epoch
        self.counters = Counters()
        self._manifest = manifest
        self._files = files
        self._clock = clock
        self._settings = settings
        self._memory: dict[str, TableMemory] = {}
        self._fingerprints: dict[str, tuple[TableSchema, str]] = {}
        self._sequence = 0
        self._under_way_bytes = 0
        self._waiting = 0
        self._dead: YunheError | None = None
        self._closing = False
        self._changes = asyncio.Lock()
        self._wal: GroupCommit
        self._flusher: Flusher
        self._keeper: asyncio.Task[None]

    @classmethod
    async def open(
        cls, epoch: int, manifest: Manifest, files: SstFiles, *, clock: Clock, settings: TenureSettings
    ) -> Tenure:
        """Begin to serve epoch `epoch`, once all earlier WALs are recovered.

        Raises:
            Fenced: another node has taken over already. Unavailable: the bucket does not answer.
        """
        tenure = cls(epoch, manifest, files, clock=clock, settings=settings)
        tenure._wal = await open_wal(
            WalSpec(WalMode.OBJECT, bytes_max=settings.wal_bytes_max),
            identity(files.database, epoch),
            WalPlaces(bucket=files.store),
            clock=clock,
            on_dead=tenure.end,
            settings=settings.wal,
        )
        tenure._flusher = Flusher(
            epoch,
            manifest,
            files,
            tenure._memory,
            tenure._wal,
            clock=clock,
            settings=settings,
            counters=tenure.counters,
            end=tenure.end,
        )
        tenure._keeper = asyncio.create_task(tenure._flusher.keep())
        return tenure

    @property
    def dead(self) -> YunheError | None:
        """Why this epoch is over; None: it is not."""
        return self._dead

    def end(self, error: YunheError) -> None:
        """The epoch is over: nothing is acked from here on."""
        if self._dead is None:
            self._dead = error
            log.warning("tenure-over", extra={"epoch": self.epoch, "reason": str(error)})

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def memory_bytes(self) -> int:
        return sum(memory.bytes for memory in self._memory.values())

    def rows(self, table: TableState) -> list[pa.Table]:
        """A table's rows that are in no file, oldest first, in its present columns: of this moment, as long as nothing
        is awaited since the manifest's state was looked at."""
        memory = self._memory.get(table.schema.name)
        parts = memory.above(self._flusher.floor(table.schema.name)) if memory is not None else []
        return [joined(table.schema, [part]) for part in parts]

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, rows: Sequence[TableRows]) -> None:
        """Take all of it, or none; each table once at most. Durable when this returns, where the table has a WAL.

        Raises:
            NotFound, Invalid: nothing was taken. Full: memory or WAL stayed full; nothing was. Fenced, Unavailable:
            this epoch was over before; nothing was. OutcomeUnknown: it ended meanwhile: the next owner knows.
        """
        if self._waiting >= self._settings.waiting_max:
            self.counters.refused += 1
            raise Full(f"{self._waiting} writes wait for the bucket", hint="write slower, or in larger batches")
        self._waiting += 1
        try:
            done = await self._begin(rows)
        except Full:
            self.counters.refused += 1
            raise
        finally:
            self._waiting -= 1
        # Whoever gives up waiting does not call the write back.
        await asyncio.shield(done)

    async def _begin(self, rows: Sequence[TableRows]) -> asyncio.Future[None]:
        deadline = self._clock.monotonic_ms() + self._settings.wait_ms_max
        prepared = [await self._prepared(item) for item in rows]
        while True:
            self._check_alive()
            for item in rows:
                await self._memory_of(item.table).opened()
            if all(self._memory_of(item.table).is_open for item in rows):
                for at, (_, schema, _) in enumerate(prepared):
                    if self._schema(rows[at].table) is not schema:
                        prepared[at] = await self._prepared(rows[at])
                        break  # another may have changed meanwhile
                else:
                    try:
                        return self._submit(rows, prepared)
                    except Full:
                        if self._clock.monotonic_ms() >= deadline:
                            raise
                        await self._clock.sleep_ms(self._settings.tick_ms)

    async def _prepared(self, item: TableRows) -> tuple[pa.RecordBatch, TableSchema, Section | None]:
        """The rows in the table's present columns; and as the WAL has them."""
        schema = self._schema(item.table)
        if item.deletes and schema.options.append_mode:
            raise Invalid(f"table {item.table!r} appends: none of its rows can be deleted")
        if not item.deletes and OP_TYPE in item.data.column_names:
            raise Invalid(f"{OP_TYPE!r} is the database's own column")
        logged = schema.options.wal is not WalSync.OFF
        fingerprint = self._fingerprint(schema)

        def prepare() -> tuple[pa.RecordBatch, Section | None]:
            [batch] = taken_in(schema, conformed(schema, item.data)).combine_chunks().to_batches()
            return batch, section(schema.name, fingerprint, batch, deletes=item.deletes) if logged else None

        small = item.data.nbytes < 1 << 20
        batch, found = prepare() if small else await self._files.compute(prepare)
        if size_of(batch) > self._settings.memory_bytes_max:
            raise Invalid(
                f"a write of {size_of(batch)} bytes is more than memory holds ({self._settings.memory_bytes_max})",
                hint="write it in several",
            )
        return batch, schema, found

    def _submit(
        self, rows: Sequence[TableRows], prepared: Sequence[tuple[pa.RecordBatch, TableSchema, Section | None]]
    ) -> asyncio.Future[None]:
        """Without an await: the tables are as they were looked at."""
        self._check_alive()
        size = sum(size_of(batch) for batch, _, _ in prepared)
        held = self.memory_bytes + self._under_way_bytes
        if held and held + size > self._settings.memory_bytes_max:
            raise Full(f"{held} bytes of all tables wait to be flushed", hint="write slower")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda f: f.cancelled() or f.exception())  # whoever wrote may have gone
        memories = [self._memory_of(item.table) for item in rows]
        sections = [found for _, _, found in prepared if found is not None]
        sequence = self._sequence = self._sequence + 1

        def done(block: int, error: YunheError | None) -> None:
            self._under_way_bytes -= size
            for memory in memories:
                memory.leave()
            if error is not None:
                if not future.done():
                    future.set_exception(OutcomeUnknown(f"it is not known whether the rows are written: {error}"))
                return
            now = self._clock.monotonic_ms()
            for memory, (batch, _, found) in zip(memories, prepared, strict=True):
                if found is None:
                    # Of rows without a WAL the place is where they came into memory: they are in order there.
                    self._sequence += 1
                message = message_of(batch) if found is None else Message(batch.schema, pa.py_buffer(found.body))
                memory.add(message, sequence if found is not None else self._sequence, block if found else None, now)
                self.counters.rows += batch.num_rows
            if not future.done():
                future.set_result(None)

        for memory in memories:
            memory.enter()
        self._under_way_bytes += size
        try:
            if sections:
                self._wal.submit(encode(self.epoch, sequence, sections), done)
            else:
                done(0, None)
        except YunheError:
            self._under_way_bytes -= size
            for memory in memories:
                memory.leave()
            raise
        return future

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise type(self._dead)(self._dead.message, hint=self._dead.hint, **self._dead.fields)
        if self._closing:
            raise Unavailable("the node hands the database over")

    def _memory_of(self, table: str) -> TableMemory:
        return self._memory.setdefault(table, TableMemory())

    def _fingerprint(self, schema: TableSchema) -> str:
        """Remembered: it costs more than a small write does otherwise."""
        known = self._fingerprints.get(schema.name)
        if known is None or known[0] is not schema:
            known = self._fingerprints[schema.name] = (schema, schema.fingerprint)
        return known[1]

    def _schema(self, table: str) -> TableSchema:
        found = self._manifest.state.tables.get(table)
        if found is None:
            raise NotFound(f"there is no table {table!r}")
        return found.schema

    # ── changes of tables ───────────────────────────────────────────────────────────────────────────────────────────

    async def flush(self, tables: Sequence[str] | None = None) -> None:
        """As `Flusher.flush`."""
        await self._flusher.flush(tables)

    @asynccontextmanager
    async def alone(self, table: str) -> AsyncIterator[None]:
        """No write of the table is under way or begins, and no flush: for its change. One change at a time, so that
        none waits for a write that waits for another."""
        self._check_alive()
        memory = self._memory_of(table)
        async with self._changes, memory.alone(), memory.flush:
            try:
                yield
            finally:
                memory.settle(self._flusher.floor(table))

    async def flush_alone(self, table: str) -> None:
        """Flush a table that the caller has for itself."""
        while self._memory_of(table).bytes:
            await self._flusher.flush_held([table])

    def void(self, table: str) -> Logged | None:
        """What a truncation of a table that the caller has for itself says of its records: none counts."""
        memory = self._memory_of(table)
        last = max(memory.active.last, memory.flushing.last if memory.flushing else 0)
        if last <= self._flusher.floor(table):
            return None
        return Logged(self.epoch, self._flusher.block_floor({table}, all_of_it=True), {table: last})

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def close(self, *, hand_over: bool) -> None:
        """Stop. `hand_over`: put all rows into files and release the database, so that nobody has to recover anything.
        What of that fails is left to the next owner's recovery."""
        self._closing = True
        for memory in list(self._memory.values()):
            if hand_over and self._dead is None:
                async with memory.alone():  # every write under way has its answer
                    pass
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        try:
            if hand_over and self._dead is None:
                await self.flush()
        except YunheError as error:
            hand_over = False
            log.warning("not-handed-over: %s", error)
        await self._wal.close()
        if hand_over and self._dead is None:
            try:
                await self._manifest.commit_one(lambda state: database_released(self.epoch))
            except YunheError as error:
                log.warning("not-released: %s", error)
