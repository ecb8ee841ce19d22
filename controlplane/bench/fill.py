"""Partitions filled with records that do not compress."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from confluent_kafka import Producer

from providers.base.errors import Unavailable

BATCH_BYTES = 64 << 10


def fill(bootstrap: str, topic: str, size: int, partitions: Sequence[int] = (0,)) -> int:
    """Produce `size` bytes, evenly over the partitions, in records that make batches of 64 KiB, and wait for every ack;
    how many records that were.

    Raises:
        Unavailable: a record was refused or not acked.
    """
    errors: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "batch.size": BATCH_BYTES,
            "linger.ms": 5,
            "queue.buffering.max.kbytes": 128 << 10,
            "message.timeout.ms": 120_000,
            "log_level": 0,
        }
    )
    record = os.urandom(4_000)  # noqa: TID251 -- content that does not compress; nothing depends on it

    def done(error: object, message: object) -> None:
        if error is not None:
            errors.append(str(error))

    count = size // len(record)
    for _, partition in zip(range(count), itertools.cycle(partitions), strict=False):
        while True:
            try:
                producer.produce(topic, value=record, partition=partition, on_delivery=done)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    left = producer.flush(120)
    if left or errors:
        raise Unavailable(f"{left} records without ack, {len(errors)} failed: {errors[:1]}")
    return count
