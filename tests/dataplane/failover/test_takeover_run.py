"""A takeover step by step: what is handed out before it is written, and who finishes what another began."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import pytest

from dataplane.failover import run as takeover
from dataplane.failover.recovered import Recovered
from dataplane.failover.run import take_over
from dataplane.failover.tail import completed, decode_tail, encode_tail, tail_of
from dataplane.ledger import commands as c
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.entry import Command, Writer
from dataplane.ledger.log import Ledger
from dataplane.ledger.state import Broker, BrokerStatus, CellState
from dataplane.stream.opening import producers_at
from dataplane.stream.reader import ObjectReader
from dataplane.wal.base import Block, WalIdentity, WalReader, WalRecord
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import Corrupt, Unavailable
from tests.dataplane.stream.batches import batch
from tests.sim.test_cell_sim import ListingStore
from tests.sim.virtualtime import run
from tests.sim.wal_world import Bucket, Host, World

DEAD, ONE, TWO = NodeEpoch(1, 1), NodeEpoch(2, 1), NodeEpoch(3, 1)
WAL = {
    "mode": "block+express",
    "sides": ["volume", "express"],
    "volume": "v",
    "volume_zones": ["a", "b"],
    "express": "x",
}
STREAM = 1


def block(number: int, unacked: int = 0) -> Block:
    """Block n holds offset n - 1, of an idempotent producer."""
    data = batch(b"v%d" % number, producer=9, epoch=0, sequence=number - 1)
    patched = (number - 1).to_bytes(8, "big") + data[8:]
    return Block(number, (WalRecord(STREAM, 1, number - 1, 1, patched),), unacked)


class Side:
    """`WalReader` over given blocks."""

    def __init__(self, name: str, blocks: Sequence[Block]) -> None:
        self._name, self._blocks, self.released = name, blocks, False
        self.reads = 0

    @property
    def name(self) -> str:
        return self._name

    async def fence(self) -> None:
        pass

    async def read(self, floor: int) -> AsyncIterator[Block]:
        self.reads += 1
        for one in self._blocks:
            if one.number >= floor:
                yield one

    async def release(self) -> None:
        self.released = True

    async def close(self) -> None:
        pass


class FailingStore(ListingStore):
    """Whose writes may begin to fail."""

    failing = False
    failing_for = ""
    """Only of names with this in them."""

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.failing and self.failing_for in key and "tail" not in key and "/ledger/" not in key:
            raise Unavailable("no more")
        await super().put(key, data, if_absent=if_absent)


class Cell:
    """Three brokers; the first is fenced and owned the one stream."""

    def __init__(self) -> None:
        world = World(1)
        bucket = Bucket("bucket", appends=False)
        self.store = FailingStore(Host(world, "h"), bucket)
        self.ledger: Ledger[CellState] = Ledger(
            self.store, "c", CellMachine(), Writer("w", "i"), clock=LoopClock(), rng=SeededRng(1)
        )

    async def start(self, there_and_back: bool = False) -> Cell:
        """`there_and_back`: the stream was moved away from the first broker at offset 3, and back."""
        await self.ledger.open()
        for node in (DEAD, ONE, TWO):
            zone = "ab"[node.node % 2]
            await self.append(
                c.broker_joined(node, name="b", zone=zone, host="h", kafka_port=1, peer_port=node.node, wal=WAL)
            )
        await self.append(c.controller_elected(1, ONE))
        await self.append(c.topic_created("t", "id", [1], {}))
        if there_and_back:
            known = [[9, 0, [[n, n, n, n] for n in range(3)]]]
            await self.append(c.partition_moved(STREAM, 1, source=DEAD, target=2, end=3, producers=known))
            await self.append(c.partition_moved(STREAM, 2, source=ONE, target=1, end=3, producers=known))
        await self.append(c.broker_fenced(DEAD, by=ONE, reason="silent"), term=1)
        return self

    async def append(self, command: Command, term: int = 0) -> None:
        appended = await self.ledger.append(lambda state: [command], term=term)
        assert appended is not None and appended.rejections == (None,), appended

    async def die_writing(self, me: NodeEpoch, side: Side) -> None:
        """Streams are handed out, and nothing of what is owed gets written until the taker is no more."""
        self.store.failing = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await self.take_over(me, side)
        self.store.failing = False

    async def take_over(
        self,
        me: NodeEpoch,
        side: Side,
        on_handed_out: Callable[[], None] = lambda: None,
        recovered: Recovered | None = None,
    ) -> str:
        async def readers(victim: Broker, who: NodeEpoch) -> Mapping[str, WalReader]:
            return {side.name: side}

        outcome = await take_over(
            self.victim,
            me=me,
            ledger=self.ledger,
            open_readers=readers,
            store=self.store,
            name_prefix=f"c/objects/{me.node}-{self.ledger.seq}",
            clock=LoopClock(),
            recovered=recovered,
            handed_out=on_handed_out,
        )
        return outcome.sentence

    @property
    def victim(self) -> Broker:
        return self.ledger.state.brokers[1]

    async def stored(self) -> list[bytes]:
        """The stream's batches as object storage has them, in order."""
        reader = ObjectReader(self.store, 1 << 20)
        found: list[bytes] = []
        for extent in self.ledger.state.streams[STREAM].extents:
            found += await reader.blocks(extent, STREAM, extent.start, 1 << 20)
        return found


def in_cell(monkeypatch: pytest.MonkeyPatch, much: bool) -> Callable[..., None]:
    monkeypatch.setattr(takeover, "CLOSE_FIRST_BYTES", 1 if much else 1 << 30)

    def go(body: Callable[[Cell], Awaitable[None]], there_and_back: bool = False) -> None:
        async def main() -> None:
            await body(await Cell().start(there_and_back))

        run(main())

    return go


BLOCKS = [block(1), block(2), block(3), block(4, unacked=2), block(5, unacked=2)]
"""Of the last, 3 and 4 were not acked when it was made: those three may be on one side only."""
PAYLOAD = b"".join(b.records[0].payload for b in BLOCKS)


def test_streams_go_on_before_their_records_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(cell: Cell) -> None:
        seen: list[tuple[int, int, list[bytes]]] = []

        def look() -> None:
            stream = cell.ledger.state.streams[STREAM]
            seen.append((stream.open.node, stream.open.start, [e.object.encode() for e in stream.extents]))

        side = Side("volume", BLOCKS)
        assert "recovered broker 1" in await cell.take_over(ONE, side, look)
        assert seen == [(2, 5, [])] or seen == [(3, 5, [])]
        assert b"".join(await cell.stored()) == PAYLOAD
        assert cell.victim.status is BrokerStatus.GONE and side.released

    in_cell(monkeypatch, much=True)(body)


def held(recovered: Recovered) -> bytes:
    return b"".join(data for _, data in recovered.read(STREAM, 1, 0))


def test_what_is_owed_can_be_read_from_the_moment_that_the_ledger_states_it_until_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(cell: Cell) -> None:
        recovered = Recovered()
        cell.store.failing = True
        side = Side("volume", BLOCKS)
        taking = asyncio.create_task(cell.take_over(ONE, side, recovered=recovered))
        while cell.ledger.state.owned(DEAD):
            assert held(recovered) == b""
            await asyncio.sleep(0.000_1)
        await asyncio.sleep(0.001)
        assert held(recovered) == PAYLOAD
        await asyncio.sleep(300)
        assert held(recovered) == PAYLOAD and side.reads == 1, "a failing bucket makes nobody read again"
        cell.store.failing = False
        assert "recovered broker 1" in await taking
        assert held(recovered) == b"" and b"".join(await cell.stored()) == PAYLOAD

    in_cell(monkeypatch, much=True)(body)


def test_of_a_stream_that_is_not_closed_nothing_can_be_read_before_it_is_in_object_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(cell: Cell) -> None:
        recovered = Recovered()
        cell.store.failing = True
        taking = asyncio.create_task(cell.take_over(ONE, Side("volume", BLOCKS), recovered=recovered))
        while not taking.done():
            assert held(recovered) == b""
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await taking

    monkeypatch.setattr(takeover, "CLOSE_PRODUCERS_MAX", 0)
    in_cell(monkeypatch, much=False)(body)


def test_streams_go_on_before_the_little_is_written_that_the_bucket_does_not_take_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(cell: Cell) -> None:
        recovered = Recovered()
        cell.store.failing = True
        side = Side("volume", BLOCKS)
        taking = asyncio.create_task(cell.take_over(ONE, side, recovered=recovered))
        async with asyncio.timeout(2):
            while cell.ledger.state.owned(DEAD):
                assert held(recovered) == b""
                await asyncio.sleep(0.000_1)
        await asyncio.sleep(300)
        assert held(recovered) == PAYLOAD and side.reads == 1
        cell.store.failing = False
        assert "recovered broker 1" in await taking
        assert held(recovered) == b"" and b"".join(await cell.stored()) == PAYLOAD

    in_cell(monkeypatch, much=False)(body)


def test_what_came_too_late_of_the_first_writing_is_not_what_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow bucket takes it in the end, and meanwhile another has stated an earlier end."""

    async def body(cell: Cell) -> None:
        put = cell.store.put

        async def slowly(key: str, data: bytes, *, if_absent: bool = False) -> None:
            await put(key, data, if_absent=if_absent)
            if "/objects/" in key and not key.endswith("tail"):
                await asyncio.sleep(3)  # the answer

        monkeypatch.setattr(cell.store, "put", slowly)
        taking = asyncio.create_task(cell.take_over(ONE, Side("volume", BLOCKS)))
        await asyncio.sleep(0.5)
        monkeypatch.setattr(takeover, "CLOSE_FIRST_BYTES", 1)
        await cell.die_writing(TWO, Side("volume", BLOCKS[:4]))
        assert "recovered broker 1" in await taking
        assert b"".join(await cell.stored()) == PAYLOAD[: -len(BLOCKS[4].records[0].payload)]

    in_cell(monkeypatch, much=False)(body)


def test_a_taker_that_cannot_write_ends_once_another_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(cell: Cell) -> None:
        recovered = Recovered()
        cell.store.failing = True
        slow = asyncio.create_task(cell.take_over(ONE, Side("volume", BLOCKS), recovered=recovered))
        await asyncio.sleep(1)
        assert held(recovered)
        cell.store.failing_for = f"/{ONE.node}-"
        assert "recovered broker 1" in await cell.take_over(TWO, Side("volume", BLOCKS))
        with pytest.raises(Unavailable):
            async with asyncio.timeout(60):
                await slow
        assert held(recovered) == b"" and b"".join(await cell.stored()) == PAYLOAD

    in_cell(monkeypatch, much=True)(body)


def test_another_survivor_finishes_a_half_done_takeover_from_the_side_that_lacks_the_tail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(cell: Cell) -> None:
        await cell.die_writing(ONE, Side("volume", BLOCKS))
        assert cell.victim.status is BrokerStatus.FENCED
        assert [p.end for _, p in cell.ledger.state.owes(DEAD)] == [5]
        assert "recovered broker 1" in await cell.take_over(TWO, Side("express", BLOCKS[:2]))
        assert b"".join(await cell.stored()) == PAYLOAD

    in_cell(monkeypatch, much=True)(body)


def test_a_later_reader_that_sees_more_commits_no_more_than_was_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(cell: Cell) -> None:
        await cell.die_writing(ONE, Side("volume", BLOCKS[:4]))
        assert "recovered broker 1" in await cell.take_over(TWO, Side("volume", BLOCKS))
        assert b"".join(await cell.stored()) == PAYLOAD[: -len(BLOCKS[4].records[0].payload)]

    in_cell(monkeypatch, much=True)(body)


def test_an_acked_block_that_is_nowhere_is_corrupt_and_nothing_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(cell: Cell) -> None:
        await cell.die_writing(ONE, Side("volume", BLOCKS))
        with pytest.raises(Corrupt):
            await cell.take_over(TWO, Side("express", BLOCKS[:1]))
        assert cell.victim.status is BrokerStatus.FENCED and not cell.ledger.state.streams[STREAM].extents

    in_cell(monkeypatch, much=True)(body)


@pytest.mark.parametrize("much", [True, False])
def test_the_next_owner_knows_the_producers_and_reads_no_record_for_it(
    monkeypatch: pytest.MonkeyPatch, much: bool
) -> None:
    async def body(cell: Cell) -> None:
        await cell.take_over(ONE, Side("volume", BLOCKS))
        reader = ObjectReader(cell.store, 1 << 20)

        async def no_blocks(*args: object) -> list[bytes]:
            raise AssertionError("records were read back")

        monkeypatch.setattr(reader, "blocks", no_blocks)
        table = await producers_at(cell.ledger.state.streams[STREAM], reader)
        assert table.dump() == [[9, 0, [[n, n, n, n] for n in range(5)]]]

    in_cell(monkeypatch, much)(body)


@pytest.mark.parametrize("much", [True, False])
def test_what_is_owed_of_an_earlier_epoch_does_not_get_the_producers_of_the_open_one(
    monkeypatch: pytest.MonkeyPatch, much: bool
) -> None:
    async def body(cell: Cell) -> None:
        reader = ObjectReader(cell.store, 1 << 20)
        await cell.take_over(ONE, Side("volume", [*BLOCKS[:3], *again]))
        stream = cell.ledger.state.streams[STREAM]
        told = {e.end: await reader.producers(e, STREAM) for e in stream.extents}
        assert told[3] is None
        assert (await producers_at(stream, reader)).dump() == [[9, 0, [[n, n, n, n] for n in range(5)]]]
        assert b"".join(await cell.stored()) == PAYLOAD

    again = [dataclasses.replace(b, records=(b.records[0]._replace(stream_epoch=3),)) for b in BLOCKS[3:]]
    in_cell(monkeypatch, much)(body, there_and_back=True)


def test_the_tail_is_what_was_not_known_to_be_acked() -> None:
    assert [b.number for b in tail_of(BLOCKS)] == [3, 4, 5]
    assert tail_of([]) == ()
    assert [b.number for b in tail_of([block(7)])] == [7]
    identity = WalIdentity("", 1, 1)
    data = encode_tail(identity, BLOCKS[2:])
    assert decode_tail(identity, data) == BLOCKS[2:]
    assert [b.number for b in completed(BLOCKS[:3], BLOCKS[2:])] == [1, 2, 3, 4, 5]
    assert completed([], BLOCKS) == BLOCKS
    for at in range(0, len(data), 997):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(Corrupt):
            decode_tail(identity, bytes(damaged))
    with pytest.raises(Corrupt):
        decode_tail(identity, data[:-1])
