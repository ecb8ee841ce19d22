"""One consumer group under the classic protocol (KIP-62 and before): a state machine over values; time is handed in.

Empty ──join──► PreparingRebalance ──all joined, or time over──► CompletingRebalance ──leader's sync──► Stable
  ▲                    ▲                                                │                                 │
  └──last member left──┴──────────────── join, leave, silence ──────────┴─────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """Answer to a join. `members` (id → instance id, metadata) only for the leader."""

    error: ErrorCode
    member_id: str
    generation: int = -1
    protocol_type: str | None = None
    protocol: str = ""
    leader: str = ""
    members: tuple[tuple[str, str | None, bytes], ...] = ()


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
    _initial: bool = False

    # ── joining ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def join(self, member: Member, now_ms: float) -> asyncio.Future[Joined]:
        """A new or known member wants into the next generation; the future is the answer."""
        future: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        refused = self._refusal(member)
        if refused is not None:
            future.set_result(Joined(refused, member.id))
            return future
        known = self.members.get(member.id)
        if known is not None:
            _answer(known.joining, Joined(ErrorCode.unknown_member_id, member.id))
            member.assignment, member.syncing = known.assignment, known.syncing
        first = self.state is GroupState.EMPTY
        self.members[member.id] = member
        member.joining = future
        self.prepare(now_ms, INITIAL_DELAY_MS if first else None)
        self.advance(now_ms)
        return future

    def _refusal(self, member: Member) -> ErrorCode | None:
        if len(self.members) >= MEMBERS_MAX and member.id not in self.members:
            return ErrorCode.group_max_size_reached
        if not member.protocols:
            return ErrorCode.inconsistent_group_protocol
        others = [m for m in self.members.values() if m.id != member.id]
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
        everybody = tuple((m.id, m.instance_id, m.metadata(self.protocol)) for m in self.members.values())
        self.state = GroupState.COMPLETING
        for member in self.members.values():
            member.seen_ms = now_ms
            member.assignment = b""
            joined = Joined(
                ErrorCode.none,
                member.id,
                self.generation,
                self.protocol_type,
                self.protocol,
                self.leader,
                everybody if member.id == self.leader else (),
            )
            _answer(member.joining, joined)
            member.joining = None

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
        self, member_id: str, generation: int, assignments: Mapping[str, bytes], now_ms: float
    ) -> asyncio.Future[Synced]:
        """The leader hands assignments in, the others wait for theirs."""
        future: asyncio.Future[Synced] = asyncio.get_running_loop().create_future()
        error = self.check(member_id, generation)
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
        if member_id == self.leader:
            for each in self.members.values():
                each.assignment = assignments.get(each.id, b"")
            self.state = GroupState.STABLE
            for each in self.members.values():
                each.seen_ms = now_ms
                _answer(each.syncing, self._synced(each))
                each.syncing = None
        return future

    def _synced(self, member: Member) -> Synced:
        return Synced(ErrorCode.none, member.assignment, self.protocol_type, self.protocol)

    def check(self, member_id: str, generation: int) -> ErrorCode | None:
        """Why this member may not act in this generation; None when it may."""
        if member_id not in self.members:
            return ErrorCode.unknown_member_id
        return None if generation == self.generation else ErrorCode.illegal_generation

    def heartbeat(self, member_id: str, generation: int, now_ms: float) -> ErrorCode:
        error = self.check(member_id, generation)
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
