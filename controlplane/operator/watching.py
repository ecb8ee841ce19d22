"""The custom resources of a namespace as they are: an index that kopf's watches keep fresh and full lists replace.

A watch tells soon, and may tell late or twice; a list tells all. Both carry etcd's revisions, which decide what is
newer. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import kopf
from kubernetes import client

from controlplane.api.crds import GROUP, VERSION, plural_of
from controlplane.api.kinds import KINDS
from controlplane.api.specs import Key
from controlplane.operator.admission import Custom
from controlplane.store.kube_api import Kube, resources_path

BATCH_WINDOW_S = 0.005
"""kopf waits so long for another event of the same object; its own tenth of a second is most of a create's way."""
LOOK_S = 0.1
GONE_MAX = 10_000
"""Deletions that are remembered, so that a list which began before them brings nothing back."""


class Index:
    """See the module. Fed and read from any thread."""

    def __init__(self, news: Callable[[], None]) -> None:
        """`news`: called when something changed that is the user's: not a status."""
        self._news = news
        self._lock = threading.Lock()
        self._objects: dict[Key, Custom] = {}
        self._gone: dict[Key, int] = {}
        self._listed: dict[str, int] = {}
        self._filled = threading.Event()

    def heard(self, type_: str | None, custom: Custom) -> None:
        """An event of a watch; `type_` None: the object was there when the watch began."""
        key, version = _key(custom), _version(custom)
        with self._lock:
            before = self._objects.get(key)
            if before is not None and _version(before) > version:
                return
            if type_ == "DELETED":
                self._objects.pop(key, None)
                self._gone[key] = version
                while len(self._gone) > GONE_MAX:
                    del self._gone[next(iter(self._gone))]
            elif self._gone.get(key, -1) > version or (before is None and version <= self._listed.get(key[0], -1)):
                return  # late news of what is gone
            else:
                self._objects[key] = _slim(custom)
            changed = before is None or type_ == "DELETED" or _users(before) != _users(custom)
        if changed:
            self._news()

    def replace(self, kind: str, customs: Iterable[Custom], revision: int) -> None:
        """Everything of a kind that there was at that revision; what is known to be newer stays."""
        with self._lock:
            if revision < self._listed.get(kind, -1):
                return
            self._listed[kind] = revision
            kept = {
                key: custom for key, custom in self._objects.items() if key[0] != kind or _version(custom) > revision
            }
            listed = {_key(custom): _slim(custom) for custom in customs}
            there = {key: custom for key, custom in listed.items() if self._gone.get(key, -1) <= revision}
            self._objects = there | kept
            self._gone = {k: version for k, version in self._gone.items() if k[0] != kind or version > revision}

    def filled(self) -> None:
        """Every kind has been listed."""
        self._filled.set()

    def wait_filled(self, stop: threading.Event) -> bool:
        """Wait for that. False: `stop` was set first."""
        while not self._filled.wait(LOOK_S):
            if stop.is_set():
                return False
        return True

    def snapshot(self) -> dict[Key, Custom]:
        """What is there."""
        with self._lock:
            return dict(self._objects)


def list_into(
    index: Index, kube: Kube, namespace: str, listed: Callable[[str, list[dict[str, Any]]], None] = lambda *_: None
) -> None:
    """Read everything anew. `listed`: told of each kind's resources, whole, which the index does not keep.

    Raises:
        NotFound: a definition is not installed. Unavailable.
    """
    for kind in KINDS:
        customs, revision = kube.whole(resources_path(namespace, kind))
        # A list's items say neither kind nor version.
        index.replace(kind, ({**custom, **_type(kind)} for custom in customs), revision)
        listed(kind, customs)
    index.filled()


def _type(kind: str) -> dict[str, str]:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind}


async def watch(index: Index, kube: Kube, namespace: str, stop: threading.Event) -> None:
    """Feed the index until `stop` is set. kopf begins a watch anew when it ends, or when etcd has forgotten where it
    was. Nothing is asked before the index has been filled by lists, for until then the definitions may be missing."""
    if not await asyncio.to_thread(index.wait_filled, stop):
        return
    # What it says of signals: they are not its own here.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    for name in ("kopf", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)
    registry = kopf.OperatorRegistry()
    for kind in KINDS:

        async def heard(event: kopf.RawEvent, **_: Any) -> None:
            index.heard(event["type"], event["object"])

        kopf.on.event(GROUP, VERSION, plural_of(kind), id="index", registry=registry)(heard)

    def connection(**_: Any) -> kopf.ConnectionInfo:
        return _connection(kube.configuration)

    kopf.on.login(id="yunhe", registry=registry)(connection)
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.queueing._batch_window = BATCH_WINDOW_S
    settings.peering.standalone = True
    # Neither namespaces nor definitions are watched: the one is named, and the others are there by now.
    settings.scanning.disabled = True
    await kopf.operator(registry=registry, settings=settings, namespaces=[namespace], standalone=True, stop_flag=stop)


def _connection(found: client.Configuration) -> kopf.ConnectionInfo:
    bearer = found.get_api_key_with_prefix("BearerToken")
    scheme, _, token = str(bearer or "").partition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme if token else None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
    )


def _key(custom: Custom) -> Key:
    return str(custom["kind"]), str(custom["metadata"]["name"])


def _version(custom: Custom) -> int:
    """etcd's revision: comparable since Kubernetes 1.35 by promise, and in every version before by construction."""
    return int(custom["metadata"]["resourceVersion"])


def _users(custom: Custom) -> tuple[Any, ...]:
    metadata = custom["metadata"]
    names = ("uid", "generation", "annotations", "deletionTimestamp", "finalizers")
    return tuple(metadata.get(name) for name in names)


def _slim(custom: Custom) -> Custom:
    """Without what nobody here reads: who wrote which field is half of an object."""
    metadata = {name: value for name, value in custom["metadata"].items() if name != "managedFields"}
    return {**{name: value for name, value in custom.items() if name != "status"}, "metadata": metadata}
