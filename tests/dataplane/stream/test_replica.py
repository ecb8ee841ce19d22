"""What a broker reads of a stream that another one owns: what objects hold and no more, and of transactions the same
that the owner says.
"""

from __future__ import annotations

import random

import pytest

from dataplane.ledger.state import Extent, Span, Stream
from dataplane.stream import transactions, upload
from dataplane.stream.partition import OutOfRange
from dataplane.stream.reader import ObjectReader
from dataplane.stream.replica import Replica
from tests.dataplane.stream.batches import read_back
from tests.dataplane.stream.test_transactions import Producing
from tests.sim.virtualtime import run


def replica(bench: Producing) -> Replica:
    """With caches of its own, as another broker has."""
    return Replica(lambda: bench.stream, ObjectReader(bench.store, 1 << 20))  # type: ignore[arg-type]


def test_only_what_is_in_objects_is_there() -> None:
    async def main() -> None:
        b = Producing()
        r = replica(b)
        await b.append(b"one", b"two")
        assert (r.end(0), r.high_watermark, await r.read(0, 1 << 20, 0, minimum_one=True)) == (0, 0, b"")
        await b.uploader.upload_once()
        await b.append(b"three")
        await b.append(b"not acked", ack=False)
        assert (r.end(0), r.end(1), r.end(2), r.high_watermark) == (2, 2, 2, 2)
        assert read_back(await r.read(0, 1 << 20, 2, minimum_one=True)) == [(0, b"one"), (1, b"two")]
        await b.uploader.upload_once()
        assert r.end(0) == 3, "of what was appended meanwhile, what is acked"

    run(main())


def test_a_gap_that_a_former_owner_still_owes_ends_what_is_there() -> None:
    spans = [Span(1, 1, 1, 0, 5, 10), Span(2, 2, 1, 10, 14)]
    stream = Stream(1, "t", 0, 3, spans, [Extent(3, 5, "a", 100), Extent(10, 12, "b", 100), Extent(12, 14, "c", 100)])
    r = Replica(lambda: stream, None)  # type: ignore[arg-type]
    assert [r.end(offset) for offset in (3, 4, 5, 9, 10, 13, 14, 20)] == [5, 5, 5, 9, 14, 14, 14, 20]
    assert (r.start_offset, r.high_watermark, r.epoch) == (3, 14, 2)


def test_below_the_start_nothing_is_read() -> None:
    async def main() -> None:
        b = Producing()
        await b.append(b"one")
        await b.append(b"two")
        await b.uploader.upload_once()
        b.stream.start = 1
        with pytest.raises(OutOfRange):
            await replica(b).read(0, 1 << 20, 2, minimum_one=True)

    run(main())


def test_how_much_lies_ahead_is_counted_as_far_as_it_matters() -> None:
    async def main() -> None:
        b = Producing()
        r = replica(b)
        for _ in range(3):
            await b.append(bytes(1_000))
            await b.append(bytes(1_000))
            await b.uploader.upload_once()
        whole = await r.bytes_ahead(0, 1 << 20)
        assert 6_000 < whole < 7_000
        assert await r.bytes_ahead(6, 1 << 20) == 0
        assert 2_000 < await r.bytes_ahead(4, 1 << 20) < whole / 2
        assert await r.bytes_ahead(0, 3_000) == 3_000
        for _ in range(4):
            await b.append(b"x")
            await b.uploader.upload_once()
        assert await r.bytes_ahead(0, 1 << 20) == 1 << 20, "many extents are taken for much"

    run(main())


@pytest.mark.parametrize("seed", range(30))
def test_what_is_decided_of_transactions_is_what_the_owner_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Producers begin, write, commit and abort at random; uploads come at random, some too small to take all."""
    monkeypatch.setattr(transactions, "ABORTED_KEPT", 2)

    async def main() -> None:
        rng = random.Random(seed)
        b = Producing()
        r = replica(b)
        rounds = dict.fromkeys((5, 6, 7), 0)
        sequences = dict.fromkeys(rounds, 0)
        opened: set[int] = set()
        seen_far = False
        for _ in range(120):
            producer = rng.choice(list(rounds))
            match rng.randrange(6):
                case 0:
                    await b.append(b"plain")
                case 1 | 2:
                    if producer not in opened:
                        opened.add(producer)
                        rounds[producer] += 1
                        b.allow(producer, rounds[producer])
                    await b.write(producer, sequences[producer])
                    sequences[producer] += 1
                case 3 | 4 if producer in opened:
                    opened.discard(producer)
                    await b.end(producer, rounds[producer], commit=rng.random() < 0.5)
                case _:
                    monkeypatch.setattr(upload, "OBJECT_BYTES_MAX", rng.choice((1, 200, 4 << 20)))
                    await b.uploader.upload_once()
            start = rng.randint(0, b.partition.high_watermark)
            end = await r.stable_end(start)
            assert start <= end <= max(start, min(r.end(start), b.partition.last_stable_offset))
            seen_far |= end > start + 5
            if end > start:
                assert await r.aborted(start, end) == await b.partition.aborted(start, end)
        assert seen_far

    run(main())
