"""The buffers in which blocks are made: one for each block under way, in memory from which a side writes without a
copy."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.wal.base import Side


class Staging:
    """A few buffers of one size, used again and again. A block that fits none of them gets memory of its own."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    async def open(self, sides: Sequence[Side], size: int, count: int) -> None:
        """`count` buffers of `size` bytes each from the first side that has such memory; none if no side has."""
        for side in sides:
            memory = await side.allocate(size * count)
            if memory is not None:
                self._free = [memory[i * size : (i + 1) * size] for i in range(count)]
                return

    def take(self, length: int) -> tuple[memoryview, memoryview | None]:
        """Memory for a block of `length` bytes; and the buffer that it is part of, to be given back."""
        if self._free and length <= len(self._free[-1]):
            buffer = self._free.pop()
            return buffer[:length], buffer
        return memoryview(bytearray(length)), None

    def give_back(self, buffer: memoryview) -> None:
        """No write can read it any more. One of which that is not known is never given back."""
        self._free.append(buffer)
