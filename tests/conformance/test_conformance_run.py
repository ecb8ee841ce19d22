"""A run over a real account leaves it as it was: the lab plays the account."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.registry import open_store
from tests.conformance.stores import PROVIDER, ObjectServer, start_object_server

ROOT = Path(__file__).parents[2]

SOME = "test_list_pages_without_gap_or_repeat or test_process_killed_in_a_stream or test_copy_if_absent"
"""Tests that make objects, pages of them, and an upload that its process leaves behind."""


def conformance(server: ObjectServer, bucket: str) -> subprocess.CompletedProcess[str]:
    """As `make conformance CLOUD=…` runs it."""
    environment = {
        **os.environ,
        "YUNHE_CLOUD": PROVIDER[server.dialect],
        "YUNHE_CONFORMANCE_BUCKET": bucket,
        "YUNHE_CONFORMANCE_REGION": "us-east-1",
        "YUNHE_CONFORMANCE_ENDPOINT": server.endpoint,
        "YUNHE_CONFORMANCE_CREDENTIALS": f"file:{server.credentials}",
    }
    files = [f"tests/conformance/test_object_store{part}.py" for part in ("", "_append", "_streams")]
    argv = [sys.executable, "-m", "pytest", "-rxXs", "-k", SOME, *files]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fails", [False, True], ids=["passes", "fails"])
def test_run_over_an_account_leaves_it_as_it_was(fails: bool, tmp_path: Path) -> None:
    bucket = "somebodys-own"
    theirs = {"ledger/00000000000000000001": b"1", "yunhe-conformance": b"2", "yunhe-conformance-old/k": b"3"}
    with start_object_server("s3", tmp_path) as server:

        async def prepare() -> None:
            store = open_store(server.address(bucket), clock=SystemClock(), rng=SystemRng())
            await store.ensure_bucket()
            for key, data in theirs.items():
                await store.put(key, data, if_absent=True)
            await store.close()

        async def inspect() -> tuple[dict[str, bytes], int]:
            store = open_store(server.address(bucket), clock=SystemClock(), rng=SystemRng())
            found = {row.key: await store.get(row.key) for row in await store.list("")}
            left = await store.collect_uploads("", 0)
            await store.close()
            return found, left

        asyncio.run(prepare())
        if fails:
            # Conditional copies are refused: that test fails, in the middle.
            server.set_faults(
                {"method": "PUT", "contains": "copy", "error_status": 400, "error_code": "InvalidRequest"}
            )
        done = conformance(server, bucket)
        server.set_faults()
        assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
        assert " passed" in done.stdout
        asked = server.requests()
        assert any("yunhe-conformance-" in target for _, target, _ in asked)
        assert not any(method == "PUT" and target == f"/{bucket}" for method, target, _ in asked[3:])
        assert asyncio.run(inspect()) == (theirs, 0)
