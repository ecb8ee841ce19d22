"""From specs to Kubernetes manifests, as dicts: what all engines have in common, and which engine renders what. Pure.

Every object carries the label `yunhe.io/of`, by which whatever is no longer rendered is found and removed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.api.kinds import CloudSpec
from controlplane.api.kubernetes import Kubernetes
from providers.base.errors import Invalid, invariant

Manifest = dict[str, Any]

OF = "yunhe.io/of"
"""Label: `<kind>.<name>` of the object that this was made for."""
PART = "yunhe.io/part"
"""Label: which of its parts this is: controller, broker or agent."""
ZONE = "yunhe.io/zone"
"""Label: the zone, as the spec writes it."""
ZONE_KEY = "topology.kubernetes.io/zone"
_AWS_ZONE_ID_KEY = "topology.k8s.aws/zone-id"
_AWS_ZONE_ID = re.compile(r"[a-z]+[0-9]+-az[0-9]+")


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one object of a spec becomes on Kubernetes."""

    kind: str
    name: str
    cloud: str
    namespace: str
    manifests: tuple[Manifest, ...]
    notes: tuple[str, ...] = ()
    """What its reader should know: a fallback, a thing that must be there already."""

    @property
    def of(self) -> str:
        """Value of the label `yunhe.io/of`."""
        return f"{self.kind}.{self.name}"


def kubernetes_of(cloud: str, spec: CloudSpec, needed_by: str) -> Kubernetes:
    """The cloud's Kubernetes.

    Raises:
        Invalid: it has none.
    """
    if spec.kubernetes is None:
        raise Invalid(
            f"{needed_by} runs on Kubernetes, and cloud {cloud} names none",
            hint="add `kubernetes: {namespace: …}` to the Cloud, with `target: real`",
        )
    return spec.kubernetes


def manifest(
    api_version: str, kind: str, name: str, where: Rendered | tuple[str, str], spec: Mapping[str, Any], **more: Any
) -> Manifest:
    """An object. `where`: (namespace, value of the label `yunhe.io/of`). `more`: labels and annotations, and fields
    that stand beside the spec."""
    namespace, of = where if isinstance(where, tuple) else (where.namespace, where.of)
    labels = {"app.kubernetes.io/managed-by": "yunhe", OF: of, **more.pop("labels", {})}
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels}
    if annotations := more.pop("annotations", None):
        metadata["annotations"] = dict(annotations)
    found: Manifest = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **more}
    if spec:
        found["spec"] = dict(spec)
    return found


def zone_requirement(cloud: CloudSpec, zone: str) -> Manifest:
    """How nodes of a zone are labelled: by the cloud's region and zone, and on AWS by the zone id, for its zone names
    differ between accounts."""
    if cloud.provider == "aws" and _AWS_ZONE_ID.fullmatch(zone):
        key, value = _AWS_ZONE_ID_KEY, zone
    elif cloud.provider == "azure" and zone.isdigit():
        key, value = ZONE_KEY, f"{cloud.region}-{zone}"
    else:
        key, value = ZONE_KEY, zone
    return {"key": key, "operator": "In", "values": [value]}


def in_zone(cloud: CloudSpec, zone: str, apart: Mapping[str, str]) -> Manifest:
    """Affinity: in that zone, and no two pods with the labels `apart` on one node."""
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [zone_requirement(cloud, zone)]}]
            }
        },
        **apart_from(apart),
    }


def apart_from(labels: Mapping[str, str]) -> Manifest:
    """Affinity: no two pods with these labels on one node."""
    term = {"labelSelector": {"matchLabels": dict(labels)}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def spread(labels: Mapping[str, str], *, strictly: bool = False) -> list[Manifest]:
    """Over the zones that have nodes, as evenly as there is room for. `strictly`: a pod waits rather than share a zone
    with more than its even part, as a quorum needs it, of which a lost zone must not take the majority."""
    constraint = {"maxSkew": 1, "topologyKey": ZONE_KEY, "labelSelector": {"matchLabels": dict(labels)}}
    return [{**constraint, "whenUnsatisfiable": "DoNotSchedule" if strictly else "ScheduleAnyway"}]


def pod_common(kubernetes: Kubernetes) -> Manifest:
    """What every pod of ours has."""
    found: Manifest = {
        "automountServiceAccountToken": kubernetes.service_account is not None,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1001,
            "fsGroup": 1001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if kubernetes.service_account is not None:
        found["serviceAccountName"] = kubernetes.service_account
    if kubernetes.priority_class is not None:
        found["priorityClassName"] = kubernetes.priority_class
    return found


def identity_labels(cloud: CloudSpec) -> Mapping[str, str]:
    """By which a pod without credentials is given a token of its account: on Azure alone a label asks for it (AKS,
    "Use Microsoft Entra Workload ID", pod labels)."""
    there = cloud.kubernetes
    own = there is not None and there.service_account is not None and there.credentials_secret is None
    return {"azure.workload.identity/use": "true"} if own and cloud.provider == "azure" else {}


CONTAINER_SECURITY: Manifest = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def resources(kubernetes: Kubernetes) -> Manifest:
    """Requests, and the memory's limit."""
    wanted = kubernetes.resources
    return {"requests": {"cpu": wanted.cpu, "memory": wanted.memory}, "limits": {"memory": wanted.memory}}


def storage_class(kubernetes: Kubernetes, zone: str | None = None) -> str | None:
    """Of a volume in that zone; None: the cluster's default."""
    return (kubernetes.storage_classes or {}).get(zone or "", kubernetes.storage_class)


def claim(name: str, kubernetes: Kubernetes, zone: str | None, size: str, *, block: bool = False) -> Manifest:
    """A volumeClaimTemplate for one pod alone: a volume that is mounted nowhere else is what keeps the pod's earlier
    life, on a node that is not heard of, from writing to it."""
    spec: Manifest = {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": size}}}
    if block:
        spec["volumeMode"] = "Block"
    if (named := storage_class(kubernetes, zone)) is not None:
        spec["storageClassName"] = named
    return {"metadata": {"name": name}, "spec": spec}


def stateful_set(
    name: str,
    where: tuple[str, str],
    *,
    kubernetes: Kubernetes,
    labels: Mapping[str, str],
    service: str,
    replicas: int,
    pod: Mapping[str, Any],
    claims: Sequence[Manifest],
    settings: Mapping[str, Any],
    pod_labels: Mapping[str, str] | None = None,
) -> Manifest:
    """A StatefulSet whose pods the operator rolls (`kubernetes_roll.py`): OnDelete. `settings`: what its pods read at
    their start; a pod whose settings differ is of another revision. `pod_labels`: by which nothing is selected."""
    kept = "Delete" if kubernetes.delete_volumes else "Retain"
    full = {OF: where[1], **labels}
    template = {
        "metadata": {
            "labels": {"app.kubernetes.io/managed-by": "yunhe", **full, **(pod_labels or {})},
            "annotations": {"yunhe.io/settings": digest(settings)},
        },
        "spec": dict(pod),
    }
    spec = {
        "serviceName": service,
        "replicas": replicas,
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": kept, "whenScaled": kept},
        "selector": {"matchLabels": full},
        "template": template,
        "volumeClaimTemplates": list(claims),
    }
    return manifest("apps/v1", "StatefulSet", name, where, spec, labels=labels)


def headless(name: str, where: tuple[str, str], labels: Mapping[str, str], ports: Mapping[str, int]) -> Manifest:
    """A service that gives each pod its name, before it is ready too: brokers find each other by it."""
    spec: Manifest = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {OF: where[1], **labels},
        "ports": [{"name": port, "port": number, "targetPort": number} for port, number in ports.items()],
    }
    return manifest("v1", "Service", name, where, spec, labels=labels)


def disruption_budget(name: str, where: tuple[str, str], labels: Mapping[str, str]) -> Manifest:
    """At most one of these pods is ever evicted."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": {OF: where[1], **labels}},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return manifest("policy/v1", "PodDisruptionBudget", name, where, spec, labels=labels)


def from_secret(variable: str, secret: str, key: str) -> Manifest:
    """An environment variable whose value is in a Secret."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def digest(value: object) -> str:
    """A short name of a value: the same for equal ones."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def slug(zone: str) -> str:
    """The zone as a part of an object's name."""
    made = re.sub(r"[^a-z0-9]+", "-", zone.lower()).strip("-")
    invariant(bool(made), "a zone that names nothing", zone=zone)
    return made


def label(zone: str) -> str:
    """The zone as a label's value."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", zone).strip("-._")


def in_order(manifests: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """What others name comes first: configuration, then services and budgets, then what runs."""
    ranks = {"ConfigMap": 0, "Secret": 0, "Service": 1, "PodDisruptionBudget": 2}
    return tuple(sorted(manifests, key=lambda m: (ranks.get(m["kind"], 3), m["kind"], m["metadata"]["name"])))
