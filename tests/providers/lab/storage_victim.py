"""A process that writes to a storage from several threads until it is killed: `python -m
tests.providers.lab.storage_victim ROOT ROUND`.

It says on standard output what it begins (`? key version`) and what was answered (`! key version`); what each version
of a key holds follows from their names, so that whoever killed it can tell what must be there.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from providers.lab.storage import Storage

SEGMENT_BYTES = 3 << 20
"""Small, so that compaction is at work all the time."""
PIECE_BYTES = 1500


def content(key: str, version: int) -> bytes:
    """What version `version` of a key holds: sizes of all kinds, some in the log and some in files."""
    seed = hashlib.sha256(f"{key}/{version}".encode()).digest()
    size = (0, 900, 5_000, 40_000, 300_000)[seed[0] % 5] + seed[1]
    return (seed * (size // 32 + 1))[:size]


def piece(key: str, index: int) -> bytes:
    """The `index`th piece of a key that is appended to."""
    return (hashlib.sha256(f"{key}+{index}".encode()).digest() * (PIECE_BYTES // 32 + 1))[:PIECE_BYTES]


def _say(mark: str, key: str, version: int) -> None:
    os.write(1, f"{mark} {key} {version}\n".encode())


def run(root: Path, turn: int) -> None:
    core = Storage(root, segment_bytes=SEGMENT_BYTES)
    core.create_bucket("b")

    def overwrite(name: str) -> None:
        for version in range(turn * 1_000_000, (turn + 1) * 1_000_000):
            key = f"over/{name}/{version % 7}"
            _say("?", key, version)
            core.put("b", key, content(key, version))
            _say("!", key, version)

    def create(name: str) -> None:
        for index in range(1_000_000):
            key = f"new/{turn}/{name}/{index}"
            _say("?", key, 0)
            core.put("b", key, content(key, 0), if_absent=True)
            _say("!", key, 0)
            if index % 3 == 0:
                _say("?", key, -1)
                core.delete("b", [key])
                _say("!", key, -1)

    def append(name: str) -> None:
        for lane in range(1_000_000):
            key = f"lane/{turn}/{name}/{lane}"
            for index in range(40):
                _say("?", key, index + 1)
                core.append("b", key, index * PIECE_BYTES, piece(key, index))
                _say("!", key, index + 1)

    def parts(name: str) -> None:
        for index in range(1_000_000):
            key = f"parts/{turn}/{name}/{index}"
            upload = core.begin_upload("b", key)
            for number in (1, 2, 3):
                core.put_part("b", upload, number, content(key, number))
            _say("?", key, 0)
            core.complete_upload("b", upload, [1, 2, 3])
            _say("!", key, 0)

    work: list[tuple[Callable[[str], None], str]] = [(overwrite, "a"), (overwrite, "b"), (create, "a")]
    work += [(append, "a"), (append, "b"), (parts, "a")]
    for act, name in work:
        threading.Thread(target=act, args=(name,), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
