"""How many bytes may be held at once by those who work side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """Whoever asks gets room in the order of asking; one that asks for more than there is at all gets all of it."""

    def __init__(self, bytes_max: int) -> None:
        self._max = bytes_max
        self._free = bytes_max
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Room for `count` bytes, for as long as the block takes."""
        count = min(count, self._max)
        async with self._turn:
            while self._free < count:
                self._given_back.clear()
                await self._given_back.wait()
            self._free -= count
        try:
            yield
        finally:
            self._free += count
            self._given_back.set()
