"""Promises of an agent that is the first process of a container: it says when all serves, and takes its processes with
it. The process is real, its broker a stand-in.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dataplane.agent.supervisor import start_time
from dataplane.contract.codec import to_plain
from dataplane.ledger.entry import Writer
from dataplane.ledger.mailbox import open_mailbox, publish
from providers.base.clock import SeededRng, SystemClock
from providers.base.registry import StoreAddress, open_store
from tests.dataplane.agent.test_agent import STAND_IN, assignment
from tests.dataplane.agent.test_agent import bucket as bucket

BOUND_S = 20


def test_an_agent_in_a_container_is_ready_when_all_serves_and_ends_with_its_processes(
    tmp_path: Path, bucket: StoreAddress
) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    ready = folder / "serving"
    ready.touch()  # of an earlier life
    config = {
        "cell": "cell",
        "agent": "a1",
        "zone": "z1",
        "bucket": to_plain(bucket),
        "broker_command": list(STAND_IN),
        "stop_with_agent": True,
        "ready_file": str(ready),
    }
    (folder / "config.json").write_text(json.dumps(config))

    async def tell() -> None:
        clock, rng = SystemClock(), SeededRng("cp")
        store = open_store(bucket, clock=clock, rng=rng)
        mailbox = open_mailbox(store, "a1", Writer("cp", "cp"), clock=clock, rng=rng)
        await mailbox.open()
        await publish(mailbox, assignment(1, "b-1", bucket=bucket))
        await store.close()

    def broker() -> int | None:
        try:
            return int(json.loads((folder / "run" / "b-1" / "ready.json").read_text())["pid"])
        except (OSError, ValueError):
            return None

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + BOUND_S
        while not condition():
            assert time.monotonic() < deadline, (folder / "err").read_text()
            time.sleep(0.02)

    asyncio.run(tell())
    argv = [sys.executable, "-m", "dataplane.agent", "--state-dir", str(folder), "--config"]
    with (folder / "err").open("w") as errors:
        agent = subprocess.Popen([*argv, str(folder / "config.json")], stderr=errors)
        try:
            until(lambda: broker() is not None and ready.exists())
            pid = broker()
            assert pid is not None
            assert start_time(pid) is not None
            agent.terminate()
            assert agent.wait(timeout=BOUND_S) == 0
            assert start_time(pid) is None, "what it ran ended with it"
            assert not ready.exists()
        finally:
            agent.kill()
