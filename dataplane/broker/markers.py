"""The end of a transaction, written into its partitions by their owners.

A coordinator sends markers until every partition has one; a partition knows a marker that comes again by its round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError, Message
from dataplane.broker.groups import OFFSETS_TOPIC
from dataplane.broker.transaction import TopicPartition, Transaction
from dataplane.stream.transactions import Marker, encode_marker
from providers.base.clock import Clock

log = logging.getLogger(__name__)

OP = "txn-markers"
MARKERS_A_REQUEST = 500
"""Partitions of one request: it fits into a frame between brokers."""
TIMEOUT_MS = 5_000


class OffsetsEnd(Protocol):
    """Ends a transaction's part in the offsets topic (`txn_offsets.py`)."""

    async def end(self, partition: int, producer_id: int, number: int, commit: bool) -> None:
        """Durable when this returns.

        Raises:
            KafkaError: it is not.
        """
        ...


class Markers:
    """Both sides: sends markers to owners, and writes those that are sent here."""

    def __init__(self, engine: Engine, offsets: OffsetsEnd, clock: Clock) -> None:
        self._engine = engine
        self._offsets = offsets
        self._clock = clock
        engine.answer(OP, self._write)

    async def send(
        self, ended: Transaction, partitions: Iterable[TopicPartition], coordinator_epoch: int
    ) -> set[TopicPartition]:
        """Have `ended`'s marker written into `partitions`; those that have it now, or need none any more."""
        done: set[TopicPartition] = set()
        by_owner: dict[int, list[TopicPartition]] = {}
        for topic, partition in sorted(partitions):
            view = self._engine.topic(topic)
            if view is None:
                done.add((topic, partition))  # deleted: nobody will read it
            elif partition < len(view.partitions) and (leader := view.partitions[partition].leader) is not None:
                by_owner.setdefault(leader, []).append((topic, partition))
        requests = [
            self._ask(owner, ended, theirs[at : at + MARKERS_A_REQUEST], coordinator_epoch)
            for owner, theirs in by_owner.items()
            for at in range(0, len(theirs), MARKERS_A_REQUEST)
        ]
        for written in await asyncio.gather(*requests):
            done.update(written)
        return done

    async def _ask(
        self, owner: int, ended: Transaction, partitions: list[TopicPartition], coordinator_epoch: int
    ) -> list[TopicPartition]:
        message = {
            "op": OP,
            "producer_id": ended.producer_id,
            "producer_epoch": ended.epoch,
            "round": ended.round,
            "commit": ended.commits,
            "coordinator_epoch": coordinator_epoch,
            "partitions": partitions,
        }
        try:
            answer = await self._engine.ask(owner, message, TIMEOUT_MS)
        except KafkaError as error:
            log.info("markers-unanswered", extra={"owner": owner, "error": error.message})
            return []
        codes = answer.get("codes", ())
        return [partition for partition, code in zip(partitions, codes, strict=False) if code == 0]

    async def _write(self, message: Message) -> Message:
        """Kafka's code for each partition, in order."""
        marker = Marker(bool(message["commit"]), int(message["coordinator_epoch"]), int(message["round"]))
        producer = int(message["producer_id"]), int(message["producer_epoch"])
        codes = await asyncio.gather(*(self._write_one(t, int(p), producer, marker) for t, p in message["partitions"]))
        return {"codes": codes}

    async def _write_one(self, topic: str, partition: int, producer: tuple[int, int], marker: Marker) -> int:
        try:
            if topic == OFFSETS_TOPIC:
                await self._offsets.end(partition, producer[0], marker.round, marker.commit)
            else:
                batch = encode_marker(*producer, marker, self._clock.wall_ms())
                await self._engine.partition(topic, partition).append(batch)
        except KafkaError as error:
            if error.code == ErrorCode.invalid_producer_epoch.value:
                # A newer epoch writes here, which nobody got before this transaction was over: the sender has been
                # replaced, and its successor has done this.
                log.warning("late-marker", extra={"partition": f"{topic}-{partition}", "error": error.message})
                return 0
            return error.code
        return 0
