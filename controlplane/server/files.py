"""The state directory: what lies where, who may use it, and whether this version can.

<state_dir>/version        layout version
<state_dir>/lock           held by the command that starts or stops things
<state_dir>/processes/     a record a process
<state_dir>/lab/<cloud>/   an emulated cloud: objects, volumes, credentials
<state_dir>/agents/<cloud>-<zone>/   an agent's journal
<state_dir>/controlplane/  store.sqlite, token, ready.json, log
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from providers.base.clock import Rng
from providers.base.errors import Conflict, Full, Invalid, Unavailable
from providers.base.files import replace_file
from providers.lab.processes import is_out_of_space

LAYOUT_VERSION = 1
FREE_BYTES_MIN = 64 << 20
"""Below this `up` does not begin: the WAL rings and the ledger would meet a full disk within minutes."""
CONTROL_PLANE = "controlplane"
"""Process name of the control plane."""


def agent_name(cloud: str, zone: str) -> str:
    """Process name of an agent."""
    return f"{cloud}.agent.{zone}"


@dataclass(frozen=True, slots=True)
class StateDir:
    """A state directory, which need not exist yet. `root` is absolute."""

    root: Path

    @property
    def controlplane(self) -> Path:
        return self.root / "controlplane"

    @property
    def store(self) -> Path:
        return self.controlplane / "store.sqlite"

    @property
    def ready(self) -> Path:
        """JSON: pid, port; written when the API answers."""
        return self.controlplane / "ready.json"

    @property
    def token(self) -> Path:
        """The API's bearer token, readable by the owner alone."""
        return self.controlplane / "token"

    @property
    def log(self) -> Path:
        return self.controlplane / "log"

    def agent(self, cloud: str, zone: str) -> Path:
        return self.root / "agents" / f"{cloud}-{zone}"

    def entries(self) -> list[Path]:
        """All that lies in it, except other state directories: a drill's or a benchmark's may stand inside."""
        return [path for path in self.root.iterdir() if not (path / "version").exists()]

    def purge(self) -> None:
        """Remove everything in it, and itself unless another state directory stands inside."""
        # The version goes last: a purge that was cut off leaves a state directory, which can be purged again.
        for path in sorted(self.entries(), key=lambda path: path.name == "version"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        try:
            self.root.rmdir()
        except OSError:
            pass  # another state directory stands inside

    def exists(self) -> bool:
        """Whether something was ever started here."""
        return (self.root / "version").exists()

    def check(self) -> None:
        """That this version can use what is there, if anything is. Touches nothing.

        Raises:
            Invalid: made by another version, no state directory, or not readable.
        """
        try:
            text = (self.root / "version").read_text().strip()
        except FileNotFoundError:
            if self.root.is_dir() and any(p.name != "lock" for p in self.entries()):
                raise Invalid(
                    f"{self.root} is not empty and not a state directory", hint="choose another --state-dir"
                ) from None
            return
        except OSError as error:
            raise self._unusable(error) from error
        if text != str(LAYOUT_VERSION):
            raise Invalid(
                f"{self.root} was made by another version of yunhe (layout {text}, here {LAYOUT_VERSION})",
                hint="use that version, or another --state-dir",
            )

    def _unusable(self, error: OSError) -> Invalid | Full:
        if is_out_of_space(error):
            return Full(f"the disk that holds {self.root} is full", hint="make room; nothing was started")
        return Invalid(f"{self.root} cannot be used: {error.strerror}", hint="choose another --state-dir")

    def create(self) -> None:
        """Make it, or check that this version can use it.

        Raises:
            Invalid: not writable, not a directory of ours, another version's.
            Full: hardly any room on its disk.
        """
        self.check()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self.exists():
                # First of all: what follows may then lie here.
                (self.root / "version").write_text(f"{LAYOUT_VERSION}\n")
            self.controlplane.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise self._unusable(error) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise Invalid(f"{self.root} is not writable", hint="choose another --state-dir")
        space = os.statvfs(self.root)
        if (free := space.f_bavail * space.f_frsize) < FREE_BYTES_MIN:
            raise Full(
                f"the disk that holds {self.root} has only {free >> 20} MiB left",
                hint=f"make room for at least {FREE_BYTES_MIN >> 20} MiB; nothing was started",
            )

    @contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """Hold the directory for a command that starts or stops things. The lock goes with the process, however that
        ends.

        Raises:
            Conflict: another command holds it.
            Invalid: it cannot be used.
        """
        self.check()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                held_by = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise Conflict(
                    f"another command is at work on {self.root}{f': {held_by}' if held_by else ''}",
                    hint="wait until it has ended, or use another --state-dir",
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"yunhe {doing}, pid {os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def read_token(self) -> str:
        """Raises Unavailable when there is none."""
        try:
            return self.token.read_text().strip()
        except OSError as error:
            raise Unavailable("the control plane was never started here", hint="start it: yunhe up SPEC") from error

    def make_token(self, rng: Rng) -> str:
        """The token, made if there is none."""
        try:
            descriptor = os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self.read_token()
        with os.fdopen(descriptor, "w") as file:
            file.write(rng.token())
        return self.read_token()

    def port(self) -> int:
        """The API's port as last used, 0 when there is none yet."""
        try:
            return int(json.loads((self.controlplane / "port.json").read_text())["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def keep_port(self, port: int) -> None:
        """Remember the API's port, so that it stays over restarts."""
        replace_file(self.controlplane / "port.json", json.dumps({"port": port}).encode())
