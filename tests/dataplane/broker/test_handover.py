"""Hand-over of many partitions: how much one ledger entry holds, and what becomes of those that are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataplane.broker.handover import BATCH_MAX, Handover, share_out
from dataplane.broker.partitions import PartitionSet
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.entry import ENTRY_BYTES_MAX, Command, Entry, Writer
from dataplane.ledger.state import CellState
from dataplane.stream.batch import parse_header
from dataplane.stream.partition import Partition
from dataplane.stream.producers import ProducerTable
from providers.base.clock import LoopClock
from providers.base.errors import Invalid, OutcomeUnknown, Unavailable
from tests.dataplane.failover.test_decisions import cell_of, node
from tests.dataplane.ledger import test_cell
from tests.dataplane.stream.batches import batch
from tests.sim.virtualtime import run

ME = node(1)


class OnePartition:
    """A partition as a hand-over sees it."""

    def __init__(self, stream: int, producers: ProducerTable) -> None:
        self.id, self.epoch, self.traffic_bytes = stream, 1, 0
        self._producers = producers
        self.thawed = 0
        self.frozen = False

    async def freeze(self) -> int:
        self.frozen = True
        return 7

    def thaw(self) -> None:
        self.thawed += 1

    def acked_producers(self) -> ProducerTable:
        return self._producers


class Moving:
    """A cell of three brokers whose first one has partitions to hand over; its ledger is a list of entries."""

    def __init__(self, partitions: int, producers: ProducerTable | None = None) -> None:
        self.cell: test_cell.Cell = cell_of(3)
        self.cell.ok(test_cell.c.topic_created("t", "id", [1] * partitions, {}))
        known = producers or ProducerTable()
        self.open = {s: OnePartition(s, known) for s in self.cell.state.streams}
        self.entries: list[Sequence[Command]] = []
        self.errors: list[Exception] = []
        self.away = False
        self.handover = Handover(
            ME,
            state=lambda: self.cell.state,
            partitions=cast(PartitionSet, SimpleNamespace(get=self.open.get)),
            append=self.append,
            refresh=self.refresh,
            clock=LoopClock(),
            retry_ms=500,
        )

    async def refresh(self) -> None:
        if self.away:
            raise Unavailable("the bucket is away")

    async def append(
        self, decide: Callable[[CellState], Sequence[Command] | None], *, unsent_ms_max: float
    ) -> tuple[str | None, ...] | None:
        commands = tuple(decide(self.cell.state) or ())
        if self.errors:
            raise self.errors.pop()
        if not commands:
            return None
        self.entries.append(commands)
        return tuple(self.cell.entry(*commands))

    def led_by(self, who: NodeEpoch) -> int:
        return len(self.cell.state.owned(who))


def test_many_partitions_travel_in_few_entries_and_are_spread_evenly() -> None:
    moving = Moving(500)
    targets = share_out(moving.cell.state, cast(Any, moving.open.values()), [2, 3])
    assert run(moving.handover.move_all(targets)) == {}
    assert len(moving.entries) == -(-500 // BATCH_MAX)
    assert (moving.led_by(node(2)), moving.led_by(node(3))) == (250, 250)


def test_partitions_of_many_producers_never_make_an_entry_that_is_too_large() -> None:
    producers = ProducerTable()
    for i in range(5_000):
        for sequence in range(5):
            data = batch(b"x", producer=10**15 + i, epoch=0, sequence=10**9 + sequence)
            producers.record(parse_header(data), 10**12 + i, data)
    moving = Moving(12, producers)
    assert run(moving.handover.move_all(dict.fromkeys(moving.open, 2))) == {}
    sizes = [len(Entry(1, "id", Writer("w", "i"), 0, tuple(e)).encode()) for e in moving.entries]
    assert moving.led_by(node(2)) == 12 and max(sizes) < ENTRY_BYTES_MAX / 2 and len(sizes) > 1


def test_what_is_refused_is_served_on_and_the_rest_has_moved() -> None:
    moving = Moving(3)
    refused = run(moving.handover.move_all({1: 2, 2: 9, 3: 3}))
    assert refused == {2: "broker 9 is not live"}
    assert [p.thawed for p in moving.open.values()] == [0, 1, 0]
    assert (moving.led_by(ME), moving.led_by(node(2)), moving.led_by(node(3))) == (1, 1, 1)


def test_partitions_stay_frozen_until_the_outcome_is_known_and_not_after() -> None:
    async def main() -> None:
        moving = Moving(2)
        # Popped from the end: that the bucket cannot be read afterwards says nothing of what was sent before.
        moving.errors = [Unavailable("away"), OutcomeUnknown("lost")]
        task = asyncio.create_task(moving.handover.move_all({1: 2, 2: 2}))
        await asyncio.sleep(0.7)
        assert not task.done() and not any(p.thawed for p in moving.open.values())
        assert await task == {} and moving.led_by(node(2)) == 2
        assert not any(p.thawed for p in moving.open.values())

    run(main())


def test_nothing_is_frozen_while_the_ledger_cannot_be_read() -> None:
    moving = Moving(2)
    moving.away = True
    with pytest.raises(Unavailable):
        run(moving.handover.move_all({1: 2, 2: 2}))
    assert not any(p.frozen for p in moving.open.values())


def test_what_was_never_sent_is_served_on_through_the_outage() -> None:
    moving = Moving(2)
    moving.errors = [Unavailable("away")]
    assert run(moving.handover.move_all({1: 2, 2: 2})) == {1: "away", 2: "away"}
    assert [p.thawed for p in moving.open.values()] == [1, 1] and moving.led_by(ME) == 2


def test_an_entry_that_cannot_be_appended_leaves_everything_served() -> None:
    moving = Moving(2)
    moving.errors = [Invalid("too large")]
    assert run(moving.handover.move_all({1: 2, 2: 2})) == {1: "too large", 2: "too large"}
    assert [p.thawed for p in moving.open.values()] == [1, 1] and moving.led_by(ME) == 2


def test_nothing_is_shared_out_where_nobody_stays() -> None:
    moving = Moving(2)
    assert share_out(moving.cell.state, cast(list[Partition], list(moving.open.values())), []) == {}
