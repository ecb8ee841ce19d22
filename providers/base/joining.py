"""Joins large pieces of memory without the interpreter's lock, so that an event loop in another thread goes on.

`bytes.join` keeps the lock for as long as it copies, and new memory has to be got from the system meanwhile: 32 MiB
take 5 to 70 ms. The kernel copies without it: all pieces into a file in memory, and from there into one `bytes`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from providers.base.errors import invariant

LARGE_BYTES = 1 << 20
"""Less is joined in a fraction of a millisecond."""
PIECES_MAX = 1_024
"""Of one writev(2): IOV_MAX of Linux."""


def joined(pieces: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """The pieces as one; for a thread beside the loop. Where the system has no such files, or no room for one, with
    the lock."""
    size = sum(map(len, pieces))
    if size < LARGE_BYTES:
        return b"".join(pieces)
    try:
        return _through_the_kernel(pieces, size)
    except (AttributeError, OSError):
        return b"".join(pieces)


def _through_the_kernel(pieces: Sequence[bytes | bytearray | memoryview], size: int) -> bytes:
    file = os.memfd_create("yunhe-join", os.MFD_CLOEXEC)
    try:
        written = sum(os.writev(file, pieces[at : at + PIECES_MAX]) for at in range(0, len(pieces), PIECES_MAX))
        if written != size:
            raise OSError("no room for all of it")
        data = os.pread(file, size, 0)
    finally:
        os.close(file)
    invariant(len(data) == size, "what was written is read back", size=size, read=len(data))
    return data
