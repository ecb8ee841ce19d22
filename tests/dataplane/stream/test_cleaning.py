"""Compaction by key: what a reader of a compacted topic is promised, over the real fold and objects in a small store.

Records are made and read by aiokafka's codec.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from crc32c import crc32c

from dataplane.broker import cleaner
from dataplane.broker.compacting import Compactor
from dataplane.ledger import commands as c
from dataplane.ledger.commands import CommittedObject
from dataplane.ledger.compacting import extents_compacted
from dataplane.ledger.entry import Command
from dataplane.ledger.state import CellState
from dataplane.stream.batch import HEADER, iter_batches
from dataplane.stream.cleaning import SLICE, cleaning_of
from dataplane.stream.opening import producers_at
from dataplane.stream.retention import retention_of
from providers.base.clock import LoopClock
from tests.dataplane.ledger.test_cell import A, B, Cell, joined
from tests.dataplane.stream.batches import KeyValue, batches_of, keyed, read_keyed
from tests.dataplane.stream.test_compaction import Pieces
from tests.dataplane.stream.test_partition import Bench
from tests.sim.virtualtime import run

EAGER = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"}
ZSTD = 4


class Topic(Bench):
    """One partition of a topic, uploaded and compacted by its owner, broker A."""

    def __init__(self, configs: dict[str, str], *, keys_max: int = 1_000_000) -> None:
        self.cell = Cell()
        self.cell.ok(joined(A), joined(B), c.controller_elected(1, B), c.topic_created("t", "id", [1], configs))
        super().__init__(self.cell.state.streams[1], cache_bytes=1)
        self.store = Pieces()
        self.reader._store = self.store  # type: ignore[assignment]
        self.uploader._store = self.store  # type: ignore[assignment]
        self.compactor = Compactor(
            A,
            cluster="c",
            incarnation="inc",
            state=lambda: self.cell.state,
            partitions=lambda: self,  # type: ignore[arg-type,return-value]
            reader=self.reader,
            bucket=self.store,  # type: ignore[arg-type]
            append=self.to_ledger,  # type: ignore[arg-type]
            busy=lambda: False,
            clock=LoopClock(),
            interval_ms=1_000,
            bytes_per_s=1 << 40,
        )
        self.compactor._cleaner._keys_max = keys_max

    def everything(self) -> list[Any]:
        return [self.partition]

    async def _commit(self, objects: Sequence[CommittedObject], floor: int) -> str | None:
        return self.cell.entry(c.objects_committed(A, objects, floor))[0]

    async def to_ledger(self, decide: Callable[[CellState], Sequence[Command] | None]) -> str | None:
        return next((r for r in self.cell.entry(*(decide(self.cell.state) or ())) if r is not None), None)

    async def add(self, made: bytes, *, upload: bool = True) -> None:
        task = asyncio.create_task(self.partition.append(made))
        await asyncio.sleep(0)
        self.wal.ack()
        await task
        if upload:
            await self.uploader.upload_once()

    async def clean(self) -> int:
        return await self.compactor._cleaner.turn([self.partition])

    async def raw(self) -> bytes:
        """All that a consumer gets that begins at the start."""
        self.partition._cache._budget.evict()  # what is uploaded is read from there
        found, offset = b"", self.partition.start_offset
        while offset < self.partition.high_watermark:
            data = await self.partition.read(offset, 500, minimum_one=True)
            header = list(iter_batches(data))[-1][0]
            found += data
            offset = header.base_offset + header.last_offset_delta + 1
        return found

    async def read(self) -> list[KeyValue]:
        return read_keyed(await self.raw())

    async def pairs(self) -> list[tuple[int, bytes | None, bytes | None]]:
        return [(r.offset, r.key, r.value) for r in await self.read()]


def test_of_each_key_the_newest_record_stays_where_it_was() -> None:
    async def main() -> None:
        t = Topic(EAGER)
        await t.add(keyed((b"a", b"1"), (b"b", b"1"), (b"a", b"2")))
        await t.add(keyed((b"c", b"1"), (b"a", b"3"), gzip=True))
        await t.add(keyed((b"b", b"2"), (None, b"no key")))
        before = {r.offset: r for r in await t.read()}
        assert await t.clean() == 1
        after = await t.read()
        assert [(r.key, r.value) for r in after] == [(b"c", b"1"), (b"a", b"3"), (b"b", b"2"), (None, b"no key")]
        assert all(before[r.offset] == r for r in after)
        assert await t.clean() == 0, "nothing has come since"

    run(main())


@pytest.mark.parametrize("seed", range(12))
def test_whatever_was_written_and_cleaned_when_a_reader_ends_with_the_same_keys_and_values(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        t = Topic(EAGER | {"delete.retention.ms": "5000"}, keys_max=rng.choice([3, 20, 1_000]))
        written: list[KeyValue] = []
        for number in range(120):
            records: list[tuple[bytes | None, bytes | None]] = [
                (b"k%d" % rng.randrange(25), rng.choice([b"v%d" % number, None, bytes(rng.randrange(900))]))
                for _ in range(rng.randint(1, 8))
            ]
            made = keyed(*records, timestamp=10 * number, gzip=rng.random() < 0.3, transactional=rng.random() < 0.05)
            first = t.partition.next_offset
            written += [KeyValue(first + i, 10 * number + i, k, v) for i, (k, v) in enumerate(records)]
            await t.add(made, upload=rng.random() < 0.5)
            if rng.random() < 0.2:
                await asyncio.sleep(rng.uniform(0, 4))
            if rng.random() < 0.15:
                await t.clean()
            if rng.random() < 0.1:
                await t.compactor.turn()
        await t.uploader.upload_once()
        while await t.clean():
            pass
        found = await t.read()
        said = {r.offset: r for r in written}
        assert all(said[r.offset] == r for r in found), "what stays is as it was written"
        assert [r.offset for r in found] == sorted({r.offset for r in found})

        def table(records: Sequence[KeyValue]) -> dict[bytes | None, bytes | None]:
            state: dict[bytes | None, bytes | None] = {}
            for record in records:
                state[record.key] = record.value
            return {key: value for key, value in state.items() if value is not None}

        assert table(found) == table(written)
        assert len(found) < len(written) / 2
        assert t.stream.cleaned == t.partition.high_watermark
        for offset in range(t.partition.high_watermark):
            data = await t.partition.read(offset, 1, minimum_one=True)
            header = next(iter(iter_batches(data)))[0]
            assert header.base_offset + header.last_offset_delta >= offset, "a reader gets on from every offset"

    run(main())


def test_a_tombstone_stays_for_its_time_after_it_was_met_and_then_goes() -> None:
    async def main() -> None:
        t = Topic(EAGER | {"delete.retention.ms": "60000"})
        await t.add(keyed((b"a", b"1"), (b"b", b"1")))
        await t.add(keyed((b"a", None), (b"c", b"1"), timestamp=5_000))
        await asyncio.sleep(100)
        await t.clean()
        assert await t.pairs() == [(1, b"b", b"1"), (2, b"a", None), (3, b"c", b"1")]
        assert [r.timestamp for r in await t.read()] == [1_001, 5_000, 5_001], "timestamps are what they were"
        assert await t.partition.offset_for_timestamp(5_000) == (2, 5_001)
        await asyncio.sleep(59)
        await t.add(keyed((b"d", b"1")))
        await t.clean()
        assert (2, b"a", None) in await t.pairs()
        await asyncio.sleep(2)
        await t.add(keyed((b"e", b"1")))
        await t.clean()
        assert await t.pairs() == [(1, b"b", b"1"), (3, b"c", b"1"), (4, b"d", b"1"), (5, b"e", b"1")]

    run(main())


def foreign(made: bytes) -> bytes:
    """The batch as if it were compressed by what nobody here can read."""
    header = next(iter(iter_batches(made)))[0]
    changed = bytearray(HEADER.pack(*header._replace(attributes=header.attributes | ZSTD))) + made[HEADER.size :]
    changed[17:21] = crc32c(bytes(changed[21:])).to_bytes(4, "big")
    return bytes(changed)


@pytest.mark.parametrize("hidden", [foreign(keyed((b"a", b"old"))), keyed((b"a", b"old"), transactional=True)])
def test_a_batch_that_may_not_be_looked_into_stays_and_so_does_every_tombstone_behind_it(hidden: bytes) -> None:
    async def main() -> None:
        t = Topic(EAGER | {"delete.retention.ms": "0"})
        await t.add(keyed((b"z", None), (b"y", b"1")))
        await t.add(hidden)
        await t.add(keyed((b"a", b"1"), (b"a", None), (b"b", b"1")))
        for _ in range(3):
            await asyncio.sleep(1)
            await t.add(keyed((b"more", b"1")))
            await t.clean()
        assert hidden[57:] in await t.raw()
        plain = [r for one in batches_of(await t.raw()) if one.compression_type == 0 for r in one]
        held = {(bytes(r.key), r.value) for r in plain}
        assert (b"a", None) in held, "its key may be in the batch before it"
        assert (b"z", None) not in held, "there is nothing before this one"

    run(main())


def test_young_records_and_little_dirt_wait() -> None:
    async def main() -> None:
        t = Topic(EAGER | {"min.compaction.lag.ms": "30000"})
        await asyncio.sleep(100)
        await t.add(keyed((b"a", b"1"), timestamp=10_000))
        await t.add(keyed((b"a", b"2"), timestamp=20_000))
        await t.add(keyed((b"a", b"3"), timestamp=90_000))
        assert await t.clean() == 1 and t.stream.cleaned == 2
        assert [offset for offset, _, _ in await t.pairs()] == [1, 2]

        t = Topic({"cleanup.policy": "compact,delete", "min.cleanable.dirty.ratio": "0.5"})
        for i in range(8):
            await t.add(keyed((b"k%d" % i, bytes(100))))
        assert await t.clean() == 1
        await t.add(keyed((b"k0", bytes(100))))
        assert await t.clean() == 0, "a ninth of it is not clean"

    run(main())


def test_a_topic_that_is_not_compacted_is_not_looked_at() -> None:
    async def main() -> None:
        for configs in ({}, {"cleanup.policy": "delete", "min.cleanable.dirty.ratio": "0"}):
            t = Topic(dict(configs))
            await t.add(keyed((b"a", b"1")))
            await t.add(keyed((b"a", b"2")))
            assert await t.clean() == 0 and len(await t.pairs()) == 2

    run(main())


def test_only_compacted_topics_keep_everything_whatever_retention_says() -> None:
    assert not retention_of({"cleanup.policy": "compact", "retention.ms": "5"}).bounded
    assert retention_of({"cleanup.policy": "compact,delete", "retention.ms": "5"}).bounded
    assert cleaning_of({}) is None and cleaning_of({"cleanup.policy": "delete"}) is None
    assert cleaning_of({"cleanup.policy": "delete, compact"}) is not None


def test_a_cleaning_takes_in_as_many_keys_as_it_may_and_the_next_goes_on_there() -> None:
    async def main() -> None:
        t = Topic(EAGER, keys_max=10)
        for i in range(60):
            await t.add(keyed((b"k%d" % (i % 30), b"%d" % i)))
        ends = []
        while await t.clean():
            ends.append(t.stream.cleaned)
        assert len(ends) > 3 and ends == sorted(set(ends)) and ends[-1] == 60
        assert [(k, v) for _, k, v in await t.pairs()] == [(b"k%d" % (i % 30), b"%d" % i) for i in range(30, 60)]

    run(main())


def test_an_object_of_which_nothing_stays_says_how_far_it_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaner, "OBJECT_BYTES_MAX", 1)  # each extent on its own

    async def main() -> None:
        t = Topic(EAGER)
        for i in range(4):
            await t.add(keyed((b"a", b"%d" % i), (b"a", b"again")))
        await t.clean()
        assert await t.pairs() == [(7, b"a", b"again")]
        assert [(e.start, e.end) for e in t.stream.extents] == [(0, 2), (2, 4), (4, 6), (6, 8)]
        for offset in range(8):
            found = batches_of(await t.partition.read(offset, 1, minimum_one=True))
            assert found[0].last_offset_delta == 1, "an empty batch, or the one with the record"
        objects = dict(t.store.objects)
        await t.add(keyed((b"b", b"1")))
        assert await t.clean() == 1
        assert len(t.store.objects) == len(objects) + 1, "what is empty already is not written again"

    run(main())


def test_a_tombstone_beyond_what_a_cleaning_took_in_was_not_met_by_it() -> None:
    async def main() -> None:
        t = Topic(EAGER | {"delete.retention.ms": "10000"}, keys_max=1)
        await t.add(keyed((b"a", b"1")), upload=False)
        await t.add(keyed((b"a", b"2")), upload=False)
        await t.add(keyed((b"b", None)), upload=False)
        await t.add(keyed((b"c", b"1")))
        await t.clean()
        assert t.stream.cleaned == 1
        await t.clean()
        await asyncio.sleep(20)
        await t.clean()
        await t.clean()
        assert t.stream.cleaned == 4 and (2, b"b", None) in await t.pairs()

    run(main())


def test_a_cleaning_that_another_compaction_has_overtaken_does_not_count() -> None:
    async def main() -> None:
        t = Topic(EAGER)
        for i in range(3):
            await t.add(keyed((b"a", b"%d" % i)))
        write = t.compactor._cleaner._write

        async def overtaken(*args: Any) -> Command:
            command = await write(*args)
            t.cell.ok(extents_compacted(1, 1, A, t.stream.extents[:2], "elsewhere", 9))
            return command

        t.compactor._cleaner._write = overtaken  # type: ignore[assignment]
        assert await t.clean() == 0
        assert t.stream.cleaned == 0 and len(t.stream.extents) == 2

    run(main())


@pytest.mark.parametrize("told", [True, False])
def test_producers_are_known_after_their_records_were_cleaned_away(told: bool) -> None:
    async def main() -> None:
        t = Topic(EAGER)
        if not told:  # as a recoverer's objects: without the producers' state
            uploadable = t.partition.uploadable
            t.partition.uploadable = lambda size: (uploadable(size)[0], None)  # type: ignore[method-assign]
        for sequence in range(3):
            await t.add(keyed((b"a", b"%d" % sequence), producer=5, epoch=0, sequence=sequence))
        await t.add(keyed((b"a", b"other")))
        known = t.partition.acked_producers().dump()
        t.stream.handover = None
        await t.clean()
        assert len(await t.pairs()) == 1
        t.reader._blocks.clear()
        assert (await producers_at(t.stream, t.reader, 4)).dump() == known

    run(main())


def test_producers_that_only_the_hand_over_knows_stay_known() -> None:
    async def main() -> None:
        t = Topic(EAGER)
        for i in range(4):
            await t.add(keyed((b"a", b"%d" % i)))
        # As DeleteRecords says it: of producer 9 no record is left.
        t.stream.handover = {"offset": 2, "producers": [[9, 0, [[0, 4, 0, 1]]]]}
        for extent in t.stream.extents:
            index = await t.reader.index(extent)
            assert all(e.producers_position >= 0 for e in index.entries)
        t.reader.producers = none_known  # type: ignore[method-assign]
        await t.clean()
        del t.reader.producers  # type: ignore[method-assign]
        table = await producers_at(t.stream, t.reader, 4)
        assert [row[0] for row in table.dump()] == [9]

    async def none_known(extent: object, stream: int) -> None:
        return None

    run(main())


def test_a_damaged_object_is_not_cleaned_over() -> None:
    async def main() -> None:
        t = Topic(EAGER)
        for i in range(3):
            await t.add(keyed((b"a", b"%d" % i)))
        name = t.stream.extents[1].object
        data = t.store.objects[name]
        t.store.objects[name] = data[:70] + bytes([data[70] ^ 1]) + data[71:]
        before = list(t.stream.extents)
        assert await t.clean() == 0
        assert t.stream.extents == before and t.stream.cleaned == 0

    run(main())


def test_what_was_moved_meanwhile_is_left_to_the_new_owner() -> None:
    async def main() -> None:
        t = Topic(EAGER)
        for i in range(3):
            await t.add(keyed((b"a", b"%d" % i)))
        before = list(t.stream.extents)
        write = t.compactor._cleaner._write

        async def moved(*args: Any) -> Command:
            command = await write(*args)
            t.cell.ok(c.partition_moved(1, 1, source=A, target=2, end=3, producers=[]))
            return command

        t.compactor._cleaner._write = moved  # type: ignore[assignment]
        assert await t.clean() == 0
        assert t.stream.extents == before and t.stream.cleaned == 0

    run(main())


def test_others_have_their_turn_while_a_large_batch_is_looked_at() -> None:
    async def main() -> None:
        t = Topic(EAGER)
        await t.add(keyed(*((b"%d" % (i % 7), b"v") for i in range(10 * SLICE))))
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.001)
                turns += 1

        task = asyncio.create_task(other())
        await t.clean()
        task.cancel()
        assert turns > 40 and len(await t.pairs()) == 7

    run(main())
