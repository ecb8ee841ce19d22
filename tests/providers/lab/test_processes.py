"""Detached processes: started once, recognised by pid and start time, stopped without ever hitting a stranger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from providers.base.errors import Unavailable
from providers.lab.processes import (
    MARKER,
    ProcessId,
    ProcessTable,
    explain_exit,
    is_alive,
    send,
    start_time,
    stop,
    wait_ready,
)

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


def soon() -> float:
    return time.monotonic() * 1000 + 10_000


def eventually(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_start_finds_the_first_process(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    first = table.start("a.objects", SLEEPER, log=tmp_path / "log")
    try:
        assert table.start("a.objects", SLEEPER, log=tmp_path / "log") == first
        assert ProcessTable(tmp_path).alive("a.objects") == first
    finally:
        assert stop([first.id]) == []
    assert table.alive("a.objects") is None


def test_a_started_process_has_a_session_of_its_own(tmp_path: Path) -> None:
    record = ProcessTable(tmp_path).start("a", SLEEPER, log=tmp_path / "log")
    try:
        assert os.getsid(record.pid) == record.pid != os.getsid(0)
    finally:
        stop([record.id])


def test_a_pid_that_changed_hands_is_never_signalled(tmp_path: Path) -> None:
    """The record says the right pid and another start time, as after a reboot or a wrap of pids."""
    stranger = subprocess.Popen(SLEEPER)
    try:
        impostor = ProcessId(stranger.pid, "boot:12345")
        assert not is_alive(impostor)
        assert not send(impostor, signal.SIGKILL)
        assert stop([impostor], grace_ms=50) == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    record = ProcessTable(tmp_path).start("a", STUBBORN, log=tmp_path / "log")
    eventually(lambda: "up" in (tmp_path / "log").read_text())
    began = time.monotonic()
    assert stop([record.id], grace_ms=300) == []
    assert 0.3 <= time.monotonic() - began < 5
    assert start_time(record.pid) is None


def test_a_frozen_process_is_stopped_too(tmp_path: Path) -> None:
    record = ProcessTable(tmp_path).start("a", SLEEPER, log=tmp_path / "log")
    os.kill(record.pid, signal.SIGSTOP)
    assert stop([record.id], grace_ms=200) == []
    assert start_time(record.pid) is None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_children_are_found_even_when_their_record_is_lost(tmp_path: Path) -> None:
    """An agent's broker has no record in the table, and its agent may be dead already."""
    code = f"import subprocess, time; subprocess.Popen({SLEEPER!r}); time.sleep(600)"
    table = ProcessTable(tmp_path)
    parent = table.start("a.agent.z", [sys.executable, "-c", code], log=tmp_path / "log")
    eventually(lambda: len(table.everything()) == 2)
    os.kill(parent.pid, signal.SIGKILL)
    table.forget("a.agent.z")
    eventually(lambda: parent.pid not in [p.pid for p in table.everything()])
    [orphan] = table.everything()
    assert stop([orphan]) == []
    assert table.everything() == []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_another_state_directorys_processes_are_not_found(tmp_path: Path) -> None:
    one, two = ProcessTable(tmp_path / "one"), ProcessTable(tmp_path / "one-more")
    (tmp_path / "one").mkdir()
    (tmp_path / "one-more").mkdir()
    record = two.start("a", SLEEPER, log=tmp_path / "log")
    try:
        assert one.everything() == []
        assert [p.pid for p in two.everything()] == [record.pid]
    finally:
        stop([record.id])


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_shell_that_exports_the_state_dir_is_no_process_of_ours(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != MARKER}
    shell = subprocess.Popen(SLEEPER, env={**environment, "YUNHE_STATE_DIR": str(tmp_path)})
    try:
        assert ProcessTable(tmp_path).everything() == []
    finally:
        shell.kill()
        shell.wait()


def test_a_process_that_ends_at_once_says_why(tmp_path: Path) -> None:
    code = "import sys; sys.exit('error: port 4711 is taken\\n\\nhint: stop the other program')"
    record = ProcessTable(tmp_path).start("a.objects", [sys.executable, "-c", code], log=tmp_path / "log")
    with pytest.raises(Unavailable, match=r"a\.objects ended at once: port 4711 is taken"):
        wait_ready(record, tmp_path / "ready", deadline_ms=soon())
    assert explain_exit(record) == "port 4711 is taken"


def test_a_stale_ready_file_of_an_earlier_process_does_not_count(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.write_text('{"pid": 1, "port": 9}')
    code = f"""
import json, os, time
time.sleep(0.3)
open({str(ready)!r} + "x", "w").write(json.dumps({{"pid": os.getpid(), "port": 7}}))
os.replace({str(ready)!r} + "x", {str(ready)!r})
time.sleep(600)
"""
    record = ProcessTable(tmp_path).start("a", [sys.executable, "-c", code], log=tmp_path / "log")
    try:
        assert wait_ready(record, ready, deadline_ms=soon())["port"] == 7
    finally:
        stop([record.id])
