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
from dataplane.stream.transactions import Marker, encode_marker, parse_marker
from providers.base.clock import LoopClock
from tests.dataplane.ledger.test_cell import A, B, Cell, joined
from tests.dataplane.stream.batches import (
    GZIP,
    LZ4,
    SNAPPY,
    ZSTD,
    KeyValue,
    batches_of,
    keyed,
    packed,
    read_keyed,
)
from tests.dataplane.stream.test_compaction import Pieces
from tests.dataplane.stream.test_partition import Bench
from tests.sim.virtualtime import run

EAGER = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"}
UNKNOWN = 5
CODECS = [GZIP, SNAPPY, LZ4, ZSTD]


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
            made = keyed(*records, timestamp=10 * number, gzip=rng.random() < 0.2)
            if not made[22] & 7 and rng.random() < 0.5:
                made = packed(made, rng.choice([SNAPPY, LZ4, ZSTD]))
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


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1, 300_000])
def test_what_stays_of_a_compressed_batch_is_compressed_the_same_way(codec: int, size: int) -> None:
    rng = random.Random(codec)
    big = b"".join(rng.randbytes(50) * 3 for _ in range(size // 150 + 1))

    async def main() -> None:
        t = Topic(EAGER)
        made = [keyed((b"a", b"1"), (b"b", big), (b"c", b"1")), keyed((b"a", b"2"), (b"d", None), timestamp=2_000)]
        for one in made:
            await t.add(packed(one, codec))
        before = {r.offset: r for r in await t.read()}
        assert await t.clean() == 1
        after = await t.read()
        assert [(r.offset, r.key) for r in after] == [(1, b"b"), (2, b"c"), (3, b"a"), (4, b"d")]
        assert all(before[r.offset] == r for r in after)
        assert {header.attributes & 7 for header, _ in iter_batches(await t.raw())} == {codec}
        assert len(await t.raw()) < max(2 * len(made[0]) // 3, 300)

    # Large ones are compressed in a thread, which time that jumps does not wait for.
    asyncio.run(main()) if size > 1 else run(main())


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
    changed = bytearray(HEADER.pack(*header._replace(attributes=header.attributes | UNKNOWN))) + made[HEADER.size :]
    changed[17:21] = crc32c(bytes(changed[21:])).to_bytes(4, "big")
    return bytes(changed)


def test_a_batch_that_may_not_be_looked_into_stays_and_so_does_every_tombstone_behind_it() -> None:
    hidden = foreign(keyed((b"a", b"old")))

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


class Transacting(Topic):
    """Transactional producers write to it; each has one transaction at a time, and every one its own round."""

    def __init__(self, configs: dict[str, str], **kwargs: Any) -> None:
        super().__init__(configs, **kwargs)
        self.round = 0
        self.sequences: dict[int, int] = {}

    def begin(self, producer: int) -> None:
        self.round += 1
        self.partition.admitted_producers().transactions.allow(producer, 0, self.round)

    async def write(
        self, producer: int, *records: tuple[bytes, bytes | None], codec: int = 0, upload: bool = True
    ) -> int:
        """Offset of the first."""
        sequence = self.sequences.get(producer, 0)
        self.sequences[producer] = sequence + len(records)
        made = keyed(*records, producer=producer, epoch=0, sequence=sequence, transactional=True)
        first = self.partition.next_offset
        await self.add(packed(made, codec) if codec else made, upload=upload)
        return first

    async def end(self, producer: int, *, commit: bool, round: int | None = None) -> None:
        await self.add(encode_marker(producer, 0, Marker(commit, 1, round or self.round), 1_000))

    async def committed(self) -> list[KeyValue]:
        """What a reader of committed records gets, by the batches and the aborted transactions it is told."""
        self.partition._cache._budget.evict()
        found: list[KeyValue] = []
        offset = self.partition.start_offset
        end = self.partition.last_stable_offset
        pending = sorted(await self.partition.aborted(0, end), key=lambda a: a.first)
        gone: set[int] = set()
        while offset < end:
            data = await self.partition.read(offset, 500, minimum_one=True, committed=True)
            for header, one in iter_batches(data):
                last = header.base_offset + header.last_offset_delta
                # As Kafka's clients do.
                while pending and pending[0].first <= last:
                    gone.add(pending.pop(0).producer_id)
                if header.attributes & 0x20:
                    if header.producer_id in gone and not parse_marker(one).commit:
                        gone.discard(header.producer_id)
                elif not header.attributes & 0x10 or header.producer_id not in gone:
                    found += read_keyed(bytes(one))
                offset = last + 1
        return found

    async def markers(self) -> list[int]:
        return [header.base_offset for header, _ in iter_batches(await self.raw()) if header.attributes & 0x20]


@pytest.mark.parametrize("codec", [0, LZ4])
def test_records_of_committed_transactions_are_as_others_and_those_of_aborted_ones_go(codec: int) -> None:
    async def main() -> None:
        t = Transacting(EAGER)
        await t.add(keyed((b"a", b"0"), (b"b", b"0"), (b"c", b"0")))
        t.begin(5)
        await t.write(5, (b"a", b"1"), (b"a", b"2"), codec=codec)
        await t.end(5, commit=True)
        t.begin(5)
        await t.write(5, (b"b", b"never"), (b"c", None), codec=codec)
        await t.end(5, commit=False)
        assert await t.clean() == 1
        pairs = [(r.offset, r.key, r.value) for r in await t.committed()]
        assert pairs == [(1, b"b", b"0"), (2, b"c", b"0"), (4, b"a", b"2")]
        data = [r for r in read_keyed(await t.raw()) if r.offset not in await t.markers()]
        assert [(r.offset, r.value) for r in data] == [(1, b"0"), (2, b"0"), (4, b"2")], "for readers of all, too"
        assert await t.markers() == [5, 8]
        assert await t.clean() == 0

    run(main())


@pytest.mark.parametrize("upload", [True, False])
def test_nothing_is_cleaned_of_what_is_not_decided_yet(upload: bool) -> None:
    async def main() -> None:
        t = Transacting(EAGER)
        await t.add(keyed((b"a", b"0"), (b"b", b"0")), upload=upload)
        await t.add(keyed((b"a", b"1")), upload=upload)  # else in one block with what is open
        t.begin(5)
        first = await t.write(5, (b"a", b"open"))
        await t.add(keyed((b"b", b"behind")))
        assert await t.clean() == 1 and t.stream.cleaned == first == 3
        assert [r.value for r in await t.read()] == [b"0", b"1", b"open", b"behind"]
        await t.add(keyed((b"b", b"more")))
        assert await t.clean() == 0
        await t.end(5, commit=False)
        assert await t.clean() == 1 and t.stream.cleaned == t.partition.high_watermark
        assert [(r.key, r.value) for r in await t.committed()] == [(b"a", b"1"), (b"b", b"more")]

    run(main())


@pytest.mark.parametrize("seed", range(12))
def test_readers_of_committed_records_end_with_the_same_table_whatever_was_decided_and_cleaned(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        t = Transacting(EAGER | {"delete.retention.ms": "3000"}, keys_max=rng.choice([4, 1_000]))
        state: dict[bytes, bytes | None] = {}
        # By offset: decided when their markers come, in the order of offsets then.
        decided: dict[int, tuple[bytes, bytes | None]] = {}
        running: dict[int, tuple[int, dict[int, tuple[bytes, bytes | None]]]] = {}
        written = aborted = 0
        for number in range(150):
            records: list[tuple[bytes, bytes | None]] = [
                (b"k%d" % rng.randrange(20), rng.choice([b"v%d" % number, None])) for _ in range(rng.randint(1, 5))
            ]
            written += len(records)
            codec, upload = rng.choice([0, 0, SNAPPY, LZ4, ZSTD]), rng.random() < 0.5
            if rng.random() < 0.3:
                first = t.partition.next_offset
                made = keyed(*records)
                await t.add(packed(made, codec) if codec else made, upload=upload)
                decided |= {first + i: record for i, record in enumerate(records)}
            else:
                producer = rng.randrange(5, 9)
                if producer not in running:
                    t.begin(producer)
                    running[producer] = t.round, {}
                first = await t.write(producer, *records, codec=codec, upload=upload)
                running[producer][1].update({first + i: record for i, record in enumerate(records)})
            if running and rng.random() < 0.3:
                producer = rng.choice(list(running))
                number_of, those = running.pop(producer)
                commit = rng.random() < 0.6
                await t.end(producer, commit=commit, round=number_of)
                decided |= those if commit else {}
                aborted += 0 if commit else len(those)
            if rng.random() < 0.2:
                await asyncio.sleep(rng.uniform(0, 2))
            if rng.random() < 0.2:
                await t.clean()
            if rng.random() < 0.1:
                await t.compactor.turn()
        for producer, (number_of, those) in running.items():
            await t.end(producer, commit=True, round=number_of)
            decided |= those
        await t.uploader.upload_once()
        markers = await t.markers()
        while await t.clean():
            pass
        found = await t.committed()
        assert all(decided[r.offset] == (r.key, r.value) for r in found), "what stays is as it was committed"
        for offset in sorted(decided):
            key, value = decided[offset]
            state[key] = value
        read: dict[bytes | None, bytes | None] = {r.key: r.value for r in found}
        assert {k: v for k, v in read.items() if v is not None} == {k: v for k, v in state.items() if v is not None}
        assert await t.markers() == markers
        everything = [r for r in read_keyed(await t.raw()) if r.offset not in markers]
        assert everything == found, "of what was aborted nothing is left for readers of all"
        assert aborted > 20 and len(found) < written / 3
        # A new owner, who has the state from objects alone, tells readers the same.
        t.stream.handover = None
        table = await producers_at(t.stream, t.reader, t.partition.high_watermark)
        assert table.transactions.first_open is None
        t.partition._acked = table
        assert await t.committed() == found

    run(main())
