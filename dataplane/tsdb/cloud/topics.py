"""A topic becomes part of the database, each of its records once: where a partition has got to is in the manifest entry
that brings the rows.

    records from the manifest's offset on ──► each checked ──► SSTs into the bucket ──► one entry: files, next offset
                                       └── cannot be taken: passed over, with its reason under `quarantine/`

Whoever dies in between leaves objects that no entry names, which are collected as orphans; the next one begins where
the manifest says. Several may consume one partition: the manifest takes each range once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dataplane.tsdb.cloud import file_checks as checks
from dataplane.tsdb.cloud.file_checks import Policy
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import Consumed, files_added
from dataplane.tsdb.schema.files import FileMeta, ShippedBatch, opened, sst_key, topic_quarantine_key
from dataplane.tsdb.schema.records import EDGE, RECORD, ROWS, SST, TABLE, UNNUMBERED, Record, rows_of, sst_parts
from dataplane.tsdb.schema.tables import TableSchema, why_not_older
from dataplane.tsdb.sst.decimals import taken_in
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.order import OP_TYPE
from dataplane.tsdb.sst.writer import conformed, write_sst
from providers.base.clock import Clock, Rng
from providers.base.errors import AlreadyExists, Conflict, Invalid, Unavailable
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

REASONS_MAX = 200
"""Refused records of one turn whose reasons are kept; of more than these only the number is."""


class RecordSource(Protocol):
    """One partition, read from any offset."""

    async def read(self, offset: int, *, bytes_max: int) -> Sequence[Record]:
        """Committed records from `offset` on, about `bytes_max` bytes of them, at least one if there is one; none:
        there is none yet.

        Raises:
            Corrupt: records from `offset` on are gone from the topic. Unavailable: the brokers do not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """Of one consumer."""

    bytes_max: int = 16 << 20
    """Of records in one entry."""
    linger_ms: float = 1_000
    """How long records are gathered before they become files: each entry makes a file a table, and small files are the
    compaction's work."""
    policy: Policy = field(default_factory=Policy)
    create_tables: bool = False
    """Whether a file may bring a table that is not there."""
    trust_wait_ms: float = 60_000
    """How long a record of an edge of this database waits, once, where another key than the trusted one signed it: the
    new one may be on its way here."""
    poll_ms: float = 100
    """Between two looks at a topic that has nothing new."""
    tries_max: int = 5
    retry_ms: float = 1_000


class _Waits(Exception):
    """A record cannot be judged yet; its text says why."""


@dataclass(slots=True)
class TopicCounters:
    """Since the start."""

    records: int = 0
    rows: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    """One that is to be in the database, and the record that brought it."""

    meta: FileMeta
    schema: TableSchema
    data: bytes
    offset: int = -1


@dataclass(slots=True)
class _Taken:
    """What a turn's records come to. `next`: the offset behind the last of them."""

    next: int
    rows: dict[str, list[pa.Table]] = field(default_factory=dict)
    files: list[_File] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    waits: str = ""
    """Why the record at `next` is not taken yet."""
    spans: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    """Of each table that merges rows: first and last time of what is taken, and in which file, "" for that of rows."""

    def clashes(self, schema: TableSchema, first: int, last: int, file_id: str = "") -> bool:
        """Whether some of it overlaps these rows, which are another file's: files of one entry have one place in the
        order of writing, so that of two rows with one key neither would be the later."""
        if schema.options.append_mode:
            return False
        spans = self.spans.setdefault(schema.name, [])
        if any(low <= last and first <= high and other != file_id for low, high, other in spans):
            return True
        spans.append((first, last, file_id))
        return False


class TopicImporter:
    """Consumes one partition."""

    def __init__(
        self,
        manifest: Manifest,
        store: ObjectStore,
        source: RecordSource,
        *,
        topic: str,
        partition: int,
        node: str,
        trust: Mapping[str, Ed25519PublicKey],
        edges: Collection[str] = (),
        clock: Clock,
        rng: Rng,
        settings: TopicSettings = TopicSettings(),
    ) -> None:
        """`node`: who the files of rows are said to be of. `trust`: keys of the edges whose files are taken. `edges`:
        those that this database has: a record of one whose key is not in `trust` yet waits for it; one of anybody
        else is passed over. Both are looked at anew for each record."""
        self._manifest = manifest
        self._store = store
        self._source = source
        self._topic, self._partition = topic, partition
        self._node = node
        self._trust = trust
        self._edges = edges
        self._mismatched_ms: dict[str, float] = {}
        """By edge of `edges`: when a record was first seen under another key than the trusted one."""
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._chooser = Chooser()
        self.counters = TopicCounters()

    @property
    def next(self) -> int:
        """The offset that is to be consumed next, by the manifest as read last."""
        return self._manifest.state.consumed.get(f"{self._topic}/{self._partition}", 0)

    async def run(self) -> None:
        """Consume until cancelled. Brokers or a bucket that do not answer are asked again later.

        Raises:
            Corrupt: records are gone from the topic before they were imported. It needs somebody's decision.
        """
        while True:
            pause_ms = self._settings.poll_ms
            try:
                if await self.turn():
                    continue
            except Unavailable as error:
                log.warning("topic-waits: %s/%d: %s", self._topic, self._partition, error)
                pause_ms = self._settings.retry_ms
            await self._clock.sleep_ms(pause_ms)

    async def turn(self) -> int:
        """Consume what is there now, up to one entry; returns how many records that was.

        Raises:
            Corrupt: as `run`. Unavailable: nothing was consumed. OutcomeUnknown: it is not known; the next turn finds
                out.
        """
        await self._manifest.poll()
        first = self.next
        records = await self._gather(first)
        if not records:
            return 0
        for _ in range(self._settings.tries_max):
            if self.next != first:
                return 0  # somebody else was faster
            try:
                return await self._commit(first, records)
            except Conflict as error:
                # A table was dropped, a file was condemned, another took the range: decided again from what is now.
                log.info("topic-again: %s/%d: %s", self._topic, self._partition, error)
        raise Unavailable(f"records of {self._topic}/{self._partition} could not be committed for now")

    async def _gather(self, first: int) -> list[Record]:
        """Records from `first` on, for as long as the settings say."""
        found: list[Record] = []
        size, offset = 0, first
        deadline = self._clock.monotonic_ms() + self._settings.linger_ms
        while size < self._settings.bytes_max:
            read = await self._source.read(offset, bytes_max=self._settings.bytes_max - size)
            found += read
            size += sum(len(record.value) for record in read)
            offset = read[-1].offset + 1 if read else offset
            if not found or self._clock.monotonic_ms() >= deadline:
                break
            if not read:
                await self._clock.sleep_ms(self._settings.poll_ms)
        return found

    async def _commit(self, first: int, records: Sequence[Record]) -> int:
        """Make an entry of as many of them as one can be made of; how many that is."""
        schemas = {name: table.schema for name, table in self._manifest.state.tables.items()}
        taken = await asyncio.to_thread(self._take, records, schemas)
        if taken.waits and taken.next == records[0].offset:
            raise Unavailable(taken.waits)
        made = await asyncio.to_thread(self._files_of, taken.rows, schemas)
        files = {file.meta.file_id: file for file in (*self._identified(taken), *made)}
        for file in files.values():
            if why := await self._put(file):
                taken.refused[file.offset] = why
        files = {name: file for name, file in files.items() if file.offset not in taken.refused}
        if taken.refused:
            await self._quarantine(taken.refused)
        used = {file.schema.fingerprint: file.schema for file in files.values()}
        consumed = Consumed(self._topic, self._partition, first, taken.next)
        await self._manifest.commit_one(
            lambda state: files_added(
                state.epoch,
                [file.meta for file in files.values()],
                used.values(),
                create_tables=self._settings.create_tables,
                consumed=[consumed],
            )
        )
        done = sum(record.offset < taken.next for record in records)
        self.counters.records += done
        self.counters.rows += sum(file.meta.rows for file in files.values())
        self.counters.refused += len(taken.refused)
        return done

    def _identified(self, taken: _Taken) -> list[_File]:
        """Files that are not in the database yet, each under an id that it may have. One that lay in the bucket for so
        long that its id was given up gets the id's successor, the same whoever consumes it."""
        found = []
        for file in taken.files:
            meta = file.meta
            while (gone := self._manifest.state.gone.get(meta.file_id)) is not None and not gone.sha256:
                meta = replace(meta, file_id=hashlib.sha256(meta.file_id.encode()).hexdigest()[:32])
            there = self._manifest.state.find(meta.file_id) or gone
            if there is None:
                found.append(replace(file, meta=meta))
            elif (there.table, there.sha256) != (meta.table, meta.sha256):
                taken.refused[file.offset] = f"file {meta.file_id} is there already, with other bytes"
        return found

    async def _put(self, file: _File) -> str | None:
        """Store it; or why it cannot be."""
        key = sst_key(self._manifest.database, file.meta.table, file.meta.file_id)
        try:
            await self._store.put(key, file.data, if_absent=True)
        except AlreadyExists:  # an earlier consumer of this record put it there, and died
            if await self._store.get(key, length=file.meta.size + 1) != file.data:
                return f"under the id of file {file.meta.file_id} lie other bytes in the bucket"
        return None

    async def _quarantine(self, refused: Mapping[int, str]) -> None:
        """Before the commit: whoever sees that a record was passed over finds the reason."""
        first = min(refused)
        log.warning(
            "topic-refused: %d records of %s/%d, first %d: %s",
            len(refused), self._topic, self._partition, first, refused[first],
        )  # fmt: skip
        key = topic_quarantine_key(self._manifest.database, self._topic, self._partition, first)
        said = {"refused": len(refused), "records": dict(sorted(refused.items())[:REASONS_MAX])}
        await self._store.put(key, json.dumps(said).encode())

    # ── records (in a thread) ───────────────────────────────────────────────────────────────────────────────────────

    def _take(self, records: Sequence[Record], schemas: dict[str, TableSchema]) -> _Taken:
        """What they come to; `schemas` also gets those of tables that they bring."""
        taken = _Taken(records[0].offset)
        for record in records:
            try:
                kind = record.headers.get(RECORD)
                if kind == ROWS:
                    schema, rows = self._rows(record, schemas)
                    times = pc.min_max(rows.column(schema.time.name).cast(pa.int64())).as_py()
                    if taken.clashes(schema, times["min"], times["max"]):
                        break
                    taken.rows.setdefault(schema.name, []).append(rows)
                elif kind == SST:
                    file = self._file(record, schemas)
                    meta = file.meta
                    if taken.clashes(schemas[meta.table], meta.time_min, meta.time_max, meta.file_id):
                        break
                    taken.files.append(file)
                else:
                    raise Invalid(f"header {RECORD!r} is neither {SST.decode()!r} nor {ROWS.decode()!r}")
            except _Waits as error:
                taken.waits = str(error)
                break
            except (Invalid, UnicodeDecodeError) as error:
                taken.refused[record.offset] = str(error)[:500]
            taken.next = record.offset + 1
        return taken

    def _rows(self, record: Record, schemas: Mapping[str, TableSchema]) -> tuple[TableSchema, pa.Table]:
        name = record.headers.get(TABLE, b"").decode()
        schema = schemas.get(name)
        if schema is None:
            raise Invalid(f"there is no table {name!r}")
        rows = rows_of(record.value)
        if OP_TYPE in rows.column_names:
            raise Invalid(f"{OP_TYPE!r} is the database's own column")
        rows = taken_in(schema, conformed(schema, rows))
        latest = pc.max(rows.column(schema.time.name).cast(pa.int64())).as_py()
        if why := checks.why_not_in_time(latest, schema, self._settings.policy, self._clock.wall_ms()):
            raise Invalid(why)
        return schema, rows

    def _opened(self, edge: str, head: bytes) -> ShippedBatch:
        """Raises _Waits: its key may be on its way here."""
        key, ours = self._trust.get(edge), edge in self._edges
        if key is None:
            if ours:
                raise _Waits(f"the key of edge {edge!r} is not known here yet")
            raise Invalid(f"edge {edge!r} is not in this database's list of trusted keys")
        try:
            batch = opened(head, key, self._manifest.database, edge, UNNUMBERED)
        except Invalid as error:
            now = self._clock.monotonic_ms()
            if ours and now - self._mismatched_ms.setdefault(edge, now) < self._settings.trust_wait_ms:
                raise _Waits(f"{error}; perhaps its new key is on its way") from error
            raise
        self._mismatched_ms.pop(edge, None)
        return batch

    def _file(self, record: Record, schemas: dict[str, TableSchema]) -> _File:
        edge = record.headers.get(EDGE, b"").decode()
        head, data = sst_parts(record.value)
        batch = self._opened(edge, head)
        why = checks.why_not_listed(batch) or ("it has more than one file" if len(batch.files) > 1 else None)
        if why is not None:
            raise Invalid(why)
        [meta] = batch.files
        schema = next(s for s in batch.schemas if (s.name, s.fingerprint) == (meta.table, meta.fingerprint))
        present = schemas.get(meta.table)
        if present is None and not self._settings.create_tables:
            raise Invalid(f"there is no table {meta.table!r}")
        if len(data) != meta.size or hashlib.sha256(data).hexdigest() != meta.sha256:
            raise Invalid("its bytes are not those that the edge signed")
        why = checks.why_not_in_time(meta.time_max, schema, self._settings.policy, self._clock.wall_ms())
        why = why or checks.why_not_footer(data[-meta.footer_bytes :], meta, schema)
        if present is not None and why_not_older(schema, present) is not None:
            why = why or why_not_older(present, schema)
        if why is not None:
            raise Invalid(why)
        schemas.setdefault(meta.table, schema)
        return _File(meta, schema, data, record.offset)

    def _files_of(self, rows: Mapping[str, list[pa.Table]], schemas: Mapping[str, TableSchema]) -> list[_File]:
        """One file a table."""
        made = []
        for name, parts in rows.items():
            whole = pa.concat_tables(parts)
            file_id = self._rng.token()
            sst = write_sst(schemas[name], whole, file_id=file_id, origin=self._node, chooser=self._chooser)
            made.append(_File(sst.meta, schemas[name], sst.data))
        return made
