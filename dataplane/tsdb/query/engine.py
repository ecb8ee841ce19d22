"""The query engine: one SELECT over one moment of a database's tables.

    text ──► guard (`statement.py`) ──► views over scans (`session.py`) ──► DuckDB's plan ──► bounds (`plan.py`)
                      files that can hold no row are left out (`bounds.py`) ◄──┘
         ──► DuckDB runs, pulling batches of just the columns it needs (`scan.py`) ──► Arrow table

Bounds, a query: DuckDB's memory; `ahead_bytes_max` of columns read ahead, a scan; `merge_bytes_max` of rows being
merged, and one file's wanted columns; the answer; time. Queries beyond `queries_at_once` wait, and beyond `queued_max`
are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from dataplane.tsdb.query.scan import FileReader, TableScan, TableView
from dataplane.tsdb.query.session import Session
from dataplane.tsdb.query.statement import checked
from providers.base.errors import Full, Unavailable

__all__ = ["FileReader", "QueryEngine", "QuerySettings", "TableView"]

_INSIST_S = 0.05
"""Between two interrupts: one that comes before DuckDB has begun is lost."""


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """Of one engine."""

    threads: int = 2
    """Of DuckDB, a query."""
    memory_bytes_max: int = 512 << 20
    """Of DuckDB, a query; it does not spill."""
    queries_at_once: int = 4
    queued_max: int = 64
    timeout_ms: int = 60_000
    ahead_bytes_max: int = 64 << 20
    """Columns that a scan reads ahead of DuckDB."""
    merge_bytes_max: int = 256 << 20
    """Rows that are merged at once, about; larger groups of overlapping files are cut by time."""
    answer_bytes_max: int = 512 << 20


@dataclass(slots=True)
class _Job:
    """A query that runs."""

    session: Session | None = None
    scans: list[TableScan] = field(default_factory=list)
    ended: bool = False
    """By the time-out, or by the caller."""

    def end(self) -> None:
        self.ended = True
        for scan in self.scans:
            scan.stop()
        if self.session is not None:
            self.session.interrupt()


class QueryEngine:
    """See the module. Belongs to the event loop that it is first used in."""

    def __init__(self, reader: FileReader, *, settings: QuerySettings = QuerySettings()) -> None:
        self._reader = reader
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.queries_at_once, thread_name_prefix="query")
        self._places = asyncio.Semaphore(settings.queries_at_once)
        self._waiting = 0
        self._idle: list[Session] = []

    async def query(self, select: str, tables: Mapping[str, TableView], now_ms: int) -> pa.Table:
        """Run one SELECT, or EXPLAIN [ANALYZE] of one. `tables`: by name, all of one moment. `now_ms`: the wall clock,
        for what has expired.

        Raises:
            Invalid: it cannot be understood or run. NotFound: it names a table that is not there, or a file is gone.
            Corrupt: a file is not what was written. Full: it needs too much memory, its answer is too large, or too
                many queries wait. Unavailable: it took too long, or files cannot be read now.
        """
        if self._waiting >= self._settings.queued_max:
            raise Full(f"{self._waiting} queries wait already", hint="ask again later")
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._run(select, tables, now_ms)
        finally:
            self._places.release()

    async def _run(self, select: str, tables: Mapping[str, TableView], now_ms: int) -> pa.Table:
        loop = asyncio.get_running_loop()
        job = _Job(self._idle.pop() if self._idle else None)
        running = loop.run_in_executor(self._threads, self._work, job, select, tables, now_ms, loop)
        try:
            done, _ = await asyncio.wait({running}, timeout=self._settings.timeout_ms / 1_000)
        except asyncio.CancelledError:
            await self._ended(job, running)
            raise
        if not done:
            await self._ended(job, running)
            raise Unavailable(
                f"the query took longer than {self._settings.timeout_ms / 1_000:g} s and was ended",
                hint="narrow it by time, or by tags",
            )
        if job.session is not None:
            self._idle.append(job.session)
        return running.result()

    async def _ended(self, job: _Job, running: asyncio.Future[pa.Table]) -> None:
        """End it and wait for that; its session is not used again."""
        while not running.done():
            job.end()
            await asyncio.wait({running}, timeout=_INSIST_S)
        with contextlib.suppress(Exception):
            running.result()
        if job.session is not None:
            job.session.close()

    def _work(
        self, job: _Job, select: str, tables: Mapping[str, TableView], now_ms: int, loop: asyncio.AbstractEventLoop
    ) -> pa.Table:
        settings = self._settings
        if job.session is None:
            job.session = Session(threads=settings.threads, memory_bytes_max=settings.memory_bytes_max)
        statement = checked(select, tables, job.session.parse)
        views = [tables[name] for name in dict.fromkeys(statement.tables.values())]
        job.scans = [
            TableScan(
                view,
                number,
                self._reader,
                loop,
                now_ms,
                ahead_bytes_max=settings.ahead_bytes_max,
                merge_bytes_max=settings.merge_bytes_max,
            )
            for number, view in enumerate(views)
        ]
        if job.ended:
            raise Unavailable("the query was ended")
        return job.session.run(statement, [view.schema for view in views], job.scans, settings.answer_bytes_max)

    def close(self) -> None:
        """Let sessions and threads end, once no query runs."""
        for session in self._idle:
            session.close()
        self._idle.clear()
        self._threads.shutdown(wait=True)
