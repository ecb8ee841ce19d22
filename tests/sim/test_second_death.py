"""Brokers that die one after the other while objects cannot be written: the same cell and judge as `test_cell_sim`."""

from __future__ import annotations

import functools

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.ledger.state import BrokerStatus
from tests.sim.test_cell_sim import MODES, PARTITIONS, Life, disturb, scenario
from tests.sim.test_owed_reads import COUNT, OwingCell, is_data, lose, owing, while_objects_are_refused_now_and_then
from tests.sim.virtualtime import run
from tests.sim.wal_world import HOSTILE


async def die(cell: OwingCell, life: Life) -> None:
    await cell.kill(life.node.node_id)
    del cell.nodes[life.node.node_id]


def fenced(life: Life) -> int:
    return sum(b.status is BrokerStatus.FENCED for b in life.node.state.brokers.values())


@pytest.mark.parametrize("second", ["recoverer", "other"])
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
def test_the_last_of_three_brokers_serves_all_although_nothing_can_be_uploaded(mode: WalMode, second: str) -> None:
    async def test(cell: OwingCell) -> None:
        await lose(cell)
        taker = cell.taking_over()
        [other] = [life for life in cell.nodes.values() if life is not taker]
        for p in range(PARTITIONS):
            await cell.append(p, [b"p%d-%d" % (p, COUNT)])
        lost, last = (taker, other) if second == "recoverer" else (other, taker)
        await die(cell, lost)
        await cell.until("the last one serves all", lambda: cell.served_by_others(lost), 10)
        assert fenced(last) == 2 and cell.owing()
        assert not any(map(is_data, cell.bucket.objects))
        await cell.check_all(10)
        for p in range(PARTITIONS):
            await cell.append(p, [b"p%d-%d" % (p, COUNT + 1)])
        await cell.check_all(10)
        cell.bucket.refuses = False
        await cell.until("nothing is owed", lambda: not cell.owing() and not fenced(last), 60)
        await cell.check_all(10)

    owing(mode, test)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
@pytest.mark.parametrize("seed", range(21, 24))
def test_nothing_acked_is_lost_when_the_living_are_suspected_while_objects_are_refused(
    mode: WalMode, seed: int
) -> None:
    """Frozen and cut off, as well as killed: each may be fenced, and comes back when it has been written."""
    refused = functools.partial(while_objects_are_refused_now_and_then, disturb=disturb, consumers=True)
    cell, problems = run(scenario(seed, mode, HOSTILE, 10, disturb=refused))
    assert problems == [], f"seed {seed}: {problems}"
    assert sum(len(a) for a in cell.acked.values()) > 100
    assert all(b.status is BrokerStatus.LIVE for b in cell.nodes[1].node.state.brokers.values())
