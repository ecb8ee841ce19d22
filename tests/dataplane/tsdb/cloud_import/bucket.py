"""A bucket in memory with a vehicle that ships into it, and cloud processes that open its database."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.ingest import Importer, ImportSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import database_owned, table_created
from dataplane.tsdb.schema.files import FileMeta, ShippedBatch, batch_key, signed, sst_key
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema
from providers.base.clock import SeededRng
from providers.base.objects import ObjectInfo
from providers.memory.faults import Faults, Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore

DATABASE = "fleet"
NOW_MS = 1_700_000_000_000
AT_ONCE = Faults(latency_ms=(0, 0))
CAN = TableSchema(
    "can",
    (
        Column(1, "vehicle", ColumnType.STRING, ColumnRole.TAG, nullable=False),
        Column(2, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        Column(3, "speed", ColumnType.FLOAT32),
    ),
)


class StillClock:
    """The wall stands still, and sleeping takes no time but the loop's next turn."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.wall = NOW_MS

    def monotonic_ms(self) -> float:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.wall

    async def sleep_ms(self, duration_ms: float) -> None:
        self.now_ms += duration_ms
        await asyncio.sleep(0)


class DatedStore(MemoryObjectStore):
    """Lists with ages, as clouds do: every object was written a month before `NOW_MS`."""

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        found = await super().list(prefix, start_after=start_after, limit=limit)
        return [replace(info, modified_ms=NOW_MS - 30 * 86_400_000) for info in found]


@dataclass
class Cloud:
    """The bucket, and a way to start processes on it."""

    seed: int = 1
    clock: StillClock = field(default_factory=StillClock)

    def __post_init__(self) -> None:
        self.rng = SeededRng(self.seed)
        self.world = World(self.clock, self.rng)
        self.bucket = MemoryBucket(self.world, "bucket", faults=AT_ONCE)

    def store(self, name: str = "cloud") -> MemoryObjectStore:
        return DatedStore(Process(self.world, name), self.bucket)

    async def manifest(self, name: str = "cloud") -> Manifest:
        manifest = Manifest(self.store(name), DATABASE, Writer(name, self.rng.token()), clock=self.clock, rng=self.rng)
        await manifest.open()
        return manifest

    async def owned(self, *tables: TableSchema) -> Manifest:
        """The database, owned by `cloud` in epoch 1, with these tables."""
        manifest = await self.manifest()
        await manifest.commit_one(lambda state: database_owned(1, "cloud"))
        for table in tables or (CAN,):
            await manifest.commit_one(lambda state, table=table: table_created(1, table))  # type: ignore[misc]
        return manifest

    def importer(
        self, manifest: Manifest, *edges: Edge, settings: ImportSettings | None = None, name: str = "cloud"
    ) -> Importer:
        trust = {edge.name: edge.key.public_key() for edge in edges}
        return Importer(
            manifest, self.store(name), trust, clock=self.clock, rng=self.rng, settings=settings or ImportSettings()
        )


@dataclass
class Edge:
    """A vehicle: it writes SSTs with pyarrow, and ships them."""

    cloud: Cloud
    name: str = "car-1"
    number: int = 1

    def __post_init__(self) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(self.name.encode()).digest())

    def sst(
        self, rows: int = 10, *, first_ms: int = NOW_MS - 60_000, schema: TableSchema = CAN, written: TableSchema = CAN
    ) -> tuple[FileMeta, bytes]:
        """A file of `written`'s columns that says it is of `schema`."""
        values: dict[str, pa.Array] = {}
        for column in written.columns:
            if column.role is ColumnRole.TAG:
                values[column.name] = pa.array([self.name] * rows, column.type.arrow)
            elif column.role is ColumnRole.TIME:
                values[column.name] = pa.array(range(first_ms, first_ms + rows), pa.int64()).cast(column.type.arrow)
            else:
                values[column.name] = pa.array([float(n) for n in range(rows)]).cast(column.type.arrow)
        fields = [pa.field(c.name, c.type.arrow, metadata={"PARQUET:field_id": str(c.id)}) for c in written.columns]
        out = io.BytesIO()
        pq.write_table(pa.table(values, schema=pa.schema(fields)), out, write_page_checksum=True, compression="zstd")
        data = out.getvalue()
        meta = FileMeta(
            self.cloud.rng.token(),
            schema.name,
            schema.fingerprint,
            rows,
            first_ms,
            first_ms + rows - 1,
            len(data),
            int.from_bytes(data[-8:-4], "little") + 8,
            hashlib.sha256(data).hexdigest(),
            self.name,
        )
        return meta, data

    def upload(self, meta: FileMeta, data: bytes) -> FileMeta:
        self.cloud.bucket.objects[sst_key(DATABASE, meta.table, meta.file_id)] = data
        return meta

    def ship(self, *files: FileMeta, schemas: Sequence[TableSchema] = (CAN,), key: Edge | None = None) -> int:
        """Sign a batch of these files, put it under the next name, and return its number."""
        number = self.number
        batch = ShippedBatch(DATABASE, self.name, number, NOW_MS, files, tuple(schemas))
        self.cloud.bucket.objects[batch_key(DATABASE, self.name, number)] = signed(batch, (key or self).key)
        self.number += 1
        return number
