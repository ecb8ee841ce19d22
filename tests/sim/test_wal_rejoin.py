"""A side of a `block+express` WAL comes back, and at every single step of that the owner freezes, or dies, and is
recovered from: each side that the ledger names holds all that was ever acked, before or after the owner goes on."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from dataplane.contract.assignment import WalMode
from dataplane.wal.base import WalIdentity
from dataplane.wal.modes import open_readers
from dataplane.wal.recover import recover
from providers.base.errors import YunheError
from tests.sim.test_wal_sim import CLUSTER, SETTINGS, Owner, Simulation
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, Host, World

T = TypeVar("T")


class Tripping(Host):
    """Freezes at the n-th request from when it is told to."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.left: int | None = None
        self.tripped = asyncio.Event()

    async def call(self, place: str, what: str, apply: Callable[[], T], **how: Any) -> T:  # type: ignore[override]
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.freeze()
                self.tripped.set()
        return await super().call(place, what, apply, **how)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(300):
        while not condition():  # noqa: ASYNC110 -- virtual time, and nothing tells of it
            await asyncio.sleep(0.001)


async def read_all(sim: Simulation, node: int) -> list[list[int]]:
    """What each side that the ledger names has, behind what is in object storage already."""
    truth, victim = sim.ledger.epoch(1), WalIdentity(CLUSTER, 1, 1)
    found = []
    for at, side in enumerate(truth.members):
        host = Host(sim.world, f"recoverer-{node}-{side}")
        readers = open_readers(
            sim.spec,
            victim,
            sim.places(host),
            own_key=victim.recovery_key(node + at, 1),
            floor=truth.floor,
            instances=truth.instances,
            clock=host,
            settings=SETTINGS,
        )
        recovered = await recover(readers, [side], truth.floor)
        found.append([struct.unpack("<Q", r.payload[:8])[0] for block in recovered.blocks for r in block.records])
    return found


async def history(side: str, step: int, dies: bool) -> bool:
    """One history; whether it was interrupted before the side had been back for a while."""
    sim = Simulation(step, WalMode.BLOCK_EXPRESS, returning=True)
    sim.world.faults = CALM
    sim.disk.preempt_aborts = True
    owner = Owner(sim, 1)
    owner.host = host = Tripping(sim.world, "owner")
    truth = sim.ledger.epoch(1)
    task = asyncio.create_task(owner.run())
    await until(lambda: len(truth.acked) > 50)
    host.cut_from.add(side)
    await until(lambda: len(truth.members) == 1)
    host.cut_from.clear()
    host.left = step
    back = asyncio.create_task(until(lambda: truth.returns == 1))
    tripped = asyncio.create_task(host.tripped.wait())
    await asyncio.wait({back, tripped}, return_when=asyncio.FIRST_COMPLETED)
    if not tripped.done():
        await asyncio.wait({tripped}, timeout=0.3)
    interrupted = tripped.done()
    back.cancel()
    tripped.cancel()
    host.freeze()
    if dies:
        task.cancel()
        for instance in range(3):
            sim.disk.tear(WalIdentity(CLUSTER, 1, 1, instance).key)
    truth.fenced = True
    before = await read_all(sim, 2)
    host.thaw()
    await asyncio.sleep(20)
    after = await read_all(sim, 12)
    for records in (*before, *after):
        held = [*truth.committed, *records]
        assert held == list(range(1, len(held) + 1))
        assert truth.acked <= set(held), f"{sorted(truth.acked - set(held))} acked, and not on each side"
    task.cancel()
    [result] = await asyncio.gather(task, return_exceptions=True)
    assert result is None or isinstance(result, (YunheError, asyncio.CancelledError)), result
    return interrupted


@pytest.mark.parametrize("dies", [False, True], ids=["freezes", "dies"])
@pytest.mark.parametrize("side", ["volume", "express"])
def test_whatever_step_of_a_return_the_owner_stops_at_nothing_acked_is_lost(side: str, dies: bool) -> None:
    step = 1
    while run(history(side, step, dies)):
        step += 1 + step // 20  # each of the first twenty, in which it opens; then more and more coarsely
        assert step < 2_000
    assert step > 40, "the side has to come back step by step"
