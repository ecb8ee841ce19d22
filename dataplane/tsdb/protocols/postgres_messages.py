"""Messages of Postgres's protocol 3.0, read and written: bytes in, values out, no I/O but for `read`.

first, without a type:   length (4) | code (4) | …            StartupMessage, SSLRequest, GSSENCRequest, CancelRequest
all others, each way:    type (1) | length (4, with itself) | …
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROTOCOL = 3 << 16
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102
FIRST_BYTES_MAX = 10_000
"""Of a message before the login is over: Postgres's own bound."""
BODY_BYTES_MAX = 16 << 20
"""Of any other message."""
COLUMNS_MAX = 32_767


class Violation(Exception):
    """No message of the protocol, or a longer one than may be: the connection ends. `state`: its SQLSTATE."""

    def __init__(self, message: str, state: str = "08P01") -> None:
        super().__init__(message)
        self.state = state


@dataclass(frozen=True, slots=True)
class First:
    """A message without a type: its code, and what follows."""

    code: int
    body: bytes


async def read_first(reader: asyncio.StreamReader) -> First:
    """Raises Violation; IncompleteReadError: the client left."""
    length, code = struct.unpack("!II", await reader.readexactly(8))
    if not 8 <= length <= FIRST_BYTES_MAX:
        raise Violation("invalid length of startup packet")
    return First(code, await reader.readexactly(length - 8))


async def read(reader: asyncio.StreamReader, bytes_max: int = BODY_BYTES_MAX) -> tuple[bytes, bytes]:
    """A message's type and body. Raises Violation; IncompleteReadError: the client left."""
    head = await reader.readexactly(5)
    length = int.from_bytes(head[1:], "big") - 4
    if length < 0:
        raise Violation("invalid message length")
    if length > bytes_max:
        raise Violation(f"a message of {length} bytes is longer than {bytes_max}", "54000")
    return head[:1], await reader.readexactly(length)


class Body:
    """A message's body, read field by field.

    Every method raises `Violation` where the body ends too early.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if count < 0 or len(found) != count:
            raise Violation("insufficient data left in message")
        self._at += count
        return found

    def int16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def int32(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def text(self) -> str:
        """A string up to its NUL. Raises Violation also where it is not UTF-8."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise Violation("invalid string in message")
        found = self._data[self._at : end]
        self._at = end + 1
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise Violation("invalid byte sequence for encoding UTF8", "22021") from None

    def value(self) -> bytes | None:
        """Of a length and so many bytes; None: null."""
        length = self.int32()
        return None if length == -1 else self.take(length)

    def end(self) -> None:
        if self._at != len(self._data):
            raise Violation("invalid message format")

    @property
    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def startup_parameters(body: bytes) -> dict[str, str]:
    """Of a StartupMessage."""
    fields, found = Body(body), {}
    while name := fields.text():
        found[name] = fields.text()
    fields.end()
    return found


@dataclass(frozen=True, slots=True)
class Parse:
    name: str
    sql: str
    types: tuple[int, ...]
    """Of its parameters, those that the client says; 0: it does not."""


def parse(body: bytes) -> Parse:
    fields = Body(body)
    name, sql = fields.text(), fields.text()
    types = tuple(fields.int32() & 0xFFFF_FFFF for _ in range(fields.int16()))
    fields.end()
    return Parse(name, sql, types)


@dataclass(frozen=True, slots=True)
class Bind:
    portal: str
    statement: str
    formats: tuple[int, ...]
    """Of the parameters: none (all text), one (all so), or one each; 0 text, 1 binary."""
    values: tuple[bytes | None, ...]
    results: tuple[int, ...]
    """Of the answer's columns, likewise."""


def bind(body: bytes) -> Bind:
    fields = Body(body)
    portal, statement = fields.text(), fields.text()
    formats = _formats(fields)
    values = tuple(fields.value() for _ in range(fields.int16()))
    results = _formats(fields)
    fields.end()
    if len(formats) > 1 and len(formats) != len(values):
        raise Violation(f"bind message has {len(formats)} parameter formats but {len(values)} parameters")
    return Bind(portal, statement, formats, values, results)


def _formats(fields: Body) -> tuple[int, ...]:
    formats = tuple(fields.int16() for _ in range(fields.int16()))
    if any(one not in (0, 1) for one in formats):
        raise Violation("unsupported format code")
    return formats


def format_of(formats: Sequence[int], at: int) -> int:
    """The format of the parameter or column at `at`."""
    if len(formats) > 1:
        return formats[at]
    return formats[0] if formats else 0


def named(body: bytes) -> tuple[bytes, str]:
    """Of Describe and Close: b"S" or b"P", and the name."""
    fields = Body(body)
    kind, name = fields.take(1), fields.text()
    fields.end()
    if kind not in (b"S", b"P"):
        raise Violation("neither a statement nor a portal is named")
    return kind, name


# ── what the server says ────────────────────────────────────────────────────────────────────────────────────────────


def message(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def string(text: str) -> bytes:
    """Without a NUL, which would end it."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace") + b"\0"


def _int32(number: int) -> bytes:
    return number.to_bytes(4, "big", signed=True)


PARSE_COMPLETE = message(b"1")
BIND_COMPLETE = message(b"2")
CLOSE_COMPLETE = message(b"3")
NO_DATA = message(b"n")
PORTAL_SUSPENDED = message(b"s")
EMPTY_QUERY = message(b"I")
AUTHENTICATION_OK = message(b"R", _int32(0))


def authentication_sasl(mechanisms: Sequence[str]) -> bytes:
    return message(b"R", _int32(10), *map(string, mechanisms), b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    return message(b"R", _int32(11), data)


def authentication_sasl_final(data: bytes) -> bytes:
    return message(b"R", _int32(12), data)


def negotiate_protocol_version(unknown: Sequence[str]) -> bytes:
    """Nothing newer than 3.0, and these options are not known."""
    return message(b"v", _int32(PROTOCOL), _int32(len(unknown)), *map(string, unknown))


def parameter_status(name: str, value: str) -> bytes:
    return message(b"S", string(name), string(value))


def backend_key_data(process: int, secret: bytes) -> bytes:
    return message(b"K", _int32(process), secret)


def ready_for_query(status: bytes) -> bytes:
    return message(b"Z", status)


def command_complete(tag: str) -> bytes:
    return message(b"C", string(tag))


def parameter_description(types: Sequence[int]) -> bytes:
    return message(b"t", len(types).to_bytes(2, "big"), *(one.to_bytes(4, "big") for one in types))


def error(severity: str, state: str, text: str, hint: str | None = None) -> bytes:
    """ErrorResponse. `severity`: ERROR, or FATAL where the connection ends."""
    return message(b"E", _said(severity, state, text, hint))


def notice(severity: str, state: str, text: str, hint: str | None = None) -> bytes:
    """NoticeResponse."""
    return message(b"N", _said(severity, state, text, hint))


def _said(severity: str, state: str, text: str, hint: str | None) -> bytes:
    fields: Mapping[bytes, str | None] = {b"S": severity, b"V": severity, b"C": state, b"M": text, b"H": hint}
    return b"".join(code + string(value) for code, value in fields.items() if value is not None) + b"\0"
