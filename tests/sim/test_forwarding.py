"""Producers with several requests in flight, whose partitions move while brokers die and lose each other's messages:
what the old owner takes on to the new one is neither lost nor doubled nor put out of order.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from dataplane.broker.engine import KafkaError
from dataplane.contract.assignment import WalMode
from dataplane.stream.batch import parse_header
from tests.dataplane.stream.batches import batch
from tests.sim.test_cell_sim import PARTITIONS, Cell, Life, judge
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM

IN_FLIGHT_MAX = 5
ANSWER_S = 5.0


@dataclass
class Sent:
    """A batch under way, and what became of it."""

    number: int
    answer: asyncio.Future[tuple[int, KafkaError | None, bool]]


class PipeliningCell(Cell):
    """Producers as librdkafka's: they keep to the leader they know, and before they turn to another, or send anything
    again, they wait for all that is under way."""

    forwarded = 0

    async def producer(self, partition: int) -> None:
        acked = 0
        leader: Life | None = None
        while self.writing:
            if leader is None or not leader.ready:
                claimants = self.serving(partition)
                leader = self.rng.choice(claimants) if claimants else None
            if leader is None:
                await asyncio.sleep(0.05)
                continue
            to_turn = failed = False
            for sent in await self._send(leader, partition, acked):
                try:
                    async with asyncio.timeout(ANSWER_S):
                        base_offset, error, moved = await asyncio.shield(sent.answer)
                except TimeoutError:
                    to_turn = failed = True
                    break
                to_turn |= moved
                if error is not None:
                    if not failed and "sequence" in str(error):
                        raise AssertionError(f"seed {self.seed}: {sent.number} lost its place: {error}") from error
                    to_turn = failed = True
                    continue
                self.forwarded += moved
                value = b"p%d-%d" % (partition, sent.number)
                assert self.acked[partition].setdefault(value, base_offset) == base_offset
                if not failed:
                    acked = sent.number + 1
            if failed:
                await asyncio.sleep(self.rng.uniform(0, 0.1))
            if failed or (to_turn and self.rng.random() < 0.7):  # some clients do not heed what an ack says
                leader = None

    async def _send(self, leader: Life, partition: int, first: int) -> list[Sent]:
        """Some batches, without a wait for their answers. The first that is refused at once is the last."""
        window: list[Sent] = []
        connection: set[int] = set()
        for number in range(first, first + self.rng.randint(1, IN_FLIGHT_MAX)):
            sent = Sent(number, asyncio.get_running_loop().create_future())
            window.append(sent)
            data = batch(b"p%d-%d" % (partition, number), producer=100 + partition, epoch=0, sequence=number)

            def done(base_offset: int, error: KafkaError | None, moved: bool = False, /, sent: Sent = sent) -> None:
                if not sent.answer.done():
                    sent.answer.set_result((base_offset, error, moved))

            await leader.host.running()
            leader.engine.connected.note(100 + partition, connection)
            try:
                leader.engine.writable("t", partition).begin(bytearray(data), parse_header(data), done)
            except KafkaError as error:
                done(-1, error)
                break
            await asyncio.sleep(self.rng.uniform(0, 0.004))
        return window


async def move_under_fire(cell: Cell, turns: int) -> None:
    """Moves during which the old owner dies, or the new one, or they do not hear each other for a while."""
    for _ in range(turns):
        await asyncio.sleep(cell.rng.uniform(0.1, 1.0))
        partition = cell.rng.randrange(PARTITIONS)
        serving = cell.serving(partition)
        if len(serving) != 1:
            continue
        old = serving[0]
        to = cell.rng.choice([n for n in cell.nodes if n != old.node.node_id])
        moving = asyncio.create_task(old.engine.move_partition("t", partition, to))
        await asyncio.sleep(cell.rng.uniform(0, 0.06))
        new = cell.nodes[to]
        match cell.rng.choice(["nothing", "nothing", "old dies", "new dies", "cut"]):
            case "cut":
                pair = frozenset((old.address, new.address))
                cell.hub.cut.add(pair)
                await asyncio.sleep(cell.rng.choice([0.02, 0.5, 4.0]))
                cell.hub.cut.discard(pair)
            case "old dies" | "new dies" as which:
                node = old.node.node_id if which == "old dies" else to
                await cell.kill(node)
                await asyncio.sleep(cell.rng.choice([0.1, 2.0]))
                await cell.start(node)
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(5):
                await moving


async def scenario(seed: int, turns: int) -> PipeliningCell:
    cell = PipeliningCell(seed, WalMode.REGIONAL_BLOCK, CALM, nodes=3)
    for node in (1, 2, 3):
        await cell.start(node)
    await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == 3)
    await cell.create_topic()
    producers = [asyncio.create_task(cell.producer(p)) for p in range(PARTITIONS)]
    await move_under_fire(cell, turns)
    await cell.until("all partitions are served again", cell.all_serve)
    await asyncio.sleep(1)
    cell.writing = False
    await asyncio.gather(*producers)
    problems = []
    for p in range(PARTITIONS):
        problems += judge(p, cell.acked[p], await cell.read_everything(p))
    for node in (1, 2, 3):
        await cell.kill(node)
    assert not problems, f"seed {seed}: {problems}"
    return cell


@pytest.mark.parametrize("seed", range(2))
def test_what_is_taken_on_to_the_new_owner_is_appended_once_and_in_order(seed: int) -> None:
    cell = run(scenario(seed, turns=20))
    assert cell.forwarded, f"seed {seed}: nothing was forwarded"
