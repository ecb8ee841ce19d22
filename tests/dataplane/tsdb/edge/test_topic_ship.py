"""An edge whose files go into a topic, through power cuts and lost answers at every step: in the end the cloud has each
row that was durable, once, and of rows that are one the last written."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from dataplane.tsdb.cloud.manifest_commands import table_created
from dataplane.tsdb.cloud.topics import TopicImporter, TopicSettings
from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.keys import edge_key
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.edge.topic_ship import TopicShipper, TopicUploadSettings
from dataplane.tsdb.schema.tables import TableOptions
from providers.base.clock import SeededRng
from providers.base.errors import Invalid, Unavailable
from tests.dataplane.tsdb.cloud_import.bucket import DATABASE, Cloud
from tests.dataplane.tsdb.cloud_import.test_topics import Topic
from tests.dataplane.tsdb.edge.both_sides import EDGE, at_once, in_cloud, last_written, opened_cloud
from tests.dataplane.tsdb.edge.flash import Flash, PowerCut
from tests.dataplane.tsdb.edge.test_power_cut import LOGGED, rows

MERGED = replace(LOGGED, name="merged", options=TableOptions())


@dataclass
class Line:
    """The way to the topic: it loses answers and records, and power goes while it is in use."""

    topic: Topic
    dice: random.Random
    errs: float = 0.0
    cuts: float = 0.0
    bytes_max: int = 1 << 20
    sent: list[int] = field(default_factory=list)

    async def send(self, key: bytes, headers: Mapping[str, bytes], value: bytes) -> None:
        if len(value) > self.bytes_max:
            raise Invalid("it is too large")
        if self.dice.random() < self.cuts / 2:
            raise PowerCut
        if self.dice.random() < self.errs / 2:
            raise Unavailable("not sent")
        self.topic.add(dict(headers), value)
        self.sent.append(len(value))
        if self.dice.random() < self.cuts / 2:
            raise PowerCut
        if self.dice.random() < self.errs / 2:
            raise Unavailable("sent, and nobody heard")


def life(cloud: Cloud, flash: Flash, line: Line, seed: int) -> tuple[EdgeStore, TopicShipper]:
    store = EdgeStore(flash, EDGE, SeededRng(seed), segment_bytes=2_000)
    database = EdgeDatabase(store, clock=cloud.clock, worker=at_once)
    settings = TopicUploadSettings(DATABASE, interval_ms=0)
    return store, TopicShipper(database, line, edge_key(flash), settings, clock=cloud.clock, rng=SeededRng(seed))


@pytest.mark.parametrize("seed", range(12))
def test_every_durable_row_is_in_the_cloud_once_whatever_is_cut_or_lost(seed: int) -> None:
    async def main() -> None:
        cloud, flash, topic, dice = Cloud(seed), Flash(), Topic(), random.Random(seed)
        manifest = await opened_cloud(cloud)
        for schema in (LOGGED, MERGED):
            await manifest.commit_one(lambda state, schema=schema: table_created(1, schema))  # type: ignore[misc]
        line = Line(topic, dice, errs=0.2, cuts=0.15)
        tried: set[int] = set()
        durable: set[int] = set()
        cuts, number = 0, 0
        for step in range(8):
            if step == 7:
                line.errs = line.cuts = 0.0
            try:
                store, shipper = life(cloud, flash, line, seed * 100 + step)
                for schema in (LOGGED, MERGED):
                    if schema.name not in {table.name for table in store.tables}:
                        store.create_table(schema)
                for _ in range(4):
                    batch = list(range(number, number + dice.randint(1, 4)))
                    number = batch[-1] + 1
                    tried |= set(batch)
                    store.write("logged", rows(*batch))
                    store.write("merged", rows(batch[0], at=0))
                    store.sync()
                    durable |= set(batch)
                    for table in ("logged", "merged"):
                        store.flush(table)
                    try:
                        await shipper.turn()
                    except Unavailable:
                        continue
                while step == 7 and store.outbox.unshipped():
                    await shipper.turn()
            except PowerCut:
                cuts += 1
                flash.cut(dice)
        consumer = TopicImporter(
            manifest,
            cloud.store(),
            topic,
            topic="points",
            partition=0,
            node="cloud",
            trust={EDGE: edge_key(flash).public_key()},
            clock=cloud.clock,
            rng=cloud.rng,
            settings=TopicSettings(linger_ms=0),
        )
        while await consumer.turn():
            pass
        assert consumer.counters.refused == 0 and cuts
        found = in_cloud(cloud, manifest, "logged")
        assert len(found) == len(set(found)), "twice"
        assert durable <= set(found) <= tried
        assert not store.files(), "what the topic has is off the flash"
        assert last_written(cloud, manifest, "merged") == batch[0], "the later file wins, though sent in one breath"

    asyncio.run(main())


def test_a_file_that_no_record_holds_stays_on_the_flash_and_holds_up_nothing() -> None:
    async def main() -> None:
        cloud, flash, topic = Cloud(), Flash(), Topic()
        line = Line(topic, random.Random(1))
        store, shipper = life(cloud, flash, line, 1)
        store.create_table(LOGGED)
        store.write("logged", rows(*random.Random(2).sample(range(1 << 40), 3_000)))
        large = store.flush("logged")
        store.write("logged", rows(1))
        small = store.flush("logged")
        assert large is not None and small is not None
        line.bytes_max = large.size
        assert await shipper.turn() == 1 and await shipper.turn() == 0
        assert [meta.file_id for meta in store.files()] == [large.file_id]
        assert store.outbox.state.aside == {large.file_id: "it is too large"}
        assert shipper.counters.files_aside == 1

    asyncio.run(main())
