"""Azurite, Microsoft's own emulator of Azure Storage, over a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

from providers.base.registry import StoreAddress
from tests.conformance.stores import AZURE_GAPS, CREDENTIALS, Kind, NotInstallable

INSTALLER = Path(__file__).parents[3] / "tools/judges/azurite.sh"
START_S_MAX = 120.0
"""Node reads several thousand files first, on a busy machine slowly."""

_LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:\d+)")


class Azurite:
    """One running Blob service, with the suite's account."""

    def __init__(self, folder: Path) -> None:
        node = shutil.which("node")
        if node is None:
            raise NotInstallable("Node is not installed")
        installed = subprocess.run([str(INSTALLER)], capture_output=True, text=True)
        if installed.returncode != 0:
            raise NotInstallable(installed.stderr.strip().splitlines()[-1] if installed.stderr.strip() else "?")
        secrets = CREDENTIALS["azure"]
        self._credentials = folder / "credentials.json"
        self._credentials.write_text(json.dumps(secrets))
        self._process = subprocess.Popen(
            # It knows all that the suite asks of the newest service version, but refuses its name.
            [
                *(node, installed.stdout.strip(), "--blobHost", "127.0.0.1", "--blobPort", "0"),
                *("--location", str(folder / "azurite"), "--silent", "--disableTelemetry", "--skipApiVersionCheck"),
            ],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{secrets['account']}:{secrets['account_key']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._endpoint = ""
        self._listens = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._listens.wait(START_S_MAX):
            self.close()
            raise AssertionError("azurite did not get ready")
        assert self._endpoint, "azurite ended at once"

    def _read(self) -> None:
        """All that it says, so that its pipe never fills; the address it listens on is in it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = _LISTENS.search(line)
            if found:
                self._endpoint = found[1]
                self._listens.set()
        self._listens.set()

    def address(self, bucket: str, provider: str | None = None) -> StoreAddress:
        return StoreAddress("azure", bucket, "eastus", self._endpoint, str(self._credentials))

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


KINDS = (Kind("azurite", None, "azure", "yunhe-azurite", appends=True, judge=Azurite, gaps=AZURE_GAPS),)
