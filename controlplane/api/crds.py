"""The kinds as Kubernetes' custom resources: their definitions, and objects to and fro. Pure; no Kubernetes client.

A custom resource is the YAML kind, unchanged: the same file is applied with `yunhe apply` and with `kubectl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.api.crds_schema import object_schema
from controlplane.api.kinds import API_VERSION, Resource, type_of_kind
from controlplane.api.quantities import NAME_CHARS_MAX, NAME_PATTERN
from controlplane.api.specs import to_plain

GROUP, VERSION = API_VERSION.split("/")

_Column = tuple[str, str, str, int]
"""(heading, type, JSON path, priority: 0 always shown, 1 with -o wide)."""


@dataclass(frozen=True, slots=True)
class _Names:
    plural: str
    short: str
    columns: tuple[_Column, ...]
    scaled: bool = False


_LAST: tuple[_Column, ...] = (
    ("State", "string", ".status.state", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Why", "string", ".status.sentence", 1),
)
_NAMES: Mapping[str, _Names] = {
    "Cloud": _Names(
        "clouds",
        "ycl",
        (
            ("Provider", "string", ".spec.provider", 0),
            ("Region", "string", ".spec.region", 0),
            ("Target", "string", ".spec.target", 0),
        ),
    ),
    "BrokerCluster": _Names(
        "brokerclusters",
        "bc",
        (
            ("Cloud", "string", ".spec.cloud", 0),
            ("Brokers", "integer", ".spec.brokers", 0),
            ("WAL", "string", ".status.detail.wal.mode", 0),
            ("Bootstrap", "string", ".status.detail.bootstrap", 1),
        ),
        scaled=True,
    ),
    "Topic": _Names("topics", "yt", (("Partitions", "integer", ".spec.partitions", 0),)),
    "Database": _Names(
        "databases", "ydb", (("Role", "string", ".spec.role", 0), ("Cloud", "string", ".spec.cloud", 0))
    ),
}

_TEXT = {"type": "string"}
_STATUS: Mapping[str, Any] = {
    "description": "What the operator last observed. Fields that are not listed are kept as they are.",
    "type": "object",
    "x-kubernetes-preserve-unknown-fields": True,
    "properties": {
        "observedGeneration": {
            "description": "The metadata.generation that this status speaks of.",
            "type": "integer",
            "format": "int64",
        },
        "state": {"description": "Pending, Progressing, Ready, Degraded, Unavailable or Failed.", "type": "string"},
        "sentence": {"description": "What is going on, and why.", "type": "string"},
        "hint": {"description": "What to do about it, where there is something to do.", "type": "string"},
        "conditions": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["type", "status"],
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {
                    "type": {"type": "string", "minLength": 1, "maxLength": 316},
                    "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                    "reason": _TEXT,
                    "message": {"type": "string", "maxLength": 32768},
                    "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                    "lastTransitionTime": {"type": "string", "format": "date-time"},
                },
            },
        },
    },
}
_SCALE_STATUS: Mapping[str, Any] = {
    "replicas": {"description": "Brokers that serve.", "type": "integer", "format": "int32"},
    "selector": {"description": "Labels of the brokers' pods, where they are pods.", "type": "string"},
}


def custom_resource_definitions() -> list[dict[str, Any]]:
    """One CustomResourceDefinition a kind, in the order of KINDS.

    Raises:
        Internal: a kind has a type or validator that the generator does not know.
    """
    return [_definition(kind) for kind in type_of_kind]


def plural_of(kind: str) -> str:
    """The name in URLs: brokerclusters."""
    return _NAMES[kind].plural


def to_custom_object(resource: Resource, namespace: str | None = None) -> dict[str, Any]:
    """The custom resource of a YAML kind, defaults written out."""
    plain = to_plain(resource)
    metadata = {"name": resource.metadata.name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API_VERSION, "kind": resource.kind, "metadata": metadata, "spec": plain["spec"]}


def from_custom_object(custom: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML kind of a custom resource, unchecked: what Kubernetes adds to metadata is left out."""
    metadata = custom.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return {
        "apiVersion": custom.get("apiVersion"),
        "kind": custom.get("kind"),
        "metadata": {} if name is None else {"name": name},
        "spec": custom.get("spec"),
    }


def _definition(kind: str) -> dict[str, Any]:
    names = _NAMES[kind]
    subresources: dict[str, Any] = {"status": {}}
    status = dict(_STATUS)
    if names.scaled:
        status["properties"] = {**_STATUS["properties"], **_SCALE_STATUS}
        subresources["scale"] = {
            "specReplicasPath": ".spec.brokers",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    model = type_of_kind[kind]
    spec = object_schema(model.model_fields["spec"].annotation)  # type: ignore[arg-type]
    name = {"type": "string", "pattern": NAME_PATTERN, "maxLength": NAME_CHARS_MAX}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "yunhe", "app.kubernetes.io/component": "crd"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            # Stated, so that a second version is a change of this and of nothing else.
            "conversion": {"strategy": "None"},
            "names": {
                "plural": names.plural,
                "singular": kind.lower(),
                "kind": kind,
                "listKind": f"{kind}List",
                "shortNames": [names.short],
                "categories": ["yunhe"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "description": (model.__doc__ or "").strip(),
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": _TEXT,
                                "kind": _TEXT,
                                "metadata": {"type": "object", "properties": {"name": name}},
                                "spec": spec,
                                "status": status,
                            },
                        }
                    },
                    "subresources": subresources,
                    "additionalPrinterColumns": [
                        {"name": heading, "type": type_, "jsonPath": path, "priority": priority}
                        for heading, type_, path, priority in (*names.columns, *_LAST)
                    ],
                }
            ],
        },
    }
