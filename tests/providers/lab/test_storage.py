"""The lab's storage core: what it promises to every dialect above it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import crc32c
import pytest
from fastcrc import crc64

from providers.base.clock import SystemClock
from providers.base.errors import AlreadyExists, Conflict, Invalid, NotFound, WrongOffset, YunheError
from providers.lab.storage import Meta, Storage
from providers.lab.storage_files import BLOCK_BYTES, Spool
from providers.lab.storage_payload import Payload

SMALL_SEGMENT_BYTES = 2 << 20


class SteppedClock(SystemClock):
    """The wall clock stands where it was put."""

    now_ms = 1_800_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Storage]:
    made = Storage(tmp_path / "objects")
    made.create_bucket("b")
    yield made
    made.close()


def content(core: Storage, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join(core.open("b", key, start, length)[1].pieces())


def check_sums(meta: Meta, data: bytes) -> None:
    assert (meta.size, meta.crc32, meta.crc32c, meta.crc64) == (
        len(data),
        zlib.crc32(data),
        crc32c.crc32c(data),
        crc64.xz(data),
    )


def test_payload_knows_its_digests() -> None:
    data = os.urandom(5000)
    payload = Payload(data)
    assert (payload.size, payload.crc32, payload.crc32c) == (5000, zlib.crc32(data), crc32c.crc32c(data))
    assert payload.crc64 == crc64.xz(data)
    assert (payload.md5(), payload.sha256()) == (hashlib.md5(data).digest(), hashlib.sha256(data).digest())
    assert payload.read(10, 20) == data[10:30]
    part = payload.slice(7, 100)
    assert (part.read(), part.crc32c) == (data[7:107], crc32c.crc32c(data[7:107]))


def test_parts_are_joined_in_the_order_of_the_completion_and_seen_only_then(core: Storage) -> None:
    pieces = {number: os.urandom(1000 + number) for number in (1, 2, 7)}
    upload = core.begin_upload("b", "k", attributes={"content-type": "text/x"})
    core.put_part("b", upload, 2, b"an earlier one with the same number")
    for number, piece in reversed(pieces.items()):
        check_sums(core.put_part("b", upload, number, Payload(piece)), piece)
    core.put_part("b", upload, 9, b"a part that is not named")
    assert [(number, meta.size) for number, meta in core.parts("b", upload)] == [
        (1, 1001),
        (2, 1002),
        (7, 1007),
        (9, 24),
    ]
    assert not core.contains("b", "k") and core.list("b", "", limit=10) == ([], False)
    meta = core.complete_upload("b", upload, [1, 2, 7])
    whole = pieces[1] + pieces[2] + pieces[7]
    check_sums(meta, whole)
    check_sums(core.head("b", "k"), whole)
    assert core.head("b", "k").attributes == {"content-type": "text/x"}
    assert content(core, "k") == whole
    assert content(core, "k", 990, 1030) == whole[990:2020]
    for gone in (core.parts, core.abort_upload):
        with pytest.raises(NotFound) as caught:
            gone("b", upload)
        assert caught.value.fields["upload"] == upload


def test_completion_with_a_part_that_is_not_there_changes_nothing(core: Storage) -> None:
    upload = core.begin_upload("b", "k")
    core.put_part("b", upload, 1, b"one")
    with pytest.raises(Invalid) as caught:
        core.complete_upload("b", upload, [1, 2])
    assert caught.value.fields["code"] == "InvalidPart"
    assert not core.contains("b", "k") and [number for number, _ in core.parts("b", upload)] == [1]


def test_of_completions_and_puts_if_absent_one_wins(core: Storage) -> None:
    uploads = [core.begin_upload("b", "k") for _ in range(4)]
    for upload in uploads:
        core.put_part("b", upload, 1, upload.encode())

    def complete(upload: str) -> str:
        core.complete_upload("b", upload, [1], if_absent=True)
        return upload

    def put(upload: str) -> str:
        core.put("b", "k", upload.encode() + b"put", if_absent=True)
        return upload + "put"

    won = []
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(act, upload) for upload in uploads for act in (complete, put)]:
            try:
                won.append(future.result())
            except AlreadyExists:
                pass
    assert len(won) == 1 and content(core, "k") == won[0].encode()


def test_uploads_are_listed_with_their_start_and_survive_a_restart(core: Storage, tmp_path: Path) -> None:
    first, second = core.begin_upload("b", "x/1"), core.begin_upload("b", "x/2")
    core.begin_upload("b", "y")
    core.put_part("b", first, 1, b"part")
    before = core.uploads("b", "x/")
    assert [(key, upload) for key, upload, _ in before] == [("x/1", first), ("x/2", second)]
    assert all(started_ms > 1_700_000_000_000 for _, _, started_ms in before)
    core.close()
    again = Storage(tmp_path / "objects")
    assert again.uploads("b", "x/") == before
    again.abort_upload("b", second)
    assert content(again, "x/1") == b"part" if again.contains("b", "x/1") else True
    again.complete_upload("b", first, [1])
    assert content(again, "x/1") == b"part" and again.uploads("b", "x/") == []
    again.close()
    core.__init__(tmp_path / "objects")  # type: ignore[misc]  # the fixture closes it


def test_copy_has_the_bytes_and_attributes_and_is_an_object_of_its_own(core: Storage) -> None:
    core.create_bucket("other")
    data = os.urandom(3000)
    core.put("b", "k", data, attributes={"a": "1"})
    check_sums(core.copy("other", "c", "b", "k"), data)
    core.delete("b", ["k"])
    assert core.read("other", "c", 0, None)[1] == data and core.head("other", "c").attributes == {"a": "1"}
    with pytest.raises(AlreadyExists):
        core.copy("other", "c", "other", "c", if_absent=True)
    with pytest.raises(NotFound) as caught:
        core.copy("other", "d", "b", "k")
    assert caught.value.fields["source"] == "k"


def test_append_goes_to_the_end_only_and_to_what_may_be_appended_to(core: Storage) -> None:
    core.put("b", "plain", b"x")
    with pytest.raises(Invalid) as refused:
        core.append("b", "plain", 1, b"y", only_appendable=True)
    assert refused.value.fields["code"] == "NotAppendable"
    with pytest.raises(NotFound):
        core.append("b", "lane", 0, b"x", create=False)
    assert core.append("b", "lane", 0, b"one").appendable
    with pytest.raises(WrongOffset) as wrong:
        core.append("b", "lane", 2, b"two")
    assert wrong.value.fields["actual"] == 3
    check_sums(core.append("b", "lane", 3, Payload(b"two"), only_appendable=True), b"onetwo")
    core.put("b", "made", b"", appendable=True)
    core.append("b", "made", 0, b"z", only_appendable=True)
    assert (content(core, "lane"), content(core, "made")) == (b"onetwo", b"z")
    assert core.head("b", "lane").parts == 2


def test_unknown_buckets_are_told_apart(core: Storage) -> None:
    for call in (
        lambda: core.put("no", "k", b""),
        lambda: core.append("no", "k", 0, b""),
        lambda: core.begin_upload("no", "k"),
        lambda: core.copy("no", "k", "b", "k2"),
        lambda: core.uploads("no", ""),
        lambda: core.open("no", "k", 0, None),
    ):
        core.put("b", "k2", b"there")
        with pytest.raises(YunheError) as caught:
            call()
        assert isinstance(caught.value, NotFound) and caught.value.fields["bucket"] == "no"


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_calls_gives_what_a_dictionary_gives_also_after_compaction_and_restarts(
    seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    root = tmp_path / "objects"
    core = Storage(root, segment_bytes=SMALL_SEGMENT_BYTES)
    core.create_bucket("b")
    model: dict[str, bytes] = {}
    uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
    for _ in range(1200):
        key = f"k{chance.randrange(12)}"
        data = chance.randbytes(chance.choice((0, 10, 3000, 90_000, BLOCK_BYTES, BLOCK_BYTES + 1)))
        match chance.randrange(9):
            case 0 | 1 | 2:
                core.put("b", key, data)
                model[key] = data
            case 3:
                core.append("b", key, len(model.get(key, b"")), data[:5000])
                model[key] = model.get(key, b"") + data[:5000]
            case 4:
                core.delete("b", [key])
                model.pop(key, None)
            case 5 if len(uploads) < 5:
                uploads[core.begin_upload("b", key)] = (key, {})
            case 6 if uploads:
                upload = chance.choice(list(uploads))
                number = chance.randrange(4)
                core.put_part("b", upload, number, data)
                uploads[upload][1][number] = data
            case 7 if uploads:
                upload = chance.choice(list(uploads))
                to, parts = uploads.pop(upload)
                numbers = chance.sample(sorted(parts), len(parts))
                check_sums(core.complete_upload("b", upload, numbers), b"".join(parts[n] for n in numbers))
                model[to] = b"".join(parts[n] for n in numbers)
            case 8 if model:
                source = chance.choice(sorted(model))
                core.copy("b", key, "b", source)
                model[key] = model[source]
        if chance.random() < 0.01:
            core.close()
            core = Storage(root, segment_bytes=SMALL_SEGMENT_BYTES)
    for _ in range(2):
        assert [key for key, _ in core.list("b", "", limit=100)[0]] == sorted(model)
        for key, data in model.items():
            check_sums(core.head("b", key), data)
            assert content(core, key) == data
            start, length = chance.randrange(len(data) + 1), chance.randrange(1, 400_000)
            assert content(core, key, start, length) == data[start : start + length]
        core.close()
        core = Storage(root, segment_bytes=SMALL_SEGMENT_BYTES)
    # Overwriting for ever needs no more room than what is alive asks for; compaction is a thread's work.
    alive = sum(map(len, model.values())) + sum(len(p) for _, parts in uploads.values() for p in parts.values())
    deadline = time.monotonic() + 20
    while held_bytes(root) > 3 * alive + 8 * SMALL_SEGMENT_BYTES:
        assert time.monotonic() < deadline, (held_bytes(root), alive)
        time.sleep(0.05)
    core.close()


def held_bytes(root: Path) -> int:
    """Of the disk: segments are preallocated, so blocks are counted and not lengths."""
    held = 0
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            held += path.stat().st_blocks * 512
    return held


def test_reader_gets_the_object_as_it_was_although_it_is_replaced_and_compacted_meanwhile(tmp_path: Path) -> None:
    core = Storage(tmp_path / "objects", segment_bytes=SMALL_SEGMENT_BYTES)
    core.create_bucket("b")
    small, large = os.urandom(BLOCK_BYTES), os.urandom(5 * BLOCK_BYTES)
    core.put("b", "small", small)
    core.put("b", "large", large)
    contents = [core.open("b", key, 0, None)[1] for key in ("small", "large")]
    for index in range(60):
        core.put("b", "small", os.urandom(BLOCK_BYTES))
        core.put("b", "large", os.urandom(2 * BLOCK_BYTES))
        core.delete("b", ["small" if index % 2 else "large"])
    assert [b"".join(found.pieces()) for found in contents] == [small, large]
    for found in contents:
        found.close()
    core.close()
    core = Storage(tmp_path / "objects", segment_bytes=SMALL_SEGMENT_BYTES)
    assert len(list((tmp_path / "objects" / "data").iterdir())) <= 1
    core.close()


def test_stale_uploads_are_collected_at_the_stated_age(tmp_path: Path) -> None:
    clock = SteppedClock()
    core = Storage(tmp_path / "objects", clock=clock)
    core.create_bucket("b")
    old = core.begin_upload("b", "old")
    core.put_part("b", old, 1, os.urandom(BLOCK_BYTES * 2))
    clock.now_ms += 1_000
    fresh = core.begin_upload("b", "fresh")
    assert core.collect_uploads(1_000) == 0
    clock.now_ms += 1
    assert core.collect_uploads(1_000) == 1
    assert [upload for _, upload, _ in core.uploads("b", "")] == [fresh]
    core.close()
    core = Storage(tmp_path / "objects", clock=clock)
    assert [upload for _, upload, _ in core.uploads("b", "")] == [fresh]
    assert list((tmp_path / "objects" / "data").iterdir()) == []
    core.close()


def test_concurrent_small_puts_share_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = Storage(tmp_path / "objects")
    core.create_bucket("b")
    syncs = 0
    sync = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: core.put("b", f"k{index}", b"x" * 4096), range(400)))
    assert 0 < syncs < 300
    core.close()


def test_slice_of_a_large_payload_is_stored_without_the_rest(core: Storage) -> None:
    data = os.urandom(4 * BLOCK_BYTES)
    spool = Spool(core.files, 0)
    spool.write(data)
    whole = Payload(spool)
    part = whole.slice(101, 3 * BLOCK_BYTES)
    wanted = data[101 : 101 + 3 * BLOCK_BYTES]
    assert (part.size, part.read(), part.md5()) == (len(wanted), wanted, hashlib.md5(wanted).digest())
    assert part.slice(7, 2 * BLOCK_BYTES).read() == wanted[7 : 7 + 2 * BLOCK_BYTES]
    check_sums(core.put("b", "k", part), wanted)
    part.close()
    whole.close()
    assert content(core, "k") == wanted and content(core, "k", 5, 600_000) == wanted[5:600_005]
    core.put("b", "k", b"")
    core.close()
    core.__init__(core.files.folder.parent)  # type: ignore[misc]
    assert list(core.files.folder.iterdir()) == []


def test_a_removed_bucket_stays_away_through_compaction_and_restarts(tmp_path: Path) -> None:
    root = tmp_path / "objects"
    (root / "buckets" / "given").mkdir(parents=True)
    core = Storage(root, segment_bytes=SMALL_SEGMENT_BYTES)
    core.create_bucket("b")
    core.put("b", "k", os.urandom(5000))
    with pytest.raises(Conflict):
        core.remove_bucket("b")
    core.create_bucket("full")
    core.put("full", "large", os.urandom(1 << 20))
    core.delete("b", ["k"])
    core.begin_upload("b", "unfinished")
    core.remove_bucket("b")
    core.remove_bucket("given")
    core.remove_bucket("full", with_objects=True)
    for name in ("b", "given", "full"):
        assert not core.has_bucket(name)
        with pytest.raises(NotFound):
            core.put(name, "k", b"x")
    core.create_bucket("other")
    for number in range(400):
        core.put("other", "k", bytes([number % 256]) * 4000)
    for _ in range(3):
        core.close()
        core = Storage(root, segment_bytes=SMALL_SEGMENT_BYTES)
        assert list(core.sizes()) == ["other"]
    # Made again, it has nothing of what it held.
    core.create_bucket("b")
    assert core.list("b", "", limit=10) == ([], False) and core.uploads("b", "") == []
    core.close()
    assert not list((root / "data").glob("*.data"))
