"""Produce, Fetch, ListOffsets, OffsetForLeaderEpoch, InitProducerId."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError, PartitionLog
from dataplane.broker.groups import OFFSETS_TOPIC
from dataplane.stream.batch import iter_batches, parse_header, verify
from providers.base.clock import Clock
from providers.base.errors import Corrupt

BATCH_BYTES_MAX = 1_048_588
"""Kafka's own default of `message.max.bytes`."""

EARLIEST, LATEST, MAX_TIMESTAMP = -2, -1, -3
CONTROL, TRANSACTIONAL = 0x20, 0x10
FETCH_BYTES_MAX = 55 << 20
"""Kafka's own default of `fetch.max.bytes`; bounds what one request may pin."""


class Records:
    """Handlers over an engine."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    # ── produce ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def produce(self, request: Any) -> dict[str, Any] | None:
        """Every acks level waits until the records are durable: there is no weaker promise to give. None: acks=0, no
        answer.
        """
        # All appends are begun before the first await, so that requests of one connection keep their order.
        work = [
            (topic.name, part.index, asyncio.ensure_future(self._append(topic.name, part.index, part.records)))
            for topic in request.topic_data
            for part in topic.partition_data
        ]
        answers: dict[str, list[dict[str, Any]]] = {}
        for name, partition, task in work:
            answers.setdefault(name, []).append({"index": partition, **await task})
        if request.acks == 0:
            return None
        return {"responses": [{"name": n, "partition_responses": ps} for n, ps in answers.items()]}

    async def _append(self, topic: str, partition: int, records: bytes | None) -> dict[str, Any]:
        answer: dict[str, Any] = {"error_code": ErrorCode.none, "base_offset": -1, "record_errors": ()}
        try:
            if topic == OFFSETS_TOPIC:
                raise KafkaError(
                    ErrorCode.invalid_topic_exception.value, "an internal topic is written by brokers only"
                )
            _check_batch(records)
            done = await self._engine.partition(topic, partition).append(bytes(records or b""))
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code), "error_message": error.message}
        return {**answer, "base_offset": done.base_offset, "log_start_offset": done.log_start_offset}

    # ── fetch ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def fetch(self, request: Any) -> dict[str, Any]:
        """A full fetch (no sessions): waits until `min_bytes` are there or `max_wait` is over."""
        if getattr(request, "session_id", 0):
            return {"error_code": ErrorCode.fetch_session_id_not_found, "session_id": 0, "responses": ()}
        deadline = self._clock.monotonic_ms() + request.max_wait.total_seconds() * 1000
        while True:
            answer, size, waitable = await self._read_all(request)
            left_ms = deadline - self._clock.monotonic_ms()
            if size >= request.min_bytes or left_ms <= 0 or waitable is None:
                return answer
            await self._until_any(waitable, left_ms)

    async def _read_all(self, request: Any) -> tuple[dict[str, Any], int, list[tuple[PartitionLog, int]] | None]:
        """One pass over all partitions; also the bytes found, and what to wait for (None when an error has to be told
        at once).
        """
        room = min(request.max_bytes, FETCH_BYTES_MAX)
        size, failed = 0, False
        waitable: list[tuple[PartitionLog, int]] = []
        topics = []
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                answer: dict[str, Any] = {
                    "partition_index": part.partition,
                    "error_code": ErrorCode.none,
                    "high_watermark": -1,
                    "last_stable_offset": -1,
                    "aborted_transactions": None,
                    "records": b"",
                }
                try:
                    log = self._engine.partition(topic.topic, part.partition)
                    _check_epoch(log, getattr(part, "current_leader_epoch", -1))
                    # The first batch is returned whole however large it is, so that a consumer always gets on (KIP-74).
                    limit = min(part.partition_max_bytes, room)
                    data = b""
                    if limit > 0 or size == 0:
                        data = await log.read(part.fetch_offset, max(limit, 0), minimum_one=size == 0)
                    size += len(data)
                    room -= len(data)
                    answer |= {
                        "high_watermark": log.high_watermark,
                        "last_stable_offset": log.high_watermark,
                        "log_start_offset": log.start_offset,
                        "records": data,
                    }
                    waitable.append((log, part.fetch_offset))
                except KafkaError as error:
                    failed = True
                    answer["error_code"] = ErrorCode(error.code)
                parts.append(answer)
            topics.append({"topic": topic.topic, "partitions": parts})
        response = {"error_code": ErrorCode.none, "session_id": 0, "responses": topics}
        return response, size, None if failed or not waitable else waitable

    async def _until_any(self, waitable: Sequence[tuple[PartitionLog, int]], timeout_ms: float) -> None:
        """Until one of the logs has more than the reader has seen, or the time is over."""
        # At the end of a log one waits for the next ack; before it, there is data that is only not readable yet (owed
        # by
        # the former owner), and a short look again is right.
        ends = [(log, log.high_watermark) for log, _ in waitable]
        behind = any(offset < end for (_, offset), (_, end) in zip(waitable, ends, strict=True))
        pause_ms = min(timeout_ms, 20.0) if behind else timeout_ms
        tasks = [asyncio.ensure_future(log.wait_for_data(end, pause_ms)) for log, end in ends]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    # ── offsets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_offsets(self, request: Any) -> dict[str, Any]:
        topics = []
        for topic in request.topics:
            parts = [await self._list_one(topic.name, part) for part in topic.partitions]
            topics.append({"name": topic.name, "partitions": parts})
        return {"topics": topics}

    async def _list_one(self, topic: str, part: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {"partition_index": part.partition_index, "error_code": ErrorCode.none}
        try:
            log = self._engine.partition(topic, part.partition_index)
            _check_epoch(log, getattr(part, "current_leader_epoch", -1))
            if part.timestamp == EARLIEST:
                timestamp, offset = -1, log.start_offset
            elif part.timestamp == LATEST:
                timestamp, offset = -1, log.high_watermark
            else:
                wanted = 0 if part.timestamp == MAX_TIMESTAMP else part.timestamp
                found = await log.offset_for_timestamp(wanted)
                offset, timestamp = found if found is not None else (-1, -1)
            return {**answer, "timestamp": timestamp, "offset": offset, "leader_epoch": log.leader_epoch}
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code)}

    async def offset_for_leader_epoch(self, request: Any) -> dict[str, Any]:
        topics = []
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                answer: dict[str, Any] = {"error_code": ErrorCode.none, "partition": part.partition}
                try:
                    log = self._engine.partition(topic.topic, part.partition)
                    _check_epoch(log, part.current_leader_epoch)
                    epoch, end = log.end_offset_of_epoch(part.leader_epoch)
                    answer |= {"leader_epoch": epoch, "end_offset": end}
                except KafkaError as error:
                    answer["error_code"] = ErrorCode(error.code)
                parts.append(answer)
            topics.append({"topic": topic.topic, "partitions": parts})
        return {"topics": topics}

    async def init_producer_id(self, request: Any) -> dict[str, Any]:
        """A fresh producer id. Transactions are not here: their id is refused, and their APIs are not listed."""
        refused = {"producer_id": -1, "producer_epoch": -1}
        if request.transactional_id is not None:
            return {"error_code": ErrorCode.invalid_request, **refused}
        try:
            producer_id = await self._engine.allocate_producer_ids(1)
        except KafkaError as error:
            return {"error_code": ErrorCode(error.code), **refused}
        return {"error_code": ErrorCode.none, "producer_id": producer_id, "producer_epoch": 0}


def _check_batch(records: bytes | None) -> None:
    """One whole v2 batch, as produce requests from version 3 on carry.

    Raises:
        KafkaError: CORRUPT_MESSAGE, INVALID_RECORD, MESSAGE_TOO_LARGE, UNSUPPORTED_FOR_MESSAGE_FORMAT.
    """
    if not records:
        raise KafkaError(ErrorCode.invalid_record.value, "no records")
    if len(records) > BATCH_BYTES_MAX:
        raise KafkaError(
            ErrorCode.message_too_large.value, f"a batch of {len(records)} bytes; {BATCH_BYTES_MAX} at most"
        )
    try:
        header = parse_header(records)
        if header.size < len(records):
            count = sum(1 for _ in iter_batches(records))
            raise KafkaError(ErrorCode.invalid_record.value, f"{count} batches for one partition; send one")
        verify(records)
    except Corrupt as error:
        raise KafkaError(ErrorCode.corrupt_message.value, error.message) from error
    if header.attributes & (CONTROL | TRANSACTIONAL):
        raise KafkaError(ErrorCode.invalid_record.value, "control and transactional batches are not taken")


def _check_epoch(log: PartitionLog, current: int) -> None:
    """The client's idea of the leader epoch (KIP-320)."""
    if current == -1 or current == log.leader_epoch:
        return
    code = ErrorCode.fenced_leader_epoch if current < log.leader_epoch else ErrorCode.unknown_leader_epoch
    raise KafkaError(code.value, f"leader epoch {current} is not the current one, {log.leader_epoch}")
