"""tgtd, a SCSI target that nobody here wrote, with real persistent reservations: started as a subprocess on a free
loopback port with a control socket of its own, ended by its process id."""

from __future__ import annotations

import asyncio
import ctypes.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from providers.base.clock import SystemClock
from providers.base.registry import VolumesAddress, open_volumes
from providers.base.volumes import BlockDevice, Volume

START_S_MAX = 20.0
TARGET = "iqn.2026-11.dev.yunhe.test:volumes"


def why_not() -> str | None:
    """Why tgtd cannot run here, or None."""
    if shutil.which("tgtd") is None or shutil.which("tgtadm") is None:
        return "tgtd is not installed (Debian: apt install tgt)"
    if ctypes.util.find_library("iscsi") is None and not Path("/usr/lib/x86_64-linux-gnu/libiscsi.so.7").exists():
        return "libiscsi is not installed (Debian: apt install libiscsi7)"
    if os.geteuid() != 0:
        return "tgtd needs root"
    return None


class Tgtd:
    """One target; `add` gives it units."""

    def __init__(self, tmp_path: Path) -> None:
        self._root = tmp_path / "tgtd"
        self._root.mkdir(exist_ok=True)
        # A unix socket's path has room for about 100 bytes, and tmp_path may be longer.
        self._sockets = tempfile.TemporaryDirectory(prefix="yt-")
        self._environment = {**os.environ, "TGT_IPC_SOCKET": f"{self._sockets.name}/s"}
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._units: dict[int, str] = {}

    async def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        log = (self._root / "log").open("wb")
        argv = ["tgtd", "-f", "-C", "0", "--iscsi", f"portal=127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(argv, env=self._environment, stdout=log, stderr=log)  # noqa: ASYNC220
        log.close()
        async with asyncio.timeout(START_S_MAX):
            while not self._ready():
                assert self.process.poll() is None, (self._root / "log").read_text()
                await asyncio.sleep(0.02)
        self.admin("target", "new", "--targetname", TARGET)
        for lun, serial in self._units.items():
            self._serve(lun, serial)
        # Nobody logs in before the units are there again.
        self.admin("target", "bind", "--initiator-address", "127.0.0.1")

    def _ready(self) -> bool:
        argv = ["tgtadm", "-C", "0", "--lld", "iscsi", "--mode", "target", "--op", "show"]
        done = subprocess.run(argv, env=self._environment, capture_output=True, timeout=10)
        if done.returncode:
            return False
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def admin(self, mode: str, op: str, *arguments: str) -> None:
        argv = ["tgtadm", "-C", "0", "--lld", "iscsi", "--mode", mode, "--op", op, "--tid", "1", *arguments]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=10)
        assert done.returncode == 0, done.stderr

    def add(self, serial: str, size_bytes: int) -> int:
        """A unit of that size with that serial number; its number."""
        lun = len(self._units) + 1
        with self.backing(lun).open("wb") as file:
            file.truncate(size_bytes)
        self._units[lun] = serial
        self._serve(lun, serial)
        return lun

    def _serve(self, lun: int, serial: str) -> None:
        self.admin("logicalunit", "new", "--lun", str(lun), "--backing-store", str(self.backing(lun)))
        self.admin("logicalunit", "update", "--lun", str(lun), "--params", f"scsi_sn={serial}")

    def backing(self, lun: int) -> Path:
        return self._root / f"unit-{lun}"

    @property
    def endpoint(self) -> str:
        return f"iscsi://127.0.0.1:{self.port}/{TARGET}"

    def address(self) -> VolumesAddress:
        return VolumesAddress("private", "site", self.endpoint)

    def kill(self) -> None:
        """As a power cut for the array; `start` brings it back with its units. (SIGTERM is answered only while nobody
        is logged in.)"""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.kill()
        self._sockets.cleanup()


class TgtdVolumes:
    """`BlockVolumes` for the suite: what an array's administrator does by hand is done by tgtadm, and volumes are
    opened as a broker opens them."""

    def __init__(self, target: Tgtd, ours: Callable[[bytes], bool] | None = lambda head: True) -> None:
        """`ours`: whatever the suite writes, unless told otherwise."""
        self._target = target
        self._volumes = open_volumes(target.address(), clock=SystemClock(), ours=ours)

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        self._target.add(volume_id, size_bytes)
        return Volume(volume_id, size_bytes, tuple(zones), ())

    async def attach(self, volume_id: str, zone: str) -> Volume:
        """Nothing to do: every initiator on this machine reaches every unit."""
        return Volume(volume_id, 0, (zone,), (zone,))

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        return await self._volumes.open(volume_id, zone)
