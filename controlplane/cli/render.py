"""`yunhe render`: what the engines of a spec become on Kubernetes, as manifests; no cluster is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from controlplane.api.load import load
from controlplane.cli import output
from controlplane.cli.output import Format
from controlplane.plan.kubernetes_engines import render_engines
from controlplane.plan.resolve import resolve
from providers.base.errors import Invalid


def render(spec: Sequence[Path], *, form: Format) -> None:
    """Show the manifests; notes go beside them, to stderr.

    Raises:
        Invalid: nothing of it runs on Kubernetes, or an object cannot be rendered.
    """
    specs = load(spec)
    found = render_engines(specs, resolve(specs))
    if not found:
        raise Invalid(
            "nothing of this spec runs on Kubernetes",
            hint="give its Cloud `target: real` and `kubernetes: {namespace: …}`",
        )
    manifests = [manifest for one in found for manifest in one.manifests]
    output.data(manifests, form, yaml.safe_dump_all(manifests, sort_keys=False, allow_unicode=True).rstrip())
    for one in found:
        for note in one.notes:
            output.progress(f"{one.kind} {one.name}: {note}")
