"""The smallest definitions of our kinds that the operator's tests need: any spec, any status."""

from __future__ import annotations

from typing import Any

from kubernetes import client

from controlplane.store.kube_api import GROUP, PLURALS, VERSION
from tests.kube.cluster import eventually


def install(api: client.ApiClient) -> None:
    """Create them, and wait until they are served. There already is as good."""
    extensions = client.ApiextensionsV1Api(api)
    for kind, plural in PLURALS.items():
        try:
            extensions.create_custom_resource_definition(_definition(kind, plural))
        except client.ApiException as error:
            if error.status != 409:
                raise
    for plural in PLURALS.values():
        eventually(lambda plural=plural: _established(extensions, plural), f"{plural} to be served")


def _established(extensions: client.ApiextensionsV1Api, plural: str) -> bool:
    status = extensions.read_custom_resource_definition(f"{plural}.{GROUP}").status
    return any(c.type == "Established" and c.status == "True" for c in status.conditions or [])


def _definition(kind: str, plural: str) -> dict[str, Any]:
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }
