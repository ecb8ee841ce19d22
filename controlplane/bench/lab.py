"""The lab that a benchmark runs on: started from a spec under a state directory of its own, removed at the end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.cli.main import run as yunhe
from controlplane.cli.status import read_status
from controlplane.server.files import StateDir
from providers.base.clock import Clock
from providers.base.errors import Unavailable
from providers.lab.processes import python

_ONE_CLOUD = """
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {{name: bench}}
spec: {{provider: {provider}, region: {region}, zones: [{zones}]}}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {{name: bench}}
spec: {{cloud: bench, {cluster}}}
"""
REGIONAL = {"provider": "gcp", "region": "us-central1", "zones": "us-central1-a, us-central1-b"}
"""A cloud whose WAL is one zone-redundant volume."""
DUAL = {"provider": "aws", "region": "us-east-1", "zones": "use1-az4, use1-az5"}
"""A cloud whose WAL is two sides."""

SITE = {"provider": "private", "region": "site", "zones": "a, b"}
"""A cloud whose WAL is objects."""


def one_cloud(where: Mapping[str, str], cluster: str) -> str:
    """The spec of one cloud, `REGIONAL` or `DUAL`, with one cluster; `cluster`: its spec's other fields."""
    return _ONE_CLOUD.format(**where, cluster=cluster)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a benchmark gets: the spec, its state directory, the clock, and how large the large partition is."""

    spec: Path
    state_dir: StateDir
    clock: Clock
    large_bytes: int

    @contextlib.contextmanager
    def lab(self, spec: str | None = None) -> Iterator[tuple[list[dict[str, Any]], float]]:
        """The lab of `spec` (its text; the bench's own if left out), up: its clouds as status shows them, and how many
        seconds `yunhe up` took, as its user waits: from nothing, the interpreter's own start included. Purged at the
        end.
        """
        where = ["--state-dir", str(self.state_dir.root)]
        if yunhe(["down", "--purge", *where]) != 0:
            raise Unavailable(f"{self.state_dir.root} cannot be used for the benchmark's lab")
        path = self.spec
        if spec is not None:
            path = self.state_dir.root.with_suffix(".yaml")
            path.write_text(spec)
        try:
            at_ms = self.clock.monotonic_ms()
            # Its table is progress here: standard output carries the figures alone.
            done = subprocess.run(
                python("controlplane.cli.main", "up", str(path), *where), stdout=sys.stderr, check=False
            )
            took_s = (self.clock.monotonic_ms() - at_ms) / 1000
            if done.returncode != 0:
                raise Unavailable("the lab did not come up")
            yield read_status(self.state_dir)["clouds"], took_s
        finally:
            yunhe(["down", "--purge", *where])
            if spec is not None:
                path.unlink(missing_ok=True)
