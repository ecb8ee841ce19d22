"""Statuses as custom resources show them: known here at once, written behind.

What a reconciler puts is what the next reader gets; a few threads bring each resource's `.status` to what is known of
it, so that of ten statuses that follow one another perhaps two are requests. What is written is always found by looking
at what the API server has and what is wanted now, so that nothing depends on which writes failed.

Durable before `put` returns is what is decided on after a restart, and that nobody can see anew:

    Database       all of it: the keys of edges are pinned in it
    BrokerCluster  its cloud and its agents: by them it is stopped when it is not desired any more

Everything else may be lost with the process, by as much as waits to be written: the next leader looks at every object
when it begins. A bucket is verified again, and brokers are found by their agents' reports; a topic that shall go is in
the journal's steps with the clusters that it is on.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from controlplane.api.kinds import KINDS
from controlplane.store.base import Key, Plain
from controlplane.store.behind import Behind
from controlplane.store.conditions import Notice, rendered
from controlplane.store.config_maps import ConfigMaps
from controlplane.store.kube_api import Kube, resources_path
from providers.base.clock import Clock
from providers.base.errors import Fenced, NotFound

ORPHANS = "yunhe-statuses"
"""ConfigMap of the statuses of objects that have no custom resource (any more)."""


@dataclass(slots=True)
class _Resource:
    """A custom resource, as the API server was last known to have it."""

    uid: str
    version: int = 0
    """Of its newest write here, as a revision of etcd."""
    status: dict[str, Any] = field(default_factory=dict)
    sure: bool = True
    """False: a write of ours may or may not have been carried out."""


class ResourceStatuses:
    """See the module. From any thread; only `load`, and `put` of what must be durable, wait for the API server."""

    def __init__(self, kube: Kube, namespace: str, maps: ConfigMaps, behind: Behind, *, clock: Clock) -> None:
        self._kube, self._namespace, self._maps, self._behind, self._clock = kube, namespace, maps, behind, clock
        self._lock = threading.RLock()
        """Of what is known; never held over a request."""
        self._statuses: dict[Key, Plain] = {}
        self._notices: dict[Key, Notice] = {}
        self._generations: dict[Key, int] = {}
        self._resources: dict[Key, _Resource] = {}
        self._orphans: list[list[Any]] = []

    def load(self) -> None:
        """Read everything. Raises Unavailable, Corrupt."""
        self._orphans = (self._maps.read(ORPHANS) or {}).get("statuses", [])
        # It is replaced, so that a late write of whoever led before meets Conflict.
        self._maps.write(ORPHANS, {"statuses": self._orphans})
        self._statuses = {(kind, name): value for kind, name, value in self._orphans}
        for kind in KINDS:
            try:
                for custom in self._kube.listed(resources_path(self._namespace, kind)):
                    key, status = (kind, str(custom["metadata"]["name"])), custom.get("status") or {}
                    self._resources[key] = _Resource(str(custom["metadata"]["uid"]), _version(custom), status)
                    if status.get("detail"):
                        self._statuses[key] = status["detail"]
                    if status.get("observedGeneration"):
                        self._generations[key] = status["observedGeneration"]
            except NotFound:
                continue  # its definition is not installed: there are none

    # ── what is known ────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: Key) -> Plain:
        """The newest status, empty when there is none."""
        with self._lock:
            return self._statuses.get(key, {})

    def all(self) -> dict[Key, Plain]:
        """All of them, in the order of their keys."""
        with self._lock:
            return dict(sorted(self._statuses.items()))

    def put(self, key: Key, status: Plain) -> None:
        """Take over a status.

        Raises:
            YunheError: what must be durable could not be written; nothing has changed.
            Fenced: this store writes nothing any more.
        """
        with self._lock:
            before = self._statuses.get(key)
            self._statuses[key] = json.loads(json.dumps(status))
            durable = _decisive(key, status) != _decisive(key, before or {})
        if not durable:
            self._touch(key)
            return
        try:
            self._behind.now(*self._write_of(key))
            if not self._has_resource(key):
                self._behind.now(*self._write_of(key))  # the resource went meanwhile: it is an orphan's now
        except BaseException:
            with self._lock:
                if before is None:
                    self._statuses.pop(key, None)
                else:
                    self._statuses[key] = before
            with contextlib.suppress(Fenced):
                self._touch(key)  # perhaps it was written
            raise

    def forget(self, key: Key) -> None:
        """Nothing is known of it any more."""
        with self._lock:
            for known in (self._statuses, self._notices, self._generations):
                known.pop(key, None)
        self._touch(key)

    def note(self, key: Key, notice: Notice | None, generation: int | None = None) -> bool:
        """Say something in a resource's conditions beside its status document; None takes it back. `generation`: of the
        spec that is accepted now. True when the notice is news.
        """
        with self._lock:
            if self._notices.get(key) == notice and generation in (None, self._generations.get(key)):
                return False
            news = self._notices.get(key) != notice
            if notice is None:
                self._notices.pop(key, None)
            else:
                self._notices[key] = notice
            if generation is not None:
                self._generations[key] = generation
        self._touch(key)
        return news

    # ── which resources there are ────────────────────────────────────────────────────────────────────────────────────

    def resources_are(self, uids: Mapping[Key, str]) -> None:
        """These, and no others: statuses are shown in their resources, and kept elsewhere where they have none."""
        with self._lock:
            came = {key: uid for key, uid in uids.items() if key not in self._resources}
            came |= {key: uid for key, uid in uids.items() if key not in came and self._resources[key].uid != uid}
            gone = self._resources.keys() - uids.keys()
            for key in gone | came.keys():
                # What was said of another resource of that name is not said of this one.
                for known in (self._resources, self._notices, self._generations):
                    known.pop(key, None)
            self._resources.update({key: _Resource(uid) for key, uid in came.items()})
            moved = [key for key in (*gone, *came) if key in self._statuses]
        for key in moved:
            self._touch(key)
        if moved:
            self._behind.put(ORPHANS, self._put_orphans)

    def seen(self, kind: str, customs: Iterable[Mapping[str, Any]]) -> None:
        """Resources as they were listed: where a status is not what was written here, it is written again."""
        wrong = []
        for custom in customs:
            key, status = (kind, str(custom["metadata"]["name"])), custom.get("status") or {}
            with self._lock:
                resource = self._resources.get(key)
                if resource is None or resource.uid != custom["metadata"]["uid"]:
                    continue
                if _version(custom) <= resource.version or resource.status == status or self._behind.busy(key):
                    continue
                resource.status = status
            wrong.append(key)
        for key in wrong:
            self._touch(key)

    def _has_resource(self, key: Key) -> bool:
        with self._lock:
            return key in self._resources

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _touch(self, key: Key) -> None:
        self._behind.put(*self._write_of(key))

    def _write_of(self, key: Key) -> tuple[Any, Any]:
        return (key, partial(self._show, key)) if self._has_resource(key) else (ORPHANS, self._put_orphans)

    def _show(self, key: Key) -> None:
        """Bring the resource's status to what is wanted now."""
        with self._lock:
            resource = self._resources.get(key)
        if resource is None:
            return  # gone meanwhile, and whoever saw that has seen to its status
        path = resources_path(self._namespace, *key)
        try:
            if not resource.sure:
                self._keep(resource, self._kube.get(path))
            with self._lock:
                wanted = self._wanted(key, resource.status)
            patch = None if wanted is None else difference(resource.status, wanted)
            if patch or (wanted is None and resource.status):
                resource.sure = False
                self._keep(resource, self._kube.patch(f"{path}/status", {"status": patch}))
        except NotFound:
            with self._lock:
                if self._resources.get(key) is resource:
                    del self._resources[key]
                    moved = key in self._statuses
            if moved:
                self._behind.put(ORPHANS, self._put_orphans)

    def _keep(self, resource: _Resource, custom: Mapping[str, Any]) -> None:
        with self._lock:
            resource.status, resource.version = custom.get("status") or {}, _version(custom)
            resource.sure = True

    def _wanted(self, key: Key, before: Mapping[str, Any]) -> dict[str, Any] | None:
        plain, notice, generation = self._statuses.get(key), self._notices.get(key), self._generations.get(key)
        if not plain and notice is None and (generation is None or not before):
            return None  # nothing is known of it; and a spec that was only accepted is shown with its first status
        return rendered(plain or {}, notice, generation, before.get("conditions") or (), self._clock.wall_ms())

    def _put_orphans(self) -> None:
        with self._lock:
            wanted = [[*key, plain] for key, plain in self._statuses.items() if key not in self._resources and plain]
        if wanted != self._orphans:
            self._maps.write(ORPHANS, {"statuses": wanted})
            self._orphans = wanted


def _decisive(key: Key, status: Plain) -> Any:
    """What of a status must be durable; see the module."""
    match key[0]:
        case "Database":
            return dict(status)
        case "BrokerCluster":
            return status.get("cloud"), [agent["name"] for agent in status.get("agents", ())]
    return None


def difference(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch from `before` to `wanted`, in which None is as good as not there; empty when there is
    nothing to change.
    """
    patch: dict[str, Any] = {key: None for key in before if wanted.get(key) is None}
    for key, value in wanted.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if inner := difference(old, value):
                patch[key] = inner
        elif value is not None and _bare(old) != _bare(value):
            patch[key] = value
    return patch


def _bare(value: Any) -> Any:
    """Without the nulls of maps, which the API server may leave out of what lies in lists."""
    if isinstance(value, Mapping):
        return {key: _bare(inner) for key, inner in value.items() if inner is not None}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value


def _version(custom: Mapping[str, Any]) -> int:
    return int(custom["metadata"]["resourceVersion"])
