"""A move waits for the bucket before it freezes anything, so that a bucket's outage stops no acks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dataplane.broker.engine import KafkaError
from dataplane.contract.assignment import WalMode
from tests.dataplane.stream.batches import batch
from tests.sim.test_cell_sim import Cell
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM


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
