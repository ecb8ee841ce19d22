"""Puts to the ledger which sides an ack should wait for: one proposal after the other, until its answer is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dataplane.wal.base import MembershipChange
from dataplane.wal.membership import Change, Membership
from providers.base.clock import Clock
from providers.base.errors import Fenced, Internal, Invalid, Unavailable, YunheError


class Proposals:
    """See the module. What to propose is `membership`'s to say; acks do not wait for this, but for it."""

    def __init__(
        self,
        membership: Membership,
        change: MembershipChange | None,
        *,
        clock: Clock,
        attempts_max: int,
        pause_ms: float,
        floor: Callable[[], int],
        next_ack: Callable[[], int],
        accepted: Callable[[], None],
        die: Callable[[YunheError], None],
    ) -> None:
        """`attempts_max`, `pause_ms`: of one whose outcome stays unknown. `floor`: the ledger's; `next_ack`: the first
        block not acked. `accepted` is called after each change, `die` once, when none will be."""
        self._membership = membership
        self._change = change
        self._clock = clock
        self._attempts_max = attempts_max
        self._pause_ms = pause_ms
        self._floor = floor
        self._next_ack = next_ack
        self._accepted = accepted
        self._die = die
        self._ended = False
        self.task: asyncio.Task[None] | None = None

    def consider(self) -> None:
        """Something has changed: propose what there is to propose."""
        if self.task is None and not self._ended and self._membership.next(self._floor()) is not None:
            self.task = asyncio.create_task(self.run())
            self.task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._die(Internal(f"a membership change failed: {error!r}"))
        else:
            self.consider()  # what came up while its last step ended

    def _over(self) -> bool:
        return self._ended

    def end(self) -> None:
        """The WAL is dead or closed: propose nothing more."""
        self._ended = True
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    async def _ask(self, change: Change) -> bool:
        if self._change is None:
            raise Invalid("a WAL of one side has no membership to change")
        if change.back is None:
            return await self._change(change.sides, self._next_ack())
        return await self._change(change.sides, change.back.start, change.back.instance)

    async def run(self) -> None:
        """Propose until there is nothing more to propose."""
        failures = 0
        while not self._over() and (change := self._membership.next(self._floor())) is not None:
            self._membership.proposing(change)
            try:
                accepted = await self._ask(change)
            except Unavailable as error:
                failures += 1
                if failures == self._attempts_max:
                    self._die(Unavailable(f"the ledger's answer to a membership change stayed unknown: {error}"))
                    return
                await self._clock.sleep_ms(self._pause_ms)
                continue
            except YunheError as error:
                self._die(error)
                return
            if self._over():
                return
            if not accepted:
                self._die(Fenced("this epoch is fenced: the ledger refused its membership change"))
                return
            failures = 0
            self._membership.accepted(change)
            self._accepted()
