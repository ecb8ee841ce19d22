"""ListOffsets, OffsetForLeaderEpoch."""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError, PartitionLog

LATEST, EARLIEST, MAX_TIMESTAMP, EARLIEST_LOCAL, LATEST_TIERED = -1, -2, -3, -4, -5
"""Timestamps that ask for something else (KIP-79, 734, 405, 1005). What tiered storage calls local is here what only
the WAL has; what it calls tiered is in object storage."""
READ_COMMITTED = 1
"""Isolation level of a client that wants only what is decided of transactions."""


class Records:
    """Handlers over an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def list_offsets(self, request: Any) -> dict[str, Any]:
        committed = getattr(request, "isolation_level", 0) == READ_COMMITTED
        topics = []
        for topic in request.topics:
            parts = [await self._list_one(topic.name, part, committed) for part in topic.partitions]
            topics.append({"name": topic.name, "partitions": parts})
        return {"topics": topics}

    async def _list_one(self, topic: str, part: Any, committed: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {"partition_index": part.partition_index, "error_code": ErrorCode.none}
        try:
            log = self._engine.partition(topic, part.partition_index)
            check_epoch(log, getattr(part, "current_leader_epoch", -1))
            if part.timestamp == EARLIEST:
                timestamp, offset = -1, log.start_offset
            elif part.timestamp == LATEST:
                timestamp, offset = -1, log.last_stable_offset if committed else log.high_watermark
            elif part.timestamp == EARLIEST_LOCAL:
                timestamp, offset = -1, log.tiered_offset
            elif part.timestamp == LATEST_TIERED:
                timestamp, offset = -1, log.tiered_offset - 1 if log.tiered_offset > log.start_offset else -1
            elif part.timestamp < 0 and part.timestamp != MAX_TIMESTAMP:
                return {**answer, "error_code": ErrorCode.unsupported_version}
            else:
                asked_newest = part.timestamp == MAX_TIMESTAMP
                found = await (log.newest() if asked_newest else log.offset_for_timestamp(part.timestamp))
                offset, timestamp = found if found is not None else (-1, -1)
                if committed and offset >= log.last_stable_offset:
                    offset, timestamp = -1, -1
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
                    check_epoch(log, part.current_leader_epoch)
                    epoch, end = log.end_offset_of_epoch(part.leader_epoch)
                    answer |= {"leader_epoch": epoch, "end_offset": end}
                except KafkaError as error:
                    answer["error_code"] = ErrorCode(error.code)
                parts.append(answer)
            topics.append({"topic": topic.topic, "partitions": parts})
        return {"topics": topics}


def check_epoch(log: PartitionLog, current: int) -> None:
    """The client's idea of the leader epoch (KIP-320)."""
    if current == -1 or current == log.leader_epoch:
        return
    code = ErrorCode.fenced_leader_epoch if current < log.leader_epoch else ErrorCode.unknown_leader_epoch
    raise KafkaError(code.value, f"leader epoch {current} is not the current one, {log.leader_epoch}")
