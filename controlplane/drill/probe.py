"""Numbered records through an ordinary Kafka client (librdkafka), and their reading back by another."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from providers.base.clock import Clock
from providers.base.errors import Unavailable

IN_FLIGHT_MAX = 50_000
"""Records waiting for their ack; while the brokers are away the probe stops adding at this bound."""
DELIVERY_TIMEOUT_MS = 60_000
READ_TIMEOUT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Ack:
    """One acked record. `at_ms`: the monotonic clock when the ack arrived."""

    partition: int
    number: int
    offset: int
    at_ms: float


def create_topic(bootstrap: str, topic: str, partitions: int) -> None:
    """Create the probe's topic, and wait until every partition has a leader.

    Raises:
        Unavailable: the brokers did not do it in time.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(timeout=30)
    except KafkaException as error:
        raise Unavailable(f"topic {topic} could not be created: {error}") from error


def leaders(bootstrap: str, topic: str) -> dict[int, int]:
    """Partition → node id of its leader, -1 while there is none."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    found = admin.list_topics(topic, timeout=10).topics[topic]
    return {p: info.leader for p, info in found.partitions.items()}


def delete_topic(bootstrap: str, topic: str) -> None:
    """Remove the probe's topic; that it cannot be done is no reason to fail a drill."""
    try:
        AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).delete_topics([topic])[topic].result(timeout=10)
    except KafkaException:
        pass


class Probe:
    """Produces at a steady pace, one record a partition a tick, from a thread of its own, until stopped."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        partitions: int,
        *,
        clock: Clock,
        ticks_a_second: int = 100,
        request_timeout_ms: int = 30_000,
    ) -> None:
        """`request_timeout_ms`: how long the client waits for a broker that keeps the connection and does not answer (a
        frozen one); librdkafka's own default."""
        self._topic = topic
        self._partitions = partitions
        self._clock = clock
        self._pause_s = 1 / ticks_a_second
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 2,
                "message.timeout.ms": DELIVERY_TIMEOUT_MS,
                "request.timeout.ms": request_timeout_ms,
                "socket.timeout.ms": max(request_timeout_ms, 1_000),
                "queue.buffering.max.messages": IN_FLIGHT_MAX * 2,
                "log_level": 0,
            }
        )
        self._lock = threading.Lock()
        self._acks: list[Ack] = []
        self._next = [0] * partitions
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._arrived = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            if len(self._producer) < IN_FLIGHT_MAX:
                for partition in range(self._partitions):
                    self._send(partition)
            self._producer.poll(0)

    def _send(self, partition: int) -> None:
        number = self._next[partition]

        def done(error: Any, message: Any) -> None:
            at_ms = self._clock.monotonic_ms()
            with self._arrived:
                if error is not None:
                    self.errors.append(f"partition {partition}, record {number}: {error}")
                else:
                    self._acks.append(Ack(partition, number, message.offset(), at_ms))
                self._arrived.notify_all()

        value = json.dumps({"n": number}).encode()
        try:
            self._producer.produce(self._topic, value=value, partition=partition, on_delivery=done)
        except (BufferError, KafkaException) as error:
            with self._lock:
                self.errors.append(f"partition {partition}: {error}")
            return
        self._next[partition] += 1

    def wait_for(self, condition: Callable[[list[Ack]], bool], timeout_ms: float) -> bool:
        """Wait until the acks so far satisfy `condition`; False when the time is over."""
        with self._arrived:
            return self._arrived.wait_for(lambda: condition(self._acks), timeout_ms / 1000)

    def stop(self) -> list[Ack]:
        """Stop producing, wait for what is under way, return every ack."""
        self._stop.set()
        self._thread.join()
        left = self._producer.flush(DELIVERY_TIMEOUT_MS / 1000)
        with self._lock:
            if left:
                self.errors.append(f"{left} records have neither ack nor error")
            return list(self._acks)


def read_back(bootstrap: str, topic: str, partitions: int, clock: Clock) -> dict[int, list[tuple[int, int]]]:
    """Every record of the topic from the beginning to the high watermarks as they are now: partition → (offset,
    number).

    Raises:
        Unavailable: they could not be read to the end in time.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"{topic}-check",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    try:
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=30)[1] for p in range(partitions)}
        consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        found: dict[int, list[tuple[int, int]]] = {p: [] for p in range(partitions)}
        missing = {p for p, end in ends.items() if end > 0}
        deadline = clock.monotonic_ms() + READ_TIMEOUT_MS
        while missing:
            if clock.monotonic_ms() > deadline:
                raise Unavailable(f"partitions {sorted(missing)} of {topic} could not be read to their ends")
            for message in consumer.consume(10_000, timeout=0.5):
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF or error.retriable():
                        continue
                    raise Unavailable(f"{topic} could not be read: {error}")
                partition, offset, value = message.partition(), message.offset(), message.value()
                assert partition is not None and offset is not None and value is not None  # no error: it is a record
                found[partition].append((offset, int(json.loads(value)["n"])))
                if offset + 1 >= ends[partition]:
                    missing.discard(partition)
        return found
    except KafkaException as error:
        raise Unavailable(f"{topic} could not be read: {error}") from error
    finally:
        consumer.close()
