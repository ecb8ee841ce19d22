"""`yunhe crds` and `yunhe manifests`: what a Kubernetes cluster is given, as YAML on standard output."""

from __future__ import annotations

from collections.abc import Sequence

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


def manifests(
    *, namespace: str, image: str | None, replicas: int, form: Format, engine_namespaces: Sequence[str] = ()
) -> None:
    """Print the operator's manifests. `engine_namespaces`: others than its own in which it makes engines.

    Raises:
        Invalid: no name of a namespace.
    """
    import re
    from dataclasses import replace

    from controlplane.operator.chart import yaml_of
    from controlplane.operator.manifests import NAMESPACE, Install, plain

    for name in (namespace, *engine_namespaces):
        if len(name) > 63 or re.fullmatch(NAMESPACE, name) is None:
            raise Invalid(f"{name!r} is not a name of a namespace", hint="a-z, 0-9 and '-', at most 63")
    others = tuple(name for name in dict.fromkeys(engine_namespaces) if name != namespace)
    install = Install(namespace=namespace, replicas=replicas, engine_namespaces=others)
    if image is not None:
        install = replace(install, image=image)
    documents = plain(install)
    listed = {"apiVersion": "v1", "kind": "List", "items": documents}
    output.data(listed, Format.JSON if form is Format.JSON else Format.TEXT, yaml_of(documents))
