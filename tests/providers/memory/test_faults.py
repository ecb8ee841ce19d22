"""The simulated places fail as told, and the same way for the same seed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import AlreadyExists, Invalid, NotFound, OutcomeUnknown, Unavailable, WrongOffset, YunheError
from providers.base.volumes import BLOCK_BYTES
from providers.memory.faults import Faults, Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from providers.memory.volumes import SECTOR_BYTES, MemoryBlockDevice, MemoryBlockVolumes, MemoryCloud
from tests.sim.virtualtime import run

HOSTILE = Faults(unavailable=0.1, throttled=0.05, lost_response=0.1, delayed=0.1, duplicated=0.1)
A = b"a" * BLOCK_BYTES
B = b"b" * BLOCK_BYTES


def world(seed: int = 1) -> World:
    return World(LoopClock(), SeededRng(seed))


async def outcome(call: Coroutine[Any, Any, Any]) -> str:
    try:
        return repr(await call)
    except YunheError as error:
        return type(error).__name__


async def hostile_run(seed: int) -> tuple[list[str], list[str], dict[str, bytes], bytes]:
    here = world(seed)
    bucket = MemoryBucket(here, "bucket", append_supported=True, faults=HOSTILE)
    cloud = MemoryCloud(here, preempt_aborts=False, faults=HOSTILE)
    outcomes: list[str] = []

    async def work(name: str, key: int) -> None:
        process = Process(here, name)
        store, volumes = MemoryObjectStore(process, bucket), MemoryBlockVolumes(process, cloud)
        await volumes.create("v", size_bytes=16 * BLOCK_BYTES, zones=("z",), share_max=1)
        await volumes.attach("v", "z")
        device = await volumes.open("v", "z")
        outcomes.append(await outcome(device.register(key)))
        for n in range(16):
            outcomes.append(await outcome(store.put(f"k/{n}", name.encode(), if_absent=True)))
            outcomes.append(await outcome(store.append(f"k/{n}", len(name), b"+")))
            outcomes.append(await outcome(device.write(n * BLOCK_BYTES, A if key == 1 else B)))

    await asyncio.gather(work("p", 1), work("q", 2))
    await here.settle()
    return here.trace, outcomes, bucket.objects, bytes(cloud.disks["v"].data)


def test_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    first = run(hostile_run(7))
    assert first == run(hostile_run(7))
    assert first[0] != run(hostile_run(8))[0]
    said = " ".join(first[0])
    for fate in ("unavailable", "throttled", "lost response", "delayed", "duplicated", "applied late"):
        assert fate in said, fate


def test_lost_response_is_applied_and_a_delayed_put_lands_later() -> None:
    async def main() -> None:
        here = world()
        bucket = MemoryBucket(here, "bucket")
        store = MemoryObjectStore(Process(here, "p"), bucket)
        bucket.faults = Faults(lost_response=1)
        with pytest.raises(OutcomeUnknown):
            await store.put("lost", b"1")
        assert bucket.objects == {"lost": b"1"}
        bucket.faults = Faults(delayed=1, timeout_ms=1, delayed_ms_max=60_000)
        with pytest.raises(OutcomeUnknown):
            await store.put("late", b"2", if_absent=True)
        assert "late" not in bucket.objects
        await here.settle()
        assert bucket.objects["late"] == b"2"

    run(main())


def test_outage_partition_and_freeze_hit_whom_they_name() -> None:
    async def main() -> None:
        here = world()
        bucket = MemoryBucket(here, "bucket")
        p, q = Process(here, "p"), Process(here, "q")
        mine, others = MemoryObjectStore(p, bucket), MemoryObjectStore(q, bucket)
        p.cut_from.add("bucket")
        with pytest.raises(Unavailable):
            await mine.put("k", b"1")
        await others.put("k", b"2", if_absent=True)
        p.cut_from.clear()
        with pytest.raises(AlreadyExists):
            await mine.put("k", b"1", if_absent=True)
        p.freeze()
        frozen = asyncio.create_task(mine.get("k"))
        await asyncio.sleep(3600)
        assert not frozen.done() and await others.get("k") == b"2"
        p.thaw()
        assert await frozen == b"2"
        bucket.down = True
        for store in (mine, others):
            with pytest.raises(Unavailable):
                await store.get("k")

    run(main())


def test_append_needs_the_exact_end_and_a_bucket_that_appends() -> None:
    async def main() -> None:
        here = world()
        express = MemoryObjectStore(Process(here, "p"), MemoryBucket(here, "x", append_supported=True))
        with pytest.raises(NotFound):
            await express.append("a/k", 0, b"1")
        await express.put("a/k", b"1")
        await express.append("a/k", 1, b"2")
        with pytest.raises(WrongOffset):
            await express.append("a/k", 1, b"2")
        with pytest.raises(Invalid):
            await express.list("a/k")
        plain = MemoryObjectStore(Process(here, "p"), MemoryBucket(here, "plain"))
        await plain.put("k", b"1")
        with pytest.raises(Invalid):
            await plain.append("k", 1, b"2")

    run(main())


async def two_handles(here: World, *, preempt_aborts: bool) -> tuple[MemoryCloud, Process, Any, Any]:
    cloud = MemoryCloud(here, preempt_aborts=preempt_aborts)
    p, q = Process(here, "p"), Process(here, "q")
    volumes = MemoryBlockVolumes(p, cloud)
    await volumes.create("v", size_bytes=16 * BLOCK_BYTES, zones=("z",), share_max=1)
    await volumes.attach("v", "z")
    old, new = await volumes.open("v", "z"), await MemoryBlockVolumes(q, cloud).open("v", "z")
    await old.register(1)
    await old.reserve()
    await new.register(2)
    return cloud, p, old, new


@pytest.mark.parametrize("aborts", [True, False])
def test_write_in_flight_is_aborted_or_lands_after_the_preempt_as_the_cloud_has_it(aborts: bool) -> None:
    async def main() -> None:
        here = world()
        cloud, _, old, new = await two_handles(here, preempt_aborts=aborts)
        disk = cloud.disks["v"]
        disk.faults = Faults(delayed=0, latency_ms=(0, 0), timeout_ms=1000, delayed_ms_max=60_000)
        assert isinstance(old, MemoryBlockDevice)
        flight = disk.accept(old, 0, A)
        disk.preempt(new, 1)
        await here.settle()
        assert (disk.data[:BLOCK_BYTES] == A) is not aborts
        assert flight.landed.result() is not aborts

    run(main())


def test_killed_process_tears_only_the_write_in_flight() -> None:
    async def main(seed: int) -> bytes:
        here = world(seed)
        cloud, p, old, _ = await two_handles(here, preempt_aborts=True)
        disk = cloud.disks["v"]
        await old.write(0, A * 16)
        disk.accept(old, 4 * BLOCK_BYTES, B * 2)
        p.kill()
        await here.settle()
        data = bytes(disk.data)
        assert data[: 4 * BLOCK_BYTES] == A * 4 and data[6 * BLOCK_BYTES :] == A * 10
        return data[4 * BLOCK_BYTES : 6 * BLOCK_BYTES]

    torn = [run(main(seed)) for seed in range(5)]
    assert len(set(torn)) > 1
    for data in torn:
        sectors = {data[at : at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)}
        assert sectors <= {b"a" * SECTOR_BYTES, b"b" * SECTOR_BYTES}
