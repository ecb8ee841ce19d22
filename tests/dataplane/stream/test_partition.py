"""Promises of one open partition."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dataplane.ledger.commands import CommittedObject
from dataplane.ledger.state import Extent, Span, Stream
from dataplane.stream import upload
from dataplane.stream.cache import CacheBudget
from dataplane.stream.objects import Section, build
from dataplane.stream.opening import producers_at
from dataplane.stream.partition import NotOwner, OutOfRange, Partition
from dataplane.stream.producers import OutOfOrderSequence, ProducerTable, StaleProducerEpoch
from dataplane.stream.reader import ObjectReader
from dataplane.stream.upload import Uploader
from dataplane.wal.base import Done, WalRecord
from dataplane.wal.latency import AckLatency
from providers.base.clock import LoopClock
from providers.base.errors import Corrupt, Fenced, Full, NotFound, OutcomeUnknown
from tests.dataplane.stream.batches import batch, read_back
from tests.sim.virtualtime import run


class HandWal:
    """A WAL whose acks the test gives out by hand."""

    def __init__(self) -> None:
        self.appended: list[tuple[WalRecord, Done]] = []
        self.last_acked = 0
        self.unacked_bytes = self.bytes_used = self.written_bytes = 0
        self.latency = AckLatency()
        self.members = ("volume",)
        self.floor = 1
        self.full = False

    def submit(self, record: WalRecord, done: Done) -> None:
        if self.full:
            raise Full("the WAL is full")
        self.appended.append((record, done))

    def ack(self, count: int = 1) -> None:
        """Ack the next `count` appends, one block each."""
        for _ in range(count):
            self.last_acked += 1
            self.appended[self.last_acked - 1][1](self.last_acked, None)

    async def trim(self, floor: int) -> None:
        self.floor = floor

    async def close(self) -> None:
        pass


class Store:
    """Objects in a dict; counts reads."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        assert if_absent and key not in self.objects
        self.objects[key] = data

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if key not in self.objects:
            raise NotFound(key)
        data = self.objects[key][start:]
        return data if length is None else data[:length]


def stream(start: int = 0, epoch: int = 1) -> Stream:
    return Stream(7, "t", 0, 0, [Span(epoch, 1, 1, start, start)])


class Bench:
    """One partition with everything around it."""

    def __init__(
        self, of: Stream | None = None, producers: ProducerTable | None = None, cache_bytes: int = 1 << 20
    ) -> None:
        self.wal, self.store = HandWal(), Store()
        self.reader = ObjectReader(self.store, 1 << 20)  # type: ignore[arg-type]
        self.stream = of or stream()
        self.partition = Partition(
            self.stream,
            wal=self.wal,
            reader=self.reader,
            budget=CacheBudget(cache_bytes),
            producers=producers or ProducerTable(),
        )
        self.commits: list[tuple[Sequence[CommittedObject], int]] = []
        self.refuse: str | None = None
        self.uploader = Uploader(
            store=self.store,  # type: ignore[arg-type]
            wal=self.wal,
            partitions=lambda: [self.partition],
            commit=self._commit,
            name_prefix="c/objects/me",
            clock=LoopClock(),
            interval_ms=1_000,
            bytes_trigger=1 << 20,
        )
        self.partition.on_acked = self.uploader.acked

    async def _commit(self, objects: Sequence[CommittedObject], floor: int) -> str | None:
        if self.refuse:
            return self.refuse
        self.commits.append((objects, floor))
        for committed in objects:
            for r in committed.ranges:
                self.stream.open.uploaded = r.end
                self.stream.extents.append(Extent(r.start, r.end, committed.name, committed.size))
        return None

    async def append(self, *values: bytes, ack: bool = True, **producer: int) -> asyncio.Task[tuple[int, int, bool]]:
        task = asyncio.create_task(self.partition.append(batch(*values, **producer)))
        await asyncio.sleep(0)
        if ack:
            self.wal.ack()
            await task
        return task


@pytest.fixture
def small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of 4 MiB: large ones are built in a thread, which simulated time does not wait for."""
    monkeypatch.setattr(upload, "OBJECT_BYTES_MAX", 4 << 20)


def test_what_arrives_during_an_upload_waits_for_the_next_however_large_that_one_was(
    small_objects: None,
) -> None:
    async def main() -> None:
        b = Bench()
        commit = b._commit

        async def under_traffic(objects: Sequence[CommittedObject], floor: int) -> str | None:
            if not b.commits:
                await b.append(b"arrived meanwhile")
            return await commit(objects, floor)

        b.uploader._commit = under_traffic
        for _ in range(3):
            await b.append(bytes(1 << 20))
        uploads = asyncio.create_task(b.uploader.run())
        await asyncio.sleep(0.9)  # of simulated time; the interval is a second
        assert len(b.commits) == 1
        await asyncio.sleep(0.2)
        assert len(b.commits) == 2 and b.partition.unuploaded_bytes == 0
        uploads.cancel()

    run(main())


def test_a_backlog_is_uploaded_without_waiting(small_objects: None) -> None:
    async def main() -> None:
        b = Bench()
        for _ in range(10):
            await b.append(bytes(1 << 20))
        uploads = asyncio.create_task(b.uploader.run())
        await asyncio.sleep(0.9)
        assert [committed.size >> 20 for objects, _ in b.commits for committed in objects] == [3, 3, 3]
        uploads.cancel()

    run(main())


def test_a_commit_whose_answer_is_lost_is_asked_again_and_nothing_is_uploaded_twice() -> None:
    async def main() -> None:
        b = Bench()
        await b.append(b"a")
        asked: list[str] = []
        commit = b._commit

        async def lossy(objects: Sequence[CommittedObject], floor: int) -> str | None:
            asked.append(objects[0].name)
            if len(asked) == 1:
                await commit(objects, floor)
                raise OutcomeUnknown("no answer")
            return None  # as a node says of an object that the ledger has

        b.uploader._commit = lossy
        assert await b.uploader.upload_once() > 0
        assert len(asked) == 2 and len(set(asked)) == 1 and len(b.store.objects) == len(b.commits) == 1
        assert b.partition.unuploaded_bytes == 0
        assert await b.uploader.upload_once() == 0

    run(main())


def test_consumers_see_only_what_is_acked() -> None:
    async def main() -> None:
        b = Bench()
        task = await b.append(b"a", b"b", ack=False)
        assert (b.partition.next_offset, b.partition.high_watermark) == (2, 0)
        assert await b.partition.read(0, 1 << 20, minimum_one=True) == b""
        assert not task.done()
        b.wal.ack()
        assert await task == (0, 1, False)
        assert read_back(await b.partition.read(0, 1 << 20, minimum_one=True)) == [(0, b"a"), (1, b"b")]

    run(main())


def test_a_reader_at_the_end_gets_nothing_and_not_the_last_batch_again() -> None:
    async def main() -> None:
        b = Bench()
        await b.append(b"a", b"b")
        assert await b.partition.read(2, 1 << 20, minimum_one=True) == b""
        assert read_back(await b.partition.read(1, 1 << 20, minimum_one=True)) == [(0, b"a"), (1, b"b")]

    run(main())


def test_a_client_that_hangs_up_does_not_stop_the_high_watermark() -> None:
    async def main() -> None:
        b = Bench()
        task = await b.append(b"a", ack=False)
        task.cancel()
        await asyncio.sleep(0)
        b.wal.ack()
        await asyncio.sleep(0)
        assert b.partition.high_watermark == 1

    run(main())


def test_a_full_wal_changes_nothing() -> None:
    async def main() -> None:
        b = Bench()
        b.wal.full = True
        with pytest.raises(Full):
            await b.partition.append(batch(b"a", producer=5, epoch=0, sequence=0))
        b.wal.full = False
        await b.append(b"a", producer=5, epoch=0, sequence=0)
        assert b.partition.high_watermark == 1

    run(main())


def test_a_batch_sent_again_gets_its_first_offsets_and_only_once_durable() -> None:
    async def main() -> None:
        b = Bench()
        first = await b.append(b"a", producer=5, epoch=0, sequence=0, ack=False)
        again = await b.append(b"a", producer=5, epoch=0, sequence=0, ack=False)
        await asyncio.sleep(0.01)
        assert not again.done(), "a repeat must not be acked before the original is durable"
        b.wal.ack()
        assert await first == (0, 0, False)
        assert await again == (0, 0, True)
        assert len(b.wal.appended) == 1

    run(main())


def test_sequences_follow_each_other_within_a_producer_epoch() -> None:
    async def main() -> None:
        b = Bench()
        await b.append(b"a", b"b", producer=5, epoch=1, sequence=0)
        with pytest.raises(OutOfOrderSequence, match="sequence 3 where 2 follows"):
            await b.partition.append(batch(b"x", producer=5, epoch=1, sequence=3))
        with pytest.raises(StaleProducerEpoch):
            await b.partition.append(batch(b"x", producer=5, epoch=0, sequence=0))
        with pytest.raises(OutOfOrderSequence, match="begins its epoch"):
            await b.partition.append(batch(b"x", producer=5, epoch=2, sequence=9))
        await b.append(b"c", producer=5, epoch=1, sequence=2)
        await b.append(b"d", producer=5, epoch=2, sequence=0)
        assert b.partition.high_watermark == 4

    run(main())


def test_an_unknown_producer_begins_with_sequence_0() -> None:
    """Its first batch was refused while the partition was being opened; the second, already under way, must not be
    taken before it, or the first could never be written."""

    async def main() -> None:
        b = Bench()
        with pytest.raises(OutOfOrderSequence, match="is not known here"):
            await b.partition.append(batch(b"second", producer=5, epoch=0, sequence=4))
        await b.append(b"first", producer=5, epoch=0, sequence=0)
        assert len(b.wal.appended) == 1

    run(main())


def test_upload_commits_then_trims_and_history_is_read_back_from_objects() -> None:
    async def main() -> None:
        b = Bench(cache_bytes=1)
        for i in range(5):
            await b.append(b"v%d" % i)
        pending = await b.append(b"late", ack=False)
        assert await b.uploader.upload_once()
        [(objects, floor)] = b.commits
        assert (objects[0].ranges[0].start, objects[0].ranges[0].end) == (0, 5)
        # Block 6 is under way and block 5 is the last heard of: nothing above 5 may be given up.
        assert floor == 5 == b.wal.floor
        b.wal.ack()
        await pending
        assert await b.uploader.upload_once()
        assert b.wal.floor == 7
        assert not await b.uploader.upload_once()
        await b.append(b"evicts")
        data = await b.partition.read(1, 1 << 20, minimum_one=True)
        assert read_back(data)[0] == (1, b"v1")
        everything, offset = [], 0
        while offset < b.partition.high_watermark:
            got = read_back(await b.partition.read(offset, 100, minimum_one=True))
            everything += got
            offset = got[-1][0] + 1
        assert [v for _, v in everything] == [b"v0", b"v1", b"v2", b"v3", b"v4", b"late", b"evicts"]

    run(main())


def test_steady_traffic_makes_one_object_an_interval_and_not_one_a_batch() -> None:
    async def main() -> None:
        b = Bench()
        running = asyncio.create_task(b.uploader.run())
        for i in range(100):
            await b.append(b"v%d" % i)
            await asyncio.sleep(0.05)
        running.cancel()
        assert 4 <= len(b.commits) <= 6, "five seconds, an object a second"

    run(main())


def test_a_refused_commit_stops_the_uploader_and_trims_nothing() -> None:
    async def main() -> None:
        b = Bench()
        await b.append(b"a")
        b.refuse = "broker 1 epoch 1 is fenced"
        with pytest.raises(Fenced, match="is fenced"):
            await b.uploader.upload_once()
        assert b.wal.floor == 1 and b.partition.uploaded == 0

    run(main())


def test_a_flipped_bit_in_any_byte_of_an_object_is_never_served() -> None:
    async def main() -> None:
        made = batch(b"hello", b"world", producer=3, epoch=0, sequence=0)
        table = ProducerTable()
        good = build([Section(7, 0, 2, [(0, 2, 1_001, made)], table.dump())])
        extent = Extent(0, 2, "o", len(good))
        for position in range(len(good)):
            store = Store()
            store.objects["o"] = good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :]
            reader = ObjectReader(store, 1 << 20)  # type: ignore[arg-type]
            try:
                served = b"".join(await reader.blocks(extent, 7, 0, 1 << 20))
                producers = await reader.producers(extent, 7)
            except Corrupt:
                continue
            # What passed every checksum is what was written (a flip in the footer's reserved or producers part may
            # leave the data right).
            assert served == made and producers in (None, table.dump()), position

    run(main())


def test_reads_outside_the_log_are_refused() -> None:
    async def main() -> None:
        b = Bench(stream(start=10))
        b.stream.start = 4
        for offset in (3, 11):
            with pytest.raises(OutOfRange):
                await b.partition.read(offset, 100, minimum_one=True)
        assert await b.partition.read(10, 100, minimum_one=True) == b""

    run(main())


def test_a_frozen_partition_holds_appends_back_until_the_outcome_is_known() -> None:
    async def main() -> None:
        b = Bench()
        under_way = await b.append(b"a", ack=False)
        freezing = asyncio.create_task(b.partition.freeze())
        await asyncio.sleep(0)
        waiting = await b.append(b"b", ack=False)
        assert len(b.wal.appended) == 1 and not freezing.done()
        b.wal.ack()
        assert await freezing == 1
        await under_way
        b.partition.thaw()
        await asyncio.sleep(0)
        assert len(b.wal.appended) == 2
        b.wal.ack()
        await waiting

        await b.partition.freeze()
        held = await b.append(b"c", ack=False)
        b.partition.close(NotOwner("moved"))
        with pytest.raises(NotOwner):
            await held
        assert len(b.wal.appended) == 2, "what waited for a move that happened was never written here"

    run(main())


def test_producers_survive_a_takeover_by_objects_and_a_move_by_the_hand_over() -> None:
    async def main() -> None:
        b = Bench()
        await b.append(b"a", producer=5, epoch=0, sequence=0)
        await b.uploader.upload_once()
        await b.append(b"b", producer=5, epoch=0, sequence=1)
        # What only the WAL held is uploaded by a recoverer, without the producers' state.
        data = b.partition.uploadable(1 << 20)[0][0]
        b.store.objects["r"] = build([Section(7, 1, 2, [(1, 2, 1_000, data.data)], None)])
        b.stream.extents.append(Extent(1, 2, "r", len(b.store.objects["r"])))
        b.stream.spans[0].end = 2
        b.stream.spans.append(Span(2, 2, 1, 2, 2))
        after = await producers_at(b.stream, b.reader)
        assert after.dump() == b.partition.acked_producers().dump()

        moved = stream(start=2, epoch=2)
        moved.handover = {"offset": 2, "producers": b.partition.acked_producers().dump()}
        assert (await producers_at(moved, b.reader)).dump() == after.dump()
        again = Bench(moved, await producers_at(moved, b.reader))
        assert await again.partition.append(batch(b"b", producer=5, epoch=0, sequence=1)) == (1, 1, True)

    run(main())


def test_lookup_by_time_goes_through_objects_and_cache() -> None:
    async def main() -> None:
        b = Bench(cache_bytes=1)
        for i in range(4):
            await b.append(b"v", timestamp=1_000 * (i + 1))  # type: ignore[arg-type]
            if i == 1:
                await b.uploader.upload_once()
        assert await b.partition.offset_for_timestamp(0) == (0, 1_000)
        assert await b.partition.offset_for_timestamp(1_001) == (1, 2_000)
        assert await b.partition.offset_for_timestamp(2_001) == (2, 3_000)
        assert await b.partition.offset_for_timestamp(9_000) is None

    run(main())
