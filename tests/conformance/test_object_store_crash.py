"""kill -9 of an object server in the middle of writes: all that was acked is there after a restart, and nothing torn is
to be seen."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Unavailable, YunheError
from providers.base.registry import open_store
from tests.conformance.lab_disk import leave_torn_payload, leave_torn_record
from tests.conformance.stores import KINDS, Kind, start_object_server

WIRE = [kind for kind in KINDS if kind.dialect is not None and kind.name != "private"]


@pytest.mark.parametrize("kind", WIRE, ids=lambda kind: kind.name)
def test_what_was_acked_survives_kill_9_and_nothing_torn_is_visible(kind: Kind, tmp_path: Path) -> None:
    assert kind.dialect is not None
    with start_object_server(kind.dialect, tmp_path) as server:

        async def main() -> None:
            store = open_store(server.address(kind.bucket, kind.provider), clock=SystemClock(), rng=SystemRng())
            await store.ensure_bucket()
            sent: dict[str, bytes] = {}
            acked: set[str] = set()
            enough, killed = asyncio.Event(), asyncio.Event()

            async def writer(name: str) -> None:
                i = 0
                while not killed.is_set():
                    key = f"w/{name}/{i:06}"
                    sent[key] = os.urandom(1000 + 40_000 * (i % 5))
                    try:
                        await store.put(key, sent[key], if_absent=True)
                    except Unavailable:
                        continue
                    acked.add(key)
                    if len(acked) == 40:
                        enough.set()
                    i += 1

            async def killer() -> None:
                await enough.wait()
                server.kill()
                killed.set()

            await asyncio.gather(killer(), *(writer(name) for name in "abcd"))
            # What a crash in the middle of a write leaves behind.
            stale = leave_torn_payload(server.root)
            leave_torn_record(server.root)
            server.start()
            for key in acked:
                assert await store.get(key) == sent[key]
            for row in await store.list("w/"):
                data = await store.get(row.key)
                assert data == sent[row.key] and len(data) == row.size
            assert acked <= {row.key for row in await store.list("w/")}
            assert not stale.exists()
            await store.close()

        asyncio.run(main())


def test_acked_appends_survive_kill_9_and_a_torn_one_is_cut(tmp_path: Path) -> None:
    with start_object_server("s3", tmp_path) as server:

        async def main() -> None:
            address = server.address("yunhe--use1-az4--x-s3")
            store = open_store(address, clock=SystemClock(), rng=SystemRng())
            await store.ensure_bucket()
            await store.put("lane/1", b"head", if_absent=True)
            sent = acked = b"head"
            enough = asyncio.Event()

            async def writer() -> None:
                nonlocal sent, acked
                while True:
                    piece = os.urandom(3000)
                    sent = acked + piece
                    try:
                        await store.append("lane/1", len(acked), piece)
                    except YunheError:
                        return
                    acked = sent
                    if len(acked) > 60_000:
                        enough.set()

            async def killer() -> None:
                await enough.wait()
                server.kill()

            await asyncio.gather(writer(), killer())
            leave_torn_record(server.root)
            server.start()
            found = await store.get("lane/1")
            assert found in (acked, sent)
            await store.append("lane/1", len(found), b"after")
            assert await store.get("lane/1") == found + b"after"
            server.kill()
            server.start()
            assert await store.get("lane/1") == found + b"after"
            await store.close()

        asyncio.run(main())
