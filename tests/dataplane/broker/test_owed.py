"""The asking side of reads of what is owed, with peers that lie, are silent or have nothing; and the answering side's
bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataplane.broker.owed import (
    ANSWER_BYTES_MAX,
    ANSWER_MS,
    ASKED_MAX,
    ASKS_MAX,
    NOWHERE_KEPT,
    NOWHERE_MS,
    SILENT_MS,
    OwedReads,
)
from dataplane.broker.partitions import PartitionSet
from dataplane.failover.recovered import Recovered
from dataplane.ledger import commands as c
from providers.base.clock import LoopClock
from providers.base.errors import Unavailable
from tests.dataplane.failover.test_decisions import cell_of, node
from tests.dataplane.stream.batches import batch, read_back
from tests.dataplane.stream.test_partition import Bench
from tests.sim.virtualtime import run

END = 6
Message = dict[str, Any]


def at(offset: int, *values: bytes, epoch: int = 1) -> bytes:
    """A batch as an owner has given it offset and epoch."""
    made = batch(*values)
    return offset.to_bytes(8, "big") + made[8:12] + epoch.to_bytes(4, "big") + made[16:]


GOOD = [at(0, b"a", b"b"), at(2, b"c"), at(3, b"d", b"e", b"f")]


class Asking:
    """Broker 2 of many owns streams that broker 1, in one zone with it, owned up to END; its peers are `respond`."""

    def __init__(self, respond: Callable[[int, Message], bytes | None], brokers: int = 3, streams: int = 1) -> None:
        cell = self.cell = cell_of(brokers)
        cell.ok(c.topic_created("t", "id", [1] * streams, {}))
        for stream in cell.state.streams:
            cell.ok(c.partition_moved(stream, 1, source=node(1), target=2, end=END, producers=[]))
        self.respond = respond
        self.asked: list[int] = []
        self.under_way = self.under_way_max = 0
        self.reads = OwedReads(
            node(2),
            state=lambda: cell.state,
            partitions=lambda: cast(PartitionSet, SimpleNamespace(holding=lambda stream, epoch: None)),
            recovered=Recovered(),
            peers=cast(Any, self),
            clock=LoopClock(),
        )

    def refuses(self, address: tuple[str, int]) -> bool:
        return False

    async def request(self, address: tuple[str, int], message: Message, timeout_ms: float) -> Message:
        self.asked.append(address[1])
        self.under_way += 1
        self.under_way_max = max(self.under_way, self.under_way_max)
        try:
            data = self.respond(address[1], message)
            await asyncio.sleep(timeout_ms / 1000 if data is None else 0.001)
            if data is None:
                raise Unavailable("no answer in time")
            return {"data": data} if data else {"error": "unknown request 'read-owed'", "code": 42}
        finally:
            self.under_way -= 1

    async def read(self, stream: int = 1, offset: int = 0) -> bytes:
        of = self.cell.state.streams[stream]
        return await self.reads.read(of, of.spans[0], offset, 1_000, minimum_one=True)


def test_what_the_former_owner_has_is_shown() -> None:
    async def main() -> None:
        asking = Asking(lambda peer, message: b"".join(GOOD))
        assert await asking.read() == b"".join(GOOD) and asking.asked == [1]

    run(main())


WRONG = {
    "of another epoch": at(0, b"a", epoch=2),
    "beyond what was acked": at(5, b"f", b"g"),
    "not at the offset": GOOD[1],
    "with a hole": GOOD[0] + GOOD[2],
    "cut short": b"".join(GOOD)[:-1],
    "changed": GOOD[0][:-1] + b"\xff",
    "no batch": b"hello",
}


@pytest.mark.parametrize("what", WRONG)
def test_nothing_is_shown_of_an_answer_that_is_not_right(what: str) -> None:
    async def main() -> None:
        asking = Asking(lambda peer, message: WRONG[what])
        assert await asking.read(offset=5 if "beyond" in what else 0) == b"" and asking.asked == [1]

    run(main())


def test_who_is_silent_delays_readers_by_one_time_out_and_no_more_are_asked_at_once_than_may_be() -> None:
    async def main() -> None:
        asking = Asking(lambda peer, message: None, streams=100)
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = await asyncio.gather(*(asking.read(stream) for stream in asking.cell.state.streams))
        assert set(found) == {b""}
        assert loop.time() - began < 1.1 * ANSWER_MS / 1000
        assert asking.under_way_max == len(asking.asked) == ASKS_MAX
        while loop.time() - began < SILENT_MS / 1000:
            await asking.read()
            await asyncio.sleep(0.02)
        assert len(asking.asked) == ASKS_MAX
        await asyncio.sleep(ANSWER_MS / 1000)
        asking.respond = lambda peer, message: GOOD[0]
        assert await asking.read() == GOOD[0]

    run(main())


def test_where_nobody_has_anything_is_asked_again_only_after_a_while() -> None:
    async def main() -> None:
        asking = Asking(lambda peer, message: b"", streams=2 * NOWHERE_KEPT)
        for _ in range(10):
            assert await asking.read() == b""
        assert asking.asked == [1]
        await asyncio.sleep(NOWHERE_MS / 1000)
        assert await asking.read() == b"" and asking.asked == [1, 1]
        for stream in asking.cell.state.streams:
            await asking.read(stream)
        assert len(asking.reads._nowhere_until_ms) <= NOWHERE_KEPT

    run(main())


def test_of_a_fenced_owner_those_who_may_recover_it_are_asked_and_then_who_had_it() -> None:
    async def main() -> None:
        holder = 9
        asking = Asking(lambda peer, message: GOOD[0] if peer == holder else b"", brokers=10)
        asking.cell.ok(c.controller_elected(2, node(2)))
        asking.cell.ok(c.broker_fenced(node(1), by=node(2), reason="silent"), term=2)
        looks = 0
        while not await asking.read():
            looks += 1
            assert len(asking.asked) <= looks * ASKED_MAX and looks < 10
            await asyncio.sleep(NOWHERE_MS / 1000)
        assert 1 not in asking.asked and 2 not in asking.asked
        assert len(set(asking.asked)) == len(asking.asked), "nobody is asked twice before all were"
        del asking.asked[:]
        assert await asking.read() == GOOD[0] and asking.asked == [holder]

    run(main())


def test_an_answer_is_bounded_holds_a_large_batch_whole_and_ends_with_what_was_acked() -> None:
    async def main() -> None:
        b = Bench()
        for size in (ANSWER_BYTES_MAX - 200, 200_000, 200_000):
            await b.append(bytes(size))
        await b.append(b"not acked", ack=False)
        b.partition.close(Unavailable("it has moved"))
        answering = Asking(lambda peer, message: b"")
        answering.reads._partitions = lambda: cast(
            PartitionSet, SimpleNamespace(holding=lambda stream, epoch: b.partition)
        )

        def offsets(offset: int, end: int, room: int = 1 << 30, one: bool = True) -> list[int]:
            message = {"stream": 7, "epoch": 1, "offset": offset, "end": end, "bytes": room, "one": one}
            return [at for at, _ in read_back(answering.reads.answer(message)["data"])]

        assert offsets(0, 3) == [0]
        assert offsets(1, 3) == [1, 2]
        assert offsets(0, 3, room=10) == [0] and offsets(0, 3, room=10, one=False) == []
        assert offsets(1, 2) == [1]
        assert offsets(1, 100) == [1, 2], "not what was not acked, whatever the asker believes"
        assert offsets(3, 100) == [] and offsets(99, 100) == []

    run(main())
