"""A cluster with a cache on disk: what was read of the bucket once is read without it, by the next process too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from controlplane.bench.fill import fill
from controlplane.drill.probe import create_topic, read_back
from providers.base.clock import SystemClock
from tests.running_lab import CLOUDS, SPEC, running

SETTINGS = (
    ", settings: {cacheBytesMax: 8MiB, uploadIntervalMs: 500, balanceIntervalMs: 0, diskCache: {path: %s, size: %s}}"
)
MIB = 1 << 20


def until(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        time.sleep(0.2)


def test_catch_up_reads_are_kept_on_disk_within_the_bound_and_found_by_the_next_process(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    spec = SPEC % {**CLOUDS[2], "more": SETTINGS % (cache, "64MiB")}
    with running(tmp_path, spec) as lab:
        bootstrap, clock = lab.bootstrap("plant"), SystemClock()
        create_topic(bootstrap, "t", 2)
        count = fill(bootstrap, "t", 96 * MIB, [0, 1])

        def held() -> int:
            return sum(path.stat().st_size for path in cache.rglob("*.blocks"))

        assert sum(map(len, read_back(bootstrap, "t", 2, clock).values())) == count
        until("blocks are kept", lambda: held() > 16 * MIB)
        folders = {path.parent.relative_to(cache) for path in cache.rglob("*.blocks")}
        assert folders == {Path("plant/plant/b-1"), Path("plant/plant/b-2")}
        for folder in folders:
            assert sum(path.stat().st_size for path in (cache / folder).glob("*.blocks")) <= 64 * MIB
        # A crash leaves it to the next process; damage meanwhile is read from the bucket.
        [victim] = [b for b in lab.cloud("plant")["brokers"] if b["name"] == "b-1"]
        for path in cache.rglob("*.blocks"):
            data = bytearray(path.read_bytes())
            for at in range(0, len(data), 100_000):
                data[at] ^= 0x40
            path.write_bytes(data)
        os.kill(victim["pid"], signal.SIGKILL)
        until("it is back", lambda: lab.cloud("plant")["state"] == "Ready")
        assert sum(map(len, read_back(lab.bootstrap("plant"), "t", 2, clock).values())) == count
        logs = "".join(path.read_text() for path in (lab.state_dir / "agents").rglob("log"))
        assert "disk-cache-open" in logs and "disk-cache-off" not in logs
