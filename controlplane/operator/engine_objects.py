"""The objects that engines are made of, and what is done with them, as plain dicts.

Each call blocks: `engines.py` runs them in threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.store.kube_api import Kube
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind and its address."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Its path under the API server's address."""
        group = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        where = f"/namespaces/{namespace}" if self.namespaced and namespace is not None else ""
        parts = [part for part in (name, subresource) if part is not None]
        return "/".join([f"{group}{where}/{self.plural}", *parts])


POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
ATTACHMENT = Kind("storage.k8s.io/v1", "VolumeAttachment", "volumeattachments", namespaced=False)
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
MADE = (
    STATEFUL_SET,
    Kind("kafka.strimzi.io/v1beta2", "KafkaNodePool", "kafkanodepools"),
    Kind("kafka.strimzi.io/v1beta2", "Kafka", "kafkas"),
    Kind("greptime.io/v1alpha1", "GreptimeDBCluster", "greptimedbclusters"),
    Kind("greptime.io/v1alpha1", "GreptimeDBStandalone", "greptimedbstandalones"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("v1", "Service", "services"),
    Kind("v1", "ConfigMap", "configmaps"),
    Kind("v1", "Secret", "secrets"),
)
"""What engines are made of, in the order in which it is removed. No volume and no claim is among it."""


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """Raises Invalid when it is none that engines are made of."""
    for kind in MADE:
        if (kind.api_version, kind.kind) == (manifest["apiVersion"], manifest["kind"]):
            return kind
    raise Invalid(f"{manifest['apiVersion']} {manifest['kind']} is nothing that an engine is made of")


class EngineObjects:
    """See the module. Every call raises what `Kube` does."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def apply(self, manifest: Mapping[str, Any]) -> Object:
        """Server-side apply."""
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata["namespace"], metadata["name"])
        found: Object = self._kube.apply(path, dict(manifest))
        return found

    def list(self, kind: Kind, namespace: str | None = None, selector: str = "") -> Sequence[Object]:
        """All that match."""
        return tuple(self._kube.listed(kind.path(namespace), **({"labelSelector": selector} if selector else {})))

    def delete(self, kind: Kind, namespace: str | None, name: str, uid: str, *, grace_s: int | None = None) -> None:
        """Delete the very object that was seen; one that is gone, or has been made anew, is left.

        Dependents go with it in the background."""
        options: Object = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self._kube.delete(kind.path(namespace, name), options)
        except Conflict:
            pass  # somebody else was first

    def evict(self, namespace: str, name: str, uid: str) -> bool:
        """Ask for a pod's end, as its disruption budget allows. False: not now."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        try:
            self._kube.create(POD.path(namespace, name, "eviction"), body)
        except Unavailable as error:
            if error.fields.get("status") == 429:
                return False
            raise
        except (NotFound, Conflict):
            pass  # it went by itself
        return True
