"""The memory that sockets are read into: large chunks, piece by piece, for all connections of a loop.

    | frame | frame | frame | space: what the next read, of whatever connection, is given |
      batches stay where they were read

A read takes whole requests at once, and nothing of them is copied or cleared. What is kept is never given out again
while anything refers to it: a chunk is used anew only when the interpreter says that nobody has a view of it (`mmap`
refuses to be resized then), so that no count of ours can be wrong. Memory that was used before needs no page faults,
which cost more than the read itself; of new memory, one chunk is cleared ahead, by a thread beside the loop.

One view keeps a whole chunk. Batches of a chunk leave the cache at about the same time; what a client holds up (a frame
that it does not end, requests that wait for room in the WAL) could keep many, and so only a few connections at a time
may: the others read into memory of their own.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from concurrent.futures import Executor, Future

CHUNK_BYTES = 8 << 20
"""Seven of Kafka's largest ordinary requests, 1 MiB and its head."""
READ_BYTES_MAX = 256 << 10
"""What one read is given at most: how much of one connection comes before the others."""
SPACE_BYTES_MIN = 64 << 10
"""With less left, a chunk is full."""
PIECES_MIN = 7
"""So many of the largest pieces make a chunk: its end, too short for the next, is little of it."""
HOLDERS_MAX = 16
"""Connections that may hold up a chunk each."""
RETIRED_MAX = 512
"""Full chunks that are remembered, to be used again: 4 GiB, more than a WAL's worth of batches."""
LOOKS_MAX = 32
"""Chunks that are looked at, before a new one is taken."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, since Linux 5.14: madvise(2)."""


class ReceiveMemory:
    """See the module. Positions only grow over the chunks, so that one names a place in one chunk."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES, clearer: Executor | None = None) -> None:
        """`clearer`: where new chunks are cleared ahead; None: where they are used."""
        self._chunk_bytes = chunk_bytes
        self._clearer = clearer
        self._spare: Future[mmap.mmap] | None = None
        self._chunk: memoryview | None = None
        self._memory: mmap.mmap | None = None
        self._base = self._at = 0  # positions of the chunk's beginning, and of its free rest
        self._retired: deque[mmap.mmap] = deque()  # oldest first
        self._holders: set[object] = set()

    def space(self) -> memoryview | None:
        """Where the next read goes; None when too much is held up. Not the reader's own until `keep`, before which
        nobody else may be given anything."""
        if len(self._holders) >= HOLDERS_MAX:
            return None
        return self._room(SPACE_BYTES_MIN)[:READ_BYTES_MAX]

    def keep(self, size: int) -> tuple[memoryview, int]:
        """The first `size` bytes of `space`, which are the reader's; and the position behind them."""
        assert self._chunk is not None
        begin = self._at - self._base
        self._at += size
        return self._chunk[begin : begin + size], self._at

    def give_back(self, position: int, size: int) -> None:
        """Nothing refers to the last `size` bytes before `position`, where `keep` ended: they are space again, unless
        something was given out since."""
        if position == self._at and size <= position - self._base:
            self._at -= size

    def extend(self, position: int, rest: int, more: int) -> memoryview | None:
        """The last `rest` bytes before `position`, where `keep` ended, and the `more` behind them, as one piece; None
        when something was given out since, or the chunk ends."""
        if self._chunk is None or position != self._at or self._base + self._chunk_bytes - position < more:
            return None
        self._at += more
        return self._chunk[position - rest - self._base : self._at - self._base]

    def take(self, size: int, holder: object) -> memoryview:
        """A piece of `size` bytes, its content undefined, for a frame of `holder`'s: of a chunk, unless it is too large
        for that or too much is held up."""
        if size * PIECES_MIN > self._chunk_bytes or len(self._holders) >= HOLDERS_MAX:
            return memoryview(bytearray(size))
        piece = self._room(size)[:size]
        self._at += size
        self._holders.add(holder)
        return piece

    # ---- who holds it up

    def hold(self, holder: object) -> None:
        """`holder` has bytes here for as long as its client likes."""
        self._holders.add(holder)

    def release(self, holder: object) -> None:
        """Not any more."""
        self._holders.discard(holder)

    # ---- chunks

    def _room(self, size: int) -> memoryview:
        if self._chunk is None or self._base + self._chunk_bytes - self._at < size:
            self._renew()
        assert self._chunk is not None
        return self._chunk[self._at - self._base :]

    def _renew(self) -> None:
        self._chunk = None
        if self._memory is not None:
            self._retired.append(self._memory)
        self._memory = self._unused() or self._new()
        self._chunk = memoryview(self._memory)
        self._base = self._at = self._base + self._chunk_bytes
        if len(self._retired) > RETIRED_MAX:
            self._retired.popleft()  # goes with the last view of it

    def _new(self) -> mmap.mmap:
        """A chunk that was not used before. Where one was needed, another is likely to be."""
        spare, self._spare = self._spare, None
        if self._clearer is not None:
            self._spare = self._clearer.submit(_map_cleared, self._chunk_bytes)
        # One that is still being cleared would take as long.
        return spare.result() if spare is not None and spare.done() else _map(self._chunk_bytes)

    def _unused(self) -> mmap.mmap | None:
        # The oldest is the likeliest. One that is still used waits for its next turn behind the others.
        for _ in range(min(len(self._retired), LOOKS_MAX)):
            memory = self._retired.popleft()
            if _is_unused(memory):
                return memory
            self._retired.append(memory)
        return None

    def give_back_unused(self) -> None:
        """Return an eighth of the chunks that nobody uses to the system: what a burst took goes by and by, and what
        steady traffic takes between two uploads stays."""
        unused = [memory for memory in self._retired if _is_unused(memory)]
        for memory in unused[: -(-len(unused) // 8)]:
            self._retired.remove(memory)


def _map(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _map_cleared(size: int) -> mmap.mmap:
    memory = _map(size)
    # Not by `mmap.madvise`, which keeps the interpreter's lock for as long. Where a kernel does not know of it, pages
    # come when they are used.
    ctypes.CDLL(None).madvise(
        ctypes.byref(ctypes.c_char.from_buffer(memory)), ctypes.c_size_t(size), ctypes.c_int(_POPULATE_WRITE)
    )
    return memory


def _is_unused(memory: mmap.mmap) -> bool:
    """Nobody has a view of it: `resize` (to the size that it has) is refused while one is there."""
    try:
        memory.resize(len(memory))
    except (BufferError, SystemError, OSError):  # SystemError: this system cannot resize mappings
        return False
    return True
