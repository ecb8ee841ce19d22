"""The few calls of the Kubernetes API that engines need, over the official client, for objects as plain dicts.

Each call blocks: `engines.py` runs them in threads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3.exceptions
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

from providers.base.errors import Conflict, Invalid, NotFound, Unavailable, YunheError

FIELD_MANAGER = "yunhe-operator"
TIMEOUT_S = 30.0
PAGE = 500
PAGES_MAX = 100
APPLY = "application/apply-patch+yaml"

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


class KubeApi:
    """See the module.

    Every call raises Unavailable when the API server does not answer or pushes back, NotFound, Conflict, or Invalid
    with the server's own sentence.
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    def apply(self, manifest: Mapping[str, Any]) -> Object:
        """Server-side apply: fields that we no longer write go, those of others stay, and ours are ours."""
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return self._call("PATCH", path, query, dict(manifest), content=APPLY)

    def list(self, kind: Kind, namespace: str | None = None, selector: str = "") -> list[Object]:
        """All that match, page by page.

        Raises:
            Unavailable: there are more than the bound.
        """
        found: list[Object] = []
        query = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        for _ in range(PAGES_MAX):
            page = self._call("GET", kind.path(namespace), query)
            found += page.get("items", [])
            following = page.get("metadata", {}).get("continue")
            if not following:
                return found
            query = {**query, "continue": following}
        raise Unavailable(f"more than {PAGE * PAGES_MAX} {kind.plural} match {selector!r}")

    def delete(self, kind: Kind, namespace: str | None, name: str, uid: str, *, grace_s: int | None = None) -> None:
        """Delete the very object that was seen; one that is gone, or has been made anew, is left.

        Dependents go with it in the background."""
        body: Object = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            self._call("DELETE", kind.path(namespace, name), {}, body)
        except (NotFound, Conflict):
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
            self._call("POST", POD.path(namespace, name, "eviction"), {}, body)
        except Unavailable as error:
            if error.fields.get("status") == 429:
                return False
            raise
        except (NotFound, Conflict):
            pass  # it went by itself
        return True

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        *,
        content: str | None = None,
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content or "application/json"}
        try:
            parts = self._client.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._client.call_api(*parts, _request_timeout=TIMEOUT_S)
            data: bytes = answer.read()  # type: ignore[no-untyped-call]
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise Unavailable(f"the API server does not answer: {error}") from error
        if 200 <= answer.status < 300:
            found = json.loads(data)
            assert isinstance(found, dict)
            return found
        raise _refusal(answer.status, data, f"{method} {path}")


def _refusal(status: int, data: bytes, what: str) -> YunheError:
    try:
        said = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        said = f"status {status}"
    sentence = f"{what}: {said}"
    match status:
        case 404:
            return NotFound(sentence, status=status)
        case 409:
            return Conflict(sentence, status=status)
        case 400 | 403 | 405 | 415 | 422:
            return Invalid(sentence, status=status)
        case 500 if "field not declared in schema" in said:
            return Invalid(sentence, status=status)  # how server-side apply refuses a key that a kind has not
        case _:
            return Unavailable(sentence, status=status)
