"""How the S3 adapters reach an S3-compatible judge."""

from __future__ import annotations

import json
from pathlib import Path

from providers.base.registry import StoreAddress
from tests.conformance.judges.process import Server
from tests.conformance.stores import CREDENTIALS


class S3Judge:
    """A running judge that speaks S3, with the suite's own credentials."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._credentials = folder / "credentials.json"
        self._credentials.write_text(json.dumps(CREDENTIALS["s3"]))

    def address(self, bucket: str, provider: str | None = None) -> StoreAddress:
        return StoreAddress(provider or "private", bucket, "us-east-1", self._server.endpoint, str(self._credentials))

    def close(self) -> None:
        self._server.close()
