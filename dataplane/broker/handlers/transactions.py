"""The transaction APIs over the coordinators."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError
from dataplane.broker.groups import OFFSETS_TOPIC, OFFSETS_TOPIC_PARTITIONS, GroupCoordinator, coordinator_partition
from dataplane.broker.handlers.offset_commits import Offsets, commit_offsets
from dataplane.broker.transaction import Transaction, TransactionState
from dataplane.broker.transactions import TransactionCoordinator
from dataplane.broker.txn_offsets import TxnOffsets
from dataplane.broker.txn_verify import Verifier, Writer
from providers.base.clock import Clock

FENCED_FROM: dict[int, int] = {22: 4, 24: 2, 25: 2, 26: 2}
"""Api key → version from which a client knows PRODUCER_FENCED; older ones are told INVALID_PRODUCER_EPOCH."""

TO_GROUPS = {
    ErrorCode.not_enough_replicas: ErrorCode.coordinator_load_in_progress,
    ErrorCode.not_leader_or_follower: ErrorCode.not_coordinator,
}
"""A partition's refusals, as who talks to a coordinator understands them."""

EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)


class Transactions:
    """Handlers over both coordinators."""

    def __init__(
        self,
        engine: Engine,
        coordinator: TransactionCoordinator,
        groups: GroupCoordinator,
        offsets: TxnOffsets,
        verifier: Verifier,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._coordinator = coordinator
        self._groups = groups
        self._offsets = offsets
        self._verifier = verifier
        self._clock = clock

    # ── producers ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def init_producer_id(self, request: Any) -> dict[str, Any]:
        """A producer id; for a transactional id its own, with an epoch that fences its predecessor."""
        named = getattr(request, "producer_id", -1), getattr(request, "producer_epoch", -1)
        try:
            if request.transactional_id is None:
                producer_id, epoch = await self._engine.allocate_producer_ids(1), 0
            else:
                timeout_ms = int(request.transaction_timeout.total_seconds() * 1000)
                producer_id, epoch = await self._coordinator.initialise(request.transactional_id, timeout_ms, named)
        except KafkaError as error:
            return {"error_code": _code(request, error), "producer_id": -1, "producer_epoch": -1}
        return {"error_code": ErrorCode.none, "producer_id": producer_id, "producer_epoch": epoch}

    async def add_partitions(self, request: Any) -> dict[str, Any]:
        topics = request.v3_and_below_topics
        partitions = [(str(topic.name), int(p)) for topic in topics for p in topic.partitions]
        unknown = {p for p in partitions if not self._exists(*p)}
        if unknown:
            codes = {
                p: ErrorCode.unknown_topic_or_partition if p in unknown else ErrorCode.operation_not_attempted
                for p in partitions
            }
        else:
            producer = int(request.v3_and_below_producer_id), int(request.v3_and_below_producer_epoch)
            work = self._coordinator.add(request.v3_and_below_transactional_id, producer, partitions)
            codes = dict.fromkeys(partitions, await _outcome(request, work))
        results = [
            {
                "name": topic.name,
                "results_by_partition": [
                    {"partition_index": p, "partition_error_code": codes[topic.name, p]} for p in topic.partitions
                ],
            }
            for topic in topics
        ]
        return {"results_by_topic_v3_and_below": results}

    def _exists(self, topic: str, partition: int) -> bool:
        view = self._engine.topic(topic)
        return view is not None and 0 <= partition < len(view.partitions)

    async def add_offsets(self, request: Any) -> dict[str, Any]:
        if self._engine.topic(OFFSETS_TOPIC) is None:
            try:
                await self._engine.create_topic(OFFSETS_TOPIC, OFFSETS_TOPIC_PARTITIONS, {}, internal=True)
            except KafkaError:
                pass  # somebody else was first, or the bucket is slow: the client asks again
        producer = int(request.producer_id), int(request.producer_epoch)
        work = self._coordinator.add_offsets(request.transactional_id, producer, request.group_id)
        return {"error_code": await _outcome(request, work)}

    async def end(self, request: Any) -> dict[str, Any]:
        producer = int(request.producer_id), int(request.producer_epoch)
        return {
            "error_code": await _outcome(
                request, self._coordinator.end(request.transactional_id, producer, request.committed)
            )
        }

    # ── offsets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def offset_commit(self, request: Any) -> dict[str, Any]:
        return await commit_offsets(request, lambda offsets: _outcome(request, self._commit(request, offsets)))

    async def _commit(self, request: Any, offsets: Offsets) -> None:
        group = request.group_id
        shard = self._groups.shard(group)
        member, generation = getattr(request, "member_id", ""), getattr(request, "generation_id", -1)
        if member or generation >= 0:  # older clients do not say who they are (KIP-447)
            instance_id = getattr(request, "group_instance_id", None)
            wrong = self._groups.may_use_offsets(shard, group, member, generation, instance_id)
            if wrong is not None:
                raise KafkaError(wrong.value, f"{member!r} is not of generation {generation}")
        view = self._engine.topic(OFFSETS_TOPIC)
        assert view is not None  # it has a shard
        where = (OFFSETS_TOPIC, coordinator_partition(group, len(view.partitions)))
        writer = Writer(request.transactional_id, int(request.producer_id), int(request.producer_epoch), where)
        try:
            number = await self._verifier.round_of(writer)
            await self._offsets.commit(shard, group, writer.producer_id, number, offsets)
        except KafkaError as error:
            code = TO_GROUPS.get(ErrorCode(error.code), ErrorCode(error.code))
            raise KafkaError(code.value, error.message) from error

    # ── operators ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def describe(self, request: Any) -> dict[str, Any]:
        return {"transaction_states": [self._describe(i) for i in request.transactional_ids]}

    def _describe(self, transactional_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "error_code": ErrorCode.none,
            "transactional_id": transactional_id,
            "transaction_state": "",
            "transaction_timeout": datetime.timedelta(0),
            "transaction_start_time": EPOCH,
            "producer_id": -1,
            "producer_epoch": -1,
            "topics": (),
        }
        try:
            known = self._coordinator.describe(transactional_id)
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code)}
        topics: dict[str, list[int]] = {}
        for topic, partition in sorted(known.partitions):
            topics.setdefault(topic, []).append(partition)
        return {
            **answer,
            "transaction_state": known.state.value,
            "transaction_timeout": datetime.timedelta(milliseconds=known.timeout_ms),
            "transaction_start_time": EPOCH + datetime.timedelta(milliseconds=known.began_ms),
            "producer_id": known.producer_id,
            "producer_epoch": known.epoch,
            "topics": [{"topic": t, "partitions": ps} for t, ps in topics.items()],
        }

    async def list_transactions(self, request: Any) -> dict[str, Any]:
        states: Sequence[str] = request.state_filters
        known_states = {state.value for state in TransactionState}
        longer_than_ms = getattr(request, "duration_filter", -1)
        found = [
            {"transactional_id": t.id, "producer_id": t.producer_id, "transaction_state": t.state.value}
            for t in self._coordinator.everything()
            if (not states or t.state.value in states)
            and (not request.producer_id_filters or t.producer_id in request.producer_id_filters)
            and (longer_than_ms < 0 or self._open_ms(t) > longer_than_ms)
        ]
        return {
            "error_code": ErrorCode.none,
            "unknown_state_filters": [s for s in states if s not in known_states],
            "transaction_states": found,
        }

    def _open_ms(self, transaction: Transaction) -> int:
        return self._clock.wall_ms() - transaction.began_ms if transaction.partitions else -1

    async def describe_producers(self, request: Any) -> dict[str, Any]:
        topics = [
            {"name": topic.name, "partitions": [self._producers(topic.name, p) for p in topic.partition_indexes]}
            for topic in request.topics
        ]
        return {"topics": topics}

    def _producers(self, topic: str, partition: int) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "partition_index": partition,
            "error_code": ErrorCode.none,
            "error_message": None,
            "active_producers": (),
        }
        try:
            table = self._engine.partition(topic, partition).producers
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code), "error_message": error.message}
        producers = []
        for producer_id, epoch, last_sequence in table.active():
            started = table.transactions.started(producer_id)
            producers.append(
                {
                    "producer_id": producer_id,
                    "producer_epoch": epoch,
                    "last_sequence": last_sequence,
                    "last_timestamp": -1,  # not kept
                    "coordinator_epoch": -1,
                    "current_txn_start_offset": -1 if started is None else started,
                }
            )
        return {**answer, "active_producers": producers}


async def _outcome(request: Any, work: Awaitable[None]) -> ErrorCode:
    try:
        await work
    except KafkaError as error:
        return _code(request, error)
    return ErrorCode.none


def _code(request: Any, error: KafkaError) -> ErrorCode:
    code = ErrorCode(error.code)
    if code is ErrorCode.producer_fenced and request.__version__ < FENCED_FROM.get(request.__api_key__, 0):
        return ErrorCode.invalid_producer_epoch
    return code
