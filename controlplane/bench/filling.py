"""A backlog, made by an ordinary client: records that make batches of 64 KiB, every one of them acked."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from confluent_kafka import Producer

from providers.base.errors import Unavailable

BATCH_BYTES = 64 << 10
RECORD_BYTES = 4_000
TIMEOUT_S = 120


def fill(bootstrap: str, topic: str, partitions: Sequence[int], size: int) -> int:
    """Produce `size` bytes, evenly over the partitions; how many records that were.

    Raises:
        Unavailable: a record was not acked.
    """
    errors: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "batch.size": BATCH_BYTES,
            "linger.ms": 5,
            "queue.buffering.max.kbytes": 128 << 10,
            "message.timeout.ms": TIMEOUT_S * 1000,
            "log_level": 0,
        }
    )
    record = os.urandom(RECORD_BYTES)  # noqa: TID251 -- content that does not compress; nothing depends on it

    def done(error: object, message: object) -> None:
        if error is not None:
            errors.append(str(error))

    count = size // RECORD_BYTES
    for _, partition in zip(range(count), itertools.cycle(partitions), strict=False):
        while True:
            try:
                producer.produce(topic, value=record, partition=partition, on_delivery=done)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    left = producer.flush(TIMEOUT_S)
    if left or errors:
        raise Unavailable(f"{left} records without ack, {len(errors)} failed: {errors[:1]}")
    return count
