"""An edge's rows, from the write to the file, and back after a power cut.

    write ──► record in the log (`wal` of the table not off) ──► memtable ──► flush: SST ──► catalog ──► log cut
                    sync: durable                                                 └── crash: no row of it is in both

Every table has its own policy, and all share one log: a sync serves whoever waits, and flash sees one stream of writes.
Nothing here waits, sleeps or starts threads; whoever drives it says when to sync and what to flush.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.edge.catalog import Catalog
from dataplane.tsdb.edge.files import Files
from dataplane.tsdb.edge.memtable import Memtable
from dataplane.tsdb.edge.record_log import Log, Record, decode, resumes_at
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableOptions, TableSchema, WalSync, why_not_older
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.order import DELETE, OP_TYPE, PUT, key_columns, ordered
from dataplane.tsdb.sst.reader import checked_footer, read_sst
from dataplane.tsdb.sst.writer import arrow_schema, conformed, write_sst
from providers.base.clock import Rng
from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound, YunheError

log = logging.getLogger(__name__)

SEGMENT_BYTES = 4 << 20
"""A log's segment is closed at this size; it is removed once all its rows are in files."""
MEMORY_BYTES_MAX = 50 << 20
"""Of all tables: GreptimeDB Edge's own default."""
_SEGMENT = "wal-"
_SST = ".parquet"
_UNFINISHED = ".unfinished"
_HEAD = struct.Struct("<HB")
"""Of a record: length of the table's name, whether the rows are deletes; then name, fingerprint (16), Arrow's IPC."""
_FINGERPRINT_BYTES = 16


class EdgeStore:
    """See the module. Not for use by several threads at once."""

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
        self._segment_bytes = segment_bytes
        self._chooser = Chooser()
        self._catalog = Catalog(files)
        self._memtables = {name: Memtable() for name in self._catalog.tables}
        self._segments: dict[int, int] = {}
        """Closed segments: the first record's sequence and the last's."""
        self._remove_strangers()
        self._wal = self._begin_segment(self._recover())

    # ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def tables(self) -> Collection[TableSchema]:
        return self._catalog.tables.values()

    def create_table(self, schema: TableSchema) -> None:
        """Raises AlreadyExists, Full, Unavailable."""
        if schema.name in self._catalog.tables:
            raise AlreadyExists(f"table {schema.name!r} exists")
        self._catalog.table(schema)
        self._memtables[schema.name] = Memtable()

    def change_table(self, schema: TableSchema) -> None:
        """The table's next version; rows in memory are flushed under the present one first.

        Raises:
            NotFound: no such table. Invalid: the present one's files could not be read as it.
        """
        if why := why_not_older(self._table(schema.name), schema):
            raise Invalid(f"table {schema.name!r} cannot change so: {why}")
        self.flush(schema.name)
        self._catalog.table(schema)

    def _table(self, name: str) -> TableSchema:
        if name not in self._catalog.tables:
            raise NotFound(f"there is no table {name!r}")
        return self._catalog.tables[name]

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, table: str, rows: pa.Table, *, deletes: bool = False) -> None:
        """Take rows, which every later `scan` shows. They survive a power cut after the next `sync`, unless the table
        has no log: then after the next `flush` of it. `deletes`: the rows with these tags and times are deleted.

        Raises:
            NotFound: no such table. Invalid: not rows of it. Full: memory or flash; nothing was taken.
        """
        schema = self._table(table)
        if deletes and schema.options.append_mode:
            raise Invalid(f"table {table!r} appends: none of its rows can be deleted")
        if deletes:
            rows = rows.select([name for name in rows.column_names if name in key_columns(schema)])
            rows = _with_operation(rows, DELETE)
        elif OP_TYPE in rows.column_names:
            raise Invalid(f"{OP_TYPE!r} is the database's own column")
        [batch] = conformed(schema, rows).combine_chunks().to_batches()
        self._make_sure_of_room(schema)
        sequence = None
        if schema.options.wal is not WalSync.OFF:
            if self._wal.size >= self._segment_bytes:
                self._roll()
            sequence = self._wal.append(_encoded(schema, batch, deletes))
        self._memtables[table].add(batch, sequence)

    def _make_sure_of_room(self, schema: TableSchema) -> None:
        held = self._memtables[schema.name].bytes
        if held >= 2 * schema.options.memtable_bytes_max:
            raise Full(
                f"{held} bytes of table {schema.name!r} wait to be flushed", hint="write slower, or raise its limit"
            )
        if self.memory_bytes >= self._memory_max:
            raise Full(f"{self.memory_bytes} bytes of all tables wait to be flushed", hint="write slower")

    @property
    def memory_bytes(self) -> int:
        """Of the rows in no file yet, all tables'."""
        return sum(memtable.bytes for memtable in self._memtables.values())

    def pending(self) -> list[str]:
        """Tables with rows in no file yet."""
        return [name for name, memtable in self._memtables.items() if memtable.bytes]

    def options(self, table: str) -> TableOptions:
        """The table's. Raises NotFound."""
        return self._table(table).options

    def pushes_back(self, table: str) -> bool:
        """Whether who writes to it should wait: it, or all of them, hold what they may in memory. Raises NotFound."""
        limit = self._table(table).options.memtable_bytes_max
        return self._memtables[table].bytes >= limit or self.memory_bytes >= self._memory_max

    def due(self) -> list[str]:
        """Tables that hold half of what they may, the fullest first; then, while all of them hold half of what they
        may together, the largest."""
        full = {
            name: self._memtables[name].bytes / schema.options.memtable_bytes_max
            for name, schema in self._catalog.tables.items()
        }
        found = sorted((name for name, share in full.items() if share >= 0.5), key=lambda name: -full[name])
        if self.memory_bytes >= self._memory_max / 2:
            largest = max(self._memtables, key=lambda name: self._memtables[name].bytes)
            found += [largest] if largest not in found else []
        return found

    def sync(self) -> None:
        """Make all rows written so far durable, but those of tables without a log.

        Raises:
            Unavailable: it cannot be known what is; the store takes nothing more and is to be opened anew.
        """
        self._wal.sync()

    def scan(self, table: str, columns: Collection[str] | None = None) -> pa.Table:
        """All rows, by tags and time, merged as the table says; of `columns`, or all.

        Raises:
            NotFound: no such table. Corrupt: a file is not what was written.
        """
        schema = self._table(table)
        wanted = [c.name for c in schema.columns if columns is None or c.name in columns]
        read = [self._read(meta, schema) for meta in self.files(table)]
        rows = ordered(schema, _joined(schema, [*read, *self._in_memory(table)]))
        if OP_TYPE in rows.column_names:
            rows = rows.filter(pc.equal(rows.column(OP_TYPE), PUT))
        return rows.select(wanted)

    def _in_memory(self, table: str) -> list[pa.Table]:
        return [pa.Table.from_batches([batch]) for batch in self._memtables[table].batches()]

    def _read(self, meta: FileMeta, schema: TableSchema) -> pa.Table:
        data = self._files.read(_name(meta.file_id))
        if len(data) != meta.size:
            raise Corrupt(f"file {meta.file_id} of table {meta.table!r} has {len(data)} bytes, not {meta.size}")
        return read_sst(data, schema, footer=checked_footer(data[-meta.footer_bytes :], meta))

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def files(self, table: str | None = None) -> list[FileMeta]:
        """SSTs on the flash, of one table or of all, in the order in which they were written."""
        found = [meta for meta in self._catalog.files.values() if table in (None, meta.table)]
        return sorted(found, key=lambda meta: meta.sequence)

    def flush(self, table: str) -> FileMeta | None:
        """Put the table's rows into a file; None: there were none.

        Raises:
            Full, Unavailable: they stay in memory, and in the log; try again.
        """
        schema = self._table(table)
        parts = self._in_memory(table)
        if not parts:
            return None
        self._catalog.tidy()
        rows = _joined(schema, parts)
        sst = write_sst(schema, rows, file_id=self._rng.token(), origin=self._edge, chooser=self._chooser)
        name = _name(sst.meta.file_id)
        try:
            self._files.append(name + _UNFINISHED, 0, sst.data)
            self._files.sync(name + _UNFINISHED)
            self._files.rename(name + _UNFINISHED, name)
            self._files.sync_names()
        except YunheError:
            self._remove_quietly([name + _UNFINISHED])
            raise
        meta = self._catalog.file(sst.meta, floor=self._wal.next - 1)
        self._memtables[table] = Memtable()
        self._drop_segments()
        return meta

    def forget(self, file_ids: Iterable[str]) -> None:
        """Remove files: the cloud has said that it has them.

        Raises:
            Full, Unavailable: they are still there, or will be gone when the store is opened anew.
        """
        known = [file_id for file_id in file_ids if file_id in self._catalog.files]
        if known:
            self._catalog.gone(known)
            self._remove_quietly([_name(file_id) for file_id in known])

    # ── the log ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _recover(self) -> int:
        """Rows of the log that are in no file, into memory; the next record's sequence."""
        expected = 1
        for first in sorted(int(n.removeprefix(_SEGMENT)) for n in self._files.names() if n.startswith(_SEGMENT)):
            last = self._replay_all(first, self._files.read(_segment(first)))
            # A life that was killed leaves rows that are not durable yet, and are shown from here on.
            self._files.sync(_segment(first))
            self._segments[first] = last
            expected = max(expected, last + 1)
        # A floor may be of records that the power cut took: their sequences are not given again.
        return max([expected, *(floor + 1 for floor in self._catalog.floors.values())])

    def _replay_all(self, first: int, data: bytes) -> int:
        """A segment's rows into memory; its last record's sequence. What is damaged is said, and what follows it is
        read: it may have been acked."""
        last, at = first - 1, 0
        resumed: tuple[int, int] | None = (0, first)
        while resumed is not None:
            for record in decode(data, resumed[1], resumed[0]):
                self._replay(record)
                last, at = record.sequence, record.end
            resumed = resumes_at(data, at, last)
            if resumed is not None:
                log.error("wal-damaged: records %d to %d cannot be read, and others follow", last + 1, resumed[1] - 1)
        if any(data[at:]):
            log.warning("wal-cut: %d bytes behind record %d were not whole", len(data) - at, last)
        return last

    def _replay(self, record: Record) -> None:
        name, fingerprint, message = _decoded(record.payload)
        schema = self._catalog.schemas.get((name, fingerprint))
        if schema is None or name not in self._memtables:
            return  # of a table that was dropped
        if record.sequence > self._catalog.floors.get(name, 0):
            deletes = bool(record.payload[2])
            batch = pa.ipc.read_record_batch(pa.py_buffer(message), arrow_schema(schema, deletes=deletes))
            self._memtables[name].add(batch, record.sequence)

    def _begin_segment(self, first: int) -> Log:
        self._segments.pop(first, None)
        return Log.cut(self._files, _segment(first), first)

    def _roll(self) -> None:
        self._wal.sync()
        first = int(self._wal.name.removeprefix(_SEGMENT))
        following = self._begin_segment(self._wal.next)
        self._segments[first] = self._wal.next - 1
        self._wal = following

    def _drop_segments(self) -> None:
        needed = [m.first_sequence for m in self._memtables.values() if m.first_sequence is not None]
        oldest = min(needed, default=self._wal.next)
        over = [first for first, last in self._segments.items() if last < oldest]
        self._remove_quietly([_segment(first) for first in over])
        for first in over:
            del self._segments[first]

    def _remove_strangers(self) -> None:
        """Files of a flush that never got into the catalog, and files that it has given up."""
        known = {_name(file_id) for file_id in self._catalog.files}
        names = self._files.names()
        strange = [n for n in names if n.endswith(_UNFINISHED) or (n.endswith(_SST) and n not in known)]
        self._remove_quietly(strange)
        if lost := known - set(names):
            raise Corrupt(f"{len(lost)} files are in the catalog and not on the flash, the first {min(lost)}")

    def _remove_quietly(self, names: Iterable[str]) -> None:
        """What stays for now is removed when the store is opened anew."""
        for name in names:
            try:
                self._files.remove(name)
            except YunheError as error:
                log.warning("not-removed: %s: %s", name, error)


def _name(file_id: str) -> str:
    return f"{file_id}{_SST}"


def _segment(first: int) -> str:
    return f"{_SEGMENT}{first:020d}"


def _encoded(schema: TableSchema, batch: pa.RecordBatch, deletes: bool) -> bytes:
    name = schema.name.encode()
    head = _HEAD.pack(len(name), deletes) + name + schema.fingerprint.encode()
    message: bytes = batch.serialize().to_pybytes()
    return head + message


def _decoded(payload: bytes) -> tuple[str, str, bytes]:
    length, _ = _HEAD.unpack_from(payload)
    name_end = _HEAD.size + length
    end = name_end + _FINGERPRINT_BYTES
    return payload[_HEAD.size : name_end].decode(), payload[name_end:end].decode(), payload[end:]


def _joined(schema: TableSchema, parts: Sequence[pa.Table]) -> pa.Table:
    """All rows in the table's columns, with `__op_type` if some of them may delete."""
    target = arrow_schema(schema, deletes=any(OP_TYPE in part.column_names for part in parts))
    if OP_TYPE in target.names:
        parts = [part if OP_TYPE in part.column_names else _with_operation(part, PUT) for part in parts]
    return pa.concat_tables([target.empty_table(), *(part.select(target.names).cast(target) for part in parts)])


def _with_operation(rows: pa.Table, operation: int) -> pa.Table:
    return rows.append_column(OP_TYPE, pa.repeat(pa.scalar(operation, pa.uint8()), len(rows)))
