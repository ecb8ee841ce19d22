"""An owner's rows on their way from memory into files: one manifest entry says both, which files and how far the WAL.

    keeper ──► tables that are large, old, or hold back memory or WAL ──► SSTs ──► files, floors ──► WAL trimmed

The WAL is trimmed behind what an accepted entry says, and never behind anything else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import Logged, files_added
from dataplane.tsdb.cloud.manifest_state import ManifestState
from dataplane.tsdb.cloud.memory import Portion, TableMemory
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.sst.memtable import joined
from dataplane.wal.commit import GroupCommit
from dataplane.wal.modes import WalSettings
from providers.base.clock import Clock
from providers.base.errors import Fenced, YunheError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TenureSettings:
    """Of an owner."""

    memory_bytes_max: int = 50 << 20
    """Rows in no file yet, all tables': writes wait above it."""
    flush_bytes: int = 8 << 20
    """Of a table, from which it is flushed before its time."""
    wal_bytes_max: int = 256 << 20
    """Of the WAL; at half of it the tables that hold it back are flushed."""
    wait_ms_max: float = 5_000
    """How long a write waits for room before it is refused."""
    waiting_max: int = 10_000
    """Writes that wait for room; more are refused."""
    tick_ms: float = 20
    """Between two looks, of writes for room and of the keeper for work."""
    tables_an_entry: int = 200
    """Tables that are flushed with one manifest entry."""
    wal: WalSettings = field(default_factory=WalSettings)


@dataclass(slots=True)
class Counters:
    """Since this epoch began here."""

    rows: int = 0
    flushes: int = 0
    file_bytes: int = 0
    refused: int = 0


class Flusher:
    """See the module."""

    def __init__(
        self,
        epoch: int,
        manifest: Manifest,
        files: SstFiles,
        memory: Mapping[str, TableMemory],
        wal: GroupCommit,
        *,
        clock: Clock,
        settings: TenureSettings,
        counters: Counters,
        end: Callable[[YunheError], None],
    ) -> None:
        """`memory` is looked at, and shared. `end` is called when this epoch is found to be over."""
        self._epoch = epoch
        self._manifest = manifest
        self._files = files
        self._memory = memory
        self._wal = wal
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._end = end

    def floor(self, table: str) -> int:
        """Records of the table up to this one are in files, or void."""
        log_state = self._manifest.state.logs.get(self._epoch)
        return log_state.tables.get(table, 0) if log_state is not None else 0

    async def flush(self, tables: Sequence[str] | None = None) -> None:
        """Put what is in memory now into files.

        Raises:
            Fenced: this epoch is over. Unavailable: rows stay in memory and WAL; try again.
        """
        names = sorted(self._memory) if tables is None else sorted(set(tables) & set(self._memory))
        names = [name for name in names if self._memory[name].bytes]
        for at in range(0, len(names), self._settings.tables_an_entry):
            some = names[at : at + self._settings.tables_an_entry]
            held = []
            try:
                for name in some:
                    lock = self._memory[name].flush
                    await lock.acquire()
                    held.append(lock)
                left = [name for name in some if self._memory[name].flushing is not None]
                await self.flush_held(some)
                if left:  # by an earlier try, which was finished first
                    await self.flush_held(left)
            finally:
                for lock in held:
                    lock.release()

    async def flush_held(self, tables: Sequence[str]) -> None:
        """One file of each table, the caller having their locks."""
        frozen: dict[str, Portion] = {}
        for name in tables:
            self._memory[name].settle(self.floor(name))
            rows = self._memory[name].freeze()
            if rows is not None:
                frozen[name] = rows
        metas: list[FileMeta] = []
        for name, rows in frozen.items():
            if rows.stored is None:
                schema, parts = self._manifest.state.tables[name].schema, rows.parts()
                rows.stored = await self._files.write(
                    schema,
                    lambda s=schema, p=parts: joined(s, p),  # type: ignore[misc]
                    self._files.fresh_id(),
                )
            metas.append(rows.stored)
        if not metas:
            return

        def decide(state: ManifestState) -> dict[str, object] | None:
            known = state.logs[self._epoch].tables if self._epoch in state.logs else {}
            # Some may be in by an earlier try, whose answer was lost.
            floors = {name: rows.last for name, rows in frozen.items() if known.get(name, 0) < rows.last}
            if not floors and state.epoch == self._epoch:
                return None
            files = [meta for meta in metas if meta.table in floors]
            return files_added(self._epoch, files, logged=Logged(self._epoch, self.block_floor(set(floors)), floors))

        try:
            if await self._manifest.commit_one(decide):
                self._counters.flushes += len(metas)
                self._counters.file_bytes += sum(meta.size for meta in metas)
        except Fenced as error:
            self._end(error)
            raise
        for name in tables:
            self._memory[name].settle(self.floor(name))
        await self._trim()

    def block_floor(self, flushed: set[str], *, all_of_it: bool = False) -> int:
        """Blocks of the WAL below this hold nothing that is in memory only, once what these tables flush is in files;
        `all_of_it`: once none of their rows counts."""
        firsts = [
            memory.first_block(without_flushing=name in flushed)
            for name, memory in self._memory.items()
            if not (all_of_it and name in flushed)
        ]
        return min((first for first in firsts if first is not None), default=self._wal.last_acked + 1)

    async def _trim(self) -> None:
        """Behind what the manifest says, and nothing else."""
        log_state = self._manifest.state.logs.get(self._epoch)
        if log_state is not None:
            await self._wal.trim(min(log_state.block, self._wal.last_acked + 1))

    async def keep(self) -> None:
        """Flush what is due, until cancelled. A bucket that refuses is asked again later, and later."""
        failures = 0
        while True:
            try:
                if due := self.due():
                    await self.flush(due)
                failures = 0
            except Fenced as error:
                self._end(error)
            except YunheError as error:
                failures += 1
                log.warning("flush-waits: %s", error)
            await self._clock.sleep_ms(self._settings.tick_ms * min(2**failures, 250))

    def due(self) -> list[str]:
        """Tables to be flushed now: large, old, or what holds back memory or the WAL most."""
        now, settings = self._clock.monotonic_ms(), self._settings
        found = []
        for name, memory in self._memory.items():
            table = self._manifest.state.tables.get(name)
            if table is None or not memory.bytes:
                continue
            old = memory.first_ms is not None and now - memory.first_ms >= table.schema.options.flush_interval_ms
            if old or memory.bytes >= settings.flush_bytes:
                found.append(name)
        if self._wal.bytes_used >= settings.wal_bytes_max // 2:
            held = {name: first for name, m in self._memory.items() if (first := m.first_block()) is not None}
            found += sorted(held, key=lambda name: held[name])[: max(1, len(held) // 4)]
        if sum(memory.bytes for memory in self._memory.values()) >= settings.memory_bytes_max // 2:
            found.append(max(self._memory, key=lambda name: self._memory[name].bytes))
        return sorted(set(found))
