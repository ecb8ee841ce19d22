"""The SQLite store: durable, one transaction a method, generations that only grow."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.store.base import PLANS_KEPT_MAX, Operation, StepRecord, StepState, StoredPlan
from controlplane.store.sqlite import SqliteStore
from dataplane.contract.assignment import Generation
from providers.base.clock import SystemClock
from providers.base.errors import Conflict, Corrupt, Invalid


def opened(path: Path) -> SqliteStore:
    return SqliteStore(path, clock=SystemClock())


def a_plan(base: int, hash_: str = "abcd1234") -> StoredPlan:
    return StoredPlan(hash_, base, {"specs": [["Topic", "t", {"n": base}]], "revision": base + 1}, {"text": "…"})


def an_operation(id_: str = "op-1") -> Operation:
    return Operation(id_, "abcd1234", 1, (StepRecord("bucket/a", "a", "probe"), StepRecord("assign/a", "a", "publish")))


def test_accepted_state_survives_reopening(tmp_path: Path) -> None:
    store = opened(tmp_path / "s.sqlite")
    store.accept(a_plan(0), an_operation())
    store.put_status(("Topic", "t"), {"state": "Ready"})
    store.close()

    again = opened(tmp_path / "s.sqlite")
    assert again.recorded() == {"specs": [["Topic", "t", {"n": 0}]], "revision": 1}
    assert again.revision() == 1
    assert again.statuses() == {("Topic", "t"): {"state": "Ready"}}
    assert [o.id for o in again.unfinished()] == ["op-1"]
    again.close()


def test_stale_plan_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "s.sqlite")
    store.accept(a_plan(0), an_operation("op-1"))
    with pytest.raises(Conflict, match="stale"):
        store.accept(a_plan(0, "ffff0000"), an_operation("op-2"))
    assert store.revision() == 1
    assert [o.id for o in store.unfinished()] == ["op-1"]
    store.close()


def test_a_later_apply_supersedes_the_unfinished_one_for_good(tmp_path: Path) -> None:
    store = opened(tmp_path / "s.sqlite")
    store.accept(a_plan(0), an_operation("op-1"))
    store.accept(a_plan(1, "ffff0000"), an_operation("op-2"))
    late = replace(an_operation("op-1"), outcome="Done")
    store.put_operation(late)
    first = store.operation("op-1")
    assert first is not None and first.outcome == "Superseded"
    store.close()


def test_generations_grow_over_restarts_and_restored_backups(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    store = opened(path)
    first = store.next_generation()
    store.close()
    backup = path.read_bytes()

    store = opened(path)
    second = store.next_generation()
    published = store.next_generation()
    assert first < second < published
    store.close()

    for leftover in tmp_path.glob("s.sqlite*"):
        leftover.unlink()
    path.write_bytes(backup)
    restored = opened(path)
    restored.outgrow(published)
    assert restored.next_generation() > published
    restored.close()


def test_outgrow_leaves_a_store_alone_that_is_ahead(tmp_path: Path) -> None:
    store = opened(tmp_path / "s.sqlite")
    mine = store.next_generation()
    store.outgrow(Generation(mine.incarnation - 5, 1000))
    assert store.next_generation() == Generation(mine.incarnation, mine.revision + 1)
    store.close()


def test_a_killed_process_loses_nothing_that_was_returned(tmp_path: Path) -> None:
    """The journal is written by a process that is killed with SIGKILL right after the call has returned."""
    path = tmp_path / "s.sqlite"
    code = f"""
        import os, signal
        from pathlib import Path
        from controlplane.store.sqlite import SqliteStore
        from providers.base.clock import SystemClock
        store = SqliteStore(Path({str(path)!r}), clock=SystemClock())
        store.put_status(("Cloud", "c"), {{"state": "Ready"}})
        generation = store.next_generation()
        print(generation.incarnation, generation.revision, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    incarnation, revision = map(int, child.stdout.split())
    store = opened(path)
    assert store.status(("Cloud", "c")) == {"state": "Ready"}
    assert store.next_generation() > Generation(incarnation, revision)
    store.close()


def test_a_plan_is_found_by_the_beginning_of_its_hash(tmp_path: Path) -> None:
    store = opened(tmp_path / "s.sqlite")
    store.put_plan(a_plan(0, "abcd1111"))
    store.put_plan(a_plan(0, "abcd2222"))
    found = store.plan("abcd1")
    assert found is not None and found.hash == "abcd1111"
    assert store.plan("9999") is None
    with pytest.raises(Invalid, match="more than one"):
        store.plan("abcd")
    store.close()


def test_plans_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    store = opened(tmp_path / "s.sqlite")
    for number in range(PLANS_KEPT_MAX + 5):
        store.put_plan(a_plan(0, f"{number:08x}"))
    assert store.plan(f"{0:08x}") is None
    assert store.plan(f"{PLANS_KEPT_MAX + 4:08x}") is not None
    store.close()


def test_journal_comes_back_with_its_states(tmp_path: Path) -> None:
    store = opened(tmp_path / "s.sqlite")
    store.accept(a_plan(0), an_operation())
    steps = (replace(an_operation().steps[0], state=StepState.DONE, sentence="won"), an_operation().steps[1])
    store.put_operation(replace(an_operation(), steps=steps, version=3))
    [found] = store.unfinished()
    assert found.steps[0].state is StepState.DONE and found.steps[1].state is StepState.PENDING
    assert found.version == 3
    store.close()


def test_another_versions_store_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    opened(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(Invalid, match="another version"):
        opened(path)


def test_a_damaged_store_is_corrupt_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"not a database, " * 512)
    with pytest.raises(Corrupt, match="damaged"):
        opened(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_read_only_view_sees_what_a_running_server_wrote(tmp_path: Path) -> None:
    writer = opened(tmp_path / "s.sqlite")
    writer.put_status(("Cloud", "c"), {"state": "Ready"})
    reader = SqliteStore(tmp_path / "s.sqlite", clock=SystemClock(), read_only=True)
    assert reader.status(("Cloud", "c")) == {"state": "Ready"}
    reader.close()
    writer.close()
    with pytest.raises(Invalid):
        SqliteStore(tmp_path / "none.sqlite", clock=SystemClock(), read_only=True)
    assert not (tmp_path / "none.sqlite").exists()
