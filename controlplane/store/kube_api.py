"""The Kubernetes API as the store and the operator call it: plain values, short time limits, its errors as ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes import client, config
from urllib3 import Timeout
from urllib3.exceptions import HTTPError

from controlplane.api.crds import GROUP, VERSION, plural_of
from providers.base.errors import AlreadyExists, Conflict, Full, Invalid, NotFound, Unavailable, YunheError

FIELD_MANAGER = "yunhe-operator"
CALL_TIMEOUT_S = (1.0, 4.0)
"""Connect, read. The reconcilers' loop waits for its store, so an API server that hangs must not hold it for long."""
PAGE = 500
"""Objects a list asks for at once."""
_TYPES = {"PATCH": "application/merge-patch+json"}


class Kube:
    """Calls of one API server; from any thread. Every method may raise what `_translated` says."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        """With that kubeconfig; without one, as the pod that this runs in.

        Raises:
            Invalid: neither is usable.
        """
        try:
            if kubeconfig is not None:
                self._api = config.new_client_from_config(str(kubeconfig))  # type: ignore[no-untyped-call]
            else:
                loaded = client.Configuration()
                config.load_incluster_config(loaded)  # type: ignore[no-untyped-call]
                self._api = client.ApiClient(loaded)
        except (config.ConfigException, OSError) as error:
            raise Invalid(
                f"there is no way to the Kubernetes API: {error}", hint="give --kubeconfig, or run it in a pod"
            ) from error
        # A retry inside the client would hold its caller for longer than the time limit says.
        self._api.rest_client.pool_manager.connection_pool_kw["retries"] = False

    def get(self, path: str, **query: str) -> Any:
        return self._call("GET", path, query)

    def create(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, {"fieldManager": FIELD_MANAGER}, body)

    def replace(self, path: str, body: dict[str, Any]) -> Any:
        """With a resourceVersion in it, only while the object is still that one: else Conflict."""
        return self._call("PUT", path, {"fieldManager": FIELD_MANAGER}, body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """A JSON merge patch."""
        return self._call("PATCH", path, {"fieldManager": FIELD_MANAGER}, body)

    def delete(self, path: str) -> None:
        """Gone already is as good."""
        try:
            self._call("DELETE", path, {})
        except NotFound:
            return

    def listed(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        """All objects of a collection, page by page."""
        more = ""
        while True:
            page = self.get(path, limit=str(PAGE), **query, **({"continue": more} if more else {}))
            yield from page["items"]
            more = page["metadata"].get("continue", "")
            if not more:
                return

    def close(self) -> None:
        self._api.rest_client.pool_manager.clear()

    def _call(self, method: str, path: str, query: dict[str, str], body: dict[str, Any] | None = None) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = _TYPES.get(method, "application/json")
        self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._api.configuration.host}{path}"
        if query:
            url = f"{url}?{urlencode(query)}"
        try:
            answer = self._api.rest_client.pool_manager.request(
                method,
                url,
                body=json.dumps(body).encode() if body is not None else None,
                headers=headers,
                timeout=_timeout(),
                preload_content=True,
            )
        except (HTTPError, OSError) as error:
            raise Unavailable(f"the Kubernetes API does not answer: {type(error).__name__}") from error
        try:
            document = json.loads(answer.data or b"{}")
        except ValueError:
            document = {}
        if answer.status >= 400:
            raise _translated(answer.status, document)
        return document


def _timeout() -> Any:
    return Timeout(connect=CALL_TIMEOUT_S[0], read=CALL_TIMEOUT_S[1])


def resources_path(namespace: str, kind: str, name: str = "") -> str:
    """Where the custom resources of a kind are, or one of them."""
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{plural_of(kind)}"
    return f"{path}/{name}" if name else path


def core_path(namespace: str, plural: str, name: str = "") -> str:
    """The same of Kubernetes' own kinds (configmaps, events, …)."""
    path = f"/api/v1/namespaces/{namespace}/{plural}"
    return f"{path}/{name}" if name else path


def _translated(status: int, body: Any) -> YunheError:
    said = str(body.get("message") or f"status {status}") if isinstance(body, dict) else f"status {status}"
    reason = str(body.get("reason", "")) if isinstance(body, dict) else ""
    match status:
        case 404:
            return NotFound(said)
        case 409 if reason == "AlreadyExists":
            return AlreadyExists(said)
        case 409:
            return Conflict(said)
        case 403 if "exceeded quota" in said:
            return Full(f"the namespace's quota is used up: {said}")
        case 401 | 403:
            return Invalid(f"the Kubernetes API refused it: {said}", hint="see the operator's Role")
        case 413:
            return Full(f"too large for the Kubernetes API: {said}")
        case 400 | 410 | 422:
            return Invalid(f"the Kubernetes API refused it: {said}")
    return Unavailable(f"the Kubernetes API answered {status}: {said}")
