"""Judges as processes: installed by their script, started on a port of their own choosing, ended by their own id."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.conformance.stores import NotInstallable

INSTALLERS = Path(__file__).parents[3] / "tools/judges"
START_S_MAX = 30.0
END_S_MAX = 10.0


def installed(name: str) -> str:
    """The path of a judge's program, which its script in `tools/judges/` installs if need be.

    Raises:
        NotInstallable: the script says why.
    """
    done = subprocess.run([str(INSTALLERS / f"{name}.sh")], capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise NotInstallable(said[-1] if said else f"{name}'s installer ended with {done.returncode}")
    return done.stdout.strip()


class Server:
    """A process that listens on one TCP port, asked for as port 0: the kernel says which it became."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        try:
            self.port = self._port()
        except BaseException:
            self.close()
            raise

    def _port(self) -> int:
        deadline = time.monotonic() + START_S_MAX
        watched = psutil.Process(self._process.pid)
        while True:
            assert self._process.poll() is None, f"the judge ended at once: {self._log.read_text()[-2000:]}"
            ports = [row.laddr.port for row in watched.net_connections("tcp4") if row.status == psutil.CONN_LISTEN]
            if ports:
                return int(ports[0])
            assert time.monotonic() < deadline, f"the judge did not get ready: {self._log.read_text()[-2000:]}"
            time.sleep(0.02)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
