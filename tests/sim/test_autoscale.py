"""Brokers ask their agents for spare ones while the load needs them, whoever is the controller, and nothing that was
acked is lost when they come and go."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest

from dataplane.broker.autoscaler import Autoscaler
from dataplane.contract.assignment import ScaleSpec, SparesWanted, WalMode
from dataplane.ledger.state import BrokerStatus
from tests.sim.test_cell_sim import PARTITIONS, Cell, Life
from tests.sim.test_slow_broker import unharmed
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM

SPEC = ScaleSpec(
    brokers_max=4, target=0.6, broker_bytes_per_s=None, out_after_ms=3_000, in_after_ms=20_000, cool_down_ms=5_000
)
SPARES = {3: 1, 4: 2}


class Site:
    """A cell of two lasting and two spare brokers, a load that keeps those which run evenly busy, and of an agent a
    zone what matters here: it follows the newest word, and remembers it."""

    def __init__(self, seed: int) -> None:
        self.cell = Cell(seed, WalMode.REGIONAL_BLOCK, CALM, nodes=4)
        self.cell.autoscaler = self.autoscaler
        self.load = 0.0
        self.busy_ms: dict[int, float] = defaultdict(float)
        self.words: dict[int, SparesWanted] = {zone: SparesWanted() for zone in (0, 1)}

    def autoscaler(self, node: int) -> Autoscaler:
        zone = node % 2

        def heard(word: SparesWanted) -> None:
            self.words[zone] = max(self.words[zone], word)

        return Autoscaler(
            SPEC, SPARES.get(node, 0), self.words[zone], busy_ms=lambda: self.busy_ms[node], on_word=heard
        )

    async def use(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            running = [life for life in self.cell.nodes.values() if life.ready]
            for life in running:
                self.busy_ms[life.node.node_id] += 100 * min(self.load / len(running), 1.0)

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(0.3)
            for node, rank in SPARES.items():
                wanted = rank <= self.words[node % 2].count
                if wanted and node not in self.cell.starting:
                    await self.cell.start(node)
                elif not wanted and node in self.cell.starting:
                    self.cell.starting.pop(node).cancel()
                    life = self.cell.nodes[node]
                    await life.node.stop()
                    await self.cell.crash(life)

    def running(self) -> set[int]:
        return {life.node.node_id for life in self.cell.nodes.values() if life.ready}

    def seen(self, node: int) -> tuple[BrokerStatus, ...]:
        """A broker, by what each of those that run knows."""
        return tuple(life.node.state.brokers[node].status for life in self.cell.nodes.values() if life.ready)

    def leads(self, node: int) -> bool:
        return any(life.node.node_id == node for p in range(PARTITIONS) for life in self.cell.serving(p))

    def controller(self) -> Life:
        [life] = [x for x in self.cell.nodes.values() if x.ready and x.node.state.controller == x.node.me]
        return life


@pytest.mark.parametrize("seed", range(3))
def test_spare_brokers_run_while_the_load_needs_them_whoever_is_the_controller(seed: int) -> None:
    async def main() -> None:
        site = Site(seed)
        cell = site.cell
        for node in (1, 2):
            await cell.start(node)
        await cell.until("the brokers join", lambda: site.running() == {1, 2})
        await cell.until("a controller", lambda: cell.nodes[1].node.state.controller is not None)
        await cell.create_topic()
        work = [asyncio.create_task(cell.producer(p)) for p in range(PARTITIONS)]
        beside = [asyncio.create_task(site.use()), asyncio.create_task(site.follow())]
        await asyncio.sleep(10)
        assert site.running() == {1, 2}, "nobody is busy"
        site.load = 1.7
        await cell.until("a third one leads", lambda: site.leads(3), 15)
        await asyncio.sleep(20)
        assert site.running() == {1, 2, 3}

        # The next controller goes on from the last one's word, and a spare broker may be the controller.
        victim = site.controller().node.node_id
        await cell.kill(victim)
        await asyncio.sleep(12)
        await cell.start(victim)
        await cell.until("it is back", lambda: {1, 2, 3} <= site.running(), 30)
        await asyncio.sleep(40)
        assert site.running() == {1, 2, 3}, "whoever replaced it meanwhile is gone"

        site.load = 0.2
        await cell.until("the spare one has gone", lambda: site.running() == {1, 2}, 60)
        assert not site.leads(3)
        gone = (BrokerStatus.GONE, BrokerStatus.GONE)
        await cell.until("it handed over, and left", lambda: site.seen(3) == gone, 5)
        for task in beside:
            task.cancel()
        cell.writing = False
        await asyncio.gather(*work)
        await unharmed(cell)

    run(main())
