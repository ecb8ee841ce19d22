"""Resource Manager, as the adapter asks it and as the lab answers it: Microsoft's SDK with and without our adapter."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError
from azure.mgmt.compute import ComputeManagementClient, models

from providers.azure.arm import Account, is_loopback_http, loopback_policy
from providers.azure.disk_limits import GIB
from providers.azure.instances import shares_volumes
from providers.base.clock import SystemClock, SystemRng
from providers.base.dns import RecordSet
from providers.base.errors import Conflict, Invalid, NotFound
from providers.base.registry import AccountAddress, open_volume_api
from providers.base.volume_api import VolumeApi, VolumeSpec
from tests.conformance.control import DOMAIN, KINDS, ControlServer, start_control_server

KIND = next(kind for kind in KINDS if kind.provider == "azure")
DISKS = f"/subscriptions/{KIND.account}/resourceGroups/{KIND.group}/providers/Microsoft.Compute/disks"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    with start_control_server(KIND, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlServer]:
    """For tests that leave it as it was."""
    with start_control_server(KIND, tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture
def sdk(server: ControlServer) -> Iterator[ComputeManagementClient]:
    with opened(server) as client:
        yield client


@contextmanager
def opened(server: ControlServer) -> Iterator[ComputeManagementClient]:
    """Microsoft's client with all its own policies, retries and pollers, let loose on loopback."""
    account = Account(server.address(), None, None, clock=SystemClock(), rng=SystemRng())
    client = ComputeManagementClient(
        account._sign_in(), KIND.account, base_url=server.endpoint, per_call_policies=[loopback_policy()]
    )
    with client:
        yield client
    account.close()


def disk(kind: str = "Premium_ZRS", size_gib: int = 128, shares: int | None = None, **more: Any) -> models.Disk:
    properties = models.DiskProperties(
        creation_data=models.CreationData(create_option="Empty"), disk_size_gb=size_gib, max_shares=shares
    )
    return models.Disk(location=KIND.region, sku=models.DiskSku(name=kind), properties=properties, **more)


def attach(sdk: ComputeManagementClient, name: str, machine: str, lun: int | None = None) -> Any:
    wanted = models.DataDisksToAttach(disk_id=f"{DISKS}/{name}", lun=lun, caching="None")
    request = models.AttachDetachDataDisksRequest(data_disks_to_attach=[wanted])
    return sdk.virtual_machines.begin_attach_detach_data_disks(KIND.group, machine, request).result()


def detach(sdk: ComputeManagementClient, name: str, machine: str, option: str | None = None) -> Any:
    wanted = models.DataDisksToDetach(disk_id=f"{DISKS}/{name}", detach_option=option)
    request = models.AttachDetachDataDisksRequest(data_disks_to_detach=[wanted])
    return sdk.virtual_machines.begin_attach_detach_data_disks(KIND.group, machine, request).result()


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(HttpResponseError) as caught:
        call()
    error = caught.value
    return int(error.status_code or 0), str(error.error.code if error.error else "")


# ---- the lab, asked by the SDK alone


def test_sdk_s_own_pollers_see_a_disk_through_its_life(sdk: ComputeManagementClient) -> None:
    made = sdk.disks.begin_create_or_update(KIND.group, "wal", disk(shares=3)).result()
    assert (made.name, made.properties.provisioning_state, made.properties.disk_state) == (
        "wal",
        "Succeeded",
        models.DiskState.UNATTACHED,
    )
    profile = attach(sdk, "wal", "vm-1-1")
    assert [(d.name, d.lun, d.caching) for d in profile.data_disks] == [("wal", 0, models.CachingTypes.NONE)]
    attach(sdk, "wal", "vm-2-1", lun=7)
    shown = sdk.disks.get(KIND.group, "WAL")  # names have no case
    assert shown.properties.disk_state == models.DiskState.ATTACHED and shown.managed_by is None
    holders = [each.vm_uri.rpartition("/")[2] for each in shown.properties.share_info]
    assert holders == ["vm-1-1", "vm-2-1"] and len(shown.managed_by_extended) == 2
    assert sdk.virtual_machines.get(KIND.group, "vm-2-1").storage_profile.data_disks[0].lun == 7
    assert refusal(lambda: sdk.disks.begin_delete(KIND.group, "wal").result()) == (409, "OperationNotAllowed")
    detach(sdk, "wal", "vm-1-1")
    detach(sdk, "wal", "vm-2-1", "ForceDetach")
    sdk.disks.begin_delete(KIND.group, "wal").result()
    assert refusal(lambda: sdk.disks.get(KIND.group, "wal")) == (404, "ResourceNotFound")


def test_disk_of_a_stopped_machine_is_reserved(server: ControlServer, sdk: ComputeManagementClient) -> None:
    sdk.disks.begin_create_or_update(KIND.group, "wal", disk()).result()
    attach(sdk, "wal", "vm-1-1")
    server.admin("instances", {"stop": ["vm-1-1"]})
    shown = sdk.disks.get(KIND.group, "wal")
    assert shown.properties.disk_state == models.DiskState.RESERVED
    assert shown.managed_by.endswith("/virtualMachines/vm-1-1") and not shown.managed_by_extended


@pytest.mark.parametrize(
    ("wanted", "refused"),
    [
        (disk(size_gib=512, shares=3), False),
        (disk(size_gib=512, shares=4), True),
        (disk(size_gib=1024, shares=5), False),
        (disk(size_gib=4096, shares=6), True),
        (disk(size_gib=8192, shares=10), False),
        (disk(size_gib=32767, shares=11), True),
        (disk("Standard_LRS", shares=2), True),
        (disk("PremiumV2_LRS", shares=15, zones=["1"]), False),
        (disk("PremiumV2_LRS", shares=2), True),
        (disk(zones=["1"]), True),
        (disk("Premium_LRS", zones=["9"]), True),
        (disk("Premium_LRS", zones=["1", "2"]), True),
        (disk("PremiumV2_ZRS"), True),
        (disk(size_gib=40_000), True),
    ],
    ids=lambda value: "" if isinstance(value, bool) else f"{value.sku.name}-{value.properties.disk_size_gb}",
)
def test_documented_limits_of_a_disk_are_the_service_s_own(
    shared: ControlServer, wanted: models.Disk, refused: bool
) -> None:
    with opened(shared) as sdk:

        def create() -> Any:
            return sdk.disks.begin_create_or_update(KIND.group, "wal", wanted).result()

        if refused:
            assert refusal(create)[0] == 400
            assert list(sdk.disks.list_by_resource_group(KIND.group)) == []
        else:
            assert create().properties.provisioning_state == "Succeeded"
            sdk.disks.begin_delete(KIND.group, "wal").result()


def test_share_count_changes_only_while_unattached(sdk: ComputeManagementClient) -> None:
    sdk.disks.begin_create_or_update(KIND.group, "wal", disk(shares=2)).result()
    attach(sdk, "wal", "vm-1-1")
    more = models.DiskUpdate(properties=models.DiskUpdateProperties(max_shares=3))
    assert refusal(lambda: sdk.disks.begin_update(KIND.group, "wal", more).result()) == (409, "OperationNotAllowed")
    detach(sdk, "wal", "vm-1-1")
    assert sdk.disks.begin_update(KIND.group, "wal", more).result().properties.max_shares == 3
    assert refusal(
        lambda: sdk.disks.begin_create_or_update(KIND.group, "wal", disk("StandardSSD_ZRS", shares=3)).result()
    ) == (409, "PropertyChangeNotAllowed")


def test_attachments_are_refused_as_the_service_refuses_them(sdk: ComputeManagementClient) -> None:
    sdk.disks.begin_create_or_update(KIND.group, "one", disk()).result()
    sdk.disks.begin_create_or_update(KIND.group, "two", disk()).result()
    sdk.disks.begin_create_or_update(KIND.group, "zonal", disk("PremiumV2_LRS", zones=["1"])).result()
    attach(sdk, "one", "vm-1-1", lun=3)
    assert refusal(lambda: attach(sdk, "two", "vm-1-1", lun=3)) == (409, "ConflictingUserInput")
    assert refusal(lambda: attach(sdk, "one", "vm-2-1")) == (409, "ConflictingUserInput")
    assert refusal(lambda: attach(sdk, "zonal", "vm-2-1")) == (400, "BadRequest")
    assert refusal(lambda: attach(sdk, "missing", "vm-1-1")) == (404, "ResourceNotFound")
    assert refusal(lambda: attach(sdk, "two", "no-such-vm")) == (404, "ResourceNotFound")


def test_operation_goes_on_over_a_restart_of_the_server(server: ControlServer, sdk: ComputeManagementClient) -> None:
    server.admin("compute", {"durations": {"create_ms": 400}})
    poller = sdk.disks.begin_create_or_update(KIND.group, "wal", disk(), polling=False)
    del poller
    seen: list[Any] = []
    sdk.disks.begin_create_or_update(KIND.group, "wal", disk(), polling=False, raw_response_hook=seen.append)
    url = seen[0].http_response.headers["Azure-AsyncOperation"]
    server.kill()
    server.start()
    token = seen[0].http_request.headers["Authorization"]
    for _ in range(200):
        status = get(url, token)["status"]
        if status == "Succeeded":
            break
        assert status == "InProgress"
    else:
        raise AssertionError("the operation did not end")
    assert sdk.disks.get(KIND.group, "wal").properties.provisioning_state == "Succeeded"


# ---- sign-in and common checks


def get(url: str, authorization: str | None) -> dict[str, Any]:
    request = urllib.request.Request(url)
    if authorization is not None:
        request.add_header("Authorization", authorization)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.loads(error.read())}


def test_token_is_checked(shared: ControlServer) -> None:
    token = Account(shared.address(), None, None, clock=SystemClock(), rng=SystemRng())._sign_in().get_token("s").token
    url = f"{shared.endpoint}{DISKS}?api-version=2026-03-02"
    assert get(url, f"Bearer {token}") == {"value": []}
    expires, _, mac = token.partition(".")
    for wrong in (None, "Bearer x", f"Bearer {int(expires) + 1}.{mac}", f"Basic {token}"):
        answer = get(url, wrong)
        assert answer["status"] == 401 and answer["error"]["code"] in (
            "AuthenticationFailed",
            "InvalidAuthenticationToken",
        )


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "MissingApiVersionParameter"),
        ("?api-version=new", "InvalidApiVersionParameter"),
        ("?api-version=2099-01-01", "NoRegisteredProviderFound"),
        ("?api-version=2016-01-01", "NoRegisteredProviderFound"),
    ],
)
def test_api_version_is_checked(shared: ControlServer, query: str, code: str) -> None:
    account = Account(shared.address(), None, None, clock=SystemClock(), rng=SystemRng())
    answer = get(f"{shared.endpoint}{DISKS}{query}", f"Bearer {account._sign_in().get_token('s').token}")
    account.close()
    assert (answer["status"], answer["error"]["code"]) == (400, code)


def test_plain_http_is_for_loopback_only() -> None:
    assert is_loopback_http("http://127.0.0.1:80") and is_loopback_http("http://[::1]:80/x")
    # A name could point anywhere.
    for other in ("http://10.0.0.1", "http://localhost", "http://127.0.0.1.evil.test", "https://127.0.0.1", "x"):
        assert not is_loopback_http(other)


def test_token_is_not_sent_over_plain_http_to_another_host(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_text(json.dumps(KIND.credentials))
    address = AccountAddress("azure", "eastus", KIND.account, KIND.group, "http://10.0.0.1", str(path))
    with pytest.raises(Invalid, match="https only"):
        open_volume_api(address, clock=SystemClock(), rng=SystemRng())


def test_loopback_policy_leaves_other_hosts_refused() -> None:
    """The SDK's own token policy, with ours before it, asked for a host that is not this one."""
    from azure.core.credentials import AccessToken
    from azure.core.exceptions import ServiceRequestError
    from azure.core.pipeline import PipelineContext, PipelineRequest
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy
    from azure.core.rest import HttpRequest

    class Credential:
        def get_token(self, *scopes: str, **_: Any) -> AccessToken:
            return AccessToken("token", 1 << 40)

    def authorized(url: str) -> str:
        request = PipelineRequest(HttpRequest("GET", url), PipelineContext(None))
        loopback_policy().on_request(request)
        BearerTokenCredentialPolicy(Credential(), "scope").on_request(request)
        return str(request.http_request.headers["Authorization"])

    assert authorized("http://127.0.0.1:1/x") == "Bearer token"
    assert authorized("https://management.azure.com/x") == "Bearer token"
    with pytest.raises(ServiceRequestError):
        authorized("http://10.0.0.1/x")


@pytest.mark.parametrize("field", ["account", "group"])
def test_address_without_subscription_or_group_is_invalid(shared: ControlServer, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        open_volume_api(replace(shared.address(), **{field: ""}), clock=SystemClock(), rng=SystemRng())
    assert caught.value.hint


@pytest.mark.parametrize(("field", "word"), [("account", "subscription id"), ("group", "resource group")])
def test_wrong_subscription_or_group_is_invalid_with_a_hint(shared: ControlServer, field: str, word: str) -> None:
    address = replace(shared.address(), **{field: "00000000-0000-4000-8000-00000000dead"})

    async def main() -> None:
        api = open_volume_api(address, clock=SystemClock(), rng=SystemRng())
        with pytest.raises(Invalid) as caught:
            await api.describe()
        assert caught.value.hint and word in caught.value.hint
        await api.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "code"),
    [("tenant", "AADSTS90002"), ("client_id", "AADSTS700016"), ("client_secret", "AADSTS7000215")],
)
def test_each_wrong_credential_is_named(shared: ControlServer, tmp_path: Path, field: str, code: str) -> None:
    path = tmp_path / "wrong"
    path.write_text(json.dumps({**KIND.credentials, field: "another"}))

    async def main() -> None:
        api = shared.open_volumes(path)
        with pytest.raises(Invalid, match=code) as caught:
            await api.describe()
        assert caught.value.hint and field in caught.value.hint
        await api.close()

    asyncio.run(main())


# ---- the adapter


def over(server: ControlServer, body: Callable[[VolumeApi], Awaitable[None]]) -> None:
    async def main() -> None:
        api = server.open_volumes()
        try:
            await body(api)
        finally:
            await api.close()

    asyncio.run(main())


def test_attachment_names_its_lun(server: ControlServer, sdk: ComputeManagementClient) -> None:
    sdk.disks.begin_create_or_update(KIND.group, "other", disk()).result()
    attach(sdk, "other", "vm-1-1", lun=0)

    async def body(api: VolumeApi) -> None:
        volume = await api.create(KIND.shared)
        (attachment,) = (await api.attach(volume.id, "vm-1-1")).attachments
        assert (attachment.instance, attachment.device) == ("vm-1-1", "lun1")

    over(server, body)


def test_disk_of_another_group_s_machine_shows_its_whole_id(shared: ControlServer) -> None:
    account = Account(shared.address(), None, None, clock=SystemClock(), rng=SystemRng())
    own = f"/subscriptions/{KIND.account}/resourceGroups/{KIND.group.upper()}/providers/Microsoft.Compute"
    assert account.short_name(f"{own}/virtualMachines/vm-1-1") == "vm-1-1"
    foreign = own.replace(KIND.group.upper(), "other") + "/virtualMachines/vm-1-1"
    assert account.short_name(foreign) == foreign
    assert account.resource_id("virtualMachines", foreign) == foreign
    account.close()


def test_share_count_beyond_the_size_s_tier_is_refused_before_anything_is_sent(server: ControlServer) -> None:
    async def body(api: VolumeApi) -> None:
        for size_gib, shares in ((512, 4), (4096, 6), (32767, 11)):
            with pytest.raises(Invalid) as caught:
                await api.create(VolumeSpec("wal", "Premium_ZRS", size_gib * GIB, (), share_max=shares))
            assert caught.value.hint
        assert server.requests() == []

    over(server, body)


def test_take_over_leaves_the_victim_its_disk_when_the_machine_cannot_take_it(server: ControlServer) -> None:
    async def body(api: VolumeApi) -> None:
        volume = await api.create(KIND.single)
        await api.attach(volume.id, "vm-1-1")
        with pytest.raises(Invalid):
            await api.take_over(volume.id, "vm-1-1", "vm-2-1")  # another zone
        with pytest.raises(NotFound):
            await api.take_over(volume.id, "vm-1-1", "no-such-vm")
        assert [a.instance for a in (await api.describe([volume.id]))[0].attachments] == ["vm-1-1"]

    over(server, body)


def test_full_machine_is_invalid_with_a_hint(server: ControlServer) -> None:
    server.admin("compute", {"quotas": {"disks_per_instance_max": 1}})

    async def body(api: VolumeApi) -> None:
        first = await api.create(KIND.shared)
        second = await api.create(replace(KIND.shared, name="wal-2"))
        await api.attach(first.id, "vm-1-1")
        with pytest.raises(Invalid) as caught:
            await api.attach(second.id, "vm-1-1")
        assert caught.value.hint and "larger machine" in caught.value.hint

    over(server, body)


def test_size_of_a_machine_says_whether_it_takes_premium_disks() -> None:
    for kind in ("Standard_D4s_v5", "Standard_E8bds_v5", "Standard_L8s_v3", "Standard_E96-24ads_v5"):
        assert shares_volumes(kind) is True
    for kind in ("Standard_D4_v5", "Standard_A2m_v2", "Basic_A1", "strange"):
        assert shares_volumes(kind) is None


# ---- DNS


def test_records_at_the_zone_itself_and_long_texts_are_set_and_read(server: ControlServer) -> None:
    apex = RecordSet(DOMAIN, "A", 60, ("10.0.0.1",))
    long = RecordSet(f"long.{DOMAIN}", "TXT", 60, ("x" * 700, "y"))
    six = RecordSet(f"six.{DOMAIN}", "AAAA", 60, ("2001:0db8:0000::0001",))

    async def main() -> None:
        dns = server.open_dns()
        try:
            for record in (apex, long):
                await dns.replace(record, expected=None)
                assert await dns.get(record.name, record.type) == record
            await dns.replace(six, expected=None)
            # Written in another way it is the same address.
            await dns.replace(replace(six, ttl_s=30), expected=replace(six, values=("2001:db8::1",)))
            # Zones have records of their own, which are not ours.
            assert [(r.name, r.type) for r in await dns.list()] == [
                (DOMAIN, "A"),
                (long.name, "TXT"),
                (six.name, "AAAA"),
            ]
        finally:
            await dns.close()

    asyncio.run(main())


def test_change_between_look_and_write_is_a_conflict(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the zone's ETag: the look alone would not see it."""
    old = RecordSet(f"kafka.{DOMAIN}", "A", 60, ("10.0.0.1",))
    mine, theirs = replace(old, values=("10.0.0.2",)), replace(old, values=("10.0.0.3",))

    async def main() -> None:
        dns, other = server.open_dns(), server.open_dns()
        try:
            await dns.replace(old, expected=None)
            look = dns._row  # type: ignore[attr-defined]

            async def look_and_lose(name: str, type: str) -> Any:
                found = await look(name, type)
                await other.replace(theirs, expected=old)
                return found

            monkeypatch.setattr(dns, "_row", look_and_lose)
            with pytest.raises(Conflict):
                await dns.replace(mine, expected=old)
            assert await other.get(old.name, "A") == theirs
        finally:
            await dns.close()
            await other.close()

    asyncio.run(main())
