"""SSTs in the bucket: a node writes and reads whole files, each verified byte by byte.

What computes runs where the `Worker` puts it (a thread; in simulation, at once); what waits for the bucket tries again,
later and later, for a bounded number of times.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

from dataplane.tsdb.schema.files import FileMeta, sst_key
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.reader import checked_footer, read_sst
from dataplane.tsdb.sst.writer import write_sst
from providers.base.clock import Clock, Rng, backoff_ms
from providers.base.errors import Corrupt, Unavailable
from providers.base.objects import ObjectStore

T = TypeVar("T")


class Worker(Protocol):
    """Runs what computes for long: a thread, or in tests whoever calls."""

    async def __call__(self, what: Callable[[], T]) -> T: ...


async def in_thread(what: Callable[[], T]) -> T:
    """`Worker` of a process."""
    return await asyncio.to_thread(what)


@dataclass(frozen=True, slots=True)
class Patience:
    """How often the bucket is asked again."""

    tries_max: int = 6
    first_ms: float = 50
    max_ms: float = 2_000


class SstFiles:
    """One node's way to the files of a database."""

    def __init__(
        self,
        store: ObjectStore,
        database: str,
        node: str,
        *,
        clock: Clock,
        rng: Rng,
        worker: Worker = in_thread,
        patience: Patience = Patience(),
    ) -> None:
        self.store = store
        self.database = database
        self._node = node
        self._clock = clock
        self._rng = rng
        self._worker = worker
        self._patience = patience
        self._chooser = Chooser()
        self._one_writer = asyncio.Lock()

    def fresh_id(self) -> str:
        """An id for a file to be."""
        return self._rng.token()

    async def compute(self, what: Callable[[], T]) -> T:
        """Run it off the loop."""
        return await self._worker(what)

    async def write(self, schema: TableSchema, rows: Callable[[], pa.Table], file_id: str) -> FileMeta:
        """Store what `rows` makes; it is no part of the database before the manifest says so.

        Raises:
            Unavailable: not known to be stored; the same id may be written again. Invalid: as `write_sst`.
        """
        async with self._one_writer:  # the chooser's memory is one
            sst = await self._worker(
                lambda: write_sst(schema, rows(), file_id=file_id, origin=self._node, chooser=self._chooser)
            )
        await self.patiently(lambda: self.store.put(sst_key(self.database, schema.name, file_id), sst.data))
        return sst.meta

    async def read(self, meta: FileMeta, schema: TableSchema) -> pa.Table:
        """All rows of a file, in the columns of `schema`, and `__op_type` where it has that.

        Raises:
            Corrupt: it is not what was committed. NotFound, Unavailable: as the store.
        """
        key = sst_key(self.database, meta.table, meta.file_id)
        data = await self.patiently(lambda: self.store.get(key))

        def verified() -> pa.Table:
            if len(data) != meta.size or hashlib.sha256(data).hexdigest() != meta.sha256:
                raise Corrupt(f"file {meta.file_id} of table {meta.table!r} is not the one that was committed")
            return read_sst(data, schema, footer=checked_footer(data[-meta.footer_bytes :], meta))

        return await self._worker(verified)

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's answer. Only for calls that may be repeated.

        Raises:
            Unavailable: refused each time.
        """
        for attempt in range(self._patience.tries_max - 1):
            try:
                return await call()
            except Unavailable:
                pause = backoff_ms(self._rng, attempt, first_ms=self._patience.first_ms, max_ms=self._patience.max_ms)
            await self._clock.sleep_ms(pause)
        return await call()
