"""The transaction coordinator: transactional ids whose partition of the transactions topic this broker owns.

A transition is a record of that partition and counts once it is durable. The decision to commit or abort is durable
before the first marker is sent; whoever owns the partition next finds it, and sends the markers again until every
partition has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker import transaction as rules
from dataplane.broker.engine import Engine, KafkaError, Message, PartitionLog
from dataplane.broker.groups import OFFSETS_TOPIC, coordinator_partition
from dataplane.broker.markers import Markers
from dataplane.broker.table_log import TableLog
from dataplane.broker.transaction import PREPARED, TopicPartition, Transaction, TransactionState
from dataplane.stream.encode import KeyValue
from providers.base.clock import Clock
from providers.base.errors import YunheError

log = logging.getLogger(__name__)

TRANSACTIONS_TOPIC = "__transaction_state"
TRANSACTIONS_TOPIC_PARTITIONS = 4
TIMEOUT_MS_MAX = 900_000
"""Kafka's own default of `transaction.max.timeout.ms`."""
EXPIRY_MS = 7 * 86_400_000
"""Kafka's own default of `transactional.id.expiration.ms`."""
IDS_MAX = 100_000
"""Transactional ids of one partition of the topic."""
TICK_MS = 250
SWEEP_MS = 60_000
SETTLE_MS = 500
"""How long a request waits for the markers of the transaction before, rather than send its client away."""
MARKERS_AGAIN_MS = (10.0, 1_000.0)
LOAD_AGAIN_MS = 500
VERIFY = "txn-verify"


class Shard:
    """The transactional ids of one partition of the transactions topic."""

    def __init__(self, partition_log: PartitionLog, clock: Clock) -> None:
        self.transactions: dict[str, Transaction] = {}
        self.loaded = False
        self.busy: set[str] = set()
        """Ids with a transition under way."""
        self.open: set[str] = set()
        self.settled: dict[str, asyncio.Event] = {}
        """Of ids whose markers are being sent."""
        self.table = TableLog(partition_log, self._everything, clock=clock)

    def _everything(self) -> Iterable[KeyValue]:
        return [_record(t) for t in self.transactions.values()]

    def replay(self, key: bytes, value: bytes | None) -> None:
        """A record of the topic, read back."""
        transactional_id = json.loads(key)
        if value is None:
            self.transactions.pop(transactional_id, None)
        else:
            self.transactions[transactional_id] = Transaction.load(transactional_id, value)

    def apply(self, new: Transaction) -> None:
        """A transition that is durable."""
        self.transactions[new.id] = new
        (self.open.add if new.state is TransactionState.ONGOING else self.open.discard)(new.id)
        if new.state in PREPARED:
            self.settled.setdefault(new.id, asyncio.Event())
        elif (event := self.settled.pop(new.id, None)) is not None:
            event.set()

    def forget(self, ids: Iterable[str]) -> None:
        for transactional_id in ids:
            del self.transactions[transactional_id]


def _record(transaction: Transaction) -> KeyValue:
    return json.dumps(transaction.id).encode(), transaction.dump()


class TransactionCoordinator:
    """Over an engine: shards come and go with the partitions of the transactions topic."""

    def __init__(self, engine: Engine, markers: Markers, *, clock: Clock) -> None:
        self._engine = engine
        self._markers = markers
        self._clock = clock
        self._shards: dict[int, Shard] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticker: asyncio.Task[None] | None = None
        engine.on_partitions_changed(self._changed)
        engine.answer(VERIFY, self._verify)

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _changed(self, topic: str, partition: int, partition_log: PartitionLog | None) -> None:
        if topic != TRANSACTIONS_TOPIC:
            return
        self._shards.pop(partition, None)
        if partition_log is not None:
            shard = self._shards[partition] = Shard(partition_log, self._clock)
            self._spawn(self._load(partition, shard))
            if self._ticker is None:
                self._ticker = asyncio.create_task(self._tick())

    async def _load(self, partition: int, shard: Shard) -> None:
        while self._is_here(partition, shard):
            try:
                await shard.table.load(shard.replay)
                break
            except (KafkaError, YunheError) as error:
                log.warning("transactions-load-retry", extra={"partition": partition, "error": str(error)})
                shard.transactions.clear()
                await self._clock.sleep_ms(LOAD_AGAIN_MS)
        else:
            return
        shard.loaded = True
        for transaction in list(shard.transactions.values()):
            shard.apply(transaction)
            if transaction.state in PREPARED:
                self._spawn(self._finish(partition, shard, transaction))

    def _is_here(self, partition: int, shard: Shard) -> bool:
        return self._shards.get(partition) is shard

    async def close(self) -> None:
        """Stop coordinating."""
        self._shards.clear()
        tasks = [*self._tasks, *([self._ticker] if self._ticker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, KafkaError):
            log.error("transactions-task-failed", exc_info=error)

    async def _tick(self) -> None:
        swept_ms = self._clock.monotonic_ms()
        while True:
            await self._clock.sleep_ms(TICK_MS)
            sweep = self._clock.monotonic_ms() - swept_ms >= SWEEP_MS
            if sweep:
                swept_ms = self._clock.monotonic_ms()
            for partition, shard in list(self._shards.items()):
                if shard.loaded:
                    self._give_up_old(partition, shard)
                    if sweep:
                        self._spawn(self._forget_unused(shard))

    def _give_up_old(self, partition: int, shard: Shard) -> None:
        now_ms = self._clock.wall_ms()
        for transactional_id in [i for i in shard.open if i not in shard.busy]:
            known = shard.transactions[transactional_id]
            if rules.too_old(known, now_ms):
                log.info("transaction-timed-out", extra={"id": known.id, "producer": known.producer_id})
                shard.busy.add(known.id)
                self._spawn(self._write(partition, shard, rules.given_up(known, now_ms)))

    async def _forget_unused(self, shard: Shard) -> None:
        now_ms = self._clock.wall_ms()
        unused = [
            t.id
            for t in shard.transactions.values()
            if t.id not in shard.busy and rules.forgotten(t, now_ms, EXPIRY_MS)
        ]
        if not unused:
            return
        shard.busy.update(unused)
        tombstones: list[KeyValue] = [(json.dumps(i).encode(), None) for i in unused]
        try:
            await shard.table.put(tombstones, lambda: shard.forget(unused))
        finally:
            shard.busy.difference_update(unused)

    # ── transitions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _shard(self, transactional_id: str) -> tuple[int, Shard]:
        topic = self._engine.topic(TRANSACTIONS_TOPIC)
        if topic is None:
            raise KafkaError(ErrorCode.coordinator_not_available.value, "no transaction was ever coordinated here")
        partition = coordinator_partition(transactional_id, len(topic.partitions))
        shard = self._shards.get(partition)
        if shard is None:
            raise KafkaError(ErrorCode.not_coordinator.value, "another broker coordinates this transactional id")
        if not shard.loaded:
            raise KafkaError(ErrorCode.coordinator_load_in_progress.value, "transactions are being read")
        return partition, shard

    async def _change(self, transactional_id: str, decide: Callable[[Transaction | None], Transaction]) -> Transaction:
        """Decide on what is durable, and make the outcome durable; one at a time for each id."""
        partition, shard = self._shard(transactional_id)
        if transactional_id in shard.busy:
            raise KafkaError(ErrorCode.concurrent_transactions.value, f"{transactional_id} is being changed")
        known = shard.transactions.get(transactional_id)
        new = decide(known)
        if known is None and len(shard.transactions) >= IDS_MAX:
            raise KafkaError(ErrorCode.policy_violation.value, f"{IDS_MAX} transactional ids are in use")
        if new is not known:
            # A task of its own: a client that hangs up must not leave a transition half done.
            shard.busy.add(transactional_id)
            await asyncio.shield(self._spawn(self._write(partition, shard, new)))
        return new

    async def _write(self, partition: int, shard: Shard, new: Transaction) -> None:
        shard.busy.add(new.id)
        try:
            await shard.table.put([_record(new)], lambda: shard.apply(new))
        except KafkaError as error:
            gone = error.code == ErrorCode.not_leader_or_follower.value
            code = ErrorCode.not_coordinator if gone else ErrorCode.coordinator_not_available
            raise KafkaError(code.value, error.message) from error
        finally:
            shard.busy.discard(new.id)
        if new.state in PREPARED:
            self._spawn(self._finish(partition, shard, new))
        if shard.table.long:
            self._spawn(self._snapshot(partition, shard))

    async def _snapshot(self, partition: int, shard: Shard) -> None:
        try:
            await shard.table.snapshot(lambda at: self._engine.delete_records(TRANSACTIONS_TOPIC, partition, at))
        except KafkaError as error:
            log.warning("transactions-snapshot-put-off", extra={"error": str(error)})

    async def _finish(self, partition: int, shard: Shard, ended: Transaction) -> None:
        """Send markers until every partition has one, then say so. Ends with the ownership of the partition, at the
        latest.
        """
        left = set(ended.partitions)
        pause_ms, pause_max_ms = MARKERS_AGAIN_MS
        while self._is_here(partition, shard):
            left -= await self._markers.send(ended, left, shard.table.epoch)
            if not left:
                try:
                    await self._write(partition, shard, rules.completed(ended, self._clock.wall_ms()))
                    return
                except KafkaError as error:
                    log.info("transaction-completion-retry", extra={"id": ended.id, "error": error.message})
            await self._clock.sleep_ms(pause_ms)
            pause_ms = min(pause_ms * 2, pause_max_ms)

    async def _settle(self, transactional_id: str) -> None:
        """Wait a little for the markers of the transaction before."""
        _, shard = self._shard(transactional_id)
        if (event := shard.settled.get(transactional_id)) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_MS / 1000):
                    await event.wait()

    # ── what producers ask ──────────────────────────────────────────────────────────────────────────────────────────

    async def initialise(self, transactional_id: str, timeout_ms: int, producer: tuple[int, int]) -> tuple[int, int]:
        """Producer id and epoch for a starting producer, once whatever its predecessor left open is aborted.
        `producer`: id and epoch of one that bumps its own, else (-1, -1).

        Raises:
            KafkaError
        """
        if not transactional_id:
            raise KafkaError(ErrorCode.invalid_request.value, "a transactional id is not empty")
        if not 0 < timeout_ms <= TIMEOUT_MS_MAX:
            raise KafkaError(ErrorCode.invalid_transaction_timeout.value, f"1 to {TIMEOUT_MS_MAX} ms")
        for _ in range(2):
            await self._settle(transactional_id)
            _, shard = self._shard(transactional_id)
            known = shard.transactions.get(transactional_id)
            fresh = await self._engine.allocate_producer_ids(1) if rules.needs_producer_id(known) else -1

            def decide(known: Transaction | None, fresh: int = fresh) -> Transaction:
                if fresh < 0 and rules.needs_producer_id(known):
                    raise KafkaError(ErrorCode.concurrent_transactions.value, "changed meanwhile")
                return rules.initialised(
                    known,
                    transactional_id,
                    timeout_ms=timeout_ms,
                    producer=producer,
                    fresh=fresh,
                    now_ms=self._clock.wall_ms(),
                )

            new = await self._change(transactional_id, decide)
            if new.state not in PREPARED:
                return new.producer_id, new.epoch
        raise KafkaError(ErrorCode.concurrent_transactions.value, "the transaction before is being aborted")

    async def add(self, transactional_id: str, producer: tuple[int, int], partitions: Sequence[TopicPartition]) -> None:
        """Partitions join the producer's transaction.

        Raises:
            KafkaError
        """
        await self._settle(transactional_id)
        now_ms = self._clock.wall_ms()
        await self._change(transactional_id, lambda known: rules.added(known, producer, partitions, now_ms))

    async def add_offsets(self, transactional_id: str, producer: tuple[int, int], group: str) -> None:
        """A group's offsets join the producer's transaction.

        Raises:
            KafkaError
        """
        topic = self._engine.topic(OFFSETS_TOPIC)
        if topic is None:
            raise KafkaError(ErrorCode.coordinator_not_available.value, "no group was ever coordinated here")
        where = (OFFSETS_TOPIC, coordinator_partition(group, len(topic.partitions)))
        await self.add(transactional_id, producer, [where])

    async def end(self, transactional_id: str, producer: tuple[int, int], commit: bool) -> None:
        """Commit or abort: decided for good when this returns; markers follow.

        Raises:
            KafkaError
        """
        now_ms = self._clock.wall_ms()
        await self._change(transactional_id, lambda known: rules.ended(known, producer, commit, now_ms))

    async def _verify(self, message: Message) -> Message:
        """The round of an open transaction, for who is about to write under it."""
        transactional_id, partition = str(message["id"]), message["partition"]
        producer = int(message["producer_id"]), int(message["producer_epoch"])
        try:
            _, shard = self._shard(transactional_id)
            known = shard.transactions.get(transactional_id)
            return {"round": rules.round_of(known, producer, (str(partition[0]), int(partition[1])))}
        except KafkaError as error:
            return {"code": error.code, "error": error.message}

    # ── what operators ask ──────────────────────────────────────────────────────────────────────────────────────────

    def describe(self, transactional_id: str) -> Transaction:
        """The transactional id as it is.

        Raises:
            KafkaError: NOT_COORDINATOR and its like, TRANSACTIONAL_ID_NOT_FOUND.
        """
        _, shard = self._shard(transactional_id)
        known = shard.transactions.get(transactional_id)
        if known is None:
            raise KafkaError(ErrorCode.transactional_id_not_found.value, f"{transactional_id} is not in use")
        return known

    def everything(self) -> list[Transaction]:
        """Every transactional id coordinated here."""
        return [t for shard in self._shards.values() if shard.loaded for t in shard.transactions.values()]
