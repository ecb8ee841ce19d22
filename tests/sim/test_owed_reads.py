"""Consumers of what a lost or former owner had not uploaded, while objects cannot be written or the whole bucket is
away: the same cell and judge as `test_cell_sim`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from dataplane.broker.engine import KafkaError
from dataplane.broker.owed import OwedReads
from dataplane.contract.assignment import WalMode
from dataplane.failover import run as takeover
from dataplane.ledger.state import Span, Stream
from dataplane.stream.transactions import Marker, encode_marker
from providers.base.errors import Unavailable
from tests.dataplane.stream.batches import batch, read_back
from tests.sim import test_transactions_sim
from tests.sim.test_cell_sim import MODES, NEVER, OBJECTS, PARTITIONS, Cell, Life, disturb, judge, scenario
from tests.sim.test_failover_sim import upset
from tests.sim.test_transactions_sim import read_committed
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, HOSTILE, Bucket

Disturb = Callable[[Cell, int], Coroutine[None, None, None]]
COUNT = 40
AT_ONCE_S = 2.0
"""Reading all that is owed takes less, however long the bucket is away."""


def is_data(key: str) -> bool:
    """A data object's, and not the end of a WAL that recovery keeps."""
    return key.startswith(OBJECTS) and not key.endswith("/tail")


class RefusingBucket(Bucket):
    """Takes no data objects while `refuses`."""

    refuses = False

    def put(self, key: str, data: bytes, if_absent: bool) -> None:
        if self.refuses and is_data(key):
            raise Unavailable("no objects are taken")
        super().put(key, data, if_absent)


class OwingCell(Cell):
    """Nothing is uploaded but what has to be: all that was acked is owed as soon as its owner is another."""

    def __init__(self, seed: int, mode: WalMode, nodes: int) -> None:
        super().__init__(seed, mode, CALM, nodes)
        self.bucket: RefusingBucket = RefusingBucket("bucket", appends=False)
        self.settings = dataclasses.replace(
            self.settings, upload_interval_ms=NEVER, balance_interval_ms=0, compaction_interval_ms=NEVER
        )

    async def append(self, partition: int, values: list[bytes]) -> None:
        [life] = self.serving(partition)
        for value in values:
            done = await life.engine.partition("t", partition).append(batch(value))
            self.acked[partition][value] = done.base_offset

    async def move(self, partition: int, to: Life) -> None:
        await to.engine.move_partition("t", partition, to.node.node_id)
        await self.until("it has moved", lambda: self.serving(partition) == [to])

    def outage(self, away: bool) -> None:
        """Of the whole bucket, for everybody."""
        for life in self.nodes.values():
            (life.host.cut_from.add if away else life.host.cut_from.discard)(self.bucket.name)

    def taking_over(self) -> Life:
        [life] = [x for x in self.nodes.values() if x.ready and x.node._watch and x.node._watch._takeovers]
        return life

    def served_by_others(self, lost: Life) -> bool:
        return all(len(s) == 1 and s[0] is not lost for s in map(self.serving, range(PARTITIONS)))

    async def check_all(self, seconds: float) -> None:
        """Every acked record can be read, in order, within that time."""
        async with asyncio.timeout(seconds):
            for p in range(PARTITIONS):
                assert judge(p, self.acked[p], await self.read_everything(p)) == []

    def owing(self) -> list[int]:
        """Streams that owe, as the first node's ledger has it."""
        state = next(life for life in self.nodes.values() if life.ready).node.state
        return [s.id for s in state.streams.values() for span in s.spans if span.owed]


def owing(mode: WalMode, test: Callable[[OwingCell], Awaitable[None]], nodes: int = 3) -> None:
    """Over a cell where one broker owns partitions 0 and 3."""

    async def main() -> None:
        cell = OwingCell(5, mode, nodes)
        for n in range(1, nodes + 1):
            await cell.start(n)
        await cell.until("the brokers join", lambda: sum(life.ready for life in cell.nodes.values()) == nodes)
        await cell.create_topic()
        await cell.until("all serve", cell.all_serve)
        [owner] = cell.serving(0)
        await cell.move(3, owner)
        for p in range(PARTITIONS):
            await cell.append(p, [b"p%d-%d" % (p, i) for i in range(COUNT)])
        await test(cell)
        for n in list(cell.starting):
            await cell.kill(n)

    run(main())


async def lose(cell: OwingCell) -> Life:
    """The owner of the first partition dies while objects are refused; its partitions are served by the others."""
    cell.bucket.refuses = True
    [lost] = cell.serving(0)
    await cell.kill(lost.node.node_id)
    del cell.nodes[lost.node.node_id]
    await cell.until("the others serve all", lambda: cell.served_by_others(lost))
    assert cell.owing()
    return lost


@pytest.fixture(autouse=True)
def close_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "CLOSE_FIRST_BYTES", 1)


@pytest.mark.parametrize("mode", [WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS], ids=lambda m: m.value)
def test_a_dead_broker_s_acked_records_are_read_while_the_bucket_is_away(mode: WalMode) -> None:
    async def test(cell: OwingCell) -> None:
        await lose(cell)
        taker = cell.taking_over()
        assert [cell.serving(p) == [taker] for p in (0, 3)].count(True) == 1, "from its own memory, and from another's"
        cell.outage(True)
        await cell.check_all(AT_ONCE_S)
        await asyncio.sleep(300)  # far longer than an upload is tried
        await cell.check_all(AT_ONCE_S)
        await cell.append(0, [b"p0-%d" % COUNT])
        await cell.check_all(AT_ONCE_S)
        assert not any(map(is_data, cell.bucket.objects))
        cell.outage(False)
        cell.bucket.refuses = False
        await cell.until("nothing is owed", lambda: not cell.owing(), 30)
        await cell.check_all(AT_ONCE_S)

    owing(mode, test)


def test_a_search_by_timestamp_finds_what_is_owed_and_is_tried_again_where_nobody_has_it() -> None:
    async def test(cell: OwingCell) -> None:
        [life] = cell.serving(0)
        for second in range(5, 9):
            for p in (0, 3):
                await life.engine.partition("t", p).append(batch(b"at %d" % second, timestamp=second * 1_000))
        await lose(cell)
        taker = cell.taking_over()
        [(log, *_)] = [
            [life.engine.partition("t", p) for life in cell.serving(p)] for p in (0, 3) if cell.serving(p) != [taker]
        ]
        await log.append(batch(b"later", timestamp=9_000))
        wanted = {0: 0, 1_000: 0, 5_000: COUNT, 6_500: COUNT + 2, 8_000: COUNT + 3, 8_500: COUNT + 4}
        for timestamp, offset in wanted.items():
            found = await log.offset_for_timestamp(timestamp)
            assert found is not None and found[0] == offset, timestamp
        assert await log.offset_for_timestamp(9_500) is None
        cell.outage(True)
        await cell.crash(taker)
        with pytest.raises(KafkaError, match="being uploaded"):
            await log.offset_for_timestamp(6_500)

    owing(WalMode.REGIONAL_BLOCK, test)


def test_the_newest_record_is_found_where_it_is_owed_and_is_not_guessed_where_nobody_has_it() -> None:
    async def test(cell: OwingCell) -> None:
        [life] = cell.serving(0)
        for second in (5, 50, 50, 7):
            for p in (0, 3):
                await life.engine.partition("t", p).append(batch(b"at %d" % second, timestamp=second * 1_000))
        await lose(cell)
        taker = cell.taking_over()
        [log] = [
            life.engine.partition("t", p) for p in (0, 3) for life in cell.serving(p) if cell.serving(p) != [taker]
        ]
        assert await log.newest() == (COUNT + 1, 50_000)
        for timestamp, offset in ((9_000, COUNT + 1), (50_000, COUNT + 1), (50_001, COUNT + 6)):
            await log.append(batch(b"later", timestamp=timestamp))
            found = await log.newest()
            assert found is not None and found[0] == offset, timestamp
        cell.outage(True)
        await cell.crash(taker)
        with pytest.raises(KafkaError, match="being uploaded"):
            await log.newest()

    owing(WalMode.REGIONAL_BLOCK, test)


def test_when_the_recoverer_dies_in_the_middle_its_successor_is_read_from() -> None:
    async def test(cell: OwingCell) -> None:
        await lose(cell)
        taker = cell.taking_over()
        partition = next(p for p in (0, 3) if cell.serving(p) != [taker])
        [reader] = cell.serving(partition)
        log = reader.engine.partition("t", partition)
        first = read_back(await log.read(0, 1_000, minimum_one=True))
        assert 0 < len(first) < COUNT
        await cell.kill(taker.node.node_id)
        del cell.nodes[taker.node.node_id]
        assert await log.read(first[-1][0] + 1, 1_000, minimum_one=True) == b"", "nobody has it now"
        await cell.until("the others serve all", lambda: cell.served_by_others(taker), 30)
        await cell.check_all(10)
        assert cell.owing()
        cell.bucket.refuses = False
        await cell.until("nothing is owed", lambda: not cell.owing(), 30)
        await cell.check_all(AT_ONCE_S)

    owing(WalMode.REGIONAL_BLOCK, test, nodes=4)


def test_when_the_recoverer_dies_and_nobody_can_take_over_consumers_wait_for_the_bucket_and_lose_nothing() -> None:
    async def test(cell: OwingCell) -> None:
        await lose(cell)
        taker = cell.taking_over()
        partition = next(p for p in (0, 3) if cell.serving(p) != [taker])
        log = cell.serving(partition)[0].engine.partition("t", partition)
        cell.outage(True)
        assert read_back(await log.read(0, 1_000, minimum_one=True))
        await cell.kill(taker.node.node_id)
        del cell.nodes[taker.node.node_id]
        for _ in range(100):
            async with asyncio.timeout(5):
                assert await log.read(0, 1_000, minimum_one=True) == b""
            await asyncio.sleep(0.2)
        cell.outage(False)
        cell.bucket.refuses = False
        await cell.until("the last one serves all", lambda: cell.served_by_others(taker), 60)
        await cell.check_all(30)

    owing(WalMode.REGIONAL_BLOCK, test)


def test_what_a_former_owner_has_not_uploaded_is_read_after_a_move_and_after_its_death() -> None:
    async def test(cell: OwingCell) -> None:
        cell.bucket.refuses = True
        [old] = cell.serving(0)
        others = [life for life in cell.nodes.values() if life is not old]
        for n, owner in enumerate([others[0], others[1], old, others[0]]):
            await cell.move(0, owner)
            await cell.append(0, [b"p0-%d" % (COUNT + n)])  # so that each of them owes
            await cell.check_all(AT_ONCE_S)
        cell.outage(True)
        await cell.check_all(AT_ONCE_S)
        cell.outage(False)
        await cell.kill(old.node.node_id)
        del cell.nodes[old.node.node_id]
        await cell.until("the others serve all", lambda: cell.served_by_others(old))
        assert cell.owing()
        await cell.check_all(10)
        cell.bucket.refuses = False
        await cell.until("nothing is owed", lambda: not cell.owing(), 30)
        await cell.check_all(AT_ONCE_S)

    owing(WalMode.REGIONAL_BLOCK, test)


def test_readers_of_committed_records_see_of_the_owed_what_is_decided_and_nothing_aborted() -> None:
    """Judged by aiokafka's reader of fetched records."""

    async def test(cell: OwingCell) -> None:
        [life] = cell.serving(0)
        log = life.engine.partition("t", 0)

        async def write(producer: int, value: bytes) -> None:
            made = batch(value, producer=producer, epoch=0, sequence=0, transactional=True)
            log.producers.transactions.allow(producer, 0, 1)
            await log.append(made)

        for producer in (71, 72, 73):
            await write(producer, b"of %d" % producer)
        await log.append(encode_marker(71, 0, Marker(False, 1, 1), 1_000))
        await log.append(encode_marker(72, 0, Marker(True, 1, 1), 1_000))
        await log.append(batch(b"behind what is open"))
        decided = [*cell.acked[0], b"of 72"]
        stable = log.last_stable_offset
        assert stable == COUNT + 2, "the third is not decided"
        await lose(cell)
        cell.outage(True)
        async with asyncio.timeout(AT_ONCE_S):
            assert await read_committed(cell, 0) == decided  # type: ignore[arg-type]
        log = cell.serving(0)[0].engine.partition("t", 0)
        assert log.last_stable_offset == stable
        await log.append(encode_marker(73, 0, Marker(False, 1, 1), 1_000))
        async with asyncio.timeout(AT_ONCE_S):
            assert await read_committed(cell, 0) == [*decided, b"behind what is open"]  # type: ignore[arg-type]

    owing(WalMode.REGIONAL_BLOCK, test)


async def while_objects_are_refused_now_and_then(
    cell: Cell, turns: int, disturb: Disturb, consumers: bool = False
) -> None:
    """`consumers`: meanwhile more and more of them begin with the oldest records."""
    put, open_to_all = cell.bucket.put, True

    def refusing(key: str, data: bytes, if_absent: bool) -> None:
        if not open_to_all and is_data(key):
            raise Unavailable("no objects are taken now")
        put(key, data, if_absent)

    cell.bucket.put = refusing  # type: ignore[method-assign]
    disturbing = asyncio.create_task(disturb(cell, turns))
    reading: list[asyncio.Task[None]] = []
    while not disturbing.done():
        reading += [asyncio.create_task(cell.consumer(p)) for p in range(PARTITIONS if consumers else 0)]
        await asyncio.sleep(cell.rng.uniform(0, 2))
        open_to_all = False
        await asyncio.wait({disturbing}, timeout=cell.rng.choice([1.0, 4.0, 15.0]))
        open_to_all = True
    await disturbing
    for task in reading:
        task.cancel()
    for task in reading:
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def read_owed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets that were read of what was owed."""
    offsets: list[int] = []
    read = OwedReads.read

    async def noted(self: OwedReads, stream: Stream, span: Span, offset: int, size: int, *, minimum_one: bool) -> bytes:
        found = await read(self, stream, span, offset, size, minimum_one=minimum_one)
        offsets.extend(at for at, _ in read_back(found))
        return found

    monkeypatch.setattr(OwedReads, "read", noted)
    return offsets


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
@pytest.mark.parametrize("seed", range(1, 3))
def test_nothing_acked_is_lost_nor_shown_and_withdrawn_while_the_bucket_takes_objects_now_and_then(
    mode: WalMode, seed: int, read_owed: list[int]
) -> None:
    refused = functools.partial(while_objects_are_refused_now_and_then, disturb=upset, consumers=True)
    cell, problems = run(scenario(seed, mode, HOSTILE, 8, nodes=4, disturb=refused))
    assert problems == [], f"seed {seed}: {problems}"
    assert sum(len(a) for a in cell.acked.values()) > 100 and read_owed


@pytest.mark.parametrize("mode", [WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS], ids=lambda m: m.value)
def test_transactions_are_whole_or_nothing_while_the_bucket_takes_objects_now_and_then(
    mode: WalMode, read_owed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = functools.partial(while_objects_are_refused_now_and_then, disturb=disturb)
    monkeypatch.setattr(test_transactions_sim, "disturb", refused)
    cell, problems = run(test_transactions_sim.scenario(7, mode))
    assert problems == [], "\n".join(cell.world.trace[-60:])
    assert cell.ended > 10 and read_owed
