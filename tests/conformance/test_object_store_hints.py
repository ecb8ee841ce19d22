"""What a user can mend is told as such, on every cloud, with what mends it; and no secret is told to anybody."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Full, Invalid, NotFound, Unavailable, YunheError
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store
from tests.conformance.google_keys import service_account
from tests.conformance.stores import CREDENTIALS, KINDS, Kind, ObjectServer, start_object_server

WIRE = {kind.name: kind for kind in KINDS if kind.dialect is not None}

RIGHT: dict[str, dict[str, Any]] = {**CREDENTIALS, "gcp": {"service_account": service_account("lab-project", "yunhe")}}
"""Google's with an account, so that there is something to be wrong."""

WRONG: dict[str, dict[str, Any]] = {
    "aliyun": {"access_key": "LABKEY", "secret_key": "wrong-secret-of-a-user"},
    "s3": {"access_key": "LABKEY", "secret_key": "wrong-secret-of-a-user"},
    "azure": {"account": "labaccount", "account_key": base64.b64encode(b"wrong-secret-of-a-user-wrong-sec").decode()},
    "gcp": {"service_account": service_account("lab-project", "yunhe", key=1)},
}

S3_KINDS = ["aws", "private", "aws-express"]


def server_of(kind: Kind, tmp_path: Path, **extra: object) -> ObjectServer:
    assert kind.dialect is not None
    return start_object_server(kind.dialect, tmp_path, {**RIGHT[kind.dialect], **extra})


def written(tmp_path: Path, credentials: Mapping[str, Any]) -> str:
    path = tmp_path / "of-the-user.json"
    path.write_text(json.dumps(credentials))
    return str(path)


def address_of(kind: Kind, server: ObjectServer, tmp_path: Path) -> StoreAddress:
    """With a file that holds the credentials and nothing else."""
    assert kind.dialect is not None
    file = written(tmp_path, RIGHT[kind.dialect])
    return replace(server.address(kind.bucket, kind.provider), credentials_file=file)


def failures(address: StoreAddress, *asks: Callable[[ObjectStore], Awaitable[object]]) -> list[YunheError]:
    """What each of `asks` raises."""

    async def main() -> list[YunheError]:
        store = open_store(address, clock=SystemClock(), rng=SystemRng())
        found = []
        try:
            for ask in asks:
                with pytest.raises(YunheError) as caught:
                    await ask(store)
                found.append(caught.value)
        finally:
            await store.close()
        return found

    return asyncio.run(main())


def made(address: StoreAddress) -> None:
    """The bucket, with one object."""

    async def main() -> None:
        store = open_store(address, clock=SystemClock(), rng=SystemRng())
        await store.ensure_bucket()
        await store.put("there", b"x")
        await store.close()

    asyncio.run(main())


ASKS: tuple[Callable[[ObjectStore], Awaitable[object]], ...] = (
    lambda store: store.get("there"),
    lambda store: store.head("there"),
    lambda store: store.put("k", b"x", if_absent=True),
    lambda store: store.list(""),
    lambda store: store.delete(["there", "k"]),
)


@pytest.mark.parametrize("kind", WIRE.values(), ids=WIRE)
def test_wrong_credentials_are_invalid_and_hint_at_credentials(kind: Kind, tmp_path: Path) -> None:
    assert kind.dialect is not None
    with server_of(kind, tmp_path) as server:
        right = address_of(kind, server, tmp_path)
        made(right)
        wrong_file = tmp_path / "wrong.json"
        wrong_file.write_text(json.dumps(WRONG[kind.dialect]))
        for error in failures(replace(right, credentials_file=str(wrong_file)), *ASKS):
            assert isinstance(error, Invalid), error
            assert error.hint and any(word in error.hint for word in ("credentials", "key", "account")), error.hint
        asyncio.run(read_back(right))


async def read_back(address: StoreAddress) -> None:
    store = open_store(address, clock=SystemClock(), rng=SystemRng())
    assert await store.get("there") == b"x"
    await store.close()


@pytest.mark.parametrize("kind", WIRE.values(), ids=WIRE)
def test_missing_bucket_is_invalid_and_hints_at_making_it(kind: Kind, tmp_path: Path) -> None:
    with server_of(kind, tmp_path) as server:
        for error in failures(address_of(kind, server, tmp_path), *ASKS):
            assert isinstance(error, Invalid) and not isinstance(error, NotFound), error
            assert error.hint and "yunhe apply" in error.hint


SKEW_MS = 20 * 60_000

SKEWED = [
    pytest.param(kind, skew_ms, id=f"{name}-{'ahead' if skew_ms > 0 else 'behind'}")
    for name, kind in WIRE.items()
    for skew_ms in (SKEW_MS, -SKEW_MS)
    # Google's assertions are good for an hour: one that is 20 minutes old is let in.
    if (name, skew_ms) != ("gcp", SKEW_MS)
]
"""Kinds, and how far their server is ahead of this machine."""


@pytest.mark.parametrize(("kind", "skew_ms"), SKEWED)
def test_clock_that_is_twenty_minutes_off_hints_at_the_clock(kind: Kind, skew_ms: int, tmp_path: Path) -> None:
    with server_of(kind, tmp_path) as server:
        address = address_of(kind, server, tmp_path)
        made(address)
        server.skew_clock(skew_ms)
        for error in failures(address, *ASKS[2:4]):
            assert isinstance(error, Invalid | Unavailable), error
            assert error.hint and "clock" in error.hint, f"{error} {error.hint}"


@pytest.mark.parametrize("kind", [kind for kind in WIRE.values() if not kind.express], ids=lambda kind: kind.name)
def test_name_that_the_cloud_refuses_is_invalid_and_hints_at_its_rules(kind: Kind, tmp_path: Path) -> None:
    with server_of(kind, tmp_path) as server:
        address = replace(address_of(kind, server, tmp_path), bucket="Not_A_Bucket")
        with pytest.raises(Invalid) as caught:
            asyncio.run(ensured(address))
        assert caught.value.hint and "3 to 63" in caught.value.hint, caught.value.hint
        too_long = failures(address_of(kind, server, tmp_path), lambda store: store.put("k" * 2000, b""))[0]
        assert isinstance(too_long, Invalid) and too_long.hint and "1024" in too_long.hint


async def ensured(address: StoreAddress) -> None:
    store = open_store(address, clock=SystemClock(), rng=SystemRng())
    try:
        await store.ensure_bucket()
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("aws", 400, "TooManyBuckets"),
        ("private", 403, "QuotaExceeded"),
        ("private", 507, "XMinioStorageFull"),
        ("azure", 409, "AccountLimitExceeded"),
        ("aliyun", 403, "UserCapacityExceeded"),
        ("gcp", 403, "quotaExceeded"),
    ],
)
def test_quota_that_is_used_up_is_full_and_hints_at_the_quota(
    name: str, status: int, code: str, tmp_path: Path
) -> None:
    kind = WIRE[name]
    with server_of(kind, tmp_path) as server:
        address = address_of(kind, server, tmp_path)
        made(address)
        server.set_faults(
            {"method": "PUT", "error_status": status, "error_code": code}, POST_FAULT | {"error_code": code}
        )
        error = failures(address, lambda store: store.put("k", b"x", if_absent=True))[0]
        assert isinstance(error, Full), error
        assert error.hint and "quota" in error.hint.lower()


POST_FAULT: dict[str, Any] = {"method": "POST", "contains": "upload", "error_status": 403}
"""Google's uploads are POSTs."""


@pytest.mark.parametrize("name", S3_KINDS)
def test_bucket_of_another_region_hints_at_its_region(name: str, tmp_path: Path) -> None:
    kind = WIRE[name]
    with server_of(kind, tmp_path, region="us-east-1", elsewhere={"abroad": "ap-south-1"}) as server:
        address = address_of(kind, server, tmp_path)
        made(address)
        # Asked at the wrong endpoint, and signed for the wrong region.
        for wrong, region in (
            (replace(address, bucket="abroad"), "ap-south-1"),
            (replace(address, region="eu-west-1"), "us-east-1"),
        ):
            for error in failures(wrong, *ASKS[:3]):
                assert isinstance(error, Invalid), error
                assert error.hint and region in error.hint, f"{error} {error.hint}"


@pytest.mark.parametrize("kind", WIRE.values(), ids=WIRE)
def test_no_secret_shows_up_in_errors_logs_or_representations(
    kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert kind.dialect is not None
    told: list[str] = []
    with server_of(kind, tmp_path) as server, caplog.at_level(logging.DEBUG):
        address = address_of(kind, server, tmp_path)
        made(address)
        wrong_file = tmp_path / "wrong.json"
        wrong_file.write_text(json.dumps(WRONG[kind.dialect]))
        for credentials in (address, replace(address, credentials_file=str(wrong_file))):
            server.set_faults()
            store = open_store(credentials, clock=SystemClock(), rng=SystemRng())
            told.append(f"{store!r} {vars(store)!r} {getattr(store, '_calls', None)!r}")
            for fault in ({}, {"drop_answer": True}, {"error_status": 500}, {"error_status": 403}):
                server.set_faults(*([fault] if fault else []))
                told.extend(asyncio.run(_told(store)))
    told.extend(record.getMessage() + str(record.exc_info) for record in caplog.records)
    secrets = [
        *(secret for side in (RIGHT, WRONG) for secret in _secrets(side[kind.dialect])),
    ]
    everything = "\n".join(told)
    for secret in secrets:
        assert secret not in everything


async def _told(store: ObjectStore) -> list[str]:
    """All that errors say, causes included."""
    said = []
    for ask in ASKS[:3]:
        try:
            await ask(store)
        except YunheError as error:
            cause: BaseException | None = error
            while cause is not None:
                said.append(f"{cause} {cause!r} {getattr(cause, 'hint', '')} {getattr(cause, 'fields', '')}")
                cause = cause.__cause__ or cause.__context__
    return said


def _secrets(credentials: Mapping[str, Any]) -> list[str]:
    match credentials:
        case {"secret_key": secret}:
            return [str(secret)]
        case {"account_key": secret}:
            return [str(secret)]
        case {"service_account": account}:
            return [line for line in str(account["private_key"]).splitlines() if "KEY" not in line]
    raise AssertionError("what is secret here?")
