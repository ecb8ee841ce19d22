"""The object server as a process: what it refuses, how it starts and ends, and that damage on disk is never served."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store
from tests.conformance.lab_disk import flip_a_bit
from tests.conformance.stores import KINDS, Kind, ObjectServer, start_object_server

WIRE = [kind for kind in KINDS if kind.dialect is not None and kind.name != "private"]


def opened(address: StoreAddress) -> ObjectStore:
    return open_store(address, clock=SystemClock(), rng=SystemRng())


@pytest.mark.parametrize("kind", WIRE, ids=lambda kind: kind.name)
def test_damaged_object_is_never_served(kind: Kind, tmp_path: Path) -> None:
    assert kind.dialect is not None
    with start_object_server(kind.dialect, tmp_path) as server:

        async def main() -> None:
            store = opened(server.address(kind.bucket, kind.provider))
            await store.ensure_bucket()
            await store.put("whole", b"a" * 5000)
            await store.put("k", b"a" * 5000)
            flip_a_bit(server.root, b"a" * 5000, occurrence=1)
            with pytest.raises(Unavailable):
                await store.get("k")
            with pytest.raises(Unavailable):
                await store.get("k", start=10, length=10)
            assert await store.get("whole") == b"a" * 5000
            await store.close()

        asyncio.run(main())


@pytest.mark.parametrize("kind", [kind for kind in WIRE if kind.dialect != "gcp"], ids=lambda kind: kind.name)
def test_wrong_secret_is_refused(kind: Kind, tmp_path: Path) -> None:
    assert kind.dialect is not None
    with start_object_server(kind.dialect, tmp_path) as server:
        wrong = json.loads(server.credentials.read_text())
        for name in ("secret_key", "account_key"):
            if name in wrong:
                wrong[name] = "d3Jvbmc="
        other = tmp_path / "wrong.json"
        other.write_text(json.dumps(wrong))

        async def main() -> None:
            good = opened(server.address(kind.bucket, kind.provider))
            await good.ensure_bucket()
            await good.put("k", b"x")
            await good.close()
            address = replace(server.address(kind.bucket, kind.provider), credentials_file=str(other))
            store = opened(address)
            for ask in (
                store.get("k"),
                store.put("new", b"x", if_absent=True),
                store.list(""),
                store.delete(["k"]),
            ):
                with pytest.raises(Invalid):
                    await ask
            await store.close()
            good = opened(server.address(kind.bucket, kind.provider))
            assert await good.get("k") == b"x"
            with pytest.raises(NotFound):
                await good.get("new")
            await good.close()

        asyncio.run(main())


def test_an_object_takes_ten_thousand_parts_and_no_more(tmp_path: Path) -> None:
    from providers.base.errors import Invalid as Refused
    from providers.lab import storage

    assert storage.PARTS_MAX == 10_000
    core = storage.Storage(tmp_path, parts_max=5)
    core.create_bucket("b--x-s3")
    for i in range(5):
        core.append("b--x-s3", "k", i, b"x")
    with pytest.raises(Refused):
        core.append("b--x-s3", "k", 5, b"x")
    assert core.read("b--x-s3", "k", 0, None)[1] == b"xxxxx"
    core.close()


def test_slow_store_is_unknown_for_a_put_and_unavailable_for_a_get(tmp_path: Path) -> None:
    from providers.aws.objects import open_store as open_s3
    from providers.base.blocking import StoreSettings

    with start_object_server("s3", tmp_path) as server:

        async def main() -> None:
            settings = StoreSettings(read_timeout_ms=200, call_timeout_ms=1_000, retry_max=0)
            address = server.address("bucket")
            store = open_s3(address, clock=SystemClock(), rng=SystemRng(), settings=settings)
            await store.ensure_bucket()
            server.set_faults({"latency_ms": 600})
            with pytest.raises(OutcomeUnknown):
                await store.put("k", b"x", if_absent=True)
            with pytest.raises(Unavailable) as caught:
                await store.get("k")
            assert not isinstance(caught.value, OutcomeUnknown)
            await store.close()

        asyncio.run(main())


def run_server(tmp_path: Path, root: Path, port: int) -> subprocess.CompletedProcess[str]:
    credentials = tmp_path / "c.json"
    credentials.write_text('{"access_key": "a", "secret_key": "b"}')
    return subprocess.run(
        [
            *(sys.executable, "-m", "providers.lab.objects_server", "--dialect", "s3", "--root", str(root)),
            *("--port", str(port), "--credentials", str(credentials), "--ready-file", str(tmp_path / "r")),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_taken_port_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    with start_object_server("s3", tmp_path / "first") as server:
        done = run_server(tmp_path, tmp_path / "second", server.port)
    assert done.returncode == 1
    assert done.stderr == f"error: port {server.port} on 127.0.0.1 is taken\n"
    assert not (tmp_path / "r").exists()


def test_unusable_root_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_server(tmp_path, tmp_path / "file" / "root", 0)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr


def test_two_servers_never_share_a_root(tmp_path: Path) -> None:
    with start_object_server("s3", tmp_path / "first") as server:
        done = run_server(tmp_path, server.root, 0)
    assert done.returncode == 1
    assert "another server is using" in done.stderr


def test_sigterm_ends_with_exit_code_0_and_the_port_can_be_reused(tmp_path: Path) -> None:
    with start_object_server("gcp", tmp_path) as server:
        port = server.port
        assert server.stop() == 0
        server.start()
        assert server.port == port


def test_faults_need_the_admin_token(tmp_path: Path) -> None:
    with start_object_server("s3", tmp_path) as server:
        request = urllib.request.Request(f"{server.endpoint}/-/faults", data=b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=5)
        assert caught.value.code == 403
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.set_faults({"no_such_field": 1})
        assert caught.value.code == 400


def test_server_imports_no_sdk_and_adapters_import_theirs_only_when_opened() -> None:
    code = (
        "import sys\n"
        "import providers.lab.objects_server\n"
        "for cloud in ('aliyun', 'azure', 'gcp', 'aws', 'private'):\n"
        "    __import__(f'providers.{cloud}.objects')\n"
        "names = ('oss2', 'azure', 'google.cloud', 'boto3', 'botocore', 'requests')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


def test_multipart_uploads_that_a_crash_left_are_collected_at_the_stated_age(tmp_path: Path) -> None:
    from providers.lab.storage import Storage

    class Collecting(ObjectServer):
        def argv(self, port: int) -> list[str]:
            return [*super().argv(port), "--uploads-kept-ms", "1"]

    core = Storage(tmp_path / "objects")
    core.create_bucket("bucket")
    core.put_part("bucket", core.begin_upload("bucket", "k"), 1, bytes(1 << 20))
    core.close()
    data = tmp_path / "objects" / "data"
    assert len(list(data.iterdir())) == 1
    with Collecting("s3", tmp_path) as server:
        server.start()
        deadline = time.monotonic() + 20
        while list(data.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.stop() == 0
    core = Storage(tmp_path / "objects")
    assert core.uploads("bucket", "") == [] and core.list("bucket", "", limit=10) == ([], False)
    core.close()
