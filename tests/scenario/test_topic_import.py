"""A topic of a real cluster becomes part of a database, each record once; what a transaction aborted never does."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.kafka_source import KafkaSource
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import database_owned, table_created
from dataplane.tsdb.cloud.topics import TopicImporter, TopicSettings
from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.schema.records import rows_record
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, TableSchema
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Corrupt
from providers.memory.faults import Faults, Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from tests.running_lab import RunningLab

COUNTS = TableSchema(
    "counts",
    (
        Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        Column(2, "n", ColumnType.INT64),
    ),
    options=TableOptions(append_mode=True),
)


class Database:
    """Its bucket, in memory, and a way to open it as a fresh process does."""

    def __init__(self) -> None:
        self.clock, self.rng = SystemClock(), SeededRng(1)
        self.world = World(self.clock, self.rng)
        self.bucket = MemoryBucket(self.world, "bucket", faults=Faults(latency_ms=(0, 0)))
        self.store = MemoryObjectStore(Process(self.world, "cloud"), self.bucket)

    async def manifest(self) -> Manifest:
        manifest = Manifest(self.store, "fleet", Writer("cloud", self.rng.token()), clock=self.clock, rng=self.rng)
        await manifest.open()
        return manifest

    async def numbers(self) -> list[int]:
        manifest = await self.manifest()
        found: list[int] = []
        for meta in manifest.state.tables["counts"].files.values():
            data = self.bucket.objects[sst_key("fleet", "counts", meta.file_id)]
            found += pq.read_table(io.BytesIO(data)).column("n").to_pylist()
        return sorted(found)

    async def consume(self, bootstrap: str, topic: str, until: int, *, skip_gone: bool = False) -> int:
        """As a fresh process does, until `until` records were taken; the next offset."""
        source = KafkaSource({"bootstrap.servers": bootstrap}, topic, 0, skip_gone=skip_gone)
        consumer = TopicImporter(
            await self.manifest(),
            self.store,
            source,
            topic=topic,
            partition=0,
            node="cloud",
            trust={},
            clock=self.clock,
            rng=self.rng,
            settings=TopicSettings(linger_ms=50),
        )
        try:
            for _ in range(200):
                await consumer.turn()
                if consumer.counters.records >= until:
                    return consumer.next
        finally:
            await source.close()
        raise AssertionError(f"{consumer.counters} after 200 turns")


def send(producer: Producer, topic: str, numbers: Sequence[int]) -> None:
    for number in numbers:
        rows = pa.table({"ts": pa.array([1_700_000_000_000 + number], pa.timestamp("ms")), "n": [number]})
        headers, value = rows_record("counts", rows)
        producer.produce(topic, value, headers=list(headers.items()), partition=0)
    assert producer.flush(30) == 0


@pytest.mark.parametrize("cloud", ["gcp"])
def test_a_topic_is_taken_once_without_what_was_aborted_and_nothing_dropped_is_skipped(
    lab: RunningLab, cloud: str
) -> None:
    bootstrap, topic = lab.bootstrap(cloud), "points"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": "edge-1"})
    producer.init_transactions(30)
    for first, ends_well in ((0, True), (100, False), (200, True)):
        producer.begin_transaction()
        send(producer, topic, range(first, first + 50))
        if ends_well:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    kept = [*range(50), *range(200, 250)]

    async def main() -> None:
        database = Database()
        manifest = await database.manifest()
        await manifest.commit_one(lambda state: database_owned(1, "cloud"))
        await manifest.commit_one(lambda state: table_created(1, COUNTS))
        await database.consume(bootstrap, topic, 20)
        begun = await database.numbers()
        assert begun == kept[: len(begun)]
        then = await database.consume(bootstrap, topic, len(kept) - len(begun))
        assert await database.numbers() == kept
        # At `then` is the last transaction's marker, which is no record.
        send(Producer({"bootstrap.servers": bootstrap}), topic, range(300, 310))
        admin.delete_records([TopicPartition(topic, 0, then + 5)])[TopicPartition(topic, 0)].result(30)
        with pytest.raises(Corrupt, match="gone from the topic"):
            await database.consume(bootstrap, topic, 10)
        assert await database.numbers() == kept
        await database.consume(bootstrap, topic, 6, skip_gone=True)
        assert await database.numbers() == [*kept, *range(304, 310)]

    asyncio.run(main())
