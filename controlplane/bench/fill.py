"""A partition filled with records that do not compress."""

from __future__ import annotations

import os

from confluent_kafka import Producer

from providers.base.errors import Unavailable

BATCH_BYTES = 64 << 10


def fill(bootstrap: str, topic: str, size: int) -> None:
    """Produce `size` bytes to partition 0 in records that make batches of 64 KiB, and wait for every ack.

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

    for _ in range(size // len(record)):
        while True:
            try:
                producer.produce(topic, value=record, partition=0, on_delivery=done)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    left = producer.flush(120)
    if left or errors:
        raise Unavailable(f"{left} records without ack, {len(errors)} failed: {errors[:1]}")
