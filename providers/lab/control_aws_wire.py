"""Pieces of EC2's Query protocol: numbered parameters, item sets, refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from providers.lab.wire import element


class RefusedByEc2(Exception):
    """An error answer on its way out."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def numbered(form: Mapping[str, str], name: str) -> list[str]:
    """`name`.1, `name`.2 … in order."""
    found: list[str] = []
    while f"{name}.{len(found) + 1}" in form:
        found.append(form[f"{name}.{len(found) + 1}"])
    return found


def item_set(tag: str, items: Sequence[ElementTree.Element]) -> ElementTree.Element:
    """A list, as EC2 writes lists."""
    return element(tag, *items)


def boolean(value: bool) -> str:
    """As XML Schema writes it."""
    return "true" if value else "false"
