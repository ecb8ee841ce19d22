"""Who waits for an append, and for how long without one being sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dataplane.ledger.entry import Command
from providers.base.clock import Clock
from providers.base.errors import Unavailable

Decide = Callable[[Any], Sequence[Command] | None]


@dataclass(frozen=True, slots=True)
class Appended:
    """An entry of ours in the log. `rejections`: for each of the caller's commands None, or why the fold refused it."""

    seq: int
    id: str
    rejections: tuple[str | None, ...]


class Unsent(Unavailable):
    """The store has refused an entry's first attempt: its name was not filled by it, nor will be."""


@dataclass(slots=True)
class Waiting:
    """Somebody's append."""

    decide: Decide
    term: int
    future: asyncio.Future[Appended | None]
    _sent: bool = False
    _overdue: bool = False

    async def outcome(self, clock: Clock, unsent_ms_max: float | None) -> Appended | None:
        """What becomes of it; Unavailable once that time is over and nothing of it is on its way."""
        if unsent_ms_max is None:
            return await self.future
        timer = asyncio.create_task(self._be_overdue(clock, unsent_ms_max))
        try:
            return await self.future
        finally:
            timer.cancel()

    async def _be_overdue(self, clock: Clock, after_ms: float) -> None:
        await clock.sleep_ms(after_ms)
        self._overdue = True
        if not self._sent:
            self._withdraw()

    def sent(self) -> None:
        """An entry with its commands is on its way from now on, or may be."""
        self._sent = True

    def unsent(self) -> None:
        """That entry is none, and never will be."""
        self._sent = False
        if self._overdue:
            self._withdraw()

    def _withdraw(self) -> None:
        # Who asks `decide` looks at the future first.
        if not self.future.done():
            self.future.set_exception(Unavailable("the ledger did not take it up in time, and it was withdrawn"))
