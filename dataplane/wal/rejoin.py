"""Brings a lost side of a WAL back within its epoch, by itself: tries again and again, with back-off, to open a new
instance of it; what has to hold then is `membership.py`'s.

    lost ──(pause)──► old handle closed, new instance opened ──► written from block P on ──► vouched for ──► member
              ▲                       │                                   │                     │             │
              └──── pause doubled ◄───┴───────── it fails again ◄─────────┴─────────────────────┴─────────────┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dataplane.wal.base import Side
from dataplane.wal.commit import GroupCommit
from dataplane.wal.membership import Return
from dataplane.wal.superblock import INSTANCES_MAX
from providers.base.clock import Clock
from providers.base.errors import Conflict, Full, NotFound, Unavailable, YunheError

log = logging.getLogger(__name__)

Reopen = Callable[[str, int, int], Awaitable[Side]]
"""(side, instance, start) → that side, opened as a new instance whose first block is not below `start`."""

NOT_NOW = (Unavailable, NotFound, Full, Conflict)
"""Not now, and perhaps later. Anything else ends the WAL."""


@dataclass(frozen=True, slots=True)
class RejoinSettings:
    """When a lost side is tried again."""

    first_ms: float = 1_000
    """Pause after a loss. Short: with one side left, its loss would stop the broker."""
    longest_ms: float = 60_000
    """The pause doubles with each failure up to this. Each attempt costs a few requests."""
    steady_ms: float = 120_000
    """A side that was back for so long is tried with the first pause again: one that fails at once each time it is back
    must not fill the ledger with its changes."""
    patience_ms: float = 2_000
    """How long acks may wait for a side that is not a member yet before it is given up for this time."""


class Rejoiner:
    """See the module. One a WAL; works until it is cancelled or the WAL is dead."""

    def __init__(self, wal: GroupCommit, reopen: Reopen, *, clock: Clock, settings: RejoinSettings) -> None:
        self._wal = wal
        self._reopen = reopen
        self._clock = clock
        self._settings = settings
        self._instance = 0
        self._changed = asyncio.Event()
        wal.on_membership = self._changed.set

    async def run(self) -> None:
        """Bring back whatever is lost."""
        pause_ms, back_since_ms = self._settings.first_ms, -self._settings.steady_ms
        while self._wal.dead is None and self._instance < INSTANCES_MAX:
            self._changed.clear()
            missing = self._wal.membership.missing
            if not missing:
                await self._changed.wait()
                continue
            if self._clock.monotonic_ms() - back_since_ms > self._settings.steady_ms:
                pause_ms = self._settings.first_ms
            await self._clock.sleep_ms(pause_ms)
            pause_ms = min(pause_ms * 2, self._settings.longest_ms)
            if self._wal.dead is None and missing == self._wal.membership.missing and await self._try(missing[0]):
                back_since_ms = self._clock.monotonic_ms()

    async def _try(self, name: str) -> bool:
        """One attempt; whether the side is a member again."""
        self._instance += 1
        wal, instance = self._wal, self._instance
        try:
            await wal.abandon(name)
            side = await self._reopen(name, instance, wal.next_block)
        except NOT_NOW as error:
            log.info("wal side stays away side=%s error=%s", name, error)
            return False
        except YunheError as error:
            wal.die(error)
            return False
        if wal.dead is not None:
            await side.close()
            return False
        back = wal.admit(side, instance)
        log.info("wal side comes back side=%s instance=%d from block %d", name, instance, back.start)
        # Apart, for acks wait for the side already: it may hang, and is given up then.
        vouching = asyncio.create_task(self._vouch(side, back))
        try:
            return await self._becomes_member(side, back)
        finally:
            vouching.cancel()
            [ended] = await asyncio.gather(vouching, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended

    async def _vouch(self, side: Side, back: Return) -> None:
        """Have the side say where it begins."""
        try:
            await side.trim(back.start)
        except NOT_NOW as error:
            self._wal.lose(side, error)
        except YunheError as error:
            self._wal.die(error)
        else:
            self._wal.vouch(back)

    async def _becomes_member(self, side: Side, back: Return) -> bool:
        """Wait until it does, or is lost. While acks wait for it alone, and it is not proposed yet, it may be given
        up."""
        wal, patience_ms = self._wal, self._settings.patience_ms
        acked, since_ms = wal.last_acked, self._clock.monotonic_ms()
        while wal.dead is None and wal.membership.back == back:
            await self._clock.sleep_ms(patience_ms / 8)
            now = self._clock.monotonic_ms()
            if acked != wal.last_acked or not wal.waits_for(side):
                acked, since_ms = wal.last_acked, now
            elif now - since_ms > patience_ms and not wal.membership.proposed:
                wal.lose(side, Unavailable(f"the returning side {side.name} keeps acks waiting"))
        return side.name in wal.members
