"""Google's own SDKs, through the adapters, against the lab's Compute Engine and Cloud DNS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Conflict, Full, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.registry import open_volume_api
from providers.base.volume_api import VolumeApi, VolumeSpec
from providers.base.volume_limits import GIB
from tests.conformance.google_keys import service_account
from tests.providers.gcp.control import PROJECT, REGION, ZONES, GcpControlServer

HA = "hyperdisk-balanced-high-availability"
A, B, C = ZONES


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcpControlServer]:
    with_server = GcpControlServer(tmp_path_factory.mktemp("gcp"))
    yield with_server
    with_server.close()


@pytest.fixture(autouse=True)
def calm(server: GcpControlServer) -> Iterator[None]:
    yield
    server.set_faults()
    server.admin("compute", {"quotas": {"disks_max": 1000}, "durations": dict.fromkeys(DURATIONS, 20)})


DURATIONS = ("create_ms", "attach_ms", "detach_ms", "delete_ms")


def machine(zone: str, number: int = 1) -> str:
    return f"projects/{PROJECT}/zones/{zone}/instances/vm-{zone}-{number}"


def shared(name: str, **changes: Any) -> VolumeSpec:
    plain = {"kind": HA, "size_bytes": 20 * GIB, "zones": (A, B), "share_max": 2, **changes}
    return VolumeSpec(name, **plain)


def with_volumes(server: GcpControlServer, act: Callable[[VolumeApi], Awaitable[Any]], credentials: str = "") -> Any:
    async def main() -> Any:
        address = server.address(credentials or None)
        volumes = open_volume_api(address, clock=SystemClock(), rng=SystemRng())
        try:
            return await act(volumes)
        finally:
            await volumes.close()

    return asyncio.run(main())


# ---- volumes


def test_shared_regional_disk_is_attached_in_both_its_zones_at_once(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(shared("both", iops=4000, mib_s=200, tags=(("run", "r1"),)))
        assert made.id == f"projects/{PROJECT}/regions/{REGION}/disks/both"
        assert (made.kind, made.size_bytes, made.zones, made.ready) == (HA, 20 * GIB, (A, B), True)
        await volumes.attach(made.id, machine(A))
        after = await volumes.attach(made.id, machine(B))
        assert sorted(each.instance for each in after.attachments) == [machine(A), machine(B)]
        # A host finds it as /dev/disk/by-id/google-both.
        assert {each.device for each in after.attachments} == {"both"}
        await volumes.detach(made.id, machine(A))
        left = await volumes.detach(made.id, machine(B))
        assert left.attachments == ()
        await volumes.delete(made.id)
        assert await volumes.describe([made.id]) == []

    with_volumes(server, act)


def test_repeating_a_finished_call_changes_nothing(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        spec = VolumeSpec("twice", "pd-balanced", 10 * GIB, (A,))
        made = await volumes.create(spec)
        assert await volumes.create(spec) == made
        assert await volumes.attach(made.id, machine(A)) == await volumes.attach(made.id, machine(A))
        assert await volumes.detach(made.id, machine(A)) == await volumes.detach(made.id, machine(A))
        await volumes.delete(made.id)
        await volumes.delete(made.id)
        # The name is free again: a new creation is not taken for the old one.
        again = await volumes.create(spec)
        assert again.ready
        await volumes.delete(again.id)

    with_volumes(server, act)


def test_create_whose_answer_is_lost_is_repeated_with_the_same_request_id_and_makes_one_disk(
    server: GcpControlServer,
) -> None:
    async def act(volumes: VolumeApi) -> None:
        before = len(server.requests())
        server.set_faults({"contains": "disks.insert", "drop_answer": True})
        spec = VolumeSpec("lost-answer", "pd-ssd", 10 * GIB, (A,))
        with pytest.raises(OutcomeUnknown):
            await volumes.create(spec)
        server.set_faults()
        made = await volumes.create(spec)
        assert made.name == "lost-answer"
        inserts = [target for _, target, _ in server.requests()[before:] if "disks.insert" in target]
        assert len(inserts) >= 2
        assert len({target.partition("requestId=")[2][:36] for target in inserts}) == 1
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_exclusive_disk_refuses_a_second_instance_and_is_taken_over_by_force_attach(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(VolumeSpec("taken", "pd-balanced", 10 * GIB, (A, B)))
        await volumes.attach(made.id, machine(A))
        with pytest.raises(Conflict):
            await volumes.attach(made.id, machine(B))
        after = await volumes.take_over(made.id, machine(A), machine(B))
        assert [each.instance for each in after.attachments] == [machine(B)]
        assert await volumes.take_over(made.id, machine(A), machine(B)) == after
        with pytest.raises(Conflict):
            await volumes.delete(made.id)
        await volumes.detach(made.id, machine(B))
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_take_over_goes_on_while_the_victim_holds_the_disk(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(VolumeSpec("held", "pd-balanced", 10 * GIB, (A, B)))
        await volumes.attach(made.id, machine(A))
        server.admin("compute", {"hold": [[f"{REGION}_held", f"vm-{A}-1", True]]})
        after = await volumes.take_over(made.id, machine(A), machine(B))
        assert [each.instance for each in after.attachments] == [machine(B)]
        await volumes.detach(made.id, machine(B))
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_take_over_of_a_shared_disk_leaves_the_third_holder_alone(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(shared("three-holders", share_max=3))
        for zone, number in ((A, 1), (B, 1)):
            await volumes.attach(made.id, machine(zone, number))
        moved = await volumes.take_over(made.id, machine(A), machine(A, 2))
        assert {each.instance for each in moved.attachments} == {machine(B), machine(A, 2)}
        # Attached in both zones beforehand: what is left to do is to detach the victim.
        moved = await volumes.take_over(made.id, machine(A, 2), machine(B))
        assert {each.instance for each in moved.attachments} == {machine(B)}
        await volumes.detach(made.id, machine(B))
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_zonal_disk_is_not_taken_over_by_force(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(VolumeSpec("zonal", "pd-balanced", 10 * GIB, (A,)))
        await volumes.attach(made.id, machine(A, 1))
        with pytest.raises(Invalid, match="regional disks only"):
            await volumes.take_over(made.id, machine(A, 1), machine(A, 2))
        with pytest.raises(Invalid, match="no forced detach"):
            await volumes.detach(made.id, machine(A, 1), force=True)
        await volumes.detach(made.id, machine(A, 1))
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_instance_in_a_zone_without_replica_cannot_have_the_disk(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(shared("two-zones"))
        with pytest.raises(Invalid, match="does not reach") as caught:
            await volumes.attach(made.id, machine(C))
        assert caught.value.hint is not None and A in caught.value.hint
        with pytest.raises(NotFound):
            await volumes.attach(f"projects/{PROJECT}/regions/{REGION}/disks/none", machine(A))
        await volumes.delete(made.id)

    with_volumes(server, act)


@pytest.mark.parametrize(
    "spec",
    [
        shared("Upper"),
        shared("one-zone", zones=(A,)),
        shared("three", zones=ZONES),
        shared("elsewhere", zones=("europe-west1-b", "europe-west1-c")),
        shared("small", size_bytes=3 * GIB),
        shared("odd", size_bytes=20 * GIB + 1),
        shared("crowd", share_max=9),
        shared("fast", iops=100_001),
        shared("label", tags=(("Run", "r"),)),
        VolumeSpec("pd-shared", "pd-balanced", 10 * GIB, (A,), share_max=2),
        VolumeSpec("pd-iops", "pd-balanced", 10 * GIB, (A,), iops=5000),
        VolumeSpec("beta", "pd-ssd-multi-writer", 10 * GIB, (A,), share_max=2),
        VolumeSpec("unknown", "pd-extreme-plus", 10 * GIB, (A,)),
    ],
    ids=lambda spec: spec.name,
)
def test_what_the_documents_forbid_is_refused_before_anything_is_sent(
    spec: VolumeSpec, server: GcpControlServer
) -> None:
    before = len(server.requests())

    async def act(volumes: VolumeApi) -> None:
        with pytest.raises(Invalid) as caught:
            await volumes.create(spec)
        assert caught.value.hint or "label" in str(caught.value)

    with_volumes(server, act)
    assert len(server.requests()) == before


def test_a_name_that_has_other_properties_is_refused(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(shared("same-name"))
        with pytest.raises(Invalid, match="size"):
            await volumes.create(shared("same-name", size_bytes=21 * GIB))
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_exceeded_quota_is_full_and_names_the_quota(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        server.admin("compute", {"quotas": {"disks_max": 0}})
        with pytest.raises(Full) as caught:
            await volumes.create(shared("too-much"))
        assert caught.value.hint is not None and "DISKS_TOTAL" in caught.value.hint

    with_volumes(server, act)


def test_describe_lists_all_disks_of_the_region_and_leaves_out_what_is_not_there(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = [
            await volumes.create(shared("listed-1")),
            await volumes.create(VolumeSpec("listed-2", "hyperdisk-balanced", 4 * GIB, (C,), share_max=3)),
        ]
        found = {each.id: each for each in await volumes.describe()}
        assert [found[each.id] for each in made] == made
        gone = f"projects/{PROJECT}/zones/{A}/disks/never"
        assert list(await volumes.describe([gone, made[0].id])) == [made[0]]
        for each in made:
            await volumes.delete(each.id)

    with_volumes(server, act)


def test_an_attach_is_awaited_until_the_cloud_shows_it(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(VolumeSpec("slow", "pd-balanced", 10 * GIB, (A,)))
        server.admin("compute", {"durations": {"attach_ms": 700}})
        before = len(server.requests())
        started = asyncio.get_running_loop().time()
        after = await volumes.attach(made.id, machine(A))
        assert asyncio.get_running_loop().time() - started >= 0.6
        assert [each.instance for each in after.attachments] == [machine(A)]
        reads = [target for _, target, _ in server.requests()[before:] if "zoneOperations.get" in target]
        assert 2 <= len(reads) < 10
        await volumes.detach(made.id, machine(A))
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_change_begun_before_the_control_api_is_killed_is_done_after_it_is_back(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(VolumeSpec("survives", "pd-balanced", 10 * GIB, (A,)))
        server.admin("compute", {"durations": {"attach_ms": 1500}})
        attaching = asyncio.create_task(volumes.attach(made.id, machine(A)))
        while not any("attachDisk" in target for _, target, _ in server.requests()):  # noqa: ASYNC110 -- of a process
            await asyncio.sleep(0.02)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        with suppress(Unavailable):
            await attaching
        after = await volumes.attach(made.id, machine(A))
        assert [each.instance for each in after.attachments] == [machine(A)]
        await volumes.detach(made.id, machine(A))
        await volumes.delete(made.id)

    with_volumes(server, act)


def test_disk_that_acks_with_one_replica_is_shown_as_degraded(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        made = await volumes.create(shared("one-replica"))
        assert made.degraded is None, "an unattached disk has no samples"
        assert (await volumes.attach(made.id, machine(A))).degraded is False
        server.admin("compute", {"degraded": [[f"{REGION}_one-replica", True]]})
        assert (await volumes.describe([made.id]))[0].degraded is True
        server.set_faults({"contains": "timeSeries", "error_status": 403, "error_code": "forbidden"})
        assert (await volumes.describe([made.id]))[0].degraded is None, "unknown is not in step"
        server.set_faults()
        await volumes.detach(made.id, machine(A))
        await volumes.delete(made.id)

    with_volumes(server, act)


# ---- signing in


def test_forged_key_is_refused_with_a_hint(server: GcpControlServer) -> None:
    forged = service_account(PROJECT, "yunhe", key=1)

    async def act(volumes: VolumeApi) -> None:
        with pytest.raises(Invalid, match="Invalid JWT Signature") as caught:
            await volumes.describe()
        assert caught.value.hint is not None and "key" in caught.value.hint
        assert "PRIVATE" not in f"{caught.value}{caught.value.fields}"

    with_volumes(server, act, server.key_file("forged.json", forged))


def test_project_of_somebody_else_is_refused_with_a_hint(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        with pytest.raises(Invalid, match="permission") as caught:
            await volumes.describe()
        assert caught.value.hint is not None and "grant" in caught.value.hint

    with_volumes(
        server,
        act,
        server.key_file("project.json", {**service_account(PROJECT, "yunhe"), "project_id": "somebody-elses"}),
    )


def test_throttled_reads_are_repeated_within_the_budget(server: GcpControlServer) -> None:
    async def act(volumes: VolumeApi) -> None:
        server.set_faults({"contains": "aggregatedList", "error_status": 429, "error_code": "rateLimitExceeded"})
        with pytest.raises(Unavailable) as caught:
            await volumes.describe()
        assert not isinstance(caught.value, OutcomeUnknown)
        asked = [status for _, target, status in server.requests() if "aggregatedList" in target and status == 429]
        assert len(asked) >= 2

    with_volumes(server, act)
