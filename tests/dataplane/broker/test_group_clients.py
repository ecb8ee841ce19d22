"""Groups as clients that nobody here wrote see them, over whole brokers: librdkafka under both protocols, kafka-python,
aiokafka.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    ConsumerGroupType,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from kafka import KafkaAdminClient, KafkaConsumer

from dataplane.broker.groups import coordinator_partition
from tests.dataplane.broker.cell import Cell, cell

_names = itertools.count()
CLASSIC, CONSUMER = "classic", "consumer"


@pytest.fixture(scope="module")
def brokers() -> Iterator[Cell]:
    with cell("zone-a", "zone-b") as running:
        yield running


def admin_of(brokers: Cell) -> AdminClient:
    return AdminClient({"bootstrap.servers": brokers.bootstrap, "log_level": 0})


def make_topic(brokers: Cell, partitions: int = 6, name: str | None = None) -> str:
    name = name or f"t-{next(_names)}"
    admin = admin_of(brokers)
    admin.create_topics([NewTopic(name, partitions)])[name].result(20)
    return name


def produce(brokers: Cell, topic: str, partitions: int, count: int, start: int = 0) -> None:
    producer = Producer({"bootstrap.servers": brokers.bootstrap, "log_level": 0})
    for i in range(start, start + count):
        producer.produce(topic, b"%d" % i, partition=i % partitions)
    assert producer.flush(20) == 0


class Reader:
    """A consumer and what it read; polled by the test."""

    def __init__(self, brokers: Cell, group: str, *topics: str, protocol: str = CONSUMER, **config: object) -> None:
        self.values: list[int] = []
        self.lost = 0
        self.rebalances = 0
        self.consumer = Consumer(
            {
                "bootstrap.servers": brokers.bootstrap,
                "group.id": group,
                "group.protocol": protocol,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "log_level": 0,
                **config,
            }
        )

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self.rebalances += 1

        def lost(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self.lost += 1

        self.consumer.subscribe(list(topics), on_assign=assigned, on_lost=lost)

    @property
    def partitions(self) -> set[tuple[str, int]]:
        return {(p.topic, p.partition) for p in self.consumer.assignment()}

    def poll(self, seconds: float = 0.05) -> None:
        for message in self.consumer.consume(500, timeout=seconds):
            error = message.error()
            if error is None:
                value = message.value()
                assert value is not None
                self.values.append(int(value))
            elif error.code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.COORDINATOR_LOAD_IN_PROGRESS):
                raise KafkaException(error)

    def close(self) -> None:
        self.consumer.close()


def until(condition: Callable[[], bool], *readers: Reader, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        for reader in readers:
            reader.poll()


def shared(topic: str, count: int, *readers: Reader) -> Callable[[], bool]:
    """Each partition is one reader's, and all have the same number."""

    def holds() -> bool:
        parts = sorted(part for r in readers for part in r.partitions)
        even = len({len(r.partitions) for r in readers}) == 1
        return even and parts == [(topic, p) for p in range(count)]

    return holds


def test_members_share_read_everything_once_and_go_on_where_they_committed(brokers: Cell) -> None:
    topic, group = make_topic(brokers), f"g-{next(_names)}"
    produce(brokers, topic, 6, 300)
    one = Reader(brokers, group, topic)
    until(lambda: len(one.values) == 300, one)
    one.consumer.commit(asynchronous=False)
    two, three = Reader(brokers, group, topic), Reader(brokers, group, topic)
    until(shared(topic, 6, one, two, three), one, two, three)
    produce(brokers, topic, 6, 300, start=300)
    until(lambda: len(one.values + two.values + three.values) >= 600, one, two, three)
    assert sorted(one.values + two.values + three.values) == list(range(600)), "nothing twice"
    for reader in (one, two, three):
        reader.consumer.commit(asynchronous=False)
    two.close()
    three.close()
    until(shared(topic, 6, one), one)
    one.close()
    again = Reader(brokers, group, topic)
    produce(brokers, topic, 6, 6, start=600)
    until(lambda: bool(again.values), again)
    assert min(again.values) == 600
    again.close()


def test_a_topic_that_grows_and_a_topic_that_comes_reach_a_group(brokers: Cell) -> None:
    prefix = f"grow-{next(_names)}"
    topic = make_topic(brokers, 2, f"{prefix}-a")
    by_pattern = Reader(brokers, f"g-{next(_names)}", f"^{prefix}-.*")
    by_name = Reader(brokers, f"g-{next(_names)}", topic)
    until(lambda: len(by_pattern.partitions) == len(by_name.partitions) == 2, by_pattern, by_name)
    admin = admin_of(brokers)
    admin.create_partitions([NewPartitions(topic, 4)])[topic].result(20)
    make_topic(brokers, 2, f"{prefix}-b")
    until(lambda: (len(by_pattern.partitions), len(by_name.partitions)) == (6, 4), by_pattern, by_name)
    by_pattern.close()
    by_name.close()


def test_the_range_assignor_gives_neighbours(brokers: Cell) -> None:
    topic, group = make_topic(brokers, 4), f"g-{next(_names)}"
    readers = [Reader(brokers, group, topic, **{"group.remote.assignor": "range"}) for _ in range(2)]
    until(shared(topic, 4, *readers), *readers)
    assert {frozenset(p for _, p in r.partitions) for r in readers} == {frozenset({0, 1}), frozenset({2, 3})}
    for reader in readers:
        reader.close()


def test_members_get_partitions_whose_owners_are_in_their_zone(brokers: Cell) -> None:
    topic, group = make_topic(brokers), f"g-{next(_names)}"
    readers = {zone: Reader(brokers, group, topic, **{"client.rack": zone}) for zone in brokers.zones}
    until(shared(topic, 6, *readers.values()), *readers.values())

    def zones() -> dict[int, str]:
        [broker, *_] = brokers.brokers.values()
        racks = {b.node_id: b.rack for b in broker.engine.brokers()}
        view = broker.engine.topic(topic)
        assert view is not None
        return {p.partition: racks[p.leader] for p in view.partitions if p.leader is not None}

    owners = brokers.call(zones)
    assert sorted(owners.values()) == ["zone-a"] * 3 + ["zone-b"] * 3
    for zone, reader in readers.items():
        assert {owners[p] for _, p in reader.partitions} == {zone}
        reader.close()


def test_an_unknown_assignor_is_refused(brokers: Cell) -> None:
    reader = Reader(brokers, f"g-{next(_names)}", make_topic(brokers), **{"group.remote.assignor": "best"})
    with pytest.raises(KafkaException) as refused:
        until(lambda: False, reader, seconds=10)
    assert "assignor" in refused.value.args[0].str()
    reader.close()


@pytest.mark.parametrize("protocol", [CLASSIC, CONSUMER])
def test_a_static_member_that_restarts_gets_its_partitions_back_and_nobody_rebalances(
    brokers: Cell, protocol: str
) -> None:
    topic, group = make_topic(brokers), f"g-{next(_names)}"
    one = Reader(brokers, group, topic, protocol=protocol, **{"group.instance.id": "one"})
    two = Reader(brokers, group, topic, protocol=protocol, **{"group.instance.id": "two"})
    until(shared(topic, 6, one, two), one, two)
    had, rebalances = two.partitions, one.rebalances
    two.close()
    again = Reader(brokers, group, topic, protocol=protocol, **{"group.instance.id": "two"})
    until(lambda: again.partitions == had, one, again)
    produce(brokers, topic, 6, 60)
    until(lambda: len(one.values + again.values) == 60, one, again)
    assert one.rebalances == rebalances
    one.close()
    again.close()


def test_a_classic_static_member_that_was_replaced_hears_that_it_is_fenced(brokers: Cell) -> None:
    topic, group = make_topic(brokers), f"g-{next(_names)}"
    static = {"group.instance.id": "one", "heartbeat.interval.ms": 300}
    old = Reader(brokers, group, topic, protocol=CLASSIC, **static)
    until(lambda: len(old.partitions) == 6, old)
    new = Reader(brokers, group, topic, protocol=CLASSIC, **static)
    until(lambda: len(new.partitions) == 6, new)
    with pytest.raises(KafkaException) as fenced:
        until(lambda: False, old, seconds=15)
    assert fenced.value.args[0].code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)
    new.close()
    old.close()


def test_groups_change_their_protocol_when_they_are_empty_and_keep_their_offsets(brokers: Cell) -> None:
    topic, group = make_topic(brokers), f"g-{next(_names)}"
    for turn, protocol in enumerate([CLASSIC, CONSUMER, CLASSIC, CONSUMER]):
        produce(brokers, topic, 6, 30, start=30 * turn)
        reader = Reader(brokers, group, topic, protocol=protocol)
        until(lambda: len(reader.values) >= 30, reader)  # noqa: B023 -- called at once
        assert sorted(reader.values) == list(range(30 * turn, 30 * turn + 30))
        reader.consumer.commit(asynchronous=False)
        other = Reader(brokers, group, topic, protocol=CONSUMER if protocol == CLASSIC else CLASSIC)
        with pytest.raises(KafkaException):
            until(lambda: bool(other.partitions), other, seconds=5)  # noqa: B023
        other.close()
        reader.close()


def test_administrators_see_groups_of_both_protocols(brokers: Cell) -> None:
    topic, admin = make_topic(brokers), admin_of(brokers)
    names = {protocol: f"{protocol}-{next(_names)}" for protocol in (CLASSIC, CONSUMER)}
    readers = {p: Reader(brokers, names[p], topic, protocol=p, **{"client.id": p}) for p in names}
    until(lambda: all(len(r.partitions) == 6 for r in readers.values()), *readers.values())
    kinds = {CLASSIC: ConsumerGroupType.CLASSIC, CONSUMER: ConsumerGroupType.CONSUMER}
    for protocol, group in names.items():
        described = admin.describe_consumer_groups([group], include_authorized_operations=True)[group].result(10)
        assert (described.state, described.type) == (ConsumerGroupState.STABLE, kinds[protocol])
        [member] = described.members
        assert (member.client_id, len(member.assignment.topic_partitions)) == (protocol, 6)
        assert {operation.name for operation in described.authorized_operations} == {"READ", "DELETE", "DESCRIBE"}
        listed = admin.list_consumer_groups(types={kinds[protocol]}).result(10).valid
        assert group in {g.group_id for g in listed} and {g.type for g in listed} == {kinds[protocol]}
        stable = admin.list_consumer_groups(states={ConsumerGroupState.STABLE}).result(10).valid
        empty = admin.list_consumer_groups(states={ConsumerGroupState.EMPTY}).result(10).valid
        assert group in {g.group_id for g in stable} - {g.group_id for g in empty}
        with pytest.raises(KafkaException) as refused:
            admin.delete_consumer_groups([group])[group].result(10)
        assert refused.value.args[0].code() == KafkaError.NON_EMPTY_GROUP
    for protocol, reader in readers.items():
        reader.consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
        reader.close()
        [done] = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(names[protocol])]).values()
        assert [(p.partition, p.offset) for p in done.result(10).topic_partitions] == [(0, 1)]
        admin.delete_consumer_groups([names[protocol]])[names[protocol]].result(10)
    left = {g.group_id for g in admin.list_consumer_groups().result(10).valid}
    assert not left & set(names.values())


@pytest.mark.parametrize("protocol", [CLASSIC, CONSUMER])
def test_the_loss_of_the_coordinator_is_no_rebalance(protocol: str) -> None:
    with cell("zone-a", "zone-b", "zone-c") as brokers:
        topic, group = make_topic(brokers), f"g-{next(_names)}"
        readers = [Reader(brokers, group, topic, protocol=protocol) for _ in range(3)]
        until(shared(topic, 6, *readers), *readers)
        had, rebalances = [r.partitions for r in readers], [r.rebalances for r in readers]

        def coordinator() -> int | None:
            offsets = next(iter(brokers.brokers.values())).engine.topic("__consumer_offsets")
            assert offsets is not None
            return offsets.partitions[coordinator_partition(group, len(offsets.partitions))].leader

        lost = brokers.call(coordinator)
        assert lost is not None
        brokers.kill(lost)
        until(lambda: brokers.call(coordinator) not in (lost, None), *readers)
        produce(brokers, topic, 6, 60)
        until(lambda: len([v for r in readers for v in r.values]) >= 60, *readers)
        for reader in readers:
            reader.consumer.commit(asynchronous=False)
        assert sorted(v for r in readers for v in r.values) == list(range(60))
        assert [r.partitions for r in readers] == had
        assert ([r.rebalances for r in readers], [r.lost for r in readers]) == (rebalances, [0, 0, 0])
        for reader in readers:
            reader.close()


def sessions(brokers: Cell) -> int:
    return brokers.call(lambda: sum(len(b.server.dispatch.fetch.sessions) for b in brokers.brokers.values()))


def test_kafka_python_reads_in_sessions_and_its_admin_sees_the_group(brokers: Cell) -> None:
    topic, group = make_topic(brokers), f"g-{next(_names)}"
    produce(brokers, topic, 6, 60)
    before = sessions(brokers)
    servers = brokers.bootstrap.split(",")
    consumer = KafkaConsumer(topic, bootstrap_servers=servers, group_id=group, auto_offset_reset="earliest")
    try:
        found = [int(message.value) for message in itertools.islice(consumer, 60)]
        produce(brokers, topic, 6, 60, start=60)
        found += [int(message.value) for message in itertools.islice(consumer, 60)]
        assert sorted(found) == list(range(120)) and sessions(brokers) > before
        consumer.commit()
        admin = KafkaAdminClient(bootstrap_servers=servers)
        described = admin.describe_groups([group])[group]
        assert described["group_state"] == "Stable" and len(described["members"]) == 1
        admin.close()
    finally:
        consumer.close()


def test_aiokafka_shares_a_group_and_goes_on_where_it_committed(brokers: Cell) -> None:
    topic, group = make_topic(brokers), f"g-{next(_names)}"
    produce(brokers, topic, 6, 60)

    async def main() -> None:
        def consumer() -> AIOKafkaConsumer:
            return AIOKafkaConsumer(
                topic,
                bootstrap_servers=brokers.bootstrap,
                group_id=group,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                metadata_max_age_ms=1_000,
            )

        async def read(count: int, *readers: AIOKafkaConsumer) -> list[int]:
            found: list[int] = []
            while len(found) < count:
                for reader in readers:
                    for messages in (await reader.getmany(timeout_ms=100)).values():
                        found += [int(m.value) for m in messages if m.value is not None]
            return sorted(found)

        one = consumer()
        await one.start()
        assert await read(60, one) == list(range(60))
        await one.commit()
        two = consumer()
        await two.start()
        await asyncio.to_thread(produce, brokers, topic, 6, 60, 60)
        while len(one.assignment()) != 3 or len(two.assignment()) != 3:
            await read(0, one, two)
            await asyncio.sleep(0.05)
        assert set(await read(60, one, two)) == set(range(60, 120))
        await one.stop()
        await two.stop()

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())
