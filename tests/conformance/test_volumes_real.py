"""Real volumes beyond the fence's common clauses: sessions that break, targets that end, units found by name, and what
a host or an array leaves to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from providers.base.clock import SystemClock
from providers.base.errors import Fenced, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.registry import VolumesAddress, open_volumes
from providers.base.volumes import BLOCK_BYTES
from tests.conformance import volumes_tgtd
from tests.conformance.test_volumes import NEW, OLD, SIZE, A, B, close, make, owned, owned_by_preempt, tgtd_of
from tests.conformance.volumes_tgtd import Tgtd, TgtdVolumes


@pytest.fixture
def tgtd(tmp_path: Path) -> Callable[..., None]:
    """Runs a test's body over a target of its own."""
    if why := volumes_tgtd.why_not():
        pytest.skip(f"tgtd: {why}")

    def run(body: Callable[[Tgtd, TgtdVolumes], Awaitable[None]]) -> None:
        async def main() -> None:
            async with tgtd_of(tmp_path) as target:
                await body(target, TgtdVolumes(target))

        asyncio.run(main())

    return run


def test_holder_whose_session_broke_comes_back_under_its_key_and_its_earlier_session_is_fenced(tgtd: Any) -> None:
    async def body(target: Tgtd, volumes: TgtdVolumes) -> None:
        old, other = await make(volumes)  # type: ignore[arg-type]
        await owned(old, OLD)
        await old.write(0, A)
        writes = [asyncio.create_task(old.write(n * BLOCK_BYTES, A)) for n in range(8)]
        await asyncio.sleep(0)
        old._unit.session.cut()  # type: ignore[attr-defined] -- as a network that fails
        for outcome in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(outcome, OutcomeUnknown)
        with pytest.raises(Unavailable):
            await old.reservation()
        assert (await other.reservation()).holder == OLD
        again = await volumes.open("v", "h")
        with pytest.raises(Fenced):  # a session that has not registered is nobody
            await again.write(0, B)
        await owned(again, OLD)
        await again.write(0, B)
        assert (await other.reservation()).registered == frozenset({OLD})
        await owned_by_preempt(other, NEW, OLD)
        with pytest.raises(Fenced):
            await again.write(0, A)
        await close(old, other, again)

    tgtd(body)


@pytest.mark.xfail(strict=True, reason="tgtd forgets reservations when it ends: it has no APTPL (PTPL_C is 0)")
def test_reservation_survives_the_targets_restart(tgtd: Any) -> None:
    async def body(target: Tgtd, volumes: TgtdVolumes) -> None:
        old, other = await make(volumes)  # type: ignore[arg-type]
        await owned(old, OLD)
        target.kill()
        await target.start()
        await close(old, other)
        fresh = await TgtdVolumes(target).open("v", "h")
        assert (await fresh.reservation()).holder == OLD
        await fresh.close()

    tgtd(body)


def test_target_that_ends_is_unavailable_and_writes_under_way_are_unknown(tgtd: Any) -> None:
    async def body(target: Tgtd, volumes: TgtdVolumes) -> None:
        one, two = await make(volumes)  # type: ignore[arg-type]
        await owned(one, OLD)
        writes = [asyncio.create_task(one.write(n * BLOCK_BYTES, A)) for n in range(30)]
        await writes[0]
        target.kill()
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, OutcomeUnknown) for outcome in outcomes)
        for ask in (one.reservation(), one.read(0, 1), one.register(NEW)):
            with pytest.raises(Unavailable):
                await ask
        with pytest.raises(Unavailable):
            await volumes.open("v", "h")
        kept = target.backing(1).read_bytes()
        for n, outcome in enumerate(outcomes):
            if outcome is None:
                assert kept[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES] == A
        await close(one, two)

    tgtd(body)


def test_unit_is_found_by_what_the_array_calls_it_and_nothing_is_guessed(tgtd: Any) -> None:
    async def body(target: Tgtd, volumes: TgtdVolumes) -> None:
        await volumes.create("wal-1", size_bytes=SIZE, zones=("h",), share_max=2)
        await volumes.create("wal-2", size_bytes=2 * SIZE, zones=("h",), share_max=2)
        for name, size in (("wal-2", 2 * SIZE), ("lun-1", SIZE)):
            device = await volumes.open(name, "h")
            assert device.size_bytes == size
            await device.close()
        renamed = VolumesAddress("private", "r", target.endpoint, {"cell-b1": "wal-2"})
        device = await open_volumes(renamed, clock=SystemClock()).open("cell-b1", "h")
        assert device.size_bytes == 2 * SIZE
        await device.close()
        for name in ("wal-3", "lun-0", "lun-9", "wal"):
            with pytest.raises(NotFound, match=name):
                await volumes.open(name, "h")
        await volumes.create("wal-2", size_bytes=SIZE, zones=("h",), share_max=2)
        with pytest.raises(Invalid, match="all called wal-2"):
            await volumes.open("wal-2", "h")
        pinned = open_volumes(VolumesAddress("private", "r", f"{target.endpoint}/1"), clock=SystemClock())
        with pytest.raises(NotFound):
            await pinned.open("wal-2", "h")
        for endpoint in (target.endpoint + "-other", "iscsi://127.0.0.1:1/iqn.x"):
            with pytest.raises(Unavailable):
                await open_volumes(VolumesAddress("private", "r", endpoint), clock=SystemClock()).open("wal-1", "h")

    tgtd(body)


def test_abort_that_the_array_does_not_know_is_refused_when_the_volume_is_opened(tgtd: Any) -> None:
    """Not in the takeover that needs it."""

    async def body(target: Tgtd, volumes: TgtdVolumes) -> None:
        await volumes.create("v", size_bytes=SIZE, zones=("h",), share_max=2)
        address = VolumesAddress("private", "r", f"{target.endpoint}?abort=yes")
        with pytest.raises(Invalid, match="PREEMPT_AND_ABORT") as refused:
            await open_volumes(address, clock=SystemClock()).open("v", "h")
        assert "abort=yes" in (refused.value.hint or "")

    tgtd(body)


def test_unit_that_holds_something_else_is_not_opened(tgtd: Any) -> None:
    async def body(target: Tgtd, volumes: TgtdVolumes) -> None:
        await volumes.create("v", size_bytes=SIZE, zones=("h",), share_max=2)
        with target.backing(1).open("r+b") as file:
            file.write(b"XFSB" + bytes(1000))
        cautious = TgtdVolumes(target, ours=None)
        with pytest.raises(Invalid, match="an XFS file system"):
            await cautious.open("v", "h")
        known = TgtdVolumes(target, ours=lambda head: head.startswith(b"XFSB"))
        await (await known.open("v", "h")).close()

    tgtd(body)


# ---- real hosts and arrays have no control half


@pytest.mark.parametrize("endpoint", [None, "iscsi://127.0.0.1:1/iqn.x"])
def test_control_half_of_a_real_volume_is_refused_with_where_it_is(endpoint: str | None) -> None:
    async def main() -> None:
        volumes = open_volumes(VolumesAddress("aws", "r", endpoint), clock=SystemClock())
        for call in (
            volumes.create("v", size_bytes=SIZE, zones=("h",), share_max=1),
            volumes.attach("v", "h"),
            volumes.detach("v", "h"),
            volumes.describe(),
            volumes.delete("v"),
        ):
            with pytest.raises(Invalid) as refused:
                await call
            assert refused.value.hint and "beforehand" in refused.value.hint
        await volumes.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "endpoint",
    [
        "iscsi://",
        "iscsi://h",
        "iscsi://h/",
        "iscsi://h:x/iqn.x",
        "iscsi://h/iqn.x/y",
        "iscsi://h/iqn.x/1/2",
        "iscsi://h/iqn.x?abort=perhaps",
        "iscsi://h/iqn.x?retry=1",
        "iscsi://user:secret@h/iqn.x",
        "iscsi://h/iqn.x/16384",
    ],
)
def test_malformed_iscsi_addresses_are_refused(endpoint: str) -> None:
    with pytest.raises(Invalid):
        open_volumes(VolumesAddress("private", "r", endpoint), clock=SystemClock())
    with pytest.raises(Invalid):
        open_volumes(VolumesAddress("nowhere", "r"), clock=SystemClock())
