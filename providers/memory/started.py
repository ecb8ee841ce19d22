"""Writes of a simulated device that are begun by a call and end in another: each is a task of its own, and so meets
whatever the world does to requests and processes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from providers.base.errors import YunheError
from providers.base.volumes import Written


class StartedTasks:
    """Those of one device."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, write: Coroutine[Any, Any, None], done: Written) -> None:
        """Begin `write`; `done` is told its end, unless its process ends before."""
        task = asyncio.create_task(_run(write, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _run(write: Coroutine[Any, Any, None], done: Written) -> None:
    failure: YunheError | None = None
    try:
        await write
    except YunheError as error:
        failure = error
    done(failure)
