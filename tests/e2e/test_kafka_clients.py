"""Kafka clients that nobody here wrote miss nothing: librdkafka, aiokafka, kafka-python, Apache Kafka's own tools."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic as PythonNewTopic

from controlplane.bench.peers import jars
from providers.base.errors import Unavailable
from tests.running_lab import RunningLab

CLOUD = "gcp"
_names = itertools.count()


def fresh(prefix: str) -> str:
    return f"{prefix}-{next(_names)}"


@pytest.fixture
def bootstrap(lab: RunningLab) -> str:
    return lab.bootstrap(CLOUD)


def make_topic(bootstrap: str, partitions: int = 3) -> str:
    name = fresh("t")
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(name, partitions, 3)])[name].result(30)
    return name


def rdkafka_produce(bootstrap: str, topic: str, values: list[bytes], **config: object) -> None:
    errors: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, **config})
    for i, value in enumerate(values):
        producer.produce(
            topic, key=b"%d" % i, value=value, on_delivery=lambda e, _: errors.append(e) if e is not None else None
        )
        producer.poll(0)
    assert producer.flush(30) == 0 and errors == []


def rdkafka_consume(bootstrap: str, topic: str, group: str, count: int, **config: object) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", **config})
    consumer.subscribe([topic])
    found: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        for message in consumer.consume(500, timeout=0.2):
            assert message.error() is None, message.error()
            value = message.value()
            assert value is not None
            found.append(value)
    consumer.commit(asynchronous=False)
    consumer.close()
    return found


def until(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


@pytest.mark.parametrize("codec", ["none", "gzip", "lz4", "zstd", "snappy"])
def test_librdkafka_gets_back_what_it_sent_whatever_the_compression(bootstrap: str, codec: str) -> None:
    topic = make_topic(bootstrap)
    sent = [b"%s-%d" % (codec.encode(), i) for i in range(500)]
    rdkafka_produce(bootstrap, topic, sent, **{"compression.type": codec})
    assert sorted(rdkafka_consume(bootstrap, topic, fresh("g"), len(sent))) == sorted(sent)


def test_a_group_goes_on_where_it_committed_and_shares_partitions(bootstrap: str) -> None:
    topic, group = make_topic(bootstrap, 4), fresh("g")
    rdkafka_produce(bootstrap, topic, [b"first-%d" % i for i in range(200)])
    assert len(rdkafka_consume(bootstrap, topic, group, 200)) == 200
    rdkafka_produce(bootstrap, topic, [b"second-%d" % i for i in range(200)])
    again = rdkafka_consume(bootstrap, topic, group, 200)
    assert len(again) == 200 and all(v.startswith(b"second") for v in again)

    config = {"bootstrap.servers": bootstrap, "group.id": fresh("g"), "session.timeout.ms": 6_000}
    one, two = Consumer(config), Consumer(config)
    one.subscribe([topic])
    two.subscribe([topic])

    def shared() -> bool:
        one.poll(0.1)
        two.poll(0.1)
        mine, yours = {p.partition for p in one.assignment()}, {p.partition for p in two.assignment()}
        return bool(mine) and bool(yours) and mine | yours == set(range(4)) and not mine & yours

    until("two members share four partitions", shared)
    two.close()
    until("one member has them all", lambda: one.poll(0.1) is None and len(one.assignment()) == 4)
    one.close()


def test_admin_creates_lists_describes_grows_and_deletes(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topic = make_topic(bootstrap, 2)
    with pytest.raises(KafkaException) as refused:
        admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    assert "exists" in refused.value.args[0].str()
    with pytest.raises(KafkaException) as refused:
        admin.create_topics([NewTopic("odd", 1, config={"segment.bytes": "1"})])["odd"].result(30)
    assert "not honoured" in refused.value.args[0].str()
    admin.create_partitions([NewPartitions(topic, 5)])[topic].result(30)
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 5
    assert {b.rack for b in admin.describe_cluster().result(10).nodes} == {"us-central1-a", "us-central1-b"}
    admin.delete_topics([topic])[topic].result(30)
    until("the topic is gone", lambda: topic not in admin.list_topics(timeout=10).topics)


def test_retention_is_set_shown_and_taken_back_by_an_admin_client(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topic = make_topic(bootstrap, 1)

    def configured() -> tuple[str, bool]:
        [found] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
        entry = found.result(10)["retention.ms"]
        return entry.value, entry.is_read_only

    def alter(operation: AlterConfigOpType, value: str | None) -> None:
        entry = ConfigEntry("retention.ms", value, incremental_operation=operation)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        [done] = admin.incremental_alter_configs([resource]).values()
        done.result(10)

    assert configured() == ("-1", False)
    alter(AlterConfigOpType.SET, "3600000")
    until("the config is shown", lambda: configured() == ("3600000", False))
    with pytest.raises(KafkaException) as refused:
        alter(AlterConfigOpType.SET, "soon")
    assert "whole number" in refused.value.args[0].str()
    alter(AlterConfigOpType.DELETE, None)
    until("the config is gone", lambda: configured() == ("-1", False))


def test_reads_out_of_range_and_by_time_land_where_kafka_says(bootstrap: str) -> None:
    topic = make_topic(bootstrap, 1)
    rdkafka_produce(bootstrap, topic, [b"a", b"b", b"c"])
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": fresh("g"), "auto.offset.reset": "earliest"})
    assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10) == (0, 3)
    future = TopicPartition(topic, 0, int((time.time() + 3600) * 1000))
    assert consumer.offsets_for_times([future], timeout=10)[0].offset in (-1, 3)
    assert consumer.offsets_for_times([TopicPartition(topic, 0, 1)], timeout=10)[0].offset == 0
    consumer.assign([TopicPartition(topic, 0, 999)])
    message = consumer.poll(10)
    assert message is not None and message.error() is None and message.offset() == 0
    consumer.close()


def test_aiokafka_produces_and_consumes_through_a_group(bootstrap: str) -> None:
    topic = make_topic(bootstrap)

    async def main() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
        await producer.start()
        await asyncio.gather(*[await producer.send(topic, b"v%d" % i, partition=i % 3) for i in range(300)])
        await producer.stop()
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=fresh("g"), auto_offset_reset="earliest"
        )
        await consumer.start()
        found: dict[int, list[int]] = {0: [], 1: [], 2: []}
        async with asyncio.timeout(30):
            while sum(map(len, found.values())) < 300:
                for tp, messages in (await consumer.getmany(timeout_ms=500)).items():
                    found[tp.partition] += [m.offset for m in messages]
        await consumer.commit()
        await consumer.stop()
        assert all(offsets == list(range(100)) for offsets in found.values())

    asyncio.run(main())


def test_kafka_python_creates_produces_and_consumes(bootstrap: str) -> None:
    servers = bootstrap.split(",")
    topic = fresh("t")
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([PythonNewTopic(topic, 2, 1)])
    until("every broker knows the topic", lambda: topic in admin.list_topics())
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    for i in range(200):
        producer.send(topic, b"v%d" % i, partition=i % 2)
    producer.flush(30)
    producer.close()
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=fresh("g"),
        auto_offset_reset="earliest",
        consumer_timeout_ms=10_000,
    )
    found = [message.value for message in itertools.islice(consumer, 200)]
    assert sorted(found) == sorted(b"v%d" % i for i in range(200))
    consumer.commit()
    consumer.close()
    admin.delete_topics([topic])
    admin.close()


def test_committed_offsets_survive_the_coordinators_death(lab: RunningLab) -> None:
    bootstrap = lab.bootstrap(CLOUD)
    topic, group = make_topic(bootstrap, 1), fresh("g")
    rdkafka_produce(bootstrap, topic, [b"first-%d" % i for i in range(50)])
    assert len(rdkafka_consume(bootstrap, topic, group, 50)) == 50
    for broker in lab.cloud(CLOUD)["brokers"]:
        os.kill(broker["pid"], signal.SIGKILL)
    until("the brokers are back", lambda: lab.cloud(CLOUD)["state"] == "Ready")
    rdkafka_produce(bootstrap, topic, [b"second-%d" % i for i in range(50)])
    again = rdkafka_consume(bootstrap, topic, group, 50)
    assert len(again) == 50 and all(v.startswith(b"second") for v in again)


# ── what no client of good will sends ───────────────────────────────────────────────────────────────────────────────


def call(address: tuple[str, int], frame: bytes) -> bytes:
    """One framed request; b"" when the broker closes the connection instead of answering."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(frame)
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            part = connection.recv(65_536)
            if not part:
                return b""
            data += part
    return data[4:]


@pytest.mark.parametrize(
    "frame",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">i", 2**31 - 1),
        struct.pack(">i", 3) + b"abc",
        struct.pack(">ihhi", 8, 0, 9, 1),
        struct.pack(">ihhih", 10, 999, 0, 1, -1),
        struct.pack(">ihhih", 30, 3, 9, 1, -1) + b"\xff" * 20,
    ],
    ids=["http", "huge", "short", "cut", "unknown-api", "rubbish"],
)
def test_garbage_closes_its_own_connection_and_nothing_else(bootstrap: str, frame: bytes) -> None:
    host, _, port = bootstrap.split(",")[0].partition(":")
    assert call((host, int(port)), frame) == b""
    assert AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=10).brokers


def test_an_unknown_version_of_apiversions_is_told_what_is_served(bootstrap: str) -> None:
    host, _, port = bootstrap.split(",")[0].partition(":")
    answer = call((host, int(port)), struct.pack(">ihhih", 10, 18, 99, 7, -1))
    correlation, error, count = struct.unpack_from(">ihi", answer)
    assert (correlation, error) == (7, 35) and count > 20


# ── Apache Kafka's own tools ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def kafka_tools() -> Path:
    """The jars of `tools/kafka/pom.xml`, in a cache outside the tree."""
    try:
        return jars(fetch_s=110)
    except Unavailable as error:
        pytest.skip(str(error))


def java(folder: Path, tool: str, *args: str, text: str | None = None) -> str:
    done = subprocess.run(
        ["java", "-Xmx256m", "-cp", f"{folder}/*", tool, *args],
        capture_output=True,
        text=True,
        input=text,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout


def test_apache_kafkas_own_tools_create_produce_and_consume(bootstrap: str, kafka_tools: Path) -> None:
    topic = fresh("java")
    server = ("--bootstrap-server", bootstrap)
    java(kafka_tools, "org.apache.kafka.tools.TopicCommand", *server, "--create", "--topic", topic, "--partitions", "3")
    described = java(kafka_tools, "org.apache.kafka.tools.TopicCommand", *server, "--describe", "--topic", topic)
    assert "PartitionCount: 3" in described
    verified = java(
        kafka_tools,
        "org.apache.kafka.tools.VerifiableProducer",
        *server,
        *("--topic", topic, "--max-messages", "1000", "--acks", "-1"),
    )
    assert verified.count("producer_send_success") == 1000
    consumed = java(
        kafka_tools,
        "org.apache.kafka.tools.VerifiableConsumer",
        *server,
        *("--topic", topic, "--group-id", fresh("g"), "--max-messages", "1000", "--reset-policy", "earliest"),
    )
    assert '"name":"shutdown_complete"' in consumed and '"success":false' not in consumed
