"""Transactions that no client can tell from Kafka's: librdkafka, aiokafka, and Apache Kafka's own copier and tools.

What was written is judged by a reader of another kind than the writer.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as AioPartition
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tests.e2e.test_kafka_clients import CLOUD, fresh, java, kafka_tools, make_topic, rdkafka_produce, until
from tests.running_lab import RunningLab

__all__ = ["kafka_tools"]


@pytest.fixture
def bootstrap(lab: RunningLab) -> str:
    return lab.bootstrap(CLOUD)


def transactional(bootstrap: str, name: str | None = None, **config: object) -> Producer:
    return Producer({"bootstrap.servers": bootstrap, "transactional.id": name or fresh("tx"), "linger.ms": 0, **config})


def send(producer: Producer, topic: str, *values: bytes, partition: int = 0) -> None:
    errors: list[object] = []
    for value in values:
        producer.produce(
            topic, value, partition=partition, on_delivery=lambda e, _: errors.append(e) if e is not None else None
        )
    assert producer.flush(20) == 0 and errors == []


def committed(bootstrap: str, topic: str, partitions: int = 1, isolation: str = "read_committed") -> list[list[bytes]]:
    """Every value of each partition up to the end that this reader is told, by aiokafka."""

    async def main() -> list[list[bytes]]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, isolation_level=isolation, auto_offset_reset="earliest"
        )
        await consumer.start()
        everything = [AioPartition(topic, p) for p in range(partitions)]
        consumer.assign(everything)
        found: list[list[bytes]] = [[] for _ in everything]
        ends = await consumer.end_offsets(everything)
        async with asyncio.timeout(30):
            for tp in everything:
                while await consumer.position(tp) < ends[tp]:
                    for messages in (await consumer.getmany(tp, timeout_ms=200)).values():
                        found[tp.partition] += [m.value for m in messages]
        await consumer.stop()
        return found

    return asyncio.run(main())


def group_offset(bootstrap: str, group: str, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    [found] = consumer.committed([TopicPartition(topic, 0)], timeout=20)
    consumer.close()
    return int(found.offset)


def test_what_is_aborted_or_open_is_invisible_to_readers_of_committed_records(bootstrap: str) -> None:
    topic = make_topic(bootstrap, 1)
    producer = transactional(bootstrap)
    producer.init_transactions(20)
    producer.begin_transaction()
    send(producer, topic, b"gone-1", b"gone-2")
    producer.abort_transaction(20)
    producer.begin_transaction()
    send(producer, topic, b"kept-1")
    producer.commit_transaction(20)
    rdkafka_produce(bootstrap, topic, [b"plain"])
    producer.begin_transaction()
    send(producer, topic, b"open")
    until("the abort is written", lambda: committed(bootstrap, topic) == [[b"kept-1", b"plain"]])
    everything = [b"gone-1", b"gone-2", b"kept-1", b"plain", b"open"]
    assert committed(bootstrap, topic, isolation="read_uncommitted") == [everything]
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": fresh("g"), "auto.offset.reset": "earliest"})
    _, stable_end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    assert stable_end == 6, "two aborted, a marker, one kept, a marker, one plain: the open one begins here"
    consumer.close()
    producer.commit_transaction(20)
    until("the commit is written", lambda: committed(bootstrap, topic) == [[b"kept-1", b"plain", b"open"]])


def test_a_new_instance_fences_the_zombie_and_aborts_what_it_left(bootstrap: str) -> None:
    topic, name = make_topic(bootstrap, 1), fresh("tx")
    zombie = transactional(bootstrap, name)
    zombie.init_transactions(20)
    zombie.begin_transaction()
    send(zombie, topic, b"zombie")
    heir = transactional(bootstrap, name)
    heir.init_transactions(20)
    with pytest.raises(KafkaException) as refused:
        zombie.commit_transaction(20)
    assert refused.value.args[0].code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED), refused.value
    heir.begin_transaction()
    send(heir, topic, b"heir")
    heir.commit_transaction(20)
    until("the heir's record is committed", lambda: committed(bootstrap, topic) == [[b"heir"]])


def test_offsets_committed_in_a_transaction_count_when_it_is_committed(bootstrap: str) -> None:
    topic, output, group = make_topic(bootstrap, 1), make_topic(bootstrap, 1), fresh("g")
    rdkafka_produce(bootstrap, topic, [b"a", b"b"])

    async def main() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=fresh("tx"))
        await producer.start()
        where = AioPartition(topic, 0)
        async with asyncio.timeout(30):
            await producer.begin_transaction()
            await producer.send_and_wait(output, b"dropped", partition=0)
            await producer.send_offsets_to_transaction({where: 1}, group)
            assert await asyncio.to_thread(group_offset, bootstrap, group, topic) < 0
            await producer.abort_transaction()
            await producer.begin_transaction()
            await producer.send_and_wait(output, b"kept", partition=0)
            await producer.send_offsets_to_transaction({where: 2}, group)
            await producer.commit_transaction()
        await producer.stop()

    asyncio.run(main())
    until("the offset is committed", lambda: group_offset(bootstrap, group, topic) == 2)
    until("the record is committed", lambda: committed(bootstrap, output) == [[b"kept"]])


def test_a_transaction_that_takes_too_long_is_aborted_and_readers_get_on(bootstrap: str) -> None:
    topic = make_topic(bootstrap, 1)
    slow = transactional(bootstrap, **{"transaction.timeout.ms": 1_000})
    slow.init_transactions(20)
    slow.begin_transaction()
    send(slow, topic, b"slow")
    rdkafka_produce(bootstrap, topic, [b"behind"])
    assert committed(bootstrap, topic) == [[]]
    until("the slow one is aborted", lambda: committed(bootstrap, topic) == [[b"behind"]])
    with pytest.raises(KafkaException):
        slow.commit_transaction(20)


def copied(*arguments: str, count: int, silence_s: float = 30.0, lives: int = 3) -> Iterator[int]:
    """Progress of the application that copies exactly once, ended and started again where it falls silent."""
    for _ in range(lives):
        command = [sys.executable, "-m", "tests.scenario.exact_copier", *arguments, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as copier:
            said: queue.Queue[bytes] = queue.Queue()
            assert copier.stdout is not None
            reader = threading.Thread(target=hand_over, args=(copier.stdout, said), daemon=True)
            reader.start()
            try:
                while line := said.get(timeout=silence_s):
                    yield int(line)
                assert copier.wait(silence_s) == 0
                return
            except queue.Empty:
                continue
            finally:
                copier.kill()
                reader.join()
    raise AssertionError(f"the copier fell silent {lives} times")


def hand_over(lines: IO[bytes], said: queue.Queue[bytes]) -> None:
    for line in lines:
        said.put(line)
    said.put(b"")


def test_an_exactly_once_copy_is_exact_though_a_broker_is_killed(lab: RunningLab, bootstrap: str) -> None:
    inputs, output, group, count = make_topic(bootstrap, 1), make_topic(bootstrap, 2), fresh("g"), 300
    rdkafka_produce(bootstrap, inputs, [b"%d" % i for i in range(count)])
    killed = False
    for done in copied(bootstrap, inputs, output, group, fresh("tx"), count=count):
        if done >= 100 and not killed:
            killed = True
            os.kill(lab.cloud(CLOUD)["brokers"][0]["pid"], signal.SIGKILL)
    wanted = [[b"%d" % i for i in range(count) if i % 2 == p] for p in range(2)]
    until("the copy is committed", lambda: committed(bootstrap, output, 2) == wanted)
    assert group_offset(bootstrap, group, inputs) == count
    until("the broker is back", lambda: lab.cloud(CLOUD)["state"] == "Ready")


def test_apache_kafkas_own_copier_and_transaction_tool(bootstrap: str, kafka_tools: Path) -> None:
    inputs, output, group, name = make_topic(bootstrap, 1), make_topic(bootstrap, 1), fresh("g"), fresh("tx")
    values = [b"%d" % i for i in range(500)]
    rdkafka_produce(bootstrap, inputs, values)
    shown = java(
        kafka_tools,
        "org.apache.kafka.tools.TransactionalMessageCopier",
        *("--broker-list", bootstrap, "--input-topic", inputs, "--input-partition", "0", "--output-topic", output),
        *("--consumer-group", group, "--transactional-id", name, "--transaction-size", "50"),
        *("--max-messages", "500", "--enable-random-aborts", "--use-group-metadata"),
    )
    assert '"remaining":0' in shown
    until("the copy is committed", lambda: committed(bootstrap, output) == [values])
    assert group_offset(bootstrap, group, inputs) == 500
    listed = java(kafka_tools, "org.apache.kafka.tools.TransactionsCommand", "--bootstrap-server", bootstrap, "list")
    assert [line.split()[3] for line in listed.splitlines() if line.split()[0] == name] == ["CompleteCommit"], listed
