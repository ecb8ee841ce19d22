"""The API server as far as the store calls it, in memory: revisions, conflicts, merge patches; and its failures."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from controlplane.store.kube_api import Kube, resources_path
from providers.base.errors import AlreadyExists, Conflict, NotFound, Unavailable

NAMESPACE = "n"


class FakeKube:
    """`calls`: (method, path) in the order of arrival."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.away = False
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called for each request before it is carried out; what it raises is the answer."""
        self.after: Callable[[str, str], None] = lambda method, path: None
        self._revision = 0
        self._lock = threading.Lock()

    @property
    def kube(self) -> Kube:
        return cast(Kube, self)

    def resource(self, kind: str, name: str, uid: str = "u1", status: dict[str, Any] | None = None) -> None:
        """A custom resource that somebody has created."""
        path = resources_path(NAMESPACE, kind, name)
        self.objects[path] = {"metadata": {"name": name, "uid": uid}, **({"status": status} if status else {})}
        self._stamp(self.objects[path])

    def status(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.objects[resources_path(NAMESPACE, kind, name)].get("status", {})
        return found

    def patches(self) -> int:
        return sum(method == "PATCH" for method, _ in self.calls)

    def get(self, path: str, **_: str) -> Any:
        return self._call("GET", path, lambda: copy.deepcopy(self._found(path)))

    def create(self, path: str, body: dict[str, Any]) -> Any:
        metadata = body["metadata"]
        full = f"{path}/{metadata.get('name') or metadata['generateName'] + str(len(self.calls))}"

        def act() -> Any:
            if full in self.objects:
                raise AlreadyExists(full)
            self.objects[full] = copy.deepcopy(body)
            return self._stamp(self.objects[full])

        return self._call("POST", full, act)

    def replace(self, path: str, body: dict[str, Any]) -> Any:
        def act() -> Any:
            if self._found(path)["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                raise Conflict(path)
            self.objects[path] = copy.deepcopy(body)
            return self._stamp(self.objects[path])

        return self._call("PUT", path, act)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        def act() -> Any:
            found = self._found(path.removesuffix("/status"))
            before = copy.deepcopy(found)
            _merge(found, body)
            return self._stamp(found) if found != before else copy.deepcopy(found)

        return self._call("PATCH", path, act)

    def delete(self, path: str, options: dict[str, Any] | None = None) -> None:
        self._call("DELETE", path, lambda: self.objects.pop(path, None))

    def listed(self, path: str, **_: str) -> Iterator[dict[str, Any]]:
        return iter(self.whole(path)[0])

    def whole(self, path: str) -> tuple[list[dict[str, Any]], int]:
        def act() -> tuple[list[dict[str, Any]], int]:
            return [copy.deepcopy(o) for p, o in self.objects.items() if p.rpartition("/")[0] == path], self._revision

        found: tuple[list[dict[str, Any]], int] = self._call("LIST", path, act)
        return found

    def _found(self, path: str) -> dict[str, Any]:
        if path not in self.objects:
            raise NotFound(path)
        return self.objects[path]

    def _stamp(self, found: dict[str, Any]) -> Any:
        self._revision += 1
        found["metadata"]["resourceVersion"] = str(self._revision)
        return copy.deepcopy(found)

    def _call(self, method: str, path: str, act: Callable[[], Any]) -> Any:
        with self._lock:
            self.calls.append((method, path))
        if self.away:
            raise Unavailable("the API server is away")
        self.before(method, path)
        with self._lock:
            answer = act()
        self.after(method, path)
        return answer


def _merge(found: dict[str, Any], patch: dict[str, Any]) -> None:
    """RFC 7396."""
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(found.get(key), dict):
                found[key] = {}
            _merge(found[key], value)
        else:
            found[key] = copy.deepcopy(value)
