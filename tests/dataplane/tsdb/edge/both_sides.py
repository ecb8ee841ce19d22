"""Both sides of the database in one process: an edge on a flash that tears, a bucket that errs, the real importer; and
a reader of what the cloud has that shares no code with either.
"""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.file_checks import Check, Policy
from dataplane.tsdb.cloud.ingest import Importer, ImportSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import database_owned
from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.files import Files
from dataplane.tsdb.edge.keys import edge_key
from dataplane.tsdb.edge.ship import Shipper
from dataplane.tsdb.edge.ship_settings import UploadSettings
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.schema.files import numbered_prefixes, opened
from providers.base.clock import Clock, SeededRng
from providers.base.objects import ObjectInfo, ObjectStore
from providers.base.resumed import Progress, ResumableStore
from providers.memory.faults import Process
from providers.memory.objects import PART_BYTES, MemoryObjectStore
from tests.dataplane.tsdb.cloud_import.bucket import DATABASE, Cloud, Edge
from tests.dataplane.tsdb.edge.flash import PowerCut

T = TypeVar("T")
EDGE = "car-1"
QUICK = UploadSettings(DATABASE, interval_ms=1, batch_files_max=3, files_at_once=2)


async def at_once(what: Callable[[], T]) -> T:
    """A worker that is whoever calls."""
    return what()


class Line:
    """The edge's bucket, as far as the vehicle's power reaches: it is cut in request `cut_at`, before the bucket hears
    of it or after, and no later request is made. `calls` counts them; `sent` keeps what was put."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.calls = 0
        self.parts = 0
        """Sent, of files in parts."""
        self.cut_at = 0
        self.heard = False
        """Whether the bucket carries the last request out."""

    async def _call(self, call: Callable[[], Any]) -> Any:
        self.calls += 1
        if self.cut_at and self.calls > self.cut_at:
            raise PowerCut
        if self.calls == self.cut_at and not self.heard:
            raise PowerCut
        try:
            return await call()
        finally:
            if self.calls >= self.cut_at > 0:
                raise PowerCut

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await self._call(lambda: self._store.put(key, data, if_absent=if_absent))

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        await self._call(lambda: self._store.put_stream(key, chunks, if_absent=if_absent))

    resumes_from = PART_BYTES

    async def put_resumed(
        self, key: str, chunks: AsyncIterable[bytes], progress: Progress, *, if_absent: bool = False
    ) -> None:
        store, line = self._store, self
        assert isinstance(store, ResumableStore)

        class Cut:
            """Each part is a request: the power may go in front of it."""

            upload = progress.upload
            keep = staticmethod(progress.keep)

            @staticmethod
            async def pay(count: int) -> None:
                line.parts += count > 0
                await line._call(lambda: progress.pay(count))

        await self._call(lambda: store.put_resumed(key, chunks, Cut(), if_absent=if_absent))

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return bytes(await self._call(lambda: self._store.get(key, start=start, length=length)))

    async def head(self, key: str) -> ObjectInfo:
        found: ObjectInfo = await self._call(lambda: self._store.head(key))
        return found

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        found: Sequence[ObjectInfo] = await self._call(
            lambda: self._store.list(prefix, start_after=start_after, limit=limit)
        )
        return found

    async def get_stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        await self._call(at_once_nothing)
        async with aclosing(self._store.get_stream(key, start=start, length=length)) as found:
            async for piece in found:
                yield piece

    async def delete(self, keys: Sequence[str]) -> None:
        await self._call(lambda: self._store.delete(keys))


async def at_once_nothing() -> None:
    """Done."""


@dataclass
class Vehicle:
    """One life of an edge: its store opened on a flash, and a shipper on the cloud's bucket."""

    cloud: Cloud
    flash: Files
    settings: UploadSettings = QUICK
    seed: int = 1
    edge: str = EDGE
    clock: Clock | None = None
    line: Line = field(init=False)

    def __post_init__(self) -> None:
        rng = SeededRng(self.seed)
        clock = self.clock or self.cloud.clock
        self.line = Line(MemoryObjectStore(Process(self.cloud.world, self.edge), self.cloud.bucket))
        self.key: Ed25519PrivateKey = edge_key(self.flash)
        self.store = EdgeStore(self.flash, self.edge, rng, segment_bytes=2_000)
        self.database = EdgeDatabase(self.store, clock=clock, worker=at_once)
        self.shipper = Shipper(self.database, self.line, self.key, self.settings, clock=clock, rng=rng)  # type: ignore[arg-type]

    async def ship_all(self, importer: Callable[[], Any], turns_max: int = 200) -> None:
        """Turns of both sides until the cloud has every file, or has refused it."""
        for _ in range(turns_max):
            await self.shipper.turn()
            await importer()
            self.cloud.clock.now_ms += 20_000  # no pause is longer than this
            if not self.store.outbox.unshipped() and not self.store.outbox.state.open:
                return
        raise AssertionError(f"not done after {turns_max} turns: {self.shipper.counters}")


async def opened_cloud(cloud: Cloud) -> Manifest:
    """The database, owned, without tables: edges bring theirs."""
    manifest = await cloud.manifest()
    await manifest.commit_one(lambda state: database_owned(1, "cloud"))
    return manifest


def importing(cloud: Cloud, manifest: Manifest, *vehicles: Vehicle, check: Check = Check.CHECKSUM) -> Callable[[], Any]:
    """A turn of a fresh importer that trusts these vehicles."""
    edges = []
    for vehicle in vehicles:
        edge = Edge(cloud, vehicle.edge)
        edge.key = vehicle.key
        edges.append(edge)
    settings = ImportSettings(Policy(check), create_tables=True)
    return cloud.importer(manifest, *edges, settings=settings).turn


async def importing_over(cloud: Cloud, line: Line, vehicle: Vehicle) -> Callable[[], Any]:
    """A turn of an importer that reaches the bucket over `line`, its manifest as well."""
    over: ObjectStore = line  # type: ignore[assignment]
    manifest = Manifest(over, DATABASE, Writer("dying", cloud.rng.token()), clock=cloud.clock, rng=cloud.rng)
    await manifest.open()
    trust = {vehicle.edge: vehicle.key.public_key()}
    settings = ImportSettings(create_tables=True)
    return Importer(manifest, over, trust, clock=cloud.clock, rng=cloud.rng, settings=settings).turn


def batches_of(cloud: Cloud, vehicle: Vehicle) -> dict[int, list[str]]:
    """The ids that each of the vehicle's batches in the bucket names."""
    prefix, _ = numbered_prefixes(DATABASE, vehicle.edge)
    found = {}
    for key, data in cloud.bucket.objects.items():
        if key.startswith(prefix):
            number = int(key.removeprefix(prefix))
            batch = opened(data, vehicle.key.public_key(), DATABASE, vehicle.edge, number)
            found[number] = [meta.file_id for meta in batch.files]
    return found


def in_cloud(cloud: Cloud, manifest: Manifest, table: str, column: str = "n") -> list[int]:
    """All values of a column that files of the manifest have, each as often as it is there."""
    there = manifest.state.tables.get(table)
    found: list[int] = []
    for meta in there.files.values() if there is not None else ():
        data = cloud.bucket.objects[f"{DATABASE}/sst/{table}/{meta.file_id}.parquet"]
        found += pq.read_table(io.BytesIO(data)).column(column).to_pylist()
    return sorted(found)


def last_written(cloud: Cloud, manifest: Manifest, table: str) -> int | None:
    """Of a table whose rows all have one time: the value that a reader shows, of the file with the greatest sequence;
    two of one sequence would be a coin's toss."""
    there = manifest.state.tables.get(table)
    if there is None or not there.files:
        return None
    files = sorted(there.files.values(), key=lambda meta: meta.sequence)
    assert len(files) == 1 or files[-1].sequence > files[-2].sequence, "which of two files is the later is not said"
    data = cloud.bucket.objects[f"{DATABASE}/sst/{table}/{files[-1].file_id}.parquet"]
    found: int = pq.read_table(io.BytesIO(data)).column("n").to_pylist()[-1]
    return found
