"""One partition of a topic of any Kafka, by librdkafka, for `topics.py`: no group, offsets are the manifest's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from dataplane.tsdb.schema.records import Record
from providers.base.errors import Corrupt, Unavailable

log = logging.getLogger(__name__)

WAIT_S = 0.2
"""How long a read waits for the first record."""
RECORDS_MAX = 1_000
"""In one read."""


class KafkaSource:
    """`RecordSource`. Close it."""

    def __init__(
        self, config: Mapping[str, str | int | bool], topic: str, partition: int, *, skip_gone: bool = False
    ) -> None:
        """`config`: librdkafka's, with `bootstrap.servers` and what security needs. `skip_gone`: an operator's word
        that records which are gone from the topic are to be passed over."""
        self._topic, self._partition = topic, partition
        self._consumer = Consumer(
            {
                **config,
                "group.id": "yunhe-database",  # librdkafka wants one; nothing is committed to it
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest" if skip_gone else "error",
                "enable.partition.eof": False,
            }
        )
        self._next: int | None = None

    async def read(self, offset: int, *, bytes_max: int) -> Sequence[Record]:
        """As the protocol's."""
        return await asyncio.to_thread(self._read, offset, bytes_max)

    async def close(self) -> None:
        await asyncio.to_thread(self._consumer.close)

    def _read(self, offset: int, bytes_max: int) -> list[Record]:
        if offset != self._next:
            # A partition that nothing was consumed of begins where the topic begins: that is not a gap.
            start = OFFSET_BEGINNING if offset == 0 else offset
            self._consumer.assign([TopicPartition(self._topic, self._partition, start)])
            self._next = offset
        found: list[Record] = []
        size = 0
        try:
            # One at a time: what was fetched and not asked for stays in librdkafka's own queue, and is not lost.
            while size < bytes_max and len(found) < RECORDS_MAX:
                message = self._consumer.poll(0 if found else WAIT_S)
                if message is None:
                    break
                record = self._record(message)
                found.append(record)
                size += len(record.value)
                self._next = record.offset + 1
        except KafkaException as error:
            self._next = None
            raise Unavailable(f"{self._topic}/{self._partition}: {error.args[0].str()}") from error
        return found

    def _record(self, message: Message) -> Record:
        if (error := message.error()) is not None:
            self._next = None
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise Corrupt(
                    f"records of {self._topic}/{self._partition} are gone from the topic before they were imported: "
                    f"{error.str()}",
                    hint="keep the topic for longer than the database may be away",
                )
            raise Unavailable(f"{self._topic}/{self._partition}: {error.str()}")
        headers = {name: value for name, value in dict(message.headers() or []).items() if isinstance(value, bytes)}
        return Record(message.offset() or 0, headers, message.value() or b"")
