"""Large pieces joined by the kernel are the pieces in their order, whatever memory they are in, and wherever it cannot
be had the interpreter joins them."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from providers.base import joining
from providers.base.joining import LARGE_BYTES, PIECES_MAX, joined

FILES = Path("/proc/self/fd")


def _pieces(rng: random.Random, count: int, longest: int) -> list[bytes | bytearray | memoryview]:
    kinds = (bytes, bytearray, lambda data: memoryview(data)[:])
    return [rng.choice(kinds)(rng.randbytes(rng.randrange(longest))) for _ in range(count)]


@pytest.mark.parametrize(("count", "longest"), [(0, 1), (3, 10), (5, 2 * LARGE_BYTES), (3 * PIECES_MAX + 1, 4_096)])
def test_joined_pieces_are_the_pieces_in_their_order(count: int, longest: int) -> None:
    pieces = _pieces(random.Random(count), count, longest)
    whole = bytearray()
    for piece in pieces:
        whole += piece
    assert joined(pieces) == whole


def test_large_pieces_do_not_pass_through_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.writev

    def writev(file: int, pieces: list[bytes]) -> int:
        asked.append(len(pieces))
        return real(file, pieces)

    monkeypatch.setattr(os, "writev", writev)
    files = len(list(FILES.iterdir()))
    joined(_pieces(random.Random(1), 64, 2 * LARGE_BYTES))
    assert asked == [64]
    assert len(list(FILES.iterdir())) == files


@pytest.mark.parametrize("fails", ["no such call", "no room", "short"])
def test_where_the_kernel_does_not_join_the_interpreter_does(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = _pieces(random.Random(2), 8, LARGE_BYTES)
    real = os.writev
    if fails == "no such call":
        monkeypatch.delattr(os, "memfd_create")
    elif fails == "no room":
        monkeypatch.setattr(os, "writev", _full)
    else:
        monkeypatch.setattr(os, "writev", lambda file, given: real(file, given[:-1]))
    assert joining.joined(pieces) == b"".join(pieces)


def _full(file: int, pieces: object) -> int:
    raise OSError(errno.ENOSPC, "full")
