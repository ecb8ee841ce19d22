"""Consumers that say where they are read what is old in their own zone, and what is new from the leader (KIP-392): by
librdkafka, aiokafka and Apache Kafka's own consumer, over whole brokers. The brokers' meters tell which way it came.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka import TopicPartition as Part

from dataplane.broker.handlers.zone_reads import WORTH_BYTES, ZoneMeter
from dataplane.contract.assignment import BrokerSettings
from tests.dataplane.broker.cell import Broker, Cell, cell
from tests.dataplane.broker.test_group_clients import admin_of, make_topic, until
from tests.dataplane.broker.test_java_groups import JavaConsumer, soon, start, tools

__all__ = ["start", "tools"]  # fixtures

SMALL_CACHE = BrokerSettings(
    balance_interval_ms=0, cache_bytes_max=2 << 20, upload_interval_ms=100, compaction_interval_ms=3_600_000
)
VALUE_BYTES = 60_000
COUNT = 3 * WORTH_BYTES // VALUE_BYTES
_names = itertools.count()


@pytest.fixture(scope="module")
def brokers() -> Iterator[Cell]:
    with cell("zone-a", "zone-b", settings=SMALL_CACHE) as running:
        yield running


def leader_and_other(brokers: Cell, topic: str) -> tuple[Broker, Broker]:
    leader = admin_of(brokers).list_topics(topic, timeout=10).topics[topic].partitions[0].leader
    return brokers.brokers[leader], brokers.brokers[3 - leader]


def fill(brokers: Cell, topic: str, count: int, start: int = 0, **config: object) -> None:
    producer = Producer({"bootstrap.servers": brokers.bootstrap, "log_level": 0, "batch.size": 100_000, **config})
    for i in range(start, start + count):
        producer.produce(topic, (b"%d" % i).ljust(VALUE_BYTES), partition=0)
        if i % 50 == 0:
            producer.flush(20)
    assert producer.flush(20) == 0


def uploaded(brokers: Cell, broker: Broker, topic: str) -> int:
    def look() -> int:
        state = broker.node.state
        return state.streams[state.topics[topic].streams[0]].open.uploaded

    return brokers.call(look)


def old_topic(brokers: Cell) -> tuple[str, Broker, Broker]:
    """A topic that is wholly in object storage, its leader, and the broker in the other zone."""
    topic = make_topic(brokers, 1)
    fill(brokers, topic, COUNT)
    leader, other = leader_and_other(brokers, topic)
    until(lambda: uploaded(brokers, leader, topic) == COUNT)
    return topic, leader, other


class Metered:
    """What a broker's consumers have got since then."""

    def __init__(self, brokers: Cell, broker: Broker) -> None:
        self._brokers, self._broker = brokers, broker
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        meter: ZoneMeter = self._brokers.call(lambda: self._broker.server.dispatch.fetch.meter)
        return meter.own_bytes, meter.other_bytes

    @property
    def own(self) -> int:
        return self._now()[0] - self._before[0]

    @property
    def other(self) -> int:
        return self._now()[1] - self._before[1]


def read(brokers: Cell, topic: str, rack: str, until_value: int, **config: object) -> list[int]:
    """Values from the beginning to the one named, as librdkafka reads them."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers.bootstrap,
            "group.id": f"zones-{next(_names)}",
            "client.rack": rack,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
            **config,
        }
    )
    consumer.assign([Part(topic, 0, 0)])
    values: list[int] = []
    deadline = time.monotonic() + 60
    while not values or values[-1] < until_value:
        assert time.monotonic() < deadline, f"stands at {values[-1:]}"
        message = consumer.poll(0.2)
        if message is None:
            continue
        if message.error():
            assert message.error().code() == KafkaError._PARTITION_EOF
            assert message.offset() > until_value, "the end is the leader's to tell"
            continue
        values.append(int(message.value()))
    consumer.close()
    return values


def test_librdkafka_reads_what_is_old_in_its_zone_and_what_is_new_from_the_leader(brokers: Cell) -> None:
    topic, leader, other = old_topic(brokers)
    here, there = Metered(brokers, other), Metered(brokers, leader)
    assert read(brokers, topic, other.zone, COUNT - 1) == list(range(COUNT))
    assert here.own > 2 * WORTH_BYTES and here.other == 0
    assert there.other < WORTH_BYTES, "at most the end comes across zones"
    fill(brokers, topic, 10, start=COUNT)
    assert read(brokers, topic, other.zone, COUNT + 9) == list(range(COUNT + 10))


def test_a_consumer_in_the_leaders_zone_and_one_that_says_nothing_stay_with_the_leader(brokers: Cell) -> None:
    topic, leader, other = old_topic(brokers)
    here, there = Metered(brokers, other), Metered(brokers, leader)
    for rack in (leader.zone, "", "nowhere"):
        assert read(brokers, topic, rack, COUNT - 1) == list(range(COUNT))
    assert (here.own, here.other) == (0, 0) and there.own > 2 * WORTH_BYTES


def test_aiokafka_reads_what_is_old_in_its_zone(brokers: Cell) -> None:
    topic, _, other = old_topic(brokers)
    here = Metered(brokers, other)

    async def main() -> list[int]:
        consumer = AIOKafkaConsumer(bootstrap_servers=brokers.bootstrap, client_rack=other.zone)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(topic, 0)])
            await consumer.seek_to_beginning()
            async with asyncio.timeout(60):
                return [int((await consumer.getone()).value) for _ in range(COUNT)]
        finally:
            await consumer.stop()

    assert asyncio.run(main()) == list(range(COUNT))
    assert here.own > WORTH_BYTES


def test_javas_consumer_reads_what_is_old_in_its_zone_and_goes_on_with_what_is_new(
    brokers: Cell, start: Callable[..., JavaConsumer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    topic, leader, other = old_topic(brokers)
    here, there = Metered(brokers, other), Metered(brokers, leader)
    config = tmp_path_factory.mktemp("java") / "consumer.properties"
    config.write_text(f"client.rack={other.zone}\n")
    consumer = start(topic, f"zones-{next(_names)}", "--consumer.config", str(config))
    soon(lambda: consumer.values == list(range(COUNT)))
    assert here.own > 2 * WORTH_BYTES and there.other < WORTH_BYTES
    fill(brokers, topic, 10, start=COUNT)
    soon(lambda: consumer.values == list(range(COUNT + 10)))


def test_readers_of_committed_records_see_in_their_zone_what_they_see_at_the_leader(brokers: Cell) -> None:
    topic = make_topic(brokers, 1)
    producer = Producer({"bootstrap.servers": brokers.bootstrap, "transactional.id": f"tx-{topic}", "log_level": 0})
    producer.init_transactions(30)
    expected, number = [], 0
    for turn in range(6):
        producer.begin_transaction()
        for _ in range(COUNT // 6):
            producer.produce(topic, (b"%d" % number).ljust(VALUE_BYTES), partition=0)
            number += 1
            if number % 50 == 0:
                producer.flush(20)
        producer.flush(20)  # an abort would drop what is not sent yet
        if turn % 2:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
            expected += range(number - COUNT // 6, number)
    leader, other = leader_and_other(brokers, topic)
    until(lambda: uploaded(brokers, leader, topic) == number + 6)
    here = Metered(brokers, other)
    fill(brokers, topic, 1, start=number)
    config = {"isolation.level": "read_committed"}
    assert read(brokers, topic, other.zone, number, **config) == [*expected, number]
    assert here.own > WORTH_BYTES


def test_partitions_that_move_while_they_are_read_from_both_zones_lose_and_repeat_nothing(brokers: Cell) -> None:
    topic, leader, _ = old_topic(brokers)
    total, moves = 2 * COUNT, 6
    producer = Producer({"bootstrap.servers": brokers.bootstrap, "enable.idempotence": True, "log_level": 0})
    readers = {
        rack: Consumer(
            {
                "bootstrap.servers": brokers.bootstrap,
                "group.id": f"zones-{next(_names)}",
                "client.rack": rack,
                "fetch.error.backoff.ms": 50,
                "fetch.message.max.bytes": 500_000,
                "queued.max.messages.kbytes": 1_000,
                "log_level": 0,
            }
        )
        for rack in brokers.zones
    }
    values: dict[str, list[int]] = {rack: [] for rack in readers}
    for consumer in readers.values():
        consumer.assign([Part(topic, 0, 0)])
    sent, at, moved = COUNT, leader.node_id, 0
    deadline = time.monotonic() + 90
    while any(len(found) < total for found in values.values()):
        assert time.monotonic() < deadline, {rack: len(found) for rack, found in values.items()}
        for rack, consumer in readers.items():
            for message in consumer.consume(5, 0.02):
                assert not message.error(), message.error()
                values[rack].append(int(message.value()))
        if sent < total:
            producer.produce(topic, (b"%d" % sent).ljust(VALUE_BYTES), partition=0)
            producer.poll(0)
            sent += 1
        if moved < moves and min(map(len, values.values())) > (moved + 1) * total // (moves + 2):
            at, moved = 3 - at, moved + 1
            brokers.run(brokers.brokers[at].engine.move_partition(topic, 0, at))
    for consumer in readers.values():
        consumer.close()
    assert moved == moves
    assert all(found == list(range(total)) for found in values.values())


def test_metadata_names_a_reader_in_each_zone(brokers: Cell) -> None:
    topic = make_topic(brokers, 4)
    described = admin_of(brokers).list_topics(topic, timeout=10).topics[topic].partitions
    for part in described.values():
        assert part.replicas[0] == part.leader and sorted(part.replicas) == [1, 2] == sorted(part.isrs)
