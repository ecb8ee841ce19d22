"""ConsumerGroupHeartbeat and ConsumerGroupDescribe (KIP-848)."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.consumer_group import JOIN, LEAVE_FOR_A_WHILE, Beat, ConsumerGroup, ConsumerMember, Parts
from dataplane.broker.consumer_groups import ConsumerGroups
from dataplane.broker.engine import Engine, KafkaError
from dataplane.broker.handlers.group_admin import ALL_OPERATIONS
from dataplane.broker.wire import UNKNOWN_OPERATIONS
from providers.base.clock import Rng

CONSUMER_MEMBER = 1
"""Type of a member, as Kafka's tools show it."""
NAME_LENGTH_MAX = 1_000
"""Of member ids, instance ids and racks."""


class ConsumerGroupsHandlers:
    """Handlers over the consumer groups here."""

    def __init__(self, groups: ConsumerGroups, engine: Engine, rng: Rng) -> None:
        self._groups = groups
        self._engine = engine
        self._rng = rng

    async def heartbeat(self, request: Any, client_id: str, host: str) -> dict[str, Any]:
        try:
            beat = self._beat(request, client_id, host)
            beaten, interval_ms = await self._groups.heartbeat(request.group_id, beat)
        except KafkaError as error:
            return {
                "error_code": ErrorCode(error.code),
                "error_message": error.message,
                "member_id": request.member_id or None,
                "member_epoch": 0,
                "heartbeat_interval": datetime.timedelta(0),
                "assignment": None,
            }
        assignment = None
        if beaten.assignment is not None:
            parts = _by_topic(beaten.assignment)
            assignment = {"topic_partitions": [{"topic_id": t, "partitions": ps} for t, ps in parts.items()]}
        return {
            "error_code": ErrorCode.none,
            "error_message": None,
            "member_id": beaten.member_id,
            "member_epoch": beaten.epoch,
            "heartbeat_interval": datetime.timedelta(milliseconds=interval_ms),
            "assignment": assignment,
        }

    def _beat(self, request: Any, client_id: str, host: str) -> Beat:
        timeout = request.rebalance_timeout
        timeout_ms = int(timeout.total_seconds() * 1000)
        regex = getattr(request, "subscribed_topic_regex", None)
        topics, owned = request.subscribed_topic_names, request.topic_partitions
        for name in (request.group_id, request.member_id, request.instance_id, request.rack_id):
            _require(name is None or len(name) <= NAME_LENGTH_MAX, f"a name of {len(name or '')} characters")
        if request.member_epoch == JOIN:
            _require(timeout_ms > 0, "who joins says its rebalance timeout")
            _require(topics is not None or regex is not None, "who joins says what it subscribes to")
            _require(owned is not None and not any(t.partitions for t in owned), "who joins owns no partitions")
        else:
            _require(bool(request.member_id), "only who joins has no member id yet")
            _require(request.member_epoch >= LEAVE_FOR_A_WHILE, f"member epoch {request.member_epoch} is none")
            static = request.instance_id is not None or request.member_epoch != LEAVE_FOR_A_WHILE
            _require(static, "only a static member can leave for a while")
        _require(request.instance_id != "" and request.rack_id != "", "an instance id or rack is not empty")
        _require(all(t.topic_id is not None for t in owned or ()), "an owned topic has an id")
        return Beat(
            # Version 0 leaves it to the coordinator to name members.
            member=request.member_id or self._rng.token(),
            epoch=request.member_epoch,
            instance=request.instance_id,
            rack=request.rack_id,
            rebalance_timeout_ms=timeout_ms if timeout_ms >= 0 else None,
            topics=None if topics is None else tuple(topics),
            regex=regex,
            assignor=request.server_assignor,
            owned=None if owned is None else frozenset((t.topic_id.hex, p) for t in owned for p in t.partitions),
            client_id=client_id,
            host=host,
        )

    async def describe(self, request: Any) -> dict[str, Any]:
        operations = ALL_OPERATIONS if request.include_authorized_operations else UNKNOWN_OPERATIONS
        names = {view.topic_id: name for name, view in self._engine.topics().items()}
        return {"groups": [self._describe(group_id, operations, names) for group_id in request.group_ids]}

    def _describe(self, group_id: str, operations: int, names: dict[str, str]) -> dict[str, Any]:
        error, message, group = ErrorCode.none, None, None
        try:
            group = self._groups.find(group_id)
        except KafkaError as refused:
            error, message = ErrorCode(refused.code), refused.message
        else:
            if group is None:
                error, message = ErrorCode.group_id_not_found, f"there is no consumer group {group_id}"
        shown = group or ConsumerGroup(group_id)
        return {
            "error_code": error,
            "error_message": message,
            "group_id": group_id,
            "group_state": shown.state if group is not None else "",
            "group_epoch": shown.epoch,
            "assignment_epoch": shown.target_epoch,
            "assignor_name": shown.assignor,
            "members": [_member(member, names) for member in shown.members.values()],
            "authorized_operations": operations,
        }

    async def remove(self, group_id: str, member_id: str, instance_id: str | None) -> ErrorCode:
        """See `ConsumerGroups.remove`."""
        try:
            return await self._groups.remove(group_id, member_id, instance_id)
        except KafkaError as error:
            return ErrorCode(error.code)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise KafkaError(ErrorCode.invalid_request.value, message)


def _by_topic(parts: Parts) -> dict[uuid.UUID, list[int]]:
    found: dict[uuid.UUID, list[int]] = {}
    for topic, partition in sorted(parts):
        found.setdefault(uuid.UUID(hex=topic), []).append(partition)
    return found


def _member(member: ConsumerMember, names: dict[str, str]) -> dict[str, Any]:
    return {
        "member_id": member.id,
        "instance_id": member.instance,
        "rack_id": member.rack or None,
        "member_epoch": member.epoch,
        "client_id": member.client_id,
        "client_host": member.host,
        "subscribed_topic_names": member.topics,
        "subscribed_topic_regex": member.regex or None,
        "assignment": _named(member.assigned, names),
        "target_assignment": _named(member.target, names),
        "member_type": CONSUMER_MEMBER,
    }


def _named(parts: Parts, names: dict[str, str]) -> dict[str, Any]:
    topics = [
        {"topic_id": topic, "topic_name": names[topic.hex], "partitions": partitions}
        for topic, partitions in _by_topic(parts).items()
        if topic.hex in names
    ]
    return {"topic_partitions": topics}
