"""One consumer group under the classic protocol (KIP-62 and before): a state machine over values; time is handed in.

Empty ──join──► PreparingRebalance ──all joined, or time over──► CompletingRebalance ──leader's sync──► Stable
  ▲                    ▲                                                │                                 │
  └──last member left──┴──────────────── join, leave, silence ──────────┴─────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from kio.schema.errors import ErrorCode

T = TypeVar("T")

MEMBERS_MAX = 1_000
INITIAL_DELAY_MS = 150
"""How long an empty group waits for more members before its first generation: one rebalance instead of one a member."""


class GroupState(StrEnum):
    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed offset. `metadata` is the client's."""

    offset: int
    leader_epoch: int
    metadata: str | None


@dataclass(frozen=True, slots=True)
class Joined:
    """Answer to a join. `members` (id → instance id, metadata) only for the leader; `skip_assignment`: it leads, and
    the assignment stands as it is (KIP-814).
    """

    error: ErrorCode
    member_id: str
    generation: int = -1
    protocol_type: str | None = None
    protocol: str = ""
    leader: str = ""
    members: tuple[tuple[str, str | None, bytes], ...] = ()
    skip_assignment: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """Answer to a sync."""

    error: ErrorCode
    assignment: bytes = b""
    protocol_type: str | None = None
    protocol: str | None = None


@dataclass(slots=True)
class Member:
    id: str
    instance_id: str | None
    client_id: str
    host: str
    session_timeout_ms: float
    rebalance_timeout_ms: float
    protocols: list[tuple[str, bytes]]
    seen_ms: float
    assignment: bytes = b""
    joining: asyncio.Future[Joined] | None = None
    syncing: asyncio.Future[Synced] | None = None

    def metadata(self, protocol: str) -> bytes:
        return next((data for name, data in self.protocols if name == protocol), b"")


@dataclass(slots=True)
class Group:
    """See the module."""

    id: str
    state: GroupState = GroupState.EMPTY
    generation: int = 0
    protocol_type: str | None = None
    protocol: str = ""
    leader: str = ""
    members: dict[str, Member] = field(default_factory=dict)
    offsets: dict[tuple[str, int], Committed] = field(default_factory=dict)
    rebalance_ends_ms: float = 0.0
    pending: dict[str, float] = field(default_factory=dict)
    """Ids given to newcomers that have not joined with them yet (KIP-394), with when they are forgotten."""
    kept: dict[bytes, bytes] = field(default_factory=dict)
    """What the log has of the group (`classic_state.py`)."""
    assigned: bool = False
    """The leader has handed assignments in; `settle` says whether they hold."""
    _initial: bool = False

    def static(self, instance_id: str) -> Member | None:
        """The member of this instance id, None when there is none."""
        return next((m for m in self.members.values() if m.instance_id == instance_id), None)

    def knows(self, member_id: str) -> bool:
        """A member, or one that was given this id to join with."""
        return member_id in self.members or member_id in self.pending

    def expect(self, member_id: str, until_ms: float) -> bool:
        """Remember an id given to a newcomer; False when there are too many."""
        if len(self.members) + len(self.pending) >= MEMBERS_MAX:
            return False
        self.pending[member_id] = until_ms
        return True

    # ── joining ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def join(self, member: Member, now_ms: float) -> asyncio.Future[Joined]:
        """A new or known member wants into the next generation; the future is the answer."""
        future: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        refused = self._refusal(member)
        if refused is not None:
            future.set_result(Joined(refused, member.id))
            return future
        self.pending.pop(member.id, None)
        known = self.members.get(member.id)
        if known is not None:
            # The first request's answer is lost, or it was sent twice: only the newest is waited for.
            _answer(known.joining, Joined(ErrorCode.unknown_member_id, member.id))
            member.assignment, member.syncing = known.assignment, known.syncing
        first = self.state is GroupState.EMPTY
        self.members[member.id] = member
        member.seen_ms = now_ms
        if known is not None and known.protocols == member.protocols and self._stands(member):
            future.set_result(self._joined(member))
            return future
        return self._enter(member, future, now_ms, INITIAL_DELAY_MS if first else None)

    def _enter(
        self, member: Member, future: asyncio.Future[Joined], now_ms: float, delay_ms: float | None = None
    ) -> asyncio.Future[Joined]:
        member.joining = future
        self.prepare(now_ms, delay_ms)
        self.advance(now_ms)
        return future

    def _stands(self, member: Member) -> bool:
        """A member that joins again with what is known of it is told the generation there is. Not a leader of a stable
        group: it asks for a new assignment that way.
        """
        if self.state is GroupState.STABLE:
            return member.id != self.leader
        return self.state is GroupState.COMPLETING

    def replace(self, old: Member, member: Member, now_ms: float, *, skips: bool) -> asyncio.Future[Joined]:
        """A static member is back under a new id. It takes its predecessor's place: no rebalance in a stable group, and
        whoever still acts under the old id is fenced. `skips`: its JoinGroup version knows `skip_assignment`.
        """
        future: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        refused = self._refusal(member, instead_of=old.id)
        if refused is not None:
            future.set_result(Joined(refused, member.id))
            return future
        _answer(old.joining, Joined(ErrorCode.fenced_instance_id, old.id))
        _answer(old.syncing, Synced(ErrorCode.fenced_instance_id))
        old.joining = old.syncing = None
        led = self.leader
        members = [member if m is old else m for m in self.members.values()]
        self.members = {m.id: m for m in members}
        member.assignment, member.seen_ms = old.assignment, now_ms
        if self.leader == old.id:
            self.leader = member.id
        if self.state is not GroupState.STABLE or self._vote() != self.protocol:
            return self._enter(member, future, now_ms)
        joined = self._joined(member)
        if member.id != self.leader:
            future.set_result(joined)
        elif skips:
            future.set_result(replace(joined, skip_assignment=True))
        else:
            # Told that it leads, it would compute an assignment anew: it hears its former id instead, and follows.
            future.set_result(replace(joined, leader=led, members=()))
        return future

    def _refusal(self, member: Member, instead_of: str = "") -> ErrorCode | None:
        others = [m for m in self.members.values() if m.id not in (member.id, instead_of)]
        if len(others) >= MEMBERS_MAX:
            return ErrorCode.group_max_size_reached
        if not member.protocols:
            return ErrorCode.inconsistent_group_protocol
        mine = {name for name, _ in member.protocols}
        if any(mine.isdisjoint(n for n, _ in m.protocols) for m in others):
            return ErrorCode.inconsistent_group_protocol
        return None

    def prepare(self, now_ms: float, delay_ms: float | None = None) -> None:
        """Begin a rebalance, or go on with the one under way."""
        if self.state is GroupState.PREPARING:
            return
        for member in self.members.values():
            _answer(member.syncing, Synced(ErrorCode.rebalance_in_progress))
            member.syncing = None
        longest = max((m.rebalance_timeout_ms for m in self.members.values()), default=0.0)
        self.rebalance_ends_ms = now_ms + (delay_ms if delay_ms is not None else longest)
        self._initial = delay_ms is not None
        self.state = GroupState.PREPARING

    def advance(self, now_ms: float) -> None:
        """Drop who was silent for too long; end the join phase when it is over."""
        self.pending = {i: until_ms for i, until_ms in self.pending.items() if now_ms < until_ms}
        silent = [
            m.id
            for m in self.members.values()
            if m.joining is None and m.syncing is None and now_ms - m.seen_ms > m.session_timeout_ms
        ]
        for member_id in silent:
            self.remove(member_id, now_ms)
        if self.state is not GroupState.PREPARING:
            return
        over = now_ms >= self.rebalance_ends_ms
        everyone = all(m.joining is not None for m in self.members.values())
        if over or (everyone and not self._initial):
            self._complete(now_ms)

    def _complete(self, now_ms: float) -> None:
        self.members = {i: m for i, m in self.members.items() if m.joining is not None}
        if not self.members:
            self.state, self.leader, self.protocol = GroupState.EMPTY, "", ""
            self.generation += 1
            return
        self.generation += 1
        self.protocol = self._vote()
        if self.leader not in self.members:
            self.leader = next(iter(self.members))
        self.state, self.assigned = GroupState.COMPLETING, False
        for member in self.members.values():
            member.seen_ms = now_ms
            member.assignment = b""
            _answer(member.joining, self._joined(member))
            member.joining = None

    def _joined(self, member: Member) -> Joined:
        everybody = tuple((m.id, m.instance_id, m.metadata(self.protocol)) for m in self.members.values())
        leads = member.id == self.leader
        return Joined(
            ErrorCode.none,
            member.id,
            self.generation,
            self.protocol_type,
            self.protocol,
            self.leader,
            everybody if leads else (),
        )

    def _vote(self) -> str:
        """The protocol that most members like best, of those that all know."""
        common = set.intersection(*({n for n, _ in m.protocols} for m in self.members.values()))
        votes: dict[str, int] = {}
        for member in self.members.values():
            choice = next(name for name, _ in member.protocols if name in common)
            votes[choice] = votes.get(choice, 0) + 1
        return max(votes, key=lambda name: votes[name])

    # ── syncing, heartbeats, leaving ────────────────────────────────────────────────────────────────────────────────

    def sync(
        self,
        member_id: str,
        generation: int,
        assignments: Mapping[str, bytes],
        now_ms: float,
        instance_id: str | None = None,
    ) -> asyncio.Future[Synced]:
        """The leader hands assignments in, the others wait for theirs."""
        future: asyncio.Future[Synced] = asyncio.get_running_loop().create_future()
        error = self.check(member_id, generation, instance_id)
        if error is None and self.state is GroupState.PREPARING:
            error = ErrorCode.rebalance_in_progress
        if error is not None:
            future.set_result(Synced(error))
            return future
        member = self.members[member_id]
        member.seen_ms = now_ms
        if self.state is GroupState.STABLE:
            future.set_result(self._synced(member))
            return future
        member.syncing = future
        if member_id == self.leader and not self.assigned:
            for each in self.members.values():
                each.assignment = assignments.get(each.id, b"")
            self.assigned = True
        return future

    def settle(self, generation: int, error: ErrorCode, now_ms: float) -> None:
        """The assignments of a generation are durable, or cannot be made so."""
        if self.state is not GroupState.COMPLETING or self.generation != generation:
            return
        if error is ErrorCode.none:
            self.state = GroupState.STABLE
        for each in self.members.values():
            each.seen_ms = now_ms
            _answer(each.syncing, self._synced(each) if error is ErrorCode.none else Synced(error))
            each.syncing = None
        if error is not ErrorCode.none:
            self.prepare(now_ms)

    def _synced(self, member: Member) -> Synced:
        return Synced(ErrorCode.none, member.assignment, self.protocol_type, self.protocol)

    def check(self, member_id: str, generation: int, instance_id: str | None = None) -> ErrorCode | None:
        """Why this member may not act in this generation; None when it may."""
        wrong = self.check_identity(member_id, instance_id)
        if wrong is not None:
            return wrong
        return None if generation == self.generation else ErrorCode.illegal_generation

    def check_identity(self, member_id: str, instance_id: str | None) -> ErrorCode | None:
        """Why this is no member; None when it is one. Whoever was replaced under its instance id is fenced."""
        if instance_id is not None:
            static = self.static(instance_id)
            if static is not None and static.id != member_id:
                return ErrorCode.fenced_instance_id
        return None if member_id in self.members else ErrorCode.unknown_member_id

    def heartbeat(self, member_id: str, generation: int, now_ms: float, instance_id: str | None = None) -> ErrorCode:
        error = self.check(member_id, generation, instance_id)
        if error is not None:
            return error
        self.members[member_id].seen_ms = now_ms
        return ErrorCode.rebalance_in_progress if self.state is GroupState.PREPARING else ErrorCode.none

    def remove(self, member_id: str, now_ms: float) -> bool:
        """A member left or fell silent; False when it was none."""
        member = self.members.pop(member_id, None)
        if member is None:
            return False
        _answer(member.joining, Joined(ErrorCode.unknown_member_id, member_id))
        _answer(member.syncing, Synced(ErrorCode.unknown_member_id))
        if self.state is not GroupState.PREPARING:
            self.prepare(now_ms)
        if not self.members:
            self._complete(now_ms)
        else:
            self.advance(now_ms)
        return True

    def dissolve(self, error: ErrorCode) -> None:
        """This broker does not coordinate the group any more."""
        for member in self.members.values():
            _answer(member.joining, Joined(error, member.id))
            _answer(member.syncing, Synced(error))
        self.members.clear()


def _answer(future: asyncio.Future[T] | None, value: T) -> None:
    if future is not None and not future.done():
        future.set_result(value)
