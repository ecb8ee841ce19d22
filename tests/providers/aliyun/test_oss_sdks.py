"""Alibaba Cloud's own SDKs, the old and the new, work against the lab's OSS with both signature versions: they are the
judges of its wire form, and check the CRC-64 of what they send and get by themselves."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alibabacloud_oss_v2 as oss
import oss2
import pytest

from tests.conformance.stores import ObjectServer, start_object_server

BUCKET = "judged-bucket"
REGION = "cn-hangzhou"
PART = 128 << 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with start_object_server("aliyun", tmp_path_factory.mktemp("oss")) as running:
        yield running


@pytest.fixture(params=["v1", "v4"])
def old(request: pytest.FixtureRequest, server: ObjectServer) -> oss2.Bucket:
    keys = ("LABKEY", "lab-secret")
    auth = oss2.Auth(*keys) if request.param == "v1" else oss2.AuthV4(*keys)
    bucket = oss2.Bucket(auth, server.endpoint, BUCKET, region=REGION, is_path_style=True, enable_crc=True)
    bucket.create_bucket()
    return bucket


@pytest.fixture(params=["v1", "v4"])
def new(request: pytest.FixtureRequest, server: ObjectServer) -> oss.Client:
    config = oss.config.load_default()
    config.credentials_provider = oss.credentials.StaticCredentialsProvider("LABKEY", "lab-secret")
    config.region, config.endpoint, config.use_path_style = REGION, server.endpoint, True
    config.signature_version = request.param
    client = oss.Client(config)
    client.put_bucket(oss.PutBucketRequest(bucket=BUCKET))
    return client


@pytest.fixture
def prefix(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return f"{tmp_path.name}/"


def code(error: Any) -> str:
    unwrapped = error.value.unwrap() if hasattr(error.value, "unwrap") else error.value
    return str(unwrapped.code)


# -- oss2


def test_old_sdk_puts_gets_ranges_and_heads(old: oss2.Bucket, prefix: str) -> None:
    data = os.urandom(300_000)
    put = old.put_object(prefix + "a b+c/ü", data, headers={"x-oss-meta-who": "me", "Content-Type": "text/x-yunhe"})
    assert put.status == 200 and put.crc is not None
    got = old.get_object(prefix + "a b+c/ü")
    assert got.read() == data and got.headers["x-oss-meta-who"] == "me" and got.content_type == "text/x-yunhe"
    assert old.get_object(prefix + "a b+c/ü", byte_range=(5, 9)).read() == data[5:10]
    assert old.get_object(prefix + "a b+c/ü", byte_range=(None, 7)).read() == data[-7:]
    head = old.head_object(prefix + "a b+c/ü")
    assert head.content_length == len(data) and head.object_type == "Normal" and head.etag == put.etag
    assert old.get_object_meta(prefix + "a b+c/ü").content_length == len(data)
    assert old.object_exists(prefix + "a b+c/ü") and not old.object_exists(prefix + "no")
    with pytest.raises(oss2.exceptions.NoSuchKey):
        old.get_object(prefix + "no")


def test_old_sdk_lists_all_pages_in_both_versions(old: oss2.Bucket, prefix: str) -> None:
    names = [f"{prefix}l/{number:03}" for number in range(25)]
    for name in names:
        old.put_object(name, b"x")
    old.put_object(prefix + "l/deep/er", b"")
    flat = [row.key for row in oss2.ObjectIteratorV2(old, prefix=prefix + "l/0", max_keys=7)]
    assert flat == names
    assert [row.key for row in oss2.ObjectIterator(old, prefix=prefix + "l/0", max_keys=7)] == names
    page = old.list_objects_v2(prefix=prefix + "l/", delimiter="/", start_after=prefix + "l/020", max_keys=100)
    assert [row.key for row in page.object_list] == names[21:] and page.prefix_list == [prefix + "l/deep/"]
    whole = old.list_objects(prefix=prefix, delimiter="/", max_keys=100)
    assert whole.object_list == [] and whole.prefix_list == [prefix + "l/"]


def test_old_sdk_uploads_in_parts_and_lists_them(old: oss2.Bucket, prefix: str) -> None:
    key, data = prefix + "parts", os.urandom(2 * PART + 17)
    upload = old.init_multipart_upload(key).upload_id
    parts = []
    for number, at in enumerate(range(0, len(data), PART), start=1):
        sent = old.upload_part(key, upload, number, data[at : at + PART])
        parts.append(oss2.models.PartInfo(number, sent.etag, size=len(data[at : at + PART]), part_crc=sent.crc))
    listed = list(oss2.PartIterator(old, key, upload, max_parts=2))
    assert [(part.part_number, part.size) for part in listed] == [(1, PART), (2, PART), (3, 17)]
    assert [row.upload_id for row in oss2.MultipartUploadIterator(old, prefix=key)] == [upload]
    with pytest.raises(oss2.exceptions.NoSuchKey):
        old.get_object(key)
    old.complete_multipart_upload(key, upload, parts)
    assert old.get_object(key).read() == data
    with pytest.raises(oss2.exceptions.NoSuchUpload):
        old.list_parts(key, upload)


def test_old_sdk_resumes_an_upload(old: oss2.Bucket, prefix: str, tmp_path: Path) -> None:
    key, data = prefix + "resumed", os.urandom(5 * PART + 3)
    source, store = tmp_path / "source", oss2.ResumableStore(root=str(tmp_path))
    source.write_bytes(data)
    sent = 0

    class Enough(Exception):
        pass

    def interrupt(consumed: int, total: int) -> None:
        nonlocal sent
        sent = consumed
        if consumed > 2 * PART:
            raise Enough

    settings = {"store": store, "multipart_threshold": PART, "part_size": PART, "num_threads": 1}
    with pytest.raises(Enough):
        oss2.resumable_upload(old, key, str(source), progress_callback=interrupt, **settings)
    upload = next(iter(oss2.MultipartUploadIterator(old, prefix=key))).upload_id
    assert list(oss2.PartIterator(old, key, upload))
    oss2.resumable_upload(old, key, str(source), **settings)
    assert old.get_object(key).read() == data
    assert list(oss2.MultipartUploadIterator(old, prefix=key)) == []
    target = tmp_path / "target"
    oss2.resumable_download(old, key, str(target), multiget_threshold=PART, part_size=PART)
    assert target.read_bytes() == data


def test_old_sdk_appends_at_the_position(old: oss2.Bucket, prefix: str) -> None:
    key = prefix + "appended"
    first = old.append_object(key, 0, b"hello ", init_crc=0)
    assert first.next_position == 6
    second = old.append_object(key, 6, b"world", init_crc=first.crc)
    assert second.next_position == 11 and old.head_object(key).object_type == "Appendable"
    with pytest.raises(oss2.exceptions.PositionNotEqualToLength) as wrong:
        old.append_object(key, 3, b"no")
    assert wrong.value.next_position == 11
    with pytest.raises(oss2.exceptions.PositionNotEqualToLength):
        old.append_object(prefix + "absent", 5, b"no")
    old.put_object(prefix + "normal", b"x")
    with pytest.raises(oss2.exceptions.ObjectNotAppendable):
        old.append_object(prefix + "normal", 1, b"no")
    assert old.get_object(key).read() == b"hello world"


def test_old_sdk_copies_deletes_many_and_forbids_overwriting(old: oss2.Bucket, prefix: str) -> None:
    forbid = {"x-oss-forbid-overwrite": "true"}
    old.put_object(prefix + "from ü", b"bytes", headers=forbid)
    old.copy_object(BUCKET, prefix + "from ü", prefix + "to", headers=forbid)
    assert old.get_object(prefix + "to").read() == b"bytes"
    for again in (
        lambda: old.put_object(prefix + "to", b"no", headers=forbid),
        lambda: old.copy_object(BUCKET, prefix + "from ü", prefix + "to", headers=forbid),
    ):
        with pytest.raises(oss2.exceptions.ServerError) as refused:
            again()
        assert (refused.value.status, refused.value.code) == (409, "FileAlreadyExists")
    gone = old.batch_delete_objects([prefix + "from ü", prefix + "to", prefix + "never"])
    assert sorted(gone.deleted_keys) == sorted([prefix + "from ü", prefix + "to", prefix + "never"])
    assert list(oss2.ObjectIteratorV2(old, prefix=prefix)) == []


def test_old_sdk_reads_and_writes_by_presigned_url(old: oss2.Bucket, prefix: str) -> None:
    old.put_object_with_url(old.sign_url("PUT", prefix + "url", 60, slash_safe=True), b"by url")
    assert old.get_object_with_url(old.sign_url("GET", prefix + "url", 60, slash_safe=True)).read() == b"by url"
    late = old.sign_url("GET", prefix + "url", 60, slash_safe=True).replace("Signature=", "Signature=x")
    with pytest.raises(oss2.exceptions.ServerError):
        old.get_object_with_url(late.replace("x-oss-signature=", "x-oss-signature=0"))


# -- alibabacloud-oss-v2


def test_new_sdk_puts_gets_ranges_and_heads(new: oss.Client, prefix: str) -> None:
    key, data = prefix + "a b+c/ü", os.urandom(300_000)
    put = new.put_object(oss.PutObjectRequest(bucket=BUCKET, key=key, body=data, metadata={"who": "me"}))
    assert put.hash_crc64 is not None
    got = new.get_object(oss.GetObjectRequest(bucket=BUCKET, key=key))
    assert got.body is not None and got.body.content == data and got.metadata == {"who": "me"}
    part = new.get_object(
        oss.GetObjectRequest(bucket=BUCKET, key=key, range_header="bytes=5-9", range_behavior="standard")
    )
    assert part.body is not None and part.body.content == data[5:10]
    head = new.head_object(oss.HeadObjectRequest(bucket=BUCKET, key=key))
    assert head.content_length == len(data) and head.etag == put.etag
    assert new.is_object_exist(BUCKET, key) and not new.is_object_exist(BUCKET, prefix + "no")
    with pytest.raises(oss.exceptions.OperationError) as missing:
        new.get_object(oss.GetObjectRequest(bucket=BUCKET, key=prefix + "no"))
    assert code(missing) == "NoSuchKey"
    with pytest.raises(oss.exceptions.OperationError) as changed:
        new.get_object(oss.GetObjectRequest(bucket=BUCKET, key=key, if_match='"0"'))
    assert code(changed) == "PreconditionFailed"


def test_new_sdk_lists_all_pages(new: oss.Client, prefix: str) -> None:
    names = [f"{prefix}l/{number:03}" for number in range(25)]
    for name in names:
        new.put_object(oss.PutObjectRequest(bucket=BUCKET, key=name, body=b"x"))
    pages = new.list_objects_v2_paginator(limit=7).iter_page(
        oss.ListObjectsV2Request(bucket=BUCKET, prefix=prefix + "l/")
    )
    assert [row.key for page in pages for row in page.contents or []] == names
    old_pages = new.list_objects_paginator(limit=7).iter_page(
        oss.ListObjectsRequest(bucket=BUCKET, prefix=prefix + "l/")
    )
    assert [row.key for page in old_pages for row in page.contents or []] == names


def test_new_sdk_uploads_in_parts_and_lists_them(new: oss.Client, prefix: str) -> None:
    key, data = prefix + "parts", os.urandom(2 * PART + 17)
    upload = new.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(bucket=BUCKET, key=key)).upload_id
    parts = []
    for number, at in enumerate(range(0, len(data), PART), start=1):
        request = oss.UploadPartRequest(
            bucket=BUCKET, key=key, upload_id=upload, part_number=number, body=data[at : at + PART]
        )
        parts.append(oss.UploadPart(part_number=number, etag=new.upload_part(request).etag))
    pages = new.list_parts_paginator(limit=2).iter_page(oss.ListPartsRequest(bucket=BUCKET, key=key, upload_id=upload))
    rows = [row for page in pages for row in page.parts or []]
    assert [(row.part_number, row.size) for row in rows] == [(1, PART), (2, PART), (3, 17)]
    for wrong, expected in ((list(reversed(parts)), "InvalidPartOrder"), ([_other(parts[0])], "InvalidPart")):
        with pytest.raises(oss.exceptions.OperationError) as refused:
            _complete(new, key, upload, wrong)
        assert code(refused) == expected
    _complete(new, key, upload, parts)
    got = new.get_object(oss.GetObjectRequest(bucket=BUCKET, key=key))
    assert got.body is not None and got.body.content == data


def _other(part: Any) -> Any:
    return oss.UploadPart(part_number=part.part_number, etag='"0"')


def _complete(client: oss.Client, key: str, upload: str, parts: list[Any], **more: Any) -> Any:
    listed = oss.CompleteMultipartUpload(parts=parts)
    return client.complete_multipart_upload(
        oss.CompleteMultipartUploadRequest(
            bucket=BUCKET, key=key, upload_id=upload, complete_multipart_upload=listed, **more
        )
    )


def test_new_sdk_uploader_and_downloader_move_files(new: oss.Client, prefix: str, tmp_path: Path) -> None:
    source, target, data = tmp_path / "source", tmp_path / "target", os.urandom(7 * PART + 5)
    source.write_bytes(data)
    request = oss.PutObjectRequest(bucket=BUCKET, key=prefix + "up")
    up = new.uploader(part_size=PART, parallel_num=3).upload_file(request, str(source))
    assert up.upload_id is not None
    stream = new.uploader(part_size=PART, parallel_num=3).upload_from(
        oss.PutObjectRequest(bucket=BUCKET, key=prefix + "stream"), io.BytesIO(data)
    )
    assert stream.upload_id is not None
    new.downloader(part_size=PART, parallel_num=3).download_file(
        oss.GetObjectRequest(bucket=BUCKET, key=prefix + "stream"), str(target)
    )
    assert target.read_bytes() == data
    new.copier(part_size=PART, parallel_num=2).copy(
        oss.CopyObjectRequest(bucket=BUCKET, key=prefix + "copied", source_key=prefix + "up"),
        multipart_copy_threshold=PART,
        disable_shallow_copy=True,
    )
    copied = new.get_object(oss.GetObjectRequest(bucket=BUCKET, key=prefix + "copied"))
    assert copied.body is not None and copied.body.content == data


def test_new_sdk_appends_at_the_position(new: oss.Client, prefix: str) -> None:
    key = prefix + "appended"

    def append(position: int, body: bytes, name: str = key) -> Any:
        return new.append_object(oss.AppendObjectRequest(bucket=BUCKET, key=name, position=position, body=body))

    assert append(0, b"hello ").next_position == 6
    assert append(6, b"world").next_position == 11
    with pytest.raises(oss.exceptions.OperationError) as wrong:
        append(3, b"no")
    assert code(wrong) == "PositionNotEqualToLength"
    new.put_object(oss.PutObjectRequest(bucket=BUCKET, key=prefix + "normal", body=b"x"))
    with pytest.raises(oss.exceptions.OperationError) as normal:
        append(1, b"no", prefix + "normal")
    assert code(normal) == "ObjectNotAppendable"


def test_new_sdk_copies_deletes_many_and_forbids_overwriting(new: oss.Client, prefix: str) -> None:
    source, target = prefix + "from ü", prefix + "to"
    new.put_object(oss.PutObjectRequest(bucket=BUCKET, key=source, body=b"bytes", forbid_overwrite=True))
    copy = oss.CopyObjectRequest(bucket=BUCKET, key=target, source_key=source, forbid_overwrite=True)
    new.copy_object(copy)
    for again in (
        lambda: new.put_object(oss.PutObjectRequest(bucket=BUCKET, key=target, body=b"no", forbid_overwrite=True)),
        lambda: new.copy_object(copy),
    ):
        with pytest.raises(oss.exceptions.OperationError) as refused:
            again()
        assert code(refused) == "FileAlreadyExists"
    upload = new.initiate_multipart_upload(oss.InitiateMultipartUploadRequest(bucket=BUCKET, key=target)).upload_id
    sent = new.upload_part(
        oss.UploadPartRequest(bucket=BUCKET, key=target, upload_id=upload, part_number=1, body=b"part")
    )
    with pytest.raises(oss.exceptions.OperationError) as refused:
        _complete(new, target, upload, [oss.UploadPart(part_number=1, etag=sent.etag)], forbid_overwrite=True)
    assert code(refused) == "FileAlreadyExists"
    new.abort_multipart_upload(oss.AbortMultipartUploadRequest(bucket=BUCKET, key=target, upload_id=upload))
    names = [source, target, prefix + "never"]
    gone = new.delete_multiple_objects(
        oss.DeleteMultipleObjectsRequest(bucket=BUCKET, objects=[oss.DeleteObject(key=name) for name in names])
    )
    assert sorted(row.key for row in gone.deleted_objects or []) == sorted(names)


def test_new_sdk_reads_by_presigned_url(new: oss.Client, prefix: str) -> None:
    import urllib.request

    new.put_object(oss.PutObjectRequest(bucket=BUCKET, key=prefix + "url", body=b"by url"))
    signed = new.presign(oss.GetObjectRequest(bucket=BUCKET, key=prefix + "url"))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(signed.url, timeout=10) as answer:
        assert answer.read() == b"by url"
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(signed.url.replace("url", "uri", 1), timeout=10)
    assert refused.value.code == 403


# -- what neither may do


@pytest.mark.parametrize("signature", ["v1", "v4"])
def test_wrong_secrets_and_tampered_requests_are_refused(server: ObjectServer, signature: str) -> None:
    config = oss.config.load_default()
    config.region, config.endpoint, config.use_path_style = REGION, server.endpoint, True
    config.signature_version, config.retry_max_attempts = signature, 1
    for keys, expected in ((("LABKEY", "wrong"), "SignatureDoesNotMatch"), (("NOBODY", "x"), "InvalidAccessKeyId")):
        config.credentials_provider = oss.credentials.StaticCredentialsProvider(*keys)
        with pytest.raises(oss.exceptions.OperationError) as refused:
            oss.Client(config).put_object(oss.PutObjectRequest(bucket=BUCKET, key="k", body=b"x"))
        assert code(refused) == expected
    config.credentials_provider = oss.credentials.AnonymousCredentialsProvider()
    with pytest.raises(oss.exceptions.OperationError) as anonymous:
        oss.Client(config).put_object(oss.PutObjectRequest(bucket=BUCKET, key="k", body=b"x"))
    assert code(anonymous) == "AccessDenied"


def test_body_that_is_hurt_on_its_way_is_not_stored(server: ObjectServer) -> None:
    bucket = oss2.Bucket(
        oss2.AuthV4("LABKEY", "lab-secret"), server.endpoint, BUCKET, region=REGION, is_path_style=True
    )
    bucket.create_bucket()
    with pytest.raises(oss2.exceptions.ServerError) as refused:
        bucket.put_object("hurt", b"bytes", headers={"Content-MD5": oss2.utils.content_md5(b"other")})
    assert refused.value.code == "InvalidDigest"
    assert not bucket.object_exists("hurt")
