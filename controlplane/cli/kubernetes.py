"""`yunhe crds` and `yunhe manifests`: what a Kubernetes cluster is given, as YAML on standard output."""

from __future__ import annotations

from controlplane.cli import output
from controlplane.cli.output import Format
from providers.base.errors import Invalid


def crds(form: Format) -> None:
    """Print the CustomResourceDefinitions."""
    from controlplane.api.crds import custom_resource_definitions
    from controlplane.operator.chart import yaml_of

    definitions = custom_resource_definitions()
    listed = {"apiVersion": "v1", "kind": "List", "items": definitions}
    output.data(listed, Format.JSON if form is Format.JSON else Format.TEXT, yaml_of(definitions))


def manifests(*, namespace: str, image: str | None, replicas: int, form: Format) -> None:
    """Print the operator's manifests.

    Raises:
        Invalid: no name of a namespace.
    """
    import re
    from dataclasses import replace

    from controlplane.operator.chart import yaml_of
    from controlplane.operator.manifests import Install, plain

    if len(namespace) > 63 or re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", namespace) is None:
        raise Invalid(f"{namespace!r} is not a name of a namespace", hint="a-z, 0-9 and '-', at most 63")
    install = Install(namespace=namespace, replicas=replicas)
    if image is not None:
        install = replace(install, image=image)
    documents = plain(install)
    listed = {"apiVersion": "v1", "kind": "List", "items": documents}
    output.data(listed, Format.JSON if form is Format.JSON else Format.TEXT, yaml_of(documents))
