"""The WAL over providers that others wrote: those of simulation, the lab's volume daemon over a real socket, a host's
devices over a model of the kernel, and a SCSI target nobody here wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dataplane.contract.assignment import WalMode, WalSpec
from dataplane.wal.modes import SIDES, WalPlaces, open_readers, open_wal
from dataplane.wal.recover import recover
from dataplane.wal.superblock import Superblock, holds_ring
from providers.base.clock import LoopClock, SeededRng, SystemClock
from providers.base.errors import Fenced
from providers.base.host_reservations import Bus
from providers.base.registry import VolumesAddress
from providers.base.volumes import BLOCK_BYTES, BlockVolumes
from providers.lab.volumes_client import open_volumes
from providers.lab.volumes_daemon import Daemon
from providers.lab.volumes_storage import UNLIMITED
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from providers.memory.volumes import MemoryBlockVolumes, MemoryCloud
from tests.conformance import volumes_tgtd
from tests.conformance.volumes_kernel import ModelVolumes
from tests.dataplane.wal.cell import MODES, SETTINGS, append, fill, identity, record, serial
from tests.sim.virtualtime import run

WAL_BYTES = 1 << 20


async def accept(sides: object, start: int) -> bool:
    return True


async def provision(volumes: BlockVolumes) -> None:
    await volumes.create("v", size_bytes=WAL_BYTES, zones=["a", "b"], share_max=3)
    await volumes.attach("v", "a")
    await volumes.attach("v", "b")


@pytest.mark.parametrize("aborts", [True, False], ids=["aborting", "not-aborting"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_fail_over_over_the_providers_of_simulation(mode: WalMode, aborts: bool) -> None:
    async def main() -> None:
        world = World(LoopClock(), SeededRng(1))
        cloud = MemoryCloud(world, preempt_aborts=aborts)
        express, bucket = MemoryBucket(world, "express", append_supported=True), MemoryBucket(world, "bucket")

        async def places(name: str, zone: str) -> WalPlaces:
            process = Process(world, name)
            device = await MemoryBlockVolumes(process, cloud).open("v", zone)
            return WalPlaces(device, MemoryObjectStore(process, express), MemoryObjectStore(process, bucket))

        await provision(MemoryBlockVolumes(Process(world, "cloud"), cloud))
        spec, clock = WalSpec(mode, bytes_max=WAL_BYTES), LoopClock()
        wal = await open_wal(
            spec, identity(1), await places("owner", "a"), clock=clock, change=accept, settings=SETTINGS
        )
        await fill(wal, range(1, 40))
        await wal.trim(11)
        readers = open_readers(
            spec,
            identity(1),
            await places("survivor", "b"),
            own_key=identity(1).recovery_key(2, 1),
            floor=11,
            clock=clock,
            settings=SETTINGS,
        )
        recovered = await recover(readers, SIDES[mode], 11)
        assert [serial(r) for block in recovered.blocks for r in block.records] == list(range(11, 40))
        with pytest.raises(Fenced):
            await append(wal, record(40))
        for reader in readers.values():
            await reader.release()
        await wal.close()
        again = await open_wal(
            spec,
            identity(2),
            await places("again", "b"),
            clock=clock,
            change=accept,
            drained=True,
            settings=SETTINGS,
        )
        await fill(again, [1, 2, 3])
        await again.close()

    run(main())


async def fail_over(volumes: BlockVolumes) -> None:
    """An owner, a recoverer that takes the volume, and the owner's next epoch; all over real time."""
    clock = SystemClock()
    await provision(volumes)
    spec = WalSpec(WalMode.REGIONAL_BLOCK, bytes_max=WAL_BYTES)
    wal = await open_wal(spec, identity(1), WalPlaces(await volumes.open("v", "a")), clock=clock)
    await fill(wal, range(1, 100), 2000)
    await wal.trim(51)
    readers = open_readers(
        spec,
        identity(1),
        WalPlaces(await volumes.open("v", "b")),
        own_key=identity(1).recovery_key(2, 1),
        floor=51,
        clock=clock,
    )
    recovered = await recover(readers, ["volume"], 51)
    assert [serial(r) for block in recovered.blocks for r in block.records] == list(range(51, 100))
    with pytest.raises(Fenced):
        await append(wal, record(100))
    await readers["volume"].release()
    await wal.close()
    again = await open_wal(spec, identity(2), WalPlaces(await volumes.open("v", "b")), clock=clock, drained=True)
    await fill(again, [1, 2, 3])
    await again.close()


def test_fail_over_over_the_labs_volume_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        clock = SystemClock()
        (tmp_path / "volumes").mkdir()
        daemon = Daemon(tmp_path / "volumes", UNLIMITED, clock)
        server = await asyncio.get_running_loop().create_unix_server(daemon.connection, str(tmp_path / "s"))
        volumes = open_volumes(
            VolumesAddress("aliyun", "local", f"unix:{tmp_path / 's'}"),
            clock=clock,
        )
        try:
            await fail_over(volumes)
        finally:
            await volumes.close()
            server.close()
            await daemon.stop()
            await server.wait_closed()

    asyncio.run(main())


@pytest.mark.parametrize("aborts", [True, False], ids=["aborting", "not-aborting"])
@pytest.mark.parametrize("bus", [Bus.NVME, Bus.SCSI])
def test_fail_over_over_a_hosts_devices(bus: Bus, aborts: bool) -> None:
    volumes = ModelVolumes(bus, modern=True, aborts=aborts)
    asyncio.run(fail_over(volumes))  # type: ignore[arg-type]


@pytest.mark.parametrize("bus", [Bus.NVME, Bus.SCSI])
def test_restart_on_the_same_host_recovers_its_own_volume_and_takes_it_again(bus: Bus) -> None:
    """The device knows the host only: the recovery's key and the next epoch's replace the former's."""

    async def main() -> None:
        volumes, clock = ModelVolumes(bus, modern=False), SystemClock()
        await volumes.create("v", size_bytes=WAL_BYTES, zones=["a"], share_max=1)
        spec = WalSpec(WalMode.REGIONAL_BLOCK, bytes_max=WAL_BYTES)
        wal = await open_wal(spec, identity(1), WalPlaces(volumes.open_on("v", "a")), clock=clock)
        await fill(wal, range(1, 20))
        with pytest.raises(OSError):  # while the former life has it, the next does not get it
            volumes.open_on("v", "a")
        await wal.close()
        readers = open_readers(
            spec,
            identity(1),
            WalPlaces(volumes.open_on("v", "a")),
            own_key=identity(1).recovery_key(1, 2),
            floor=1,
            clock=clock,
        )
        recovered = await recover(readers, ["volume"], 1)
        assert [serial(r) for block in recovered.blocks for r in block.records] == list(range(1, 20))
        await readers["volume"].release()
        again = await open_wal(spec, identity(2), WalPlaces(volumes.open_on("v", "a")), clock=clock)
        await fill(again, [1, 2, 3])
        assert volumes.disks["v"].keys == {"a": identity(2).key}
        await again.close()

    asyncio.run(main())


def test_fail_over_over_a_scsi_target_with_its_own_reservations(tmp_path: Path) -> None:
    if why := volumes_tgtd.why_not():
        pytest.skip(why)

    async def main() -> None:
        target = volumes_tgtd.Tgtd(tmp_path)
        try:
            await target.start()
            await fail_over(volumes_tgtd.TgtdVolumes(target, ours=holds_ring))  # type: ignore[arg-type]
        finally:
            target.close()

    asyncio.run(main())


def test_a_ring_is_told_from_anything_else() -> None:
    ring = Superblock(1, 1, 1, 1, 0, 1 << 20).encode()
    assert holds_ring(ring + bytes(BLOCK_BYTES)) and holds_ring(bytes(BLOCK_BYTES) + ring)
    assert not holds_ring(bytes(2 * BLOCK_BYTES)) and not holds_ring(b"XFSB" + bytes(2 * BLOCK_BYTES))
    assert not holds_ring(bytes(2 * BLOCK_BYTES) + ring)
