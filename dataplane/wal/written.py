"""The sides that a WAL's blocks go to: who is written, who was lost, who comes back. What acks wait for follows from it
(`membership.py`), and so does what the ledger is asked (`proposals.py`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from dataplane.wal.base import Side
from dataplane.wal.membership import Membership, Return
from providers.base.errors import Full, Unavailable, YunheError, invariant

log = logging.getLogger(__name__)


class WrittenSides:
    """See the module."""

    def __init__(self, sides: Sequence[Side], over: Callable[[asyncio.Task[None]], None]) -> None:
        """`sides`: the membership that the ledger states. `over` is called when a write is."""
        self._over = over
        self._sides = {side.name: side for side in sides}
        self._writes: dict[asyncio.Task[None], Side] = {}
        self.now = tuple(sides)
        """Those that get every block."""
        self.membership = Membership([side.name for side in sides])
        self.why_lost: YunheError = Unavailable("no side of the WAL is left")
        self.mark()

    def everything(self) -> tuple[Side, ...]:
        """Also those that were lost."""
        return tuple(self._sides.values())

    def fits(self, length: int) -> bool:
        """Whether blocks of `length` bytes have room on every side."""
        for side in self.now:
            room = side.room_bytes()
            if room is not None and length > room:
                return False
        return True

    # ---- writes under way

    def begun(self, side: Side, task: asyncio.Task[None]) -> None:
        """A write of a block to `side`."""
        self._writes[task] = side
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._writes.pop(task, None)
        self._over(task)

    def cancel(self, side: Side | None = None) -> None:
        """End the writes under way to `side`, or all; not the one that says so."""
        current = asyncio.current_task()
        for task, of in list(self._writes.items()):
            if task is not current and side in (None, of):
                task.cancel()

    async def over(self, side: Side | None = None) -> None:
        """Once no write to `side`, or to any, is under way."""
        tasks = [task for task, of in self._writes.items() if side in (None, of)]
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- floors

    async def trim(self, floor: int) -> None:
        """Give back space below `floor`.

        Raises:
            Fenced: this epoch was taken over.
        """
        back = self.membership.back
        for side in self.now:
            if back is not None and side.name == back.side and floor <= back.start:
                continue  # it has nothing below
            try:
                await side.trim(floor)
            except (Unavailable, Full) as error:
                # Its space comes back with the next trim; if the side is gone, the next write says so.
                log.warning("wal trim failed side=%s floor=%d error=%s", side.name, floor, error)

    # ---- a side is lost, a side comes back

    def drop(self, side: Side, error: YunheError) -> None:
        """It failed: it is not written again, not even by a retry under way."""
        log.warning("wal side lost side=%s error=%s", side.name, error)
        self.why_lost = error
        self.now = tuple(other for other in self.now if other is not side)
        self.membership.lose(side.name)
        self.mark()
        self.cancel(side)

    async def abandon(self, name: str) -> None:
        """Close the lost instance of a side, so that nothing of it is under way when another is opened."""
        side = self._sides[name]
        invariant(side not in self.now, "a side that is written is not closed", side=name)
        await self.over(side)
        await side.close()

    def admit(self, side: Side, back: Return) -> None:
        """An opened, empty instance of a missing side gets every block from `back.start` on."""
        side.begin(back.start)
        self.membership.begin(back)
        self._sides[side.name] = side
        self.now = (*self.now, side)
        self.mark()

    def mark(self) -> None:
        """Tell each side whether it is the only one that counts: how long it is tried depends on that."""
        for side in self.now:
            side.alone = self.membership.alone(side.name)
