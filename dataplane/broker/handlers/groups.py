"""The group APIs over the coordinator."""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.classic_groups import ClassicGroups
from dataplane.broker.engine import KafkaError
from dataplane.broker.group import Joined, Member
from dataplane.broker.groups import GroupCoordinator
from dataplane.broker.handlers.consumer_groups import ConsumerGroupsHandlers
from dataplane.broker.handlers.offset_commits import commit_offsets

MEMBER_ID_REQUIRED_FROM = 4
"""JoinGroup version from which a newcomer is told its member id first (KIP-394)."""
SKIPS_ASSIGNMENT_FROM = 9
"""JoinGroup version that can tell a static leader to leave the assignment as it is (KIP-814)."""


class Groups:
    """Handlers over a coordinator."""

    def __init__(
        self, coordinator: GroupCoordinator, classic: ClassicGroups, consumers: ConsumerGroupsHandlers
    ) -> None:
        self._coordinator = coordinator
        self._classic = classic
        self._consumers = consumers

    async def join(self, request: Any, client_id: str, host: str, version: int) -> dict[str, Any]:
        session_ms = request.session_timeout.total_seconds() * 1000
        rebalance = getattr(request, "rebalance_timeout", None)
        rebalance_ms = rebalance.total_seconds() * 1000 if rebalance is not None else -1.0
        member = Member(
            id=request.member_id,
            instance_id=_instance(request),
            client_id=client_id,
            host=host,
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=rebalance_ms if rebalance_ms > 0 else session_ms,
            protocols=[(p.name, p.metadata) for p in request.protocols],
            seen_ms=0.0,
        )
        required = version >= MEMBER_ID_REQUIRED_FROM
        joined: Joined = await self._classic.join(
            request.group_id,
            member,
            request.protocol_type,
            id_required=required,
            skips=version >= SKIPS_ASSIGNMENT_FROM,
        )
        return {
            "error_code": joined.error,
            "generation_id": joined.generation,
            "protocol_type": joined.protocol_type,
            "protocol_name": joined.protocol,
            "leader": joined.leader,
            "skip_assignment": joined.skip_assignment,
            "member_id": joined.member_id,
            "members": [{"member_id": i, "group_instance_id": s, "metadata": m} for i, s, m in joined.members],
        }

    async def sync(self, request: Any) -> dict[str, Any]:
        assignments = {a.member_id: a.assignment for a in request.assignments}
        synced = await self._classic.sync(
            request.group_id, request.member_id, request.generation_id, assignments, _instance(request)
        )
        return {
            "error_code": synced.error,
            "protocol_type": synced.protocol_type,
            "protocol_name": synced.protocol,
            "assignment": synced.assignment,
        }

    async def heartbeat(self, request: Any) -> dict[str, Any]:
        error = self._classic.heartbeat(request.group_id, request.member_id, request.generation_id, _instance(request))
        return {"error_code": error}

    async def leave(self, request: Any) -> dict[str, Any]:
        if not hasattr(request, "members"):
            return {"error_code": await self._leave(request.group_id, request.member_id, None)}
        answers = [
            {
                "member_id": m.member_id,
                "group_instance_id": m.group_instance_id,
                "error_code": await self._leave(request.group_id, m.member_id, m.group_instance_id),
            }
            for m in request.members
        ]
        # A coordinator that is not the right one says so for the whole request: that is what clients look at.
        whole = {ErrorCode.not_coordinator, ErrorCode.coordinator_not_available, ErrorCode.coordinator_load_in_progress}
        error = next((a["error_code"] for a in answers if a["error_code"] in whole), ErrorCode.none)
        return {"error_code": error, "members": answers}

    async def _leave(self, group_id: str, member_id: str, instance_id: str | None) -> ErrorCode:
        if self._coordinator.has_consumers(group_id):
            return await self._consumers.remove(group_id, member_id, instance_id)
        return self._classic.leave(group_id, member_id, instance_id)

    async def offset_commit(self, request: Any) -> dict[str, Any]:
        generation = getattr(request, "generation_id_or_member_epoch", -1)
        member, instance_id = request.member_id, _instance(request)
        return await commit_offsets(
            request,
            lambda offsets: self._coordinator.commit(request.group_id, member, generation, offsets, instance_id),
        )

    async def offset_fetch(self, request: Any) -> dict[str, Any]:
        asked = getattr(request, "groups", None)
        if asked is not None:
            return {"groups": [{"group_id": g.group_id, **self._committed(g)} for g in asked]}
        return self._committed(request)

    def _committed(self, asked: Any) -> dict[str, Any]:
        """Of one group. `asked` is the whole request before version 8, a part of it since."""
        keys = None if asked.topics is None else [(t.name, p) for t in asked.topics for p in t.partition_indexes]
        member = getattr(asked, "member_id", None) or "", getattr(asked, "member_epoch", -1)
        error = ErrorCode.none
        try:
            found = self._coordinator.committed(asked.group_id, keys, member)
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


def _instance(request: Any) -> str | None:
    """The static member's instance id; None where the version has none."""
    instance_id: str | None = getattr(request, "group_instance_id", None)
    return instance_id
