"""What the plugins have made in one emulated cloud: a file beside the lab's own state, gone with `yunhe down --purge`.

It stands for the cloud's memory of the types that the lab has no API for, and holds the inputs of the others.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from providers.base.errors import Full
from providers.lab.state_file import StateFile

RESOURCES_MAX = 10_000
"""In one emulated cloud: several times what the largest cell has."""
Plain = dict[str, Any]


class Shelf:
    """Resources by type and id. Durable when a call returns; several processes may use it."""

    def __init__(self, folder: Path) -> None:
        self._file = StateFile(folder / "pulumi.json")
        self._lock = folder / "pulumi.lock"

    def get(self, token: str, id_: str) -> Plain | None:
        """The inputs of a resource; None: there is no such."""
        found = self._load().get(token, {}).get(id_)
        return dict(found) if found is not None else None

    def all(self, token: str) -> dict[str, Plain]:
        """By id."""
        return {id_: dict(inputs) for id_, inputs in self._load().get(token, {}).items()}

    def put(self, token: str, id_: str, inputs: Plain) -> None:
        """
        Raises:
            Full: too many, or the disk is.
            Corrupt, Unavailable: the file cannot be used.
        """
        with self._changing() as every:
            if sum(len(one) for one in every.values()) >= RESOURCES_MAX and id_ not in every.get(token, {}):
                raise Full(f"{RESOURCES_MAX} resources are what an emulated cloud takes", hint="destroy old stacks")
            every.setdefault(token, {})[id_] = inputs

    def remove(self, token: str, id_: str) -> None:
        """One that is gone is passed over.

        Raises:
            Corrupt, Unavailable: the file cannot be used.
        """
        with self._changing() as every:
            every.get(token, {}).pop(id_, None)
            if not every.get(token, True):
                del every[token]

    def _load(self) -> dict[str, dict[str, Plain]]:
        return dict((self._file.load() or {}).get("resources", {}))

    @contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, Plain]]]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            every = self._load()
            yield every
            self._file.save({"resources": every})
        finally:
            os.close(descriptor)
