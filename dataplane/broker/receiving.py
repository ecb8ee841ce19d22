"""The memory of all connections' large frames together: those under receipt, and those that wait for room in the WAL.

One frame may have 100 MiB, and there may be thousands of connections: a bound on each is none on all. A frame's memory
grows with what has arrived of it, so that sixteen bytes that announce 100 MiB cost nothing; what it grows by is taken
here. A connection for whose frame there is none is not read. While one waits, frames that have had their room for long
and are not ended are cut off, the oldest first: whoever begins frames and does not end them stops nobody else. What
waits for the WAL is never cut, for it ends by itself.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Receiver(Protocol):
    """A connection, as far as this module knows it."""

    def room_again(self) -> None:
        """There may be room for its frame now: it takes it, or waits again."""
        ...

    def abort(self) -> None:
        """Cut the connection."""
        ...


class _Held:
    __slots__ = ("bytes", "since_s", "whole")

    def __init__(self, since_s: float) -> None:
        self.bytes = 0
        self.since_s = since_s
        self.whole = False


class FrameMemory:
    """See the module. `patience_s`: how long a frame may be under receipt while others wait; `timeout_s`: how long at
    all. Both are kept to within a half."""

    def __init__(self, bytes_max: int, patience_s: float, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._bytes_max = bytes_max
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._held: dict[Receiver, _Held] = {}  # oldest frame first
        self._waiting: dict[Receiver, None] = {}  # in the order in which they came
        self._timer: asyncio.TimerHandle | None = None
        self.bytes_held = 0

    @property
    def waiting(self) -> int:
        """Connections that are not read because there is no room for their frames."""
        return len(self._waiting)

    def begin(self, receiver: Receiver) -> None:
        """A large frame is under receipt from now on."""
        self._held[receiver] = _Held(self._loop.time())
        if self._timer is None:
            self._arm()

    def take(self, receiver: Receiver, size: int) -> bool:
        """Room for a frame of `size` bytes in place of what it had; False when it has to wait for that."""
        held = self._held[receiver]
        more = size - held.bytes
        if self.bytes_held and self.bytes_held + more > self._bytes_max:
            first = not self._waiting
            self._waiting[receiver] = None
            if first:
                self._arm()
            return False
        held.bytes = size
        self.bytes_held += more
        return True

    def whole(self, receiver: Receiver) -> None:
        """The frame has arrived."""
        self._held[receiver].whole = True

    def release(self, receiver: Receiver) -> None:
        """Its frame is handled, or its connection lost: nothing of it is held here any more."""
        self._waiting.pop(receiver, None)
        held = self._held.pop(receiver, None)
        if held is None or not held.bytes:
            return
        self.bytes_held -= held.bytes
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            one.room_again()

    def close(self) -> None:
        """Look after nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        limit_s = self._patience_s if self._waiting else self._timeout_s
        self._timer = self._loop.call_later(limit_s / 2, self._look)

    def _look(self) -> None:
        self._timer = None
        self._cut_overdue()
        if self._held:
            self._arm()

    def _cut_overdue(self) -> None:
        now_s = self._loop.time()
        ended = any(held.whole for held in self._held.values())
        for receiver, held in list(self._held.items()):
            limit_s = self._patience_s if self._waiting else self._timeout_s
            # One that waits is late through no fault of its own.
            if not held.whole and receiver not in self._waiting and now_s - held.since_s > limit_s:
                self._cut(receiver)
                ended = True
        oldest = next(iter(self._waiting), None)
        if oldest is not None and not ended and now_s - self._held[oldest].since_s > self._patience_s:
            self._cut(oldest)  # all wait for each other

    def _cut(self, receiver: Receiver) -> None:
        receiver.abort()
        self.release(receiver)
