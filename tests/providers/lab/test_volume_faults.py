"""Faults of the volume daemon, seen by its real client over its real socket: what is refused is not written, and the
fence stays a fence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from providers.base.clock import SystemClock
from providers.base.errors import Fenced, Full, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.loops import run_loop
from providers.base.registry import VolumesAddress
from providers.base.volumes import BLOCK_BYTES
from providers.lab.admin import VolumeAdmin
from providers.lab.volumes_client import ClientSettings, LabBlockVolumes
from tests.conformance.volumes_lab import VolumeDaemon

TOKEN = "admin-of-the-test"
A, B = b"a" * BLOCK_BYTES, b"b" * BLOCK_BYTES


class WithToken(VolumeDaemon):
    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path, "aliyun")
        self.credentials = tmp_path / "credentials.json"
        self.credentials.write_text(json.dumps({"admin_token": TOKEN}))

    def argv(self) -> list[str]:
        return [*super().argv(), "--credentials", str(self.credentials)]


class Volumes:
    """A daemon with a volume in two zones, attached in both."""

    def __init__(self, daemon: WithToken) -> None:
        self.daemon = daemon
        self.admin = VolumeAdmin("volumes", daemon.listen, TOKEN)
        settings = ClientSettings(call_timeout_ms=3_000)
        where = VolumesAddress("aliyun", "r", daemon.listen)
        self.client = LabBlockVolumes(where, clock=SystemClock(), settings=settings)

    async def call(self, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await asyncio.to_thread(self.admin.call, method, target, body)

    async def fault(self, kind: str, **fields: Any) -> None:
        await self.call("POST", "/-/faults", {"add": [{"id": kind, "kind": kind, "for_ms": 30_000, **fields}]})

    async def clear(self) -> None:
        await self.call("POST", "/-/faults", {"clear": "all"})


@contextlib.asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Volumes]:
    daemon = WithToken(tmp_path)
    try:
        await daemon.start()
        volumes = Volumes(daemon)
        await volumes.client.create("v", size_bytes=16 * BLOCK_BYTES, zones=("h", "i"), share_max=2)
        await volumes.client.attach("v", "h")
        await volumes.client.attach("v", "i")
        yield volumes
    finally:
        daemon.close()


def run(tmp_path: Path, body: Callable[[Volumes], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running(tmp_path) as volumes:
            await body(volumes)

    run_loop(main())


def test_a_zones_loss_cuts_its_attachments_and_no_others(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        here, there = await volumes.client.open("v", "h"), await volumes.client.open("v", "i")
        await here.register(5)
        await here.reserve()
        await here.write(0, A)
        await volumes.fault("zone-loss", zone="h")
        with pytest.raises(Unavailable):
            await here.write(0, B)
        with pytest.raises(Unavailable):
            await volumes.client.open("v", "h")
        # The survivor takes over, and reads what was acked.
        await there.register(6)
        await there.preempt(5)
        assert await there.read(0, BLOCK_BYTES) == A
        await there.write(0, B)
        await volumes.clear()
        back = await volumes.client.open("v", "h")
        assert await back.read(0, BLOCK_BYTES) == B
        await back.register(5)
        with pytest.raises(Fenced):
            await back.write(0, A)
        for device in (here, there, back):
            await device.close()

    run(tmp_path, body)


def test_a_loss_that_begins_later_cuts_when_it_begins(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        device = await volumes.client.open("v", "h")
        await volumes.fault("zone-loss", zone="h", after_ms=300)
        assert await device.read(0, BLOCK_BYTES)
        async with asyncio.timeout(10):
            while True:
                try:
                    await device.read(0, BLOCK_BYTES)
                except Unavailable:
                    break
                await asyncio.sleep(0.02)
        await device.close()

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("kind", "error"), [("io-error", Unavailable), ("disk-full", Full), ("timeout", OutcomeUnknown)]
)
def test_a_refused_write_changes_nothing(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    async def body(volumes: Volumes) -> None:
        device = await volumes.client.open("v", "h")
        await device.write(0, A)
        await volumes.fault(kind, service="volumes")
        with pytest.raises(error):
            await device.write(0, B)
        await volumes.clear()
        assert await device.read(0, BLOCK_BYTES) == A
        await device.close()

    run(tmp_path, body)


def test_a_full_disk_is_still_read(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        device = await volumes.client.open("v", "h")
        await device.write(0, A)
        await volumes.fault("disk-full")
        assert await device.read(0, BLOCK_BYTES) == A
        await device.close()

    run(tmp_path, body)


def test_a_lost_answer_of_a_write_that_landed(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        device = await volumes.client.open("v", "h")
        await volumes.fault("lost", verb="write")
        with pytest.raises(OutcomeUnknown):
            await device.write(0, B)
        await volumes.clear()
        again = await volumes.client.open("v", "h")
        assert await again.read(0, BLOCK_BYTES) == B
        await device.close()
        await again.close()

    run(tmp_path, body)


def test_slow_answers_overlap_and_a_slow_disk_queues(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        device = await volumes.client.open("v", "h")
        await volumes.fault("latency", latency="200ms", verb="write")
        began = time.monotonic()
        await asyncio.gather(*(device.write(i * BLOCK_BYTES, A) for i in range(8)))
        took = time.monotonic() - began
        assert 0.2 <= took < 0.2 * 8, "devices answer many requests at a time"
        await volumes.clear()
        await volumes.fault("slow-disk", bytes_s=BLOCK_BYTES * 20)
        began = time.monotonic()
        await asyncio.gather(*(device.write(i * BLOCK_BYTES, B) for i in range(8)))
        assert time.monotonic() - began >= 0.39, "eight blocks at twenty a second"
        assert await device.read(0, BLOCK_BYTES) == B
        await device.close()

    run(tmp_path, body)


def test_the_fence_holds_however_slow_the_answers_are(tmp_path: Path) -> None:
    """A wait is on the answer's way back: what a preempt has shut out cannot land behind it."""

    async def body(volumes: Volumes) -> None:
        old, new = await volumes.client.open("v", "h"), await volumes.client.open("v", "i")
        await old.register(5)
        await old.reserve()
        await new.register(6)
        await volumes.fault("latency", latency="50ms..400ms", zone="h", seed=3)
        early = [asyncio.create_task(old.write(i * BLOCK_BYTES, A)) for i in range(8)]
        await asyncio.sleep(0.01)
        await new.preempt(5)
        seen = await new.read(0, 8 * BLOCK_BYTES)
        late = [asyncio.create_task(old.write(i * BLOCK_BYTES, B)) for i in range(8)]
        outcomes = await asyncio.gather(*early, *late, return_exceptions=True)
        assert all(isinstance(one, Fenced) for one in outcomes[8:])
        assert await new.read(0, 8 * BLOCK_BYTES) == seen, "nothing lands after the preempt"
        for i, one in enumerate(outcomes[:8]):
            if one is None:
                assert seen[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] == A, "what was acked was there"
        await old.close()
        await new.close()

    run(tmp_path, body)


def test_the_control_apis_outage_leaves_the_devices_be(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        device = await volumes.client.open("v", "h")
        await volumes.fault("error", service="control", status=503)
        for ask in (
            volumes.client.describe(),
            volumes.client.attach("v", "h"),
            volumes.client.detach("v", "h"),
            volumes.client.create("w", size_bytes=BLOCK_BYTES, zones=("h",), share_max=1),
        ):
            with pytest.raises(Unavailable, match="503"):
                await ask
        await device.write(0, A)
        other = await volumes.client.open("v", "i")
        assert await other.read(0, BLOCK_BYTES) == A
        await volumes.clear()
        assert [volume.id for volume in await volumes.client.describe()] == ["v"]
        await volumes.fault("error", service="control", status=403)
        with pytest.raises(Invalid, match="403"):
            await volumes.client.describe()
        await device.close()
        await other.close()

    run(tmp_path, body)


def test_the_meter_counts_writes_reads_and_what_stands(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        device = await volumes.client.open("v", "h")
        await volumes.call("POST", "/-/meter", {"reset": True})
        memory = await device.allocate(2 * BLOCK_BYTES)
        memory[:] = A + B
        for _ in range(5):
            await device.write(0, A)
        await device.write(0, memory)
        assert await device.read(0, BLOCK_BYTES) == A
        counted = await volumes.call("GET", "/-/meter?since=reset")
        rows = {(row["service"], row["verb"]): row for row in counted["rows"]}
        writes, reads = rows["volumes", "write"], rows["volumes", "read"]
        assert (writes["requests"], writes["bytes_in"], writes["zone"]) == (6, 7 * BLOCK_BYTES, "h")
        assert (reads["requests"], reads["bytes_out"]) == (1, BLOCK_BYTES)
        [regional] = [row for row in counted["standing"] if row["what"] == "volume:regional"]
        assert regional["bytes"] == 16 * BLOCK_BYTES and regional["gib_hours"] > 0
        await device.close()

    run(tmp_path, body)


def test_a_restarted_daemon_keeps_its_faults(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        await volumes.fault("zone-loss", zone="h")
        volumes.daemon.kill()
        await volumes.daemon.start()
        with pytest.raises(Unavailable):
            await volumes.client.open("v", "h")
        there = await volumes.client.open("v", "i")
        await there.close()

    run(tmp_path, body)


def test_admin_calls_need_the_token_and_garbage_changes_nothing(tmp_path: Path) -> None:
    async def body(volumes: Volumes) -> None:
        stranger = VolumeAdmin("volumes", volumes.daemon.listen, "not-it")
        with pytest.raises(Invalid, match="admin token"):
            await asyncio.to_thread(stranger.call, "POST", "/-/faults", {"clear": "all"})
        await volumes.fault("latency", latency="1ms")
        for garbage in (
            {"add": [{"id": "x", "kind": "boom", "for_ms": 5}]},
            {"clear": ["nope"]},
            {"rules": [{"a": 1}]},
        ):
            with pytest.raises((Invalid, NotFound)):
                await volumes.call("POST", "/-/faults", garbage)
        shown = await volumes.call("GET", "/-/faults")
        assert [one["id"] for one in shown["faults"]] == ["latency"]

    run(tmp_path, body)
