"""Values in ConfigMaps of the operator's namespace, compressed: written only by the replica whose term it is."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from controlplane.store.kube_api import Kube, core_path
from providers.base.errors import AlreadyExists, Conflict, Corrupt, Fenced, Full, NotFound

PART_BYTES = 600_000
"""Compressed bytes in one ConfigMap, which may have 1 MiB with base64 and all."""
PARTS_MAX = 64
TERM = "yunhe.io/term"
LABELS = {"app.kubernetes.io/managed-by": "yunhe-operator", "yunhe.io/state": "store"}


class ConfigMaps:
    """Each is replaced only while it is as it was read or written here last: of two writers, one meets Fenced, and
    writes nothing from then on. From any thread; one name is in one caller's hands at a time.

    Every method may raise Unavailable, those that write Fenced.
    """

    def __init__(self, kube: Kube, namespace: str, *, lost: Callable[[], None] = lambda: None) -> None:
        """`lost`: called once, when another replica has written."""
        self._kube, self._namespace, self._lost = kube, namespace, lost
        self._versions: dict[str, str] = {}
        self._terms: dict[str, str | None] = {}
        self.term = 0
        """Of this writer; given before the first write."""
        self.fenced = False
        """Whether another replica has taken over."""

    def read(self, name: str) -> Any:
        """The value, None when there is none. Raises Corrupt."""
        packed = self._find(name)
        return None if packed is None else _unpacked(name, packed)

    def read_parts(self, names: Sequence[str]) -> Any:
        """The value that lies in these parts, None when one is missing. Raises Corrupt."""
        pieces = [self._find(name) for name in names]
        if any(piece is None for piece in pieces):
            return None
        return _unpacked(names[0], b"".join(piece for piece in pieces if piece is not None))

    def write(self, name: str, value: Any) -> None:
        """Create or replace a value of one part. Raises Full: it is too large for that."""
        packed = _packed(value)
        if len(packed) > PART_BYTES:
            raise Full(f"{name} would have {len(packed)} compressed bytes, more than {PART_BYTES}")
        self._put(name, packed)

    def write_parts(self, name: str, value: Any) -> list[str]:
        """Write a value in as many parts as it needs; returns their names. Raises Full: it would need too many."""
        packed = _packed(value)
        pieces = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
        if len(pieces) > PARTS_MAX:
            raise Full(f"{name} would have {len(packed)} compressed bytes, more than {PARTS_MAX * PART_BYTES}")
        names = [f"{name}-{number}" for number in range(len(pieces))]
        for part, piece in zip(names, pieces, strict=True):
            if part not in self._versions and not self.fenced:
                try:
                    self._send(part, piece)
                    continue
                except AlreadyExists:
                    self._find(part)  # left by a try that never became true
            self._put(part, piece)
        return names

    def remove(self, name: str) -> None:
        """Gone already is as good."""
        self._kube.delete(core_path(self._namespace, "configmaps", name))
        self._versions.pop(name, None)
        self._terms.pop(name, None)

    def names(self) -> list[str]:
        """Of all that there are of ours."""
        selector = ",".join(f"{key}={value}" for key, value in LABELS.items())
        listed = self._kube.listed(core_path(self._namespace, "configmaps"), labelSelector=selector)
        return [str(found["metadata"]["name"]) for found in listed]

    def _put(self, name: str, packed: bytes) -> None:
        if self.fenced:
            raise Fenced(f"another replica of the operator leads: {name} is not written")
        try:
            self._send(name, packed)
        except (AlreadyExists, Conflict, NotFound) as error:
            if self._find(name) == packed and self._terms.get(name) == str(self.term):
                return  # an earlier try of ours was carried out, and its answer was lost
            self.fenced = True
            self._lost()
            raise Fenced(f"another replica of the operator has written {name}: this one does not lead") from error

    def _send(self, name: str, packed: bytes) -> None:
        # The term makes a replacement by the same content a change, so that it shuts out whoever led before.
        metadata: dict[str, Any] = {"name": name, "labels": LABELS, "annotations": {TERM: str(self.term)}}
        body = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
            "binaryData": {"z": base64.b64encode(packed).decode()},
        }  # fmt: skip
        version = self._versions.get(name)
        if version is None:
            answer = self._kube.create(core_path(self._namespace, "configmaps"), body)
        else:
            metadata["resourceVersion"] = version
            answer = self._kube.replace(core_path(self._namespace, "configmaps", name), body)
        self._versions[name] = answer["metadata"]["resourceVersion"]

    def _find(self, name: str) -> bytes | None:
        try:
            found = self._kube.get(core_path(self._namespace, "configmaps", name))
        except NotFound:
            self._versions.pop(name, None)
            return None
        self._versions[name] = found["metadata"]["resourceVersion"]
        self._terms[name] = found["metadata"].get("annotations", {}).get(TERM)
        return base64.b64decode(found.get("binaryData", {}).get("z", ""))


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _unpacked(name: str, packed: bytes) -> Any:
    try:
        return json.loads(zlib.decompress(packed))
    except (zlib.error, ValueError) as error:
        raise Corrupt(f"ConfigMap {name} holds a value that cannot be read") from error
