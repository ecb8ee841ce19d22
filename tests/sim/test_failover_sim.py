"""Brokers that leave, zones that die, takers that die while they take over: the same cell and judge as `test_cell_sim`,
with the streams of the lost handed out before what only the WAL holds is written.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dataplane.broker import partitions
from dataplane.broker.engine import Busy, KafkaError
from dataplane.contract.assignment import WalMode
from dataplane.failover import run as takeover
from dataplane.ledger.entry import Entry
from dataplane.ledger.state import BrokerStatus
from tests.dataplane.stream.batches import batch
from tests.sim.test_cell_sim import MODES, PARTITIONS, Cell, scenario
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, HOSTILE

MANY = 300


async def started(seed: int, mode: WalMode, nodes: int) -> Cell:
    cell = Cell(seed, mode, CALM, nodes)
    for n in range(1, nodes + 1):
        await cell.start(n)
    await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == nodes)
    return cell


def test_a_leaving_broker_hands_hundreds_of_partitions_over_in_a_few_entries_and_fails_no_append() -> None:
    async def main() -> None:
        cell = await started(3, WalMode.REGIONAL_BLOCK, 3)
        leaver, others = cell.nodes[2], [cell.nodes[1], cell.nodes[3]]
        await leaver.engine.create_topic("many", MANY, {})
        await asyncio.sleep(1)
        mine = [p.stream.partition for p in leaver.node.partitions.everything()]
        assert len(mine) == MANY // 3
        entries: list[Entry] = []
        others[0].node.ledger.subscribe(lambda entry, outcomes: entries.append(entry))
        stopped = asyncio.Event()
        waits: list[float] = []

        async def send(partition: int) -> None:
            """As a client does: to the leader that it knows, and to another only when that one says that it is not."""
            loop, life, sequence = asyncio.get_running_loop(), leaver, 0
            while not stopped.is_set() or life is leaver:
                began = loop.time()
                while True:
                    try:
                        data = batch(b"x", producer=partition + 1, epoch=0, sequence=sequence)
                        await life.engine.partition("many", partition).append(data)
                        break
                    except Exception as error:
                        assert "not served" in str(error) or "moved" in str(error), error
                        stream = life.node.state.streams[life.node.state.topics["many"].streams[partition]]
                        life = cell.nodes[stream.open.node]
                        await asyncio.sleep(0.02)
                waits.append(loop.time() - began)
                sequence += 1
                await asyncio.sleep(0.01)

        senders = [asyncio.create_task(send(p)) for p in mine]
        await asyncio.sleep(0.5)
        cell.starting.pop(2).cancel()
        began = asyncio.get_running_loop().time()
        leaving = asyncio.create_task(leaver.node.stop())
        await cell.until("everything is handed over", lambda: not others[0].node.state.owned(leaver.node.me), 5)
        assert asyncio.get_running_loop().time() - began < 1
        await leaving
        stopped.set()
        await asyncio.gather(*senders)
        await asyncio.sleep(1)
        moving = [e for e in entries if any(c["kind"] == "partition-moved" for c in e.commands)]
        assert len(moving) <= 5, len(moving)
        assert max(waits) < 0.3, f"a producer waited {max(waits)} s"
        assert others[0].node.state.brokers[2].status is BrokerStatus.GONE
        led = [len(life.node.state.owned(life.node.me)) for life in others]
        assert sum(led) == MANY and max(led) - min(led) <= 2

    run(main())


def test_two_moves_of_one_partition_do_not_overlap() -> None:
    async def main() -> None:
        cell = await started(4, WalMode.REGIONAL_BLOCK, 3)
        await cell.create_topic()
        await cell.until("all serve", cell.all_serve)
        [owner] = cell.serving(0)
        stream = owner.node.state.topics["t"].streams[0]
        targets = [n for n in cell.nodes if n != owner.node.node_id]
        first, second = await asyncio.gather(*(owner.node.move(stream, target) for target in targets))
        assert first is None and second == "another move of it is under way"

    run(main())


def test_clients_of_a_partition_that_is_just_being_opened_wait_and_are_sent_away_when_that_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, slow_s = partitions.producers_at, 0.0

    async def slowly(*args: Any) -> Any:
        await asyncio.sleep(slow_s)
        return await read(*args)

    async def move(cell: Cell, look_after_s: float) -> KafkaError:
        """What the new owner says to a client so long after it has heard of a move, before it has opened."""
        [owner] = cell.serving(0)
        new = next(life for life in cell.nodes.values() if life is not owner)
        stream = owner.node.state.topics["t"].streams[0]
        assert await owner.node.move(stream, new.node.node_id) is None
        await cell.until("it has heard", lambda: new.node.state.streams[stream].open.owner == new.node.me)
        await asyncio.sleep(look_after_s)
        with pytest.raises(KafkaError) as refused:
            new.engine.partition("t", 0)
        await cell.until("it serves", lambda: new.node.partitions.get(stream) is not None)
        new.engine.partition("t", 0)
        return refused.value

    async def main() -> None:
        nonlocal slow_s
        cell = await started(5, WalMode.REGIONAL_BLOCK, 3)
        await cell.create_topic()
        await cell.until("all serve", cell.all_serve)
        monkeypatch.setattr(partitions, "producers_at", slowly)
        slow_s = 0.3
        assert isinstance(await move(cell, 0), Busy)
        slow_s = 2.0
        assert not isinstance(await move(cell, 1), Busy)

    run(main())


async def upset(cell: Cell, turns: int) -> None:
    """Zones die as a whole, takers in the middle of a takeover, and brokers leave in order; all come back."""
    for _ in range(turns):
        await asyncio.sleep(cell.rng.uniform(0.5, 3))
        nodes = sorted(cell.nodes)
        kind = cell.rng.choice(["zone", "taker", "leave", "kill"])
        gone: list[int] = []
        cell.world.note(f"upset {kind}")
        if kind == "zone":
            gone = [n for n in nodes if n % 2 == cell.rng.choice([0, 1])]
            if len(gone) == len(nodes):
                gone.pop()
            for n in gone:
                await cell.kill(n)
        else:
            gone = [cell.rng.choice(nodes)]
            if kind == "leave" and cell.nodes[gone[0]].ready:
                cell.starting.pop(gone[0]).cancel()
                life = cell.nodes[gone[0]]
                await life.node.stop()
                await cell.crash(life)
            else:
                await cell.kill(gone[0])
        if kind == "taker":
            for _ in range(400):
                await asyncio.sleep(0.01)
                taking = [
                    n for n, x in cell.nodes.items() if n not in gone and x.node._watch and x.node._watch._takeovers
                ]
                if taking:
                    await asyncio.sleep(cell.rng.uniform(0, 0.3))
                    await cell.kill(taking[0])
                    gone.append(taking[0])
                    break
        await asyncio.sleep(cell.rng.choice([0.1, 2.0, 7.0]))
        for n in gone:
            await cell.start(n)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
@pytest.mark.parametrize("seed", range(1, 7))
def test_nothing_acked_is_lost_nor_shown_and_withdrawn_when_zones_and_takers_die(
    mode: WalMode, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "CLOSE_FIRST_BYTES", 1)
    print(f"seed {seed}")
    cell, problems = run(scenario(seed, mode, HOSTILE, 8, nodes=4, disturb=upset))
    assert problems == [], f"seed {seed}: {problems}"
    assert sum(len(a) for a in cell.acked.values()) > 100
    assert all(b.status is BrokerStatus.LIVE for b in cell.nodes[1].node.state.brokers.values())
    assert len(cell.acked) == PARTITIONS
