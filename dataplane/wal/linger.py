"""How long a block waits for company: not at all on volumes, some milliseconds where each request costs money."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Linger:
    """One wait for each block, begun when its first record is there; `ended` is called at the end of it."""

    def __init__(self, linger_ms: float, ended: Callable[[], None]) -> None:
        self._linger_ms = linger_ms
        self._ended = ended
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def waits(self) -> bool:
        """Whether the block that is being filled still waits; begins its wait if need be."""
        if not self._linger_ms or self._over:
            return False
        if self._timer is None:
            # What ends the wait is that the timer fired, not what the clock says then: event loops round.
            self._timer = asyncio.get_running_loop().call_later(self._linger_ms / 1000, self._end)
        return True

    def reset(self) -> None:
        """The block is on its way: the next one waits anew."""
        self._over = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self._over = True
        self._ended()
