"""Fetches and offsets of readers of committed records: from memory, from object storage, in sessions, while waiting.
The records are judged by aiokafka's own reader.
"""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.memory_records import MemoryRecords
from kio import index

from dataplane.broker.handlers.fetch import Fetch
from dataplane.broker.handlers.records import LATEST, Records
from dataplane.broker.node_log import NodeLog
from dataplane.broker.wire_fetch import FetchAnswer, FetchedPartition
from dataplane.stream import transactions
from providers.base.clock import LoopClock, SeededRng
from tests.dataplane.stream.test_transactions import Producing
from tests.sim.virtualtime import run

FETCH = index.load_request_schema(1, 11)
LIST = index.load_request_schema(2, 7)


class World:
    def __init__(self, bench: Producing) -> None:
        self.bench = bench
        self.fetch = Fetch(self, LoopClock(), SeededRng(1))  # type: ignore[arg-type]
        self.records = Records(self)  # type: ignore[arg-type]
        self.session, self.epoch = 0, 0

    def partition(self, topic: str, partition: int) -> NodeLog:
        return NodeLog(self.bench.partition, self)  # type: ignore[arg-type]

    async def ask(self, offset: int, wait_ms: int = 0, isolation: int = 1) -> FetchedPartition | None:
        module = FETCH.__module__
        kinds = __import__(module, fromlist=["FetchPartition", "FetchTopic"])
        part = kinds.FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=1 << 20)
        request: Any = FETCH(
            max_wait=datetime.timedelta(milliseconds=wait_ms),
            min_bytes=1,
            max_bytes=1 << 20,
            isolation_level=isolation,
            session_id=self.session,
            session_epoch=self.epoch,
            topics=(kinds.FetchTopic(topic="t", partitions=(part,)),),
            forgotten_topics_data=(),
            rack_id="",
        )
        found = self.fetch.begin(request)
        answer = found if isinstance(found, FetchAnswer) else await found
        assert answer.error_code == 0
        self.session, self.epoch = answer.session_id, self.epoch + 1
        return answer.topics[0][1][0] if answer.topics else None


def values(part: FetchedPartition | None, offset: int) -> list[bytes]:
    assert part is not None
    data = b"".join(bytes(piece) for piece in part.records)
    reader = PartitionRecords(
        TopicPartition("t", 0), MemoryRecords(data), list(part.aborted or ()), offset, None, None, True, READ_COMMITTED
    )
    return [record.value for record in reader]


def test_a_waiting_reader_is_woken_by_the_marker_and_not_before() -> None:
    async def main() -> None:
        b = Producing()
        w = World(b)
        await b.append(b"plain")
        first = await w.ask(0)
        assert values(first, 0) == [b"plain"]
        b.allow(5, 1)
        await b.write(5, 0, b"in")
        waiting = asyncio.create_task(w.ask(1, wait_ms=60_000))
        await asyncio.sleep(5)
        assert not waiting.done(), "what is not decided is not shown"
        at = asyncio.get_running_loop().time()
        await b.end(5, 1, commit=True)
        part = await waiting
        assert values(part, 1) == [b"in"] and asyncio.get_running_loop().time() - at < 0.1
        assert part is not None and (part.last_stable_offset, part.high_watermark) == (3, 3)

    run(main())


@pytest.mark.parametrize("where", ["memory", "objects"])
def test_aborted_records_are_named_wherever_they_are_read_from(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "ABORTED_KEPT", 0)

    async def main() -> None:
        b = Producing(cache_bytes=1 if where == "objects" else 1 << 20)
        w = World(b)
        for number in range(1, 6):
            b.allow(5, number)
            await b.write(5, 2 * number - 2, b"gone-%d" % number)
            await b.append(b"plain-%d" % number)
            await b.write(5, 2 * number - 1, b"gone-%d" % number)
            if where == "objects" and number in (2, 4):
                await b.uploader.upload_once()  # in the middle of a transaction
            await b.end(5, number, commit=False)
        if where == "objects":
            await b.uploader.upload_once()
            await b.append(b"last")
            assert b.partition.read_cached(0, 1 << 20, minimum_one=True) is None
        found: list[bytes] = []
        offset = 0
        while offset < 20:
            part = await w.ask(offset)
            found += values(part, offset)
            assert part is not None and part.records
            offset += max(1, len(MemoryOffsets(part)))
        assert found == [b"plain-%d" % number for number in range(1, 6)]

    run(main())


class MemoryOffsets(list[int]):
    """Offsets of a part's records, markers included."""

    def __init__(self, part: FetchedPartition) -> None:
        records = MemoryRecords(b"".join(bytes(piece) for piece in part.records))
        while (one := records.next_batch()) is not None:
            self += [record.offset for record in one]


def test_the_end_is_the_last_stable_offset_for_who_asks_so() -> None:
    async def main() -> None:
        b = Producing()
        w = World(b)
        await b.append(b"plain")
        b.allow(5, 1)
        await b.write(5, 0)
        await b.append(b"behind")
        kinds = __import__(LIST.__module__, fromlist=["ListOffsetsPartition", "ListOffsetsTopic"])

        async def end(isolation: int) -> int:
            part = kinds.ListOffsetsPartition(partition_index=0, timestamp=LATEST)
            topic = kinds.ListOffsetsTopic(name="t", partitions=(part,))
            request: Any = LIST(replica_id=-1, isolation_level=isolation, topics=(topic,))
            answer = await w.records.list_offsets(request)
            return int(answer["topics"][0]["partitions"][0]["offset"])

        assert (await end(0), await end(1)) == (3, 1)

    run(main())
