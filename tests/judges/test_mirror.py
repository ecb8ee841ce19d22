"""MirrorMaker 2 between us and Apache Kafka, in each direction: every record of a topic arrives, in order."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.judges.conftest import Tools, fresh, until

COUNT = 5_000
COPY_S = 150
SETTINGS = {
    "tasks.max": "1",
    "replication.factor": "1",
    "checkpoints.topic.replication.factor": "1",
    "heartbeats.topic.replication.factor": "1",
    "offset-syncs.topic.replication.factor": "1",
    "offset.storage.replication.factor": "1",
    "status.storage.replication.factor": "1",
    "config.storage.replication.factor": "1",
    "refresh.topics.interval.seconds": "3",
    "refresh.groups.interval.seconds": "3",
    "sync.topic.configs.interval.seconds": "5",
    "sync.topic.acls.enabled": "false",
    "offset-syncs.topic.location": "target",
    "source.consumer.auto.offset.reset": "earliest",
}


@contextlib.contextmanager
def mirror(tools: Tools, folder: Path, source: str, target: str, topic: str) -> Iterator[Path]:
    """MirrorMaker 2, copying a topic from one to the other; its log's path."""
    lines = {
        "clusters": "source, target",
        "source.bootstrap.servers": source,
        "target.bootstrap.servers": target,
        "source->target.enabled": "true",
        "source->target.topics": topic,
        "target->source.enabled": "false",
        "target->source.emit.heartbeats.enabled": "false",
        **SETTINGS,
    }
    config = folder / "mm2.properties"
    config.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
    log = folder / "mm2.log"
    command = tools.command("org.apache.kafka.connect.mirror.MirrorMaker", str(config))
    command[1] = "-Xmx512m"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
        try:
            yield log
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def copies(tools: Tools, folder: Path, source: str, target: str) -> None:
    topic = fresh("mirrored")
    admin = AdminClient({"bootstrap.servers": source})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    until("it is there", lambda: topic in admin.list_topics(timeout=10).topics)
    producer = Producer({"bootstrap.servers": source, "linger.ms": 20})
    for i in range(COUNT):
        producer.produce(topic, b"%d" % i, key=b"k%d" % i, partition=0)
    assert producer.flush(60) == 0
    with mirror(tools, folder, source, target, topic) as log:
        consumer = Consumer({"bootstrap.servers": target, "group.id": fresh("g"), "log_level": 0})
        consumer.assign([TopicPartition(f"source.{topic}", 0, 0)])
        found: list[bytes] = []
        deadline = time.monotonic() + COPY_S
        while len(found) < COUNT:
            found += [m.value() or b"" for m in consumer.consume(1_000, timeout=0.5) if m.error() is None]
            assert time.monotonic() < deadline, f"{len(found)} of {COUNT} records arrived: {trouble(log)}"
        consumer.close()
    assert found == [b"%d" % i for i in range(COUNT)]


def trouble(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return " / ".join([line.strip() for line in lines if "Exception" in line or "ERROR" in line][:3])[:400]


@pytest.mark.judge("MirrorMaker 2", f"from us to Apache Kafka: {COUNT} records, in order")
@pytest.mark.timeout(400)
def test_from_us_to_kafka(tools: Tools, real_kafka: str, tmp_path: Path) -> None:
    copies(tools, tmp_path, tools.bootstrap, real_kafka)


@pytest.mark.judge("MirrorMaker 2", f"from Apache Kafka to us: {COUNT} records, in order")
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("needs_compaction")
def test_from_kafka_to_us(tools: Tools, real_kafka: str, tmp_path: Path) -> None:
    copies(tools, tmp_path, real_kafka, tools.bootstrap)
