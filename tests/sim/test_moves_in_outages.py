"""A bucket's outage that meets a move stops no acks, but where the move's own entry is on its way: then its outcome has
to be awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from dataplane.broker.engine import KafkaError
from dataplane.contract.assignment import WalMode
from dataplane.ledger.commands import producer_ids_allocated
from tests.dataplane.stream.batches import batch
from tests.sim.test_cell_sim import Cell, Life, judge
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, Faults

OUTAGE_S = 60
SLOW = Faults(timeout_ms=10_000)
"""How long it takes to learn that the bucket does not answer."""


@pytest.mark.parametrize("mode", [WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS])
def test_a_move_that_meets_an_outage_of_the_bucket_stops_no_acks(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(1, mode, CALM, nodes=2)
        for node in (1, 2):
            await cell.start(node)
        await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == 2)
        await cell.create_topic()
        await cell.until("all partitions are served", cell.all_serve)
        [life] = cell.serving(0)
        for one in cell.nodes.values():
            one.host.cut_from.add(cell.bucket.name)
        moving = asyncio.create_task(life.engine.move_partition("t", 0, 3 - life.node.node_id))
        for _ in range(40):
            async with asyncio.timeout(1):
                await life.engine.partition("t", 0).append(batch(b"acked meanwhile"))
            await asyncio.sleep(0.5)
        for one in cell.nodes.values():
            one.host.cut_from.discard(cell.bucket.name)
        with contextlib.suppress(KafkaError):
            await moving
        # And when the bucket is back, moves are made again.
        async with asyncio.timeout(10):
            await cell.nodes[1].engine.move_partition("t", 0, 3 - life.node.node_id)
        await cell.until(
            "the other serves it", lambda: [x.node.node_id for x in cell.serving(0)] == [3 - life.node.node_id]
        )
        for node in (1, 2):
            await cell.kill(node)

    run(main())


class Moving:
    """Two brokers, of which one hands a partition to the other; the outage of the bucket begins in the middle."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        [self.owner] = cell.serving(0)
        self.target = next(n for n in cell.nodes if n != self.owner.node.node_id)
        partition = self.owner.node.partitions.get(self.owner.node.state.topics["t"].streams[0])
        assert partition is not None
        self.partition = partition
        self.began_s: float | None = None

    def away(self) -> None:
        self.began_s = asyncio.get_running_loop().time()
        for life in self.cell.nodes.values():
            life.host.cut_from.add(self.cell.bucket.name)

    def back(self) -> None:
        for life in self.cell.nodes.values():
            life.host.cut_from.discard(self.cell.bucket.name)

    def at_request(self, wanted: Callable[[str], bool], *, answer: bool) -> None:
        """The outage begins with the first such request of the owner while the partition is frozen: before it arrives,
        or with its `answer`."""
        call = self.owner.host.call

        async def watched(place: str, what: str, apply: Callable[[], Any], **given: Any) -> Any:
            if place != self.cell.bucket.name or not wanted(what) or self.began_s is not None:
                return await call(place, what, apply, **given)
            if not self.partition._frozen:
                return await call(place, what, apply, **given)
            if not answer:
                self.away()
                return await call(place, what, apply, **given)

            def applied() -> Any:
                done = apply()
                self.away()
                return done

            return await call(place, what, applied, **given)

        self.owner.host.call = watched  # type: ignore[method-assign]

    def refused_at_once(self) -> None:
        """Connections are, to a bucket that is away."""
        call = self.owner.host.call

        async def refused(place: str, what: str, apply: Callable[[], Any], **given: Any) -> Any:
            self.cell.world.faults = CALM if place in self.owner.host.cut_from else SLOW
            return await call(place, what, apply, **given)

        self.owner.host.call = refused  # type: ignore[method-assign]

    def with_another_entry(self) -> None:
        """As the partition is frozen, another entry of its owner is being appended."""
        freeze, me = self.partition.freeze, self.owner.node.me

        async def freezing() -> int:
            append = self.owner.node.append(lambda _: [producer_ids_allocated(me, 1)])
            self.other = asyncio.create_task(append)
            await asyncio.sleep(0)
            return await freeze()

        self.partition.freeze = freezing  # type: ignore[method-assign]


def creates(what: str) -> bool:
    return what.startswith("put c/ledger/")


async def longest_gap(cell: Cell, life: Life, until: asyncio.Event) -> float:
    """Between two acks of the owner, until then; what it acked is noted."""
    loop = asyncio.get_running_loop()
    last, longest = loop.time(), 0.0
    while not until.is_set():
        value = b"p0-%d" % len(cell.acked[0])
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout_at(last + OUTAGE_S / 2):
                done = await life.engine.partition("t", 0).append(batch(value))
            cell.acked[0][value] = done.base_offset
        longest = max(longest, loop.time() - last)
        last = loop.time()
        await asyncio.sleep(0.05)
    return longest


def meets_an_outage(mode: WalMode, prepare: Callable[[Moving], None]) -> float:
    """The owner's longest gap between acks, in seconds; judged when the bucket is back: nothing acked is lost, one
    broker serves, and moves are made again."""

    async def main() -> float:
        cell = Cell(1, mode, SLOW, nodes=2)
        for node in (1, 2):
            await cell.start(node)
        await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == 2)
        await cell.create_topic()
        await cell.until("all partitions are served", cell.all_serve)
        moving = Moving(cell)
        prepare(moving)
        over = asyncio.Event()
        acking = asyncio.create_task(longest_gap(cell, moving.owner, over))
        await asyncio.sleep(1)
        move = asyncio.create_task(moving.owner.engine.move_partition("t", 0, moving.target))
        await cell.until("the outage begins", lambda: moving.began_s is not None, 5)
        await asyncio.sleep(OUTAGE_S)
        over.set()
        gap = await acking
        moving.back()
        with contextlib.suppress(KafkaError):
            await move
        await cell.until("one serves", cell.all_serve, 60)
        with contextlib.suppress(KafkaError):
            async with asyncio.timeout(30):
                await cell.nodes[1].engine.move_partition("t", 0, moving.target)
        await cell.until(
            "the other serves it", lambda: [x.node.node_id for x in cell.serving(0)] == [moving.target], 60
        )
        assert judge(0, cell.acked[0], await cell.read_everything(0)) == []
        for node in (1, 2):
            await cell.kill(node)
        return gap

    return run(main())


BLOCK_MODES = [WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS]


@pytest.mark.parametrize("mode", BLOCK_MODES)
def test_an_outage_before_the_ledger_is_read_again_stops_acks_for_a_moment(mode: WalMode) -> None:
    assert meets_an_outage(mode, lambda m: m.at_request(lambda what: what.startswith("get "), answer=False)) < 1.5


@pytest.mark.parametrize("mode", BLOCK_MODES)
def test_an_outage_that_refuses_the_move_s_entry_stops_acks_for_a_moment(mode: WalMode) -> None:
    def prepare(moving: Moving) -> None:
        moving.refused_at_once()
        moving.at_request(creates, answer=False)

    assert meets_an_outage(mode, prepare) < 2.5


@pytest.mark.parametrize("mode", BLOCK_MODES)
def test_an_outage_that_leaves_another_entry_s_outcome_open_stops_acks_for_a_moment(mode: WalMode) -> None:
    def prepare(moving: Moving) -> None:
        moving.with_another_entry()
        moving.at_request(creates, answer=True)

    assert meets_an_outage(mode, prepare) < 1.5


@pytest.mark.parametrize("mode", BLOCK_MODES)
def test_an_outage_that_leaves_the_move_s_outcome_open_is_waited_for_and_nothing_acked_is_lost(mode: WalMode) -> None:
    assert meets_an_outage(mode, lambda m: m.at_request(creates, answer=True)) > OUTAGE_S / 3
