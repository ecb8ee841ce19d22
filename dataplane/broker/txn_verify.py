"""Before a partition takes the first batch of a transaction, its owner asks the coordinator whether there is such a
transaction with this partition in it (KIP-890): a batch that comes late must not open one that nobody will end.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Busy, Engine, KafkaError
from dataplane.broker.groups import coordinator_partition
from dataplane.broker.transaction import TopicPartition
from dataplane.broker.transactions import TRANSACTIONS_TOPIC, VERIFY
from providers.base.clock import Clock

ASK_TIMEOUT_MS = 2_000
PATIENCE_MS = 3_000
"""How long the coordinator may be away or loading, before the client is asked to try again."""
AGAIN_MS = 30
LOOKS_MAX = 10_000
"""Questions under way, or answered and not fetched: connections that are gone leave theirs."""

_LATER = {
    ErrorCode.not_coordinator.value,
    ErrorCode.coordinator_not_available.value,
    ErrorCode.coordinator_load_in_progress.value,
    ErrorCode.request_timed_out.value,
    ErrorCode.concurrent_transactions.value,
}


class Writer(NamedTuple):
    """Who wants to write under a transaction, and where."""

    transactional_id: str
    producer_id: int
    epoch: int
    partition: TopicPartition


class Verifier:
    """Over an engine."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._looks: dict[Writer, asyncio.Task[int]] = {}

    def look(self, writer: Writer) -> int:
        """`round_of` for who cannot wait.

        Raises:
            Busy: it is being asked; look again.
            KafkaError: as `round_of`.
        """
        task = self._looks.get(writer)
        if task is None:
            if len(self._looks) >= LOOKS_MAX:
                oldest = next(iter(self._looks))
                self._looks.pop(oldest).cancel()
            task = self._looks[writer] = asyncio.create_task(self.round_of(writer))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # its connection may be gone
        if not task.done():
            raise Busy(ErrorCode.not_enough_replicas.value, "the transaction's coordinator is being asked")
        del self._looks[writer]
        return task.result()

    async def round_of(self, writer: Writer) -> int:
        """The round of the open transaction that the writer's partition is in.

        Raises:
            KafkaError: there is none (see `transaction.round_of`); NOT_ENOUGH_REPLICAS: nobody knows now, ask again.
        """
        deadline = self._clock.monotonic_ms() + PATIENCE_MS
        while True:
            try:
                return await self._ask(writer)
            except KafkaError as error:
                if error.code not in _LATER:
                    raise
                if self._clock.monotonic_ms() >= deadline:
                    raise KafkaError(ErrorCode.not_enough_replicas.value, error.message) from error
            await self._clock.sleep_ms(AGAIN_MS)

    async def _ask(self, writer: Writer) -> int:
        topic = self._engine.topic(TRANSACTIONS_TOPIC)
        if topic is None:
            raise KafkaError(ErrorCode.invalid_txn_state.value, "there are no transactions here")
        leader = topic.partitions[coordinator_partition(writer.transactional_id, len(topic.partitions))].leader
        if leader is None:
            raise KafkaError(ErrorCode.coordinator_not_available.value, "the coordinator is being replaced")
        message = {
            "op": VERIFY,
            "id": writer.transactional_id,
            "producer_id": writer.producer_id,
            "producer_epoch": writer.epoch,
            "partition": writer.partition,
        }
        answer = await self._engine.ask(leader, message, ASK_TIMEOUT_MS)
        if "round" not in answer:
            raise KafkaError(int(answer["code"]), str(answer["error"]))
        return int(answer["round"])
