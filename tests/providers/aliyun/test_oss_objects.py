"""What the OSS adapter makes of wrong input, and of an OSS that is not as it should be."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import alibabacloud_oss_v2 as oss
import pytest
from fastcrc import crc64

from providers.aliyun.oss_errors import translate
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Full,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongOffset,
    YunheError,
)
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store
from providers.base.streams import PART_BYTES
from tests.conformance.stores import ADMIN_TOKEN, CREDENTIALS, ObjectServer, start_object_server

BUCKET = "yunhe-errors"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectServer]:
    with start_object_server("aliyun", tmp_path) as running:
        yield running


@asynccontextmanager
async def opened(address: StoreAddress) -> AsyncIterator[ObjectStore]:
    store = open_store(address, clock=SystemClock(), rng=SystemRng())
    try:
        yield store
    finally:
        await store.close()


def raised(address: StoreAddress, ask: Callable[[ObjectStore], Awaitable[object]]) -> YunheError:
    """The error that `ask` ends with."""

    async def main() -> YunheError:
        async with opened(address) as store:
            with pytest.raises(YunheError) as caught:
                await ask(store)
            return caught.value

    return asyncio.run(main())


def put(store: ObjectStore) -> Awaitable[None]:
    return store.put("k", b"x", if_absent=True)


# -- wrong input: each has a hint that names the fix


@pytest.mark.parametrize("wrong", [{"secret_key": "another"}, {"access_key": "NOBODY"}])
def test_wrong_credentials_are_invalid_and_never_shown(server: ObjectServer, tmp_path: Path, wrong: dict) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({**CREDENTIALS["aliyun"], **wrong}))
    error = raised(replace(server.address(BUCKET), credentials_file=str(file)), put)
    assert isinstance(error, Invalid) and error.hint and "credentials" in error.hint
    assert "another" not in f"{error} {error.hint} {error.fields}"
    assert len(server.requests()) == 1


def test_missing_bucket_names_apply(server: ObjectServer) -> None:
    error = raised(server.address(BUCKET), put)
    assert isinstance(error, Invalid) and error.hint and "yunhe apply" in error.hint


def test_bucket_name_that_oss_refuses_is_invalid_before_anything_is_sent(server: ObjectServer) -> None:
    error = raised(server.address("Not_A_Bucket"), lambda store: store.ensure_bucket())
    assert isinstance(error, Invalid) and error.hint and "lower-case" in error.hint
    assert server.requests() == []


def test_bucket_in_another_region_names_its_endpoint(tmp_path: Path) -> None:
    running = ObjectServer("aliyun", tmp_path)
    elsewhere = {"far-bucket": "oss-cn-beijing.aliyuncs.com"}
    extra = {**CREDENTIALS["aliyun"], "admin_token": ADMIN_TOKEN, "elsewhere": elsewhere}
    running.credentials.write_text(json.dumps(extra))
    with running:
        running.start()
        for ask in (put, lambda store: store.get("k"), lambda store: store.list(""), lambda s: s.ensure_bucket()):
            error = raised(running.address("far-bucket"), ask)
            assert isinstance(error, Invalid) and error.hint and "oss-cn-beijing.aliyuncs.com" in error.hint


def test_signature_for_another_region_is_invalid(tmp_path: Path) -> None:
    running = ObjectServer("aliyun", tmp_path)
    running.credentials.write_text(json.dumps({**CREDENTIALS["aliyun"], "region": "cn-hangzhou"}))
    with running:
        running.start()
        error = raised(replace(running.address(BUCKET), region="cn-beijing"), put)
        assert isinstance(error, Invalid) and "region" in str(error)
        assert error.fields["code"] == "InvalidArgument"


@pytest.mark.parametrize(
    ("status", "code", "kind", "word"),
    [
        (403, "RequestTimeTooSkewed", Unavailable, "clock"),
        (403, "AccessDenied", Invalid, "credentials"),
        (403, "InvalidSecurityToken", Invalid, "credentials"),
        (403, "UserDisable", Invalid, "bill"),
        (503, "QpsLimitExceeded", Unavailable, "limit"),
        (503, "UploadTrafficRateLimitExceeded", Unavailable, "limit"),
        (400, "TooManyBuckets", Full, "quota"),
        (409, "BucketAlreadyExists", Invalid, "somebody else"),
        (400, "InvalidBucketName", Invalid, "lower-case"),
    ],
)
def test_refusals_have_a_kind_and_a_hint_that_names_the_fix(
    server: ObjectServer, status: int, code: str, kind: type[YunheError], word: str
) -> None:
    server.set_faults({"error_status": status, "error_code": code})
    error = raised(server.address(BUCKET), put)
    assert isinstance(error, kind) and not isinstance(error, OutcomeUnknown), error
    assert error.hint and word in error.hint
    assert len(server.requests()) == 1


def test_redirect_to_another_region_names_the_endpoint() -> None:
    redirect = oss.exceptions.ServiceError(
        status_code=301,
        code="PermanentRedirect",
        message="moved",
        headers={},
        **dict.fromkeys(("request_id", "ec", "timestamp", "request_target"), ""),
        error_fileds={"Endpoint": "oss-far"},
    )
    made = translate(oss.exceptions.OperationError(name="PutObject", error=redirect), "k", True)
    assert type(made) is Invalid and made.hint and "oss-far" in made.hint


def test_clock_that_is_twenty_minutes_off_is_told(server: ObjectServer) -> None:
    """The lab judges by the date that is signed."""

    async def main() -> None:
        async with opened(server.address(BUCKET)) as store:
            await store.ensure_bucket()
            send = store._bucket._send  # type: ignore[attr-defined] -- the date of the request is the SDK's own

            def dated(*args: object, **more: object) -> object:
                headers = {**(more.pop("headers", None) or {}), "x-oss-date": "Mon, 23 Nov 2026 10:00:00 GMT"}
                return send(*args, headers=headers, **more)

            store._bucket._send = dated  # type: ignore[attr-defined]
            with pytest.raises(Unavailable) as caught:
                await store.get("k")
            assert caught.value.hint and "clock" in caught.value.hint

    asyncio.run(main())


# -- versioned buckets: forbid-overwrite does not hold there


def versioning(server: ObjectServer, status: str) -> None:
    config = oss.config.load_default()
    config.credentials_provider = oss.credentials.StaticCredentialsProvider("LABKEY", "lab-secret")
    config.region, config.endpoint, config.use_path_style = "cn-hangzhou", server.endpoint, True
    client = oss.Client(config)
    client.put_bucket(oss.PutBucketRequest(bucket=BUCKET))
    client.put_bucket_versioning(
        oss.PutBucketVersioningRequest(
            bucket=BUCKET, versioning_configuration=oss.VersioningConfiguration(status=status)
        )
    )


@pytest.mark.parametrize("status", ["Enabled", "Suspended"])
def test_bucket_that_is_or_was_versioned_is_refused(server: ObjectServer, status: str) -> None:
    versioning(server, status)
    for ask in (lambda store: store.ensure_bucket(), put, lambda store: store.create_appendable("a")):
        error = raised(server.address(BUCKET), ask)
        assert isinstance(error, Invalid) and "versioned" in str(error) and error.hint
    server.kill()
    server.start()  # the lab remembers it
    assert isinstance(raised(server.address(BUCKET), put), Invalid)


# -- checksums


def test_read_that_does_not_match_its_checksum_is_corrupt(server: ObjectServer, tmp_path: Path) -> None:
    """The answer's checksum is another one than of the bytes that came: as if they were hurt on their way."""

    async def main() -> None:
        async with opened(server.address(BUCKET)) as store:
            await store.ensure_bucket()
            data = os.urandom(100_000)
            await store.put("k", data)
            http = store._bucket._http  # type: ignore[attr-defined]
            send = http.send

            def hurt(request: object, **more: object) -> object:
                answer = send(request, **more)
                answer.content = answer.content[:-1] + b"?" if answer.content else answer.content
                return answer

            http.send = hurt
            with pytest.raises(Corrupt):
                await store.get("k")
            with pytest.raises(Corrupt):
                async for _ in store.get_stream("k"):
                    pass
            http.send = send
            assert await store.get("k") == data

    asyncio.run(main())


def test_write_whose_answer_has_another_checksum_is_no_success(server: ObjectServer) -> None:
    async def main() -> None:
        async with opened(server.address(BUCKET)) as store:
            await store.ensure_bucket()
            http = store._bucket._http  # type: ignore[attr-defined]
            send = http.send

            def lie(request: object, **more: object) -> object:
                answer = send(request, **more)
                answer.headers = {**answer.headers, "x-oss-hash-crc64ecma": str(crc64.xz(b"other"))}
                return answer

            await store.create_appendable("a")
            await store.append("a", 0, b"first")
            http.send = lie
            with pytest.raises(Corrupt):
                await store.put("k", b"bytes")
            with pytest.raises(Corrupt):
                await store.append("a", 5, b"second")

    asyncio.run(main())


# -- appends


def test_wrong_offset_says_what_the_length_is(server: ObjectServer) -> None:
    async def main() -> None:
        async with opened(server.address(BUCKET)) as store:
            await store.ensure_bucket()
            await store.create_appendable("a")
            await store.append("a", 0, b"12345")
            with pytest.raises(WrongOffset) as wrong:
                await store.append("a", 3, b"no")
            assert wrong.value.fields["actual"] == 5
            with pytest.raises(NotFound):
                await store.append("absent", 3, b"no")
            await store.put("normal", b"x")
            with pytest.raises(Invalid) as normal:
                await store.append("normal", 1, b"no")
            assert normal.value.hint and "born appendable" in normal.value.hint
            with pytest.raises(Invalid):
                await store.append("a", (5 << 30) - 1, b"no")

    asyncio.run(main())


# -- uploads in parts


def test_upload_that_was_collected_ends_in_a_conflict(server: ObjectServer) -> None:
    async def main() -> None:
        async with opened(server.address(BUCKET)) as store:
            await store.ensure_bucket()

            async def collected() -> AsyncIterator[bytes]:
                for _ in range(3):
                    yield bytes(8 << 20)
                while await store.collect_uploads("k", 0) == 0:
                    pass
                yield b"more"

            with pytest.raises(Conflict) as gone:
                await store.put_stream("k", collected())
            assert not isinstance(gone.value, AlreadyExists)
            with pytest.raises(NotFound):
                await store.get("k")

    asyncio.run(main())


def test_lost_answer_to_an_unconditional_completion_is_found_out(server: ObjectServer) -> None:
    async def main() -> None:
        data = os.urandom(2 * PART_BYTES)
        async with opened(server.address(BUCKET)) as store:
            await store.ensure_bucket()

            async def chunks() -> AsyncIterator[bytes]:
                yield data[:PART_BYTES]
                yield data[PART_BYTES:]
                # The upload has begun: of POSTs only the completion is still to come.
                server.set_faults({"method": "POST", "drop_answer": True, "times": 1})

            await store.put_stream("k", chunks())
            assert await store.get("k") == data
            lost = [row for row in server.requests() if row[2] == 0]
            assert len(lost) == 1 and lost[0][0] == "POST" and "uploadId" in lost[0][1]

    asyncio.run(main())
