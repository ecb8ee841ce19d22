"""Client libraries that nobody here wrote: librdkafka by itself and in kcat, aiokafka, kafka-python."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import time
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.codec import has_lz4, has_snappy, has_zstd
from confluent_kafka import Consumer, Producer
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as PythonTopicPartition

from tests.judges.conftest import CONSUMER_GROUPS, SASL, TRANSACTIONS, fresh, make_topic

COUNT = 500
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
Needs = Callable[[int], None]


def values(word: str) -> list[bytes]:
    return [b"%s-%d" % (word.encode(), i) for i in range(COUNT)]


def librdkafka_reads(bootstrap: str, topic: str, count: int, **config: object) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": fresh("g"), "auto.offset.reset": "earliest", **config}
    )
    consumer.subscribe([topic])
    found: list[bytes] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found += [m.value() or b"" for m in consumer.consume(500, timeout=0.2) if m.error() is None]
    consumer.close()
    return found


# ── librdkafka ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.judge("librdkafka", "idempotent producer and a group, every compression")
def test_librdkafka(bootstrap: str) -> None:
    for codec in CODECS:
        topic = make_topic(bootstrap)
        producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "compression.type": codec, "linger.ms": 5}
        )
        for value in values(codec):
            producer.produce(topic, value)
        assert producer.flush(30) == 0
        assert sorted(librdkafka_reads(bootstrap, topic, COUNT)) == sorted(values(codec))


@pytest.mark.judge("librdkafka", "a KIP-848 group")
def test_librdkafka_consumer_groups(bootstrap: str, needs: Needs) -> None:
    needs(CONSUMER_GROUPS)
    topic = make_topic(bootstrap)
    producer = Producer({"bootstrap.servers": bootstrap})
    for value in values("848"):
        producer.produce(topic, value)
    assert producer.flush(30) == 0
    found = librdkafka_reads(bootstrap, topic, COUNT, **{"group.protocol": "consumer"})
    assert sorted(found) == sorted(values("848"))


@pytest.mark.judge("librdkafka", "transactions: what is aborted is not read")
def test_librdkafka_transactions(bootstrap: str, needs: Needs) -> None:
    needs(TRANSACTIONS)
    topic = make_topic(bootstrap, 1)
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": fresh("tx")})
    producer.init_transactions(30)
    for word, commit in (("one", True), ("two", False), ("three", True)):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(topic, b"%s-%d" % (word.encode(), i))
        producer.flush(30)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
    expected = [b"%s-%d" % (word, i) for word in (b"one", b"three") for i in range(10)]
    assert librdkafka_reads(bootstrap, topic, 20, **{"isolation.level": "read_committed"}) == expected


@pytest.mark.judge("librdkafka", "SASL")
def test_librdkafka_sasl(needs: Needs) -> None:
    needs(SASL)
    pytest.skip("this lab's listeners are plain; see tests/scenario/test_secured_cluster.py")


# ── kcat ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.judge("kcat", "list, produce, consume by offset, by group and by time, query offsets")
def test_kcat(bootstrap: str, kcat: str) -> None:
    topic = make_topic(bootstrap, 1)

    def run(*args: str, text: str | None = None) -> str:
        command = [kcat, "-b", bootstrap, *args]
        done = subprocess.run(command, capture_output=True, text=True, input=text, timeout=60, check=False)
        assert done.returncode == 0, done.stderr[-300:]
        return done.stdout

    assert "2 brokers" in run("-L") and f'topic "{topic}" with 1 partitions' in run("-L", "-t", topic)
    lines = [f"line-{i}" for i in range(100)]
    run("-P", "-t", topic, "-z", "lz4", text="\n".join(lines) + "\n")
    assert run("-C", "-t", topic, "-o", "beginning", "-e", "-q").splitlines() == lines
    assert run("-C", "-t", topic, "-o", "-10", "-e", "-q").splitlines() == lines[-10:]
    assert run("-C", "-t", topic, "-o", "s@1", "-e", "-q").splitlines() == lines
    grouped = run("-G", fresh("g"), "-X", "auto.offset.reset=earliest", "-c", "100", "-q", topic)
    assert grouped.splitlines() == lines
    assert "offset 100" in run("-Q", "-t", f"{topic}:0:-1")


# ── aiokafka ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.judge("aiokafka", "idempotent producer, a group, seek, offsets by time, compression")
def test_aiokafka(bootstrap: str) -> None:
    async def main(codec: str | None) -> None:
        topic = make_topic(bootstrap, 1)
        sent = values("aio")
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, compression_type=codec)
        await producer.start()
        await asyncio.gather(*[await producer.send(topic, value) for value in sent])
        await producer.stop()
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=fresh("g"), auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            async with asyncio.timeout(60):
                assert [(await consumer.getone()).value for _ in sent] == sent
            await consumer.commit()
            part = TopicPartition(topic, 0)
            assert await consumer.committed(part) == COUNT
            consumer.seek(part, COUNT - 3)
            assert (await consumer.getone()).value == sent[-3]
            found = await consumer.offsets_for_times({part: 1})
            assert found[part].offset == 0
            assert (await consumer.beginning_offsets([part]), await consumer.end_offsets([part])) == (
                {part: 0},
                {part: COUNT},
            )
        finally:
            await consumer.stop()

    # As many as this installation of the client has a library for.
    for codec, there in (("gzip", True), ("snappy", has_snappy()), ("lz4", has_lz4()), ("zstd", has_zstd())):
        if there:
            asyncio.run(main(codec))
    asyncio.run(main(None))


@pytest.mark.judge("aiokafka", "transactions")
def test_aiokafka_transactions(bootstrap: str, needs: Needs) -> None:
    needs(TRANSACTIONS)

    async def main() -> None:
        topic = make_topic(bootstrap, 1)
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=fresh("tx"))
        await producer.start()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"kept")
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait(topic, b"kept too")
        await producer.stop()
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=bootstrap,
            group_id=fresh("g"),
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await consumer.start()
        try:
            async with asyncio.timeout(60):
                assert [(await consumer.getone()).value for _ in range(2)] == [b"kept", b"kept too"]
        finally:
            await consumer.stop()

    asyncio.run(main())


# ── kafka-python ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.judge("kafka-python", "producer, a group, seek, offsets by time, groups by admin")
def test_kafka_python(bootstrap: str) -> None:
    servers = bootstrap.split(",")
    topic, group = make_topic(bootstrap, 1), fresh("g")
    sent = values("python")
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", compression_type="gzip")
    for value in sent:
        producer.send(topic, value)
    producer.flush(30)
    producer.close()
    consumer = KafkaConsumer(
        topic, bootstrap_servers=servers, group_id=group, auto_offset_reset="earliest", consumer_timeout_ms=30_000
    )
    assert [m.value for m in itertools.islice(consumer, COUNT)] == sent
    consumer.commit()
    part = PythonTopicPartition(topic, 0)
    assert consumer.committed(part) == COUNT
    consumer.seek(part, COUNT - 3)
    assert next(consumer).value == sent[-3]
    assert consumer.offsets_for_times({part: 1})[part].offset == 0
    consumer.close()
    admin = KafkaAdminClient(bootstrap_servers=servers)
    assert group in str(admin.list_groups() if hasattr(admin, "list_groups") else admin.list_consumer_groups())
    admin.delete_topics([topic])
    admin.close()
