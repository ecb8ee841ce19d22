"""Requests of every wire form in the same words."""

from __future__ import annotations

import pytest

from providers.lab.calls import VERBS, Call, control_call, data_call, express_zone
from providers.lab.wire import Exchange
from providers.lab.wire_verbs import VERBS as OBJECT_VERBS
from providers.lab.wire_verbs import exchange_of


def test_the_object_stores_verbs_are_all_known() -> None:
    assert set(OBJECT_VERBS) <= set(VERBS)


@pytest.mark.parametrize(
    ("dialect", "method", "target", "headers", "service", "verb", "zone"),
    [
        ("s3", "PUT", "/b/k", {}, "objects", "put", ""),
        ("s3", "PUT", "/b--use1-az4--x-s3/k", {"x-amz-write-offset-bytes": "5"}, "express", "append", "use1-az4"),
        ("s3", "GET", "/b--use1-az4--x-s3?session", {}, "sessions", "session", "use1-az4"),
        ("s3", "GET", "/b?list-type=2&prefix=a", {}, "objects", "list", ""),
        ("azure", "HEAD", "/account/c/blob", {}, "objects", "head", ""),
        ("gcp", "POST", "/upload/storage/v1/b/b/o?uploadType=multipart", {}, "objects", "put", ""),
        ("gcp", "GET", "/storage/v1/b/b/o/k?alt=media", {}, "objects", "get", ""),
        ("aliyun", "POST", "/b/k?append&position=0", {}, "objects", "append", ""),
    ],
)
def test_data_requests(
    dialect: str, method: str, target: str, headers: dict[str, str], service: str, verb: str, zone: str
) -> None:
    call = data_call(exchange_of(dialect, method, target, headers, 10), dialect)
    assert (call.service, call.verb, call.zone, call.size) == (service, verb, zone, 10)


def test_where_a_caller_stands_is_what_it_says() -> None:
    exchange = exchange_of("s3", "GET", "/b/k", {"x-yunhe-zone": "use1-az5"}, 0)
    assert data_call(exchange, "s3").caller_zone == "use1-az5"


def test_the_chunks_of_a_resumable_upload_are_billed_once() -> None:
    begin = exchange_of("gcp", "POST", "/upload/storage/v1/b/b/o?uploadType=resumable", {}, 0)
    chunk = exchange_of("gcp", "PUT", "/upload/storage/v1/b/b/o?uploadType=resumable&upload_id=u", {}, 1 << 20)
    assert data_call(begin, "gcp").billed and not data_call(chunk, "gcp").billed


@pytest.mark.parametrize(
    ("method", "target", "verb", "body", "expected"),
    [
        ("POST", "/", "AttachVolume", b"Action=AttachVolume&VolumeId=v", Call("compute", "attach")),
        ("POST", "/", "DetachVolume", b"Action=DetachVolume", Call("compute", "detach")),
        ("POST", "/", "CreateVolume", b"AvailabilityZoneId=use1-az4", Call("compute", "create", "use1-az4")),
        ("POST", "/2013-04-01/hostedzone/Z1/rrset", "ChangeResourceRecordSets", b"", Call("dns", "change")),
        ("POST", "/", "DescribeInstances", b"", Call("compute", "describe")),
        (
            *("POST", "/compute/v1/projects/p/zones/us-central1-a/instances/i/attachDisk", "instances.attachDisk", b""),
            Call("compute", "attach", "us-central1-a"),
        ),
        ("POST", "/dns/v1/projects/p/managedZones/z/changes", "changes.create", b"", Call("dns", "create")),
        ("GET", "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d", "", b"", None),
        ("POST", "/tenant/oauth2/v2.0/token", "", b"", Call("identity", "token")),
        ("GET", "/?ZoneId=cn-hangzhou-h", "CreateDisk", b"", Call("compute", "create", "cn-hangzhou-h")),
        ("GET", "/", "AddDomainRecord", b"", Call("dns", "create")),
    ],
)
def test_control_requests(method: str, target: str, verb: str, body: bytes, expected: Call | None) -> None:
    found = control_call(Exchange(method, f"{target} {verb}".rstrip(), verb), body)
    assert found == (expected or Call("compute", "describe"))


def test_only_a_directory_bucket_names_a_zone() -> None:
    assert express_zone("yunhe-a--use1-az4--x-s3") == "use1-az4"
    assert express_zone("yunhe-a") == "" and express_zone("yunhe--x-s3-b") == ""
