"""Files for queries: an edge's in a local folder (`LocalFiles`), the cloud's in a bucket behind caches (`CachedFiles`).

Of a file only its footer and the wanted columns' pages are read. The footer is checked against its CRC-32C in the
manifest or catalog, each page against its CRC in the file, each time that it is decoded: damage on the way, in the
cache or on the flash is found before it is served.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from dataplane.tsdb.query.disk_cache import DiskCache
from dataplane.tsdb.query.opened import Footers, OpenedSst, Range
from dataplane.tsdb.query.spans import Span
from dataplane.tsdb.schema.files import FileMeta, sst_key
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Corrupt, NotFound, Unavailable
from providers.base.objects import ObjectStore

T = TypeVar("T")
READERS = 2
"""Threads that decode columns."""
LOCAL_GAP_BYTES_MAX = 4 << 10
BUCKET_GAP_BYTES_MAX = 64 << 10
"""Bytes between two columns that are read along: cheaper than a request of their own."""
LocalBytes = Callable[[FileMeta, int, int], bytes]
"""Bytes of a file, from an offset, so many. Blocks. Raises NotFound, Unavailable."""


def in_folder(folder: Path, suffix: str = ".parquet") -> LocalBytes:
    """Files that lie in a folder under their ids."""

    def read(meta: FileMeta, start: int, length: int) -> bytes:
        try:
            fd = os.open(f"{folder}/{meta.file_id}{suffix}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(fd, length, start)
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            raise NotFound(f"file {meta.file_id} of table {meta.table!r} is not there") from error
        except OSError as error:
            raise Unavailable(f"file {meta.file_id} cannot be read: {error.strerror}") from error

    return read


class LocalFiles:
    """`FileReader` over files on this machine."""

    def __init__(self, read: LocalBytes, *, footer_bytes_max: int = 16 << 20, readers: int = READERS) -> None:
        self._read = read
        self._footers = Footers(footer_bytes_max)
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="query-files")

    async def columns(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table:
        """As `FileReader`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.at_hand, meta, schema, names)

    async def ruled_out(
        self, meta: FileMeta, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str]:
        """As `FileReader`."""
        call = partial(self.ruled_out_at_hand, meta, schema, names, spans)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def ruled_out_at_hand(
        self, meta: FileMeta, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str]:
        """As `NearReader`."""
        opened = self._opened(meta)
        found = opened.ruled_out(schema, names, spans)
        self._footers.put(_name(meta), opened)
        return found

    def _opened(self, meta: FileMeta) -> OpenedSst:
        known = self._footers.get(_name(meta))
        return known or self._footers.opened(meta, self._exactly(meta, *_footer_range(meta)))

    def at_hand(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table:
        """As `NearReader`: they always are."""
        opened = self._opened(meta)
        ranges = opened.ranges(schema, names, LOCAL_GAP_BYTES_MAX)
        self._footers.put(_name(meta), opened)
        return opened.rows(schema, names, [(start, self._exactly(meta, start, end)) for start, end in ranges])

    def _exactly(self, meta: FileMeta, start: int, end: int) -> bytes:
        data = self._read(meta, start, end - start)
        if len(data) != end - start:
            raise Corrupt(f"file {meta.file_id} of table {meta.table!r} is shorter than {meta.size} bytes")
        return data

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=True)


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Of one reader of a bucket."""

    disk_bytes_max: int = 8 << 30
    footer_bytes_max: int = 256 << 20
    """Memory for footers, about: of ten thousand files of a hundred columns, a few of them asked for."""
    requests_at_once: int = 16
    readers: int = READERS
    offer_bytes_max: int = 64 << 20
    """Of a file that an import may hand over whole; larger ones are fetched when they are asked for."""


@dataclass(slots=True)
class CacheCounters:
    """Since the start."""

    requests: int = 0
    fetched_bytes: int = 0
    hits: int = 0
    dropped: int = 0
    """Files whose cached bytes failed their check and were fetched anew."""


class CachedFiles:
    """`FileReader` over a bucket, with a bounded cache of bytes on a local disk and one of parsed footers in memory.
    Losing either costs requests and nothing else."""

    def __init__(
        self, store: ObjectStore, database: str, folder: Path, *, settings: CacheSettings = CacheSettings()
    ) -> None:
        self._store = store
        self._database = database
        self._settings = settings
        self._disk = DiskCache(folder, settings.disk_bytes_max)
        self._footers = Footers(settings.footer_bytes_max)
        self._threads = ThreadPoolExecutor(settings.readers, thread_name_prefix="query-files")
        self._requests = asyncio.Semaphore(settings.requests_at_once)
        self._busy: dict[str, tuple[asyncio.Lock, int]] = {}
        """Files that somebody fetches from, with how many wait: what one fetches, the others find."""
        self.counters = CacheCounters()

    async def columns(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table:
        """As `FileReader`."""
        rows = await self._in_thread(partial(self.at_hand, meta, schema, names))
        return rows if rows is not None else await self._fetched_rows(meta, schema, names)

    def at_hand(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table | None:
        """As `NearReader`: by what is in the caches."""
        rows = self._cached(meta, lambda: self._cached_rows(meta, schema, names))
        self.counters.hits += rows is not None
        return rows

    def _cached(self, meta: FileMeta, look: Callable[[], T | None]) -> T | None:
        try:
            return look()
        except Corrupt:
            # What is on this disk, or was parsed, is not what was written: the bucket's own bytes decide.
            self.counters.dropped += 1
            self.forget(meta)
            return None

    def _cached_rows(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table | None:
        opened = self._cached_footer(meta)
        if opened is None:
            return None
        ranges = opened.ranges(schema, names, BUCKET_GAP_BYTES_MAX)
        self._footers.put(_name(meta), opened)
        pieces = []
        for start, end in ranges:
            data = self._disk.get(_name(meta), start, end - start)
            if data is None:
                return None
            pieces.append((start, data))
        return opened.rows(schema, names, pieces)

    def _cached_footer(self, meta: FileMeta) -> OpenedSst | None:
        known = self._footers.get(_name(meta))
        if known is not None:
            return known
        start, end = _footer_range(meta)
        footer = self._disk.get(_name(meta), start, end - start)
        return None if footer is None else self._footers.opened(meta, footer)

    async def ruled_out(
        self, meta: FileMeta, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str]:
        """As `FileReader`."""
        async with self._alone(meta):
            opened = await self._fetched_footer(meta)
            return await self._in_thread(lambda: self._ruled_out(meta, opened, schema, names, spans))

    def ruled_out_at_hand(
        self, meta: FileMeta, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str] | None:
        """As `NearReader`: by what is in the caches."""

        def look() -> frozenset[str] | None:
            opened = self._cached_footer(meta)
            return None if opened is None else self._ruled_out(meta, opened, schema, names, spans)

        return self._cached(meta, look)

    def _ruled_out(
        self, meta: FileMeta, opened: OpenedSst, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str]:
        found = opened.ruled_out(schema, names, spans)
        self._footers.put(_name(meta), opened)
        return found

    @asynccontextmanager
    async def _alone(self, meta: FileMeta) -> AsyncIterator[None]:
        """Nobody else fetches from that file meanwhile."""
        lock, waiting = self._busy.get(_name(meta), (asyncio.Lock(), 0))
        self._busy[_name(meta)] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._busy[_name(meta)]
            if waiting > 1:
                self._busy[_name(meta)] = (lock, waiting - 1)
            else:
                del self._busy[_name(meta)]

    async def _fetched_footer(self, meta: FileMeta) -> OpenedSst:
        known = self._footers.get(_name(meta))
        if known is not None:
            return known
        footer = await self._bytes(meta, *_footer_range(meta))
        return await self._in_thread(lambda: self._footers.opened(meta, footer))

    async def _fetched_rows(self, meta: FileMeta, schema: TableSchema, names: Sequence[str]) -> pa.Table:
        async with self._alone(meta):
            opened = await self._fetched_footer(meta)
            ranges = opened.ranges(schema, names, BUCKET_GAP_BYTES_MAX)
            self._footers.put(_name(meta), opened)
            data = await asyncio.gather(*(self._bytes(meta, start, end) for start, end in ranges))
            pieces = [(start, piece) for (start, _), piece in zip(ranges, data, strict=True)]
            try:
                return await self._in_thread(partial(opened.rows, schema, names, pieces))
            except Corrupt:
                await self._in_thread(partial(self._disk.drop, _name(meta)))
                raise

    async def _bytes(self, meta: FileMeta, start: int, end: int) -> bytes:
        """By the cache, or by a request that fills it."""
        cached = await self._in_thread(partial(self._disk.get, _name(meta), start, end - start))
        if cached is not None:
            return cached
        async with self._requests:
            data = await self._store.get(
                sst_key(self._database, meta.table, meta.file_id), start=start, length=end - start
            )
        self.counters.requests += 1
        self.counters.fetched_bytes += len(data)
        if len(data) != end - start:
            raise Corrupt(f"file {meta.file_id} of table {meta.table!r} is shorter than {meta.size} bytes")
        await self._in_thread(partial(self._disk.put, _name(meta), start, data))
        return data

    # ── what an import hands over ───────────────────────────────────────────────────────────────────────────────────

    def wants(self, meta: FileMeta) -> bool:
        """Whether the file should be offered, once every byte of it has been checked."""
        return meta.size <= self._settings.offer_bytes_max

    async def offer(self, meta: FileMeta, data: bytes) -> None:
        """Keep the bytes of a whole file that has just been read and found to be what was signed: who asks for it next
        needs no request."""
        await self._in_thread(partial(self._take, meta, data))

    def _take(self, meta: FileMeta, data: bytes) -> None:
        try:
            opened = self._footers.opened(meta, data[-meta.footer_bytes :])
        except Corrupt:
            return
        self._disk.put(_name(meta), 0, data)
        self._footers.put(_name(meta), opened)

    def forget(self, meta: FileMeta) -> None:
        """The file is no more part of the database."""
        self._footers.drop(_name(meta))
        self._disk.drop(_name(meta))

    async def _in_thread(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, what)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=True)


def _footer_range(meta: FileMeta) -> Range:
    return meta.size - meta.footer_bytes, meta.size


def _name(meta: FileMeta) -> str:
    """In the caches: of a file and its content, for another may have been offered under its id and not been taken."""
    return f"{meta.file_id}-{meta.sha256[:16]}"
