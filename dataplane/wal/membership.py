"""Which sides an ack waits for: the membership of a WAL within its epoch, as a pure state machine. `commit.py` acts on
it, `rejoin.py` brings sides back.

    {volume, express} ──a side fails, the ledger accepts──► {volume} ──the other opens, empty──► {volume} and express
            ▲                                                  ▲                               from block P on
            │                                                  └──it fails before it was proposed────┤
            └─────────────the ledger accepts, once it says that all below P is in object storage─────┘

A side comes back as a new *instance* of itself, empty and with nothing of its former one in flight (`WalIdentity`), and
is written from block P on. Rules, each of which loses acked records when left out (design §5, *Growing back*; models
`Dual`, `DualP`):

1. From P on an ack waits for the returning side too, from the moment at which it is written: not only once it is in the
   membership.
2. Its return is proposed only when the ledger's floor is at or above P: below that it has nothing.
3. Once proposed, it may be in the membership whatever has become of the answer: it is waited for until the ledger has
   said that it is not.
4. Before it is proposed it may be given up; what it holds then is nobody's, and its next return is another instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from providers.base.errors import invariant


@dataclass(frozen=True, slots=True)
class Return:
    """A side that comes back: as which instance, and from which block on it is written."""

    side: str
    instance: int
    start: int


@dataclass(frozen=True, slots=True)
class Change:
    """What to put to the ledger: from now on `sides` are the membership. `back`: the one among them that it has not
    now."""

    sides: tuple[str, ...]
    back: Return | None = None


class Membership:
    """See the module. `sides`: the membership that the epoch begins with, as the ledger states it."""

    def __init__(self, sides: Sequence[str]) -> None:
        self._all = tuple(sides)
        self._members = frozenset(sides)
        self._lost: set[str] = set()
        self._back: Return | None = None
        self._ready = False
        self._proposed = False

    @property
    def members(self) -> tuple[str, ...]:
        """As far as the ledger's answers are known."""
        return self._ordered(self._members)

    @property
    def back(self) -> Return | None:
        """The side that is coming back."""
        return self._back

    @property
    def proposed(self) -> bool:
        """It may be a member by now: it can not be given up any more."""
        return self._proposed

    @property
    def missing(self) -> tuple[str, ...]:
        """Sides that the ledger knows to be out, and that are not coming back now."""
        here = self._members if self._back is None else self._members | {self._back.side}
        return tuple(side for side in self._all if side not in here)

    @property
    def over(self) -> bool:
        """Nothing will ever be acked again: no side is left that holds all that is not in object storage."""
        perhaps = self._members | ({self._back.side} if self._back is not None and self._proposed else set())
        return perhaps <= self._lost

    def needed(self, number: int) -> frozenset[str]:
        """Sides that have to hold block `number` before it may be acked."""
        if self._back is not None and number >= self._back.start:
            return self._members | {self._back.side}
        return self._members

    def alone(self, side: str) -> bool:
        """No other side holds all that is not in object storage: giving this one up would end the WAL."""
        return not (self._members - self._lost - {side})

    # ---- what happens

    def lose(self, side: str) -> None:
        """It failed, and is not written again as this instance."""
        if self._back is not None and side == self._back.side and not self._proposed:
            self._back = None
        else:
            self._lost.add(side)

    def begin(self, back: Return) -> None:
        """It is open and empty, and is written from block `back.start` on."""
        invariant(self._back is None and back.side in self.missing, "one missing side comes back at a time")
        self._lost.discard(back.side)
        self._back, self._ready, self._proposed = back, False, False

    def ready(self, back: Return) -> None:
        """A reader would find now where it begins: it may be proposed."""
        if self._back == back:
            self._ready = True

    # ---- what the ledger is asked

    def next(self, floor: int) -> Change | None:
        """What to put to the ledger now, None when there is nothing. `floor`: blocks below it are in object storage,
        the ledger says."""
        left = self._members - self._lost
        back = self._back
        if back is not None and self._proposed:
            if back.side in self._lost and left:
                return Change(self._ordered(left))  # it may be in by now: the ledger is to say that it is not
            return Change(self._ordered(self._members | {back.side}), back)
        if left != self._members:
            return Change(self._ordered(left)) if left else None
        if back is not None and self._ready and floor >= back.start:
            return Change(self._ordered(self._members | {back.side}), back)
        return None

    def proposing(self, change: Change) -> None:
        """`change` is sent now: its answer may get lost."""
        if change.back is not None:
            invariant(change.back == self._back, "what is proposed is what comes back")
            self._proposed = True

    def accepted(self, change: Change) -> None:
        """The ledger says that the membership is `change.sides`, and what was proposed before cannot come after."""
        self._members = frozenset(change.sides)
        if self._back is not None and (change.back is not None or self._proposed):
            self._back, self._proposed = None, False

    def _ordered(self, sides: frozenset[str]) -> tuple[str, ...]:
        return tuple(side for side in self._all if side in sides)
