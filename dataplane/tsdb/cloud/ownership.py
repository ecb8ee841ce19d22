"""When a node takes the database over: a pure decision from what it has heard, and the nodes that it asks.

    owner serves ──► its peers hear it, by HTTP, node to node: no control plane, and no clock in common
    silence of `lease_ms`, and no peer hears it ──► somebody owns the next epoch, in the manifest; the others follow

Silence only starts a take-over. What makes it safe is the epoch: the manifest refuses the old owner's commits, and its
WAL is fenced before anything is concluded from it. So an owner that was merely paused, or cut off, harms nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from providers.base.clock import Clock
from providers.base.errors import YunheError

DAMPED_MS_MAX = 60_000
"""Longest silence that is asked for, however often the owner has changed."""
CHANGES_WITHIN_MS = 600_000
"""How far back changes of the owner count."""
RECOVERY_MS_MAX = 120_000
"""How long an owner that answers may be recovering before it counts as silent."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a node says of itself and of the owner when it is asked."""

    node: str
    epoch: int
    """Of the manifest as it knows it."""
    serves: bool
    """It owns the database and takes writes."""
    recovers: bool = False
    """It owns the database and is not done recovering."""
    hears_owner: bool = False
    """It has heard the owner of that epoch serve within its lease."""


class Peers(Protocol):
    """The other nodes."""

    @property
    def names(self) -> Sequence[str]: ...

    async def ask(self, node: str) -> Word:
        """Raises Unavailable: no answer in time. NotFound: no such node."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node knows when it decides."""

    me: str
    nodes: Sequence[str]
    """All, this one included."""
    owner: str
    silent_ms: float
    """Since the owner was last heard, or since it became the owner, or since this node began."""
    heard_by: Sequence[str]
    """Peers that say they hear the owner of this epoch."""
    changes: int
    """Of the owner, seen within `CHANGES_WITHIN_MS`."""


def patience_ms(seen: Seen, lease_ms: float) -> float:
    """How long this node waits: the lease, doubled with every recent change but the first, and half of it more for each
    node before this one, so that they do not race."""
    damped = min(DAMPED_MS_MAX, lease_ms * 2 ** max(0, min(seen.changes, 16) - 1))
    others = sorted(node for node in seen.nodes if node != seen.owner)
    rank = others.index(seen.me) if seen.me in others else 0
    return float((damped if seen.owner and seen.owner != seen.me else 0) + rank * lease_ms / 2)


def decide(seen: Seen, lease_ms: float) -> tuple[bool, str]:
    """Whether to take over now; and why, or why not."""
    wait_ms = patience_ms(seen, lease_ms)
    if seen.owner == seen.me:
        return True, "it is mine by an earlier life of this node"
    if seen.owner and seen.heard_by:
        return False, f"{seen.owner} is heard by {seen.heard_by[0]}"
    if seen.owner and seen.silent_ms < lease_ms / 2:
        return False, f"{seen.owner} owns it"
    if seen.silent_ms < wait_ms:
        return False, f"{seen.owner or 'nobody'} owns it, silent for {seen.silent_ms:.0f} of {wait_ms:.0f} ms"
    return True, f"{seen.owner or 'nobody'} has been silent for {seen.silent_ms:.0f} ms"


@dataclass(slots=True)
class Watch:
    """What a node has heard so far, by its monotonic clock."""

    me: str
    lease_ms: float
    began_ms: float
    epoch: int = 0
    owner: str = ""
    heard_ms: float = 0.0
    """When the owner was last heard, or became the owner."""
    recovers_since_ms: float | None = None
    changed_ms: list[float] = field(default_factory=list)
    heard_by: list[str] = field(default_factory=list)

    def now(self, epoch: int, owner: str, now_ms: float) -> None:
        """The manifest says so."""
        if (epoch, owner) != (self.epoch, self.owner):
            if self.epoch:
                self.changed_ms = [at for at in self.changed_ms if now_ms - at < CHANGES_WITHIN_MS] + [now_ms]
            self.epoch, self.owner, self.heard_ms = epoch, owner, max(now_ms, self.began_ms)
            self.recovers_since_ms, self.heard_by = None, []

    def heard(self, words: Sequence[Word], now_ms: float) -> None:
        """What the peers say. Of another epoch it counts for nothing."""
        self.heard_by = []
        for word in words:
            if word.epoch != self.epoch:
                continue
            if word.node != self.owner:
                self.heard_by += [word.node] if word.hears_owner else []
            elif word.serves:
                self.heard_ms, self.recovers_since_ms = now_ms, None
            elif word.recovers:
                since = self.recovers_since_ms = self.recovers_since_ms or now_ms
                if now_ms - since < RECOVERY_MS_MAX:
                    self.heard_ms = now_ms

    def hears(self, now_ms: float) -> bool:
        """Whether the owner has been heard within the lease: what peers are told."""
        return bool(self.owner) and self.owner != self.me and now_ms - self.heard_ms < self.lease_ms

    def seen(self, nodes: Sequence[str], now_ms: float) -> Seen:
        changes = sum(now_ms - at < CHANGES_WITHIN_MS for at in self.changed_ms)
        return Seen(self.me, nodes, self.owner, now_ms - self.heard_ms, self.heard_by, changes)


async def ask_all(peers: Peers, clock: Clock, timeout_ms: float) -> list[Word]:
    """What the peers say, of those that answer within `timeout_ms`."""
    asked = [asyncio.ensure_future(peers.ask(node)) for node in peers.names]
    if not asked:
        return []
    limit = asyncio.ensure_future(clock.sleep_ms(timeout_ms))
    every = asyncio.ensure_future(asyncio.wait(asked))
    try:
        await asyncio.wait({every, limit}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*asked, every, limit):
            task.cancel()
    words = []
    for task in asked:
        if task.done() and not task.cancelled():
            try:
                words.append(task.result())
            except YunheError:
                continue  # no answer is an answer: silence
    return words


def hint_of(owner: str, addresses: Mapping[str, str]) -> str:
    """Where a client is to go."""
    if not owner:
        return "nobody owns it now; try again"
    return f"{owner} owns it, at {addresses[owner]}" if owner in addresses else f"{owner} owns it"
