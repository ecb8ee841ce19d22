"""One consumer group under the protocol of KIP-848, as values: a heartbeat maps (group, what the member says, topics)
to a new group and an answer. Nothing here waits; the caller makes the new group durable before it answers.

Three numbers drive it. The group's epoch rises with whatever may change who reads what; the target epoch says for which
of them partitions were dealt out; each member has the epoch up to which it has followed.

    heartbeat ──► epoch + 1? ──► target dealt out anew? ──► this member led one step towards its target

    STABLE ──target has less──► UNREVOKED ──member gave it back──► STABLE, or UNRELEASED while others hold what it gets
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from kio.schema.errors import ErrorCode

from dataplane.broker.assignors import ASSIGNORS, Partition, Subscriber, preferred
from dataplane.broker.engine import KafkaError

MEMBERS_MAX = 1_000
JOIN, LEAVE, LEAVE_FOR_A_WHILE = 0, -1, -2
"""Epochs that are no epochs: a member joins, leaves, or is static and will be back."""

Parts = frozenset[Partition]
NOTHING: Parts = frozenset()


class Step(StrEnum):
    """Where a member is on the way to its target."""

    STABLE = "stable"
    UNREVOKED = "unrevoked"
    """It is to give partitions back, and has not said that it did."""
    UNRELEASED = "unreleased"
    """It waits for partitions that others still have."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as groups see it: its id, and the zone of each partition's owner."""

    id: str
    racks: Sequence[str]


class Catalog(Protocol):
    """The topics there are."""

    def topic(self, name: str) -> Topic | None: ...

    def matching(self, regex: str) -> Iterable[str]:
        """Names of the topics that a pattern matches as a whole.

        Raises:
            KafkaError: INVALID_REGULAR_EXPRESSION.
        """
        ...


@dataclass(frozen=True, slots=True)
class Beat:
    """What a member's heartbeat says. None: nothing new since the last one."""

    member: str
    epoch: int
    instance: str | None = None
    rack: str | None = None
    rebalance_timeout_ms: int | None = None
    topics: tuple[str, ...] | None = None
    regex: str | None = None
    assignor: str | None = None
    owned: Parts | None = None
    client_id: str = ""
    host: str = ""

    @property
    def whole(self) -> bool:
        """It says everything, so everything is answered."""
        subscribed = self.topics is not None or self.regex is not None
        return self.epoch == JOIN or (self.rebalance_timeout_ms is not None and subscribed and self.owned is not None)


@dataclass(frozen=True, slots=True)
class ConsumerMember:
    """A member. `assigned` is its own; `revoking` it was told to give back and may still be reading."""

    id: str
    instance: str | None = None
    rack: str = ""
    client_id: str = ""
    host: str = ""
    rebalance_timeout_ms: int = 45_000
    topics: tuple[str, ...] = ()
    regex: str = ""
    assignor: str | None = None
    epoch: int = 0
    previous_epoch: int = 0
    step: Step = Step.STABLE
    assigned: Parts = NOTHING
    revoking: Parts = NOTHING
    target: Parts = NOTHING


@dataclass(frozen=True, slots=True)
class ConsumerGroup:
    """See the module. `topics_seen` is a checksum of the topics that the epoch is about."""

    id: str
    epoch: int = 0
    target_epoch: int = 0
    assignor: str = ""
    topics_seen: int = 0
    members: Mapping[str, ConsumerMember] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """As Kafka's tools show it."""
        if not self.members:
            return "Empty"
        if self.epoch > self.target_epoch:
            return "Assigning"
        settled = all(m.step is Step.STABLE and m.epoch == self.target_epoch for m in self.members.values())
        return "Stable" if settled else "Reconciling"

    def static(self, instance: str) -> ConsumerMember | None:
        """The member of this instance id, None when there is none."""
        return next((m for m in self.members.values() if m.instance == instance), None)

    def with_member(self, member: ConsumerMember) -> ConsumerGroup:
        """The same group, if that is how it knows the member."""
        if self.members.get(member.id) == member:
            return self
        return replace(self, members={**self.members, member.id: member})

    def without(self, member_id: str) -> ConsumerGroup:
        """A member is gone, and what it had is free."""
        rest = {i: m for i, m in self.members.items() if i != member_id}
        return replace(self, epoch=self.epoch + 1, members=rest)

    def check(self, member_id: str, epoch: int) -> ErrorCode | None:
        """Why who calls itself this member may not commit or read offsets; None when it may."""
        member = self.members.get(member_id)
        if member is None:
            return ErrorCode.unknown_member_id
        return None if member.epoch == epoch else ErrorCode.stale_member_epoch


@dataclass(frozen=True, slots=True)
class Beaten:
    """Outcome of a heartbeat. `assignment` None: what the member knows still holds."""

    group: ConsumerGroup
    member_id: str
    epoch: int
    assignment: Parts | None = None


def heartbeat(group: ConsumerGroup, beat: Beat, catalog: Catalog, *, look: bool) -> Beaten:
    """One heartbeat. `look`: the topics may have changed since the last one.

    Raises:
        KafkaError: the protocol's refusal; the group stays as it is.
    """
    if beat.epoch in (LEAVE, LEAVE_FOR_A_WHILE):
        return _leave(group, beat)
    if beat.assignor is not None and beat.assignor not in ASSIGNORS:
        known = ", ".join(ASSIGNORS)
        raise KafkaError(ErrorCode.unsupported_assignor.value, f"assignor {beat.assignor} is not one of {known}")
    before, group = _identify(group, beat)
    member = _told(before, beat)
    changed = before.id not in group.members or _subscription(member) != _subscription(before)
    if changed and member.regex:
        catalog.matching(member.regex)  # a bad pattern is refused before anything changes
    group = group.with_member(member)
    if changed or look:
        seen = _topics_seen(group, catalog)
        if changed or seen != group.topics_seen:
            group = replace(group, epoch=group.epoch + 1, topics_seen=seen)
    if group.target_epoch < group.epoch:
        group = _deal(group, catalog)
    member = group.members[member.id]
    stepped = _step(group, member, beat.owned)
    told = beat.whole or stepped.assigned != member.assigned
    group = group.with_member(stepped)
    return Beaten(group, stepped.id, stepped.epoch, stepped.assigned if told else None)


def _leave(group: ConsumerGroup, beat: Beat) -> Beaten:
    member = group.members.get(beat.member)
    if beat.instance is not None:
        static = group.static(beat.instance)
        if static is None:
            raise KafkaError(ErrorCode.unknown_member_id.value, f"there is no member of instance {beat.instance}")
        if static.id != beat.member:
            raise KafkaError(ErrorCode.fenced_instance_id.value, f"instance {beat.instance} is another member's now")
    if member is None:
        raise KafkaError(ErrorCode.unknown_member_id.value, f"{beat.member} is no member of {group.id}")
    if beat.epoch == LEAVE_FOR_A_WHILE:
        # What it has is kept for it, until its session is over.
        away = replace(member, epoch=LEAVE_FOR_A_WHILE, step=Step.STABLE, revoking=NOTHING)
        return Beaten(group.with_member(away), member.id, LEAVE_FOR_A_WHILE)
    return Beaten(group.without(member.id), member.id, LEAVE)


def _identify(group: ConsumerGroup, beat: Beat) -> tuple[ConsumerMember, ConsumerGroup]:
    """The member that speaks, as it was, and the group (without whom it replaces)."""
    known = group.members.get(beat.member)
    static = group.static(beat.instance) if beat.instance is not None else None
    if static is not None and static.id != beat.member:
        if beat.epoch != JOIN:
            raise KafkaError(ErrorCode.fenced_instance_id.value, f"instance {beat.instance} is another member's now")
        if static.epoch != LEAVE_FOR_A_WHILE:
            raise KafkaError(ErrorCode.unreleased_instance_id.value, f"instance {beat.instance} is still a member")
        back = replace(static, id=beat.member, epoch=JOIN, previous_epoch=JOIN)
        members = {i: m for i, m in group.members.items() if i != static.id}
        return back, replace(group, members={**members, back.id: back})
    if known is None:
        if beat.epoch != JOIN:
            raise KafkaError(ErrorCode.unknown_member_id.value, f"{beat.member} is no member of {group.id}")
        if len(group.members) >= MEMBERS_MAX:
            raise KafkaError(ErrorCode.group_max_size_reached.value, f"{group.id} has {MEMBERS_MAX} members")
        return ConsumerMember(beat.member, beat.instance), group
    if beat.epoch != JOIN:
        if beat.instance is not None and static is None:
            raise KafkaError(ErrorCode.unknown_member_id.value, f"there is no member of instance {beat.instance}")
        _check_epoch(known, beat)
    return known, group


def _check_epoch(member: ConsumerMember, beat: Beat) -> None:
    if beat.epoch == member.epoch:
        return
    # The answer that raised its epoch may be lost: then it is still where it was, and has no more than it may.
    behind = beat.epoch == member.previous_epoch and beat.owned is not None and beat.owned <= member.assigned
    if beat.epoch > member.epoch or not behind:
        raise KafkaError(
            ErrorCode.fenced_member_epoch.value, f"member epoch {beat.epoch} is not the current one, {member.epoch}"
        )


def _told(member: ConsumerMember, beat: Beat) -> ConsumerMember:
    """The member with what the heartbeat says of it."""
    joins = beat.epoch == JOIN
    regex = beat.regex if beat.regex is not None else member.regex
    if joins and beat.regex is None:
        regex = ""
    return replace(
        member,
        rack=beat.rack if beat.rack is not None else member.rack,
        client_id=beat.client_id,
        host=beat.host,
        rebalance_timeout_ms=beat.rebalance_timeout_ms or member.rebalance_timeout_ms,
        topics=tuple(sorted(set(beat.topics))) if beat.topics is not None else () if joins else member.topics,
        regex=regex,
        assignor=beat.assignor if beat.assignor is not None else member.assignor,
    )


def _subscription(member: ConsumerMember) -> tuple[object, ...]:
    """What partitions are dealt out by."""
    return member.topics, member.regex, member.rack, member.assignor


# ── dealing out ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _names(members: Iterable[ConsumerMember], catalog: Catalog) -> dict[str, frozenset[str]]:
    """Topic names that each member subscribes to, by member id."""
    by_regex = {regex: frozenset(catalog.matching(regex)) for regex in {m.regex for m in members} if regex}
    return {m.id: frozenset(m.topics) | by_regex.get(m.regex, frozenset()) for m in members}


def _known(names: Mapping[str, frozenset[str]], catalog: Catalog) -> dict[str, Topic]:
    every = sorted(frozenset().union(*names.values()))
    return {name: topic for name in every if (topic := catalog.topic(name)) is not None}


def _topics_seen(group: ConsumerGroup, catalog: Catalog) -> int:
    """Owners' zones are left out: a partition that is moved is no reason for a rebalance."""
    known = _known(_names(group.members.values(), catalog), catalog)
    return zlib.crc32(repr([(name, t.id, len(t.racks)) for name, t in known.items()]).encode())


def _deal(group: ConsumerGroup, catalog: Catalog) -> ConsumerGroup:
    names = _names(group.members.values(), catalog)
    known = _known(names, catalog)
    topics = {topic.id: topic.racks for topic in known.values()}
    subscribers = {
        m.id: Subscriber(frozenset(known[n].id for n in names[m.id] if n in known), m.rack, m.target)
        for m in group.members.values()
    }
    assignor = preferred(m.assignor for m in group.members.values())
    dealt = ASSIGNORS[assignor](subscribers, topics)
    members = {}
    for member in group.members.values():
        target = frozenset(dealt[member.id])
        members[member.id] = member if target == member.target else replace(member, target=target)
    return replace(group, target_epoch=group.epoch, assignor=assignor, members=members)


# ── one member's step ───────────────────────────────────────────────────────────────────────────────────────────────


def _step(group: ConsumerGroup, member: ConsumerMember, owned: Parts | None) -> ConsumerMember:
    """Towards the target, as far as the member's own word (`owned`; None: as before) and the others allow. What a
    member is to give back it gives back before its epoch rises, and nobody gets it before.
    """
    if member.step is Step.STABLE and member.epoch == group.target_epoch:
        return member
    if member.step is Step.UNREVOKED and (owned is None or owned & member.revoking):
        return member
    staying = member.assigned & member.target
    leaving = member.assigned - member.target
    if leaving and (owned is None or owned & leaving):
        return replace(member, step=Step.UNREVOKED, assigned=staying, revoking=leaving)
    wanted = member.target - staying
    held: set[Partition] = set()
    if wanted:
        for other in group.members.values():
            if other.id != member.id:
                held |= wanted & other.assigned
                held |= wanted & other.revoking
    moved_on = member.epoch != group.target_epoch
    return replace(
        member,
        step=Step.UNRELEASED if held else Step.STABLE,
        assigned=staying | (wanted - held),
        revoking=NOTHING,
        epoch=group.target_epoch,
        previous_epoch=member.epoch if moved_on else member.previous_epoch,
    )
