"""The program of `stacks/`, for `pulumi up` and for `yunhe stack` alike."""

from __future__ import annotations

import json
from pathlib import Path

import pulumi

from stacks.resources import Spec

DEFAULT_SPEC = "examples/four-clouds.yaml"


def program() -> None:
    """Deploy the files that the stack's configuration names; lab and real clouds differ in their specs alone."""
    config = pulumi.Config("yunhe")
    files = json.loads(config.get("spec") or "[]") or [str(Path(__file__).parent.parent / DEFAULT_SPEC)]
    made = Spec(
        "spec",
        files=[str(Path(file)) for file in files],
        accept_data_loss=config.get_bool("acceptDataLoss") or False,
        timeout_s=config.get_float("timeoutS") or 120.0,
    )
    pulumi.export("bootstrapServers", made.bootstrap_servers)
    pulumi.export("states", made.states)
