"""What requests and responses by hand are made of (`wire_produce.py`, `wire_fetch.py`): lengths and strings, in the
classic encoding and in the flexible one (KIP-482), where a length is a varint and stands one higher.
"""

from __future__ import annotations

import struct

from dataplane.stream.records import uvarint

_I16, _I32 = struct.Struct(">h"), struct.Struct(">i")
MESSAGE_BYTES_MAX = 32_000
"""Of an error message; a classic string has room for 32,767."""


class Malformed(Exception):
    """The frame is not a request: the connection is closed."""


def length(count: int, flexible: bool) -> bytes:
    """The length of an array, or of records."""
    return uvarint(count + 1) if flexible else _I32.pack(count)


def string(text: str, flexible: bool) -> bytes:
    """A string that is there."""
    return _prefixed(text.encode(), flexible)


def message(text: str | None, flexible: bool) -> bytes:
    """An error message, or that there is none."""
    if text is None:
        return b"\0" if flexible else b"\xff\xff"
    return _prefixed(text.encode()[:MESSAGE_BYTES_MAX], flexible)


def _prefixed(encoded: bytes, flexible: bool) -> bytes:
    return (uvarint(len(encoded) + 1) if flexible else _I16.pack(len(encoded))) + encoded


def nullable_string(frame: memoryview, at: int, flexible: bool) -> tuple[str | None, int]:
    """A string, or None, and the position behind it. This and the other readers raise Malformed, struct.error,
    IndexError or UnicodeDecodeError for what is none."""
    if flexible:
        size, at = read_uvarint(frame, at)
        size -= 1
    else:
        [size] = _I16.unpack_from(frame, at)
        at += 2
    if size < 0:
        return None, at
    if at + size > len(frame):
        raise Malformed("a string is cut short")
    return str(frame[at : at + size], "utf-8"), at + size


def read_count(frame: memoryview, at: int, flexible: bool) -> tuple[int, int]:
    """An array's length, null counting as none, and the position behind it."""
    if flexible:
        size, at = read_uvarint(frame, at)
        return max(size - 1, 0), at
    [size] = _I32.unpack_from(frame, at)
    return max(size, 0), at + 4


def skip_tags(frame: memoryview, at: int) -> int:
    """The position behind a flexible structure's tagged fields."""
    if frame[at] == 0:
        return at + 1
    count, at = read_uvarint(frame, at)
    for _ in range(count):
        _, at = read_uvarint(frame, at)
        size, at = read_uvarint(frame, at)
        at += size
        if at > len(frame):
            raise Malformed("tagged fields are cut short")
    return at


def read_uvarint(frame: memoryview, at: int) -> tuple[int, int]:
    """An unsigned varint of at most 35 bits, and the position behind it."""
    value = shift = 0
    while True:
        byte = frame[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise Malformed("a number is too long")
