"""What the Azure adapter promises beyond the common contract, over the lab's server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobBlock

from providers.azure.blob_parts import BlockUpload, drop_blocks
from providers.base.blocking import StoreSettings
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Conflict, Corrupt, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store
from tests.conformance.stores import CREDENTIALS, ObjectServer, start_object_server

BUCKET = "yunhe-azure"
CLOCKS = (SystemClock(), SystemRng())
Body = Callable[[ObjectStore, ObjectServer], Awaitable[None]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with start_object_server("azure", tmp_path_factory.mktemp("azure")) as running:
        yield running


@pytest.fixture
def over(server: ObjectServer) -> Callable[[Body], None]:
    def run(body: Body) -> None:
        async def main() -> None:
            store = opened(server.address(BUCKET))
            try:
                await store.ensure_bucket()
                await body(store, server)
            finally:
                server.set_faults()
                await store.close()

        asyncio.run(main())

    return run


def opened(address: StoreAddress) -> ObjectStore:
    return open_store(address, clock=SystemClock(), rng=SystemRng())


def refused(address: StoreAddress, ask: Callable[[ObjectStore], Awaitable[Any]]) -> YunheError:
    async def main() -> YunheError:
        store = opened(address)
        try:
            with pytest.raises(YunheError) as caught:
                await ask(store)
            return caught.value
        finally:
            await store.close()

    return asyncio.run(main())


def with_secrets(server: ObjectServer, path: Path, **secrets: str) -> StoreAddress:
    path.write_text(json.dumps(secrets))
    return replace(server.address(BUCKET), credentials_file=str(path))


# ---- streams


def start_victim(server: ObjectServer, key: str) -> subprocess.Popen[bytes]:
    address = json.dumps(asdict(server.address(BUCKET)))
    argv = [sys.executable, "-m", "tests.conformance.stream_victim", address, key]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


@pytest.mark.parametrize("collected", [True, False])
def test_process_killed_in_a_stream_leaves_nothing_visible_and_its_name_free(
    over: Callable[[Body], None], collected: bool
) -> None:
    """Its blocks stay, seen by nobody, until they are collected: they must hinder no later writer."""

    async def body(store: ObjectStore, server: ObjectServer) -> None:
        victim = start_victim(server, "killed/k")
        try:
            assert victim.stdout is not None
            assert await asyncio.to_thread(victim.stdout.readline) == b"parts are sent\n"
        finally:
            victim.kill()
            assert victim.wait() == -signal.SIGKILL
            if victim.stdout is not None:
                victim.stdout.close()
        with pytest.raises(NotFound):
            await store.get("killed/k")
        with pytest.raises(NotFound):
            await store.head("killed/k")
        assert await store.list("killed/") == []
        assert await store.collect_uploads("killed/", 86_400_000) == 0
        if collected:
            assert await store.collect_uploads("killed/elsewhere/", 0) == 0
            assert await store.collect_uploads("killed/", 0) == 1
            assert await store.collect_uploads("killed/", 0) == 0
        await store.put("killed/k", b"mine", if_absent=True)
        assert await store.get("killed/k") == b"mine"
        await store.delete(["killed/k"])

    over(body)


def test_collecting_never_removes_an_object_nor_what_others_staged(over: Callable[[Body], None]) -> None:
    async def body(store: ObjectStore, server: ObjectServer) -> None:
        client = store._container  # type: ignore[attr-defined]
        # Blocks over an object, blocks of another program, an object that is empty.
        upload = BlockUpload(client.get_blob_client("col/over"), "col/over", False, store._calls, *CLOCKS)  # type: ignore[attr-defined]
        await store.put("col/over", b"whole")
        await upload.part(1, b"block")
        await asyncio.to_thread(client.get_blob_client("col/foreign").stage_block, "0001", b"x")
        await store.put("col/empty", b"")
        assert await store.collect_uploads("col/", 0) == 0
        assert [(row.key, row.size) for row in await store.list("col/")] == [("col/empty", 0), ("col/over", 5)]
        staged = await asyncio.to_thread(client.get_blob_client("col/foreign").get_block_list, "uncommitted")
        assert len(staged[1]) == 1

    over(body)


def test_object_committed_while_its_blocks_are_collected_stays(
    over: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look, which found no object, and the deletion: the deletion's condition refuses it."""

    async def body(store: ObjectStore, server: ObjectServer) -> None:
        blob = store._container.get_blob_client("race")  # type: ignore[attr-defined]
        upload = BlockUpload(blob, "race", False, store._calls, *CLOCKS)  # type: ignore[attr-defined]
        await upload.part(1, b"data")
        delete = blob.delete_blob

        def commit_and_delete(**conditions: Any) -> Any:
            blob.commit_block_list([BlobBlock(upload.block_id(1))])
            return delete(**conditions)

        monkeypatch.setattr(blob, "delete_blob", commit_and_delete)
        assert await asyncio.to_thread(drop_blocks, blob, SystemClock().wall_ms()) is False
        assert await store.get("race") == b"data"

    over(body)


def test_stream_whose_blocks_were_dropped_by_another_writer_is_a_conflict(over: Callable[[Body], None]) -> None:
    async def body(store: ObjectStore, server: ObjectServer) -> None:
        async def outrun() -> AsyncIterator[bytes]:
            for _ in range(6):
                yield bytes(8 << 20)
            await store.put("outrun", b"whole")

        with pytest.raises(Conflict):
            await store.put_stream("outrun", outrun())
        assert await store.get("outrun") == b"whole"

    over(body)


def test_large_object_is_copied_in_blocks_and_stays_whole(
    over: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A copy of 64 MiB and more takes this way; the test's is small.
    monkeypatch.setattr("providers.azure.blob_parts.COPY_BYTES_MAX", 1 << 20)

    async def body(store: ObjectStore, server: ObjectServer) -> None:
        data = bytes(range(256)) * 16_500
        await store.put("large", data)
        await store.copy("large", "copied", if_absent=True)
        assert await store.get("copied") == data
        staged = [row for row in server.requests() if "comp=block&" in row[1] and "copied" in row[1]]
        assert len(staged) == 5
        with pytest.raises(Conflict):
            await store.copy("large", "copied", if_absent=True)

    over(body)


# ---- checksums


def test_large_read_that_fails_its_checksum_is_corrupt(over: Callable[[Body], None]) -> None:
    """Put with a wrong MD5 as its property: what comes does not match it, whoever is to blame."""
    from azure.storage.blob import ContentSettings

    async def body(store: ObjectStore, server: ObjectServer) -> None:
        blob = store._container.get_blob_client("corrupt")  # type: ignore[attr-defined]
        settings = ContentSettings(content_md5=bytearray(16))
        await asyncio.to_thread(blob.upload_blob, bytes(5 << 20), content_settings=settings)
        with pytest.raises(Corrupt):
            await store.get("corrupt")
        with pytest.raises(Corrupt):
            async for _ in store.get_stream("corrupt"):
                pass

    over(body)


def test_every_write_carries_its_checksum(over: Callable[[Body], None]) -> None:
    """The SDK's own hook sees what is sent."""

    async def body(store: ObjectStore, server: ObjectServer) -> None:
        seen: list[tuple[str, str, bool]] = []

        def look(request: Any) -> None:
            sent = request.http_request
            seen.append((sent.method, sent.url.partition("?")[2], "Content-MD5" in sent.headers))

        pipeline = store._container._client._client._pipeline  # type: ignore[attr-defined]
        transport_runner = pipeline._impl_policies[-1]
        original = transport_runner.send

        def send(request: Any) -> Any:
            look(request)
            return original(request)

        transport_runner.send = send

        async def long() -> AsyncIterator[bytes]:
            yield bytes(9 << 20)

        await store.put("sums/put", b"x")
        await store.put_stream("sums/stream", long())
        await store.create_appendable("sums/append")
        await store.append("sums/append", 0, b"x")
        bodies = [row for row in seen if row[0] == "PUT" and "restype" not in row[1]]
        assert len(bodies) == 6
        # Creating an append blob has no body.
        assert [row[2] for row in bodies].count(False) == 1

    over(body)


# ---- deletion


def test_keys_that_were_not_deleted_are_named(over: Callable[[Body], None]) -> None:
    async def body(store: ObjectStore, server: ObjectServer) -> None:
        names = [f"del/{number:03}" for number in range(300)]
        await asyncio.gather(*(store.put(name, b"x") for name in names))
        # A batch has 256 at most: the first one fails, and the second is sent nevertheless.
        server.set_faults({"method": "POST", "error_status": 403, "error_code": "AuthorizationFailure", "times": 1})
        with pytest.raises(Invalid) as caught:
            await store.delete(names)
        server.set_faults()
        left = [row.key for row in await store.list("del/")]
        assert sorted(caught.value.fields["failed"]) == left == names[:256]
        await store.delete([*names, "del/missing"])
        assert await store.list("del/") == []

    over(body)


# ---- bad input


def test_wrong_key_is_invalid_with_a_hint(server: ObjectServer, tmp_path: Path) -> None:
    address = with_secrets(server, tmp_path / "c", account="labaccount", account_key="YW5vdGhlcg==")
    error = refused(address, lambda store: store.get("k"))
    assert isinstance(error, Invalid) and error.hint and "account_key" in error.hint
    assert "YW5vdGhlcg" not in str(error) + error.hint


def test_wrong_account_is_invalid_with_a_hint(server: ObjectServer, tmp_path: Path) -> None:
    key = str(CREDENTIALS["azure"]["account_key"])
    address = with_secrets(server, tmp_path / "c", account="another", account_key=key)
    error = refused(address, lambda store: store.put("k", b"x"))
    assert isinstance(error, Invalid) and error.hint and "account" in error.hint


def test_account_without_an_address_is_unavailable_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_text(json.dumps({"account": "nosuchaccount", "account_key": "YW5vdGhlcg=="}))
    address = StoreAddress("azure", BUCKET, "eastus", "http://no-such-host.invalid", str(path))
    error = refused(address, lambda store: store.get("k"))
    assert isinstance(error, Unavailable) and not isinstance(error, OutcomeUnknown)
    assert error.hint and "account" in error.hint


def test_missing_container_is_invalid_with_a_hint(server: ObjectServer) -> None:
    address = replace(server.address(BUCKET), bucket="missing-container")
    error = refused(address, lambda store: store.put("k", b"x", if_absent=True))
    assert isinstance(error, Invalid) and error.hint and "creates the container" in error.hint


@pytest.mark.parametrize("name", ["UPPER", "ab", "a--b", "-ab", "x" * 64, "under_score"])
def test_name_that_no_container_has_is_invalid_before_anything_is_sent(server: ObjectServer, name: str) -> None:
    before = len(server.requests())
    with pytest.raises(Invalid) as caught:
        opened(replace(server.address(BUCKET), bucket=name))
    assert caught.value.hint and len(server.requests()) == before


@pytest.mark.parametrize(
    ("status", "code", "kind", "word"),
    [
        (403, "AuthorizationPermissionMismatch", Invalid, "Storage Blob Data Contributor"),
        (403, "AuthorizationFailure", Invalid, "network rules"),
        (403, "KeyBasedAuthenticationNotPermitted", Invalid, "Entra"),
        (409, "BlobImmutableDueToPolicy", Invalid, "immutability"),
        (503, "ServerBusy", OutcomeUnknown, ""),
        (429, "TooManyRequests", OutcomeUnknown, ""),
        (500, "OperationTimedOut", OutcomeUnknown, ""),
        (409, "ContainerBeingDeleted", Unavailable, ""),
    ],
)
def test_refusal_has_a_hint_that_names_the_fix(
    over: Callable[[Body], None], status: int, code: str, kind: type[YunheError], word: str
) -> None:
    async def body(store: ObjectStore, server: ObjectServer) -> None:
        server.set_faults({"error_status": status, "error_code": code})
        with pytest.raises(kind) as caught:
            await store.put("k", b"x", if_absent=True)
        assert word in (caught.value.hint or "")

    over(body)


def test_clock_that_is_off_is_told_from_a_wrong_key(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import azure.storage.blob._shared.policies as policies

    monkeypatch.setattr(policies, "format_date_time", lambda _: "Tue, 01 Dec 2015 00:00:00 GMT")
    error = refused(server.address(BUCKET), lambda store: store.get("k"))
    assert isinstance(error, Invalid) and error.hint and "clock" in error.hint


def test_token_is_never_sent_over_plain_http(server: ObjectServer, tmp_path: Path) -> None:
    """Without an account key an identity signs in, and the SDK sends its token over TLS only."""
    address = with_secrets(
        server, tmp_path / "c", account="labaccount", tenant="t", client_id="c", client_secret="secret-of-the-test"
    )
    with pytest.raises(Invalid, match="HTTPS") as caught:
        opened(address)
    assert "secret-of-the-test" not in str(caught.value) + (caught.value.hint or "")


def test_credentials_that_are_half_there_are_invalid(server: ObjectServer, tmp_path: Path) -> None:
    for secrets in ({"account": "a", "tenant": "t"}, {"account_key": "YQ=="}):
        with pytest.raises(Invalid):
            opened(with_secrets(server, tmp_path / "c", **secrets))


def test_reads_are_bounded_by_the_call_s_time(server: ObjectServer) -> None:
    async def main() -> None:
        settings = StoreSettings(read_timeout_ms=200, call_timeout_ms=500)
        store = open_store(server.address(BUCKET), clock=SystemClock(), rng=SystemRng())
        await store.close()
        from providers.azure.objects import open_store as open_azure

        quick = open_azure(server.address(BUCKET), clock=SystemClock(), rng=SystemRng(), settings=settings)
        server.set_faults({"latency_ms": 5_000})
        began = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await quick.get("k")
        assert asyncio.get_running_loop().time() - began < 2
        server.set_faults()
        await quick.close()

    asyncio.run(main())
