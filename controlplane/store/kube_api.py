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
_JSON, _MERGE, _APPLY = "application/json", "application/merge-patch+json", "application/apply-patch+yaml"


class Kube:
    """Calls of one API server; from any thread. Every method may raise what `_translated` says."""

    def __init__(
        self,
        kubeconfig: Path | None = None,
        *,
        context: str | None = None,
        timeout_s: tuple[float, float] = CALL_TIMEOUT_S,
    ) -> None:
        """With that kubeconfig, and that context of it or its current one; without one, as the pod that this runs in.
        `timeout_s`: to connect, and for an answer.

        Raises:
            Invalid: neither is usable.
        """
        self._timeout = Timeout(connect=timeout_s[0], read=timeout_s[1])
        try:
            if kubeconfig is not None:
                self._api = config.new_client_from_config(str(kubeconfig), context)  # type: ignore[no-untyped-call]
            elif context is not None:
                raise Invalid(
                    f"there is no kubeconfig here, so nothing is known of context {context}",
                    hint="leave the context out, or run an operator in that cluster",
                )
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
        return self._call("PATCH", path, {"fieldManager": FIELD_MANAGER}, body, _MERGE)

    def apply(self, path: str, body: dict[str, Any]) -> Any:
        """Server-side apply: fields that we no longer write go, those of others stay, and ours are ours."""
        return self._call("PATCH", path, {"fieldManager": FIELD_MANAGER, "force": "true"}, body, _APPLY)

    def delete(self, path: str, options: dict[str, Any] | None = None) -> None:
        """Gone already is as good. `options`: DeleteOptions; with the precondition of a uid, another object of that
        name is left, with Conflict."""
        try:
            self._call("DELETE", path, {}, options)
        except NotFound:
            return

    def listed(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        """All objects of a collection, page by page."""
        for page in self._pages(path, query):
            yield from page["items"]

    def whole(self, path: str) -> tuple[list[dict[str, Any]], int]:
        """All objects of a collection as they were at one revision, and that revision."""
        pages = list(self._pages(path, {}))
        return [found for page in pages for found in page["items"]], int(pages[-1]["metadata"]["resourceVersion"])

    def _pages(self, path: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        more = ""
        while True:
            page = self.get(path, limit=str(PAGE), **query, **({"continue": more} if more else {}))
            yield page
            more = page["metadata"].get("continue", "")
            if not more:
                return

    @property
    def configuration(self) -> client.Configuration:
        """How the API server is reached, for other clients of it."""
        found: client.Configuration = self._api.configuration
        return found

    @property
    def client(self) -> client.ApiClient:
        """The official client that this is made of."""
        found: client.ApiClient = self._api
        return found

    def close(self) -> None:
        self._api.rest_client.pool_manager.clear()

    def _call(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any] | None = None, content: str = _JSON
    ) -> Any:
        headers = {"Accept": _JSON}
        if body is not None:
            headers["Content-Type"] = content
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
                timeout=self._timeout,
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
            return NotFound(said, status=status)
        case 409 if reason == "AlreadyExists":
            return AlreadyExists(said, status=status)
        case 409:
            return Conflict(said, status=status)
        case 403 if "exceeded quota" in said:
            return Full(f"the namespace's quota is used up: {said}", status=status)
        case 401 | 403:
            return Invalid(f"the Kubernetes API refused it: {said}", hint="see the operator's Role", status=status)
        case 413:
            return Full(f"too large for the Kubernetes API: {said}", status=status)
        case 400 | 405 | 410 | 415 | 422:
            return Invalid(f"the Kubernetes API refused it: {said}", status=status)
        case 500 if "field not declared in schema" in said:
            # How server-side apply refuses a key that a kind has not.
            return Invalid(f"the Kubernetes API refused it: {said}", status=status)
    return Unavailable(f"the Kubernetes API answered {status}: {said}", status=status)
