"""What the cache on disk promises: the bucket's answers or none, within its bound, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.ledger.state import Extent
from dataplane.stream import disk_cache, disk_segments
from dataplane.stream.disk_cache import DiskCache
from dataplane.stream.disk_segments import Segments
from dataplane.stream.objects import Section, build
from dataplane.stream.reader import ObjectReader
from tests.dataplane.stream.batches import batch

SIZE = 64 << 20


class Store:
    """Objects in a dict; notes what is read."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[tuple[str, int]] = []

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.reads.append((key, start))
        data = self.objects[key][start:]
        return data if length is None else data[:length]

    def object(self, name: str, blocks: int, size: int, seed: int) -> Extent:
        """An object of one stream, a block a batch."""
        rng = random.Random(seed)
        sections = []
        for at in range(blocks):
            data = batch(rng.randbytes(size))
            sections.append(Section(7, at, at + 1, [(at, at + 1, 1_000, data)], None))
        self.objects[name] = build(sections)
        return Extent(0, blocks, name, len(self.objects[name]))

    def reader(self, disk: DiskCache | None = None) -> ObjectReader:
        """One whose memory holds a block at most."""
        return ObjectReader(self, 1, disk)  # type: ignore[arg-type]


async def everything(reader: ObjectReader, extents: Sequence[Extent]) -> list[bytes]:
    return [block for extent in extents for block in await reader.blocks(extent, 7, 0, 1 << 30)]


async def opened(folder: Path, size: int = SIZE) -> DiskCache:
    cache = DiskCache(folder, size)
    await cache.open()
    return cache


async def written(cache: DiskCache) -> None:
    """All that waited is on the disk."""
    while cache._jobs:
        await asyncio.wait(set(cache._jobs))


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.blocks")}


@pytest.fixture
def world() -> Iterator[tuple[Store, list[Extent]]]:
    store = Store()
    yield store, [store.object(f"c/objects/{n}", 5, 300 * n, n) for n in range(1, 6)]


def test_answers_are_the_buckets_and_it_is_asked_once(tmp_path: Path, world: tuple[Store, list[Extent]]) -> None:
    async def main() -> None:
        store, extents = world
        plain = await everything(store.reader(), extents)
        cache = await opened(tmp_path)
        reader = store.reader(cache)
        assert await everything(reader, extents) == plain
        await written(cache)
        store.reads.clear()
        assert await everything(reader, extents) == plain
        assert store.reads == [] and cache.hits >= 24
        # A restart keeps it; only the indexes are read again.
        await cache.close()
        again = await opened(tmp_path)
        assert await everything(store.reader(again), extents) == plain
        assert len(store.reads) == len(extents) and again.hits == 25
        # What nothing refers to any more is not found.
        reader = store.reader(again)
        reader.forget([extents[0].object])
        await written(again)
        assert await everything(reader, extents) == plain
        assert sum(name == extents[0].object for name, _ in store.reads[len(extents) :]) == 6
        await again.close()

    asyncio.run(main())


def test_a_bit_flipped_anywhere_is_a_miss_and_never_a_wrong_answer(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store()
        extents = [store.object("o", 3, 20, 1), store.object("p", 2, 20, 2)]
        plain = await everything(store.reader(), extents)
        cache = await opened(tmp_path)
        await everything(store.reader(cache), extents)
        await written(cache)
        await cache.close()
        [path] = tmp_path.glob("*.blocks")
        whole = path.read_bytes()
        missed = 0
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            # Damaged while no process had it, and while one has it open.
            for while_open in (False, True):
                for left in tmp_path.glob("*.blocks"):
                    left.unlink()
                path.write_bytes(whole if while_open else damaged)
                cache = await opened(tmp_path)
                if while_open:
                    path.write_bytes(damaged)
                store.reads.clear()
                assert await everything(store.reader(cache), extents) == plain
                missed += len(store.reads) - len(extents)
                await cache.close()
        assert missed > len(whole), "nearly every flip costs a block"

    asyncio.run(main())


def test_a_file_cut_anywhere_keeps_the_blocks_before(tmp_path: Path) -> None:
    first = Segments(tmp_path, SIZE)
    first.open()
    blocks = {("o", at): random.Random(at).randbytes(40 + at) for at in range(6)}
    for key, data in blocks.items():
        first.put(key, data)
    first.close()
    [path] = tmp_path.glob("*.blocks")
    whole = path.read_bytes()
    found_before = len(blocks)
    for length in range(len(whole), -1, -1):
        path.write_bytes(whole[:length])
        segments = Segments(tmp_path, SIZE)
        found = segments.open()
        assert found in (found_before, found_before - 1)
        got = {key: segments.get(key, len(data)) for key, data in blocks.items()}
        assert [got[key] for key in list(blocks)[:found]] == list(blocks.values())[:found]
        assert all(got[key] is None for key in list(blocks)[found:])
        segments.close()
        found_before = found
    assert found_before == 0 and not path.exists(), "what holds nothing is removed"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 32), size=st.sampled_from([2 << 20, 5_000_000]))
def test_its_files_stay_within_the_bound_and_hold_what_was_put(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("bound"), random.Random(seed)
    segments = Segments(folder, size)
    segments.open()
    put: dict[tuple[str, int], bytes] = {}
    for _ in range(300):
        key = (f"o{rng.randrange(20)}", rng.randrange(40))
        data = put.setdefault(key, rng.randbytes(rng.choice([10, 5_000, 60_000, 70_000])))
        got = segments.get(key, len(data))
        assert got in (None, data)
        if got is None:
            segments.put(key, data)
        if rng.random() < 0.02:
            segments.forget({key[0]})
            assert key not in segments
        if rng.random() < 0.02:
            segments.close()
            segments = Segments(folder, size)
            segments.open()
        on_disk = files(folder)
        assert sum(on_disk.values()) == segments.bytes_held <= size
        assert len(on_disk) <= disk_segments.SEGMENTS_MAX + 1
    segments.close()


def test_what_is_read_again_and_again_outlives_what_is_read_once(tmp_path: Path) -> None:
    segments = Segments(tmp_path, 4 << 20)
    segments.open()
    hot = {("hot", at): bytes([at]) * 10_000 for at in range(5)}
    for key, data in hot.items():
        segments.put(key, data)
    for cold in range(2_000):  # 20 MB pass through
        segments.put(("cold", cold), bytes(10_000))
        if cold % 50 == 0:
            for key in hot:
                segments.get(key, 10_000)
    assert all(segments.get(key, 10_000) == data for key, data in hot.items())
    assert sum(("cold", cold) in segments for cold in range(2_000)) < 420
    segments.close()


def test_a_smaller_bound_after_a_restart_is_kept(tmp_path: Path) -> None:
    segments = Segments(tmp_path, 8 << 20)
    segments.open()
    for at in range(500):
        segments.put(("o", at), bytes(10_000))
    segments.close()
    smaller = Segments(tmp_path, 2 << 20)
    smaller.open()
    assert sum(files(tmp_path).values()) <= 2 << 20
    smaller.put(("new", 0), b"x")
    assert smaller.get(("new", 0), 1) == b"x"
    smaller.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["pwritev", "pread"])
def test_a_disk_that_is_full_or_errs_turns_it_off_with_one_line(
    tmp_path: Path,
    world: tuple[Store, list[Extent]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    call: str,
) -> None:
    async def main() -> None:
        store, extents = world
        plain = await everything(store.reader(), extents)
        cache = await opened(tmp_path)
        reader = store.reader(cache)
        await everything(reader, extents[:2])
        await written(cache)
        assert files(tmp_path)

        def fails(*_: Any) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(disk_segments.os, call, fails)
        assert await everything(reader, extents) == plain
        await written(cache)
        assert await everything(reader, extents) == plain
        assert not cache.on
        monkeypatch.undo()
        assert await everything(reader, extents) == plain
        await cache.close()
        assert not files(tmp_path), "a full disk gets its room back"

    caplog.set_level(logging.INFO)
    asyncio.run(main())
    said = [record for record in caplog.records if record.message == "disk-cache-off"]
    assert len(said) == 1 and os.strerror(code) in said[0].error  # type: ignore[attr-defined]


def test_a_write_that_the_disk_takes_in_part_turns_it_off(
    tmp_path: Path, world: tuple[Store, list[Extent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store, extents = world
        cache = await opened(tmp_path)
        monkeypatch.setattr(disk_segments.os, "pwritev", lambda fd, parts, at: os.pwrite(fd, parts[0], at))
        reader = store.reader(cache)
        assert await everything(reader, extents) == await everything(store.reader(), extents)
        await written(cache)
        assert not cache.on
        await cache.close()

    asyncio.run(main())


def test_a_disk_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, world: tuple[Store, list[Extent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "TIMEOUT_S", 0.2)
    thaw = threading.Event()

    async def main() -> None:
        store, extents = world
        cache = await opened(tmp_path)
        reader = store.reader(cache)
        plain = await everything(reader, extents)
        await written(cache)
        real = Segments.get

        def hangs(self: Segments, key: tuple[str, int], size: int) -> bytes | None:
            thaw.wait(30)
            return real(self, key, size)

        monkeypatch.setattr(Segments, "get", hangs)
        async with asyncio.timeout(2):
            assert await everything(reader, extents) == plain
        assert not cache.on
        async with asyncio.timeout(2):
            await cache.close()

    try:
        asyncio.run(main())
    finally:
        thaw.set()


def test_a_disk_slower_than_the_bucket_keeps_little_waiting(
    tmp_path: Path, world: tuple[Store, list[Extent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "PENDING_BYTES_MAX", 3_000)
    thaw, real = threading.Event(), Segments.put

    def slow(self: Segments, key: tuple[str, int], data: bytes) -> None:
        thaw.wait(30)
        real(self, key, data)

    async def main() -> None:
        store, extents = world
        monkeypatch.setattr(Segments, "put", slow)
        cache = await opened(tmp_path)
        assert await everything(store.reader(cache), extents) == await everything(store.reader(), extents)
        assert 0 < cache._pending_bytes <= 3_000
        thaw.set()
        await written(cache)
        assert cache._pending_bytes == 0 and cache.on and 0 < cache.bytes_held < 4_000
        await cache.close()

    asyncio.run(main())


def test_a_folder_has_one_process_and_only_its_own_files_are_touched(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "mine.txt").write_text("not the cache's")
        (tmp_path / "target").write_bytes(b"precious")
        first = await opened(tmp_path / "cache")
        first.put("o", 0, b"block")
        await written(first)
        second = await opened(tmp_path / "cache")
        assert first.on and not second.on
        second.put("o", 1, b"more")
        assert await second.get("o", 0, 5) is None
        await second.close()
        assert await first.get("o", 0, 5) == b"block", "the first has lost nothing by it"
        await first.close()
        # A link in place of a file is not followed.
        (tmp_path / "cache" / "00000009.blocks").symlink_to(tmp_path / "target")
        third = await opened(tmp_path / "cache")
        assert not third.on and (tmp_path / "target").read_bytes() == b"precious"
        await third.close()
        assert (tmp_path / "cache" / "mine.txt").exists()
        nowhere = await opened(tmp_path / "target" / "below a file")
        assert not nowhere.on
        await nowhere.close()

    asyncio.run(main())
