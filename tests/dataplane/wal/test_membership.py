"""block+express: acks wait for both sides until the ledger has accepted otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.wal.base import WalReader
from dataplane.wal.modes import WalSettings
from dataplane.wal.recover import recover
from providers.base.errors import Fenced, OutcomeUnknown, Unavailable
from tests.dataplane.wal.cell import Cell, append, fill, record
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM

both_sides = pytest.mark.parametrize("lost", ["volume", "express"])


def other(side: str) -> str:
    return "express" if side == "volume" else "volume"


@both_sides
def test_dual_wal_acks_only_after_both(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        asked: list[tuple[Sequence[str], int]] = []
        answer = asyncio.get_running_loop().create_future()

        async def change(sides: Sequence[str], start: int) -> bool:
            asked.append((tuple(sides), start))
            return bool(await answer)

        wal = await cell.open(owner, change=change)
        await fill(wal, [1, 2, 3])
        owner.cut_from.add(lost)
        futures = [append(wal, record(number)) for number in (4, 5)]
        await asyncio.sleep(60)
        assert asked == [((other(lost),), wal.last_acked + 1)], "asked once, while the answer is awaited"
        assert not any(future.done() for future in futures), "durable on one side is not enough"
        assert wal.members == ("volume", "express")
        answer.set_result(True)
        await asyncio.gather(*futures)
        assert wal.members == (other(lost),)

    run(main())


@both_sides
def test_accepted_shrink_goes_on_with_one_side_and_loses_nothing(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2, 3])
        owner.cut_from.add(lost)
        await fill(wal, range(4, 20))
        assert cell.members == (other(lost),) == wal.members
        assert await cell.recover() == list(range(1, 20))

    run(main())


@both_sides
def test_a_side_that_says_nothing_keeps_acks_waiting_for_seconds_not_for_every_time_out(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS, faults=replace(CALM, timeout_ms=4_000), settings=WalSettings())
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2, 3])
        owner.cut_from.add(lost)
        async with asyncio.timeout(10):
            await fill(wal, range(4, 20))
        assert wal.members == (other(lost),)
        assert await cell.recover() == list(range(1, 20))

    run(main())


@both_sides
def test_the_side_that_is_left_is_not_given_up_for_a_passing_silence(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS, faults=replace(CALM, timeout_ms=4_000), settings=WalSettings())
        owner = cell.host("owner")
        wal = await cell.open(owner)
        owner.cut_from.add(lost)
        await fill(wal, [1, 2, 3])
        owner.cut_from.add(other(lost))
        waiting = append(wal, record(4))
        await asyncio.sleep(15)
        assert cell.deaths == [] and not waiting.done()
        owner.cut_from.remove(other(lost))
        await waiting
        assert await cell.recover() == [1, 2, 3, 4]

    run(main())


@both_sides
def test_refused_shrink_ends_the_owner(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")

        async def refuse(sides: Sequence[str], start: int) -> bool:
            return False

        wal = await cell.open(owner, change=refuse)
        await fill(wal, [1])
        owner.cut_from.add(lost)
        with pytest.raises(Fenced, match="refused"):
            await append(wal, record(2))
        assert len(cell.deaths) == 1

    run(main())


@both_sides
def test_shrink_of_unknown_outcome_acks_nothing_and_gives_up_in_the_end(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        asked = 0

        async def unknown(sides: Sequence[str], start: int) -> bool:
            nonlocal asked
            asked += 1
            raise OutcomeUnknown("the ledger does not answer")

        wal = await cell.open(owner, change=unknown)
        await fill(wal, [1])
        owner.cut_from.add(lost)
        with pytest.raises(Unavailable):
            await append(wal, record(2))
        assert asked == cell.settings.commit.change_attempts_max and wal.last_acked == 1

    run(main())


@both_sides
def test_shrink_answered_late_is_carried_out_then(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        answers = [OutcomeUnknown("no answer"), Unavailable("no"), None]

        async def change(sides: Sequence[str], start: int) -> bool:
            if (error := answers.pop(0)) is not None:
                raise error
            return await cell.accept(sides, start)

        wal = await cell.open(owner, change=change)
        await fill(wal, [1])
        owner.cut_from.add(lost)
        await fill(wal, [2, 3])
        assert answers == []

    run(main())


@both_sides
def test_both_sides_lost_ends_the_owner(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1])
        owner.cut_from |= {"volume", "express"}
        with pytest.raises(Unavailable):
            await append(wal, record(2))

    run(main())


@both_sides
def test_lost_side_is_never_written_again_in_its_epoch(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2])
        owner.cut_from.add(lost)
        await fill(wal, [3, 4])
        owner.cut_from.clear()
        disk, express = bytes(cell.disk.data), dict(cell.express.objects)
        await fill(wal, range(5, 30))
        await wal.trim(20)
        await asyncio.sleep(10)
        if lost == "volume":
            assert cell.disk.data == disk
        else:
            assert cell.express.objects == express
        assert await cell.recover(floor=20) == list(range(20, 30))

    run(main())


@both_sides
@pytest.mark.parametrize("when_ms", [1700, 6000], ids=["retrying", "asking"])
def test_lost_side_is_not_written_while_the_ledger_is_asked_even_if_it_returns(lost: str, when_ms: int) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        kept: list[object] = []

        def content() -> object:
            return bytes(cell.disk.data) if lost == "volume" else dict(cell.express.objects)

        async def change(sides: Sequence[str], start: int) -> bool:
            owner.cut_from.clear()
            kept.append(content())
            await asyncio.sleep(20)
            return await cell.accept(sides, start)

        wal = await cell.open(owner, change=change)
        await fill(wal, [1, 2])
        owner.cut_from.add(lost)
        futures = [append(wal, record(3))]
        await asyncio.sleep(when_ms / 1000)
        futures.append(append(wal, record(4)))
        await asyncio.gather(*futures)
        await fill(wal, [5])
        assert kept == [content()]
        assert await cell.recover() == [1, 2, 3, 4, 5]

    run(main())


@both_sides
def test_owner_opens_with_one_side_when_the_ledger_accepts_that(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        owner.cut_from.add(lost)
        wal = await cell.open(owner)
        assert cell.members == (other(lost),)
        await fill(wal, [1, 2])
        assert await cell.recover() == [1, 2]

    run(main())


def test_returning_side_is_used_again_under_a_new_epoch() -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await cell.open(owner)
        await fill(wal, [1, 2])
        owner.cut_from.add("volume")
        await fill(wal, [3, 4])
        assert await cell.recover() == [1, 2, 3, 4], "read where it was kept on: the volume has only the first two"
        assert await cell.recover(sides=["volume"]) == [1, 2]
        cell.members = ("volume", "express")
        again = await cell.open(cell.host("owner-again"), epoch=2)
        assert again.members == ("volume", "express")
        await fill(again, [10, 11, 12])
        for side in cell.members:
            assert await cell.recover(epoch=2, sides=[side]) == [10, 11, 12]

    run(main())


@both_sides
def test_either_side_of_the_membership_is_enough_to_recover(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        wal = await cell.open(cell.host("owner"))
        await fill(wal, range(1, 10))
        survivor = cell.host("survivor")
        survivor.cut_from.add(lost)
        readers = cell.readers(survivor)
        recovered = await recover(readers, cell.members, 1)
        assert recovered.side == other(lost) and len(recovered.blocks) == 9
        with pytest.raises(Fenced):
            await append(wal, record(10))

    run(main())


@both_sides
def test_recovery_of_one_side_alone_waits_for_that_side(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        await fill(await cell.open(cell.host("owner")), [1, 2])
        survivor = cell.host("survivor")
        survivor.cut_from.add(lost)
        with pytest.raises(Unavailable):
            await recover(cell.readers(survivor), [lost], 1)
        with pytest.raises(Unavailable):
            await recover({}, [lost], 1)

    run(main())


def test_recovery_fences_and_reads_the_same_side() -> None:
    class Reader:
        def __init__(self, name: str, fails: str) -> None:
            self.name, self.fails, self.calls = name, fails, [""]

        async def fence(self) -> None:
            self.calls.append("fence")
            if self.fails == "fence":
                raise Unavailable("no")

        async def read(self, floor: int):  # type: ignore[no-untyped-def]
            self.calls.append("read")
            if self.fails == "read":
                raise Unavailable("no")
            return
            yield

        async def release(self) -> None: ...

    async def main(fails: str) -> None:
        volume, express = Reader("volume", fails), Reader("express", "")
        readers: dict[str, WalReader] = {"volume": volume, "express": express}
        assert (await recover(readers, ["volume", "express"], 1)).side == "express"
        assert express.calls == ["", "fence", "read"]

    run(main("fence"))
    run(main("read"))
