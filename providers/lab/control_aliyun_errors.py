"""A refusal in Aliyun's own words: HTTP status, error code, message."""

from __future__ import annotations

from collections.abc import Mapping


class Refused(Exception):
    """What an action of the emulated Aliyun answers instead of a result."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def numbered(arguments: Mapping[str, str], name: str) -> list[str]:
    """The values of a flattened list, `name.1`, `name.2` …"""
    found: list[str] = []
    while (value := arguments.get(f"{name}.{len(found) + 1}")) is not None:
        found.append(value)
    return found
