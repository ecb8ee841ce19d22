"""The lab's S3 by clients as users have them: boto3, its transfer manager, presigned links, conditions and errors."""

from __future__ import annotations

import filecmp
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.conformance.stores import CREDENTIALS, start_object_server

PART_BYTES = 5 << 20


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with start_object_server("s3", tmp_path_factory.mktemp("s3")) as server:
        keys = CREDENTIALS["s3"]
        made = boto3.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=server.endpoint,
            aws_access_key_id=keys["access_key"],
            aws_secret_access_key=keys["secret_key"],
            config=Config(
                signature_version="s3v4", s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, proxies={}
            ),
        )
        made.create_bucket(Bucket="users")
        yield made


def refused(call: Any, **arguments: Any) -> str:
    """The code of the error that a call ends with."""
    with pytest.raises(ClientError) as caught:
        call(Bucket="users", **arguments)
    return str(caught.value.response["Error"]["Code"])


def test_transfer_manager_uploads_copies_and_downloads_in_parts(client: Any, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(4 * PART_BYTES + 99))
    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=3)
    client.upload_file(str(source), "users", "dir/big", Config=config, ExtraArgs={"Metadata": {"who": "me"}})
    client.copy({"Bucket": "users", "Key": "dir/big"}, "users", "dir/copy", Config=config)
    client.download_file("users", "dir/copy", str(back), Config=config)
    assert filecmp.cmp(source, back, shallow=False)
    head = client.head_object(Bucket="users", Key="dir/big")
    assert head["ContentLength"] == source.stat().st_size
    assert head["Metadata"] == {"who": "me"}
    assert client.list_multipart_uploads(Bucket="users").get("Uploads", []) == []


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_checksums_are_kept_and_checked_by_the_sdk(client: Any, algorithm: str) -> None:
    data = os.urandom(5000)
    stored = client.put_object(Bucket="users", Key="sum", Body=data, ChecksumAlgorithm=algorithm)
    got = client.get_object(Bucket="users", Key="sum", ChecksumMode="ENABLED")
    assert got["Body"].read() == data  # the SDK compares while it reads
    assert got[f"Checksum{algorithm}"] == stored[f"Checksum{algorithm}"]
    wrong = "AAAAAA==" if algorithm.startswith("CRC") else stored[f"Checksum{algorithm}"]
    body = data if algorithm.startswith("CRC") else data + b"x"
    assert refused(client.put_object, Key="no", Body=body, **{f"Checksum{algorithm}": wrong}) == "BadDigest"
    assert refused(client.head_object, Key="no") == "404"


def test_presigned_links_are_good_for_what_they_say_and_nothing_else(client: Any) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    put = client.generate_presigned_url("put_object", Params={"Bucket": "users", "Key": "p/ü 1"}, ExpiresIn=60)
    request = urllib.request.Request(put, data=b"by link", method="PUT")
    # urllib adds a content type of its own, which is not part of what was signed, and need not be.
    assert opener.open(request, timeout=10).status == 200
    get = client.generate_presigned_url("get_object", Params={"Bucket": "users", "Key": "p/ü 1"}, ExpiresIn=60)
    assert opener.open(get, timeout=10).read() == b"by link"
    for bad in (get.replace("p/", "q/"), get.replace("X-Amz-Expires=60", "X-Amz-Expires=61"), put):
        with pytest.raises(urllib.error.HTTPError) as caught:
            opener.open(bad, timeout=10)
        assert caught.value.code == 403
        caught.value.close()


def test_conditional_writes_compare_the_etag(client: Any) -> None:
    first = client.put_object(Bucket="users", Key="c", Body=b"1", IfNoneMatch="*")
    assert refused(client.put_object, Key="c", Body=b"2", IfNoneMatch="*") == "PreconditionFailed"
    second = client.put_object(Bucket="users", Key="c", Body=b"2", IfMatch=first["ETag"])
    assert refused(client.put_object, Key="c", Body=b"3", IfMatch=first["ETag"]) == "PreconditionFailed"
    assert refused(client.put_object, Key="absent", Body=b"3", IfMatch=first["ETag"]) == "NoSuchKey"
    assert refused(client.delete_object, Key="c", IfMatch=first["ETag"]) == "PreconditionFailed"
    client.delete_object(Bucket="users", Key="c", IfMatch=second["ETag"])
    assert refused(client.get_object, Key="c") == "NoSuchKey"


def test_conditional_reads_say_not_modified(client: Any) -> None:
    etag = client.put_object(Bucket="users", Key="r", Body=b"1")["ETag"]
    assert client.get_object(Bucket="users", Key="r", IfMatch=etag)["Body"].read() == b"1"
    assert refused(client.get_object, Key="r", IfNoneMatch=etag) == "304"
    assert refused(client.get_object, Key="r", IfMatch='"other"') == "PreconditionFailed"


def test_uploads_in_parts_are_held_to_the_documented_rules(client: Any) -> None:
    def begun() -> dict[str, str]:
        made = client.create_multipart_upload(Bucket="users", Key="m", ChecksumAlgorithm="CRC32")
        return {"Key": "m", "UploadId": made["UploadId"]}

    def sent(upload: dict[str, str], number: int, size: int) -> dict[str, Any]:
        made = client.upload_part(Bucket="users", **upload, PartNumber=number, Body=b"x" * size)
        return {"PartNumber": number, "ETag": made["ETag"], "ChecksumCRC32": made["ChecksumCRC32"]}

    complete = client.complete_multipart_upload
    upload = begun()
    small, large = sent(upload, 1, 1000), sent(upload, 2, PART_BYTES)
    assert refused(complete, **upload, MultipartUpload={"Parts": [small, large]}) == "EntityTooSmall"
    assert refused(complete, **upload, MultipartUpload={"Parts": [large, small]}) == "InvalidPartOrder"
    assert refused(complete, **upload, MultipartUpload={"Parts": [{**large, "ETag": '"x"'}]}) == "InvalidPart"
    assert refused(complete, **upload, MultipartUpload={"Parts": [{**large, "PartNumber": 7}]}) == "InvalidPart"
    bare = {name: value for name, value in large.items() if name != "ChecksumCRC32"}
    assert refused(complete, **upload, MultipartUpload={"Parts": [bare]}) == "InvalidRequest"
    assert refused(complete, **{**upload, "UploadId": "no"}, MultipartUpload={"Parts": [large]}) == "NoSuchUpload"
    assert refused(client.get_object, Key="m") == "NoSuchKey"
    listed = client.list_parts(Bucket="users", **upload)
    assert [(row["PartNumber"], row["Size"]) for row in listed["Parts"]] == [(1, 1000), (2, PART_BYTES)]
    made = complete(Bucket="users", **upload, MultipartUpload={"Parts": [large]})
    assert made["ETag"].strip('"').endswith("-1") and made["ChecksumType"] == "COMPOSITE"
    assert client.head_object(Bucket="users", Key="m")["ContentLength"] == PART_BYTES
    other = begun()
    client.abort_multipart_upload(Bucket="users", **other)
    assert refused(client.abort_multipart_upload, **other) == "NoSuchUpload"
    client.delete_object(Bucket="users", Key="m")


def test_listings_of_both_versions_page_and_fold(client: Any) -> None:
    keys = [f"list/{folder}/{i}" for folder in "abc" for i in range(3)] + ["list/top"]
    for key in keys:
        client.put_object(Bucket="users", Key=key, Body=b"")
    for operation in ("list_objects", "list_objects_v2"):
        pages = client.get_paginator(operation).paginate(
            Bucket="users", Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": 2}
        )
        found = [
            (row.get("Prefix"), row.get("Key"))
            for page in pages
            for row in (*page.get("CommonPrefixes", ()), *({"Key": row["Key"]} for row in page.get("Contents", ())))
        ]
        assert sorted(found, key=str) == sorted(
            [("list/a/", None), ("list/b/", None), ("list/c/", None), (None, "list/top")], key=str
        )
        flat = client.get_paginator(operation).paginate(
            Bucket="users", Prefix="list/", PaginationConfig={"PageSize": 3}
        )
        assert [row["Key"] for page in flat for row in page["Contents"]] == sorted(keys)


def test_versioned_buckets_are_refused(client: Any) -> None:
    assert "Status" not in client.get_bucket_versioning(Bucket="users")
    asked = {"VersioningConfiguration": {"Status": "Enabled"}}
    assert refused(client.put_bucket_versioning, **asked) == "NotImplemented"
