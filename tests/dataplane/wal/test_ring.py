"""What only the volume's side promises."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.wal.recover import recover
from dataplane.wal.ring_reader import RingReader
from providers.base.errors import Corrupt, Fenced, Full, Invalid, Unavailable
from providers.base.volumes import BLOCK_BYTES
from tests.dataplane.wal.cell import Cell, append, fill, identity, record, until
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, DeviceClient

DATA = 2 * BLOCK_BYTES


def test_ack_waits_for_a_reservation_read_issued_after_the_write_landed() -> None:
    """The device does not abort what it has accepted: the write lands behind the recoverer's back, and only the second
    look at the reservation stops its ack."""

    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK, preempt_aborts=False)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, [1])
        landing = asyncio.get_running_loop().create_future()
        land = cell.disk._land
        cell.disk._land = lambda flight: landing.add_done_callback(lambda _: land(flight))  # type: ignore[method-assign]
        late = append(wal, record(2))
        await until(lambda: bool(cell.disk.in_flight))
        assert await cell.recover() == [1]
        landing.set_result(None)
        with pytest.raises(Fenced):
            await late

    run(main())


def test_reservation_that_nobody_holds_counts_as_lost_for_good() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK, preempt_aborts=False)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, [1])
        late = append(wal, record(2))
        await until(lambda: bool(cell.disk.in_flight))
        cell.disk.holder = None
        with pytest.raises(Fenced, match="nobody"):
            await late
        assert cell.disk.holder is None, "it never takes the reservation again"

    run(main())


def test_torn_tail_is_cut_and_no_acked_record_lies_behind_it() -> None:
    async def main(seed: int) -> tuple[int, int]:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        cell.world.random.seed(seed)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, range(1, 10), 5000)
        for number in range(10, 14):
            append(wal, record(number, 5000))
            await asyncio.sleep(0.001)
        await until(lambda: len(cell.disk.in_flight) > 0)
        owner.freeze()
        acked = wal.last_acked
        cell.disk.tear(identity(1).key)
        recovered = await cell.recover()
        assert recovered == list(range(1, len(recovered) + 1))
        return acked, len(recovered)

    ends = [run(main(seed)) for seed in range(20)]
    assert all(9 <= acked <= found for acked, found in ends)
    assert any(acked == found < 13 for acked, found in ends), "some tail has to be torn"


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_damage_below_acked_blocks_is_corrupt_and_not_taken_for_the_end(at: int) -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        await fill(await cell.open(cell.host("owner")), range(1, 12))
        cell.disk.data[DATA + (at - 1) * BLOCK_BYTES + 60] ^= 1
        with pytest.raises(Corrupt, match=f"block {at} is damaged"):
            await cell.recover()

    run(main())


def test_damage_below_the_ledgers_floor_is_corrupt() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        await fill(await cell.open(cell.host("owner")), range(1, 4))
        cell.disk.data[DATA + BLOCK_BYTES + 60] ^= 1
        with pytest.raises(Corrupt, match="block 2 is damaged"):
            await cell.recover(floor=3)

    run(main())


def test_one_damaged_superblock_is_survived_and_two_are_corrupt() -> None:
    async def main(slots: int) -> list[int]:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, range(1, 4))
        for slot in range(slots):
            cell.disk.data[slot * BLOCK_BYTES + 20] ^= 1
        return await cell.recover()

    assert run(main(1)) == [1, 2, 3]
    with pytest.raises(Corrupt, match="superblocks"):
        run(main(2))


def test_torn_superblock_leaves_the_one_before() -> None:
    async def main(seed: int) -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        cell.world.random.seed(seed)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, range(1, 10))
        trimming = asyncio.create_task(wal.trim(6))
        await until(lambda: bool(cell.disk.in_flight))
        owner.freeze()
        cell.disk.tear(identity(1).key)
        assert await cell.recover(floor=6) == [6, 7, 8, 9]
        trimming.cancel()

    for seed in range(10):
        run(main(seed))


def test_used_volume_is_refused_until_its_old_io_is_known_to_be_over() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK, preempt_aborts=False)
        await fill(await cell.open(cell.host("owner")), [1])
        assert await cell.recover() == [1]
        before = bytes(cell.disk.data)
        with pytest.raises(Unavailable, match="may still land"):
            await cell.open(cell.host("again"), epoch=2)
        assert cell.disk.data == before
        await fill(await cell.open(cell.host("again"), epoch=2, drained=True), [2])
        assert await cell.recover(epoch=2) == [2]

    run(main())


def test_space_that_an_unanswered_write_may_still_reach_is_not_reused_in_its_epoch() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK, bytes_max=128 << 10)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2])
        cell.disk.world.faults = CALM
        stuck: list[object] = []
        land = cell.disk._land
        cell.disk._land = lambda flight: stuck.append(flight) if not stuck else land(flight)  # type: ignore[method-assign]
        await fill(wal, [3])
        assert len(stuck) == 1, "its answer never came, and the same bytes were written again"
        with pytest.raises(Unavailable, match="never answered"):
            for number in range(4, 200):
                await append(wal, record(number, 3000))
                await wal.trim(wal.last_acked + 1)
        before = bytes(cell.disk.data)
        land(stuck[0])  # type: ignore[arg-type]
        assert cell.disk.data == before, "so that it changes nothing when it lands after all"

    run(main())


def test_recoverer_of_an_earlier_epoch_cannot_fence_the_next_owner() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        await fill(await cell.open(cell.host("owner")), [1])
        await cell.recover()
        wal = await cell.open(cell.host("again"), epoch=2)
        with pytest.raises(Fenced, match="overtaken"):
            await cell.recover(epoch=1, node=3)
        await fill(wal, [2, 3])

    run(main())


def test_owner_of_an_earlier_epoch_cannot_open_a_volume_that_a_later_one_holds() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        wal = await cell.open(cell.host("new"), epoch=2)
        with pytest.raises(Fenced):
            await cell.open(cell.host("old"), epoch=1)
        await fill(wal, [1])

    run(main())


def test_recoverer_with_a_key_that_does_not_name_its_victim_is_refused() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        host = cell.host("survivor")
        for key in (identity(1).key, identity(2).key, identity(2).recovery_key(2, 1)):
            with pytest.raises(Invalid):
                RingReader(DeviceClient(host, cell.disk), identity(1), own_key=key, clock=host)

    run(main())


def test_blocks_of_an_earlier_epoch_at_the_right_place_are_not_read() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        await fill(await cell.open(cell.host("owner")), range(1, 30))
        await cell.recover()
        await fill(await cell.open(cell.host("again"), epoch=2), range(1, 4))
        assert await cell.recover(epoch=2) == [1, 2, 3]

    run(main())


def test_volume_too_small_for_a_ring_is_refused() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK, bytes_max=32 << 10)
        with pytest.raises(Invalid, match="too small"):
            await cell.open(cell.host("owner"))

    run(main())


def test_volume_that_is_gone_is_not_taken_for_an_empty_one() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        await fill(await cell.open(cell.host("owner")), [1])
        survivor = cell.host("survivor")
        survivor.cut_from.add("volume")
        with pytest.raises(Unavailable):
            await recover(cell.readers(survivor), ["volume"], 1)

    run(main())


def test_volume_whose_host_has_no_room_pushes_back_and_goes_on_with_the_same_bytes() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, [1])
        accept, refused = cell.disk.accept, 0

        def full(key: int | None, offset: int, data: bytes):  # type: ignore[no-untyped-def]
            nonlocal refused
            refused += 1
            if refused < 6:
                raise Full("the host's disk is full")
            return accept(key, offset, data)

        cell.disk.accept = full  # type: ignore[method-assign]
        futures = [append(wal, record(2))]
        await asyncio.sleep(0.01)
        with pytest.raises(Full):
            append(wal, record(3))
        await asyncio.gather(*futures)
        await fill(wal, [3])
        assert await cell.recover() == [1, 2, 3]

    run(main())


def test_ring_smaller_than_its_spec_still_takes_every_record_that_is_not_refused() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK, bytes_max=1 << 20)
        del cell.disk.data[256 << 10 :]
        wal = await cell.open(cell.host("owner"))
        with pytest.raises(Invalid, match="does not fit"):
            append(wal, record(1, 80 << 10))
        for number in range(1, 20):
            await append(wal, record(number, 60 << 10))
            await wal.trim(wal.last_acked + 1)

    run(main())


def test_block_longer_than_one_request_is_written_in_parts_and_acked_when_all_are_durable() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK, bytes_max=64 << 20)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, [1, 2], 9 << 20)
        assert await cell.recover() == [1, 2]
        late = append(wal, record(3, 9 << 20))
        with pytest.raises(Fenced):
            await late

    run(main())
