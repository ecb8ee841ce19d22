"""A broker that takes long to open its WAL is heard meanwhile, and so not fenced for being new."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.contract.assignment import WalMode
from tests.sim import test_cell_sim
from tests.sim.test_cell_sim import Cell, Volumes
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, DeviceClient


def test_a_broker_whose_volume_opens_slowly_serves_in_its_first_life(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Volumes.open

    async def slowly(self: Volumes, volume_id: str, zone: str) -> DeviceClient:
        if self._host.name.startswith("n2."):
            await asyncio.sleep(6)  # four sessions
        return await opened(self, volume_id, zone)

    monkeypatch.setattr(test_cell_sim.Volumes, "open", slowly)

    async def main() -> None:
        cell = Cell(1, WalMode.REGIONAL_BLOCK, CALM, nodes=2)
        await cell.start(1)
        await cell.until("the first joins", lambda: 1 in cell.nodes and cell.nodes[1].ready)
        await cell.start(2)
        await cell.until("the second joins", lambda: 2 in cell.nodes and cell.nodes[2].ready)
        await asyncio.sleep(20)
        assert cell.nodes[2].ready and cell.nodes[2].node.me.epoch == 1
        for node in (1, 2):
            await cell.kill(node)

    run(main())
