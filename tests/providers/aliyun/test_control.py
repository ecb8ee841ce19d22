"""What is Aliyun's own about its control APIs, beyond the shared suites: the signature, tokens of deleted disks,
sharing across zones, forced attaches, records of other lines. The judge of the wire form is Alibaba Cloud's SDK."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alibabacloud_alidns20150109 import models as dns_models
from alibabacloud_alidns20150109.client import Client as DnsClient
from alibabacloud_ecs20140526 import models
from alibabacloud_ecs20140526.client import Client
from alibabacloud_tea_openapi.exceptions import ClientException
from alibabacloud_tea_openapi.utils_models import Config

from providers.aliyun import control
from providers.aliyun.volume_kinds import GIB, client_token, creation, kind_of
from providers.base.dns import RecordSet
from providers.base.errors import Conflict, Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.volume_api import VolumeSpec
from providers.base.waiting import WaitSettings
from tests.conformance.control import DOMAIN, KINDS, ControlServer, start_control_server
from tests.conformance.stores import start_object_server

KIND = next(kind for kind in KINDS if kind.provider == "aliyun")
REGIONAL = KIND.shared


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    with start_control_server(KIND, tmp_path) as running:
        yield running


def sdk(server: ControlServer, client: type, **wrong: str) -> Any:
    keys = {"access_key_id": "LABKEY", "access_key_secret": "lab-secret", **wrong}
    config = Config(**keys, region_id=KIND.region, endpoint=f"127.0.0.1:{server.port}", protocol="http")
    return client(config)


def refusal(call: Any, *arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientException) as caught:
        call(*arguments)
    return caught.value.status_code, caught.value.code


def disk_request(**more: Any) -> models.CreateDiskRequest:
    given = {"region_id": KIND.region, "disk_category": REGIONAL.kind, "size": 10, "disk_name": "d-of-the-test"}
    return models.CreateDiskRequest(**{**given, **more})


# -- the wire


def test_requests_that_are_wrongly_signed_are_refused(server: ControlServer) -> None:
    ask = models.DescribeDisksRequest(region_id=KIND.region)
    assert sdk(server, Client).describe_disks(ask).body.total_count == 0
    wrong_secret = sdk(server, Client, access_key_secret="another")
    assert refusal(wrong_secret.describe_disks, ask) == (400, "SignatureDoesNotMatch")
    assert refusal(sdk(server, Client, access_key_id="NOBODY").describe_disks, ask) == (
        404,
        "InvalidAccessKeyId.NotFound",
    )


@pytest.mark.parametrize("part", ["x-acs-action", "x-acs-signature-nonce", "query", "date", "unsigned"])
def test_request_that_was_changed_or_sent_again_is_refused(
    server: ControlServer, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded from the SDK and sent by hand."""
    import urllib.error
    import urllib.request

    from darabonba.core import DaraCore

    recorded: list[Any] = []
    act = DaraCore.do_action

    def record(request: Any, options: Any) -> Any:
        recorded.append(request)
        return act(request, options)

    monkeypatch.setattr(DaraCore, "do_action", staticmethod(record))
    sdk(server, Client).describe_disks(models.DescribeDisksRequest(region_id=KIND.region))
    headers, query = dict(recorded[0].headers), "RegionId=cn-hangzhou"
    expected = "SignatureDoesNotMatch"
    match part:
        case "x-acs-action":
            headers["x-acs-action"] = "DeleteDisk"
        case "x-acs-signature-nonce":
            expected = "SignatureNonceUsed"  # word by word
        case "query":
            query += "&DiskName=x"
        case "date":
            headers["x-acs-date"] = "2026-01-01T00:00:00Z"
        case _:
            del headers["Authorization"]
            expected = "IncompleteSignature"
    request = urllib.request.Request(f"{server.endpoint}/?{query}", method="POST", headers=headers, data=b"")
    request.add_unredirected_header("Content-type", "")  # the signed request has none
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(request, timeout=10)
    assert json.loads(refused.value.read())["Code"] == expected


def test_clock_that_is_off_is_refused_by_date(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from alibabacloud_tea_openapi.utils import Utils

    monkeypatch.setattr(Utils, "get_timestamp", staticmethod(lambda: "2026-01-01T00:20:00Z"))

    async def main() -> None:
        api = server.open_volumes()
        try:
            with pytest.raises(YunheError) as caught:
                await api.describe()
            assert caught.value.fields["code"] == "InvalidTimeStamp.Expired"
            assert caught.value.hint and "clock" in caught.value.hint
        finally:
            await api.close()

    asyncio.run(main())


def test_lab_is_reached_whatever_proxy_the_environment_names(
    server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def main() -> None:
        instances = server.open_instances()
        try:
            assert len(await instances.describe()) == 9
        finally:
            await instances.close()

    asyncio.run(main())


def test_ecs_refuses_in_its_own_codes(server: ControlServer) -> None:
    ecs = sdk(server, Client)
    machines = ecs.describe_instances(models.DescribeInstancesRequest(region_id=KIND.region, max_results=100)).body
    first = machines.instances.instance[0]
    zonal = ecs.create_disk(disk_request(disk_category="cloud_essd", size=20, zone_id=KIND.zones[0])).body.disk_id
    cases = [
        (ecs.create_disk, disk_request(size=5), (400, "InvalidDiskSize.NotSupported")),
        (ecs.create_disk, disk_request(disk_category="cloud_essd", size=20), (400, "MissingParameter")),
        (ecs.create_disk, disk_request(disk_category="no"), (403, "InvalidDiskCategory.NotSupported")),
        (ecs.create_disk, disk_request(region_id="cn-beijing"), (404, "InvalidRegionId.NotFound")),
        (
            ecs.attach_disk,
            models.AttachDiskRequest(disk_id="d-no", instance_id=first.instance_id),
            (404, "InvalidDiskId.NotFound"),
        ),
        (
            ecs.attach_disk,
            models.AttachDiskRequest(disk_id=zonal, instance_id="i-no"),
            (404, "InvalidInstanceId.NotFound"),
        ),
        (
            ecs.attach_disk,
            models.AttachDiskRequest(disk_id=zonal, instance_id=first.instance_id, force=True),
            (400, "DiskCategory.OperationNotSupported"),
        ),
        (ecs.delete_disk, models.DeleteDiskRequest(disk_id="d-no"), (404, "InvalidDiskId.NotFound")),
    ]
    for call, request, expected in cases:
        assert refusal(call, request) == expected


def test_same_client_token_with_other_parameters_is_refused(server: ControlServer) -> None:
    ecs = sdk(server, Client)
    made = ecs.create_disk(disk_request(client_token="t")).body.disk_id
    assert ecs.create_disk(disk_request(client_token="t")).body.disk_id == made
    assert refusal(ecs.create_disk, disk_request(client_token="t", size=11)) == (400, "IdempotentParameterMismatch")


# -- volumes


def test_token_of_a_deleted_disk_is_stepped_over(server: ControlServer) -> None:
    """The lab answers the deleted disk's id again; the adapter notices and goes on to the next token."""

    async def main() -> None:
        api = server.open_volumes()
        try:
            first = await api.create(KIND.single)
            await api.delete(first.id)
            second = await api.create(KIND.single)
            assert second.id != first.id and second.ready
            await api.delete(second.id)
            third = await api.create(KIND.single)
            assert third.id not in (first.id, second.id)
            creates = [row for row in server.requests() if row[1].endswith("CreateDisk")]
            assert len(creates) == 1 + 2 + 3
        finally:
            await api.close()

    asyncio.run(main())


def test_sharing_across_zones_that_is_refused_tells_the_probe(tmp_path: Path) -> None:
    kind = replace(KIND, credentials={**KIND.credentials, "cross_zone_sharing": False})

    async def main(server: ControlServer) -> None:
        api = server.open_volumes()
        try:
            volume = await api.create(REGIONAL)
            here, beside = [machine.id for machine in await server.machines(0)][:2]
            there = (await server.machines(1))[0].id
            await api.attach(volume.id, here)
            with pytest.raises(Invalid) as refused:
                await api.attach(volume.id, there)
            fields = refused.value.fields
            assert fields["cross_zone"] is True and fields["code"] == "ResourcesNotInSameZone"
            assert fields["zones"] == KIND.zones[:2] and refused.value.hint
            await api.attach(volume.id, beside)  # in one zone it is shared
            await api.detach(volume.id, beside)
            moved = await api.take_over(volume.id, here, there)  # and by force it crosses
            assert [attachment.instance for attachment in moved.attachments] == [there]
        finally:
            await api.close()

    with start_control_server(kind, tmp_path) as running:
        asyncio.run(main(running))


@pytest.mark.parametrize(
    ("code", "about_zones"),
    [
        ("Forbidden.RAM", False),
        ("InstanceDiskLimitExceeded", False),
        ("InvalidOperation.InstanceTypeNotSupport", False),
        ("OperationDenied.CrossZone", True),
    ],
)
def test_only_a_refusal_about_zones_is_taken_for_one(server: ControlServer, code: str, about_zones: bool) -> None:
    async def main() -> None:
        api = server.open_volumes()
        try:
            volume = await api.create(REGIONAL)
            here, there = [(await server.machines(zone))[0].id for zone in range(2)]
            await api.attach(volume.id, here)
            server.set_faults({"contains": "AttachDisk", "error_status": 403, "error_code": code})
            with pytest.raises(Invalid) as refused:
                await api.attach(volume.id, there)
            assert refused.value.fields.get("cross_zone", False) is about_zones
            assert refused.value.fields["code"] == code
        finally:
            await api.close()

    asyncio.run(main())


def test_take_over_leaves_third_holders_alone(server: ControlServer) -> None:
    async def main() -> None:
        api = server.open_volumes()
        try:
            volume = await api.create(replace(REGIONAL, share_max=3))
            victim, third, taker = [(await server.machines(zone))[0].id for zone in range(3)]
            await api.attach(volume.id, victim)
            await api.attach(volume.id, third)
            moved = await api.take_over(volume.id, victim, taker)
            assert {attachment.instance for attachment in moved.attachments} == {third, taker}
            forced = [row for row in server.requests() if "Force" in row[1]]
            assert forced == []
        finally:
            await api.close()

    asyncio.run(main())


def test_take_over_does_not_wait_for_a_detach_that_the_victim_does_not_end(server: ControlServer) -> None:
    async def main() -> None:
        patient, hasty = server.open_volumes(), server.open_volumes(wait=WaitSettings(300, 10, 50))
        try:
            volume = await patient.create(replace(REGIONAL, share_max=1))
            victim, taker = [(await server.machines(zone))[0].id for zone in range(2)]
            await patient.attach(volume.id, victim)
            server.admin("compute", {"hold": [[volume.id, victim, True]]})
            with pytest.raises(Unavailable) as stuck:
                await hasty.detach(volume.id, victim)
            assert stuck.value.hint
            moved = await patient.take_over(volume.id, victim, taker)
            assert [attachment.instance for attachment in moved.attachments] == [taker]
        finally:
            await patient.close()
            await hasty.close()

    asyncio.run(main())


def test_zonal_disk_is_not_taken_over_and_nothing_is_detached_by_force(server: ControlServer) -> None:
    async def main() -> None:
        api = server.open_volumes()
        try:
            volume = await api.create(KIND.single)
            first, second = [machine.id for machine in await server.machines(0)][:2]
            await api.attach(volume.id, first)
            for refused in (api.take_over(volume.id, first, second), api.detach(volume.id, first, force=True)):
                with pytest.raises(Invalid) as caught:
                    await refused
                assert caught.value.hint and "cloud_regional_disk_auto" in caught.value.hint
            assert [row["instance"] for row in server.disks()[0]["links"]] == [first]
        finally:
            await api.close()

    asyncio.run(main())


def test_instance_without_nvme_takes_no_shared_disk(server: ControlServer) -> None:
    async def main() -> None:
        old = {"name": "old", "zone": KIND.zones[0], "kind": "ecs.c5.xlarge", "shares_volumes": False}
        server.admin("instances", {"add": [old]})
        api, instances = server.open_volumes(), server.open_instances()
        try:
            (machine,) = [found for found in await instances.describe() if found.name == "old"]
            assert machine.shares_volumes is False and machine.kind == "ecs.c5.xlarge"
            assert all(found.shares_volumes for found in await instances.describe() if found.name != "old")
            volume = await api.create(REGIONAL)
            with pytest.raises(Invalid) as refused:
                await api.attach(volume.id, machine.id)
            assert refused.value.hint and "NVMe" in refused.value.hint
            attaches = [row for row in server.requests() if row[1].endswith("AttachDisk")]
            assert attaches == []
        finally:
            await api.close()
            await instances.close()

    asyncio.run(main())


def test_two_disks_of_one_name_are_not_guessed_between(server: ControlServer) -> None:
    ecs = sdk(server, Client)
    for _ in range(2):
        ecs.create_disk(disk_request(disk_name=REGIONAL.name))

    async def main() -> None:
        api = server.open_volumes()
        try:
            with pytest.raises(Invalid) as refused:
                await api.create(REGIONAL)
            assert "several disks" in str(refused.value)
        finally:
            await api.close()

    asyncio.run(main())


# -- pure: what is sent for a spec


def test_regional_disk_is_asked_for_without_a_zone_and_zonal_ones_with_it() -> None:
    regional = creation(VolumeSpec("wal", REGIONAL.kind, 20 * GIB, KIND.zones, share_max=2), KIND.region)
    assert regional["zone_id"] is None and regional["multi_attach"] == "Enabled" and regional["size"] == 20
    essd = creation(VolumeSpec("wal", "cloud_essd/PL2", 500 * GIB, KIND.zones[:1]), KIND.region)
    assert (essd["disk_category"], essd["performance_level"], essd["zone_id"]) == ("cloud_essd", "PL2", KIND.zones[0])
    assert kind_of("cloud_essd", "PL1") == "cloud_essd" and kind_of("cloud_essd", "PL3") == "cloud_essd/PL3"


@pytest.mark.parametrize(
    "spec",
    [
        VolumeSpec("wal", "cloud_essd/PL2", 460 * GIB, KIND.zones[:1]),
        VolumeSpec("wal", "cloud_essd/PL3", 1_260 * GIB, KIND.zones[:1]),
        VolumeSpec("wal", REGIONAL.kind, 9 * GIB, KIND.zones),
        VolumeSpec("wal", REGIONAL.kind, 10 * GIB, KIND.zones, share_max=17),
        VolumeSpec("wal", "cloud_essd_entry", 10 * GIB, KIND.zones[:1], share_max=2),
        VolumeSpec("wal", "cloud_essd", 20 * GIB, KIND.zones),
        VolumeSpec("wal", "cloud_essd", 20 * GIB, ("cn-beijing-h",)),
        VolumeSpec("wal", "cloud_essd", 20 * GIB, KIND.zones[:1], iops=5_000),
        VolumeSpec("wal", "cloud_auto", 10 * GIB, KIND.zones[:1], iops=7_001),
        VolumeSpec("w", "cloud_essd", 20 * GIB, KIND.zones[:1]),
    ],
    ids=str,
)
def test_documented_limits_of_categories_are_kept(spec: VolumeSpec) -> None:
    with pytest.raises(Invalid) as refused:
        creation(spec, KIND.region)
    assert refused.value.hint


def test_client_token_is_the_same_for_whoever_asks_and_fits() -> None:
    token = client_token("cn-hangzhou", "wal-1", ())
    assert token == client_token("cn-hangzhou", "wal-1", ()) and len(token) <= 64 and token.isascii()
    others = {client_token("cn-hangzhou", "wal-2", ()), client_token("cn-beijing", "wal-1", ())}
    assert len({token, *others, client_token("cn-hangzhou", "wal-1", ("d-1",))}) == 4


# -- errors by code


@pytest.mark.parametrize(
    ("status", "code", "kind", "word"),
    [
        (400, "Throttling.User", Unavailable, "minute"),
        (503, "ServiceUnavailable", OutcomeUnknown, ""),
        (403, "QuotaExceed.PostPaidDisk", Full, "QuotaExceed.PostPaidDisk"),
        (403, "Forbidden.RAM", Invalid, "RAM"),
        (404, "InvalidAccessKeyId.NotFound", Invalid, "credentials"),
        (400, "InvalidTimeStamp.Expired", Unavailable, "clock"),
        (403, "IncorrectDiskStatus", Unavailable, ""),
        (404, "DiskAttachedNumberExceeded", Conflict, ""),
        (404, "InvalidDiskId.NotFound", NotFound, ""),
        (404, "InvalidRegionId.NotFound", Invalid, "region"),
        (403, "ResourcesNotInSameZone", Invalid, "zone"),
        (400, "InvalidDomainName.NoExist", NotFound, ""),
        (400, "QuotaExceeded.TTL", Invalid, "600"),
    ],
)
def test_refusals_are_told_apart_by_code(status: int, code: str, kind: type[YunheError], word: str) -> None:
    error = ClientException(status_code=status, code=code, message="code: x", data={"Message": "its words"})
    made = control.translate(error, "disk", True)
    assert type(made) is kind and "its words" in str(made)
    assert word in (made.hint or "")
    assert made.fields["code"] == code


_ASK = """
import asyncio, json, sys
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import YunheError
from providers.base.registry import AccountAddress, StoreAddress, open_instances, open_store

async def main(address, bucket):
    instances = open_instances(AccountAddress(**address), clock=SystemClock(), rng=SystemRng())
    store = open_store(StoreAddress(**bucket), clock=SystemClock(), rng=SystemRng())
    for ask in (instances.describe, store.ensure_bucket):
        try:
            await ask()
            print("let in")
        except YunheError as error:
            print(type(error).__name__, error.hint)

asyncio.run(main(*json.loads(sys.argv[1])))
"""


def ask_with(environment: dict[str, str], control: str, objects: str, tmp_path: Path) -> list[str]:
    """What a process of its own is told by both APIs: the SDKs read the environment when they are imported."""
    where = {"provider": "aliyun", "region": KIND.region}
    addresses = [{**where, "endpoint": control}, {**where, "endpoint": objects, "bucket": "yunhe-chain"}]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALIBABA_CLOUD", "OSS_"))}
    outside = {"HOME": str(tmp_path), "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-c", _ASK, json.dumps(addresses)],
        env={**kept, **outside, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def test_credentials_come_from_the_default_chain(server: ControlServer, tmp_path: Path) -> None:
    no_cloud, no_oss = "Invalid set ALIBABA_CLOUD_ACCESS_KEY_ID", "Invalid set OSS_ACCESS_KEY_ID"
    both = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LABKEY", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "lab-secret"}
    only_oss = {"OSS_ACCESS_KEY_ID": "LABKEY", "OSS_ACCESS_KEY_SECRET": "lab-secret"}
    with start_object_server("aliyun", tmp_path / "oss") as objects:
        for given, expected in (
            ({}, [no_cloud, no_oss]),
            (both, ["let in", "let in"]),
            (only_oss, [no_cloud, "let in"]),
        ):
            told = ask_with(given, server.endpoint, objects.endpoint, tmp_path)
            assert len(told) == 2
            assert all(line.startswith(start) for line, start in zip(told, expected, strict=True)), told


# -- DNS


def test_records_of_other_lines_and_disabled_ones_are_left_alone(server: ControlServer) -> None:
    """By network or place they are somebody's own policy, which a replacement here must not touch."""
    alidns = sdk(server, DnsClient)

    def add(value: str, **more: Any) -> None:
        given = {"domain_name": DOMAIN, "rr": "kafka", "type": "A", "value": value, "ttl": 600}
        alidns.add_domain_record(dns_models.AddDomainRecordRequest(**{**given, **more}))

    add("10.0.0.1")
    add("10.9.9.9", line="telecom")

    async def main() -> None:
        dns = server.open_dns()
        try:
            old = RecordSet(f"kafka.{DOMAIN}", "A", 600, ("10.0.0.1",))
            assert await dns.get(old.name, "A") == old
            new = replace(old, values=("10.0.0.2", "10.0.0.3"), ttl_s=60)
            await dns.replace(new, expected=old)
            assert await dns.get(old.name, "A") == new
            await dns.delete(new)
        finally:
            await dns.close()

    asyncio.run(main())
    left = alidns.describe_domain_records(dns_models.DescribeDomainRecordsRequest(domain_name=DOMAIN)).body
    assert [(row.line, row.value) for row in left.domain_records.record] == [("telecom", "10.9.9.9")]


def test_single_record_is_replaced_in_place(server: ControlServer) -> None:
    """A CNAME cannot stand beside another: the one record gets the new value by one call."""

    async def main() -> None:
        dns = server.open_dns()
        try:
            old = RecordSet(f"www.{DOMAIN}", "CNAME", 600, (f"a.{DOMAIN}",))
            new = replace(old, values=(f"b.{DOMAIN}",))
            await dns.replace(old, expected=None)
            await dns.replace(new, expected=old)
            assert await dns.get(old.name, "CNAME") == new
            with pytest.raises(Conflict):
                await dns.replace(RecordSet(old.name, "A", 600, ("10.0.0.1",)), expected=None)
        finally:
            await dns.close()

    asyncio.run(main())
    verbs = [row[1].rpartition(" ")[2] for row in server.requests()]
    changes = [verb for verb in verbs if verb in ("AddDomainRecord", "UpdateDomainRecord", "DeleteDomainRecord")]
    assert sorted(changes) == ["AddDomainRecord", "AddDomainRecord", "UpdateDomainRecord"]


def test_alidns_refuses_in_its_own_codes(server: ControlServer) -> None:
    alidns = sdk(server, DnsClient)
    given = {"domain_name": DOMAIN, "rr": "x", "type": "A", "value": "10.0.0.1", "ttl": 600}
    made = alidns.add_domain_record(dns_models.AddDomainRecordRequest(**given)).body.record_id
    cases = [
        (alidns.add_domain_record, dns_models.AddDomainRecordRequest(**given), "DomainRecordDuplicate"),
        (
            alidns.add_domain_record,
            dns_models.AddDomainRecordRequest(**{**given, "type": "CNAME", "value": "a.example"}),
            "DomainRecordConflict",
        ),
        (
            alidns.add_domain_record,
            dns_models.AddDomainRecordRequest(**{**given, "domain_name": "no.test"}),
            "InvalidDomainName.NoExist",
        ),
        (
            alidns.update_domain_record,
            dns_models.UpdateDomainRecordRequest(record_id=made, rr="x", type="A", value="10.0.0.1", ttl=600),
            "DomainRecordDuplicate",
        ),
        (
            alidns.delete_domain_record,
            dns_models.DeleteDomainRecordRequest(record_id="1"),
            "DomainRecordNotBelongToUser",
        ),
    ]
    for call, request, expected in cases:
        assert refusal(call, request) == (400, expected)
