"""The group APIs over the coordinator."""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError
from dataplane.broker.group import Committed, Group, GroupState, Joined, Member
from dataplane.broker.groups import GroupCoordinator
from dataplane.broker.wire import UNKNOWN_OPERATIONS

MEMBER_ID_REQUIRED_FROM = 4
"""JoinGroup version from which a newcomer is told its member id first (KIP-394)."""
METADATA_BYTES_MAX = 4_096


class Groups:
    """Handlers over a coordinator."""

    def __init__(self, coordinator: GroupCoordinator) -> None:
        self._coordinator = coordinator

    async def join(self, request: Any, client_id: str, host: str, version: int) -> dict[str, Any]:
        session_ms = request.session_timeout.total_seconds() * 1000
        rebalance = getattr(request, "rebalance_timeout", None)
        rebalance_ms = rebalance.total_seconds() * 1000 if rebalance is not None else -1.0
        member = Member(
            id=request.member_id,
            instance_id=getattr(request, "group_instance_id", None),
            client_id=client_id,
            host=host,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=rebalance_ms if rebalance_ms > 0 else session_ms,
            protocols=[(p.name, p.metadata) for p in request.protocols],
            seen_ms=0.0,
        )
        required = version >= MEMBER_ID_REQUIRED_FROM
        joined: Joined = await self._coordinator.join(
            request.group_id, member, request.protocol_type, id_required=required
        )
        return {
            "error_code": joined.error,
            "generation_id": joined.generation,
            "protocol_type": joined.protocol_type,
            "protocol_name": joined.protocol,
            "leader": joined.leader,
            "member_id": joined.member_id,
            "members": [{"member_id": i, "group_instance_id": s, "metadata": m} for i, s, m in joined.members],
        }

    async def sync(self, request: Any) -> dict[str, Any]:
        assignments = {a.member_id: a.assignment for a in request.assignments}
        synced = await self._coordinator.sync(request.group_id, request.member_id, request.generation_id, assignments)
        return {
            "error_code": synced.error,
            "protocol_type": synced.protocol_type,
            "protocol_name": synced.protocol,
            "assignment": synced.assignment,
        }

    async def heartbeat(self, request: Any) -> dict[str, Any]:
        return {"error_code": self._coordinator.heartbeat(request.group_id, request.member_id, request.generation_id)}

    async def leave(self, request: Any) -> dict[str, Any]:
        if not hasattr(request, "members"):
            return {"error_code": self._coordinator.leave(request.group_id, request.member_id, None)}
        answers = [
            {
                "member_id": m.member_id,
                "group_instance_id": m.group_instance_id,
                "error_code": self._coordinator.leave(request.group_id, m.member_id, m.group_instance_id),
            }
            for m in request.members
        ]
        # A coordinator that is not the right one says so for the whole request: that is what clients look at.
        whole = {ErrorCode.not_coordinator, ErrorCode.coordinator_not_available, ErrorCode.coordinator_load_in_progress}
        error = next((a["error_code"] for a in answers if a["error_code"] in whole), ErrorCode.none)
        return {"error_code": error, "members": answers}

    async def offset_commit(self, request: Any) -> dict[str, Any]:
        generation = getattr(request, "generation_id_or_member_epoch", -1)
        offsets: dict[tuple[str, int], Committed] = {}
        errors: dict[tuple[str, int], ErrorCode] = {}
        for topic in request.topics:
            for part in topic.partitions:
                key = (topic.name, part.partition_index)
                if len(part.committed_metadata or "") > METADATA_BYTES_MAX:
                    errors[key] = ErrorCode.offset_metadata_too_large
                    continue
                epoch = getattr(part, "committed_leader_epoch", -1)
                offsets[key] = Committed(part.committed_offset, epoch, part.committed_metadata)
        error = ErrorCode.none
        if offsets:
            error = await self._coordinator.commit(request.group_id, request.member_id, generation, offsets)
        return {
            "topics": [
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
        }

    async def offset_fetch(self, request: Any) -> dict[str, Any]:
        asked = request.topics
        keys = None if asked is None else [(t.name, p) for t in asked for p in t.partition_indexes]
        error = ErrorCode.none
        try:
            found = self._coordinator.committed(request.group_id, keys)
        except KafkaError as refused:
            error = ErrorCode(refused.code)
            found = dict.fromkeys(keys or ())
        topics: dict[str, list[dict[str, Any]]] = {}
        for (topic, partition), committed in found.items():
            topics.setdefault(topic, []).append(
                {
                    "partition_index": partition,
                    "committed_offset": committed.offset if committed is not None else -1,
                    "committed_leader_epoch": committed.leader_epoch if committed is not None else -1,
                    "metadata": (committed.metadata if committed is not None else "") or "",
                    "error_code": error,
                }
            )
        return {"error_code": error, "topics": [{"name": n, "partitions": ps} for n, ps in topics.items()]}

    async def describe(self, request: Any) -> dict[str, Any]:
        return {"groups": [self._describe(group_id) for group_id in request.groups]}

    def _describe(self, group_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "error_code": ErrorCode.none,
            "group_id": group_id,
            "group_state": "Dead",
            "protocol_type": "",
            "protocol_data": "",
            "members": (),
            "authorized_operations": UNKNOWN_OPERATIONS,
        }
        try:
            group = self._coordinator.find(group_id)
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code)}
        if group is None:
            return answer
        return {
            **answer,
            "group_state": group.state.value,
            "protocol_type": group.protocol_type or "",
            "protocol_data": group.protocol if group.state is GroupState.STABLE else "",
            "members": [_member(group, member) for member in group.members.values()],
        }

    async def list(self, request: Any) -> dict[str, Any]:
        wanted = getattr(request, "states_filter", None) or ()
        groups = [
            {"group_id": g.id, "protocol_type": g.protocol_type or "", "group_state": g.state.value}
            for g in self._coordinator.all_groups()
            if not wanted or g.state.value in wanted
        ]
        return {"error_code": ErrorCode.none, "groups": groups}

    async def delete(self, request: Any) -> dict[str, Any]:
        results = [
            {"group_id": name, "error_code": await self._coordinator.delete(name)} for name in request.groups_names
        ]
        return {"results": results}


def _member(group: Group, member: Member) -> dict[str, Any]:
    return {
        "member_id": member.id,
        "group_instance_id": member.instance_id,
        "client_id": member.client_id,
        "client_host": member.host,
        "member_metadata": member.metadata(group.protocol),
        "member_assignment": member.assignment,
    }
