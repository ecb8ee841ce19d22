"""The thread that works on an edge's store, one call after the other, so that the loop never waits for the flash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class ThreadWorker:
    """`database.Worker` by a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "edge-store")

    async def __call__(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    def close(self) -> None:
        """Return once what is under way has ended."""
        self._thread.shutdown()
