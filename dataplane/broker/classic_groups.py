"""Members of classic groups: join, sync, heartbeat, leave, over the coordinator that holds the groups."""

from __future__ import annotations

from collections.abc import Mapping

from kio.schema.errors import ErrorCode

from dataplane.broker import classic_state
from dataplane.broker.engine import KafkaError
from dataplane.broker.group import Group, GroupState, Joined, Member, Synced
from dataplane.broker.groups import GroupCoordinator, Shard
from providers.base.clock import Clock, Rng

SESSION_TIMEOUT_MS_RANGE = (1_000, 1_800_000)


class ClassicGroups:
    """See the module."""

    def __init__(self, coordinator: GroupCoordinator, *, clock: Clock, rng: Rng) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._rng = rng

    async def join(
        self, group_id: str, member: Member, protocol_type: str, *, id_required: bool, skips: bool = False
    ) -> Joined:
        """Waits for the next generation. `member.id` is "" for a newcomer; with `id_required` it is told its id first
        (KIP-394). `skips`: the request's version knows `skip_assignment`.
        """
        try:
            shard = self._coordinator.shard(group_id)
        except KafkaError as error:
            return Joined(ErrorCode(error.code), member.id)
        low, high = SESSION_TIMEOUT_MS_RANGE
        if not low <= member.session_timeout_ms <= high:
            return Joined(ErrorCode.invalid_session_timeout, member.id)
        if member.id and (group_id not in shard.groups or not shard.groups[group_id].knows(member.id)):
            return Joined(ErrorCode.unknown_member_id, member.id)
        group = shard.groups.setdefault(group_id, Group(group_id))
        if (taken := self._coordinator.make_way(shard, group_id)) is not None:
            return Joined(taken, member.id)
        if group.members and group.protocol_type != protocol_type:
            return Joined(ErrorCode.inconsistent_group_protocol, member.id)
        now = self._clock.monotonic_ms()
        static = group.static(member.instance_id) if member.instance_id is not None else None
        if static is not None and member.id and static.id != member.id:
            return Joined(ErrorCode.fenced_instance_id, member.id)
        newcomer = not member.id
        if newcomer:
            member.id = f"{member.instance_id or member.client_id or 'member'}-{self._rng.token()}"
            if id_required and member.instance_id is None:
                known = group.expect(member.id, now + member.session_timeout_ms)
                return Joined(ErrorCode.member_id_required if known else ErrorCode.group_max_size_reached, member.id)
        group.protocol_type = protocol_type
        if static is None or not newcomer:
            return await group.join(member, now)
        joined = await group.replace(static, member, now, skips=skips)
        if group.state is GroupState.STABLE and joined.error is ErrorCode.none:
            # A successor that knew the old id would fence the new one.
            failed = await self._keep(shard, group)
            if failed is not ErrorCode.none:
                return Joined(failed, member.id)
        return joined

    async def sync(
        self,
        group_id: str,
        member: str,
        generation: int,
        assignments: Mapping[str, bytes],
        instance_id: str | None = None,
    ) -> Synced:
        try:
            shard = self._coordinator.shard(group_id)
        except KafkaError as error:
            return Synced(ErrorCode(error.code))
        group = shard.groups.get(group_id)
        if group is None:
            return Synced(ErrorCode.unknown_member_id)
        had = group.assigned
        synced = group.sync(member, generation, assignments, self._clock.monotonic_ms(), instance_id)
        if group.assigned and not had:
            group.settle(generation, await self._keep(shard, group), self._clock.monotonic_ms())
        return await synced

    async def _keep(self, shard: Shard, group: Group) -> ErrorCode:
        """Make the group's generation durable."""
        try:
            await self._coordinator.keep(shard, group, classic_state.dump(group))
        except KafkaError as error:
            moved = error.code == ErrorCode.not_coordinator.value
            return ErrorCode.not_coordinator if moved else ErrorCode.coordinator_not_available
        return ErrorCode.none

    def heartbeat(self, group_id: str, member: str, generation: int, instance_id: str | None = None) -> ErrorCode:
        try:
            group = self._coordinator.find(group_id)
        except KafkaError as error:
            return ErrorCode(error.code)
        if group is None:
            return ErrorCode.unknown_member_id
        return group.heartbeat(member, generation, self._clock.monotonic_ms(), instance_id)

    def leave(self, group_id: str, member: str, instance_id: str | None) -> ErrorCode:
        try:
            group = self._coordinator.find(group_id)
        except KafkaError as error:
            return ErrorCode(error.code)
        if group is None:
            return ErrorCode.unknown_member_id
        if not member and instance_id is not None:
            # An administrator removes a static member without knowing its id (KIP-345).
            static = group.static(instance_id)
            member = static.id if static is not None else ""
        if group.pending.pop(member, None) is not None:
            return ErrorCode.none
        wrong = group.check_identity(member, instance_id)
        if wrong is None:
            group.remove(member, self._clock.monotonic_ms())
        return wrong or ErrorCode.none
