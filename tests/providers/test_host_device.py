"""A real device node of the kernel: loop devices over files, as root. They have no reservations, which is an answer to
test as well; the fence over devices that have them is in `tests/conformance/test_volumes.py`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from providers.base.errors import Fenced, Full, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.host_device import DeviceSettings, HostBlockDevice, bus_of, open_device
from providers.base.host_reservations import Bus
from providers.base.host_volumes import HostBlockVolumes
from providers.base.volumes import BLOCK_BYTES
from tests.conformance.volumes_kernel import Disk, ModelKernel, ModelVolumes

SIZE = 64 * BLOCK_BYTES
A = b"a" * BLOCK_BYTES
BLKROSET = 0x125D


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A loop device over a file of SIZE bytes; its node."""
    if os.geteuid() != 0 or shutil.which("losetup") is None or not Path("/dev/loop-control").exists():
        pytest.skip("loop devices need root and losetup")
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, timeout=20)
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    node = made.stdout.strip()
    try:
        yield node
    finally:
        subprocess.run(["losetup", "--detach", node], check=True, timeout=20)


@contextlib.contextmanager
def read_only(node: str) -> Iterator[None]:
    """What a forced detach does first to whoever still has the device open."""
    descriptor = os.open(node, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, BLKROSET, (1).to_bytes(4, sys.byteorder))
        yield
        fcntl.ioctl(descriptor, BLKROSET, (0).to_bytes(4, sys.byteorder))
    finally:
        os.close(descriptor)


def test_writes_reach_the_device_past_the_page_cache_and_reads_have_any_alignment(loop_device: str) -> None:
    async def main() -> None:
        device = await open_device(loop_device, "v", aborts=False)
        assert device.size_bytes == SIZE and not device.preempt_aborts
        rng = random.Random(5)
        wanted = bytearray(SIZE)
        memory = await device.allocate(SIZE)
        writes = []
        for at in range(0, SIZE, 2 * BLOCK_BYTES):
            memory[at : at + 2 * BLOCK_BYTES] = wanted[at : at + 2 * BLOCK_BYTES] = rng.randbytes(2 * BLOCK_BYTES)
            aligned = memory[at : at + 2 * BLOCK_BYTES]
            # From allocated memory, from bytes, and from memory that is not aligned.
            data = (aligned, bytes(aligned), memoryview(bytearray(b"x" + aligned))[1:])[at // 8192 % 3]
            writes.append(device.write(at, data))
        await asyncio.gather(*writes)
        for _ in range(50):
            start = rng.randrange(SIZE)
            length = rng.randrange(SIZE - start)
            assert await device.read(start, length) == wanted[start : start + length]
        await device.close()
        again = await open_device(loop_device, "v", aborts=False)
        assert await again.read(0, SIZE) == bytes(wanted)
        for offset, data in ((1, A), (0, A[:-1]), (SIZE, A), (-BLOCK_BYTES, A)):
            with pytest.raises(Invalid):
                await again.write(offset, data)
        with pytest.raises(Invalid):
            await again.read(SIZE, 1)
        await again.close()
        with pytest.raises(Invalid):
            await again.read(0, 1)

    asyncio.run(main())


def test_device_taken_away_by_force_refuses_a_writer_that_has_it_open(loop_device: str) -> None:
    async def main() -> None:
        device = await open_device(loop_device, "v", aborts=False)
        await device.write(0, A)
        with read_only(loop_device):
            with pytest.raises(Unavailable) as refused:
                await device.write(0, b"b" * BLOCK_BYTES)
            assert not isinstance(refused.value, OutcomeUnknown) and refused.value.hint
            assert await device.read(0, BLOCK_BYTES) == A
        await device.write(0, b"c" * BLOCK_BYTES)
        await device.close()

    asyncio.run(main())


def test_device_that_shrinks_or_fails_leaves_the_outcome_unknown(loop_device: str, tmp_path: Path) -> None:
    async def main() -> None:
        device = await open_device(loop_device, "v", aborts=False)
        await device.write(0, A)
        os.truncate(tmp_path / "backing", BLOCK_BYTES)
        with pytest.raises(Unavailable):  # beyond the file's end a loop device reads an error
            await device.read(SIZE - BLOCK_BYTES, BLOCK_BYTES)
        assert await device.read(0, BLOCK_BYTES) == A
        await device.close()

    asyncio.run(main())


def test_one_process_at_a_time_has_the_device(loop_device: str) -> None:
    """The device does not tell two processes of one host apart, so the kernel must."""

    async def main() -> None:
        device = await open_device(loop_device, "v", aborts=False)
        with pytest.raises(Unavailable, match="in use on this host"):
            await open_device(loop_device, "v", aborts=False)
        other = [sys.executable, "-c", f"import os; os.open({loop_device!r}, os.O_RDWR | os.O_EXCL)"]
        assert subprocess.run(other, capture_output=True, timeout=20).returncode != 0  # noqa: ASYNC221
        await device.close()
        await (await open_device(loop_device, "v", aborts=False)).close()

    asyncio.run(main())


def test_killed_process_gives_the_device_up_only_with_its_writes_over(loop_device: str, tmp_path: Path) -> None:
    script = f"""
import asyncio
from providers.base.host_device import open_device
async def main():
    device = await open_device({loop_device!r}, "v", aborts=False)
    print("open", flush=True)
    n = 0
    while True:
        await asyncio.gather(*(device.write(k * 4096, bytes([n % 255 + 1]) * 4096) for k in range(32)))
        n += 1
asyncio.run(main())
"""

    async def main() -> None:
        writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)  # noqa: ASYNC220
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"open\n"
            with pytest.raises(Unavailable):
                await open_device(loop_device, "v", aborts=False)
        finally:
            writer.kill()
            writer.wait()
            writer.stdout.close()
        device = await open_device(loop_device, "v", aborts=False)
        seen = await device.read(0, SIZE)
        for _ in range(20):
            assert await device.read(0, SIZE) == seen
        await device.close()

    asyncio.run(main())


def test_mounted_device_is_refused(loop_device: str, tmp_path: Path) -> None:
    maker = shutil.which("mkfs.ext2")
    if maker is None:
        pytest.skip("no mkfs.ext2")
    subprocess.run([maker, "-q", loop_device], check=True, timeout=20)
    (tmp_path / "mnt").mkdir()
    mounted = subprocess.run(["mount", loop_device, str(tmp_path / "mnt")], capture_output=True, timeout=20)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(Unavailable, match="in use on this host"):
            asyncio.run(open_device(loop_device, "v", aborts=False))
    finally:
        subprocess.run(["umount", str(tmp_path / "mnt")], check=True, timeout=20)


def volumes_at(node: str, **options: object) -> HostBlockVolumes:
    return HostBlockVolumes("gcp", links=lambda: {"by-id/google-wal-1": node}, **options)  # type: ignore[arg-type]


def test_volume_that_cannot_be_fenced_is_refused_and_let_go(loop_device: str) -> None:
    async def main() -> None:
        with pytest.raises(Invalid, match="no persistent reservations") as refused:
            await volumes_at(loop_device).open("wal-1", "z")
        assert refused.value.hint
        device = await open_device(loop_device, "v", aborts=False)  # nothing kept it open
        for attempt in (device.register(1), device.reservation()):
            with pytest.raises(Invalid, match="no persistent reservations"):
                await attempt
        await device.close()

    asyncio.run(main())


def test_volume_that_holds_a_file_system_is_refused_before_anything_is_written(loop_device: str) -> None:
    if (maker := shutil.which("mkfs.ext2")) is None:
        pytest.skip("no mkfs.ext2")
    subprocess.run([maker, "-q", loop_device], check=True, timeout=20)
    with pytest.raises(Invalid, match="an ext file system"):
        asyncio.run(volumes_at(loop_device).open("wal-1", "z"))


def test_missing_and_unnamed_volumes_are_not_found(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(NotFound, match="wal-2 is not attached to this host"):
            await volumes_at("/dev/loop0").open("wal-2", "z")
        with pytest.raises(NotFound, match="wal-3 is not attached to this host"):
            await volumes_at("/dev/loop0", devices={"cell-b1": "wal-3"}).open("cell-b1", "z")
        with pytest.raises(NotFound):
            await open_device(str(tmp_path / "none"), "v", aborts=False)

    asyncio.run(main())


def test_volume_whose_commands_are_forbidden_is_refused_when_it_is_opened() -> None:
    async def main() -> None:
        for request in (0x401870CC, 0x401870CB):
            volumes = ModelVolumes(Bus.NVME, modern=True, aborts=request == 0x401870CC)
            await volumes.create("wal-1", size_bytes=SIZE, zones=("z",), share_max=1)

            async def opener(node: str, name: str, aborts: bool, volumes: ModelVolumes = volumes) -> HostBlockDevice:
                return volumes.open_on(name, "h")

            device = await volumes_at("/dev/nvme9n1", opener=opener).open("wal-1", "z")
            state = await device.reservation()
            assert (state.holder, state.registered, state.generation) == (None, frozenset(), 0)
            await device.close()

            async def forbidding(
                node: str, name: str, aborts: bool, volumes: ModelVolumes = volumes, request: int = request
            ) -> HostBlockDevice:
                opened = volumes.open_on(name, "h")
                volumes.kernels[-1].forbidden.add(request)
                return opened

            with pytest.raises(Invalid, match="may not use the reservations"):
                await volumes_at("/dev/nvme9n1", opener=forbidding).open("wal-1", "z")
            assert not volumes.disks["wal-1"].opened

    asyncio.run(main())


# ---- over the model of the kernel: what a loop device cannot do


@pytest.mark.parametrize(
    ("code", "kind"), [(28, Full), (5, OutcomeUnknown), (19, OutcomeUnknown), (52, Fenced), (1, Unavailable)]
)
def test_each_failure_of_a_write_is_one_kind(code: int, kind: type[Exception]) -> None:
    async def main() -> None:
        volumes = ModelVolumes(Bus.NVME, modern=True)
        await volumes.create("v", size_bytes=SIZE, zones=("z",), share_max=1)
        device = volumes.open_on("v", "h")
        volumes.disks["v"].failing = code
        with pytest.raises(kind) as failed:
            await device.write(0, A)
        assert type(failed.value) is kind
        await device.close()

    asyncio.run(main())


class Stuck(ModelKernel):
    """A device that answers no write."""

    def submit(self, data: memoryview, offset: int, done: object) -> None:
        self.kept = done


def test_device_that_never_answers_is_bounded_in_time_and_kept_from_other_processes() -> None:
    async def main() -> None:
        disk = Disk(SIZE, Bus.NVME)
        kernel = Stuck(disk, "h", modern=True)
        device = HostBlockDevice(kernel, "v", Bus.NVME, aborts=True, settings=DeviceSettings(io_timeout_ms=50))
        with pytest.raises(OutcomeUnknown):
            await device.write(0, A)
        with pytest.raises(Unavailable, match="requests under way"):
            await device.close()
        assert "h" in disk.opened  # for good: its writes may still land

    asyncio.run(main())


def test_bus_is_told_by_the_kernels_name() -> None:
    assert (bus_of("/dev/nvme1n1"), bus_of("/dev/sdb"), bus_of("/dev/vdb")) == (Bus.NVME, Bus.SCSI, Bus.OTHER)
