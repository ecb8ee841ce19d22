"""Detached processes that belong to one state directory: started, recognised again, stopped.

A process is known by pid *and* start time: a pid that the system has handed to somebody else is never signalled. Each
also carries a marker in its environment, which its own children inherit, so that whatever was started under this state
directory is found even when its record was lost (a crash between start and record, an agent's broker).

      start ──record──► alive ──SIGTERM──► grace ──SIGKILL──► gone (record removed)
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from providers.base.clock import SystemClock, sleep_blocking_ms
from providers.base.errors import Corrupt, Invalid, Unavailable
from providers.base.files import replace_file

MARKER = "YUNHE_PROCESS_OF"
"""Environment variable that holds the state directory's absolute path. Nobody exports it by hand, unlike
YUNHE_STATE_DIR.
"""

STOP_GRACE_MS = 8_000
"""From SIGTERM to SIGKILL. A broker's clean shutdown uploads what its WAL holds; what is cut off is recovered at the
next start.
"""
KILL_WAIT_MS = 5_000
"""After SIGKILL: only a process stuck in the kernel outlives it."""
POLL_MS = 20
LOG_TAIL_BYTES = 16_384

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, never to be mistaken for a later one with the same pid. `started`: the kernel's start time, in its own
    form.
    """

    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process as its state directory remembers it. `log` is where its output goes."""

    name: str
    pid: int
    started: str
    log: str

    @property
    def id(self) -> ProcessId:
        return ProcessId(self.pid, self.started)


def start_time(pid: int) -> str | None:
    """When the process with this pid was started, None when there is none (a zombie counts as none)."""
    if _PROC.joinpath("self/stat").exists():
        try:
            text = _PROC.joinpath(str(pid), "stat").read_text()
        except OSError:
            return None
        # proc(5): the name in parentheses may hold spaces and parentheses; field 3 is the state, field 22 the start in
        # ticks since boot.
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{_boot_id()}:{fields[19]}"
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs."""
    return start_time(process.pid) == process.started


def resident_bytes(pid: int) -> int | None:
    """Memory that the process holds, None when it is gone."""
    if _PROC.joinpath("self/statm").exists():
        try:
            return int(_PROC.joinpath(str(pid), "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return None
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(shown.stdout) * 1024 if shown.stdout.strip().isdigit() else None


def _boot_id() -> str:
    try:
        return _PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "-"


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone."""
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def stop(processes: Iterable[ProcessId], *, grace_ms: float = STOP_GRACE_MS) -> list[ProcessId]:
    """SIGTERM all, wait up to `grace_ms` for all together, SIGKILL the rest. Returns those that outlived even that."""
    clock = SystemClock()
    left = [p for p in processes if send(p, signal.SIGTERM)]
    for number, wait_ms in ((None, grace_ms), (signal.SIGKILL, KILL_WAIT_MS)):
        if number is not None:
            left = [p for p in left if send(p, number)]
        deadline = clock.monotonic_ms() + wait_ms
        while (left := [p for p in left if _unreaped(p)]) and clock.monotonic_ms() < deadline:
            sleep_blocking_ms(POLL_MS)
    return left


def _unreaped(process: ProcessId) -> bool:
    # A child of this very process stays a zombie until it is waited for; init does that for everybody else's.
    try:
        os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return is_alive(process)


class ProcessTable:
    """The processes of one state directory. Records live in `<state_dir>/processes/<name>.json`, one each, replaced
    atomically.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir.absolute()
        self._records = self._state_dir / "processes"

    def find(self, name: str) -> ProcessRecord | None:
        """The record of that name, alive or not.

        Raises:
            Corrupt: the record cannot be read.
        """
        try:
            plain = json.loads(self._path(name).read_bytes())
            return ProcessRecord(str(plain["name"]), int(plain["pid"]), str(plain["started"]), str(plain["log"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"the process record {self._path(name)} cannot be read", hint="remove that file") from error

    def alive(self, name: str) -> ProcessRecord | None:
        """The record of that name if its process runs."""
        record = self.find(name)
        return record if record is not None and is_alive(record.id) else None

    def records(self) -> list[ProcessRecord]:
        """All records by name, alive or not."""
        names = sorted(p.stem for p in self._records.glob("*.json")) if self._records.is_dir() else []
        return [record for name in names if (record := self.find(name)) is not None]

    def start(
        self, name: str, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> ProcessRecord:
        """Start `argv` in a session of its own, its output appended to `log`; returns the running one if there is one
        already.

        Raises:
            Unavailable: the program could not be started.
        """
        if (running := self.alive(name)) is not None:
            return running
        log.parent.mkdir(parents=True, exist_ok=True)
        self._records.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **(env or {}), MARKER: str(self._state_dir)}
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(  # not waited for: it outlives this process on purpose
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self._state_dir,
                    env=environment,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            raise Unavailable(f"{name} could not be started: {error.strerror}", log=str(log)) from error
        # Detached: the interpreter is not to warn that it was never waited for.
        child.returncode = 0
        record = ProcessRecord(name, child.pid, start_time(child.pid) or "gone at once", str(log))
        # Durable, and whole: a half-written record would hide a running process.
        replace_file(self._path(name), json.dumps(asdict(record)).encode(), durable=True)
        return record

    def forget(self, name: str) -> None:
        """Remove the record."""
        self._path(name).unlink(missing_ok=True)

    def everything(self) -> list[ProcessId]:
        """All that runs under this state directory: recorded, or found by the marker (Linux). This process itself is
        not counted.
        """
        found = {record.id for record in self.records() if is_alive(record.id)}
        found.update(_marked(str(self._state_dir)))
        return sorted((p for p in found if p.pid != os.getpid()), key=lambda p: p.pid)

    def _path(self, name: str) -> Path:
        if not name or "/" in name or name.startswith("."):
            raise Invalid(f"{name!r} cannot name a process")
        return self._records / f"{name}.json"


def _marked(state_dir: str) -> Iterable[ProcessId]:
    """Processes of this user whose environment carries the marker of `state_dir`."""
    wanted = f"{MARKER}={state_dir}".encode()
    if not _PROC.joinpath("self/environ").exists():
        return
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        pid = int(folder.name)
        # Start time first: if the pid changes hands in between, the later check before a signal fails.
        started = start_time(pid)
        try:
            if started is not None and wanted in folder.joinpath("environ").read_bytes().split(b"\0"):
                yield ProcessId(pid, started)
        except OSError:
            continue  # another user's, or gone


def explain_exit(record: ProcessRecord) -> str:
    """The last line that a dead process wrote: usually its one sentence."""
    try:
        with Path(record.log).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    said = [line for line in lines if line and not line.startswith("hint:")]
    return said[-1] if said else "it wrote nothing"


def wait_ready(record: ProcessRecord, ready_file: Path, *, deadline_ms: float) -> dict[str, object]:
    """Wait until the process has written its ready file (JSON, with its own pid), and return that.

    `deadline_ms`: on the system's monotonic clock.

    Raises:
        Unavailable: it ended first, or was not ready in time.
    """
    clock = SystemClock()
    while True:
        ready = read_ready(ready_file)
        if ready is not None and ready.get("pid") == record.pid:
            return ready
        _reap(record.pid)
        if not is_alive(record.id):
            raise Unavailable(f"{record.name} ended at once: {explain_exit(record)}", hint=f"see {record.log}")
        if clock.monotonic_ms() > deadline_ms:
            raise Unavailable(f"{record.name} was not ready in time", hint=f"see {record.log}")
        sleep_blocking_ms(POLL_MS)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # somebody else's child, or reaped before


def read_ready(ready_file: Path) -> dict[str, object] | None:
    """The ready file's content, None when there is none (yet)."""
    try:
        plain = json.loads(ready_file.read_bytes())
    except (OSError, ValueError):
        return None
    return plain if isinstance(plain, dict) else None


def python(module: str, *args: str) -> list[str]:
    """The command line that runs one of our modules with this very interpreter.

    `-P`: the current directory is not searched for modules, whatever it holds.
    """
    return [sys.executable, "-P", "-m", module, *args]


def is_out_of_space(error: OSError) -> bool:
    """Whether the disk, or this user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
