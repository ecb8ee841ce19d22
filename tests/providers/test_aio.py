"""Durable writes without a thread, and the way that works everywhere: what is written is there, each write whole."""

from __future__ import annotations

import asyncio
import errno
import mmap
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from providers.base.aio import AioWriter, ThreadWriter, Writer
from providers.base.loops import run_loop
from providers.base.volumes import BLOCK_BYTES

BLOCKS = 256


@pytest.mark.parametrize("kind", [AioWriter, ThreadWriter])
def test_many_overlapping_writes_all_land_where_they_belong(kind: Callable[[Path], Writer], tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(BLOCKS * BLOCK_BYTES))

    async def main() -> None:
        try:
            writer = kind(path)
        except OSError as error:
            pytest.skip(f"no direct I/O under {tmp_path}: {error}")
        rng = random.Random(3)
        memory = memoryview(mmap.mmap(-1, BLOCKS * BLOCK_BYTES))
        memory[:] = rng.randbytes(len(memory))
        ended: list[int] = []
        all_ended = asyncio.Event()
        extents, at = [], 0
        while at < BLOCKS:
            count = min(rng.randrange(1, 9), BLOCKS - at)
            extents.append((at * BLOCK_BYTES, count * BLOCK_BYTES))
            at += count
        rng.shuffle(extents)

        def done(error: int) -> None:
            ended.append(error)
            if len(ended) == len(extents):
                all_ended.set()

        for start, length in extents:
            writer.submit(memory[start : start + length], start, done)
        async with asyncio.timeout(30):
            await all_ended.wait()
        writer.close()
        assert set(ended) == {0}
        assert path.read_bytes() == bytes(memory)

    run_loop(main())


def test_a_write_that_the_kernel_refuses_says_why(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(BLOCK_BYTES))

    async def main() -> None:
        try:
            writer = AioWriter(path)
        except OSError as error:
            pytest.skip(f"no direct I/O under {tmp_path}: {error}")
        memory = memoryview(mmap.mmap(-1, 2 * BLOCK_BYTES))
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        writer.submit(memory[7 : 7 + BLOCK_BYTES], 0, ended.set_result)  # direct I/O wants aligned memory
        async with asyncio.timeout(10):
            assert await ended == errno.EINVAL
        writer.close()

    run_loop(main())
