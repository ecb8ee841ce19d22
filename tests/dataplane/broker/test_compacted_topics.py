"""Compacted topics as clients see them that nobody here wrote: librdkafka, aiokafka, kafka-python, and Apache Kafka's
own console consumer.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import TIMESTAMP_CREATE_TIME as CREATE_TIME
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic
from kafka import KafkaConsumer
from kafka import TopicPartition as PythonTopicPartition

from controlplane.bench.peers import jars
from dataplane.contract.assignment import BrokerSettings
from dataplane.ledger.state import CellState, Stream
from dataplane.stream import compaction
from dataplane.stream.batch import iter_batches
from providers.base.errors import Unavailable
from tests.dataplane.broker.cell import Cell, cell

Seen = tuple[int, bytes | None, bytes | None]
"""Offset, key, value. Readers go to the end of partition 0; Apache Kafka's waits for as many records as it is told."""
QUICK = BrokerSettings(
    balance_interval_ms=0,
    upload_interval_ms=100,
    cache_bytes_max=32 << 10,
    compaction_interval_ms=150,
    orphan_interval_ms=500,
)


@pytest.fixture(scope="module")
def broker() -> Iterator[Cell]:
    patch = pytest.MonkeyPatch()
    patch.setattr(compaction, "BYTES_MIN", 1)
    patch.setattr(compaction, "FANOUT", 4)
    try:
        with cell("z", settings=QUICK) as running:
            yield running
            assert not running.brokers[1].node.failed.done()
    finally:
        patch.undo()


def until(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)


def make(broker: Cell, topic: str, **configs: str) -> None:
    named = {name.replace("_", "."): value for name, value in configs.items()}
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1, config=named)])[topic].result(30)


def produce(broker: Cell, topic: str, records: list[tuple[bytes, bytes | None]], **config: object) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, **config})
    errors: list[object] = []
    for i, (key, value) in enumerate(records):
        producer.produce(topic, key=key, value=value, on_delivery=lambda e, _: errors.append(e) if e else None)
        if i % 50 == 49:
            assert producer.flush(30) == 0
    assert producer.flush(30) == 0 and errors == []


def state_of(broker: Cell) -> CellState:
    return broker.brokers[1].node.state


def objects_of(broker: Cell) -> set[str]:
    return {name for name in list(broker.bucket.objects) if name.startswith("c/objects/")}


def stream_of(broker: Cell, topic: str) -> Stream:
    return state_of(broker).streams[state_of(broker).topics[topic].streams[0]]


def cleaned(broker: Cell, topic: str, end: int) -> None:
    until("the cleaning", lambda: stream_of(broker, topic).cleaned >= end)


def uploaded(broker: Cell, topic: str, end: int) -> None:
    until("the upload", lambda: stream_of(broker, topic).open.uploaded >= end)


def push_out(broker: Cell) -> None:
    """Fill the brokers' memory with other records, so that what is uploaded is read from objects."""
    if "filler" not in state_of(broker).topics:
        make(broker, "filler")
    produce(broker, "filler", [(b"", bytes(4_096))] * 20)


def by_librdkafka(bootstrap: str, topic: str, count: int) -> list[Seen]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "none", "enable.partition.eof": True, "check.crcs": True}
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[Seen] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error() is not None:
            assert message.error().name() == "_PARTITION_EOF", message.error()
            consumer.close()
            return found
        assert message.timestamp()[0] == CREATE_TIME and message.timestamp()[1] > 1_600_000_000_000
        found.append((message.offset(), message.key(), message.value()))
    raise AssertionError("librdkafka did not get to the end")


def by_aiokafka(bootstrap: str, topic: str, count: int) -> list[Seen]:
    async def main() -> list[Seen]:
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", check_crcs=True)
        await consumer.start()
        try:
            [partition] = consumer.assignment()
            [end] = (await consumer.end_offsets([partition])).values()
            found: list[Seen] = []
            async with asyncio.timeout(30):
                while await consumer.position(partition) < end:
                    for records in (await consumer.getmany(timeout_ms=200)).values():
                        found += [(r.offset, r.key, r.value) for r in records]
            return found
        finally:
            await consumer.stop()

    return asyncio.run(main())


def by_kafka_python(bootstrap: str, topic: str, count: int) -> list[Seen]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None)
    partition = PythonTopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    end = consumer.end_offsets([partition])[partition]
    found: list[Seen] = []
    deadline = time.monotonic() + 30
    while consumer.position(partition) < end and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=200).values():
            found += [(r.offset, r.key, r.value) for r in records]
    consumer.close()
    return found


def by_apache_kafka(bootstrap: str, topic: str, count: int) -> list[Seen]:
    try:
        folder = jars(fetch_s=110)
    except Unavailable as error:
        pytest.skip(str(error))
    prints = ["print.offset=true", "print.key=true", "key.separator=|", "null.literal=NULL"]
    done = subprocess.run(
        ["java", "-Xmx256m", "-cp", f"{folder}/*", "org.apache.kafka.tools.consumer.ConsoleConsumer"]
        + ["--bootstrap-server", bootstrap, "--topic", topic, "--from-beginning", "--timeout-ms", "30000"]
        + ["--max-messages", str(count)]
        + [part for p in prints for part in ("--property", p)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    found: list[Seen] = []
    for line in done.stdout.splitlines():
        offset, key, value = line.split("|", 2)
        found.append((int(offset.removeprefix("Offset:")), key.encode(), None if value == "NULL" else value.encode()))
    assert found, done.stdout[-500:] + done.stderr[-1_000:]
    return found


READERS = [by_librdkafka, by_aiokafka, by_kafka_python, by_apache_kafka]
EVERY_CODEC = [by_librdkafka, by_apache_kafka]
"""Readers that have lz4, snappy and zstd without further libraries."""


@pytest.fixture(scope="module", params=["none", "gzip", "snappy", "lz4", "zstd"])
def table(broker: Cell, request: pytest.FixtureRequest) -> tuple[str, dict[bytes, bytes | None], int]:
    """A cleaned topic of 1,600 records over 40 keys, some deleted; its newest values, and its end."""
    topic = f"table-{request.param}"
    make(broker, topic, cleanup_policy="compact", min_cleanable_dirty_ratio="0")
    expected: dict[bytes, bytes | None] = {}
    total = 0
    for part in range(8):
        records: list[tuple[bytes, bytes | None]] = []
        for i in range(200):
            number = part * 200 + i
            key = b"key-%d" % (number * 7 % (40 if part < 7 else 13))
            records.append((key, None if number % 11 == 0 else b"value-%d" % number))
        produce(broker, topic, records, **{"compression.type": request.param})
        expected |= dict(records)
        total += len(records)
        cleaned(broker, topic, total)
    push_out(broker)
    return topic, expected, total


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.__name__)
def test_a_consumer_of_a_cleaned_topic_ends_with_each_key_s_newest_value(
    broker: Cell, table: tuple[str, dict[bytes, bytes | None], int], reader: Callable[[str, str, int], list[Seen]]
) -> None:
    topic, expected, total = table
    if topic.split("-")[1] not in ("none", "gzip") and reader not in EVERY_CODEC:
        pytest.skip("it needs another library for this codec")
    found = reader(broker.bootstrap, topic, len(expected))
    assert {key: value for _, key, value in found} == expected
    offsets = [offset for offset, _, _ in found]
    assert offsets == sorted(set(offsets)) and offsets[-1] == total - 1
    assert len(found) == len(expected) < total / 10, "each key once: tombstones too, for a day"


def test_a_consumer_gets_on_from_every_offset_of_a_cleaned_topic(
    broker: Cell, table: tuple[str, dict[bytes, bytes | None], int]
) -> None:
    topic, _, total = table
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "none"})
    for offset in range(0, total, 97):
        consumer.assign([TopicPartition(topic, 0, offset)])
        message = consumer.poll(10)
        assert message is not None and message.error() is None and message.offset() >= offset
    consumer.close()


@pytest.mark.parametrize("reader", EVERY_CODEC, ids=lambda r: r.__name__)
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_large_batches_are_compressed_again_as_kafkas_readers_want_them(
    broker: Cell, codec: str, reader: Callable[[str, str, int], list[Seen]]
) -> None:
    topic = f"large-{codec}"
    records = [(b"key-%d" % (i % 150), (b"%d-" % i) + b"%x" % i * 600) for i in range(300)]
    if topic not in state_of(broker).topics:
        make(broker, topic, cleanup_policy="compact", min_cleanable_dirty_ratio="0")
        config = {"bootstrap.servers": broker.bootstrap, "compression.type": codec, "linger.ms": 500}
        producer = Producer({**config, "batch.size": 900_000, "enable.idempotence": True})
        for key, value in [*records[::2], *records]:
            producer.produce(topic, key=key, value=value)
        assert producer.flush(30) == 0
        cleaned(broker, topic, 450)
        push_out(broker)
    found = reader(broker.bootstrap, topic, 150)
    assert {key: value for _, key, value in found} == dict(records) and len(found) == 150
    [(header, _), *_] = iter_batches(one_object(broker, topic))
    assert header.attributes & 7 == {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}[codec]


def one_object(broker: Cell, topic: str) -> bytes:
    """The topic's batches in the last of its objects."""
    stream = stream_of(broker, topic)
    extent, reader = stream.extents[-1], broker.brokers[1].node.reader
    return b"".join(broker.run(reader.blocks(extent, stream.id, extent.start, 1 << 30)))


def committed_by_librdkafka(bootstrap: str, topic: str, isolation: str) -> list[Seen]:
    config = {"bootstrap.servers": bootstrap, "group.id": "none", "enable.partition.eof": True, "check.crcs": True}
    consumer = Consumer({**config, "isolation.level": isolation})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[Seen] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is not None and message.error() is not None:
            assert message.error().name() == "_PARTITION_EOF", message.error()
            consumer.close()
            return found
        if message is not None:
            found.append((message.offset(), message.key(), message.value()))
    raise AssertionError("librdkafka did not get to the end")


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_a_cleaned_topic_of_transactions_has_what_was_committed_and_nothing_else(broker: Cell, codec: str) -> None:
    topic = f"transactions-{codec}"
    make(broker, topic, cleanup_policy="compact", min_cleanable_dirty_ratio="0")
    config = {"bootstrap.servers": broker.bootstrap, "compression.type": codec}
    producer = Producer({**config, "transactional.id": topic})
    producer.init_transactions(30)
    expected: dict[bytes, bytes | None] = {}
    for number in range(40):
        producer.begin_transaction()
        records = [(b"key-%d" % (i * 7 % 11), b"value-%d-%d" % (number, i)) for i in range(number % 5 + 1)]
        for key, value in records:
            producer.produce(topic, key=key, value=value)
        if number % 3 == 2:
            assert producer.flush(30) == 0, "so that there is something to be left out"
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
            expected |= dict(records)
        if number % 10 == 9:
            end = stream_of(broker, topic).cleaned
            until("a cleaning", lambda end=end: stream_of(broker, topic).cleaned > end)
    # Open while it is cleaned: what comes from here on stays as it is until it is decided.
    other = Producer({**config, "transactional.id": f"{topic}-other"})
    other.init_transactions(30)
    other.begin_transaction()
    other.produce(topic, key=b"key-0", value=b"late")
    assert other.flush(30) == 0
    log = broker.call(lambda: broker.brokers[1].engine.partition(topic, 0))
    open_at, end = log.last_stable_offset, log.high_watermark
    assert open_at == end - 1
    uploaded(broker, topic, end)
    cleaned(broker, topic, open_at)
    push_out(broker)
    found = committed_by_librdkafka(broker.bootstrap, topic, "read_committed")
    assert {key: value for _, key, value in found} == expected and len(found) == len(expected)
    everything = committed_by_librdkafka(broker.bootstrap, topic, "read_uncommitted")
    assert everything == [*found, (open_at, b"key-0", b"late")], "what was aborted is gone for all"
    by_java = by_apache_kafka(broker.bootstrap, topic, len(everything))
    assert by_java == everything
    other.commit_transaction(30)
    cleaned(broker, topic, end + 1)
    push_out(broker)
    found = committed_by_librdkafka(broker.bootstrap, topic, "read_committed")
    assert {key: value for _, key, value in found} == expected | {b"key-0": b"late"}
    assert stream_of(broker, topic).cleaned == end + 1


def test_an_idempotent_producer_goes_on_over_cleanings_and_nothing_is_doubled(broker: Cell) -> None:
    topic = "one-producer"
    make(broker, topic, cleanup_policy="compact", min_cleanable_dirty_ratio="0")
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True})
    for i in range(30):
        producer.produce(topic, key=b"k", value=b"%d" % i)
        assert producer.flush(30) == 0
        if i % 10 == 9:
            cleaned(broker, topic, i + 1)
    push_out(broker)
    assert by_librdkafka(broker.bootstrap, topic, 0) == [(29, b"k", b"29")]


def test_old_objects_of_compacted_and_of_other_topics_are_replaced_and_left_to_nobody(broker: Cell) -> None:
    topic = "plain"
    make(broker, topic)
    for part in range(12):
        produce(broker, topic, [(b"k", b"%d-%d" % (part, i)) for i in range(20)])
        uploaded(broker, topic, 20 * part + 20)
    until("compaction", lambda: len(stream_of(broker, topic).extents) < 9)
    push_out(broker)
    assert [v for _, _, v in by_librdkafka(broker.bootstrap, topic, 0)] == [
        b"%d-%d" % (part, i) for part in range(12) for i in range(20)
    ]
    state = state_of(broker)
    until(
        "every object is referred to or on its way out", lambda: objects_of(broker) <= {*state.objects, *state.garbage}
    )


def test_cleanup_policy_is_set_shown_altered_and_checked(broker: Cell) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    topic = "configured"
    make(broker, topic, cleanup_policy="compact", min_compaction_lag_ms="5")

    def value(name: str) -> str:
        [found] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
        return str(found.result(10)[name].value)

    def alter(name: str, operation: AlterConfigOpType, to: str | None) -> None:
        entry = ConfigEntry(name, to, incremental_operation=operation)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        [done] = admin.incremental_alter_configs([resource]).values()
        done.result(10)

    assert (value("cleanup.policy"), value("min.compaction.lag.ms")) == ("compact", "5")
    alter("cleanup.policy", AlterConfigOpType.APPEND, "delete")
    until("both", lambda: value("cleanup.policy") == "compact,delete")
    alter("cleanup.policy", AlterConfigOpType.SUBTRACT, "compact")
    until("one", lambda: value("cleanup.policy") == "delete")
    for name, bad in (
        ("cleanup.policy", "burn"),
        ("cleanup.policy", ""),
        ("min.cleanable.dirty.ratio", "2"),
        ("min.cleanable.dirty.ratio", "nan"),
        ("delete.retention.ms", "-1"),
        ("min.compaction.lag.ms", "soon"),
    ):
        with pytest.raises(KafkaException, match="not"):
            alter(name, AlterConfigOpType.SET, bad)
    with pytest.raises(KafkaException, match="no list"):
        alter("retention.ms", AlterConfigOpType.APPEND, "5")
    assert value("cleanup.policy") == "delete" and value("min.cleanable.dirty.ratio") == "0.5"
