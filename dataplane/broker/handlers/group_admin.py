"""Groups of either protocol as administrators see them: list, describe, delete, delete offsets."""

from __future__ import annotations

import struct
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError
from dataplane.broker.group import Group, GroupState, Member
from dataplane.broker.groups import GroupCoordinator, OffsetKey
from dataplane.broker.wire import UNKNOWN_OPERATIONS

CONSUMER_PROTOCOL = "consumer"
"""Protocol type of groups whose members say which topics they subscribe to (Kafka's ConsumerProtocol)."""
CLASSIC, CONSUMER = "classic", "consumer"
"""Types of groups."""
SAYS_MISSING_FROM = 6
"""DescribeGroups version that has an error for a group that does not exist; before, it is dead."""
READ, DELETE, DESCRIBE = 3, 6, 8
"""Operations on groups (Kafka's AclOperation)."""
ALL_OPERATIONS = 1 << READ | 1 << DELETE | 1 << DESCRIBE


class GroupAdmin:
    """Handlers over a coordinator."""

    def __init__(self, coordinator: GroupCoordinator, engine: Engine) -> None:
        self._coordinator = coordinator
        self._engine = engine

    async def describe(self, request: Any) -> dict[str, Any]:
        operations = ALL_OPERATIONS if getattr(request, "include_authorized_operations", False) else UNKNOWN_OPERATIONS
        says_missing = request.__version__ >= SAYS_MISSING_FROM
        return {"groups": [self._describe(group_id, operations, says_missing) for group_id in request.groups]}

    def _describe(self, group_id: str, operations: int, says_missing: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "error_code": ErrorCode.none,
            "error_message": None,
            "group_id": group_id,
            "group_state": "Dead",
            "protocol_type": "",
            "protocol_data": "",
            "members": (),
            "authorized_operations": operations,
        }
        try:
            shard = self._coordinator.shard(group_id)
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code), "error_message": error.message}
        group, live = shard.groups.get(group_id), shard.consumers.get(group_id)
        if group is None or (live is not None and live.exists):
            if says_missing:
                missing = f"there is no group {group_id} of the classic protocol"
                return {**answer, "error_code": ErrorCode.group_id_not_found, "error_message": missing}
            return answer
        return {
            **answer,
            "group_state": group.state.value,
            "protocol_type": group.protocol_type or "",
            "protocol_data": group.protocol if group.state is GroupState.STABLE else "",
            "members": [_member(group, member) for member in group.members.values()],
        }

    async def list_groups(self, request: Any) -> dict[str, Any]:
        states = {s.lower() for s in getattr(request, "states_filter", None) or ()}
        types = {t.lower() for t in getattr(request, "types_filter", None) or ()}
        groups = []
        for shard in self._coordinator.shards():
            consumers = {i: live.state for i, live in shard.consumers.items() if live.exists}
            found = [(i, CONSUMER, CONSUMER_PROTOCOL, group.state) for i, group in consumers.items()]
            found += [
                (group.id, CLASSIC, group.protocol_type or "", group.state.value)
                for group in shard.groups.values()
                if group.id not in consumers
            ]
            groups += [
                {"group_id": group_id, "protocol_type": protocol, "group_state": state, "group_type": kind}
                for group_id, kind, protocol, state in found
                if (not states or state.lower() in states) and (not types or kind in types)
            ]
        return {"error_code": ErrorCode.none, "groups": groups}

    async def delete(self, request: Any) -> dict[str, Any]:
        results = [
            {"group_id": name, "error_code": await self._coordinator.delete(name)} for name in request.groups_names
        ]
        return {"results": results}

    async def delete_offsets(self, request: Any) -> dict[str, Any]:
        """Of partitions that nobody in the group reads."""
        asked = [(t.name, p.partition_index) for t in request.topics for p in t.partitions]
        try:
            errors = await self._delete_offsets(request.group_id, asked)
        except KafkaError as error:
            return {"error_code": ErrorCode(error.code), "topics": ()}
        topics = [
            {
                "name": t.name,
                "partitions": [
                    {"partition_index": p.partition_index, "error_code": errors[t.name, p.partition_index]}
                    for p in t.partitions
                ],
            }
            for t in request.topics
        ]
        return {"error_code": ErrorCode.none, "topics": topics}

    async def _delete_offsets(self, group_id: str, asked: list[OffsetKey]) -> dict[OffsetKey, ErrorCode]:
        shard = self._coordinator.shard(group_id)
        group, live = shard.groups.get(group_id), shard.consumers.get(group_id)
        if group is None and (live is None or not live.exists):
            raise KafkaError(ErrorCode.group_id_not_found.value, f"there is no group {group_id}")
        read: set[str] = set()
        if live is not None:
            read = {topic for member in live.state.members.values() for topic in member.topics}
        if group is not None and group.members:
            if group.protocol_type != CONSUMER_PROTOCOL:
                raise KafkaError(ErrorCode.non_empty_group.value, f"{group_id} has members")
            read |= {topic for m in group.members.values() for topic in subscription(m.metadata(group.protocol))}
        stored = group.offsets if group is not None else {}
        errors = {}
        for topic, partition in asked:
            error = ErrorCode.none
            if topic in read:
                error = ErrorCode.group_subscribed_to_topic
            elif (topic, partition) not in stored and not self._exists(topic, partition):
                error = ErrorCode.unknown_topic_or_partition
            errors[topic, partition] = error
        gone = [key for key, error in errors.items() if error is ErrorCode.none and key in stored]
        await self._coordinator.delete_offsets(shard, group_id, gone)
        return errors

    def _exists(self, topic: str, partition: int) -> bool:
        view = self._engine.topic(topic)
        return view is not None and 0 <= partition < len(view.partitions)


def subscription(metadata: bytes) -> list[str]:
    """The topics that a member of a classic group says it subscribes to; none, if it says nothing readable. Layout:
    Kafka's ConsumerProtocolSubscription, the part that all versions begin with.
    """
    topics: list[str] = []
    try:
        _, count = struct.unpack_from(">hi", metadata)
        at = 6
        for _ in range(count):
            [size] = struct.unpack_from(">h", metadata, at)
            topics.append(metadata[at + 2 : at + 2 + size].decode())
            at += 2 + size
    except (struct.error, UnicodeDecodeError):
        return []
    return topics


def _member(group: Group, member: Member) -> dict[str, Any]:
    return {
        "member_id": member.id,
        "group_instance_id": member.instance_id,
        "client_id": member.client_id,
        "client_host": member.host,
        "member_metadata": member.metadata(group.protocol),
        "member_assignment": member.assignment,
    }
