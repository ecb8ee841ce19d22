"""Compaction of objects: what is merged and how often, and that nothing a reader may want is lost by it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.ledger.state import Extent
from dataplane.stream.compaction import BYTES_MIN, EXTENTS_MAX, FANOUT, FINAL_BYTES, OBJECT_BYTES_MAX, pick, runs
from dataplane.stream.merge import Merge, store
from dataplane.stream.objects import Section, build
from dataplane.stream.opening import producers_at
from providers.base.clock import LoopClock
from providers.base.errors import AlreadyExists, Corrupt, NotFound, OutcomeUnknown, Unavailable
from tests.dataplane.stream.batches import batch, read_back
from tests.dataplane.stream.test_partition import Bench, Store
from tests.sim.virtualtime import run

MIB = 1 << 20


# ── what is merged ───────────────────────────────────────────────────────────────────────────────────────────────────


def grow(sizes: list[int]) -> tuple[list[int], int]:
    """A stream that gets extents of these sizes, compacted after each: what it then has, and the bytes rewritten."""
    held: list[int] = []
    rewritten = 0
    for size in sizes:
        held.append(size)
        while True:
            extents = [Extent(i, i + 1, f"o{i}", held_size) for i, held_size in enumerate(held)]
            for part in runs(extents):
                chosen = pick([e.size for e in part])
                if chosen is not None:
                    first = part[chosen][0].start
                    count = len(part[chosen])
                    break
            else:
                break
            total = sum(held[first : first + count])
            assert count > 1 and total <= OBJECT_BYTES_MAX
            rewritten += total
            held[first : first + count] = [total]
    return held, rewritten


@pytest.mark.parametrize("size", [1 << 10, 100 << 10, 2 * MIB, 20 * MIB, 32 * MIB])
def test_a_steady_stream_ends_in_few_large_objects_and_no_byte_is_rewritten_more_than_a_few_times(size: int) -> None:
    count = 1_500
    held, rewritten = grow([size] * count)
    assert len(held) <= size * count // FINAL_BYTES + 2 * EXTENTS_MAX
    assert rewritten <= 3 * size * count


def test_large_objects_between_small_ones_are_not_rewritten_with_each_of_them() -> None:
    held, rewritten = grow([FINAL_BYTES, 1 << 10] * 50)
    assert rewritten == 0 and len(held) == 100
    held, rewritten = grow([3 * MIB, 1 << 10] * 200)
    assert len(held) < 70 and rewritten < 3 * 600 * MIB


@given(st.lists(st.integers(1, OBJECT_BYTES_MAX), max_size=60))
def test_what_is_merged_is_much_larger_than_its_largest_part_or_final(sizes: list[int]) -> None:
    chosen = pick(sizes)
    if chosen is None:
        return
    part = sizes[chosen]
    assert len(part) > 1 and sum(part) <= OBJECT_BYTES_MAX
    assert sum(part) >= FINAL_BYTES or (sum(part) >= BYTES_MIN and sum(part) >= FANOUT * max(part))


def test_nothing_is_merged_over_a_gap_that_a_former_owner_may_still_fill() -> None:
    extents = [Extent(0, 5, "a", 10), Extent(5, 9, "b", 10), Extent(12, 20, "c", 10), Extent(20, 30, "d", 10)]
    assert [[e.object for e in r] for r in runs(extents)] == [["a", "b"], ["c", "d"]]


# ── the merge ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Pieces(Store):
    """Also takes streams, and says how much was asked for at once."""

    largest = 0

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if key in self.objects:
            raise AlreadyExists(key)
        await super().put(key, data, if_absent=if_absent)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data = await super().get(key, start=start, length=length)
        self.largest = max(self.largest, len(data))
        return data

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        data = b""
        async for chunk in chunks:
            self.largest = max(self.largest, len(chunk))
            data += chunk
        await self.put(key, data, if_absent=if_absent)


async def no_pace(size: int) -> None:
    pass


def bench() -> Bench:
    b = Bench(cache_bytes=1)
    b.store = Pieces()
    b.reader._store = b.store  # type: ignore[assignment]
    b.uploader._store = b.store  # type: ignore[assignment]
    return b


async def merged(b: Bench, extents: list[Extent], start: int = 0) -> Extent:
    """Merge, and show it as the ledger would."""
    merge = Merge(b.reader, b.stream.id, extents, start, no_pace)
    await store(b.store, "c/merged", merge, LoopClock())  # type: ignore[arg-type]
    assert merge.size == len(b.store.objects["c/merged"])
    made = Extent(extents[0].start, extents[-1].end, "c/merged", merge.size)
    at = b.stream.extents.index(extents[0])
    b.stream.extents[at : at + len(extents)] = [made]
    return made


async def everything(b: Bench, offset: int = 0) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while offset < b.partition.high_watermark:
        got = read_back(await b.partition.read(offset, 300, minimum_one=True))
        found += got
        offset = got[-1][0] + 1
    return found


def test_a_merged_stream_reads_as_before_from_every_offset_and_timestamp() -> None:
    async def main() -> None:
        b = bench()
        rng = random.Random(3)
        for i in range(40):
            values = [rng.randbytes(rng.choice([10, 5_000])) for _ in range(rng.randint(1, 4))]
            await b.append(*values, timestamp=1_000 + 10 * i)
            if rng.random() < 0.4:
                await b.uploader.upload_once()
        await b.uploader.upload_once()
        await b.append(b"evicts")
        before = await everything(b)
        times = {t: await b.partition.offset_for_timestamp(t) for t in range(990, 1_420, 5)}
        extents = list(b.stream.extents)
        assert len(extents) > 5
        await merged(b, extents[1:-1])
        for extent in extents[1:-1]:
            del b.store.objects[extent.object]
        b.reader.forget({e.object for e in extents})
        assert await everything(b) == before
        for offset in range(b.partition.high_watermark):
            assert read_back(await b.partition.read(offset, 1, minimum_one=True))[-1][0] >= offset
        assert {t: await b.partition.offset_for_timestamp(t) for t in times} == times

    run(main())


def test_producers_are_known_after_a_merge_of_objects_of_which_only_the_first_tells_them() -> None:
    async def main() -> None:
        b = bench()
        await b.append(b"a", producer=5, epoch=0, sequence=0)
        await b.uploader.upload_once()
        table = b.partition.acked_producers().copy()
        at = 1
        for sequence in (1, 2):
            # As a recoverer writes them: without the producers' state.
            data = bytearray(batch(b"r", producer=5, epoch=0, sequence=sequence))
            data[0:8] = at.to_bytes(8, "big")
            name = f"r{sequence}"
            b.store.objects[name] = build([Section(7, at, at + 1, [(at, at + 1, 1_000, bytes(data))], None)])
            b.stream.extents.append(Extent(at, at + 1, name, len(b.store.objects[name])))
            at += 1
        b.stream.open.start = at
        before = await producers_at(b.stream, b.reader)
        assert before.dump() != table.dump()
        b.stream.start = 1
        await merged(b, list(b.stream.extents), start=1)
        assert (await producers_at(b.stream, b.reader)).dump() == before.dump()

    run(main())


def test_a_merge_holds_a_piece_at_a_time() -> None:
    async def main() -> None:
        b = bench()
        for _ in range(3):
            for _ in range(7):  # not so large that it would be built in a thread
                await b.append(bytes(MIB))
            await b.uploader.upload_once()
        assert isinstance(b.store, Pieces)
        b.store.largest = 0
        await merged(b, list(b.stream.extents))
        assert len(b.store.objects["c/merged"]) > 21 * MIB
        assert b.store.largest < 6 * MIB

    run(main())


def test_a_damaged_block_stops_the_merge_and_nothing_is_stored() -> None:
    async def main() -> None:
        b = bench()
        for i in range(3):
            await b.append(b"%d" % i * 100)
            await b.uploader.upload_once()
        name = b.stream.extents[1].object
        data = b.store.objects[name]
        b.store.objects[name] = data[:70] + bytes([data[70] ^ 1]) + data[71:]
        merge = Merge(b.reader, b.stream.id, b.stream.extents, 0, no_pace)
        with pytest.raises(Corrupt):
            await store(b.store, "c/merged", merge, LoopClock())  # type: ignore[arg-type]
        assert "c/merged" not in b.store.objects

    run(main())


def test_a_lost_answer_to_the_put_is_asked_again_and_the_size_is_right() -> None:
    class Lossy(Pieces):
        puts = 0

        async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
            self.puts += 1
            if self.puts == 1:
                self.objects[key] = data
                raise OutcomeUnknown("no answer")
            await super().put(key, data, if_absent=if_absent)

    async def main() -> None:
        b = bench()
        for i in range(3):
            await b.append(b"%d" % i)
            await b.uploader.upload_once()
        lossy = Lossy()
        lossy.objects = b.store.objects
        b.store = lossy
        await merged(b, list(b.stream.extents))
        await b.append(b"evicts")
        assert [value for _, value in await everything(b)] == [b"0", b"1", b"2", b"evicts"]

    run(main())


# ── readers meanwhile ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["read", "time", "newest"])
def test_a_reader_whose_object_vanishes_goes_on_with_the_one_that_replaced_it(what: str) -> None:
    class Vanishing(Pieces):
        gone: dict[str, Extent]
        b: Bench

        async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
            if key in self.gone:
                self.gone = {}
                self.b.stream.extents[:] = [Extent(0, 3, "c/merged", len(self.objects["c/merged"]))]
                raise NotFound(key)
            return await super().get(key, start=start, length=length)

    async def main() -> None:
        b = bench()
        for i in range(3):
            await b.append(b"v%d" % i, timestamp=1_000 + i)
            await b.uploader.upload_once()
        await b.append(b"evicts", timestamp=2_000)
        extents = list(b.stream.extents)
        await merged(b, extents)
        b.stream.extents[:] = extents
        vanishing = Vanishing()
        vanishing.objects, vanishing.b, vanishing.gone = b.store.objects, b, {extents[1].object: extents[1]}
        b.reader._store = vanishing  # type: ignore[assignment]
        if what == "read":
            assert read_back(await b.partition.read(1, 1, minimum_one=True)) == [(1, b"v1")]
        elif what == "time":
            assert await b.partition.offset_for_timestamp(1_002) == (2, 1_002)
        else:
            assert await b.partition.newest() == (3, 2_000)

    run(main())


def test_a_reader_in_a_hole_at_an_object_s_end_goes_on_in_the_next_one_and_in_memory() -> None:
    async def main() -> None:
        b = bench()
        await b.append(b"0", b"1")
        await b.append(b"2")
        await b.uploader.upload_once()
        first = (await b.reader.blocks(b.stream.extents[0], 7, 0, 1 << 20))[0]
        only = build([Section(7, 0, 3, [(0, 3, 1_000, first[: len(batch(b"0", b"1"))])], None)])
        b.store.objects["hole"] = only
        b.stream.extents[:] = [Extent(0, 3, "hole", len(only))]
        await b.append(b"3")
        assert read_back(await b.partition.read(2, 100, minimum_one=True)) == [(3, b"3")]
        await b.uploader.upload_once()
        await b.append(b"4")
        assert read_back(await b.partition.read(2, 100, minimum_one=True)) == [(3, b"3")]

    run(main())


def test_an_object_that_is_missing_though_the_ledger_names_it_is_an_error_and_not_the_end_of_the_log() -> None:
    async def main() -> None:
        b = bench()
        await b.append(b"a")
        await b.uploader.upload_once()
        await b.append(b"evicts")
        b.store.objects.clear()
        for asked in (b.partition.read(0, 100, minimum_one=True), b.partition.offset_for_timestamp(0)):
            with pytest.raises(Unavailable, match="missing"):
                await asked

    run(main())
