"""An edge database in a folder of this machine, opened: lock, store, its thread, the query engine over its files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from dataplane.tsdb.edge.database import EdgeDatabase, EdgeSettings
from dataplane.tsdb.edge.files import DiskFiles
from dataplane.tsdb.edge.retention import retain
from dataplane.tsdb.edge.store import MEMORY_BYTES_MAX, EdgeStore
from dataplane.tsdb.edge.worker import ThreadWorker
from dataplane.tsdb.query.engine import QueryEngine, QuerySettings
from dataplane.tsdb.query.files import LocalFiles, in_folder
from providers.base.clock import Clock, Rng
from providers.base.errors import Unavailable

LOCK = "lock"
DEFAULT_SETTINGS = EdgeSettings()
QUERIES = QuerySettings(
    threads=1, memory_bytes_max=128 << 20, queries_at_once=2, ahead_bytes_max=16 << 20, merge_bytes_max=64 << 20
)
"""A vehicle's processor and memory are others' first."""


@contextlib.asynccontextmanager
async def opened(
    folder: Path,
    name: str,
    *,
    clock: Clock,
    rng: Rng,
    memory_bytes_max: int = MEMORY_BYTES_MAX,
    settings: EdgeSettings = DEFAULT_SETTINGS,
    uploads: bool = True,
) -> AsyncIterator[EdgeDatabase]:
    """The database in `folder`, made if need be, serving until the end of the block; then closed cleanly. `uploads`:
    whether somebody uploads its files, for which those that have expired wait (`retention.py`).

    Raises:
        Unavailable: another process has it open, or the flash errs. Corrupt: its catalog is damaged, or a file is gone.
            Full: no room.
    """
    files = DiskFiles(folder)
    with _locked(folder):
        worker = ThreadWorker()
        reader = LocalFiles(in_folder(folder))
        try:
            store = await worker(lambda: EdgeStore(files, name, rng, memory_bytes_max=memory_bytes_max))
            queries = QueryEngine(reader, settings=QUERIES)
            database = EdgeDatabase(store, clock=clock, worker=worker, settings=settings, name=name, queries=queries)
            await database.start()
            retaining = asyncio.create_task(retain(database, uploads=uploads, clock=clock))
            try:
                yield database
            finally:
                retaining.cancel()
                await asyncio.gather(retaining, return_exceptions=True)
                await database.close()
                queries.close()
        finally:
            await asyncio.to_thread(worker.close)
            reader.close()
            files.close()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unavailable(
                f"another process has the edge database in {folder} open", hint="one process at a time; stop the other"
            ) from error
        yield
    finally:
        os.close(fd)
