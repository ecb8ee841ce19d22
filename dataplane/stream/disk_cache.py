"""A second tier of the block cache, on a local disk: what was read of the bucket once is read from here, until it is
evicted. Its I/O runs in a thread of its own. What the disk cannot do costs requests and nothing else: a disk that is
full, errs or hangs turns the cache off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from dataplane.stream.disk_segments import Segments

log = logging.getLogger(__name__)
T = TypeVar("T")

PENDING_BYTES_MAX = 16 << 20
"""Of blocks that wait to be written: a disk slower than the bucket keeps fewer of them."""
TIMEOUT_S = 2.0
"""How long a read waits for the disk: longer than the bucket takes."""


class DiskCache:
    """See the module. Blocks are named by object and position. What `get` returns is unchecked: whoever finds it
    damaged says `drop`."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """`bytes_max`: of all files together."""
        self._folder = folder
        self._segments = Segments(folder, bytes_max)
        self._thread = ThreadPoolExecutor(1, "disk-cache")
        self._pending_bytes = 0
        self._jobs: set[asyncio.Future[None]] = set()
        self._opened = False
        self._over = False  # closed, or turned off
        self.hits = 0
        self.damaged = 0

    @property
    def on(self) -> bool:
        """Whether it keeps and finds anything."""
        return self._opened and not self._over

    @property
    def bytes_held(self) -> int:
        """Of its files."""
        return self._segments.bytes_held

    async def open(self) -> None:
        """Find what an earlier process left. A folder that cannot be used turns the cache off."""
        try:
            found = await self._do(self._segments.open)
        except OSError as error:
            self._turn_off(error)
            return
        self._opened = True
        log.info("disk-cache-open", extra={"folder": str(self._folder), "blocks": found})

    async def get(self, name: str, position: int, size: int) -> bytes | None:
        """The block of `size` bytes, as it is on the disk; None: it is not there, or cannot be read."""
        if not self.on or (name, position) not in self._segments:
            return None
        reading = self._do(partial(self._segments.get, (name, position), size))
        reading.add_done_callback(_look)  # who asked may be gone by then
        done, _ = await asyncio.wait({reading}, timeout=TIMEOUT_S)
        error = reading.exception() if done else OSError("the disk does not answer")
        if error is not None:
            reading.cancel()
            self._turn_off(error)
            return None
        data = reading.result()
        self.hits += data is not None
        return data

    def put(self, name: str, position: int, data: bytes) -> None:
        """Keep a block, if the disk keeps up."""
        if self._pending_bytes + len(data) <= PENDING_BYTES_MAX:
            self._start(partial(self._segments.put, (name, position), data), len(data))

    def drop(self, name: str, position: int) -> None:
        """What `get` returned is damaged."""
        self.damaged += 1
        self._start(partial(self._segments.drop, (name, position)), 0)

    def forget(self, names: Collection[str]) -> None:
        """Nothing refers to these objects any more."""
        if names:
            self._start(partial(self._segments.forget, frozenset(names)), 0)

    async def close(self) -> None:
        """Leave the files for the next process. Bounded: what the disk has not taken by then is lost."""
        self._over = True
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=TIMEOUT_S)
        await asyncio.wait({self._do(self._close)}, timeout=TIMEOUT_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._segments.close()

    def _clear(self) -> None:
        with contextlib.suppress(OSError):
            self._segments.clear()

    def _do(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _start(self, work: Callable[[], None], size: int) -> None:
        """Have it done after all that was asked for before."""
        if not self.on:
            return
        self._pending_bytes += size
        job = self._do(work)
        self._jobs.add(job)

        def done(job: asyncio.Future[None]) -> None:
            self._jobs.discard(job)
            self._pending_bytes -= size
            if not job.cancelled() and (error := job.exception()) is not None:
                self._turn_off(error)

        job.add_done_callback(done)

    def _turn_off(self, error: BaseException) -> None:
        """Once: what was under way may fail after the first of it. Its room is given back: the disk may be full."""
        if self._over:
            return
        self._over = True
        log.warning("disk-cache-off", extra={"folder": str(self._folder), "error": str(error)})
        self._do(self._clear)


def _look(job: asyncio.Future[bytes | None]) -> None:
    """An error that nobody waits for any more is no surprise."""
    if not job.cancelled():
        job.exception()
