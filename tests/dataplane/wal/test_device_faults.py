"""A device that fails: I/O errors, torn and short writes, a full disk, a slow one; below the lab's volume daemon and
below a host's own devices. What was acked is read back, whatever else happens, and nothing is acked that was not kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.contract.assignment import WalMode, WalSpec
from dataplane.wal.commit import GroupCommit
from dataplane.wal.modes import WalPlaces, open_readers, open_wal
from dataplane.wal.recover import recover
from dataplane.wal.rejoin import RejoinSettings
from providers.base import aio
from providers.base.aio import AioWriter, Done, ThreadWriter, Writer
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Full, Unavailable, YunheError
from providers.base.host_reservations import Bus
from providers.base.registry import VolumesAddress
from providers.base.volumes import BLOCK_BYTES, BlockDevice, BlockVolumes
from providers.lab import volumes_storage
from providers.lab.volumes_client import LabBlockVolumes
from providers.lab.volumes_daemon import Daemon
from providers.lab.volumes_storage import UNLIMITED
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from tests.conformance.volumes_kernel import ModelVolumes
from tests.dataplane.wal.cell import RETRY, SETTINGS, append, fill, identity, record, serial

WAL_BYTES = 1 << 20
SPEC = WalSpec(WalMode.REGIONAL_BLOCK, bytes_max=WAL_BYTES)
FAST = replace(
    SETTINGS,
    commit=replace(SETTINGS.commit, full_attempts_max=200, full_pause_ms=10),
    ring=replace(RETRY, backoff_ms=2, backoff_max_ms=10),
    rejoin=RejoinSettings(first_ms=20, longest_ms=100),
)
CLOCK = SystemClock()


class Lab:
    """A volume daemon over a real socket and real files, with a volume in two zones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.volumes = LabBlockVolumes(VolumesAddress("aliyun", "local", f"unix:{folder / 's'}"), clock=CLOCK)

    async def start(self) -> None:
        (self.folder / "volumes").mkdir(exist_ok=True)
        self.daemon = Daemon(self.folder / "volumes", UNLIMITED, CLOCK)
        self.server = await asyncio.get_running_loop().create_unix_server(
            self.daemon.connection, str(self.folder / "s")
        )
        await self.volumes.create("v", size_bytes=WAL_BYTES, zones=["a", "b"], share_max=3)
        for zone in ("a", "b"):
            await self.volumes.attach("v", zone)

    async def stop(self) -> None:
        self.server.close()
        await self.daemon.stop()
        await self.server.wait_closed()

    async def restart(self) -> None:
        await self.stop()
        await self.start()


@contextlib.asynccontextmanager
async def lab_in(folder: Path) -> AsyncIterator[Lab]:
    lab = Lab(folder)
    await lab.start()
    try:
        yield lab
    finally:
        await lab.stop()


async def opened(volumes: BlockVolumes | ModelVolumes) -> GroupCommit:
    device: BlockDevice = await volumes.open("v", "a")
    return await open_wal(SPEC, identity(1), WalPlaces(device), clock=CLOCK, settings=FAST)


async def recovered(volumes: BlockVolumes | ModelVolumes, floor: int = 1) -> list[int]:
    """Serial numbers of what a survivor in the other zone finds, which are consecutive."""
    key = identity(1).recovery_key(2, 1)
    places = WalPlaces(await volumes.open("v", "b"))
    readers = open_readers(SPEC, identity(1), places, own_key=key, floor=floor, clock=CLOCK, settings=FAST)
    found = await recover(readers, ["volume"], floor)
    await readers["volume"].close()
    return [serial(r) for block in found.blocks for r in block.records]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- real time, and nothing tells of it
            await asyncio.sleep(0.002)


class FaultyWriter:
    """A real writer whose disk fails as `fate` says of each write: 0 to carry it out; an errno, with what was written
    before it: a part, or all."""

    def __init__(self, path: Path, real: Writer, fate: Callable[[], tuple[int, float]]) -> None:
        self._path = path
        self._real = real
        self._fate = fate
        self._loop = asyncio.get_running_loop()

    def submit(self, data: memoryview, offset: int, done: Done) -> None:
        code, share = self._fate()
        if not code:
            self._real.submit(data, offset, done)
            return
        descriptor = os.open(self._path, os.O_WRONLY)
        os.pwrite(descriptor, data[: int(len(data) * share) // 512 * 512], offset)
        os.close(descriptor)
        self._loop.call_soon(done, code)

    def close(self) -> None:
        self._real.close()


def fail_as(patch: pytest.MonkeyPatch, fate: Callable[[], tuple[int, float]]) -> None:
    patch.setattr(volumes_storage, "open_writer", lambda path: FaultyWriter(path, aio.open_writer(path), fate))


# ---- below the lab's daemon


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["nothing-written", "torn", "all-written"])
def test_an_io_error_stops_the_wal_and_what_was_acked_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    fates: list[tuple[int, float]] = []
    fail_as(monkeypatch, lambda: fates.pop() if fates else (0, 0.0))

    async def main() -> None:
        async with lab_in(tmp_path) as lab:
            wal = await opened(lab.volumes)
            await fill(wal, range(1, 30), 3000)
            fates.append((errno.EIO, share))
            with pytest.raises(Unavailable):
                await append(wal, record(30, 9000))
            assert isinstance(wal.dead, Unavailable), (
                "a retry of a failed write proves nothing: the disk is not trusted"
            )
            with pytest.raises(YunheError):
                await append(wal, record(31))
            await wal.close()
            await lab.restart()
            found = await recovered(lab.volumes)
            assert found in (list(range(1, 30)), list(range(1, 31))), "the last was never acked, and may be there"

    asyncio.run(main())


def test_a_full_disk_pushes_back_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = False
    fail_as(monkeypatch, lambda: (errno.ENOSPC, 0.3) if full else (0, 0.0))

    async def main() -> None:
        nonlocal full
        async with lab_in(tmp_path) as lab:
            wal = await opened(lab.volumes)
            await fill(wal, range(1, 20))
            full = True
            waiting = append(wal, record(20))
            for _ in range(20):
                await asyncio.sleep(0.01)
                with contextlib.suppress(Full):
                    append(wal, record(99))
                    raise AssertionError("it takes more than it has room for")
                if wal._no_room:
                    break
            assert not waiting.done(), "nothing is acked that is not kept"
            with pytest.raises(Full):
                append(wal, record(99))
            full = False
            await waiting
            await fill(wal, range(21, 30))
            await wal.close()
            assert await recovered(lab.volumes) == list(range(1, 30))

    asyncio.run(main())


def test_a_slow_disk_delays_acks_and_keeps_their_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab_in(tmp_path) as lab:
            wal = await opened(lab.volumes)
            await lab.volumes.set_fault("slow_ms", "v", 30)
            began = CLOCK.monotonic_ms()
            ended: list[int] = []
            futures = [append(wal, record(number, 40_000)) for number in range(1, 10)]
            for number, future in enumerate(futures, 1):
                future.add_done_callback(lambda _, number=number: ended.append(number))
            await asyncio.gather(*futures)
            assert ended == list(range(1, 10)) and CLOCK.monotonic_ms() - began > 30
            await lab.volumes.set_fault("slow_ms", "v", 0)
            await wal.close()
            assert await recovered(lab.volumes) == list(range(1, 10))

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", [AioWriter, ThreadWriter])
def test_whatever_the_disk_does_nothing_acked_is_lost_and_nothing_is_acked_unkept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[AioWriter | ThreadWriter], seed: int
) -> None:
    """Errors, full disks, torn and short writes at random; then the daemon dies, and a survivor reads."""
    rng = random.Random(seed)
    calm = True

    def fate() -> tuple[int, float]:
        if calm or rng.random() > 0.15:
            return 0, 0.0
        return rng.choice((errno.EIO, errno.ENOSPC, errno.ENOSPC, errno.ENOSPC)), rng.random()

    def opener(path: Path) -> Writer:
        return FaultyWriter(path, short_at_times(kind(path), rng), fate)

    monkeypatch.setattr(volumes_storage, "open_writer", opener)

    async def main() -> None:
        nonlocal calm
        try:
            kind(Path(__file__)).close()
        except OSError as error:
            pytest.skip(f"no direct I/O here: {error}")
        async with lab_in(tmp_path) as lab:
            wal = await opened(lab.volumes)
            calm = False
            acked: set[int] = set()
            number = 0
            while wal.dead is None and number < 150:
                try:
                    future = append(wal, record(number + 1, rng.randrange(20, 20_000)))
                except Full:
                    await wal.trim(1)
                    await asyncio.sleep(0.005)
                    continue
                number += 1
                future.add_done_callback(
                    lambda f, n=number: acked.add(n) if not f.cancelled() and f.exception() is None else None
                )
                if wal.bytes_used > WAL_BYTES // 2:
                    break
                if rng.random() < 0.5:
                    await asyncio.wait([future], timeout=0.2)
            await asyncio.sleep(0.1)
            await wal.close()
            calm = True
            await lab.restart()
            found = await recovered(lab.volumes)
            assert found == list(range(1, len(found) + 1)) and len(found) <= number
            assert acked <= set(found)

    asyncio.run(main())


def short_at_times(writer: AioWriter | ThreadWriter, rng: random.Random) -> Writer:
    """Of some writes the kernel carries out only the beginning, and says so."""
    if isinstance(writer, AioWriter):
        whole = writer._result

        def result(slot: int, length: int) -> None:
            written = length > BLOCK_BYTES and rng.random() < 0.3
            whole(slot, length // 2 // BLOCK_BYTES * BLOCK_BYTES or BLOCK_BYTES if written else length)

        writer._result = result  # type: ignore[method-assign]
    return writer


def test_a_writer_in_a_thread_goes_on_behind_a_short_write_and_ends_on_one_that_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(8 * BLOCK_BYTES))
    real = os.pwrite
    shorten = 1000

    def short(descriptor: int, data: memoryview, offset: int) -> int:
        return real(descriptor, data[:shorten], offset)

    monkeypatch.setattr(os, "pwrite", short)

    async def main() -> None:
        nonlocal shorten
        writer = ThreadWriter(path)
        data = memoryview(bytearray(os.urandom(4 * BLOCK_BYTES)))
        assert await ended(writer, data, BLOCK_BYTES) == 0
        assert path.read_bytes()[BLOCK_BYTES : 5 * BLOCK_BYTES] == data
        shorten = 0
        assert await ended(writer, data, 0) == errno.EIO
        writer.close()

    async def ended(writer: Writer, data: memoryview, offset: int) -> int:
        code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        writer.submit(data, offset, code.set_result)
        return await asyncio.wait_for(code, 10)

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["errors", "gone"])
def test_a_failing_volume_of_two_sides_is_left_out_and_comes_back_when_it_is_well(tmp_path: Path, fault: str) -> None:
    async def main() -> None:
        async with lab_in(tmp_path) as lab:
            world = World(CLOCK, SeededRng(1))
            express = MemoryObjectStore(Process(world, "owner"), MemoryBucket(world, "express", append_supported=True))
            members: list[tuple[str, ...]] = []
            instances: dict[str, int] = {}
            floor = 1

            async def change(sides: object, start: int, instance: int | None = None) -> bool:
                if instance is not None:
                    assert start <= floor
                    instances["volume"] = instance
                members.append(tuple(sides))  # type: ignore[arg-type]
                return True

            async def places(side: str = "volume") -> WalPlaces:
                return WalPlaces(await lab.volumes.open("v", "a") if side == "volume" else None, express)

            spec = WalSpec(WalMode.BLOCK_EXPRESS, bytes_max=WAL_BYTES)
            wal = await open_wal(
                spec, identity(1), await places(), clock=CLOCK, change=change, again=places, settings=FAST
            )
            await fill(wal, range(1, 10))
            if fault == "errors":
                await lab.volumes.set_fault("errors", "v", 1)
            else:
                await lab.volumes.set_fault("zone_down", "a", 1)
            await fill(wal, range(10, 20))
            assert members == [("express",)]
            floor = wal.last_acked + 1
            await wal.trim(floor)
            await asyncio.sleep(0.1)
            assert wal.members == ("express",), "it is still ill"
            await lab.volumes.set_fault("errors", "v", 0)
            await lab.volumes.set_fault("zone_down", "a", 0)
            await until(lambda: wal.membership.back is not None or wal.members == ("volume", "express"))
            await fill(wal, [20])
            floor = wal.last_acked + 1
            await wal.trim(floor)
            await until(lambda: wal.members == ("volume", "express"))
            await fill(wal, range(21, 40))
            key = identity(1).recovery_key(2, 1)
            both = WalPlaces(await lab.volumes.open("v", "b"), express)
            readers = open_readers(
                spec,
                identity(1),
                both,
                own_key=key,
                floor=floor,
                instances=instances,
                clock=CLOCK,
                settings=FAST,
            )
            for side in ("volume", "express"):
                found = await recover(readers, [side], floor)
                assert [serial(r) for block in found.blocks for r in block.records] == list(range(21, 40))
            for reader in readers.values():
                await reader.close()
            await wal.close()

    asyncio.run(main())


# ---- below a host's own devices


@pytest.mark.parametrize("bus", [Bus.NVME, Bus.SCSI])
def test_an_io_error_of_a_hosts_device_stops_the_wal_and_what_was_acked_is_recovered(bus: Bus) -> None:
    async def main() -> None:
        volumes = ModelVolumes(bus, modern=True, aborts=True)
        await volumes.create("v", size_bytes=WAL_BYTES, zones=["a", "b"], share_max=2)
        wal = await opened(volumes)
        await fill(wal, range(1, 20))
        volumes.disks["v"].failing = errno.EIO
        with pytest.raises(Unavailable):
            await append(wal, record(20))
        assert wal.dead is not None
        await wal.close()
        volumes.disks["v"].failing = 0
        assert await recovered(volumes) == list(range(1, 20))

    asyncio.run(main())


@pytest.mark.parametrize("bus", [Bus.NVME, Bus.SCSI])
def test_a_hosts_device_without_space_pushes_back_and_goes_on_when_it_has_some(bus: Bus) -> None:
    async def main() -> None:
        volumes = ModelVolumes(bus, modern=True, aborts=True)
        await volumes.create("v", size_bytes=WAL_BYTES, zones=["a", "b"], share_max=2)
        wal = await opened(volumes)
        await fill(wal, range(1, 20))
        volumes.disks["v"].failing = errno.ENOSPC
        waiting = append(wal, record(20))
        await until(lambda: bool(wal._no_room))
        with pytest.raises(Full):
            append(wal, record(21))
        assert not waiting.done()
        volumes.disks["v"].failing = 0
        await waiting
        await wal.close()
        assert await recovered(volumes) == list(range(1, 21))

    asyncio.run(main())
