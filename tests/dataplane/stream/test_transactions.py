"""Transactions in one stream: what readers of committed records see, through moves, takeovers and uploads."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from aiokafka.record.control_record import ABORT_MARKER, COMMIT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch

from dataplane.ledger.state import Extent, Span
from dataplane.stream import transactions
from dataplane.stream.merge import Merge
from dataplane.stream.objects import Section, build
from dataplane.stream.opening import producers_at
from dataplane.stream.producers import StaleProducerEpoch
from dataplane.stream.transactions import InvalidTransaction, Marker, encode_marker, parse_marker
from tests.dataplane.stream.batches import batch, read_back
from tests.dataplane.stream.test_partition import Bench, stream
from tests.sim.virtualtime import run


class Producing(Bench):
    """A partition that transactional producers write to; every transaction gets the next round."""

    def allow(self, producer: int, number: int, epoch: int = 0) -> None:
        self.partition.admitted_producers().transactions.allow(producer, epoch, number)

    async def write(self, producer: int, sequence: int, value: bytes = b"v", epoch: int = 0, ack: bool = True) -> None:
        await self.append(value, producer=producer, epoch=epoch, sequence=sequence, ack=ack, transactional=True)

    async def end(self, producer: int, number: int, *, commit: bool, epoch: int = 0) -> int:
        """Offset of the marker."""
        marker = encode_marker(producer, epoch, Marker(commit, 1, number), 1_000)
        before = len(self.wal.appended)
        task = asyncio.create_task(self.partition.append(marker))
        await asyncio.sleep(0)
        if len(self.wal.appended) > before:
            self.wal.ack()
        return (await task)[0]

    def committed(self, offset: int) -> list[tuple[int, bytes]]:
        """Data records at or beyond `offset` that a reader of committed records is given, aborted ones included."""
        found = self.partition.read_cached(offset, 1 << 20, minimum_one=True, committed=True)
        assert found is not None
        data = [bytes(b) for b in found if not b[22] & 0x20]
        return read_back(b"".join(data))


def test_readers_of_committed_records_wait_for_the_marker() -> None:
    async def main() -> None:
        b = Producing()
        await b.append(b"plain")
        b.allow(5, 1)
        await b.write(5, 0, b"in")
        await b.append(b"behind")
        assert b.partition.last_stable_offset == 1
        assert b.committed(0) == [(0, b"plain")]
        assert b.committed(2) == []
        cached = b.partition.read_cached(0, 1 << 20, minimum_one=True)
        assert cached is not None and len(read_back(b"".join(map(bytes, cached)))) == 3
        assert await b.end(5, 1, commit=True) == 3
        assert b.partition.last_stable_offset == 4
        assert b.committed(0) == [(0, b"plain"), (1, b"in"), (2, b"behind")]
        assert b.partition.aborted_known(0, 4) == []

    run(main())


def test_an_aborted_transaction_is_named_to_readers_with_its_first_offset() -> None:
    async def main() -> None:
        b = Producing()
        b.allow(5, 1)
        await b.write(5, 0)
        await b.append(b"plain")
        await b.write(5, 1)
        await b.end(5, 1, commit=False)
        assert await b.partition.aborted(0, 4) == [(5, 0, 3)]
        assert await b.partition.aborted(3, 4) == [(5, 0, 3)]
        assert await b.partition.aborted(4, 9) == []

    run(main())


def test_a_marker_sent_again_is_written_once_and_ends_no_later_transaction() -> None:
    async def main() -> None:
        b = Producing()
        b.allow(5, 1)
        await b.write(5, 0)
        assert await b.end(5, 1, commit=True) == 1
        b.allow(5, 2)
        await b.write(5, 1)
        assert await b.end(5, 1, commit=True) == 1, "answered with the offset of the first"
        assert b.partition.high_watermark == 3 and b.partition.last_stable_offset == 2
        assert await b.end(5, 2, commit=False) == 3

    run(main())


def test_no_batch_opens_a_transaction_that_the_coordinator_does_not_know_or_that_is_over() -> None:
    async def main() -> None:
        b = Producing()
        with pytest.raises(InvalidTransaction):
            await b.partition.append(batch(b"v", producer=5, epoch=0, sequence=0, transactional=True))
        b.allow(5, 1)
        await b.end(5, 1, commit=False)  # the batch is late: its transaction was aborted meanwhile
        b.allow(5, 1)
        with pytest.raises(InvalidTransaction):
            await b.partition.append(batch(b"v", producer=5, epoch=0, sequence=0, transactional=True))
        assert b.partition.last_stable_offset == b.partition.high_watermark == 1

    run(main())


def test_a_marker_with_a_newer_epoch_fences_the_zombie_that_it_ended() -> None:
    async def main() -> None:
        b = Producing()
        b.allow(5, 1)
        await b.write(5, 0)
        await b.end(5, 1, commit=False, epoch=1)
        b.allow(5, 2)
        with pytest.raises(StaleProducerEpoch):
            await b.partition.append(batch(b"z", producer=5, epoch=0, sequence=1, transactional=True))

    run(main())


def test_a_marker_is_kafkas_own_control_record() -> None:
    for commit, expected in ((True, COMMIT_MARKER), (False, ABORT_MARKER)):
        made = encode_marker(5, 3, Marker(commit, 7, 9), 1_000)
        read = DefaultRecordBatch(bytearray(made))
        assert read.validate_crc() and read.is_control_batch and read.is_transactional
        assert (read.producer_id, read.producer_epoch, read.base_sequence) == (5, 3, -1)
        [record] = list(read)
        assert ControlRecord.parse(record.key) == expected
        assert parse_marker(made) == Marker(commit, 7, 9)


@dataclass
class Model:
    """What truly happened, kept by the test alone: every transaction's producer, first offset, and end."""

    open: dict[int, int] = field(default_factory=dict)
    aborted: list[tuple[int, int, int]] = field(default_factory=list)

    def stable(self, end: int) -> int:
        return min(self.open.values(), default=end)


@pytest.mark.parametrize("seed", range(30))
def test_aborts_and_open_transactions_survive_moves_takeovers_and_uploads(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "ABORTED_KEPT", 2)
    rng = random.Random(seed)

    async def main() -> None:
        b, model, epoch = Producing(), Model(), 1
        rounds = dict.fromkeys(range(4), 0)
        sequences = dict.fromkeys(range(4), 0)
        for step in range(120):
            p = rng.randrange(4)
            match rng.choices(["write", "end", "upload", "move", "takeover", "compact"], [8, 5, 3, 1, 1, 1])[0]:
                case "write":
                    if p not in model.open:
                        rounds[p] += 1
                        b.allow(p, rounds[p])
                        model.open[p] = b.partition.high_watermark
                    await b.write(p, sequences[p])
                    sequences[p] += 1
                case "end" if p in model.open:
                    commit = rng.random() < 0.3
                    at = await b.end(p, rounds[p], commit=commit)
                    first = model.open.pop(p)
                    if not commit:
                        model.aborted.append((p, first, at))
                case "upload":
                    await b.uploader.upload_once()
                case "compact" if len(b.stream.extents) > 2:
                    await compact(b, rng, step)
                case "move" | "takeover" as how:
                    epoch += 1
                    b = await succeed(b, how, epoch, step)
            end = b.partition.high_watermark
            assert b.partition.last_stable_offset == model.stable(end)
            low = rng.randrange(end + 1)
            high = rng.randrange(low, end + 1)
            expected = [a for a in model.aborted if a[2] >= low and a[1] < high]
            assert sorted(await b.partition.aborted(low, high)) == sorted(expected), f"step {step}"
            if (known := b.partition.aborted_known(low, high)) is not None:
                assert sorted(known) == sorted(expected)

    run(main())


async def compact(b: Bench, rng: random.Random, step: int) -> None:
    """Two neighbouring parts become one, as the owner merges them."""

    async def pace(size: int) -> None:
        pass

    i = rng.randrange(len(b.stream.extents) - 1)
    pair = b.stream.extents[i : i + 2]
    if pair[0].end != pair[1].start:
        return
    merge = Merge(b.reader, 7, pair, 0, pace)
    name = f"compacted-{step}"
    b.store.objects[name] = b"".join([chunk async for chunk in merge.chunks()])
    b.stream.extents[i : i + 2] = [Extent(pair[0].start, pair[1].end, name, merge.size)]


async def succeed(b: Producing, how: str, epoch: int, step: int) -> Producing:
    """The next owner of the same stream: by a planned move, or after a crash."""
    end = b.partition.high_watermark
    old = b.stream
    if how == "move":
        old.handover = {"offset": end, "producers": b.partition.acked_producers().dump()}
        uploaded = old.open.uploaded
        old.open.end = end
        old.spans.append(Span(epoch, 1, 1, end, end))
        producers = await producers_at(old, b.reader)  # before the remainder is uploaded
        old.spans[-1], moved = old.spans[-2], old.spans[-1]
        if uploaded < end:
            await b.uploader.upload_once()
        old.spans[-1] = moved
    else:
        if old.open.uploaded < end:
            batches = b.partition.uploadable(1 << 20)[0]
            name, start = f"recovered-{step}", old.open.uploaded
            section = Section(7, start, end, [(c.base, c.end, 1_000, c.data) for c in batches], None)
            b.store.objects[name] = build([section])
            old.extents.append(Extent(start, end, name, len(b.store.objects[name])))
        old.open.end = end
        old.spans.append(Span(epoch, 1, 1, end, end))
        producers = await producers_at(old, b.reader)
    new = stream(start=end, epoch=epoch)
    new.spans, new.extents, new.handover = [old.spans[-1]], old.extents, old.handover
    successor = Producing(new, producers)
    successor.store.objects = b.store.objects
    successor.uploader._name_prefix = f"c/objects/{epoch}"
    return successor
