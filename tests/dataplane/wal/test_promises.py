"""The numbered obligations of `dataplane/wal/base.py`, over every mode."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.wal.commit import CommitSettings
from providers.base.errors import Fenced, Full, Invalid, Unavailable
from tests.dataplane.wal.cell import MODES, SETTINGS, Cell, append, fill, identity, record, until
from tests.sim.virtualtime import run

every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)


@every_mode
def test_appends_are_acked_in_order_and_recovered_once(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        order: list[int] = []
        futures = []
        for number in range(1, 61):
            future = append(wal, record(number))
            future.add_done_callback(lambda _, number=number: order.append(number))
            futures.append(future)
            if number % 7 == 0:
                await asyncio.sleep(random.Random(number).uniform(0, 0.01))
        blocks = await asyncio.gather(*futures)
        assert order == list(range(1, 61)) and blocks == sorted(blocks) and wal.last_acked == blocks[-1]
        assert wal.unacked_bytes == 0
        assert await cell.recover() == list(range(1, 61))

    run(main())


@every_mode
def test_old_owner_cannot_ack_after_fence(mode: WalMode) -> None:
    """Frozen at some moment of an append, thawed when the epoch has been recovered: what is acked then was recovered,
    and nothing more ever is."""

    async def main(pause_ms: float) -> bool:
        cell = Cell(mode)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2, 3])
        late = [append(wal, record(4)), append(wal, record(5))]
        await asyncio.sleep(pause_ms / 1000)
        owner.freeze()
        recovered = await cell.recover()
        assert recovered[:3] == [1, 2, 3]
        owner.thaw()
        results = await asyncio.gather(*late, return_exceptions=True)
        for number, result in zip((4, 5), results, strict=True):
            assert isinstance(result, Fenced) or number in recovered, (number, result)
        with pytest.raises(Fenced):
            await append(wal, record(6))
        assert len(cell.deaths) == 1 and isinstance(wal.dead, Fenced)
        with pytest.raises(Fenced):
            await append(wal, record(7))
        return 4 in recovered

    assert {run(main(pause_ms)) for pause_ms in (0, 1, 2, 4, 6, 8, 10, 15, 20)} == {False, True}


@every_mode
def test_recovery_finds_appends_that_were_durable_but_not_acked_only_as_a_whole(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1])
        append(wal, record(2))
        append(wal, record(3))
        await asyncio.sleep(0.004)
        owner.freeze()
        assert await cell.recover() in ([1], [1, 2, 3])

    run(main())


@every_mode
def test_full_wal_pushes_back_and_goes_on_after_a_trim(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode, bytes_max=128 << 10)
        wal = await cell.open(cell.host("owner"))
        number = 0
        with pytest.raises(Full):
            for number in range(1, 1000):
                await append(wal, record(number, 3000))
        kept = number - 1
        assert 10 < kept < 128 * 1024 // 3000 and wal.bytes_used <= 128 << 10
        with pytest.raises(Full):
            append(wal, record(number, 3000))
        await wal.trim(wal.last_acked + 1)
        assert wal.bytes_used == 0
        await fill(wal, range(number, number + 5), 3000)
        assert await cell.recover(floor=number) == list(range(number, number + 5))

    run(main())


@every_mode
def test_full_wal_overwrites_nothing(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode, bytes_max=128 << 10)
        wal = await cell.open(cell.host("owner"))
        appended: dict[int, asyncio.Future[int]] = {}
        for number in range(1, 500):
            try:
                appended[number] = append(wal, record(number, 1000))
            except Full:
                await asyncio.sleep(0.001)
        await asyncio.sleep(120)
        assert wal.dead is None, "a full WAL waits for a trim, however long"
        acked = [number for number, future in appended.items() if future.done() and future.exception() is None]
        assert len(acked) > 20, "some fit"
        assert len(appended) < 499, "not all do"
        assert await cell.recover() == acked

    run(main())


@every_mode
def test_space_is_reused_only_behind_the_floor(mode: WalMode) -> None:
    """Many laps with random sizes and floors: from the floor on, everything is always there."""

    async def main(seed: int) -> None:
        rng = random.Random(seed)
        cell = Cell(mode, bytes_max=128 << 10)
        wal = await cell.open(cell.host("owner"))
        block_of: dict[int, int] = {}
        number = 0
        for _ in range(300):
            try:
                block_of[number + 1] = await append(wal, record(number + 1, rng.choice((50, 2000, 9000))))
                number += 1
            except Full:
                await wal.trim(rng.randint(wal.last_acked // 2 + 1, wal.last_acked + 1))
        floor = max(1, wal._floor)
        assert floor > 50, "it has to have gone round"
        assert await cell.recover(floor=floor) == [n for n, block in block_of.items() if block >= floor]

    for seed in range(5):
        run(main(seed))


@every_mode
def test_recoverer_dies_half_way_and_another_finishes(mode: WalMode) -> None:
    async def main(pause_ms: float) -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, range(1, 12))
        first = asyncio.create_task(cell.recover(node=2))
        await asyncio.sleep(pause_ms / 1000)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await cell.recover(node=3) == list(range(1, 12))
        assert await cell.recover(node=3) == list(range(1, 12)), "and may do it again"
        with pytest.raises(Fenced):
            await append(wal, record(12))

    for pause_ms in (0, 2, 5, 9, 14, 20, 30, 50):
        run(main(pause_ms))


@every_mode
def test_two_recoverers_at_once_both_find_what_was_acked(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, range(1, 12))
        both = await asyncio.gather(cell.recover(node=2), cell.recover(node=3), return_exceptions=True)
        assert list(range(1, 12)) in both
        assert all(found == list(range(1, 12)) or isinstance(found, (Fenced, Unavailable)) for found in both)

    run(main())


@every_mode
def test_next_epoch_opens_after_recovery_and_sees_nothing_of_the_last(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, range(1, 20))
        readers = cell.readers(cell.host("survivor"))
        for side in cell.members:
            await readers[side].fence()
            assert len([block async for block in readers[side].read(1)]) == 19
        for reader in readers.values():
            await reader.release()
        again = await cell.open(cell.host("owner-again"), epoch=2)
        await fill(again, [100, 101])
        assert await cell.recover(epoch=2) == [100, 101]
        with pytest.raises(Fenced):
            await append(wal, record(20))

    run(main())


@every_mode
def test_owner_paused_before_it_opened_cannot_open_after_its_recovery(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        owner = cell.host("owner")
        owner.freeze()
        opening = asyncio.create_task(cell.open(owner))
        await asyncio.sleep(1)
        readers = cell.readers(cell.host("survivor"))
        for reader in readers.values():
            await reader.fence()
            assert [block async for block in reader.read(1)] == []
            await reader.release()
        owner.thaw()
        with pytest.raises(Fenced):
            await opening

    run(main())


@every_mode
def test_an_epoch_is_opened_once(mode: WalMode) -> None:
    """A restart is a recovery and a new epoch: reopening the old one would write over its own log."""

    async def main() -> None:
        cell = Cell(mode)
        await fill(await cell.open(cell.host("owner")), [1, 2, 3])
        with pytest.raises(Fenced):
            second = await cell.open(cell.host("restarted"))
            await fill(second, [4])
        assert (await cell.recover())[:3] == [1, 2, 3]

    run(main())


@every_mode
def test_close_flushes_what_is_queued(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        futures = [append(wal, record(number)) for number in range(1, 30)]
        await wal.close()
        assert all(future.done() and future.exception() is None for future in futures)
        with pytest.raises(Unavailable):
            await append(wal, record(30))
        assert cell.deaths == []
        assert await cell.recover() == list(range(1, 30))

    run(main())


@every_mode
def test_record_that_never_fits_is_refused_at_once(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode, bytes_max=128 << 10)
        wal = await cell.open(cell.host("owner"))
        with pytest.raises(Invalid, match="does not fit"):
            append(wal, record(1, 100 << 10))
        await fill(wal, [1], 28 << 10)

    run(main())


def test_appends_in_object_mode_share_requests() -> None:
    async def main() -> None:
        cell = Cell(WalMode.OBJECT)
        wal = await cell.open(cell.host("owner"))
        futures = []
        for number in range(1, 11):
            futures.append(append(wal, record(number)))
            await asyncio.sleep(0.0004)
        assert set(await asyncio.gather(*futures)) == {1}

    run(main())


def test_queue_is_bounded_in_bytes() -> None:
    async def main() -> None:
        commit = CommitSettings(queue_bytes_max=4000)
        cell = Cell(WalMode.REGIONAL_BLOCK, settings=replace(SETTINGS, commit=commit))
        owner = cell.host("owner")
        wal = await cell.open(owner)
        owner.freeze()
        with pytest.raises(Full, match="queue"):
            for number in range(1, 100):
                append(wal, record(number, 500))
        assert wal.unacked_bytes <= 4000
        owner.thaw()
        await until(lambda: not wal.unacked_bytes)
        assert identity(1) == wal.identity

    run(main())
