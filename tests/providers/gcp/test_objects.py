"""What is Cloud Storage's own in its adapter: refusals and their hints, sessions, the checksum of a stream."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import AlreadyExists, Corrupt, Invalid, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store
from providers.base.streams import PART_BYTES
from providers.gcp.account import SignIn, sign_in
from tests.conformance.google_keys import service_account
from tests.conformance.stores import ObjectServer, start_object_server


def with_store(
    server: ObjectServer,
    act: Callable[[ObjectStore], Awaitable[Any]],
    *,
    bucket: str = "yunhe-gcp",
    credentials: dict[str, Any] | None = None,
    create: bool = True,
) -> Any:
    address = server.address(bucket)
    if credentials is not None:
        path = server.root.parent / "other.json"
        path.write_text(json.dumps(credentials))
        address = StoreAddress("gcp", bucket, address.region, address.endpoint, str(path))

    async def main() -> Any:
        store = open_store(address, clock=SystemClock(), rng=SystemRng())
        try:
            if create:
                await store.ensure_bucket()
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(main())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with start_object_server("gcp", tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture(autouse=True)
def calm(server: ObjectServer) -> Any:
    yield
    server.set_faults()


def refusal(server: ObjectServer, act: Callable[[ObjectStore], Awaitable[Any]], **more: Any) -> YunheError:
    async def refused(store: ObjectStore) -> YunheError:
        with pytest.raises(YunheError) as caught:
            await act(store)
        return caught.value

    found: YunheError = with_store(server, refused, create=False, **more)
    return found


def test_forged_key_is_invalid_and_says_what_to_do(server: ObjectServer) -> None:
    forged = {"service_account": service_account("lab-project", "yunhe", key=1)}
    error = refusal(server, lambda store: store.get("k"), credentials=forged)
    assert isinstance(error, Invalid) and error.hint and "key" in error.hint
    assert "PRIVATE" not in f"{error} {error.hint} {error.fields}"


def test_clock_that_is_off_is_invalid_and_the_hint_names_the_clock(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    from google.auth import _helpers

    ahead = datetime.timedelta(minutes=20)
    now = _helpers.utcnow
    monkeypatch.setattr(_helpers, "utcnow", lambda: now() + ahead)
    error = refusal(server, lambda store: store.get("k"))
    assert isinstance(error, Invalid) and error.hint and "clock" in error.hint


def test_missing_bucket_and_bad_name_have_hints(server: ObjectServer) -> None:
    missing = refusal(server, lambda store: store.put("k", b"x"), bucket="nobody-made-it")
    assert isinstance(missing, Invalid) and missing.hint and "apply" in missing.hint
    bad = refusal(server, lambda store: store.ensure_bucket(), bucket="goog-reserved")
    assert isinstance(bad, Invalid) and bad.hint and "63" in bad.hint


@pytest.mark.parametrize(
    ("status", "reason", "kind", "word"),
    [
        (401, "authError", Invalid, "credentials_file"),
        (403, "forbidden", Invalid, "permission"),
        (403, "userProjectMissing", Invalid, "bills the requester"),
        (403, "accessNotConfigured", Invalid, "services enable"),
        (403, "accountDisabled", Invalid, "billing"),
        (403, "rateLimitExceeded", Unavailable, "quota"),
        (429, "rateLimitExceeded", OutcomeUnknown, "quota"),
    ],
)
def test_refusals_are_told_apart_and_have_hints(
    server: ObjectServer, status: int, reason: str, kind: type[YunheError], word: str
) -> None:
    async def act(store: ObjectStore) -> YunheError:
        server.set_faults({"error_status": status, "error_code": reason, "contains": "/upload/"})
        with pytest.raises(YunheError) as caught:
            await store.put("k", b"x", if_absent=True)
        return caught.value

    error: YunheError = with_store(server, act)
    assert type(error) is kind and error.hint is not None and word in error.hint


def test_delete_names_the_keys_that_were_not_removed(server: ObjectServer) -> None:
    async def act(store: ObjectStore) -> None:
        keys = [f"d/{number:03}" for number in range(250)]
        await asyncio.gather(*(store.put(key, b"x") for key in keys))
        server.set_faults({"contains": "/batch/", "error_status": 503, "error_code": "backendError"})
        with pytest.raises(Unavailable) as caught:
            await store.delete(keys)
        assert set(caught.value.fields["failed"]) == set(keys)
        server.set_faults()
        before = len(server.requests())
        await store.delete([*keys, "d/absent"])
        sent = [target for _, target, _ in server.requests()[before:] if "/batch/" in target]
        assert len(sent) == 3, "a hundred calls a request"
        assert await store.list("d/") == []

    with_store(server, act)


def test_append_is_invalid_and_names_rapid_buckets(server: ObjectServer) -> None:
    for act in (lambda store: store.append("k", 0, b"x"), lambda store: store.create_appendable("k")):
        error = refusal(server, act)
        assert isinstance(error, Invalid) and error.hint and "Rapid" in error.hint


def test_stream_that_lost_to_another_leaves_no_session(server: ObjectServer) -> None:
    async def act(store: ObjectStore) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield os.urandom(PART_BYTES)
            yield os.urandom(PART_BYTES)
            await store.put("lost-race", b"was first", if_absent=True)

        before = len(server.requests())
        with pytest.raises(AlreadyExists):
            await store.put_stream("lost-race", chunks(), if_absent=True)
        assert await store.get("lost-race") == b"was first"
        ended = [(method, status) for method, target, status in server.requests()[before:] if "upload_id" in target]
        assert ended[-1] == ("DELETE", 499)

    with_store(server, act)


def test_chunk_whose_answer_is_lost_is_not_stored_twice(server: ObjectServer) -> None:
    async def act(store: ObjectStore) -> None:
        data = os.urandom(3 * PART_BYTES + 5)

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(data), PART_BYTES):
                if at == PART_BYTES:
                    server.set_faults({"method": "PUT", "contains": "upload_id", "drop_answer": True, "times": 1})
                yield data[at : at + PART_BYTES]

        await store.put_stream("resumed", chunks())
        assert await store.get("resumed") == data

    with_store(server, act)


def test_unconditional_stream_learns_from_its_session_what_became_of_a_lost_answer(server: ObjectServer) -> None:
    async def act(store: ObjectStore) -> None:
        data = os.urandom(2 * PART_BYTES)

        async def chunks() -> AsyncIterator[bytes]:
            yield data[:PART_BYTES]
            yield data[PART_BYTES:]
            server.set_faults({"method": "PUT", "contains": "upload_id", "drop_answer": True, "times": 1})

        await store.put_stream("learnt", chunks())
        assert await store.get("learnt") == data

    with_store(server, act)


def test_stream_that_does_not_match_the_objects_checksum_is_corrupt(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from providers.gcp.gcs_wire import Wire

    read = Wire.read

    def damaged(self: Wire, key: str, generation: str, start: int, length: int) -> bytes:
        return b"\x00" + read(self, key, generation, start, length)[1:]

    async def act(store: ObjectStore) -> None:
        await store.put("checked", b"\x01" * 1000)
        monkeypatch.setattr(Wire, "read", damaged)
        with pytest.raises(Corrupt):
            async for _ in store.get_stream("checked"):
                pass

    with_store(server, act)


def test_key_file_that_lacks_something_is_invalid_without_showing_the_key(tmp_path: Path) -> None:
    account = service_account("lab-project", "yunhe")
    for broken in ({**account, "private_key": "no key"}, {"type": "service_account"}, "text", None):
        path = tmp_path / "broken.json"
        path.write_text(json.dumps({"service_account": broken}))
        with pytest.raises(Invalid) as caught:
            sign_in(str(path), None)
        assert caught.value.hint and "BEGIN" not in f"{caught.value}"


def test_key_of_the_real_google_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    uri = "https://oauth2.googleapis.com/token"
    path.write_text(json.dumps({"service_account": {**service_account("p", "n"), "token_uri": uri}}))
    signed = sign_in(str(path), "http://127.0.0.1:1")
    assert isinstance(signed, SignIn) and signed.credentials._token_uri == uri
    assert type(signed.credentials).__name__ == "Credentials"
