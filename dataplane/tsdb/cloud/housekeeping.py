"""What the owner does beside serving: import, compaction, retention, collection. Each step commits under the epoch that
it began in, so that a deposed owner's half-done step changes nothing.

    turn ──► retention ──► one run compacted a table ──► (seldom) orphans, removed objects, the manifest's old entries

After each compaction comes a pause in proportion to what it took.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.cloud.compaction import CompactionSettings, Run, runs
from dataplane.tsdb.cloud.ingest import Importer
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import files_replaced
from dataplane.tsdb.cloud.orphans import OrphanSettings, collect
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.retention import expired
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.memtable import joined
from dataplane.tsdb.sst.order import OP_TYPE, PUT, ordered
from providers.base.clock import Clock
from providers.base.errors import Conflict, Fenced, YunheError

log = logging.getLogger(__name__)
REMOVED_AN_ENTRY = 1_000
"""Files that one entry of retention removes."""


@dataclass(frozen=True, slots=True)
class HousekeepingSettings:
    """Of the owner."""

    compaction: CompactionSettings = field(default_factory=CompactionSettings)
    orphans: OrphanSettings = field(default_factory=OrphanSettings)
    turn_ms: float = 5_000
    """Between two looks for what is to be compacted or has expired."""
    collect_ms: float = 600_000
    """Between two collections, each of which lists all SSTs."""
    share_max: float = 0.25
    """Of the time, what compaction may take: after a run of a second nothing is compacted for three."""


class Housekeeping:
    """See the module. One an epoch."""

    def __init__(
        self,
        epoch: int,
        manifest: Manifest,
        files: SstFiles,
        *,
        clock: Clock,
        importer: Importer | None = None,
        settings: HousekeepingSettings = HousekeepingSettings(),
    ) -> None:
        self._epoch = epoch
        self._manifest = manifest
        self._files = files
        self._clock = clock
        self._importer = importer
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._keep())]
        if self._importer is not None:
            self._tasks.append(asyncio.create_task(self._import(self._importer)))

    async def close(self) -> None:
        """Stop; what is half done was not committed, and is nothing but an orphan."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _import(self, importer: Importer) -> None:
        while True:
            try:
                await importer.run()
            except YunheError as error:
                # An epoch that is over is for the node to notice; of anything else the next turn may be free.
                log.warning("import-again: %s", error)
            await self._clock.sleep_ms(self._settings.turn_ms)

    async def _keep(self) -> None:
        collected = self._clock.monotonic_ms()
        while True:
            try:
                await self.turn()
                if self._clock.monotonic_ms() - collected >= self._settings.collect_ms:
                    collected = self._clock.monotonic_ms()
                    await collect(self._manifest, self._files.store, self._clock, self._settings.orphans)
                    await self._manifest.collect()
            except YunheError as error:
                log.warning("housekeeping-waits: %s", error)
            await self._clock.sleep_ms(self._settings.turn_ms)

    async def turn(self) -> str:
        """Retention, and of each table the run that gains most; returns what was done, in one sentence.

        Raises:
            Fenced: this epoch is over. Unavailable, Corrupt: as the bucket and its files.
        """
        removed = compacted = 0
        for name in sorted(self._manifest.state.tables):
            removed += await self.retain(name)
            table = self._manifest.state.tables.get(name)
            found = runs(table.schema, list(table.files.values()), self._settings.compaction) if table else []
            if table is not None and found:
                began = self._clock.monotonic_ms()
                compacted += await self.compact(table.schema, found[0])
                took = self._clock.monotonic_ms() - began
                await self._clock.sleep_ms(took / self._settings.share_max - took)
        return f"{removed} files expired, {compacted} compacted"

    async def retain(self, name: str) -> int:
        """Remove the table's expired files; returns how many."""
        table = self._manifest.state.tables.get(name)
        old = expired(table.schema, list(table.files.values()), self._clock.wall_ms()) if table else []
        removed = 0
        for at in range(0, len(old), REMOVED_AN_ENTRY):
            ids = [meta.file_id for meta in old[at : at + REMOVED_AN_ENTRY]]
            removed += len(ids) if await self._replace(name, ids, []) else 0
        return removed

    async def compact(self, schema: TableSchema, run: Run) -> int:
        """Make one file of a run; returns of how many. Nothing, when one of them was replaced meanwhile."""
        parts: list[pa.Table] = [await self._files.read(meta, schema) for meta in run.files]
        rows = await self._files.compute(lambda: merged(schema, parts, deletes_end=run.deletes_end))
        added: list[FileMeta] = []
        if len(rows):
            meta = await self._files.write(schema, lambda: rows, self._files.fresh_id())
            added = [replace(meta, sequence=run.sequence, level=1)]
        done = await self._replace(schema.name, [meta.file_id for meta in run.files], added)
        return len(run.files) if done else 0

    async def _replace(self, name: str, removed: Sequence[str], added: Sequence[FileMeta]) -> bool:
        now = self._clock.wall_ms()
        try:
            return await self._manifest.commit_one(lambda state: files_replaced(self._epoch, name, removed, added, now))
        except Fenced:
            raise
        except Conflict as error:
            log.info("not-replaced: %s", error)
            return False


def merged(schema: TableSchema, parts: Sequence[pa.Table], *, deletes_end: bool) -> pa.Table:
    """Files' rows, oldest file first, as one file's. `deletes_end`: deletes have nothing left to hide, and go."""
    rows = ordered(schema, joined(schema, parts))
    if deletes_end and OP_TYPE in rows.column_names:
        rows = rows.filter(pc.equal(rows.column(OP_TYPE), PUT)).drop_columns([OP_TYPE])
    return rows
