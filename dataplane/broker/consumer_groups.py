"""Consumer groups of KIP-848 at work: heartbeats one after the other, each change durable before it is answered;
members that fall silent or do not give back what they must are put out.

A successor reads everything back but the time at which members were heard: they get a whole session, go on with the
epochs they have, and notice nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from kio.schema.errors import ErrorCode

from dataplane.broker import consumer_state, topic_regex
from dataplane.broker.consumer_group import JOIN, Beat, Beaten, ConsumerGroup, Step, Topic, heartbeat
from dataplane.broker.consumer_state import Live
from dataplane.broker.engine import Engine, KafkaError
from dataplane.broker.groups import GroupCoordinator, Shard
from dataplane.stream.encode import KeyValue
from providers.base.clock import Clock

log = logging.getLogger(__name__)
T = TypeVar("T")

SESSION_MS = 45_000
"""Kafka's own default of `group.consumer.session.timeout.ms`."""
CHECK_MS = 500
"""How often each group is searched for members that are late."""
LOOK_MS = 1_000
"""How often heartbeats of a group look whether its topics have changed."""
MATCHED_MS = 5_000
"""How long a pattern's names are kept."""
PATTERNS_MAX = 256
HEARTBEAT_MS_RANGE = (1_000, 5_000)
HEARTBEAT_MS_A_MEMBER = 20
"""A group's heartbeats come at 50 a second at most, unless its members are more than 250."""
UNSETTLED_HEARTBEAT_MS = 200
"""While a member is on its way to its target: a rebalance is over in a few of these."""


class ConsumerGroups:
    """Over the coordinator, whose shards hold the groups."""

    def __init__(self, coordinator: GroupCoordinator, engine: Engine, clock: Clock) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._catalog = EngineCatalog(engine, clock)
        coordinator.on_tick = self._tick

    async def heartbeat(self, group_id: str, beat: Beat) -> tuple[Beaten, int]:
        """The outcome, durable, and after how many milliseconds the next heartbeat is due.

        Raises:
            KafkaError: the protocol's refusal; nothing has changed.
        """
        shard = self._coordinator.shard(group_id)
        live = shard.consumers.get(group_id)
        if live is None:
            if beat.epoch != JOIN:
                raise KafkaError(ErrorCode.unknown_member_id.value, f"there is no consumer group {group_id}")
            live = shard.consumers[group_id] = Live(ConsumerGroup(group_id))
        if beat.member in live.heard_ms:
            live.heard_ms[beat.member] = self._clock.monotonic_ms()

        def decide(group: ConsumerGroup) -> tuple[ConsumerGroup, Beaten]:
            classic = shard.groups.get(group_id)
            if classic is not None and (classic.members or classic.pending):
                raise KafkaError(ErrorCode.group_id_not_found.value, f"{group_id} has members of the classic protocol")
            now = self._clock.monotonic_ms()
            look = now - live.looked_ms >= LOOK_MS
            beaten = heartbeat(group, beat, self._catalog, look=look)
            if look:
                live.looked_ms = now
            return beaten.group, beaten

        beaten = await self._change(shard, live, decide)
        if beat.epoch >= JOIN or beaten.member_id in beaten.group.members:
            live.heard_ms[beaten.member_id] = self._clock.monotonic_ms()
        return beaten, _interval_ms(beaten)

    async def remove(self, group_id: str, member_id: str, instance_id: str | None) -> ErrorCode:
        """An administrator puts a member out, by either of its ids."""
        shard = self._coordinator.shard(group_id)
        live = shard.consumers.get(group_id)
        if live is None:
            return ErrorCode.unknown_member_id

        def decide(group: ConsumerGroup) -> tuple[ConsumerGroup, ErrorCode]:
            static = group.static(instance_id) if instance_id is not None else None
            if static is not None and member_id and static.id != member_id:
                return group, ErrorCode.fenced_instance_id
            member = static if instance_id is not None else group.members.get(member_id)
            if member is None:
                return group, ErrorCode.unknown_member_id
            return group.without(member.id), ErrorCode.none

        return await self._change(shard, live, decide)

    def find(self, group_id: str) -> ConsumerGroup | None:
        """The group, None when there is none of this kind.

        Raises:
            KafkaError: it is not this broker's to know.
        """
        live = self._coordinator.shard(group_id).consumers.get(group_id)
        return live.state if live is not None and live.exists else None

    async def _change(
        self, shard: Shard, live: Live, decide: Callable[[ConsumerGroup], tuple[ConsumerGroup | None, T]]
    ) -> T:
        """Decide on the newest state, and make the outcome durable before anybody sees it."""
        group_id = live.state.id
        live.users += 1
        try:
            async with live.lock:
                if self._coordinator.shard(group_id) is not shard:
                    raise KafkaError(ErrorCode.not_coordinator.value, "the group has another coordinator")
                after, outcome = decide(live.state)
                records = consumer_state.changes(live.state, after)
                if records:
                    await self._write(shard, records)
                    live.state = after if after is not None else ConsumerGroup(group_id)
                    _follow(live, self._clock.monotonic_ms())
                return outcome
        finally:
            live.users -= 1

    async def _write(self, shard: Shard, records: list[KeyValue]) -> None:
        try:
            await self._coordinator.write(shard, records)
        except KafkaError as error:
            if error.code == ErrorCode.not_coordinator.value:
                raise
            raise KafkaError(ErrorCode.coordinator_not_available.value, error.message) from error

    # ── who is silent ───────────────────────────────────────────────────────────────────────────────────────────────

    def _tick(self, shard: Shard) -> None:
        now = self._clock.monotonic_ms()
        for group_id, live in list(shard.consumers.items()):
            if not live.exists and not live.users:
                del shard.consumers[group_id]
            elif live.exists and not live.putting_out and now - live.checked_ms >= CHECK_MS:
                live.checked_ms = now
                offsets = group_id in shard.groups and shard.groups[group_id].offsets
                if _late(live, now) or not (live.state.members or offsets):
                    live.putting_out = True
                    self._coordinator.spawn(self._put_out(shard, live))

    async def _put_out(self, shard: Shard, live: Live) -> None:
        def decide(group: ConsumerGroup) -> tuple[ConsumerGroup | None, list[str]]:
            late = _late(live, self._clock.monotonic_ms())
            if not group.members:
                classic = shard.groups.get(group.id)
                return group if classic is not None and classic.offsets else None, late
            for member_id in late:
                group = group.without(member_id)
            return group, late

        try:
            late = await self._change(shard, live, decide)
        except KafkaError as error:
            log.warning("consumers-not-put-out", extra={"group": live.state.id, "error": error.message})
            return
        finally:
            live.putting_out = False
        if late:
            log.info("consumers-put-out", extra={"group": live.state.id, "members": late})


def _follow(live: Live, now_ms: float) -> None:
    """Keep the times of those that are members, and begin those of who is to give something back."""
    members = live.state.members
    live.heard_ms = {i: ms for i, ms in live.heard_ms.items() if i in members}
    revoking = [m for m in members.values() if m.step is Step.UNREVOKED]
    live.revoking_ms = {m.id: live.revoking_ms.get(m.id, now_ms) for m in revoking}


def _late(live: Live, now_ms: float) -> list[str]:
    """Members that were silent for a session, or have not given back in time what they must."""
    late = []
    for member in live.state.members.values():
        silent = now_ms - live.heard_ms.setdefault(member.id, now_ms) > SESSION_MS
        since = live.revoking_ms.setdefault(member.id, now_ms) if member.step is Step.UNREVOKED else now_ms
        if silent or now_ms - since > member.rebalance_timeout_ms:
            late.append(member.id)
    return late


def _interval_ms(beaten: Beaten) -> int:
    group = beaten.group
    member = group.members.get(beaten.member_id)
    if member is not None and (member.step is not Step.STABLE or member.epoch != group.epoch):
        return UNSETTLED_HEARTBEAT_MS
    low, high = HEARTBEAT_MS_RANGE
    return min(high, max(low, len(group.members) * HEARTBEAT_MS_A_MEMBER))


class EngineCatalog:
    """`Catalog` over an engine."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._matched: dict[str, tuple[float, frozenset[str]]] = {}

    def topic(self, name: str) -> Topic | None:
        view = self._engine.topic(name)
        if view is None:
            return None
        racks: Mapping[int | None, str] = {b.node_id: b.rack for b in self._engine.brokers()}
        return Topic(view.topic_id, [racks.get(p.leader, "") for p in view.partitions])

    def matching(self, regex: str) -> Iterable[str]:
        now = self._clock.monotonic_ms()
        until_ms, names = self._matched.get(regex, (now, frozenset()))
        if until_ms > now:
            return names
        try:
            every = [t.name for t in self._engine.topics().values() if not t.internal]
            names = frozenset(topic_regex.select(regex, every))
        except topic_regex.BadPattern as error:
            raise KafkaError(ErrorCode.invalid_regular_expression.value, f"pattern {regex!r}: {error}") from error
        if len(self._matched) >= PATTERNS_MAX:
            self._matched.clear()
        self._matched[regex] = (now + MATCHED_MS, names)
        return names
