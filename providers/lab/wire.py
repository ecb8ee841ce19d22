"""Requests and replies as the dialects see them, without sockets: a dialect is a function of one request and the
storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `raw_path` is as sent; header names are in lower case; an argument without value is the empty
    string."""

    method: str
    raw_path: str
    raw_query: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @staticmethod
    def of(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Request:
        """From the request line's target."""
        raw_path, _, raw_query = target.partition("?")
        query = dict(parse_qsl(raw_query, keep_blank_values=True))
        return Request(method, raw_path, raw_query, query, headers, body)

    @property
    def path(self) -> str:
        return unquote(self.raw_path)


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. For HEAD the length goes into `headers` and `body` is empty."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Dialect(Protocol):
    """One cloud's wire protocol over the storage core."""

    def answer(self, request: Request) -> Reply:
        """Check the signature, act, answer. Blocks on file I/O; never raises for what a client can cause."""
        ...

    def error(self, status: int, code: str, message: str) -> Reply:
        """An error in this cloud's own shape: for injected faults and for what the server itself refuses."""
        ...


def byte_range(header: str | None, size: int) -> tuple[int, int | None] | None:
    """(start, length) of a `bytes=a-b` header; None when absent or not one range. `length` None: to the end.

    Raises:
        ValueError: the range begins at or past the end (416).
    """
    if header is None or not header.startswith("bytes=") or "," in header:
        return None
    first, _, last = header[6:].partition("-")
    if not first.isdigit():
        return (max(size - int(last), 0), None) if last.isdigit() else None
    start = int(first)
    if start >= size:
        raise ValueError(header)
    return start, (int(last) - start + 1 if last.isdigit() else None)


def xml(root: ElementTree.Element) -> bytes:
    """The document with its declaration."""
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def element(tag: str, *children: ElementTree.Element | tuple[str, object], **attributes: str) -> ElementTree.Element:
    """An element of children and (tag, text) pairs."""
    made = ElementTree.Element(tag, attributes)
    for child in children:
        if isinstance(child, tuple):
            ElementTree.SubElement(made, child[0]).text = str(child[1])
        else:
            made.append(child)
    return made


def local(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rpartition("}")[2]
