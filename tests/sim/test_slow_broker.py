"""One broker's volume is slow: its partitions are led elsewhere within seconds, and there again once it is well. Where
all volumes are slow nothing is moved for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.ledger.cell import CellMachine
from tests.sim.test_cell_sim import PARTITIONS, Cell, judge, judge_objects
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM

SLOW_MS = 600.0


def owners(cell: Cell) -> Mapping[int, int]:
    state = cell.nodes[1].node.state
    return {partition: state.streams[s].open.node for partition, s in enumerate(state.topics["t"].streams)}


async def a_cell(seed: int) -> tuple[Cell, list[asyncio.Task[None]]]:
    cell = Cell(seed, WalMode.REGIONAL_BLOCK, CALM)
    for node in (1, 2, 3):
        await cell.start(node)
    await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == 3)
    await cell.until("a controller", lambda: cell.nodes[1].node.state.controller is not None)
    await cell.create_topic()
    await cell.until("all partitions are served", cell.all_serve)
    return cell, [asyncio.create_task(cell.producer(p)) for p in range(PARTITIONS)]


async def judged(cell: Cell, producers: list[asyncio.Task[None]]) -> None:
    cell.writing = False
    await asyncio.gather(*producers)
    await cell.until("all partitions are served", cell.all_serve)
    await unharmed(cell)


async def unharmed(cell: Cell) -> None:
    """Judge what there is once nothing is written and everything has settled, and end the cell."""
    await asyncio.sleep(100)
    problems = judge_objects(CellMachine().dump(cell.nodes[1].node.state), cell.bucket.objects.keys())
    for p in range(PARTITIONS):
        problems += judge(p, cell.acked[p], await cell.read_everything(p))
    assert problems == []
    for node in list(cell.starting):
        await cell.kill(node)


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_brokers_partitions_are_away_within_seconds_and_come_back_when_it_is_well(seed: int) -> None:
    async def main() -> None:
        cell, producers = await a_cell(seed)
        await asyncio.sleep(5)
        # Every broker in turn, the controller among them.
        victim = 1 + seed % 3
        assert victim in owners(cell).values()
        told: list[str | None] = []
        cell.nodes[victim].node.on_health = told.append
        began = asyncio.get_running_loop().time()
        cell.disks[f"v{victim}"].slow_ms = SLOW_MS
        await cell.until("its partitions are away", lambda: victim not in owners(cell).values(), 15)
        assert asyncio.get_running_loop().time() - began > 3, "not at the first bad window"
        await cell.until("all know", lambda: all(x.node.slow_nodes() == {victim} for x in cell.nodes.values()), 1)
        [why] = told
        assert why is not None and "acks in" in why
        acked = sum(map(len, cell.acked.values()))
        await asyncio.sleep(10)
        assert sum(map(len, cell.acked.values())) > acked + 1_000, "all are as fast again as they were"
        assert victim not in owners(cell).values()
        # Nothing new is put there either.
        [life] = [x for x in cell.nodes.values() if x.node.node_id == victim]
        await life.engine.create_topic("u", 4, {})
        state = life.node.state
        assert victim not in {state.streams[s].open.node for s in state.topics["u"].streams}
        # A restart is another life: it would begin well. The controller's is not, but others remember.
        controller = next(x for x in cell.nodes.values() if x.node.state.controller == x.node.me)
        if controller.node.node_id != victim:
            await cell.kill(controller.node.node_id)
            await asyncio.sleep(12)
            await cell.start(controller.node.node_id)
            await cell.until("all are there", cell.all_serve)
            assert victim not in owners(cell).values(), "the next controller knows it from the last"
        cell.disks[f"v{victim}"].slow_ms = 0.0
        await cell.until("it leads some again", lambda: victim in owners(cell).values(), 60)
        assert told[-1] is None
        await judged(cell, producers)

    run(main())


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_moved_away_while_all_are_slow(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cell, producers = await a_cell(seed)
        await asyncio.sleep(5)
        caplog.set_level(logging.INFO)
        for disk in cell.disks.values():
            disk.slow_ms = SLOW_MS
        for _ in range(60):
            await asyncio.sleep(1)
            assert not any(life.node.slow_nodes() for life in cell.nodes.values())
        # What traffic alone moves is another matter.
        said = [str(getattr(record, "sentence", "")) for record in caplog.records]
        assert not [sentence for sentence in said if "slow" in sentence]
        for disk in cell.disks.values():
            disk.slow_ms = 0.0
        await judged(cell, producers)

    run(main())
