"""A topic of any Kafka, written to by librdkafka, for `topic_ship.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from providers.base.errors import Invalid, Unavailable

RECORD_BYTES_MAX = 900_000
"""Kafka's brokers take 1 MiB a batch where nobody told them otherwise."""
SEND_S_MAX = 30.0
_NEVER = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_RECORD)


class KafkaSink:
    """`RecordSink`. Close it."""

    def __init__(self, config: Mapping[str, str | int | bool], topic: str) -> None:
        """`config`: librdkafka's, with `bootstrap.servers` and what security needs."""
        self._topic = topic
        self._producer = Producer(
            {
                **config,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 0,
                "message.timeout.ms": int(SEND_S_MAX * 1_000),
                "message.max.bytes": RECORD_BYTES_MAX + 65_536,
            }
        )

    async def send(self, key: bytes, headers: Mapping[str, bytes], value: bytes) -> None:
        """As the protocol's."""
        if len(value) > RECORD_BYTES_MAX:
            raise Invalid(
                f"{len(value)} bytes are more than a topic's record holds ({RECORD_BYTES_MAX})",
                hint="lower the table's memtableBytes, so that its files are smaller, or upload to the bucket",
            )
        await asyncio.to_thread(self._send, key, headers, value)

    async def close(self) -> None:
        await asyncio.to_thread(self._producer.flush, 1.0)

    def _send(self, key: bytes, headers: Mapping[str, bytes], value: bytes) -> None:
        outcome: list[KafkaError | None] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            outcome.append(error)

        try:
            self._producer.produce(self._topic, value, key=key, headers=list(headers.items()), on_delivery=delivered)
        except (KafkaException, BufferError) as error:
            raise Unavailable(f"topic {self._topic}: {error}") from error
        self._producer.flush(SEND_S_MAX + 5)
        if not outcome:
            raise Unavailable(f"topic {self._topic}: the brokers have not answered within {SEND_S_MAX:.0f} s")
        if (failed := outcome[0]) is not None:
            if failed.code() in _NEVER:
                raise Invalid(f"topic {self._topic}: {failed.str()}")
            raise Unavailable(f"topic {self._topic}: {failed.str()}")
