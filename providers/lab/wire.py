"""Requests and replies as the dialects see them, without sockets: a dialect is a function of one request and the
storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree

from providers.lab.storage_payload import Payload


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `raw_path` is as sent; header names are in lower case; an argument without value is the empty
    string. `payload` is the body, its transfer coding and an `aws-chunked` framing taken off."""

    method: str
    raw_path: str
    raw_query: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    payload: Payload

    @staticmethod
    def of(method: str, target: str, headers: Mapping[str, str], body: bytes | Payload) -> Request:
        """From the request line's target."""
        raw_path, _, raw_query = target.partition("?")
        query = dict(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else {}
        payload = body if isinstance(body, Payload) else Payload(body)
        return Request(method, raw_path, raw_query, query, headers, payload)

    @property
    def path(self) -> str:
        return unquote(self.raw_path)

    @property
    def body(self) -> bytes:
        """All of the payload, for documents (XML, JSON); an object's bytes are handed to the storage as `payload`.

        Raises:
            Invalid: too large for a document.
        """
        return self.payload.read()


class Content(Protocol):
    """A range of an object on its way out, read and checked piece by piece while it is sent."""

    @property
    def size(self) -> int:
        """Bytes altogether."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """The bytes in order. Blocks on file I/O.

        Raises:
            Corrupt: a piece fails its checksum; it is not handed out, and the answer must be cut.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds, whether it was read or not."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. For HEAD the length goes into `headers` and `body` is empty."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Content = b""


@dataclass(slots=True)
class Exchange:
    """One request and its answer as faults and the meter see them. `verb` is one of VERBS; `bucket` and `key` are empty
    where the request names none. `bytes_in` and `bytes_out` are of bodies: `bytes_in` is known when the fault rules
    judge, `status` (0: no answer was sent) and `bytes_out` when the exchange is noted. `caller_zone`: where the caller
    says that it stands, see `calls.py`."""

    method: str
    target: str
    verb: str
    bucket: str = ""
    key: str = ""
    bytes_in: int = 0
    status: int = 0
    bytes_out: int = 0
    caller_zone: str = ""


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
