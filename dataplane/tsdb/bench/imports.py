"""What `yunhe bench import` measures, as a program: `python -m dataplane.tsdb.bench.imports`, with the task as one JSON
line on standard input; it says what it found as one JSON object.

Files are made first, and not counted. Then the levels, slowest first, for the others find the files in the bucket:

    L3  upload over HTTP, each file durable when its put is answered ─► L2 ─► first correct answer to a query
    L2  one signed batch: each byte read and checked against the signed SHA-256 ─► one manifest entry
    L1  the same with footers only: size, schema, rows, times, the footer's CRC
    L0  the manifest entry alone
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.contract.codec import from_plain, to_plain
from dataplane.ledger.entry import Writer
from dataplane.tsdb.bench.signals import SIGNALS, WIDE, wide
from dataplane.tsdb.cloud.file_checks import Check, Policy
from dataplane.tsdb.cloud.ingest import Importer, ImportSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import database_owned, files_added, table_created
from dataplane.tsdb.query.engine import QueryEngine, TableView
from dataplane.tsdb.query.files import CachedFiles
from dataplane.tsdb.schema.files import FileMeta, ShippedBatch, batch_key, signed, sst_key, sst_prefix
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.writer import write_sst
from providers.base.clock import Clock, SystemClock, SystemRng
from providers.base.errors import Internal
from providers.base.loops import run_loop
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store

DATABASE = "fleet"
EDGE = "car-1"
MAKERS = 2
UPLOADS_AT_ONCE = 8
READS_AT_ONCE = 16
FILES_A_VEHICLE = 10
ASKED = "walk_0"
"""The signal that the first query asks min, max and average of."""

_CHOOSER = Chooser()
"""Each maker process has its own."""

Answer = tuple[int, float, float, float]
"""Rows, min, max, sum of `ASKED`."""


def make(folder: Path, rows: int, number: int) -> tuple[dict[str, Any], Answer]:
    """One file on disk; what is known of it, and of the asked signal by the generator."""
    vehicle, part = divmod(number, FILES_A_VEHICLE)
    table = wide(number, f"vehicle-{vehicle:03}", part * rows, rows)
    sst = write_sst(WIDE, table, file_id=f"{number:032x}", origin=EDGE, chooser=_CHOOSER)
    (folder / sst.meta.file_id).write_bytes(sst.data)
    return to_plain(sst.meta), _answer(table.column(ASKED))


def _answer(column: pa.ChunkedArray) -> Answer:
    values = column.cast(pa.float64())
    span = pc.min_max(values).as_py()
    return len(values), span["min"], span["max"], pc.sum(values).as_py()


def _joined(answers: list[Answer]) -> Answer:
    counts, lows, highs, sums = zip(*answers, strict=True)
    return sum(counts), min(lows), max(highs), math.fsum(sums)


class Run:
    """One bucket, the files, and a fresh database for each level."""

    def __init__(self, store: ObjectStore, folder: Path, metas: list[FileMeta], expected: Answer, clock: Clock) -> None:
        self._store = store
        self._folder = folder
        self._metas = metas
        self._expected = expected
        self._clock = clock
        self._key = Ed25519PrivateKey.generate()
        self._files: CachedFiles | None = None
        """The cache that an import leaves for queries; None: it leaves nothing."""

    async def all(self) -> dict[str, float]:
        """Seconds by what was done."""
        found = {}
        await self._fresh()
        self._cache()
        began_ms = self._clock.monotonic_ms()
        found["upload"] = await self._timed(self._upload)
        found["l2_after_upload"] = await self._timed(lambda: self._imported(Check.CHECKSUM))
        found["first_query"] = await self._timed(self._ask)
        found["l3"] = (self._clock.monotonic_ms() - began_ms) / 1_000
        found["query_warm"] = await self._timed(self._ask)
        # The levels say what an import checks; what it leaves for queries is no part of them.
        self._drop_cache()
        for name, check in (("l2", Check.CHECKSUM), ("l1", Check.FOOTER)):
            await self._fresh()
            found[name] = await self._timed(lambda check=check: self._imported(check))  # type: ignore[misc]
        self._cache()
        found["query_without_cache"] = await self._timed(self._ask)
        self._drop_cache()
        found["duplicate_batch"] = await self._timed(lambda: self._imported(Check.FOOTER, number=2))
        await self._fresh()
        found["l0"] = await self._timed(self._committed)
        return found

    async def _timed(self, what: Callable[[], Awaitable[None]]) -> float:
        began_ms = self._clock.monotonic_ms()
        await what()
        return (self._clock.monotonic_ms() - began_ms) / 1_000

    async def _fresh(self) -> None:
        """The bucket without the database, but with its files."""
        after = ""
        while page := await self._store.list(f"{DATABASE}/", start_after=after):
            after = page[-1].key
            if gone := [info.key for info in page if not info.key.startswith(sst_prefix(DATABASE))]:
                await self._store.delete(gone)
        manifest = await self._manifest()
        await manifest.commit_one(lambda state: database_owned(state.epoch + 1, "bench"))
        await manifest.commit_one(lambda state: table_created(state.epoch, WIDE))
        await manifest.close()

    async def _manifest(self) -> Manifest:
        """As a process that knows nothing yet opens it."""
        writer = Writer("bench", SystemRng().token())
        manifest = Manifest(self._store, DATABASE, writer, clock=self._clock, rng=SystemRng())
        await manifest.open()
        return manifest

    async def _upload(self) -> None:
        limit = asyncio.Semaphore(UPLOADS_AT_ONCE)

        async def put(meta: FileMeta) -> None:
            async with limit:
                data = await asyncio.to_thread((self._folder / meta.file_id).read_bytes)
                await self._store.put(sst_key(DATABASE, WIDE.name, meta.file_id), data, if_absent=True)

        await asyncio.gather(*map(put, self._metas))

    def _cache(self) -> None:
        """From here on the import has one to fill, with nothing in it."""
        self._files = CachedFiles(self._store, DATABASE, self._folder / "cache")

    def _drop_cache(self) -> None:
        if self._files is not None:
            self._files.close()
        self._files = None

    async def _imported(self, check: Check, number: int = 1) -> None:
        batch = ShippedBatch(DATABASE, EDGE, number, self._clock.wall_ms(), tuple(self._metas), (WIDE,))
        await self._store.put(batch_key(DATABASE, EDGE, number), signed(batch, self._key), if_absent=True)
        manifest = await self._manifest()
        settings = ImportSettings(policy=Policy(check), files_at_once=READS_AT_ONCE)
        trust = {EDGE: self._key.public_key()}
        importer = Importer(
            manifest, self._store, trust, clock=self._clock, rng=SystemRng(), settings=settings, keeper=self._files
        )
        [outcome] = await importer.turn()
        if outcome.refused is not None or len(manifest.state.tables[WIDE.name].files) != len(self._metas):
            raise Internal(f"the import did not do what it should: {outcome}")
        await manifest.close()

    async def _committed(self) -> None:
        manifest = await self._manifest()
        await manifest.commit_one(lambda state: files_added(state.epoch, self._metas, (WIDE,), edge=EDGE, number=1))
        await manifest.close()

    async def _ask(self) -> None:
        """As a database that has just imported: the manifest, then the query engine over the import's cache."""
        if self._files is None:
            raise Internal("nothing was imported")
        manifest = await self._manifest()
        table = manifest.state.tables[WIDE.name]
        engine = QueryEngine(self._files)
        sql = f"SELECT count(*) AS n, min({ASKED}) AS low, max({ASKED}) AS high, sum({ASKED}) AS total FROM {WIDE.name}"
        views = {WIDE.name: TableView(table.schema, tuple(table.files.values()))}
        [row] = (await engine.query(sql, views, self._clock.wall_ms())).to_pylist()
        engine.close()
        await manifest.close()
        found: Answer = (row["n"], row["low"], row["high"], row["total"])
        same = found[:3] == self._expected[:3] and math.isclose(found[3], self._expected[3], rel_tol=1e-9)
        if not same:
            raise Internal(f"the first query answered {found}, and the generator {self._expected}")


def main() -> None:
    """See the module."""
    task = json.loads(sys.stdin.readline())
    folder, rows, clock = Path(task["folder"]), task["rows"], SystemClock()
    # Forking would copy threads' locks in whatever state they are.
    with ProcessPoolExecutor(MAKERS, multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(partial(make, folder, rows), range(task["files"]), chunksize=FILES_A_VEHICLE))
    metas = [from_plain(FileMeta, plain) for plain, _ in made]

    async def run() -> dict[str, float]:
        store = open_store(StoreAddress(**task["address"]), clock=clock, rng=SystemRng())
        await store.ensure_bucket()
        try:
            return await Run(store, folder, metas, _joined([answer for _, answer in made]), clock).all()
        finally:
            await store.close()

    seconds = run_loop(run())
    points = sum(meta.rows for meta in metas) * SIGNALS
    size = sum(meta.size for meta in metas)
    print(json.dumps({"points": points, "bytes": size, "seconds": seconds, "load": os.getloadavg()[0]}), flush=True)


if __name__ == "__main__":
    main()
