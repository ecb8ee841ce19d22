"""What travels between the volume daemon and its clients: length-prefixed frames over a stream socket.

    request   payload bytes u32 | op u8 | 3 spare | request id u32 | argument u64 | argument u64 | payload
    reply     payload bytes u32 | status u8 | 3 spare | request id u32 | payload

A connection opens at most one device handle. Requests of a connection are begun in order; writes may overlap, and
answers name their request. Payloads are raw bytes for reads and writes, JSON otherwise. A client on the same machine
shares memory with the daemon (SHARE), as a driver does with a device, and then sends no payload with its writes.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from pathlib import Path
from typing import Any

from providers.base.errors import (
    Conflict,
    Fenced,
    Full,
    Internal,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)

REQUEST = struct.Struct("!IB3xIQQ")
REPLY = struct.Struct("!IB3xI")

PAYLOAD_BYTES_MAX = 16 << 20
"""The longest write, and the longest read in one request: bounds what one frame makes the other side hold."""


class Op(IntEnum):
    """What a request asks for. Arguments in brackets."""

    OPEN = 1
    """JSON volume, zone: make this connection a handle."""
    READ = 2
    """[offset, length]"""
    WRITE = 3
    """[offset], payload: the bytes"""
    REGISTER = 4
    """[key]"""
    RESERVE = 5
    PREEMPT = 6
    """[victim]"""
    RELEASE = 7
    RESERVATION = 8
    CLOSE = 9
    """Answered once all earlier requests of the connection are over; nothing follows."""
    SHARE = 10
    """JSON path, size: memory of the client that WRITE_SHARED takes bytes from. Refused where it cannot be mapped."""
    WRITE_SHARED = 11
    """[offset on the volume, position in the shared memory << 32 | length]: the client leaves the bytes alone until it
    has the answer, and for good if it gets none."""
    CREATE = 16
    ATTACH = 17
    DETACH = 18
    DESCRIBE = 19
    DELETE = 20
    FAULT = 21
    """JSON kind, target, value: see `volumes_daemon.Faults`."""
    ADMIN = 22
    """JSON token, method, target, body: an admin call of `gate.py`; answered with status and answer."""


CHANGES = frozenset({Op.WRITE, Op.WRITE_SHARED, Op.CREATE, Op.ATTACH, Op.DETACH, Op.DELETE})
"""Requests whose lost answer is an unknown outcome; the reservation's own may be repeated or read back, and end as
Unavailable."""

OK = 0
KINDS: tuple[type[YunheError], ...] = (
    Internal,
    Conflict,
    Fenced,
    Unavailable,
    OutcomeUnknown,
    NotFound,
    Invalid,
    Full,
)
"""Status n > 0 is the kind at n - 1. Append only."""


def error_status(error: YunheError) -> tuple[int, bytes]:
    """Status and payload of a failed request."""
    kind = KINDS.index(type(error)) if type(error) in KINDS else 0
    fields = {k: v for k, v in error.fields.items() if v is None or isinstance(v, (str, int))}
    return kind + 1, encode({"message": error.message, "hint": error.hint, "fields": fields})


def to_error(status: int, payload: bytes) -> YunheError:
    """The error of a failed request."""
    plain = decode(payload)
    kind = KINDS[status - 1] if status <= len(KINDS) else Internal
    return kind(str(plain["message"]), hint=plain["hint"], **plain["fields"])


def encode(plain: Any) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode()


def decode(payload: bytes) -> Any:
    """Raises:
    Invalid: not JSON.
    """
    try:
        return json.loads(payload)
    except ValueError as error:
        raise Invalid("the request's payload is not JSON") from error


def parse_address(address: str) -> Path | tuple[str, int]:
    """`unix:PATH` or `tcp:HOST:PORT`.

    Raises:
        Invalid: neither.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        return Path(rest)
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdigit() and int(port) < 1 << 16:
        return host, int(port)
    raise Invalid(f"{address!r} is not an address of a volume daemon", hint="write unix:PATH or tcp:127.0.0.1:PORT")
