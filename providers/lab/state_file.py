"""Small state that a control server owns: one JSON file, replaced whole and durable before anybody is told yes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from providers.base.errors import Corrupt, Full, Unavailable
from providers.base.files import replace_file


class StateFile:
    """`path` holds a JSON object, or does not exist yet. A crash leaves the old content or the new."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Any] | None:
        """
        Raises:
            Corrupt: it is there and cannot be read.
        """
        try:
            plain = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Corrupt(f"{self._path} cannot be read: {error}") from error
        if not isinstance(plain, dict):
            raise Corrupt(f"{self._path} does not hold an object")
        return plain

    def save(self, plain: dict[str, Any]) -> None:
        """Durable when this returns.

        Raises:
            Full, Unavailable: the host's disk refuses; the file is as it was.
        """
        try:
            replace_file(self._path, json.dumps(plain, separators=(",", ":")).encode(), durable=True, mode=0o600)
        except OSError as error:
            kind = Full if error.errno in (28, 122) else Unavailable
            raise kind(f"{self._path} cannot be written: {error.strerror}") from error
