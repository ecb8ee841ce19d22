"""The state directory's refusals that a whole process cannot show easily."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from controlplane.server.files import StateDir
from providers.base.clock import SeededRng
from providers.base.errors import Conflict, Full


def test_a_nearly_full_disk_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    with pytest.raises(Full, match="only 3 MiB left"):
        StateDir(tmp_path / "s").create()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Full, match="is full"):
        StateDir(tmp_path / "s").create()


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path / "s")
    state_dir.create()
    token = state_dir.make_token(SeededRng(1))
    assert state_dir.make_token(SeededRng(2)) == token == state_dir.read_token()
    assert state_dir.token.stat().st_mode & 0o777 == 0o600
    assert state_dir.controlplane.stat().st_mode & 0o777 == 0o700


def test_the_lock_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path / "s")
    with state_dir.locked("up"):
        again = state_dir.locked("down")
        with pytest.raises(Conflict, match=f"yunhe up, pid {os.getpid()}"):
            again.__enter__()
    with state_dir.locked("down"):
        pass


def test_purge_and_check_leave_a_state_directory_inside_alone(tmp_path: Path) -> None:
    outer, inner = StateDir(tmp_path / "s"), StateDir(tmp_path / "s" / "demo")
    inner.create()
    outer.check()
    outer.create()
    (outer.root / "lab").mkdir()
    outer.purge()
    assert inner.exists() and [p.name for p in outer.root.iterdir()] == ["demo"]
    inner.purge()
    outer.purge()
    assert not outer.root.exists()
