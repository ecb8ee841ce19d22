"""HTTP/1.1 heads as bytes: read strictly, written plainly. No sockets here.

What a proxy and this server could read in two ways is refused (RFC 9112): folded lines, a length together with a
transfer coding, two lengths, white space before a colon, bare control characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

HEAD_BYTES_MAX = 32 << 10
"""Request line and headers together."""
HEADERS_MAX = 128

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e\x80-\xff]*|\*|https?://[\x21-\x7e]*) HTTP/1\.([01])\r\n")
_HEADER = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)[ \t]*\r\n"
)
_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f]")
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Malformed(Exception):
    """The connection's next bytes are no request that is answered: this status, then closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """A request's first lines. Header names are in lower case; `length` is None when the body is chunked."""

    method: str
    target: str
    headers: Mapping[str, str]
    length: int | None
    keep_alive: bool
    expects_continue: bool


def parse_head(raw: bytes) -> Head:
    """`raw` ends with the empty line.

    Raises:
        Malformed
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise Malformed(400, "the request line is not one of HTTP/1.1")
    headers: dict[str, str] = {}
    at, count = line.end(), 0
    end = len(raw) - 2
    while at < end:
        found = _HEADER.match(raw, at)
        if found is None:
            raise Malformed(400, "a header line is malformed")
        at, count = found.end(), count + 1
        name = found[1].decode("ascii").lower()
        value = found[2].decode("utf-8", "surrogateescape")
        if name in headers:
            if name in ("content-length", "host", "transfer-encoding", "authorization"):
                raise Malformed(400, f"{name} is there twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if count > HEADERS_MAX:
        raise Malformed(431, f"a request has at most {HEADERS_MAX} headers")
    target = line[2].decode("utf-8", "surrogateescape")
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    newer = line[3] == b"1"
    if newer and "host" not in headers:
        raise Malformed(400, "a Host header is needed")
    connection = headers.get("connection", "").lower()
    return Head(
        method=line[1].decode("ascii"),
        target=target,
        headers=headers,
        length=_length(headers, newer),
        keep_alive=newer and "close" not in connection,
        expects_continue=newer and headers.get("expect", "").lower() == "100-continue",
    )


def _length(headers: Mapping[str, str], newer: bool) -> int | None:
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        if length is not None or not newer:
            raise Malformed(400, "a transfer coding goes with no Content-Length and with HTTP/1.1 only")
        if coding.strip().lower() != "chunked":
            raise Malformed(501, "of transfer codings only chunked is known")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise Malformed(400, "Content-Length is not a number")
    return int(length)


def encode_head(status: int, headers: Mapping[str, str], length: int | None, *, close: bool) -> bytes:
    """A reply's first lines. `length`: of the body; None when `headers` say it, or there is none to say (HEAD, 204)."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"]
    for name, value in headers.items():
        if _UNSENDABLE.search(value):
            # A key or a message from the client must not become a header of its own.
            value = _UNSENDABLE.sub(" ", value)
        lines.append(f"{name}: {value}\r\n")
    if length is not None:
        lines.append(f"Content-Length: {length}\r\n")
    lines.append("Connection: close\r\n\r\n" if close else "\r\n")
    return "".join(lines).encode("utf-8", "surrogateescape")
