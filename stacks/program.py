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
    made = Spec(
        "spec",
        files=_files(config.get("spec")),
        accept_data_loss=config.get_bool("acceptDataLoss") or False,
        timeout_s=config.get_float("timeoutS") or 120.0,
    )
    pulumi.export("bootstrapServers", made.bootstrap_servers)
    pulumi.export("states", made.states)


def _files(configured: str | None) -> list[str]:
    """A file's name, or a JSON list of them, as `pulumi config set --path 'yunhe:spec[0]' FILE` makes it."""
    if not configured:
        return [str(Path(__file__).parent.parent / DEFAULT_SPEC)]
    if not configured.startswith("["):
        return [configured]
    try:
        files = json.loads(configured)
    except ValueError as error:
        raise pulumi.RunError(f"yunhe:spec is neither a file's name nor a JSON list of them: {configured}") from error
    return [str(file) for file in files]
