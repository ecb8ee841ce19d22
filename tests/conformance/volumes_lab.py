"""A real volume daemon for tests: started as a subprocess on a unix socket, ended by its process id."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from providers.base.registry import VolumesAddress

START_S_MAX = 20.0


class VolumeDaemon:
    def __init__(self, tmp_path: Path, limits: str | None, listen: str | None = None) -> None:
        self.root = tmp_path / "volumes"
        self._ready = tmp_path / "volumes.ready"
        self._limits = limits
        # A unix socket's path has room for about 100 bytes, and tmp_path may be longer.
        self._sockets = tempfile.TemporaryDirectory(prefix="yv-")
        self.listen = listen or f"unix:{self._sockets.name}/s"
        self.process: subprocess.Popen[bytes] | None = None

    def argv(self) -> list[str]:
        limits = ["--limits", self._limits] if self._limits else []
        where = ["--root", str(self.root), "--listen", self.listen, "--ready-file", str(self._ready)]
        return [sys.executable, "-m", "providers.lab.volumes_server", *where, *limits]

    async def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.argv())  # noqa: ASYNC220 -- killed by signal, polled
        async with asyncio.timeout(START_S_MAX):
            while not self._ready.exists():
                assert self.process.poll() is None, "the volume daemon ended at once"
                await asyncio.sleep(0.01)
        self.listen = json.loads(self._ready.read_text())["listen"]

    def kill(self) -> None:
        """As a power cut for the process: no handler runs."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(5)

    def address(self) -> VolumesAddress:
        return VolumesAddress("aliyun", "cn-hangzhou", self.listen)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._sockets.cleanup()


async def start_volume_daemon(tmp_path: Path, limits: str | None = None, listen: str | None = None) -> VolumeDaemon:
    """Started and ready; `close()` ends it."""
    daemon = VolumeDaemon(tmp_path, limits, listen)
    try:
        await daemon.start()
    except BaseException:
        daemon.close()
        raise
    return daemon
