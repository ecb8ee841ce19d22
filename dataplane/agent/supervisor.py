"""Processes of brokers and databases: start, adopt, watch, stop. Each is its own session, and outlives the agent."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataplane.agent.journal import ProcessRecord
from providers.base.clock import Clock

log = logging.getLogger(__name__)

LOG_BYTES_MAX = 16 << 20
"""A broker's log is renamed to `log.1` at its next start beyond this."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A process's files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def ready(self) -> Path:
        return self.path / "ready.json"

    @property
    def log(self) -> Path:
        return self.path / "log"


MALLOC = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=268435456:glibc.malloc.top_pad=4194304"
"""How a broker's C library keeps memory: what one batch has given back the next one gets, without the kernel. Faulting
in fresh pages costs as much as receiving into them. Elsewhere than on glibc nobody reads it."""
BROKER_ENVIRONMENT = {"GLIBC_TUNABLES": MALLOC}


def start_time(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Supervisor:
    """Starts and ends processes of one kind; `command` is what `--config FILE` is appended to."""

    def __init__(
        self, command: Sequence[str], clock: Clock, *, environment: Mapping[str, str] = BROKER_ENVIRONMENT
    ) -> None:
        """`environment`: beside the agent's own, which goes before it."""
        self._command = list(command)
        self._clock = clock
        self._environment = dict(environment)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self.starts: Counter[str] = Counter()
        """Of each process by name, since the agent began."""

    def alive(self, record: ProcessRecord) -> bool:
        """Whether the very process of the record runs, whoever started it."""
        self._reap()
        return record.pid is not None and record.start_time is not None and start_time(record.pid) == record.start_time

    def said(self, record: ProcessRecord, folder: Folder) -> Mapping[str, Any]:
        """What the process says of itself since it serves; empty before."""
        try:
            ready: dict[str, Any] = json.loads(folder.ready.read_text())
            return ready if ready["pid"] == record.pid else {}
        except (OSError, ValueError, KeyError):
            return {}

    def start(self, port: int, folder: Folder) -> ProcessRecord:
        """Start a process whose configuration is already in its folder."""
        folder.ready.unlink(missing_ok=True)
        if folder.log.exists() and folder.log.stat().st_size > LOG_BYTES_MAX:
            folder.log.replace(folder.log.with_suffix(".1"))
        with folder.log.open("ab") as output:
            child = subprocess.Popen(
                [*self._command, "--config", str(folder.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment, **os.environ},
                start_new_session=True,
            )
        self._children[child.pid] = child
        self.starts[folder.path.name] += 1
        return ProcessRecord(port, child.pid, start_time(child.pid))

    async def stop(self, record: ProcessRecord, timeout_ms: float = 10_000) -> None:
        """SIGTERM, wait, then SIGKILL; only ever the process of the record."""
        deadline = self._clock.monotonic_ms() + timeout_ms
        self.send(record, signal.SIGTERM)
        while self.alive(record) and self._clock.monotonic_ms() < deadline:
            await self._clock.sleep_ms(20)
        self.send(record, signal.SIGKILL)

    def send(self, record: ProcessRecord, number: int) -> None:
        """Signal the process, if it is still the same one."""
        if record.pid is not None and self.alive(record):
            try:
                os.kill(record.pid, number)
            except ProcessLookupError:
                pass  # it ended between the look and the signal

    def last_words(self, folder: Folder) -> str:
        """The last line of the process's log, for the report of an exit."""
        try:
            with folder.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2_000))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:300] if lines else ""

    def _reap(self) -> None:
        for pid in [pid for pid, child in self._children.items() if child.poll() is not None]:
            del self._children[pid]
