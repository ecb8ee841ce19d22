"""What only the object side promises."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.wal.modes import WalSettings
from dataplane.wal.objects import ObjectSide, object_key
from dataplane.wal.recover import recover
from providers.base.errors import Corrupt, Fenced, OutcomeUnknown, Unavailable
from tests.dataplane.wal.cell import SETTINGS, Cell, append, encoded, fill, identity, record, until
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, Bucket, Faults, StoreClient


def blocks(cell: Cell) -> list[int]:
    """Numbers of all names in the bucket."""
    return sorted(int(key.rsplit("/", 1)[1]) for key in cell.bucket.objects)


def test_lost_response_is_resolved_by_content() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        wal = await cell.open(cell.host("owner"))
        put, lost = Bucket.put, 0

        def losing(bucket: Bucket, key: str, data: bytes, if_absent: bool) -> None:
            nonlocal lost
            put(bucket, key, data, if_absent)
            lost += 1
            raise OutcomeUnknown("the answer was lost")

        cell.bucket.put = losing.__get__(cell.bucket)  # type: ignore[method-assign]
        await fill(wal, [1, 2, 3])
        assert lost == 3 and blocks(cell) == [1, 2, 3]

    run(main())


def test_name_taken_by_other_bytes_is_a_fence() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, [1])
        cell.bucket.objects[object_key(identity(1), 2)] = encoded(identity(1), 2, [record(99)])
        with pytest.raises(Fenced, match="taken"):
            await append(wal, record(2))

    run(main())


def test_block_beyond_a_hole_is_not_vouched_for() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        owner = cell.host("owner")
        side = ObjectSide(StoreClient(owner, cell.bucket), identity(1), clock=owner, settings=SETTINGS.objects)
        await side.open()
        second = asyncio.create_task(side.write(2, b"block 2"))
        await asyncio.sleep(5)
        assert blocks(cell) == [2] and not second.done()
        await side.write(1, b"block 1")
        await second
        third = asyncio.create_task(side.write(4, b"block 4"))
        await asyncio.sleep(5)
        cell.bucket.objects[object_key(identity(1), 3)] = b"a tombstone"
        with pytest.raises(Fenced):
            await side.write(3, b"block 3")
        with pytest.raises(Fenced):
            await third
        with pytest.raises(Fenced):
            await side.write(5, b"block 5")
        assert blocks(cell) == [1, 2, 3, 4], "no name is taken after the fence is known"

    run(main())


def test_fast_writer_cannot_outrun_the_tombstone() -> None:
    """The owner creates names faster than the fencer can walk; the fence ends all the same, and all that was acked lies
    before it."""

    async def main() -> None:
        settings = replace(SETTINGS, object_linger_ms=0, objects=replace(SETTINGS.objects, walk_parallel=1))
        cell = Cell(WalMode.OBJECT, bytes_max=4 << 20, settings=settings)
        owner, survivor = cell.host("owner"), cell.host("survivor")
        wal = await cell.open(owner)
        await fill(wal, range(1, 30))
        acked: list[int] = []

        async def produce() -> None:
            for number in range(30, 1_000_000):
                append(wal, record(number, 20)).add_done_callback(
                    lambda done, number=number: acked.append(number) if done.exception() is None else None
                )
                await asyncio.sleep(0.0005)
                if wal.dead is not None:
                    return

        producing = asyncio.create_task(produce())
        recovered = await asyncio.wait_for(recover(cell.readers(survivor), ["object"], 1), 30)
        await asyncio.wait_for(producing, 30)
        found = [r.base_offset for block in recovered.blocks for r in block.records]
        assert isinstance(wal.dead, Fenced) and acked
        assert set(acked) <= set(found) and found == list(range(1, len(found) + 1))

    run(main())


def test_tombstones_stay_and_nothing_else_does() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, range(1, 15))
        await wal.trim(6)
        await until(lambda: blocks(cell) == list(range(6, 15)))
        readers = cell.readers(cell.host("survivor"), floor=6)
        recovered = await recover(readers, ["object"], 6)
        assert [block.number for block in recovered.blocks] == list(range(6, 15))
        far = blocks(cell)[-1]
        assert blocks(cell) == [*range(6, 16), far]
        await readers["object"].release()
        assert blocks(cell) == [15, far]
        with pytest.raises(Fenced):
            await append(wal, record(15))

    run(main())


def test_delete_that_fails_is_made_up_for_by_the_next_trim() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, range(1, 10))
        cell.world.faults = replace(CALM, refused=1.0)
        await wal.trim(4)
        await asyncio.sleep(1)
        assert blocks(cell) == list(range(1, 10))
        cell.world.faults = CALM
        await wal.trim(6)
        await until(lambda: blocks(cell) == list(range(6, 10)))

    run(main())


def test_request_that_arrives_after_the_epoch_was_collected_acks_nothing_new() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT, faults=Faults(late=0.0))
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2])
        owner.freeze()
        late = append(wal, record(3))
        readers = cell.readers(cell.host("survivor"))
        assert len((await recover(readers, ["object"], 1)).blocks) == 2
        await readers["object"].release()
        owner.thaw()
        with pytest.raises(Fenced):
            await late

    run(main())


def test_damaged_object_is_corrupt() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        await fill(await cell.open(cell.host("owner")), [1, 2, 3])
        key = object_key(identity(1), 2)
        whole = cell.bucket.objects[key]
        for at in range(0, len(whole), 7):
            cell.bucket.objects[key] = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
            with pytest.raises(Corrupt):
                await cell.recover()

    run(main())


def test_bucket_that_does_not_answer_ends_the_owner_and_no_recovery() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        owner, survivor = cell.host("owner"), cell.host("survivor")
        wal = await cell.open(owner)
        await fill(wal, [1])
        owner.cut_from.add("bucket")
        survivor.cut_from.add("bucket")
        with pytest.raises(Unavailable):
            await append(wal, record(2))
        with pytest.raises(Unavailable):
            await recover(cell.readers(survivor), ["object"], 1)
        assert await cell.recover(node=3) == [1]

    run(main())


def test_an_outage_of_minutes_ends_no_object_wal_and_acks_go_on_when_it_is_over() -> None:
    """Its broker's next life would need the same bucket."""

    async def main() -> None:
        cell = Cell(WalMode.OBJECT, settings=WalSettings())
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2, 3])
        owner.cut_from.add("bucket")
        waiting = [append(wal, record(number)) for number in (4, 5)]
        await asyncio.sleep(300)
        assert cell.deaths == [] and not any(future.done() for future in waiting)
        owner.cut_from.clear()
        await asyncio.wait_for(asyncio.gather(*waiting), 2)
        await fill(wal, [6])
        assert await cell.recover() == [1, 2, 3, 4, 5, 6]

    run(main())
