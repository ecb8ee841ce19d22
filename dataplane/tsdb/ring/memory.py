"""The reader's end of one ring: memory that the database makes, seals and shares with one writer.

Sealed, it cannot be shortened under the reader's feet. The writer may write anything anywhere in it at any time: the
reader keeps its own place and size, reads the writer's word once, checks it, and copies before it looks.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import threading

from dataplane.tsdb.ring.layout import (
    CLOSED,
    CONSUMED,
    HEADER_BYTES,
    MAGIC,
    PREAMBLE,
    PUBLISHED,
    READER_SLEEPS,
    VERSION,
    WRITER_WAITS,
)
from providers.base.errors import Internal, Invalid

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Fence:
    """A full memory barrier between this process's stores and loads: taking and giving back an uncontended lock is an
    atomic read-modify-write each. Aligned words of a memoryview are stored and loaded whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            pass


class RingMemory:
    """See the module. `fd` is open until `shared`."""

    def __init__(self, size: int) -> None:
        """`size`: of the ring without its header, a power of two."""
        if sys.byteorder != "little":
            raise Internal("the ring's words are little-endian, and this machine is not")
        self.size = size
        self.fd = os.memfd_create("yunhe-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, HEADER_BYTES + size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self.fd, HEADER_BYTES + size)
        except OSError:
            os.close(self.fd)
            raise
        self._map[: PREAMBLE.size] = PREAMBLE.pack(MAGIC, VERSION, HEADER_BYTES, size)
        self._view = memoryview(self._map)
        self._long = self._view[:HEADER_BYTES].cast("Q")
        self._word = self._view[:HEADER_BYTES].cast("I")
        self._ring = self._view[HEADER_BYTES:]
        self._fence = Fence()
        self._consumed = 0
        self._end: int | None = None

    def shared(self) -> None:
        """The writer has the memory: its mapping keeps it, and the descriptor is closed."""
        os.close(self.fd)
        self.fd = -1

    def published(self) -> int:
        """Bytes that wait to be taken.

        Raises:
            Invalid: the writer's word is none that a writer of this layout can publish.
        """
        end = self._long[PUBLISHED] if self._end is None else self._end
        waiting = end - self._consumed
        if not 0 <= waiting <= self.size or waiting % 8:
            raise Invalid(f"the ring's writer says that it has published {end} bytes, and {self._consumed} are taken")
        return waiting

    def take(self) -> list[bytes]:
        """All that is published, as a copy; where it goes around the ring's end, in two pieces. Its room is the
        writer's again.

        Raises:
            Invalid: as `published`.
        """
        waiting = self.published()
        self._fence()  # what was published is seen as it was when the word was
        at = self._consumed % self.size
        rest = min(waiting, self.size - at)
        pieces = [bytes(self._ring[at : at + rest])]
        if waiting > rest:
            pieces.append(bytes(self._ring[: waiting - rest]))
        self._fence()  # the copy is made before the room is given back
        self._consumed += waiting
        self._long[CONSUMED] = self._consumed
        return pieces

    def end(self) -> None:
        """The writer is gone: what it has published by now is all there will be."""
        if self._end is None:
            self._end = self._long[PUBLISHED]

    def give_up(self) -> None:
        """Its content is not to be trusted: nothing more is there."""
        self._end = self._consumed

    def sleep(self) -> bool:
        """Ask to be woken; false: there is something to be taken already.

        Raises:
            Invalid: as `published`.
        """
        self._word[READER_SLEEPS] = 1
        self._fence()
        if self.published():
            self._word[READER_SLEEPS] = 0
            return False
        return True

    def wake(self) -> None:
        """Not asleep any more: a writer need not send word."""
        self._word[READER_SLEEPS] = 0

    def writer_waits(self) -> bool:
        """Whether the writer has asked for word of room; asked once, it has to ask again."""
        self._fence()
        if not self._word[WRITER_WAITS]:
            return False
        self._word[WRITER_WAITS] = 0
        return True

    def refuse(self) -> None:
        """Say in the memory that nothing more will be taken."""
        self._word[CLOSED] = 1

    def close(self) -> None:
        """Give the memory back; the writer's mapping stays its own."""
        if self._map.closed:
            return
        self.refuse()
        for view in (self._long, self._word, self._ring, self._view):
            view.release()
        self._map.close()
        if self.fd >= 0:
            self.shared()
