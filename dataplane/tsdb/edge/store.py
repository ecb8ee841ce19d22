"""An edge's rows, from the write to the file, and back after a power cut.

    turn ──► one record in the log (`wal` of a table not off) ──► memtables ──► flush: SST ──► catalog ──► log cut
                  sync: durable                                                   └── crash: no row of it is in both

Every table has its own policy, and all share one log: a sync serves whoever waits, and flash sees one stream of writes.
Nothing here waits, sleeps or starts threads; whoever drives it says when to sync and what to flush.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.edge.catalog import Catalog
from dataplane.tsdb.edge.files import UNFINISHED, Files, put_whole, remove_quietly
from dataplane.tsdb.edge.intake import Intake, Put
from dataplane.tsdb.edge.outbox import SST, Outbox, sst_name
from dataplane.tsdb.edge.record_log import RECORD_BYTES_MAX
from dataplane.tsdb.edge.snapshot import Moment, Pins, Snapshot
from dataplane.tsdb.edge.turn import Group, OpenTable
from dataplane.tsdb.edge.wal import SEGMENT_BYTES, Part, Wal
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableOptions, TableSchema, why_not_older
from dataplane.tsdb.sst.decimals import taken_in
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.memtable import Memtable, Message, joined
from dataplane.tsdb.sst.order import OP_TYPE, PUT, ordered
from dataplane.tsdb.sst.reader import checked_footer, read_sst
from dataplane.tsdb.sst.writer import arrow_schema, write_sst
from providers.base.clock import Rng
from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound, YunheError

T = TypeVar("T")
log = logging.getLogger(__name__)

MEMORY_BYTES_MAX = 50 << 20
"""Of all tables: GreptimeDB Edge's own default."""
DUE_SHARE = 0.7
"""Of a table's limit, what it holds when it is flushed: later makes larger files, which are smaller by the row; what is
left is room for the flush's own time."""
DUE_SHARE_OF_ALL = 0.25
"""Of the limit of all tables: rows are packed, so that a quarter of it has the rows of many seconds already."""
RECORD_BYTES = 8 << 20
"""Of a turn, from which on the rest becomes another record."""
WRITE_BYTES_MAX = RECORD_BYTES_MAX - 2 * RECORD_BYTES
"""Of one write: it goes into one record, behind what came before it."""


class EdgeStore:
    """See the module. Not for use by several threads at once, but for `read`."""

    def __init__(
        self,
        files: Files,
        edge: str,
        rng: Rng,
        *,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Open the folder: what was acked as durable is there, whatever the last life died of.

        Raises:
            Corrupt: the catalog is damaged. Full, Unavailable: as the files.
        """
        self._files = files
        self._edge = edge
        self._rng = rng
        self._memory_max = memory_bytes_max
        self._catalog = Catalog(files)
        self._chooser = Chooser(self._catalog.chosen)
        self._pins = Pins()
        self.outbox = Outbox(files, self._catalog, edge, rng, self._remove_unpinned)
        self._memory = 0
        self._nearly_full: set[str] = set()
        """Tables that hold `DUE_SHARE` of what they may: kept, for a look at each of hundreds is a look into memory."""
        self.taken_bytes = 0
        """Of rows taken since it was opened."""
        self._open = {name: OpenTable(s, Intake(s), Memtable(packs=True)) for name, s in self._catalog.tables.items()}
        self._remove_strangers()
        self._wal = Wal(files, self._replay, max(self._catalog.floors.values(), default=0), segment_bytes)

    # ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def tables(self) -> Collection[TableSchema]:
        return list(self._catalog.tables.values())

    def table(self, name: str) -> TableSchema:
        """Raises NotFound."""
        return self._table(name).schema

    def create_table(self, schema: TableSchema) -> None:
        """Raises AlreadyExists, Full, Unavailable."""
        if schema.name in self._open:
            raise AlreadyExists(f"table {schema.name!r} exists")
        self._catalog.table(schema)
        self._open[schema.name] = OpenTable(schema, Intake(schema), Memtable(packs=True))

    def change_table(self, schema: TableSchema) -> None:
        """The table's next version; rows in memory are flushed under the present one first.

        Raises:
            NotFound: no such table. Invalid: the present one's files could not be read as it.
        """
        if why := why_not_older(self._table(schema.name).schema, schema):
            raise Invalid(f"table {schema.name!r} cannot change so: {why}")
        self.flush(schema.name)
        self._catalog.table(schema)
        self._open[schema.name] = OpenTable(schema, Intake(schema), Memtable(packs=True))

    def empty_table(self, name: str, *, drop: bool) -> None:
        """Remove all rows of the table, and with `drop` the table; durably, those in the log as well.

        Raises:
            NotFound: no such table. Full, Unavailable: nothing is known to have changed.
        """
        table = self._table(name)
        gone = self._catalog.emptied(name, self._wal.next - 1, dropped=drop)
        self._forget_rows(table)
        if drop:
            del self._open[name]
        self._remove_unpinned([sst_name(file_id) for file_id in gone])
        self._drop_segments()

    def __contains__(self, name: str) -> bool:
        return name in self._open

    def _table(self, name: str) -> OpenTable:
        if name not in self._open:
            raise NotFound(f"there is no table {name!r}")
        return self._open[name]

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, table: str, rows: pa.Table, *, deletes: bool = False) -> None:
        """One write of one table: as `take`, and what it says is raised."""
        [error] = self.take([[Put(table, rows, deletes)]])
        if error is not None:
            raise error

    def take(self, writes: Sequence[Sequence[Put]]) -> list[Exception | None]:
        """Take rows, which every later `scan` and `snapshot` shows; of each write all or none. They survive a power cut
        after the next `sync`, unless the table has no log: then after the next `flush` of it.

        Of each write, None or why nothing of it was taken: NotFound, no such table; Invalid, not rows of it; Full,
        memory or flash; Unavailable, the log is in doubt.
        """
        outcomes: list[Exception | None] = [None] * len(writes)
        groups: list[Group] = []
        held: dict[str, int] = {}
        for at, write in enumerate(writes):
            try:
                tables = [(put, self._table(put.table)) for put in write]
                batches = [(table, put.deletes, table.intake.batch(put)) for put, table in tables if len(put.data)]
                sizes = [table.intake.size(batch) for table, _, batch in batches]
                self._make_sure_of_room([table for table, _, _ in batches], sizes, held)
            except Exception as error:  # whatever it is, it is this write's own
                outcomes[at] = error
                continue
            logged = any(table.logged for table, _, _ in batches)
            if not groups or groups[-1].logged is not logged or groups[-1].bytes >= RECORD_BYTES:
                groups.append(Group(logged))
            groups[-1].add(at, batches, sum(sizes))
        for group in groups:
            try:
                self._store(group)
            except YunheError as error:
                for at in group.writes:
                    outcomes[at] = error
        return outcomes

    def _store(self, group: Group) -> None:
        rows = [(batch.table, batch.deletes, batch.message()) for batch in group.batches]
        parts = [
            Part(table.schema.name, table.intake.fingerprint, deletes, message.body)
            for table, deletes, message in rows
            if table.logged
        ]
        sequence = self._with_room(lambda: self._wal.append(parts)) if parts else None
        for table, _, message in rows:
            self._add(table, message, sequence if table.logged else None)
            self.taken_bytes += len(message.body)

    def _add(self, table: OpenTable, message: Message, sequence: int | None) -> None:
        before = table.memtable.bytes
        table.memtable.add(message, sequence)
        self._memory += table.memtable.bytes - before
        if table.share >= DUE_SHARE:
            self._nearly_full.add(table.schema.name)

    def _forget_rows(self, table: OpenTable) -> None:
        self._memory -= table.memtable.bytes
        table.memtable = Memtable(packs=True)
        self._nearly_full.discard(table.schema.name)

    def _make_sure_of_room(self, tables: Sequence[OpenTable], sizes: Sequence[int], held: dict[str, int]) -> None:
        """`held`: of this turn's earlier writes, by table and, under "", of all."""
        for table in tables:
            name = table.schema.name
            holds = table.memtable.bytes + held.get(name, 0)
            if holds >= 2 * table.schema.options.memtable_bytes_max:
                raise Full(
                    f"{holds} bytes of table {name!r} wait to be flushed", hint="write slower, or raise its limit"
                )
        holds, comes = self._memory + held.get("", 0), sum(sizes)
        if holds >= self._memory_max:
            raise Full(f"{holds} bytes of all tables wait to be flushed", hint="write slower")
        if comes > min(self._memory_max, WRITE_BYTES_MAX):
            raise Invalid(f"one write of {comes} bytes is more than memory may hold", hint="write smaller batches")
        for table, size in zip(tables, sizes, strict=True):
            held[table.schema.name] = held.get(table.schema.name, 0) + size
        held[""] = held.get("", 0) + comes

    @property
    def logged_bytes(self) -> int:
        """That went into the log since it was opened."""
        return self._wal.appended_bytes

    @property
    def memory_bytes(self) -> int:
        """Of the rows in no file yet, all tables'."""
        return self._memory

    @property
    def in_doubt(self) -> str | None:
        """Why it takes nothing more until it is opened anew; None: it does."""
        return self._wal.in_doubt or self._catalog.in_doubt

    def pending(self) -> list[str]:
        """Tables with rows in no file yet."""
        return [name for name, table in list(self._open.items()) if table.memtable.bytes]

    def options(self, table: str) -> TableOptions:
        """The table's. Raises NotFound."""
        return self._table(table).schema.options

    def pushes_back(self, table: str) -> bool:
        """Whether who writes to it should wait: it, or all of them, hold what they may in memory. Raises NotFound."""
        return self._memory >= self._memory_max or self._table(table).share >= 1

    @property
    def presses(self) -> bool:
        """Whether a table pushes back."""
        return self._memory >= self._memory_max or any(
            name in self._open and self._open[name].share >= 1 for name in list(self._nearly_full)
        )

    @property
    def crowding(self) -> float:
        """0 while all tables hold less than `DUE_SHARE_OF_ALL` of what they may together; 1 when they push back."""
        begins = self._memory_max * DUE_SHARE_OF_ALL
        return min(1.0, max(0.0, (self._memory - begins) / (self._memory_max - begins)))

    def due(self) -> list[str]:
        """Tables that hold `DUE_SHARE` of what they may, the fullest first; then, while all of them hold
        `DUE_SHARE_OF_ALL` of what they may together, the largest."""
        found = sorted(self._nearly_full, key=lambda name: -self._open[name].share)
        if self._memory >= self._memory_max * DUE_SHARE_OF_ALL:
            largest = max(self._open, key=lambda name: self._open[name].memtable.bytes)
            found += [largest] if largest not in found else []
        return found

    def sync(self) -> None:
        """Make all rows written so far durable, but those of tables without a log.

        Raises:
            Unavailable: it cannot be known what is; the store takes nothing more and is to be opened anew.
        """
        self._wal.sync()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """All tables as they are now; its files stay until `release`."""
        files: dict[str, list[FileMeta]] = {}
        for meta in self.files():
            files.setdefault(meta.table, []).append(meta)
        moments = {
            name: Moment(table.schema, files.get(name, []), table.memtable.messages())
            for name, table in self._open.items()
        }
        return Snapshot(self._pins.take(), moments)

    def release(self, snapshot: Snapshot) -> None:
        """Nobody reads the snapshot any more."""
        remove_quietly(self._files, self._pins.release(snapshot.number))

    def read(self, meta: FileMeta, schema: TableSchema, columns: Collection[str] | None = None) -> pa.Table:
        """A file's rows, as `read_sst`. May be called by any thread while a snapshot holds the file.

        Raises:
            Corrupt: the file is not what was written. Unavailable: the flash errs.
        """
        data = self._files.read(sst_name(meta.file_id))
        if len(data) != meta.size:
            raise Corrupt(f"file {meta.file_id} of table {meta.table!r} has {len(data)} bytes, not {meta.size}")
        wanted = None if columns is None else list(columns)
        return read_sst(data, schema, wanted, footer=checked_footer(data[-meta.footer_bytes :], meta))

    def scan(self, table: str, columns: Collection[str] | None = None) -> pa.Table:
        """All rows, by tags and time, merged as the table says; of `columns`, or all.

        Raises:
            NotFound: no such table. Corrupt: a file is not what was written.
        """
        schema = self.table(table)
        wanted = [c.name for c in schema.columns if columns is None or c.name in columns]
        read = [self.read(meta, schema) for meta in self.files(table)]
        rows = ordered(schema, joined(schema, [*read, *self._in_memory(self._open[table])]))
        if OP_TYPE in rows.column_names:
            rows = rows.filter(pc.equal(rows.column(OP_TYPE), PUT))
        return rows.select(wanted)

    @staticmethod
    def _in_memory(table: OpenTable) -> list[pa.Table]:
        """The table's rows that are in no file, oldest first. They are rounded here, and in a snapshot, not as each
        write comes: of thousands of rows at once that costs next to nothing, and rows of the log are rounded alike."""
        return [taken_in(table.schema, part) for part in table.memtable.parts()]

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def files(self, table: str | None = None) -> list[FileMeta]:
        """SSTs on the flash, of one table or of all, in the order in which they were written."""
        found = [meta for meta in self._catalog.files.values() if table in (None, meta.table)]
        return sorted(found, key=lambda meta: meta.sequence)

    def flush(self, name: str) -> FileMeta | None:
        """Put the table's rows into a file; None: there were none.

        Raises:
            Full, Unavailable: they stay in memory, and in the log; try again.
        """
        table = self._table(name)
        parts = self._in_memory(table)
        if not parts:
            return None
        self._catalog.tidy()
        rows = joined(table.schema, parts)
        sst = write_sst(table.schema, rows, file_id=self._rng.token(), origin=self._edge, chooser=self._chooser)
        self._with_room(lambda: put_whole(self._files, sst_name(sst.meta.file_id), sst.data))
        try:
            meta = self._catalog.file(sst.meta, self._wal.next - 1, self._chooser.chosen(name))
        except Full:
            remove_quietly(self._files, [sst_name(sst.meta.file_id)])
            raise
        self._forget_rows(table)
        self._drop_segments()
        return meta

    def forget(self, file_ids: Iterable[str]) -> None:
        """Remove files: the cloud has said that it has them, or they have expired.

        Raises:
            Full, Unavailable: they are still there, or will be gone when the store is opened anew.
        """
        known = [file_id for file_id in file_ids if file_id in self._catalog.files]
        if known:
            self._catalog.gone(known)
            self._remove_unpinned([sst_name(file_id) for file_id in known])
            self._catalog.keep_reserve()

    def _with_room(self, what: Callable[[], T]) -> T:
        """What `what` does, on a flash that is full as well, if files that the cloud has can give way."""
        try:
            return what()
        except Full:
            kept = list(self.outbox.state.acked)
            if not kept:
                raise
            log.warning("kept-no-longer: %d files that the cloud has give way on a full flash", len(kept))
            self.forget(kept)
            return what()

    def _remove_unpinned(self, names: Sequence[str]) -> None:
        remove_quietly(self._files, self._pins.removable(names))

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _replay(self, sequence: int, part: Part) -> None:
        """A part of the log into memory, if no file has it."""
        schema = self._catalog.schemas.get((part.table, part.fingerprint))
        if schema is None or part.table not in self._open:
            return  # of a table that was dropped
        if sequence > self._catalog.floors.get(part.table, 0):
            message = Message(arrow_schema(schema, deletes=part.deletes), part.body)
            self._add(self._open[part.table], message, sequence)

    def _drop_segments(self) -> None:
        sequences = (table.memtable.first_sequence for table in self._open.values())
        self._wal.drop_before(min((s for s in sequences if s is not None), default=self._wal.next))

    def _remove_strangers(self) -> None:
        """Files of a flush that never got into the catalog, and files that it has given up."""
        known = {sst_name(file_id) for file_id in self._catalog.files}
        names = self._files.names()
        remove_quietly(
            self._files, [n for n in names if n.endswith(UNFINISHED) or (n.endswith(SST) and n not in known)]
        )
        if lost := known - set(names):
            raise Corrupt(f"{len(lost)} files are in the catalog and not on the flash, the first {min(lost)}")
