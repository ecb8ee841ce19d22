"""What every cloud's block-volume API promises (`providers.base.volume_api.VolumeApi`), over the lab's control servers
and each cloud's real SDK. Tests are grouped by the number of the obligation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from providers.base.blocking import StoreSettings
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Conflict, Full, Invalid, NotFound, Unavailable
from providers.base.registry import open_store, open_volumes
from providers.base.volume_api import AttachmentState, CloudVolume, VolumeApi, VolumeSpec
from providers.base.volumes import BLOCK_BYTES
from providers.base.waiting import WaitSettings
from tests.conformance.control import (
    BUDGET_S_MAX,
    MACHINES_PER_ZONE,
    REAL,
    RUN,
    ControlKind,
    ControlServer,
    of,
    parametrize,
    start_control_server,
    start_with_daemon,
)
from tests.conformance.stores import KINDS, start_object_server

pytestmark = pytest.mark.timeout(1800 if REAL else 90)

Body = Callable[[VolumeApi, ControlServer], Awaitable[None]]


@pytest.fixture(params=parametrize("volumes"), ids=str)
def kind(request: pytest.FixtureRequest) -> ControlKind:
    found: ControlKind = of(request)
    return found


@pytest.fixture
def over(kind: ControlKind, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a test's body over one cloud."""

    def run(body: Body) -> None:
        async def main() -> None:
            with start_control_server(kind, tmp_path) as server:
                async with opened(server) as api:
                    await body(api, server)

        asyncio.run(main())

    return run


@asynccontextmanager
async def opened(server: ControlServer, wait: WaitSettings | None = None) -> AsyncIterator[VolumeApi]:
    api = server.open_volumes(wait=wait)
    try:
        yield api
    finally:
        await api.close()


async def sharers(server: ControlServer, count: int = 2) -> list[str]:
    """So many different machines that may have the kind's shared volume at once; new ones where the lab has too few."""
    at = [server.kind.sharers[number % len(server.kind.sharers)] for number in range(count)]
    for zone in set(at):
        extra = [f"vm-extra-{zone}-{number}" for number in range(at.count(zone) - MACHINES_PER_ZONE)]
        if extra:
            server.admin("instances", {"add": [{"name": name, "zone": server.kind.zones[zone]} for name in extra]})
    by_zone = {zone: iter(await server.machines(zone)) for zone in set(at)}
    return [next(by_zone[zone]).id for zone in at]


def holders(volume: CloudVolume) -> set[str]:
    return {attachment.instance for attachment in volume.attachments}


async def ours(api: VolumeApi) -> list[CloudVolume]:
    """The suite's own volumes among all that there are: machines may have theirs."""
    return [volume for volume in await api.describe() if volume.name.startswith(f"{RUN}-")]


async def described(api: VolumeApi, volume_id: str) -> CloudVolume:
    (found,) = await api.describe([volume_id])
    return found


# ---- 1. idempotent


def test_create_again_gives_the_same_volume(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        first = await api.create(kind.shared)
        assert await api.create(kind.shared) == first
        async with opened(server) as another:  # another process, say, after a crash of the first
            assert await another.create(kind.shared) == first
        assert len(server.disks()) == 1
        assert (first.name, first.kind, first.size_bytes) == (
            kind.shared.name,
            kind.shared.kind,
            kind.shared.size_bytes,
        )
        assert first.share_max >= kind.shared.share_max and set(first.zones) == set(kind.shared.zones) and first.ready

    over(body)


def test_two_creates_at_once_make_one_volume(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        async with opened(server) as another:
            first, second = await asyncio.gather(api.create(kind.single), another.create(kind.single))
        assert first.id == second.id and len(server.disks()) == 1

    over(body)


def test_volume_of_the_same_name_with_other_properties_is_refused(
    over: Callable[[Body], None], kind: ControlKind
) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        await api.create(kind.single)
        with pytest.raises(Invalid):
            await api.create(replace(kind.single, size_bytes=2 * kind.single.size_bytes))
        assert len(server.disks()) == 1

    over(body)


def test_name_is_free_again_after_a_delete(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        await api.delete((await api.create(kind.single)).id)
        again = await api.create(kind.single)
        assert again.ready and await ours(api) == [again] and len(server.disks()) == 1

    over(body)


def test_attach_detach_and_delete_may_be_repeated(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.single)
        machine = (await sharers(server))[0]
        attached = await api.attach(volume.id, machine)
        assert await api.attach(volume.id, machine) == attached
        assert [a.state for a in attached.attachments] == [AttachmentState.ATTACHED] and holders(attached) == {machine}
        for _ in range(2):
            assert (await api.detach(volume.id, machine)).attachments == ()
        for _ in range(2):
            await api.delete(volume.id)
        assert server.disks() == [] and await api.describe([volume.id]) == []

    over(body)


# ---- 2. waits


def test_calls_return_when_the_change_shows(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        slow = dict.fromkeys(("create_ms", "attach_ms", "detach_ms", "delete_ms"), 400)
        server.admin("compute", {"durations": slow})
        volume = await api.create(kind.single)
        assert volume.ready
        machine = (await sharers(server))[0]
        (attachment,) = (await api.attach(volume.id, machine)).attachments
        assert attachment.state is AttachmentState.ATTACHED
        assert (await api.detach(volume.id, machine)).attachments == ()
        await api.delete(volume.id)
        assert server.disks() == []

    over(body)


def test_change_that_outlasts_its_wait_is_unavailable_and_a_repetition_finds_it(
    over: Callable[[Body], None], kind: ControlKind
) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        server.admin("compute", {"durations": {"create_ms": 1_500}})
        async with opened(server, WaitSettings(wait_timeout_ms=300, poll_ms=20, poll_ms_max=50)) as hasty:
            with pytest.raises(Unavailable):
                await hasty.create(kind.single)
        volume = await api.create(kind.single)
        assert volume.ready and len(server.disks()) == 1

    over(body)


def test_detach_waits_for_the_guest_and_force_does_not(over: Callable[[Body], None], kind: ControlKind) -> None:
    if not kind.forced_detach:
        pytest.skip(f"{kind} takes a volume over by a forced attach only")

    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.single)
        machine = (await sharers(server))[0]
        await api.attach(volume.id, machine)
        disk = server.disks()[0]
        server.admin("compute", {"hold": [[disk["spec"]["id"], disk["links"][0]["instance"], True]]})
        async with opened(server, WaitSettings(wait_timeout_ms=500, poll_ms=20, poll_ms_max=50)) as hasty:
            with pytest.raises(Unavailable) as caught:
                await hasty.detach(volume.id, machine)
        assert caught.value.hint is not None
        assert holders(await described(api, volume.id)) == {machine}
        assert (await api.detach(volume.id, machine, force=True)).attachments == ()

    over(body)


# ---- 3. limits first


def test_documented_limits_are_refused_before_anything_is_sent(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        spec = kind.single
        wrong: list[VolumeSpec] = [
            replace(spec, kind="no-such-class"),
            replace(spec, size_bytes=spec.size_bytes + 1),
            replace(spec, size_bytes=(1 << 20) * (1 << 30)),
            replace(spec, size_bytes=0),
            replace(spec, name="Wal_1"),
            replace(spec, name=""),
            replace(spec, share_max=0),
            replace(spec, share_max=1000),
            replace(kind.shared, share_max=1000),
            replace(spec, zones=(spec.zones or kind.zones[:1]) * 5),
            replace(kind.shared, iops=10**9),
        ]
        for each in wrong:
            with pytest.raises(Invalid) as caught:
                await api.create(each)
            assert caught.value.hint
        assert server.requests() == []

    over(body)


def test_instance_in_a_zone_that_the_volume_does_not_reach_is_invalid(
    over: Callable[[Body], None], kind: ControlKind
) -> None:
    if kind.stranger is None:
        pytest.skip(f"volumes of {kind} reach every zone")

    async def body(api: VolumeApi, server: ControlServer) -> None:
        strangers = await server.machines(kind.stranger or 0)
        if not strangers:
            pytest.skip("the account names no machine in another zone")
        volume = await api.create(kind.single)
        with pytest.raises(Invalid):
            await api.attach(volume.id, strangers[0].id)
        assert server.disks()[0]["links"] == []

    over(body)


def test_what_does_not_exist_is_not_found(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.single)
        machine = (await sharers(server))[0]
        gone = await api.create(kind.named("gone"))
        await api.delete(gone.id)
        with pytest.raises(NotFound):
            await api.attach(gone.id, machine)
        with pytest.raises(NotFound):
            await api.detach(gone.id, machine)
        server.admin("instances", {"remove": [server_id(server, machine)]})
        with pytest.raises(NotFound):
            await api.attach(volume.id, machine)

    over(body)


def server_id(server: ControlServer, machine: str) -> str:
    """The lab's own id of a machine that the adapter calls `machine` (a resource path, on some clouds)."""
    found: str = next(
        row["id"]
        for row in server.admin("instances")["instances"]
        if machine in (row["id"], row["name"]) or machine.endswith("/" + row["name"])
    )
    return found


# ---- sharing


def test_second_attach_shares_and_the_limit_is_a_conflict(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.shared)
        *sharing, last = await sharers(server, volume.share_max + 1)
        for number, machine in enumerate(sharing, 1):
            assert holders(await api.attach(volume.id, machine)) == set(sharing[:number])
        with pytest.raises(Conflict):
            await api.attach(volume.id, last)
        assert holders(await described(api, volume.id)) == set(sharing)

    over(body)


def test_volume_of_one_instance_is_a_conflict_for_a_second(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.single)
        first, second, *_ = [machine.id for machine in await server.machines(kind.sharers[0])]
        await api.attach(volume.id, first)
        with pytest.raises(Conflict):
            await api.attach(volume.id, second)
        assert holders(await described(api, volume.id)) == {first}

    over(body)


def test_attached_volume_is_not_deleted(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.single)
        await api.attach(volume.id, (await sharers(server))[0])
        with pytest.raises(Conflict):
            await api.delete(volume.id)
        assert len(server.disks()) == 1

    over(body)


def test_take_over_moves_the_volume_whatever_the_victim_does(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.shared)
        first, second = await sharers(server)
        await api.attach(volume.id, first)
        disk = server.disks()[0]
        server.admin("compute", {"hold": [[disk["spec"]["id"], disk["links"][0]["instance"], True]]})
        for _ in range(2):
            moved = await api.take_over(volume.id, first, second)
            assert holders(moved) == {second}
            assert [a.state for a in moved.attachments] == [AttachmentState.ATTACHED]

    over(body)


# ---- 4. an API error is no death, and nothing is doubled


@pytest.mark.parametrize("trouble", ["throttled", "failing", "gone"])
def test_no_answer_is_unavailable_within_the_budget(
    over: Callable[[Body], None], kind: ControlKind, trouble: str
) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        machine = (await sharers(server))[0]
        volume = await api.create(kind.single)
        server.set_faults(_rule(kind, trouble))
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: api.describe(),
            lambda: api.create(kind.named("another")),
            lambda: api.attach(volume.id, machine),
            lambda: api.delete(volume.id),
        ]
        for call in calls:
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await call()
            assert time.monotonic() - began < BUDGET_S_MAX
        server.set_faults()
        assert [disk["spec"]["name"] for disk in server.disks()] == [kind.single.name]

    over(body)


def test_silent_api_is_unavailable_within_the_budget(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        server.set_faults({"latency_ms": 30_000})
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await api.describe()
        assert time.monotonic() - began < BUDGET_S_MAX

    over(body)


def test_throttled_call_is_repeated(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        server.set_faults({**_rule(kind, "throttled"), "times": 1})
        assert await api.describe() == []
        assert server.requests()[0][2] == kind.throttled[0]

    over(body)


def test_lost_answer_to_a_create_makes_no_second_volume(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        server.set_faults({**kind.creates, "drop_answer": True})
        with pytest.raises(Unavailable):
            await api.create(kind.single)
        assert len(server.disks()) == 1
        server.set_faults()
        assert (await api.create(kind.single)).ready
        assert len(server.disks()) == 1

    over(body)


def test_lost_answer_to_an_attach_or_detach_is_learnt_by_repeating(
    over: Callable[[Body], None], kind: ControlKind
) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.single)
        machine = (await sharers(server))[0]
        server.set_faults({**kind.attaches, "drop_answer": True, "times": 1})
        await _repeat(lambda: api.attach(volume.id, machine))
        assert holders(await described(api, volume.id)) == {machine}
        server.set_faults({**kind.detaches, "drop_answer": True, "times": 1})
        await _repeat(lambda: api.detach(volume.id, machine))
        assert (await described(api, volume.id)).attachments == ()

    over(body)


async def _repeat(call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except Unavailable:
        await call()


def test_killed_control_server_forgets_nothing(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        volume = await api.create(kind.single)
        attached = await api.attach(volume.id, (await sharers(server))[0])
        server.kill()
        with pytest.raises(Unavailable):
            await api.describe()
        server.start()
        assert await ours(api) == [attached]
        assert await api.create(kind.single) == attached

    over(body)


def _rule(kind: ControlKind, trouble: str) -> dict[str, object]:
    if trouble == "gone":
        return {"unavailable": True}
    status, code = kind.throttled if trouble == "throttled" else kind.failing
    return {"error_status": status, "error_code": code}


# ---- 5. quota


def test_quota_is_full_with_a_hint_that_names_it(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        server.admin("compute", {"quotas": {"disks_max": 0}})
        with pytest.raises(Full) as caught:
            await api.create(kind.single)
        assert caught.value.hint and "quota" in caught.value.hint

    over(body)


# ---- bad input


def test_wrong_credentials_are_invalid_with_a_hint(kind: ControlKind, tmp_path: Path) -> None:
    async def main() -> None:
        with start_control_server(kind, tmp_path) as server:
            api = server.open_volumes(server.wrong_credentials)
            try:
                with pytest.raises(Invalid) as caught:
                    await api.describe()
                assert caught.value.hint and "credentials" in caught.value.hint
                secret = str(next(iter(kind.wrong.values())))
                assert secret not in str(caught.value) and secret not in caught.value.hint
            finally:
                await api.close()

    asyncio.run(main())


def test_missing_right_and_a_clock_that_is_off_have_hints_of_their_own(
    over: Callable[[Body], None], kind: ControlKind
) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        for (status, code), word in ((kind.refused, "credentials"), (kind.skewed, "clock")):
            server.set_faults({"error_status": status, "error_code": code})
            with pytest.raises((Invalid, Unavailable)) as caught:
                await api.describe()
            assert caught.value.hint and word in caught.value.hint

    over(body)


# ---- describe


def test_describe_reads_all_pages_and_leaves_out_what_is_not_there(
    over: Callable[[Body], None], kind: ControlKind
) -> None:
    async def body(api: VolumeApi, server: ControlServer) -> None:
        assert await ours(api) == []
        made = [await api.create(kind.named(f"page-{number}")) for number in range(7)]
        assert {volume.id for volume in await ours(api)} == {volume.id for volume in made}
        await api.delete(made[0].id)
        some = await api.describe([made[0].id, made[1].id, made[2].id])
        assert {volume.id for volume in some} == {made[1].id, made[2].id}
        assert await api.describe([]) == []

    over(body)


# ---- 6. the data


def test_forced_take_over_cuts_a_device_that_is_open(kind: ControlKind, tmp_path: Path) -> None:
    async def main() -> None:
        server, daemon = await start_with_daemon(kind, tmp_path)
        try:
            async with opened(server) as api:
                volume = await api.create(kind.shared)
                first, second = await sharers(server)
                await api.attach(volume.id, first)
                disk = server.disks()[0]
                devices = open_volumes(daemon.address(), clock=SystemClock())
                device = await devices.open(disk["spec"]["id"], disk["links"][0]["zone"])
                await device.write(0, b"a" * BLOCK_BYTES)
                await api.take_over(volume.id, first, second)
                with pytest.raises(Unavailable):
                    await device.write(0, b"b" * BLOCK_BYTES)
                await device.close()
                moved = await devices.open(disk["spec"]["id"], server.disks()[0]["links"][0]["zone"])
                assert await moved.read(0, BLOCK_BYTES) == b"a" * BLOCK_BYTES
                await moved.close()
        finally:
            server.close()
            daemon.close()

    asyncio.run(main())


def test_data_goes_on_while_the_control_api_is_down(kind: ControlKind, tmp_path: Path) -> None:
    """The classic outage: volumes and objects are served by other processes, as by other parts of a cloud."""

    async def main() -> None:
        server, daemon = await start_with_daemon(kind, tmp_path)
        data = next(each for each in KINDS if each.provider == kind.provider and each.dialect)
        objects = start_object_server(str(data.dialect), tmp_path / "objects")
        try:
            async with opened(server) as api:
                volume = await api.create(kind.single)
                await api.attach(volume.id, (await sharers(server))[0])
                disk = server.disks()[0]
                devices = open_volumes(daemon.address(), clock=SystemClock())
                device = await devices.open(disk["spec"]["id"], disk["links"][0]["zone"])
                store = open_store(objects.address(data.bucket, data.provider), clock=SystemClock(), rng=SystemRng())
                server.set_faults({"unavailable": True})
                with pytest.raises(Unavailable):
                    await api.describe()
                await device.write(0, b"a" * BLOCK_BYTES)
                server.kill()
                await device.write(BLOCK_BYTES, b"b" * BLOCK_BYTES)
                assert await device.read(0, 2 * BLOCK_BYTES) == b"a" * BLOCK_BYTES + b"b" * BLOCK_BYTES
                await device.close()
                await store.ensure_bucket()
                await store.put("k", b"x", if_absent=True)
                assert await store.get("k") == b"x"
                await store.close()
        finally:
            server.close()
            daemon.close()
            objects.close()

    asyncio.run(main())


def test_settings_of_the_suite_are_bounds(kind: ControlKind) -> None:
    """The suite's own check of itself: an adapter that ignores them would make the budget tests meaningless."""
    import importlib
    import inspect

    opener = importlib.import_module(f"providers.{kind.provider}.volumes").open_volume_api
    assert {"settings", "wait"} <= set(inspect.signature(opener).parameters)
    assert StoreSettings().call_timeout_ms > 0
