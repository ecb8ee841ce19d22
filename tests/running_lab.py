"""One lab for the session's end-to-end tests: three clouds, one a WAL mode, two brokers in each. Real processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: %(name)s}
spec: {provider: %(provider)s, region: %(region)s, zones: [%(zones)s]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: %(name)s}
spec: {cloud: %(name)s, brokers: 2%(more)s}
"""
CLOUDS = (
    {"name": "gcp", "provider": "gcp", "region": "us-central1", "zones": "us-central1-a, us-central1-b"},
    {"name": "aws", "provider": "aws", "region": "us-east-1", "zones": "use1-az4, use1-az5"},
    {"name": "plant", "provider": "private", "region": "plant", "zones": "hall-a, hall-b"},
)
BY_MODE = {"regional-block": "gcp", "block+express": "aws", "object": "plant"}
"""The cloud of each WAL mode."""


@dataclass(frozen=True)
class RunningLab:
    """The command line over a lab that is up."""

    state_dir: Path
    spec: Path

    def yunhe(self, *args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "controlplane.cli.main", *args],
            capture_output=True,
            text=True,
            env={**os.environ, "YUNHE_STATE_DIR": str(self.state_dir)},
            timeout=timeout,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """As `status -o json` shows it."""
        shown: dict[str, Any] = json.loads(self.yunhe("status", "-o", "json").stdout)
        return shown

    def cloud(self, name: str) -> dict[str, Any]:
        """One cloud of `status`."""
        found: dict[str, Any] = next(c for c in self.status()["clouds"] if c["name"] == name)
        return found

    def drill(self, name: str, cloud: str, *choices: str) -> dict[str, Any]:
        """The report of a drill that passed."""
        result = self.yunhe("drill", "run", name, "--cloud", cloud, *choices, "-o", "json", timeout=180)
        assert result.returncode == 0, result.stderr + result.stdout
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def bootstrap(self, cloud: str) -> str:
        return str(self.cloud(cloud)["bootstrapServers"])


@contextlib.contextmanager
def running(folder: Path, text: str) -> Iterator[RunningLab]:
    """The lab of a spec, up; purged at the end."""
    spec = folder / "spec.yaml"
    spec.write_text(text)
    lab = RunningLab(folder / "state", spec)
    try:
        result = lab.yunhe("up", str(spec), "--timeout", "90")
        assert result.returncode == 0, result.stderr
        yield lab
    finally:
        down = lab.yunhe("down", "--purge")
        assert down.returncode == 0, down.stderr


def spec_of(more: str = "") -> str:
    """The three clouds; `more` goes into each cluster's spec."""
    return "---\n".join(SPEC % {**cloud, "more": more} for cloud in CLOUDS)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running(tmp_path_factory.mktemp("lab"), spec_of()) as lab:
        yield lab
