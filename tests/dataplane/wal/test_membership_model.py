"""The membership's own state machine, explored exhaustively: every order of losses, returns, acks, uploads, proposals
with lost answers, and a recovery that begins at any moment and reads any side that it may.

The promise is judged by contents alone: what a recovery reads on the side that it fenced holds every block that was
ever acked, before or after. And each rule of `membership.py`, left out, is found out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from dataplane.wal.membership import Change, Membership, Return

SIDES = ("volume", "express")
BLOCKS = 3
RETURNS_MAX = 2


@dataclass(frozen=True)
class Content:
    """What one instance of a side holds; `open`: the owner writes to it."""

    blocks: frozenset[int] = frozenset()
    begin: int = 1
    instance: int = 0
    open: bool = True
    sealed: bool = False


@dataclass(frozen=True)
class World:
    """Everything. `members`, `named`, `floor`, `fenced` are the ledger's; `pending` is a proposal on its way to it,
    `recovered` the last block of what a recovery read."""

    owner: tuple[object, ...]
    contents: tuple[Content, Content] = (Content(), Content())
    next_block: int = 1
    acked: int = 0
    uploaded: int = 0
    members: frozenset[str] = frozenset(SIDES)
    named: tuple[int, int] = (0, 0)
    floor: int = 1
    fenced: bool = False
    pending: Change | None = None
    returns: int = 0
    dead: bool = False
    recovered: int | None = None


class Explorer:
    """All worlds that can come about with this kind of membership."""

    def __init__(self, kind: type[Membership]) -> None:
        self.kind = kind

    def owner(self, world: World) -> Membership:
        made = self.kind(SIDES)
        made._members, lost, made._back, made._ready, made._proposed = world.owner  # type: ignore[assignment]
        made._lost = set(lost)  # type: ignore[call-overload]
        return made

    def kept(self, owner: Membership) -> tuple[object, ...]:
        return (owner._members, frozenset(owner._lost), owner._back, owner._ready, owner._proposed)

    def run(self, worlds_max: int = 2_000_000) -> tuple[int, World | None]:
        """How many worlds there are, and one that breaks the promise, if there is one."""
        first = World(self.kept(self.kind(SIDES)))
        seen, todo = {first}, [first]
        while todo:
            world = todo.pop()
            for after in self.steps(world):
                if after.recovered is not None and after.acked > after.recovered:
                    return len(seen), after
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
            assert len(seen) < worlds_max
        return len(seen), None

    def steps(self, world: World) -> Iterator[World]:
        if not world.dead:
            yield from self.owners(world)
        yield from self.ledgers(world)
        yield from self.recoverers(world)

    def owners(self, world: World) -> Iterator[World]:
        owner = self.owner(world)
        if world.next_block <= BLOCKS:
            yield replace(world, next_block=world.next_block + 1)
        block = world.acked + 1
        needed = owner.needed(block)
        if block < world.next_block and all(block in self.content(world, side).blocks for side in needed):
            yield replace(world, acked=block)
        for at, side in enumerate(SIDES):
            content = world.contents[at]
            if not content.open:
                if side in owner.missing and owner.back is None and world.returns < RETURNS_MAX:
                    back = Return(side, world.returns + 1, world.next_block)
                    owner.begin(back)
                    fresh = Content(begin=back.start, instance=back.instance)
                    yield self.with_content(world, at, fresh, owner=self.kept(owner), returns=back.instance)
                    owner = self.owner(world)
                continue
            due = max((n for n in content.blocks if n >= content.begin), default=content.begin - 1) + 1
            if due < world.next_block and not content.sealed:
                yield self.with_content(world, at, replace(content, blocks=content.blocks | {due}))
            owner.lose(side)
            yield self.with_content(world, at, replace(content, open=False), owner=self.kept(owner), dead=owner.over)
            owner = self.owner(world)
        if owner.back is not None:
            owner.ready(owner.back)
            yield replace(world, owner=self.kept(owner))
            owner = self.owner(world)
        if world.acked > world.uploaded:
            yield replace(world, uploaded=world.acked)
        if world.pending is None and (change := owner.next(world.floor)) is not None:
            owner.proposing(change)
            yield replace(world, owner=self.kept(owner), pending=change)

    def ledgers(self, world: World) -> Iterator[World]:
        if world.uploaded >= world.floor and not world.fenced:
            yield replace(world, floor=world.uploaded + 1)
        change = world.pending
        if change is not None:
            yield replace(world, pending=None)  # it never arrives
            if world.fenced:
                yield replace(world, pending=None, dead=True)
            else:
                yield from self.accept(world, change)

    def accept(self, world: World, change: Change) -> Iterator[World]:
        """The ledger takes it, and the owner hears so, or does not."""
        named = world.named
        if change.back is not None:
            at = SIDES.index(change.back.side)
            named = tuple(change.back.instance if i == at else n for i, n in enumerate(named))  # type: ignore[assignment]
        taken = replace(world, pending=None, members=frozenset(change.sides), named=named)
        yield taken
        if not world.dead:
            owner = self.owner(world)
            owner.accepted(change)
            yield replace(taken, owner=self.kept(owner), dead=owner.over)

    def recoverers(self, world: World) -> Iterator[World]:
        if not world.fenced:
            yield replace(world, fenced=True)
        elif world.recovered is None:
            for at, side in enumerate(SIDES):
                if side not in world.members:
                    continue
                content, last = world.contents[at], world.floor - 1
                while content.instance == world.named[at] and last + 1 in content.blocks:
                    last += 1
                yield replace(self.with_content(world, at, replace(content, sealed=True)), recovered=last)

    def content(self, world: World, side: str) -> Content:
        return world.contents[SIDES.index(side)]

    def with_content(self, world: World, at: int, content: Content, **changes: object) -> World:
        contents = tuple(content if i == at else c for i, c in enumerate(world.contents))
        return replace(world, contents=contents, **changes)  # type: ignore[arg-type]


def test_whatever_happens_a_recovery_reads_every_acked_block() -> None:
    worlds, broken = Explorer(Membership).run()
    assert broken is None, broken
    assert worlds > 20_000, "the exploration has to get somewhere"


class AcksWithoutTheReturning(Membership):
    """Rule 1 left out."""

    def needed(self, number: int) -> frozenset[str]:
        return self._members


class ReturnsBeforeTheFloor(Membership):
    """Rule 2 left out."""

    def next(self, floor: int) -> Change | None:
        return super().next(1_000)


class ForgetsWhatItProposed(Membership):
    """Rule 3 left out: a return of unknown outcome is given up like one that was never proposed."""

    def lose(self, side: str) -> None:
        if self._back is not None and side == self._back.side:
            self._back, self._proposed = None, False
        else:
            super().lose(side)


class ShrinksBeforeTheAnswer(Membership):
    """Acks on the remaining side from the moment at which it is proposed."""

    def proposing(self, change: Change) -> None:
        super().proposing(change)
        if change.back is None:
            self._members = frozenset(change.sides)


@pytest.mark.parametrize(
    "kind", [AcksWithoutTheReturning, ReturnsBeforeTheFloor, ForgetsWhatItProposed, ShrinksBeforeTheAnswer]
)
def test_each_rule_is_needed(kind: type[Membership]) -> None:
    _, broken = Explorer(kind).run()
    assert broken is not None
