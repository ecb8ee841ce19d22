"""What the lab's Blob service keeps over a crash, and limits that no client of a test's size reaches: the dialect over
the storage core, its requests signed by Microsoft's SDK."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.core.rest import HttpRequest
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy

from providers.base.clock import SystemClock
from providers.lab.dialect_azure import AzureDialect
from providers.lab.dialect_azure_blocks import HIDDEN
from providers.lab.storage import Storage
from providers.lab.wire import Reply, Request

ACCOUNT, KEY = "labaccount", base64.b64encode(b"key").decode()
FIRST, SECOND = (base64.b64encode(name).decode() for name in (b"block-1", b"block-2"))


class Service:
    """A dialect over a storage in `root`, as a server would hold them."""

    def __init__(self, root: Path) -> None:
        self.storage = Storage(root)
        self.dialect = AzureDialect(self.storage, {"account": ACCOUNT, "account_key": KEY}, SystemClock())

    def ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> Reply:
        """`target` inside the account; an underscore in a header's name stands for a hyphen."""
        path = f"/{ACCOUNT}/{target}"
        given = {
            "x-ms-date": formatdate(usegmt=True),
            "x-ms-version": "2026-06-06",
            "content-length": str(len(body)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        signed = HttpRequest(method, f"http://127.0.0.1{path}", headers=given)
        wrapped = SimpleNamespace(http_request=signed, context=SimpleNamespace(transport=None))
        SharedKeyCredentialPolicy(ACCOUNT, KEY).on_request(wrapped)
        sent = {name.lower(): value for name, value in signed.headers.items()}
        return self.dialect.answer(Request.of(method, path, sent, body))

    def stage(self, blob: str, block: str, body: bytes) -> None:
        reply = self.ask("PUT", f"cont/{blob}?comp=block&blockid={block.replace('=', '%3D')}", body)
        assert reply.status == 201, reply.body

    def commit(self, blob: str, *blocks: str) -> Reply:
        rows = "".join(f"<Latest>{block}</Latest>" for block in blocks)
        return self.ask("PUT", f"cont/{blob}?comp=blocklist", f"<BlockList>{rows}</BlockList>".encode())

    def get(self, blob: str) -> bytes:
        reply = self.ask("GET", f"cont/{blob}")
        assert reply.status == 200
        return reply.body if isinstance(reply.body, bytes) else b"".join(reply.body.pieces())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    assert made.ask("PUT", "cont?restype=container").status == 201
    yield made
    made.storage.close()


def code(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.headers["x-ms-error-code"]


def test_blocks_that_were_staged_outlive_the_server(service: Service, tmp_path: Path) -> None:
    service.stage("k", FIRST, b"one ")
    service.storage.close()
    again = Service(tmp_path)
    service.storage = again.storage  # closed by the fixture
    again.stage("k", SECOND, b"two")
    assert again.commit("k", FIRST, SECOND).status == 201
    assert again.get("k") == b"one two"


def test_crash_between_a_commit_and_its_index_s_removal_does_no_harm(service: Service) -> None:
    service.stage("k", FIRST, b"one")
    index = service.storage.read(HIDDEN, "cont/k", 0, None)[1]
    assert service.commit("k", FIRST).status == 201
    service.storage.put(HIDDEN, "cont/k", index)  # as the crash would leave it
    service.stage("k", SECOND, b"two")
    assert service.commit("k", SECOND).status == 201
    assert service.get("k") == b"two"


def test_nothing_stays_of_an_upload_that_was_committed_or_overtaken(service: Service) -> None:
    service.stage("committed", FIRST, b"one")
    service.stage("committed", SECOND, b"two")
    assert service.commit("committed", FIRST).status == 201
    service.stage("overtaken", FIRST, b"one")
    assert service.ask("PUT", "cont/overtaken", b"whole", x_ms_blob_type="BlockBlob").status == 201
    assert code(service.commit("none", FIRST)) == (400, "InvalidBlockList")
    assert service.storage.uploads("cont", "") == [] and service.storage.list(HIDDEN, "", limit=9)[0] == []


def test_blob_that_is_nothing_but_blocks_can_be_deleted(service: Service) -> None:
    service.stage("k", FIRST, b"one")
    assert code(service.ask("DELETE", "cont/k", if_match='"x"')) == (404, "BlobNotFound")
    assert service.ask("DELETE", "cont/k").status == 202
    assert code(service.ask("DELETE", "cont/k")) == (404, "BlobNotFound")
    assert code(service.commit("k", FIRST)) == (400, "InvalidBlockList")


def test_appends_end_at_the_documented_count(service: Service) -> None:
    assert service.storage.parts_max == 50_001  # 50,000, and the empty blob they begin with
    service.storage.parts_max = 3
    assert service.ask("PUT", "cont/log", x_ms_blob_type="AppendBlob").status == 201
    for _ in range(2):
        assert service.ask("PUT", "cont/log?comp=appendblock", b"x").status == 201
    assert code(service.ask("PUT", "cont/log?comp=appendblock", b"x")) == (409, "BlockCountExceedsLimit")
    assert service.get("log") == b"xx"


def test_hidden_container_cannot_be_reached(service: Service) -> None:
    service.stage("k", FIRST, b"one")
    for target in (f"{HIDDEN}/cont/k", "%24blocks/cont/k", f"{HIDDEN}?restype=container&comp=list"):
        assert code(service.ask("GET", target)) == (400, "InvalidResourceName")


@pytest.mark.parametrize("offset_s", [-16 * 60, 16 * 60])
def test_request_dated_too_far_off_is_refused_by_name(service: Service, offset_s: int) -> None:
    dated = formatdate(SystemClock().wall_ms() / 1000 + offset_s, usegmt=True)
    reply = service.ask("GET", "cont/k", x_ms_date=dated)
    assert code(reply) == (403, "AuthenticationFailed") and b"Request date header" in reply.body
    near = formatdate(SystemClock().wall_ms() / 1000 + offset_s // 2, usegmt=True)
    assert code(service.ask("GET", "cont/k", x_ms_date=near)) == (404, "BlobNotFound")


def test_version_that_the_service_does_not_speak_is_refused(service: Service) -> None:
    for version in ("2099-01-01", "new", ""):
        assert code(service.ask("GET", "cont/k", x_ms_version=version)) == (400, "InvalidHeaderValue")
