"""Growing back: a lost side of `block+express` comes back within the epoch, by itself, and no ack outruns it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import Broker, CellState, WalState
from dataplane.wal.base import WalIdentity, key_rank
from dataplane.wal.commit import GroupCommit
from dataplane.wal.superblock import Superblock, read_superblocks
from providers.base.errors import Fenced, OutcomeUnknown
from tests.dataplane.wal.cell import Cell, append, fill, identity, record, until
from tests.sim.virtualtime import run
from tests.sim.wal_world import Host

both_sides = pytest.mark.parametrize("lost", ["volume", "express"])


def other(side: str) -> str:
    return "express" if side == "volume" else "volume"


async def shrunk(cell: Cell, owner: Host, lost: str, **how: object) -> GroupCommit:
    """A WAL with blocks 1 to 6, of which 4 to 6 are on one side; the other is still away."""
    wal = await cell.open(owner, returning=True, **how)  # type: ignore[arg-type]
    await fill(wal, [1, 2, 3])
    owner.cut_from.add(lost)
    await fill(wal, [4, 5, 6])
    assert wal.members == (other(lost),)
    return wal


@both_sides
def test_a_side_that_answers_again_comes_back_by_itself_and_either_side_recovers_then(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await shrunk(cell, owner, lost)
        owner.cut_from.clear()
        await until(lambda: wal.membership.back is not None)
        await fill(wal, [7, 8])
        assert wal.members == (other(lost),), "what is below its beginning is on one side only"
        await cell.upload(wal)
        await until(lambda: wal.members == ("volume", "express"))
        assert cell.members == ("volume", "express") and cell.instances[lost] > 0
        await fill(wal, range(9, 30))
        for side in cell.members:
            assert await cell.recover(floor=cell.floor, sides=[side]) == list(range(9, 30))

    run(main())


@both_sides
def test_an_idle_wal_grows_back_too(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await shrunk(cell, owner, lost)
        await cell.upload(wal)
        owner.cut_from.clear()
        await until(lambda: wal.members == ("volume", "express"))
        for side in cell.members:
            assert await cell.recover(floor=cell.floor, sides=[side]) == []

    run(main())


@both_sides
def test_acks_wait_for_a_returning_side_from_its_first_block_on(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await shrunk(cell, owner, lost)
        owner.cut_from.clear()
        await until(lambda: wal.membership.back is not None and not wal.waits_for(wal._sides.now[-1]))
        owner.cut_from.add(lost)
        future = append(wal, record(7))
        await asyncio.sleep(0.2)
        assert not future.done(), "it is on one side, and may be on none of the next membership"
        await future  # given up: it was not proposed
        assert wal.membership.back is None and cell.members == (other(lost),)
        assert await cell.recover() == [1, 2, 3, 4, 5, 6, 7]

    run(main())


def test_a_volume_that_hangs_as_soon_as_it_is_back_holds_acks_up_no_longer_than_patience_lasts() -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await shrunk(cell, owner, "volume")
        real = owner.call

        async def hanging(place: str, what: str, *args: object, **how: object) -> object:
            if place == "volume" and what.startswith("volume write") and wal.membership.back is not None:
                await asyncio.Event().wait()
            return await real(place, what, *args, **how)  # type: ignore[arg-type]

        owner.call = hanging  # type: ignore[assignment, method-assign]
        owner.cut_from.clear()
        await until(lambda: wal.membership.back is not None)
        began_ms = owner.monotonic_ms()
        await fill(wal, [7])
        assert owner.monotonic_ms() - began_ms < 2 * cell.settings.rejoin.patience_ms
        assert await cell.recover() == [1, 2, 3, 4, 5, 6, 7]

    run(main())


@both_sides
def test_a_return_of_unknown_outcome_is_waited_for_until_the_ledger_has_said(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        answers = asyncio.Event()
        proposed = asyncio.Event()

        async def change(sides: Sequence[str], start: int, instance: int | None = None) -> bool:
            if instance is not None:
                await cell.accept(sides, start, instance)  # and the answer is lost
                proposed.set()
                await answers.wait()
                raise OutcomeUnknown("no answer")
            return await cell.accept(sides, start)

        wal = await shrunk(cell, owner, lost, change=change)
        await cell.upload(wal)
        owner.cut_from.clear()
        await proposed.wait()
        owner.cut_from.add(lost)
        future = append(wal, record(7))
        await asyncio.sleep(30)
        assert not future.done(), "a recovery may read the side that came back: the ledger names it"
        answers.set()
        await future
        assert cell.members == (other(lost),), "the ledger has been told before the ack"
        assert await cell.recover(floor=cell.floor) == [7]

    run(main())


@both_sides
def test_a_refused_return_ends_the_owner(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")

        async def change(sides: Sequence[str], start: int, instance: int | None = None) -> bool:
            return instance is None and await cell.accept(sides, start)

        wal = await shrunk(cell, owner, lost, change=change)
        await cell.upload(wal)
        owner.cut_from.clear()
        await until(lambda: wal.dead is not None)
        assert isinstance(wal.dead, Fenced) and len(cell.deaths) == 1

    run(main())


@both_sides
def test_a_side_goes_and_comes_back_again_and_again_each_time_as_another_instance(lost: str) -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await cell.open(owner, returning=True)
        number, named = 1, []
        for _ in range(4):
            await fill(wal, range(number, number + 5))
            owner.cut_from.add(lost)
            await fill(wal, range(number + 5, number + 10))
            owner.cut_from.clear()
            number += 10
            await cell.upload(wal)
            await until(lambda: wal.members == ("volume", "express"))
            named.append(cell.instances[lost])
        assert named == sorted(set(named))
        await fill(wal, range(number, number + 10))
        for side in cell.members:
            assert await cell.recover(floor=cell.floor, sides=[side]) == list(range(number, number + 10))
        with pytest.raises(Fenced):
            await append(wal, record(number + 10))

    run(main())


def test_attempts_become_rarer_and_a_side_that_stays_away_costs_little() -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await shrunk(cell, owner, "volume")
        registered = 0
        device_calls = owner.call

        async def counting(place: str, what: str, *args: object, **how: object) -> object:
            nonlocal registered
            registered += "register" in what
            return await device_calls(place, what, *args, **how)  # type: ignore[arg-type]

        owner.call = counting  # type: ignore[assignment, method-assign]
        await asyncio.sleep(60)
        assert 4 * cell.settings.ring.attempts_max <= registered < 20 * cell.settings.ring.attempts_max
        assert wal.dead is None

    run(main())


def test_a_volume_whose_writes_may_still_land_does_not_come_back_in_this_epoch() -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS, preempt_aborts=False)
        owner = cell.host("owner")
        wal = await shrunk(cell, owner, "volume")
        await cell.upload(wal)
        owner.cut_from.clear()
        await asyncio.sleep(60)
        assert wal.members == ("express",) and wal.dead is None
        await fill(wal, [7])

    run(main())


def test_an_owner_that_was_taken_over_does_not_take_its_volume_back() -> None:
    async def main() -> None:
        cell = Cell(WalMode.BLOCK_EXPRESS)
        owner = cell.host("owner")
        wal = await shrunk(cell, owner, "volume")
        assert await cell.recover(sides=["express"]) == [1, 2, 3, 4, 5, 6]
        await cell.recover(sides=["volume"], node=3)  # fences it, too
        owner.cut_from.clear()
        await until(lambda: wal.dead is not None)
        assert isinstance(wal.dead, Fenced)
        assert key_rank(cell.disk.holder or 0) == key_rank(identity(1).key) + 1

    run(main())


def test_claims_on_a_volume_are_ordered_within_an_epoch_too() -> None:
    first, second = WalIdentity("c", 1, 5), WalIdentity("c", 1, 5, 2)
    assert second.supersedes(first.key) and not first.supersedes(second.key) and not second.supersedes(second.key)
    assert not second.supersedes(first.recovery_key(3, 9)), "a recovery of this epoch is above all its instances"
    assert WalIdentity("c", 1, 6).supersedes(second.key) and WalIdentity("c", 1, 6).supersedes(
        second.recovery_key(3, 9)
    )
    assert not WalIdentity("c", 1, 5, 9).supersedes(WalIdentity("c", 1, 6).key)
    assert first.prefix == "c/wal/1/5" and second.prefix == "c/wal/1/5.2"


def test_superblocks_written_before_there_were_instances_are_the_first_ones() -> None:
    old = Superblock(1, 7, 3, 2, 0, 1 << 20)
    data = old.encode()
    assert data[8:12] == b"\1\0\0\0", "version 1, and zeros where the instance is"
    [read] = read_superblocks(data + bytes(len(data)))
    assert read == old and read.belongs_to(WalIdentity("c", 1, 7))
    [again] = read_superblocks(Superblock(1, 7, 3, 2, 0, 1 << 20, 4).encode() + bytes(len(data)))
    assert again.belongs_to(WalIdentity("c", 1, 7, 4)) and not again.belongs_to(WalIdentity("c", 1, 7))


def test_a_membership_change_that_the_ledger_holds_already_is_not_put_to_it_again() -> None:
    from dataplane.broker.wals import change_of, stands

    me = NodeEpoch(1, 4)
    wal = WalState("block+express", ["volume", "express"], floor=9)
    state = CellState(brokers={1: Broker(1, 4, "b-1", "z", "h", 1, 2, wal)})
    [shrink] = change_of(state, me, ["express"], 5, None) or []
    assert shrink["kind"] == "membership-changed" and not stands(state, me, ["express"], None)
    wal.sides = ["express"]
    assert change_of(state, me, ["express"], 5, None) is None and stands(state, me, ["express"], None)
    [back] = change_of(state, me, ["volume", "express"], 9, 3) or []
    assert (back["kind"], back["side"], back["instance"], back["start"]) == ("side-returned", "volume", 3, 9)
    wal.sides, wal.instances = ["volume", "express"], {"volume": 3}
    assert change_of(state, me, ["volume", "express"], 9, 3) is None
    assert stands(state, me, ["volume", "express"], 3) and not stands(state, me, ["volume", "express"], 4)
    assert not stands(state, NodeEpoch(1, 5), ["volume", "express"], 3), "of a later life it says nothing"
