"""librdkafka reads what a dead broker had not uploaded, and what a moved partition's former owner has not, while the
bucket takes no data objects: over whole brokers, whose peers talk TCP.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from providers.base.errors import Unavailable
from providers.memory.objects import MemoryBucket
from tests.dataplane.broker.cell import UNBALANCED, Cell, cell
from tests.dataplane.broker.test_group_clients import make_topic, until

QUICK_DEATHS = dataclasses.replace(UNBALANCED, session_timeout_ms=1_000, heartbeat_interval_ms=100)
VALUE_BYTES = 60_000
COUNT = 90
"""Together more than is written before streams are handed out."""
READ_S = 15
"""From a broker's death to the last record read."""


class Tap:
    """Lets data objects into a bucket, or refuses them."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self.open = False
        self._put = bucket.put
        bucket.put = self.put  # type: ignore[method-assign]

    def put(self, key: str, data: bytes, if_absent: bool) -> None:
        if not self.open and "/objects/" in key:
            raise Unavailable("no objects are taken")
        self._put(key, data, if_absent)


@pytest.fixture
def brokers() -> Iterator[Cell]:
    with cell("zone-a", "zone-b", "zone-c", settings=QUICK_DEATHS) as running:
        yield running


def fill(brokers: Cell, topic: str, *partitions: int) -> None:
    """COUNT numbered values in each, and others of a transaction that is aborted in the middle of them."""
    producer = Producer({"bootstrap.servers": brokers.bootstrap, "log_level": 0, "batch.size": 200_000})
    aborting = Producer({"bootstrap.servers": brokers.bootstrap, "log_level": 0, "transactional.id": topic})
    aborting.init_transactions(20)
    aborting.begin_transaction()
    for i in range(COUNT):
        for partition in partitions:
            producer.produce(topic, (b"%d" % i).ljust(VALUE_BYTES), partition=partition)
            if i == COUNT // 2:
                producer.flush(20)
                aborting.produce(topic, b"-1", partition=partition)
                assert aborting.flush(20) == 0
    assert producer.flush(20) == 0
    aborting.abort_transaction(20)

    def decided() -> bool:
        ends = [brokers.brokers[n].engine.partition(topic, p).last_stable_offset for p, n in leading.items()]
        return ends == [COUNT + 2] * len(partitions)

    leading = {p: n for p, n in enumerate(leaders(brokers, topic)) if p in partitions}
    until(lambda: brokers.call(decided))


def read(brokers: Cell, topic: str, *partitions: int) -> dict[int, list[int]]:
    """All committed values, in the order in which they come; as many as there should be, or what came in time."""
    consumer = Consumer({"bootstrap.servers": brokers.bootstrap, "group.id": "g", "log_level": 0})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    values: dict[int, list[int]] = {partition: [] for partition in partitions}
    deadline = time.monotonic() + READ_S
    while any(len(v) < COUNT for v in values.values()) and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            values[message.partition() or 0].append(int(message.value() or b""))
    consumer.close()
    return values


def leaders(brokers: Cell, topic: str) -> list[int]:
    def look() -> list[int]:
        state = next(iter(brokers.brokers.values())).node.state
        return [state.streams[stream].open.node for stream in state.topics[topic].streams]

    return brokers.call(look)


def move(brokers: Cell, topic: str) -> None:
    """To the next broker, and wait until it serves it."""
    old = brokers.brokers[leaders(brokers, topic)[0]]
    new = brokers.brokers[old.node_id % 3 + 1]
    brokers.run(old.engine.move_partition(topic, 0, new.node_id))

    def serves() -> bool:
        return new.node.partitions.get(new.node.state.topics[topic].streams[0]) is not None

    until(lambda: brokers.call(serves))


def test_consumers_read_on_after_a_broker_s_death_while_the_bucket_takes_nothing(brokers: Cell) -> None:
    tap = Tap(brokers.bucket)
    topic = make_topic(brokers, 6)
    lost = leaders(brokers, topic)[0]
    parts = [p for p, node in enumerate(leaders(brokers, topic)) if node == lost]
    fill(brokers, topic, *parts)
    brokers.kill(lost)
    everything = {p: list(range(COUNT)) for p in parts}
    assert read(brokers, topic, *parts) == everything
    now = leaders(brokers, topic)
    assert len({now[p] for p in parts}) == 2, "one is read from the owner's own memory, one from the other's"
    assert not any("/objects/" in name for name in brokers.bucket.objects)
    tap.open = True
    assert read(brokers, topic, *parts) == everything


def test_consumers_read_on_after_a_move_while_the_bucket_takes_nothing(brokers: Cell) -> None:
    tap = Tap(brokers.bucket)
    topic = make_topic(brokers, 1)
    fill(brokers, topic, 0)
    for _ in range(2):
        move(brokers, topic)
    assert read(brokers, topic, 0) == {0: list(range(COUNT))}
    assert not any("/objects/" in name for name in brokers.bucket.objects)
    tap.open = True
