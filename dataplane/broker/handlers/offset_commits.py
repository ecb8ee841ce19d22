"""What OffsetCommit and TxnOffsetCommit have in common: which offsets a request brings, and the answer to each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.group import Committed

METADATA_BYTES_MAX = 4_096

Offsets = dict[tuple[str, int], Committed]


async def commit_offsets(request: Any, commit: Callable[[Offsets], Awaitable[ErrorCode]]) -> dict[str, Any]:
    """`commit` is given the offsets whose metadata is not too long, if there are any; its outcome is theirs."""
    offsets: Offsets = {}
    errors: dict[tuple[str, int], ErrorCode] = {}
    for topic in request.topics:
        for part in topic.partitions:
            key = (topic.name, part.partition_index)
            if len(part.committed_metadata or "") > METADATA_BYTES_MAX:
                errors[key] = ErrorCode.offset_metadata_too_large
                continue
            epoch = getattr(part, "committed_leader_epoch", -1)
            offsets[key] = Committed(part.committed_offset, epoch, part.committed_metadata)
    error = await commit(offsets) if offsets else ErrorCode.none
    topics = [
        {
            "name": topic.name,
            "partitions": [
                {
                    "partition_index": part.partition_index,
                    "error_code": errors.get((topic.name, part.partition_index), error),
                }
                for part in topic.partitions
            ],
        }
        for topic in request.topics
    ]
    return {"topics": topics}
