"""Crashes and bad disks under the lab's storage: what was answered is there and whole, the rest whole or absent."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from providers.base.errors import Corrupt, Full, Invalid, NotFound, Unavailable, YunheError
from providers.lab.storage import Storage
from providers.lab.storage_files import BLOCK_BYTES
from tests.conformance.lab_disk import flip_a_bit, leave_torn_payload, log_end
from tests.providers.lab.storage_victim import PIECE_BYTES, SEGMENT_BYTES, content, piece

ROUNDS = 4


def read(core: Storage, key: str) -> bytes | None:
    try:
        return core.read("b", key, 0, None)[1]
    except NotFound:
        return None


def kill_at_random(root: Path, turn: int, chance: random.Random) -> list[tuple[str, str, int]]:
    """Run the victim and kill it; what it said."""
    argv = [sys.executable, "-m", "tests.providers.lab.storage_victim", str(root), str(turn)]
    victim = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    lines: list[bytes] = []
    until = chance.randrange(100, 900)
    for line in victim.stdout:
        lines.append(line)
        if len(lines) == until:
            victim.kill()
    victim.wait()
    assert len(lines) >= until, "the victim ended by itself"
    victim.stdout.close()
    said = [line.decode().split() for line in lines if line.endswith(b"\n")]
    return [(mark, key, int(version)) for mark, key, version in said]


def test_kill_9_at_random_moments_loses_nothing_answered_and_shows_nothing_torn(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    root = tmp_path / "objects"
    begun: dict[str, set[int]] = defaultdict(set)
    answered: dict[str, int] = {}
    for turn in range(ROUNDS):
        for mark, key, version in kill_at_random(root, turn, chance):
            if mark == "?":
                begun[key].add(version)
            else:
                answered[key] = version
                begun[key] = {v for v in begun[key] if v > version and version >= 0}
        core = Storage(root, segment_bytes=SEGMENT_BYTES)
        for key, may_be in begun.items():
            found = read(core, key)
            sure = answered.get(key)
            if key.startswith("lane/"):
                pieces = len(found or b"") // PIECE_BYTES
                assert pieces in may_be | {sure or 0}, key
                assert (found or b"") == b"".join(piece(key, i) for i in range(pieces)), key
            elif key.startswith("parts/"):
                whole = b"".join(content(key, number) for number in (1, 2, 3))
                assert found == whole or (found is None and sure is None), key
            else:
                states = may_be | ({sure} if sure is not None else {-1})
                assert found in [None if v == -1 else content(key, v) for v in states], key
        listed = {key for key, _ in core.list("b", "", limit=1 << 30)[0]}
        assert listed <= set(begun)
        for upload in core.uploads("b", ""):
            assert upload[0] not in listed
        core.collect_uploads(-1)
        core.close()
        core = Storage(root, segment_bytes=SEGMENT_BYTES)
        assert core.uploads("b", "") == []
        # The next round only adds names, but for these: what they hold now is what they hold for good.
        for key in begun:
            found = read(core, key)
            may_be = begun[key] | ({answered[key]} if key in answered else set())
            if key.startswith("lane/"):
                answered[key] = len(found or b"") // PIECE_BYTES
            elif not key.startswith("parts/"):
                answered[key] = next((v for v in may_be if v >= 0 and content(key, v) == found), -1)
            elif found is not None:
                answered[key] = 0
            begun[key] = set()
        core.close()


class PowerCut:
    """Keeps a second copy of the files, each as it was at its last sync: what a disk holds after a power cut."""

    def __init__(self, root: Path, shadow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lock = threading.Lock()
        self.off = False
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name), root, shadow))

    def _wrapped(self, sync: Callable[[int], None], root: Path, shadow: Path) -> Callable[[int], None]:
        def wrapped(descriptor: int) -> None:
            sync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            with self._lock:
                if not self.off and path.is_relative_to(root) and path.is_file():
                    copy = shadow / path.relative_to(root)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)

        return wrapped

    def cut(self) -> None:
        with self._lock:
            self.off = True


def test_power_cut_keeps_all_that_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, shadow = tmp_path / "objects", tmp_path / "shadow"
    power = PowerCut(root, shadow, monkeypatch)
    core = Storage(root, segment_bytes=SEGMENT_BYTES)
    core.create_bucket("b")
    answered: list[str] = []
    enough = threading.Event()

    def work(name: str) -> None:
        for index in range(1_000_000):
            key = f"{name}/{index}"
            if index % 4 == 3:
                upload = core.begin_upload("b", key)
                core.put_part("b", upload, 1, content(key, 0))
                core.complete_upload("b", upload, [1])
            else:
                core.put("b", key, content(key, 0))
            if power.off:
                return
            answered.append(key)
            if len(answered) > 60:
                enough.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    sure = list(answered)
    power.cut()
    shutil.copyfile(root / "format", shadow / "format")  # synced under another name, and renamed
    for thread in threads:
        thread.join()
    core.close()
    after = Storage(shadow)
    for key in sure:
        assert read(after, key) == content(key, 0)
    for key, _ in after.list("b", "", limit=1 << 30)[0]:
        assert read(after, key) == content(key, 0)
    after.close()


def filled(root: Path) -> Storage:
    core = Storage(root)
    core.create_bucket("b")
    core.put("b", "small", b"s" * 5000)
    core.put("b", "large", b"l" * (3 * BLOCK_BYTES + 17))
    core.put("b", "other", b"o" * 5000)
    return core


def test_torn_tail_is_cut_wherever_it_is_torn(tmp_path: Path) -> None:
    core = filled(tmp_path / "objects")
    before = log_end(tmp_path / "objects")[1]
    core.put("b", "last", b"x" * 3000)
    core.delete("b", ["other"])
    path, end = log_end(tmp_path / "objects")
    raw = path.read_bytes()[:end]
    for at in [*range(before, end, 397), end - 1]:
        copy = tmp_path / f"copy-{at}"
        shutil.copytree(tmp_path / "objects", copy)
        for torn in (raw[:at], raw[:at] + bytes(5000), raw[:at] + os.urandom(5000)):
            if torn.startswith(raw):
                continue  # the one byte that was cut off came back by chance: nothing is torn
            (copy / "log" / path.name).write_bytes(torn)
            after = Storage(copy)
            assert read(after, "small") == b"s" * 5000 and read(after, "other") == b"o" * 5000
            assert read(after, "last") in (None, b"x" * 3000)
            after.put("b", "next", b"n")
            after.close()
            again = Storage(copy)
            assert read(again, "next") == b"n"
            again.close()
            for other in (copy / "log").glob("*.seg"):
                if other.name > path.name:
                    other.unlink()
    core.close()


def test_damage_to_a_durable_record_is_refused_and_never_taken_for_a_torn_tail(tmp_path: Path) -> None:
    core = filled(tmp_path / "objects")
    core.close()
    flip_a_bit(tmp_path / "objects", b'["object","b","small"')
    with pytest.raises(Corrupt, match="is damaged at byte"):
        Storage(tmp_path / "objects")


def test_missing_segment_is_refused(tmp_path: Path) -> None:
    for _ in range(3):
        core = filled(tmp_path / "objects")
        core.close()
    segments = sorted((tmp_path / "objects" / "log").glob("*.seg"))
    segments[1].unlink()
    with pytest.raises(Corrupt):
        Storage(tmp_path / "objects")


@pytest.mark.parametrize("key", ["small", "large"])
def test_flipped_bit_is_found_before_it_is_served(key: str, tmp_path: Path) -> None:
    core = filled(tmp_path / "objects")
    core.close()
    flip_a_bit(tmp_path / "objects", key[:1].encode() * 5000)
    core = Storage(tmp_path / "objects")
    with pytest.raises(Corrupt):
        core.read("b", key, 0, None)
    if key == "large":
        # Other blocks of the same object are still good.
        assert core.read("b", key, BLOCK_BYTES, 10)[1] == b"l" * 10
    assert read(core, "other") == b"o" * 5000
    core.close()


def test_unfinished_payloads_are_removed_at_a_start(tmp_path: Path) -> None:
    core = filled(tmp_path / "objects")
    core.close()
    stale = leave_torn_payload(tmp_path / "objects")
    core = Storage(tmp_path / "objects")
    assert not stale.exists() and len(list((tmp_path / "objects" / "data").iterdir())) == 1
    core.delete("b", ["large"])
    core.close()
    core = Storage(tmp_path / "objects")
    assert list((tmp_path / "objects" / "data").iterdir()) == []
    core.close()


def test_older_layout_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "buckets" / "b").mkdir(parents=True)
    (tmp_path / "buckets" / "b" / "key").write_bytes(b"YHO1 of an earlier version")
    with pytest.raises(Invalid, match="another layout"):
        Storage(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "buckets"]


def test_folder_under_buckets_makes_an_empty_bucket(tmp_path: Path) -> None:
    (tmp_path / "buckets" / "made-before").mkdir(parents=True)
    core = Storage(tmp_path)
    assert core.list("made-before", "", limit=1) == ([], False)
    core.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 24 MiB of its own, where the machine lets tests mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    return folder


def test_full_disk_is_said_and_changes_nothing_and_deleting_makes_room(small_disk: Path) -> None:
    try:
        core = Storage(small_disk / "objects", segment_bytes=4 << 20)
        core.create_bucket("b")
        core.put("b", "kept", b"k" * 1000)
        held = 0
        with pytest.raises(Full):
            for index in range(1000):
                core.put("b", f"large/{index}", os.urandom(1 << 20))
                held += 1
        assert 5 < held < 24
        with pytest.raises(Full):
            for index in range(100_000):
                core.put("b", f"small/{index}", b"s" * 4096)
        rows, _ = core.list("b", "", limit=1 << 30)
        for key, size in rows:
            assert len(read(core, key) or b"") == size
        assert len(list((small_disk / "objects" / "data").iterdir())) == held
        core.delete("b", [key for key, _ in rows if key.startswith("large/")])
        for _ in range(200):
            try:
                core.put("b", "again", os.urandom(1 << 20))
                break
            except Full:
                threading.Event().wait(0.02)  # the freed files are removed by another thread
        assert read(core, "kept") == b"k" * 1000 and core.size("b", "again") == 1 << 20
        core.close()
        core = Storage(small_disk / "objects", segment_bytes=4 << 20)
        assert read(core, "kept") == b"k" * 1000 and core.size("b", "again") == 1 << 20
        core.close()
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)


def test_failed_sync_promises_nothing_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = filled(tmp_path / "objects")
    whole = os.fdatasync

    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(Unavailable, match="the disk failed"):
        core.put("b", "lost", b"x")
    monkeypatch.setattr(os, "fdatasync", whole)
    for call in (lambda: core.put("b", "more", b"y"), lambda: core.head("b", "lost")):
        with pytest.raises(YunheError):
            call()
    core.close()
    core = Storage(tmp_path / "objects")
    assert read(core, "small") == b"s" * 5000 and read(core, "more") is None
    core.close()


def test_last_record_of_any_kind_is_no_torn_tail(tmp_path: Path) -> None:
    """What was answered last is claimed durable by no later record."""
    for number, last in enumerate(
        (
            lambda core: core.put("b", "last", b"l" * (2 * BLOCK_BYTES)),
            lambda core: core.put("b", "last", b"l" * 100),
            lambda core: core.put("b", "last", b""),
            lambda core: core.append("b", "last", 0, b"l" * (2 * BLOCK_BYTES)),
            lambda core: core.append("b", "last", 0, b"l"),
            lambda core: core.copy("b", "last", "b", "large"),
            lambda core: core.copy("b", "last", "b", "small"),
        )
    ):
        core = filled(tmp_path / f"objects-{number}")
        size = last(core).size
        shutil.copytree(tmp_path / f"objects-{number}", tmp_path / f"crashed-{number}")
        core.close()
        after = Storage(tmp_path / f"crashed-{number}")
        assert after.size("b", "last") == size
        after.close()
