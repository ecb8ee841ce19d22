"""Who is sent where in a fetch (KIP-392), by requests of kio's schema over one broker in memory: the leader's advice,
the answers of the broker in the consumer's zone, and that nobody is sent to and fro.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kio import index

from dataplane.broker.engine import BrokerView, KafkaError, PartitionView
from dataplane.broker.handlers.fetch import Fetch
from dataplane.broker.handlers.zone_reads import BACK_AT_ONCE_MS, BARRED_MS, SENT_MAX, WORTH_BYTES, Sent
from dataplane.broker.wire_fetch import FetchAnswer, FetchedPartition
from dataplane.broker.zones import ZoneReaders
from providers.base.clock import LoopClock, SeededRng
from tests.sim.virtualtime import run

SCHEMA: Any = index.load_request_schema(1, 12)
KINDS = __import__(SCHEMA.__module__, fromlist=["FetchTopic"])
BROKERS = [BrokerView(1, "h", 1, "a"), BrokerView(2, "h", 2, "b"), BrokerView(3, "h", 3, "b")]
OUT_OF_RANGE, NOT_LEADER, STORAGE, FENCED, AHEAD, NOT_AVAILABLE = 1, 6, 56, 74, 75, 78


@dataclass
class Stored:
    """What object storage has of partition t-5, as one broker's ledger tells it; after a look into the ledger, what
    `newer` makes of it."""

    stream: int = 5
    leader_epoch: int = 4
    start_offset: int = 10
    uploaded: int = 100
    bytes: int = WORTH_BYTES
    newer: Callable[[Stored], None] = lambda stored: None
    refused: int = 0
    refreshed: int = 0

    @property
    def high_watermark(self) -> int:
        return self.uploaded

    def end(self, offset: int) -> int:
        return max(offset, self.uploaded)

    async def stable_end(self, offset: int) -> int:
        return max(offset, self.uploaded - 20)

    async def read(self, offset: int, bytes_max: int, end: int, *, minimum_one: bool) -> bytes:
        if self.refused:
            raise KafkaError(self.refused, "refused")
        return b"r" * min(end - offset, bytes_max)

    async def bytes_ahead(self, offset: int, enough: int) -> int:
        return min(self.bytes, enough)

    async def refresh(self) -> None:
        self.refreshed += 1
        self.newer(self)


class ColdLog:
    """At the leader, whose memory begins at 150."""

    leader_epoch, start_offset, high_watermark, last_stable_offset = 4, 10, 200, 200

    def read_cached(self, offset: int, *_: Any, **__: Any) -> list[bytes] | None:
        return [b"m"] * (200 - offset) if offset >= 150 else None

    async def read(self, offset: int, *_: Any, **__: Any) -> bytes:
        return b"c"

    def watch(self, wake: Any) -> None: ...
    def unwatch(self, wake: Any) -> None: ...


@dataclass
class Engine:
    """Broker `node_id`; broker 1 leads."""

    node_id: int
    stored: Stored = field(default_factory=Stored)
    zone_reads: bool = True
    leads: int | None = 1

    @property
    def zone(self) -> str:
        return next(b.rack for b in BROKERS if b.node_id == self.node_id)

    def brokers(self) -> list[BrokerView]:
        return BROKERS

    def leader(self, topic: str, partition: int) -> tuple[BrokerView, int] | None:
        return None if self.leads is None else (BROKERS[self.leads - 1], self.stored.leader_epoch)

    def replica(self, topic: str, partition: int) -> Stored:
        return self.stored

    def partition(self, topic: str, partition: int) -> ColdLog:
        if self.leads != self.node_id:
            raise KafkaError(NOT_LEADER, "elsewhere")
        return ColdLog()


class Asks:
    """A consumer with a connection to one broker."""

    def __init__(self, engine: Engine) -> None:
        self.fetch = Fetch(engine, LoopClock(), SeededRng(1))  # type: ignore[arg-type]
        self.sent = Sent()

    async def at(self, offset: int, rack: str = "b", epoch: int = -1, bytes_max: int = 1_000) -> FetchedPartition:
        part = KINDS.FetchPartition(
            partition=5, fetch_offset=offset, partition_max_bytes=bytes_max, current_leader_epoch=epoch
        )
        request = SCHEMA(
            max_wait=datetime.timedelta(milliseconds=500),
            min_bytes=1,
            topics=(KINDS.FetchTopic(topic="t", partitions=(part,)),),
            forgotten_topics_data=(),
            rack_id=rack,
        )
        found = self.fetch.begin(request, None, self.sent)
        answer = found if isinstance(found, FetchAnswer) else await found
        [(_, [one])] = answer.topics
        return one


def advice(part: FetchedPartition) -> tuple[int, int, int]:
    return part.error_code, part.size, part.read_replica


def test_the_leader_sends_away_who_is_elsewhere_and_far_behind_and_nobody_else() -> None:
    async def main() -> None:
        reader = ZoneReaders(BROKERS).reader("b", 5)
        assert reader in (2, 3)
        assert advice(await Asks(Engine(1)).at(20)) == (0, 0, reader)
        assert advice(await Asks(Engine(1)).at(150)) == (0, 50, -1), "it is in memory"
        for rack in ("a", "", "nowhere"):
            assert advice(await Asks(Engine(1)).at(20, rack)) == (0, 1, -1)
        assert advice(await Asks(Engine(1, Stored(bytes=WORTH_BYTES - 1))).at(20)) == (0, 1, -1), "not worth it"
        assert advice(await Asks(Engine(1, zone_reads=False)).at(20)) == (0, 1, -1)

    run(main())


def test_who_comes_back_at_once_is_served_and_not_sent_again_for_a_while() -> None:
    async def main() -> None:
        asks = Asks(Engine(1))
        assert (await asks.at(20)).read_replica > 0
        assert advice(await asks.at(20)) == (0, 1, -1)
        assert advice(await asks.at(30)) == (0, 1, -1), "wherever it is now"
        assert (await Asks(Engine(1)).at(20)).read_replica > 0, "another consumer is"
        await asyncio.sleep(BARRED_MS / 1000)
        assert (await asks.at(30)).read_replica > 0
        assert (await asks.at(90)).read_replica > 0, "it has read on there"
        await asyncio.sleep(BACK_AT_ONCE_MS / 1000)
        assert (await asks.at(90)).read_replica > 0, "that was long ago"

    run(main())


def test_what_a_connection_is_remembered_for_is_bounded() -> None:
    sent = Sent()
    for number in range(SENT_MAX + 10):
        sent.send(("t", number), 0, 0.0)
        assert len(sent.at) + len(sent.barred_until_ms) <= SENT_MAX


def test_the_broker_in_the_zone_reads_to_the_end_of_what_is_stored_and_names_the_leader_there() -> None:
    async def main() -> None:
        asks = Asks(Engine(2))
        part = await asks.at(20)
        assert advice(part) == (0, 80, -1)
        assert (part.high_watermark, part.last_stable_offset, part.log_start_offset) == (100, 100, 10)
        assert advice(await asks.at(20, bytes_max=30)) == (0, 30, -1)
        for offset in (100, 130, 9_999):
            part = await asks.at(offset)
            assert advice(part) == (0, 0, 1), "whether there is more, the leader knows"
        assert advice(await Asks(Engine(2)).at(9)) == (OUT_OF_RANGE, 0, -1)

    run(main())


def test_it_looks_into_the_ledger_before_it_sends_anybody_back() -> None:
    async def main() -> None:
        def more(stored: Stored) -> None:
            stored.uploaded, stored.leader_epoch = 120, 5

        stored = Stored(newer=more)
        assert advice(await Asks(Engine(2, stored)).at(100, epoch=5)) == (0, 20, -1)
        assert stored.refreshed == 1
        assert advice(await Asks(Engine(2, stored)).at(20, epoch=5)) == (0, 100, -1)
        assert stored.refreshed == 1, "not for what it has"

    run(main())


def test_leader_epochs_are_compared_as_kafkas_followers_do() -> None:
    async def main() -> None:
        stale = await Asks(Engine(2)).at(20, epoch=3)
        assert advice(stale) == (FENCED, 0, -1)
        assert stale.leader is not None and (stale.leader.node, stale.leader.epoch) == (1, 4)
        assert advice(await Asks(Engine(2)).at(20, epoch=5)) == (AHEAD, 0, -1)

    run(main())


def test_only_consumers_of_its_own_zone_are_read_for() -> None:
    async def main() -> None:
        for rack in ("a", "", "c"):
            part = await Asks(Engine(2)).at(20, rack)
            assert advice(part) == (NOT_LEADER, 0, -1)
            assert part.leader is not None and part.leader.node == 1
        assert advice(await Asks(Engine(2, zone_reads=False)).at(20)) == (NOT_LEADER, 0, -1)

    run(main())


def test_while_nobody_leads_what_is_stored_is_read_all_the_same() -> None:
    async def main() -> None:
        asks = Asks(Engine(2, leads=None))
        assert advice(await asks.at(20)) == (0, 80, -1)
        assert advice(await asks.at(100)) == (NOT_AVAILABLE, 0, -1)

    run(main())


def test_an_object_that_cannot_be_read_is_an_error_and_no_end() -> None:
    async def main() -> None:
        assert advice(await Asks(Engine(2, Stored(refused=STORAGE))).at(20)) == (STORAGE, 0, -1)

    run(main())


def test_replicas_are_the_leader_and_one_broker_in_each_other_zone() -> None:
    readers = ZoneReaders([*BROKERS, BrokerView(4, "h", 4, "c"), BrokerView(5, "h", 5, "")])
    assert readers.replicas(PartitionView(0, 6, 1, 1)) == (1, 2, 4)
    assert readers.replicas(PartitionView(0, 7, 1, 1)) == (1, 3, 4)
    assert readers.replicas(PartitionView(0, 7, 2, 1)) == (2, 1, 4)
    assert readers.replicas(PartitionView(0, 7, None, 1)) == ()
    assert ZoneReaders(()).replicas(PartitionView(0, 7, 2, 1)) == (2,)
    assert all(readers.reader("b", s) in readers.replicas(PartitionView(0, s, 1, 1)) for s in range(20))
