"""Promises of the way through a topic: each record's rows once, whoever dies and whatever answer is lost; a reason for
every record that is passed over. Judged by DuckDB over the files that a fresh manifest names."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import (
    files_replaced,
    orphans_condemned,
    table_created,
    table_dropped,
)
from dataplane.tsdb.cloud.topics import TopicImporter, TopicSettings
from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.schema.records import RECORD, ROWS, TABLE, Record, rows_record, sst_record
from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions, TableSchema, with_columns
from providers.base.errors import Corrupt, Unavailable
from providers.memory.faults import Faults
from tests.dataplane.tsdb.cloud_import.bucket import AT_ONCE, CAN, DATABASE, NOW_MS, Cloud, Edge

LOG = replace(CAN, options=TableOptions(append_mode=True))
"""Appends: a row that comes twice is there twice."""


@dataclass
class Topic:
    """A partition in memory, with gaps as transactions leave them."""

    records: list[Record] = field(default_factory=list)
    start: int = 0

    def add(self, headers: dict[str, bytes], value: bytes, gap: int = 0) -> int:
        offset = (self.records[-1].offset + 1 if self.records else 0) + gap
        self.records.append(Record(offset, headers, value))
        return offset

    async def read(self, offset: int, *, bytes_max: int) -> Sequence[Record]:
        await asyncio.sleep(0)
        if offset < self.start:
            raise Corrupt("gone")
        return [record for record in self.records if record.offset >= offset][:3]


def points(values: Sequence[int], vehicle: str = "car-1") -> pa.Table:
    return pa.table(
        {
            "vehicle": [vehicle] * len(values),
            "ts": pa.array([NOW_MS - 60_000 + v for v in values], pa.timestamp("ms")),
            "speed": pa.array([float(v) for v in values], pa.float32()),
        }
    )


def consumer(
    cloud: Cloud, manifest: Manifest, topic: Topic, *edges: Edge, name: str = "cloud", linger_ms: float = 0
) -> TopicImporter:
    return TopicImporter(
        manifest,
        cloud.store(name),
        topic,
        topic="points",
        partition=0,
        node=name,
        trust={edge.name: edge.key.public_key() for edge in edges},
        clock=cloud.clock,
        rng=cloud.rng,
        settings=TopicSettings(linger_ms=linger_ms),
    )


async def speeds(cloud: Cloud) -> Counter[float]:
    """All values of the table, by how often they are there."""
    reader = await cloud.manifest("judge")
    found: Counter[float] = Counter()
    for meta in reader.state.tables["can"].files.values():
        rows = pq.read_table(io.BytesIO(cloud.bucket.objects[sst_key(DATABASE, "can", meta.file_id)]))
        found.update(value for (value,) in duckdb.from_arrow(rows).select("speed").fetchall())
    return found


def once(values: Sequence[int]) -> Counter[float]:
    return Counter(float(v) for v in values)


def test_rows_and_the_offset_behind_them_are_one_entry() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        manifest = await cloud.owned(LOG)
        for at in range(7):
            topic.add(*rows_record("can", points([2 * at, 2 * at + 1])), gap=at % 3)
        before = manifest.seq
        assert await consumer(cloud, manifest, topic, linger_ms=500).turn() == 7
        assert manifest.seq == before + 1
        assert manifest.state.consumed == {"points/0": topic.records[-1].offset + 1}
        assert await speeds(cloud) == once(range(14))
        topic.add(*rows_record("can", points([14])))
        later = consumer(cloud, await cloud.manifest("later"), topic, name="later")
        assert await later.turn() == 1 and await later.turn() == 0
        assert await speeds(cloud) == once(range(15))

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(8))
def test_consumers_that_race_die_and_lose_answers_take_each_row_once(seed: int) -> None:
    async def main() -> None:
        cloud, topic, chance = Cloud(seed), Topic(), random.Random(seed)
        edge = Edge(cloud)
        manifest = await cloud.owned(LOG)
        total = 0
        for _ in range(40):
            values = list(range(total, total + chance.randrange(1, 5)))
            total += len(values)
            topic.add(*rows_record("can", points(values)), gap=chance.choice([0, 0, 2]))
        cloud.bucket.faults = Faults((0, 0), throttled=0.02, lost_response=0.03, delayed=0.01, duplicated=0.02)

        async def consume(name: str) -> None:
            opened = None
            while True:
                try:
                    opened = opened or await cloud.manifest(name)
                    mine = consumer(cloud, opened, topic, edge, name=name)
                    while mine.next <= topic.records[-1].offset:
                        task = asyncio.ensure_future(mine.turn())
                        if chance.random() < 0.3:  # killed somewhere in between
                            for _ in range(chance.randrange(40)):
                                await asyncio.sleep(0)
                            task.cancel()
                        await task
                    return
                except asyncio.CancelledError:
                    opened = None  # what it knew is gone with it
                except Unavailable:
                    continue

        await asyncio.gather(consume("a"), consume("b"))
        await cloud.world.settle()
        cloud.bucket.faults = AT_ONCE
        assert await speeds(cloud) == once(range(total))
        await manifest.poll()
        assert manifest.state.consumed == {"points/0": topic.records[-1].offset + 1}

    asyncio.run(main())


def test_rows_of_a_column_with_decimals_are_rounded() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        [vehicle, time, speed] = LOG.columns
        manifest = await cloud.owned(replace(LOG, columns=(vehicle, time, replace(speed, decimals=1))))
        rows = points([1, 2]).drop_columns(["speed"])
        topic.add(*rows_record("can", rows.append_column("speed", pa.array([0.34, 1.26], pa.float32()))))
        assert await consumer(cloud, manifest, topic).turn() == 1
        assert [float(v) for v in await speeds(cloud)] == [0.3, 1.3]

    asyncio.run(main())


def test_an_edges_file_that_is_sent_again_and_again_is_there_once() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        edge = Edge(cloud)
        manifest = await cloud.owned(LOG)
        meta, data = edge.sst(rows=10)
        record = sst_record(DATABASE, edge.name, meta, CAN, data, edge.key, NOW_MS)
        topic.add(*record)
        topic.add(*record)
        mine = consumer(cloud, manifest, topic, edge)
        assert await mine.turn() == 2
        assert cloud.bucket.objects[sst_key(DATABASE, "can", meta.file_id)] == data, "as its edge made it"
        assert await speeds(cloud) == once(range(10))
        compacted, whole = edge.sst(rows=10)
        edge.upload(compacted, whole)
        compacted = replace(compacted, sequence=1, level=1)
        await manifest.commit_one(lambda state: files_replaced(1, "can", [meta.file_id], [compacted], NOW_MS))
        topic.add(*record)
        assert await mine.turn() == 1
        assert await speeds(cloud) == once(range(10)), "nor when compaction has taken it in"
        assert manifest.state.consumed == {"points/0": 3}

    asyncio.run(main())


def test_a_file_whose_id_was_given_up_as_an_orphans_comes_in_under_another() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        edge = Edge(cloud)
        manifest = await cloud.owned(LOG)
        meta, data = edge.sst(rows=10)
        record = sst_record(DATABASE, edge.name, meta, CAN, data, edge.key, NOW_MS)
        await manifest.commit_one(lambda state: orphans_condemned(1, {meta.file_id: "can"}, NOW_MS))
        mine = consumer(cloud, manifest, topic, edge)
        for _ in range(2):
            topic.add(*record)
            assert await mine.turn() == 1
        assert mine.counters.refused == 0
        assert await speeds(cloud) == once(range(10))

    asyncio.run(main())


def test_a_flipped_bit_anywhere_in_an_edges_record_is_found_and_other_records_are_taken() -> None:
    async def main() -> None:
        cloud, topic, chance = Cloud(), Topic(), random.Random(6)
        edge = Edge(cloud)
        manifest = await cloud.owned(LOG)
        headers, value = sst_record(DATABASE, edge.name, *_signed(edge), edge.key, NOW_MS)
        flipped = [*chance.sample(range(4, len(value) - 1), 120), 0, 1, 2, 3, len(value) - 1]
        for at in flipped:
            damaged = bytearray(value)
            damaged[at] ^= 1 << chance.randrange(8)
            topic.add(headers, bytes(damaged))
        topic.add(*rows_record("can", points([1, 2, 3])))
        mine = consumer(cloud, manifest, topic, edge)
        while mine.next <= topic.records[-1].offset:
            await mine.turn()
        assert mine.counters.refused == len(flipped)
        assert await speeds(cloud) == once([1, 2, 3])

    asyncio.run(main())


def _signed(edge: Edge):  # type: ignore[no-untyped-def]
    meta, data = edge.sst(rows=10)
    return meta, CAN, data


def test_what_cannot_be_taken_is_passed_over_with_its_reason() -> None:
    newer = with_columns(CAN, (Column(0, "rpm", ColumnType.INT32),))
    stranger = replace(CAN, columns=(*CAN.columns[:2], Column(3, "speed", ColumnType.STRING)))

    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        edge, thief = Edge(cloud), Edge(cloud, "car-2")
        manifest = await cloud.owned(LOG)
        late = points([1]).set_column(1, "ts", pa.array([NOW_MS + 3 * 86_400_000], pa.timestamp("ms")))
        meta, data = edge.sst()
        odd, odd_data = edge.sst(schema=stranger, written=stranger)
        there, there_data = edge.sst(rows=4)
        topic.add(*sst_record(DATABASE, edge.name, there, CAN, there_data, edge.key, NOW_MS))
        await consumer(cloud, manifest, topic, edge).turn()
        clash, clash_data = edge.sst(rows=6)
        clash = replace(clash, file_id=there.file_id)
        taken, taken_data = edge.sst(rows=7)
        edge.upload(taken, b"something else")
        expected = {
            topic.add({}, b""): "header 'yunhe-record'",
            topic.add({RECORD: ROWS, TABLE: b"\xff"}, b""): "decode",
            topic.add(*rows_record("gps", points([1]))): "no table 'gps'",
            topic.add({RECORD: ROWS, TABLE: b"can"}, b"rubbish"): "no Arrow IPC stream",
            topic.add(*rows_record("can", points([1]).drop_columns(["ts"]))): "'ts'",
            topic.add(*rows_record("can", points([1]).append_column("rpm", pa.array([1])))): "no column 'rpm'",
            topic.add(*rows_record("can", points([1]).append_column("__op_type", pa.array([0], pa.uint8())))): "own",
            topic.add(*rows_record("can", late)): "72.0 hours ahead",
            topic.add(*sst_record(DATABASE, "car-2", meta, CAN, data, edge.key, NOW_MS)): "trusted keys",
            topic.add(*sst_record(DATABASE, edge.name, meta, CAN, data, thief.key, NOW_MS)): "not signed with",
            topic.add(*sst_record("other", edge.name, meta, CAN, data, edge.key, NOW_MS)): "lies under the name",
            topic.add(*sst_record(DATABASE, edge.name, clash, CAN, clash_data, edge.key, NOW_MS)): "other bytes",
            topic.add(*sst_record(DATABASE, edge.name, taken, CAN, taken_data, edge.key, NOW_MS)): "in the bucket",
            topic.add(*sst_record(DATABASE, edge.name, odd, stranger, odd_data, edge.key, NOW_MS)): "column 'speed'",
        }
        newer_meta, newer_data = edge.sst(rows=5, schema=newer, written=newer)
        topic.add(*sst_record(DATABASE, edge.name, newer_meta, newer, newer_data, edge.key, NOW_MS))
        mine = consumer(cloud, manifest, topic, edge, linger_ms=5_000)
        assert await mine.turn() == len(expected) + 1
        [said] = [json.loads(v) for key, v in cloud.bucket.objects.items() if "/quarantine/topic=points/0/" in key]
        assert said["refused"] == len(expected) == mine.counters.refused
        for offset, reason in expected.items():
            assert reason in said["records"][str(offset)]
        assert await speeds(cloud) == once(range(5)) + once(range(4))
        assert manifest.state.tables["can"].schema.columns == newer.columns, "a newer schema came with its file"

    asyncio.run(main())


def test_a_table_dropped_under_way_stops_nothing() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        manifest = await cloud.owned(LOG, replace(CAN, name="gps"))
        topic.add(*rows_record("can", points([1])))
        topic.add(*rows_record("gps", points([2])))
        mine = consumer(cloud, manifest, topic, linger_ms=100)
        turn = asyncio.ensure_future(mine.turn())
        other = await cloud.manifest("other")
        await other.commit_one(lambda state: table_dropped(1, "gps", NOW_MS))
        await turn
        await mine.turn()
        assert await speeds(cloud) == once([1])
        assert manifest.state.consumed == {"points/0": 2}
        await manifest.commit_one(lambda state: table_created(1, replace(CAN, name="gps")))
        assert not manifest.state.tables["gps"].files

    asyncio.run(main())


def test_records_that_the_topic_has_dropped_are_said_and_never_skipped() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic(start=1)
        manifest = await cloud.owned(LOG)
        topic.add(*rows_record("can", points([1])))
        with pytest.raises(Corrupt):
            await consumer(cloud, manifest, topic).run()
        assert manifest.state.consumed == {}

    asyncio.run(main())


def record(edge: Edge, first_ms: int = NOW_MS - 60_000, schema: TableSchema = CAN) -> tuple[dict[str, bytes], bytes]:
    meta, data = edge.sst(first_ms=first_ms, schema=schema, written=schema)
    return sst_record(DATABASE, edge.name, meta, schema, data, edge.key, NOW_MS)


def test_a_record_of_an_edge_whose_key_is_on_its_way_waits_for_it_and_a_strangers_does_not() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        manifest = await cloud.owned()
        known, late = Edge(cloud, "known"), Edge(cloud, "late")
        stranger = Edge(cloud, "stranger")
        topic.add(*record(stranger))
        topic.add(*record(known))
        topic.add(*record(late, NOW_MS - 30_000))
        trust = {"known": known.key.public_key()}
        one = consumer(cloud, manifest, topic, known)
        one._trust, one._edges = trust, {"known", "late"}
        assert await one.turn() == 2 and one.counters.refused == 1, "up to the one that waits"
        cloud.clock.now_ms += 3_600_000
        with pytest.raises(Unavailable, match="the key of edge 'late' is not known here yet"):
            await one.turn()
        trust["late"] = stranger.key.public_key()
        with pytest.raises(Unavailable, match="perhaps its new key is on its way"):
            await one.turn()
        trust["late"] = late.key.public_key()
        assert await one.turn() == 1 and one.counters.refused == 1
        trust["late"] = stranger.key.public_key()
        topic.add(*record(late, NOW_MS - 20_000))
        with pytest.raises(Unavailable):
            await one.turn()
        cloud.clock.now_ms += 60_001
        assert await one.turn() == 1 and one.counters.refused == 2, "it does not wait for ever for another key"

    asyncio.run(main())


def test_a_file_may_bring_its_table_where_that_is_allowed() -> None:
    async def main() -> None:
        cloud, topic = Cloud(), Topic()
        manifest = await cloud.owned(LOG)
        edge = Edge(cloud)
        schema = replace(CAN, name="made")
        topic.add(*record(edge, schema=schema))
        topic.add(*record(edge, NOW_MS - 30_000, schema=schema))
        refuses = consumer(cloud, manifest, topic, edge)
        refuses._settings = replace(refuses._settings, create_tables=True)
        assert await refuses.turn() == 2 and refuses.counters.refused == 0
        assert len(manifest.state.tables["made"].files) == 2
        topic.add(*record(edge, schema=replace(CAN, name="other")))
        plain = consumer(cloud, manifest, topic, edge)
        assert await plain.turn() == 1 and plain.counters.refused == 1
        assert "other" not in manifest.state.tables

    asyncio.run(main())
