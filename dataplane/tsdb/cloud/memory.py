"""An owner's rows that are in no file yet, of one table: what is being written, and what is being flushed.

    write ──► active ──► freeze: flushing (one at a time) ──► a file, and the floor, in one manifest entry ──► forgotten

What is shown of memory is decided by the manifest's floor alone: rows at or below it are in a file, or void. So a query
sees each row once at every moment, also between an entry's acceptance and its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.sst.memtable import Memtable, Message


@dataclass(slots=True)
class Portion:
    """Some rows, oldest first, and where they are in the WAL."""

    table: Memtable = field(default_factory=Memtable)
    first_block: int | None = None
    """The oldest block with rows of these; None: they are in no WAL."""
    first_ms: float | None = None
    """When the oldest came, by the monotonic clock."""
    stored: FileMeta | None = None
    """Once they are in an object that the manifest may not have yet: a flush that is tried again goes on from there."""

    @property
    def last(self) -> int:
        """Sequence of the newest; 0: there are none."""
        return self.table.last_sequence or 0

    def parts(self) -> list[pa.Table]:
        """As they were written, each in the columns of the table's version then."""
        return self.table.parts()


class TableMemory:
    """See the module. A writer is `inside` while a write of its is on its way; who changes the table goes `alone`."""

    def __init__(self) -> None:
        self.active = Portion()
        self.flushing: Portion | None = None
        self.flush = asyncio.Lock()
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, message: Message, sequence: int, block: int | None, now_ms: float) -> None:
        """Rows that are acked; sequences only rise."""
        self.active.table.add(message, sequence)
        if self.active.first_block is None:
            self.active.first_block = block
        if self.active.first_ms is None:
            self.active.first_ms = now_ms

    @property
    def bytes(self) -> int:
        return self.active.table.bytes + (self.flushing.table.bytes if self.flushing else 0)

    @property
    def first_ms(self) -> float | None:
        oldest = self.flushing or self.active
        return oldest.first_ms

    def first_block(self, *, without_flushing: bool = False) -> int | None:
        """The oldest block of the WAL with rows that are here; `without_flushing`: and stay here, once that is done."""
        kept = [self.active] if without_flushing or self.flushing is None else [self.flushing, self.active]
        return min((rows.first_block for rows in kept if rows.first_block is not None), default=None)

    def above(self, floor: int) -> list[pa.Table]:
        """Rows that are in no file as the manifest's floor says, oldest first."""
        found = [rows for rows in (self.flushing, self.active) if rows is not None and rows.last > floor]
        return [part for rows in found for part in rows.parts()]

    def settle(self, floor: int) -> None:
        """Forget what is in files, or void."""
        if self.flushing is not None and self.flushing.last <= floor:
            self.flushing = None
        if 0 < self.active.last <= floor:
            self.active = Portion()

    def freeze(self) -> Portion | None:
        """What is to be flushed now, an earlier try's first; None: nothing."""
        if self.flushing is None and self.active.last:
            self.flushing, self.active = self.active, Portion()
        return self.flushing

    # ── writers, and who is alone ───────────────────────────────────────────────────────────────────────────────────

    async def opened(self) -> None:
        """Return when nobody is alone."""
        await self._open.wait()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def enter(self) -> None:
        """A write begins; only while `is_open`."""
        self._inside += 1
        self._empty.clear()

    def leave(self) -> None:
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """No write is under way, and none begins. One task at a time."""
        self._open.clear()
        try:
            await self._empty.wait()
            yield
        finally:
            self._open.set()
