"""The fence of the volume daemon: a reservation changes hands only when no write is under way, and none begins
meanwhile. The disk is slowed down at the point where a write would reach it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from providers.base.clock import SystemClock
from providers.base.errors import Fenced, YunheError
from providers.base.loops import run_loop
from providers.base.registry import VolumesAddress, open_volumes
from providers.base.volumes import BLOCK_BYTES
from providers.lab.volumes_daemon import Daemon
from providers.lab.volumes_storage import UNLIMITED

OLD, NEW = 5, 6
A, B = b"a" * BLOCK_BYTES, b"b" * BLOCK_BYTES


def test_a_preempt_waits_for_writes_under_way_and_lets_none_begin(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "v").mkdir()
        daemon = Daemon(tmp_path / "v", UNLIMITED, SystemClock())
        server = await asyncio.get_running_loop().create_unix_server(daemon.connection, str(tmp_path / "s"))
        volumes = open_volumes(VolumesAddress("aliyun", "local", f"unix:{tmp_path / 's'}"), clock=SystemClock())
        await volumes.create("v", size_bytes=64 * BLOCK_BYTES, zones=("h",), share_max=2)
        await volumes.attach("v", "h")
        old, new = await volumes.open("v", "h"), await volumes.open("v", "h")
        await old.register(OLD)
        await old.reserve()
        await new.register(NEW)

        file = daemon._shared["v"].file
        held: list[Callable[[], None]] = []
        begin, reached = file.write, asyncio.Event()

        def slow(offset: int, data: memoryview, done: Callable[[YunheError | None], None]) -> None:
            reached.set()
            held.append(lambda: begin(offset, data, done))

        file.write = slow  # type: ignore[method-assign]
        early = asyncio.create_task(old.write(0, A))
        await reached.wait()
        preempt = asyncio.create_task(new.preempt(OLD))
        await asyncio.sleep(0.02)
        late = asyncio.create_task(old.write(BLOCK_BYTES, A))
        await asyncio.sleep(0.05)
        assert not preempt.done(), "a write of the victim is under way"
        assert len(held) == 1, "no write begins while the reservation is about to change"
        held.pop()()
        await early
        await preempt
        with pytest.raises(Fenced):
            await late
        file.write = begin  # type: ignore[method-assign]
        await new.write(BLOCK_BYTES, B)
        assert await new.read(0, 2 * BLOCK_BYTES) == A + B
        await old.close()
        await new.close()
        server.close()
        await daemon.stop()

    run_loop(main())
