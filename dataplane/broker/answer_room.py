"""How much of fetch answers all connections of a broker hold together.

A fetch answer is held from the look at the log until its client's socket has taken it, and a client takes its time.
Each connection has a share of one room. With no room left, an answer carries one batch: everybody gets on, and the
broker holds `bytes_max` and one batch a connection at most.
"""

from __future__ import annotations


class AnswerRoom:
    """All connections'."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0

    @property
    def left(self) -> int:
        """Bytes that the next answer may have."""
        return max(0, self.bytes_max - self.bytes_held)


class AnswerShare:
    """One connection's."""

    __slots__ = ("_held", "_room")

    def __init__(self, room: AnswerRoom) -> None:
        self._room = room
        self._held = 0

    @property
    def left(self) -> int:
        """Bytes that the next answer may have."""
        return self._room.left

    def take(self, size: int) -> None:
        """`size` bytes more are held; fewer, if it is negative."""
        self._held += size
        self._room.bytes_held += size

    def clear(self) -> None:
        """The client has taken all of it, or is gone."""
        self._room.bytes_held -= self._held
        self._held = 0
