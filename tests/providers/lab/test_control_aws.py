"""The lab's EC2 and Route 53 as the real SDK (botocore) sees them: the service's own error codes, pages, tokens and
signatures. What the adapters promise is in `tests/conformance`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.conformance.control import DOMAIN, KINDS, ControlServer, start_control_server

KIND = next(kind for kind in KINDS if kind.provider == "aws")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlServer]:
    with start_control_server(KIND, tmp_path_factory.mktemp("aws")) as started:
        yield started


def client(server: ControlServer, service: str, **credentials: str) -> Any:
    given = {"access_key": "LABKEY", "secret_key": "lab-secret", **credentials}
    return botocore.session.get_session().create_client(
        service,
        region_name="us-east-1",
        endpoint_url=server.endpoint,
        aws_access_key_id=given["access_key"],
        aws_secret_access_key=given["secret_key"],
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


@pytest.fixture
def ec2(server: ControlServer) -> Any:
    return client(server, "ec2")


def refused(code: str, call: Callable[[], object]) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == code
    return caught.value


def zone_names(ec2: Any) -> dict[str, str]:
    return {row["ZoneId"]: row["ZoneName"] for row in ec2.describe_availability_zones()["AvailabilityZones"]}


def volume(ec2: Any, **given: Any) -> str:
    """An available volume's id."""
    asked = {"AvailabilityZone": zone_names(ec2)["use1-az4"], "Size": 4, "VolumeType": "gp3", **given}
    made = ec2.create_volume(**asked)
    until(ec2, made["VolumeId"], lambda now: now["State"] == "available")
    return str(made["VolumeId"])


def until(ec2: Any, volume_id: str, holds: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 20
    while not holds(now := ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"][0]):
        assert time.monotonic() < deadline, now
    return now


def machine(ec2: Any, zone: str = "use1-az4", number: int = 0) -> str:
    where = [{"Name": "availability-zone-id", "Values": [zone]}]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=where)
    found = [i["InstanceId"] for page in pages for r in page["Reservations"] for i in r["Instances"]]
    return str(sorted(found)[number])


def test_zone_names_are_the_accounts_own_and_not_in_the_order_of_the_ids(ec2: Any) -> None:
    names = zone_names(ec2)
    assert sorted(names) == ["use1-az4", "use1-az5", "use1-az6"]
    assert sorted(names.values()) == ["us-east-1a", "us-east-1b", "us-east-1c"]
    assert [names[zone] for zone in sorted(names)] != sorted(names.values())


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"VolumeType": "gp9"}, "UnknownVolumeType"),
        ({"Size": 70_000}, "InvalidParameterValue"),
        ({"VolumeType": "io2"}, "MissingParameter"),
        ({"VolumeType": "io2", "Iops": 5000}, "InvalidParameterValue"),
        ({"MultiAttachEnabled": True}, "InvalidParameterCombination"),
        ({"VolumeType": "io2", "Iops": 1000, "Throughput": 200}, "InvalidParameterCombination"),
        ({"AvailabilityZone": "us-east-1z"}, "InvalidZone.NotFound"),
    ],
)
def test_impossible_volumes_are_refused_with_ec2s_codes(ec2: Any, asked: dict[str, Any], code: str) -> None:
    before = len(ec2.describe_volumes()["Volumes"])
    where = {"AvailabilityZone": zone_names(ec2)["use1-az4"]}
    refused(code, lambda: ec2.create_volume(**{**where, "Size": 4, "VolumeType": "gp3", **asked}))
    assert len(ec2.describe_volumes()["Volumes"]) == before


def test_client_token_gives_the_same_volume_and_other_parameters_a_mismatch(ec2: Any) -> None:
    asked = {"AvailabilityZone": zone_names(ec2)["use1-az4"], "VolumeType": "gp3", "ClientToken": "token-1"}
    first = ec2.create_volume(Size=4, **asked)
    assert ec2.create_volume(Size=4, **asked)["VolumeId"] == first["VolumeId"]
    refused("IdempotentParameterMismatch", lambda: ec2.create_volume(Size=5, **asked))


def test_attachments_have_ec2s_codes(ec2: Any) -> None:
    one, other = machine(ec2), machine(ec2, number=1)
    made = volume(ec2)
    attach = {"VolumeId": made, "InstanceId": one, "Device": "/dev/sdf"}
    refused(
        "InvalidVolume.ZoneMismatch", lambda: ec2.attach_volume(**{**attach, "InstanceId": machine(ec2, "use1-az5")})
    )
    refused("InvalidInstanceID.NotFound", lambda: ec2.attach_volume(**{**attach, "InstanceId": "i-0123456789abcdef0"}))
    refused("InvalidVolume.NotFound", lambda: ec2.attach_volume(**{**attach, "VolumeId": "vol-0123456789abcdef0"}))
    refused("IncorrectState", lambda: ec2.detach_volume(VolumeId=made, InstanceId=one))
    assert ec2.attach_volume(**attach)["State"] == "attaching"
    until(ec2, made, lambda now: now["Attachments"][0]["State"] == "attached")
    refused("VolumeInUse", lambda: ec2.attach_volume(**attach))
    refused("VolumeInUse", lambda: ec2.attach_volume(**{**attach, "InstanceId": other}))
    refused("VolumeInUse", lambda: ec2.delete_volume(VolumeId=made))
    refused("InvalidParameterValue", lambda: ec2.attach_volume(**{**attach, "VolumeId": volume(ec2)}))
    refused("InvalidAttachment.NotFound", lambda: ec2.detach_volume(VolumeId=made, InstanceId=other))
    assert ec2.detach_volume(VolumeId=made, InstanceId=one)["State"] == "detaching"
    until(ec2, made, lambda now: now["State"] == "available" and not now["Attachments"])
    ec2.delete_volume(VolumeId=made)


def test_shared_volume_needs_nitro(server: ControlServer, ec2: Any) -> None:
    old = {"name": "old", "zone": "use1-az4", "kind": "m4.large", "shares_volumes": False}
    added = server.admin("instances", {"add": [old]})["instances"]
    instance = next(row["id"] for row in added if row["name"] == "old")
    try:
        kinds = ec2.describe_instance_types(InstanceTypes=["m4.large", "m7g.xlarge"])["InstanceTypes"]
        assert {row["InstanceType"]: row["Hypervisor"] for row in kinds} == {"m4.large": "xen", "m7g.xlarge": "nitro"}
        shared = volume(ec2, VolumeType="io2", Iops=1000, MultiAttachEnabled=True)
        attach = {"VolumeId": shared, "InstanceId": instance, "Device": "/dev/sdf"}
        refused("UnsupportedOperation", lambda: ec2.attach_volume(**attach))
    finally:
        server.admin("instances", {"remove": [instance]})


def test_pages_are_cut_where_the_server_says_and_filters_apply_before(server: ControlServer, ec2: Any) -> None:
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "set", "Value": "paged"}]}]
    made = {volume(ec2, TagSpecifications=tags) for _ in range(5)}
    paged = ec2.get_paginator("describe_volumes").paginate(Filters=[{"Name": "tag:set", "Values": ["paged"]}])
    pages = [[row["VolumeId"] for row in page["Volumes"]] for page in paged]
    assert [len(page) for page in pages] == [3, 2] and {one for page in pages for one in page} == made
    refused("InvalidParameterValue", lambda: ec2.describe_volumes(Filters=[{"Name": "no-such", "Values": ["x"]}]))
    refused("InvalidVolume.NotFound", lambda: ec2.describe_volumes(VolumeIds=["vol-0123456789abcdef0"]))


def test_dry_run_changes_nothing(ec2: Any) -> None:
    before = len(ec2.describe_volumes()["Volumes"])
    where = zone_names(ec2)["use1-az4"]
    refused("DryRunOperation", lambda: ec2.create_volume(AvailabilityZone=where, Size=4, DryRun=True))
    assert len(ec2.describe_volumes()["Volumes"]) == before


def test_each_service_words_its_own_refusal_of_a_signature(
    server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = "/hostedzone/Z1"
    for wrong, ec2_code, dns_code in (
        ({"access_key": "OTHER"}, "AuthFailure", "InvalidClientTokenId"),
        ({"secret_key": "other"}, "AuthFailure", "SignatureDoesNotMatch"),
    ):
        refused(ec2_code, lambda wrong=wrong: client(server, "ec2", **wrong).describe_volumes())
        refused(
            dns_code,
            lambda wrong=wrong: client(server, "route53", **wrong).list_resource_record_sets(HostedZoneId=zone),
        )


def test_request_dated_twenty_minutes_off_is_refused(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    import botocore.auth

    late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=20)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: late.replace(tzinfo=None))
    refused("RequestExpired", lambda: client(server, "ec2").describe_volumes())
    told = refused(
        "SignatureDoesNotMatch", lambda: client(server, "route53").list_resource_record_sets(HostedZoneId="Z1")
    )
    assert "expired" in str(told)


def test_route_53_refuses_batches_as_a_whole(server: ControlServer) -> None:
    route53 = client(server, "route53")
    zone = route53.list_hosted_zones_by_name(DNSName=DOMAIN)["HostedZones"][0]["Id"]

    def change(action: str, name: str, value: str) -> dict[str, Any]:
        records = [{"Value": value}]
        return {
            "Action": action,
            "ResourceRecordSet": {"Name": name, "Type": "A", "TTL": 60, "ResourceRecords": records},
        }

    def send(*changes: dict[str, Any]) -> Any:
        return route53.change_resource_record_sets(HostedZoneId=zone, ChangeBatch={"Changes": list(changes)})

    fresh, other = f"fresh.{DOMAIN}.", f"other.{DOMAIN}."
    assert send(change("CREATE", fresh, "10.0.0.1"))["ChangeInfo"]["Status"] == "INSYNC"
    for wrong in (
        change("CREATE", fresh, "10.0.0.2"),
        change("DELETE", fresh, "10.0.0.2"),
        change("DELETE", f"missing.{DOMAIN}.", "10.0.0.2"),
        change("UPSERT", "elsewhere.test.", "10.0.0.2"),
    ):
        refused("InvalidChangeBatch", lambda wrong=wrong: send(change("CREATE", other, "10.0.0.9"), wrong))
    send(change("DELETE", fresh, "10.0.0.1"), change("CREATE", fresh, "10.0.0.3"), change("UPSERT", other, "10.0.0.4"))
    pages = route53.get_paginator("list_resource_record_sets").paginate(HostedZoneId=zone)
    shown = {r["Name"]: r["ResourceRecords"][0]["Value"] for page in pages for r in page["ResourceRecordSets"]}
    assert shown == {fresh: "10.0.0.3", other: "10.0.0.4"}
    refused("NoSuchHostedZone", lambda: route53.list_resource_record_sets(HostedZoneId="ZMISSING"))
