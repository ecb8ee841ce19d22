"""What the Blob service answers, asked by the real SDK without our adapter: over the lab, and over azurite where judges
are asked for (`YUNHE_JUDGES=azurite`), so that neither is right by itself."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobBlock, BlobClient, BlobSasPermissions, ContainerClient, ContentSettings
from azure.storage.blob import generate_blob_sas as sas

from tests.conformance.judges import kinds
from tests.conformance.stores import CREDENTIALS, Kind, NotInstallable, Subject

KINDS = [kind for kind in kinds() if kind.provider == "azure"]
ACCOUNT = CREDENTIALS["azure"]["account"]
KEY = CREDENTIALS["azure"]["account_key"]


AZURITE_GAPS = {
    "test_whole_put_drops_the_blocks_of_an_upload_under_way": "takes a name with uncommitted blocks for taken",
    "test_copy_needs_a_right_to_read_its_source": "reads a copy's source whatever its signature",
}


@pytest.fixture(autouse=True)
def expected_failures(request: pytest.FixtureRequest) -> None:
    """Azurite's known gaps: strict, so that one that closes is noticed."""
    reason = AZURITE_GAPS.get(request.node.originalname)
    if reason is not None and request.node.callspec.params["running"].name == "azurite":
        request.applymarker(pytest.mark.xfail(reason=f"azurite: {reason}", strict=True))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    kind: Kind = request.param
    try:
        found = Subject(kind, tmp_path_factory.mktemp(kind.name))
    except NotInstallable as why:
        pytest.skip(f"{kind.name}: {why}")
    yield found
    found.close()


@pytest.fixture
def container(running: Subject) -> Iterator[ContainerClient]:
    """A fresh container, asked by the SDK with its retries off."""
    with opened(running, f"c-{uuid.uuid4().hex[:20]}") as made:
        made.create_container()
        yield made


def opened(running: Subject, name: str, key: str = KEY) -> ContainerClient:
    url = f"{running.address.endpoint}/{ACCOUNT}"
    return ContainerClient(url, name, credential={"account_name": ACCOUNT, "account_key": key}, retry_total=0)


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    """Status and code of the refusal that `call` meets."""
    with pytest.raises(HttpResponseError) as caught:
        call()
    code = getattr(caught.value, "error_code", None)
    return int(caught.value.status_code or 0), str(getattr(code, "value", code))


def block_id(number: int) -> str:
    return f"{number:06}"


# ---- conditions


def test_create_if_absent_of_each_kind_of_write_meets_a_taken_name(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    blob.upload_blob(b"first")
    absent = {"match_condition": MatchConditions.IfMissing}
    assert refusal(lambda: blob.upload_blob(b"x")) == (409, "BlobAlreadyExists")
    assert refusal(lambda: blob.create_append_blob(**absent)) == (409, "BlobAlreadyExists")
    blob.stage_block(block_id(1), b"x")
    assert refusal(lambda: blob.commit_block_list([BlobBlock(block_id(1))], **absent)) == (409, "BlobAlreadyExists")
    assert blob.download_blob().readall() == b"first"


def test_condition_on_a_version_is_412_when_it_is_another(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    old = blob.upload_blob(b"first")["etag"]
    new = blob.upload_blob(b"second", overwrite=True)["etag"]
    assert old != new
    same = {"etag": old, "match_condition": MatchConditions.IfNotModified}
    unmet = (412, "ConditionNotMet")
    assert refusal(lambda: blob.upload_blob(b"x", overwrite=True, **same)) == unmet
    assert refusal(lambda: blob.download_blob(**same)) == unmet
    # A HEAD has no body: the code comes in a header.
    assert refusal(lambda: blob.get_blob_properties(**same)) == unmet
    assert refusal(lambda: blob.delete_blob(**same)) == unmet
    assert blob.download_blob(etag=new, match_condition=MatchConditions.IfNotModified).readall() == b"second"
    assert refusal(lambda: blob.download_blob(etag=new, match_condition=MatchConditions.IfModified))[0] == 304
    blob.delete_blob(etag=new, match_condition=MatchConditions.IfNotModified)
    assert refusal(lambda: blob.delete_blob()) == (404, "BlobNotFound")


def test_what_is_not_there_is_named(running: Subject, container: ContainerClient) -> None:
    blob = container.get_blob_client("no")
    assert refusal(lambda: blob.download_blob()) == (404, "BlobNotFound")
    assert refusal(lambda: blob.get_block_list("all")) == (404, "BlobNotFound")
    assert refusal(lambda: blob.append_block(b"x")) == (404, "BlobNotFound")
    with opened(running, "c-missing") as missing:
        assert refusal(lambda: missing.get_blob_client("k").download_blob()) == (404, "ContainerNotFound")
        assert refusal(lambda: missing.get_blob_client("k").upload_blob(b"x")) == (404, "ContainerNotFound")
        assert refusal(lambda: list(missing.list_blobs())) == (404, "ContainerNotFound")
    assert refusal(lambda: container.create_container()) == (409, "ContainerAlreadyExists")


# ---- checksums


def test_body_that_does_not_match_its_checksum_is_refused_and_nothing_is_stored(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    wrong = {"headers": {"Content-MD5": base64.b64encode(bytes(16)).decode()}}
    assert refusal(lambda: blob.upload_blob(b"x", **wrong)) == (400, "Md5Mismatch")
    assert refusal(lambda: blob.stage_block(block_id(1), b"x", **wrong)) == (400, "Md5Mismatch")
    assert refusal(lambda: blob.download_blob()) == (404, "BlobNotFound")
    blob.create_append_blob()
    assert refusal(lambda: blob.append_block(b"x", **wrong)) == (400, "Md5Mismatch")
    assert blob.get_blob_properties().size == 0


def test_crc64_of_a_body_is_compared(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    # CRC-64/NVME of "123456789" is its published check value.
    right = base64.b64encode(0xAE8B14860A799888.to_bytes(8, "little")).decode()
    blob.upload_blob(b"123456789", headers={"x-ms-content-crc64": right})
    wrong = base64.b64encode(bytes(8)).decode()
    status, code = refusal(
        lambda: blob.upload_blob(b"123456789", overwrite=True, headers={"x-ms-content-crc64": wrong})
    )
    assert (status, code) == (400, "Crc64Mismatch")


def test_range_comes_with_its_checksum_up_to_four_mib(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    data = os.urandom((4 << 20) + 10)
    blob.upload_blob(data, validate_content=True)
    seen: list[dict[str, str]] = []

    def look(response: Any) -> None:
        seen.append(dict(response.http_response.headers))

    got = blob.download_blob(offset=5, length=1000, validate_content=True, raw_response_hook=look).readall()
    assert got == data[5:1005]
    sent = {name.lower(): value for name, value in seen[-1].items()}
    assert sent["content-md5"] == base64.b64encode(hashlib.md5(data[5:1005]).digest()).decode()
    assert sent["content-range"] == f"bytes 5-1004/{len(data)}"
    assert sent["x-ms-blob-content-md5"] == base64.b64encode(hashlib.md5(data).digest()).decode()


# ---- blocks


def test_block_list_says_what_the_blob_is(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    pieces = {number: os.urandom(1000 + number) for number in range(1, 5)}
    for number in (3, 1, 2):
        blob.stage_block(block_id(number), pieces[number])
    committed, uncommitted = blob.get_block_list("all")
    assert committed == [] and sorted((b.id, b.size) for b in uncommitted) == [
        (block_id(n), 1000 + n) for n in (1, 2, 3)
    ]
    assert list(container.list_blobs()) == []
    assert [b.name for b in container.list_blobs(include=["uncommittedblobs"])] == ["k"]
    blob.stage_block(block_id(2), pieces[4])  # the last of one id counts
    blob.commit_block_list(
        [BlobBlock(block_id(2)), BlobBlock(block_id(1))], content_settings=ContentSettings(content_type="text/x")
    )
    assert blob.download_blob().readall() == pieces[4] + pieces[1]
    assert blob.get_blob_properties().content_settings.content_type == "text/x"
    committed, uncommitted = blob.get_block_list("all")
    assert [(b.id, b.size) for b in committed] == [(block_id(2), 1004), (block_id(1), 1001)]
    assert uncommitted == []  # a block that no list named is gone
    # Committed blocks can be named again, beside new ones.
    blob.stage_block(block_id(9), b"nine")
    blob.commit_block_list([BlobBlock(block_id(9)), BlobBlock(block_id(1))])
    assert blob.download_blob().readall() == b"nine" + pieces[1]


def test_commit_of_an_unknown_block_changes_nothing(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    blob.upload_blob(b"before")
    blob.stage_block(block_id(1), b"x")
    wanted = [BlobBlock(block_id(1)), BlobBlock(block_id(2))]
    assert refusal(lambda: blob.commit_block_list(wanted)) == (400, "InvalidBlockList")
    assert blob.download_blob().readall() == b"before"
    blob.commit_block_list([BlobBlock(block_id(1))])
    assert blob.download_blob().readall() == b"x"


def test_whole_put_drops_the_blocks_of_an_upload_under_way(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    blob.stage_block(block_id(1), b"x")
    blob.upload_blob(b"whole")
    assert blob.get_block_list("uncommitted")[1] == []
    assert refusal(lambda: blob.commit_block_list([BlobBlock(block_id(1))])) == (400, "InvalidBlockList")
    assert blob.download_blob().readall() == b"whole"


def test_block_ids_of_a_blob_have_one_length(container: ContainerClient) -> None:
    blob = container.get_blob_client("k")
    blob.stage_block("00", b"x")
    status, code = refusal(lambda: blob.stage_block("000000000", b"x"))
    assert (status, code) == (400, "InvalidBlobOrBlock")


# ---- append blobs


def test_append_position_decides_and_kinds_do_not_mix(container: ContainerClient) -> None:
    blob = container.get_blob_client("log")
    blob.create_append_blob()
    first = blob.append_block(b"abc", appendpos_condition=0)
    assert (first["blob_append_offset"], first["blob_committed_block_count"]) == ("0", 1)
    for wrong in (0, 2, 4):
        assert refusal(lambda wrong=wrong: blob.append_block(b"x", appendpos_condition=wrong)) == (
            412,
            "AppendPositionConditionNotMet",
        )
    blob.append_block(b"def")
    assert refusal(lambda: blob.append_block(b"x", maxsize_condition=6)) == (412, "MaxBlobSizeConditionNotMet")
    assert blob.download_blob().readall() == b"abcdef"
    assert refusal(lambda: blob.stage_block(block_id(1), b"x")) == (409, "InvalidBlobType")
    container.upload_blob("whole", b"x")
    assert refusal(lambda: container.get_blob_client("whole").append_block(b"x")) == (409, "InvalidBlobType")


# ---- copies


def readable(blob: BlobClient, *, key: str = KEY, minutes: int = 5) -> str:
    expiry = datetime.now(UTC) + timedelta(minutes=minutes)
    token = sas(
        ACCOUNT,
        blob.container_name,
        blob.blob_name,
        account_key=key,
        permission=BlobSasPermissions(read=True),
        expiry=expiry,
    )
    return f"{blob.url}?{token}"


def test_copy_needs_a_right_to_read_its_source(container: ContainerClient) -> None:
    source, target = container.get_blob_client("from a+b"), container.get_blob_client("to")
    source.upload_blob(b"data", metadata={"a": "b"}, content_settings=ContentSettings(content_type="text/x"))
    done = target.start_copy_from_url(readable(source), requires_sync=True)
    assert done["copy_status"] == "success"
    copied = target.get_blob_properties()
    assert (copied.size, copied.metadata, copied.content_settings.content_type) == (4, {"a": "b"}, "text/x")
    assert bytes(copied.content_settings.content_md5) == hashlib.md5(b"data").digest()
    other_key = base64.b64encode(b"another-key").decode()
    for url in (readable(source, key=other_key), readable(source, minutes=-5)):
        status, _ = refusal(lambda url=url: target.start_copy_from_url(url, requires_sync=True))
        assert status in (403, 404)


def test_copy_has_conditions_on_both_ends(container: ContainerClient) -> None:
    source, target = container.get_blob_client("from"), container.get_blob_client("to")
    old = source.upload_blob(b"1")["etag"]
    source.upload_blob(b"2", overwrite=True)
    stale = {"source_etag": old, "source_match_condition": MatchConditions.IfNotModified}
    status, _ = refusal(lambda: target.start_copy_from_url(readable(source), requires_sync=True, **stale))
    assert status == 412
    target.upload_blob(b"there")
    absent = {"match_condition": MatchConditions.IfMissing}
    status, _ = refusal(lambda: target.start_copy_from_url(readable(source), requires_sync=True, **absent))
    assert status == 409
    assert target.download_blob().readall() == b"there"


def test_blocks_are_copied_from_ranges(container: ContainerClient) -> None:
    source, target = container.get_blob_client("from"), container.get_blob_client("to")
    data = os.urandom(5000)
    source.upload_blob(data)
    url = readable(source)
    target.stage_block_from_url(block_id(1), url, source_offset=1000, source_length=2000)
    target.stage_block_from_url(block_id(2), url, source_offset=0, source_length=10)
    target.commit_block_list([BlobBlock(block_id(1)), BlobBlock(block_id(2))])
    assert target.download_blob().readall() == data[1000:3000] + data[:10]


# ---- batches and listings


def test_batch_deletes_each_and_answers_each_in_order(container: ContainerClient) -> None:
    names = ["a b", "a+b", "a%20b", "a&b=c", "d/e", "x?y#z"]
    for name in names:
        container.upload_blob(name, b"x")
    asked = [names[0], "missing", *names[1:]]
    answers = list(container.delete_blobs(*asked, raise_on_any_failure=False))
    assert [answer.status_code for answer in answers] == [202, 404] + [202] * 5
    assert answers[1].headers["x-ms-error-code"] == "BlobNotFound"
    assert list(container.list_blobs()) == []


def test_listing_pages_by_marker_and_folds_by_delimiter(container: ContainerClient) -> None:
    names = sorted(["a/1", "a/2", "b", "c/1", "d"])
    for name in names:
        container.upload_blob(name, name.encode(), metadata={"n": "1"})
    rows = list(container.list_blobs(results_per_page=2, include=["metadata"]))
    assert [row.name for row in rows] == names
    assert {(row.size, row.blob_type, row.metadata["n"]) for row in rows if row.name == "b"} == {(1, "BlockBlob", "1")}
    assert all(row.etag and row.last_modified and row.creation_time for row in rows)
    assert [row.name for row in container.walk_blobs(delimiter="/", results_per_page=2)] == ["a/", "b", "c/", "d"]
    assert [row.name for row in container.list_blobs(name_starts_with="a/")] == ["a/1", "a/2"]


# ---- who may


def test_wrong_key_is_refused(running: Subject, container: ContainerClient) -> None:
    with opened(running, container.container_name, base64.b64encode(b"another").decode()) as other:
        with pytest.raises(AzureError) as caught:
            other.upload_blob("k", b"x")
        assert getattr(caught.value, "status_code", 0) == 403
    assert list(container.list_blobs()) == []


def test_name_that_no_container_has_is_refused(running: Subject) -> None:
    for name in ("UPPER", "ab", "a--b", "-ab", "under_score"):
        with opened(running, name) as made:
            status, _ = refusal(lambda made=made: made.create_container())
            assert status == 400


def test_secrets_of_the_suite_are_not_in_errors(tmp_path: Path, running: Subject) -> None:
    with opened(running, "c-missing") as missing, pytest.raises(HttpResponseError) as caught:
        missing.get_blob_client("k").upload_blob(b"x")
    assert KEY not in str(caught.value) and KEY not in json.dumps(str(caught.value.__dict__))
