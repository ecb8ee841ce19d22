"""What both ends say to each other beside the ring, over the Unix socket: frames, and the messages in them.

    frame    [length of what follows, u32][kind, u8][payload]

Wake-ups are frames too, and not eventfds: whether a read of an eventfd blocks belongs to the open file that both ends
share, so that a hostile writer could have the database block in one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any

from dataplane.tsdb.schema.tables import Column
from providers.base.errors import (
    AlreadyExists,
    Corrupt,
    Fenced,
    Full,
    Internal,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)

FRAME_BYTES_MAX = 1 << 20
HEAD = struct.Struct("<IB")
UPTO = struct.Struct("<Q")
STORED = struct.Struct("<QQ")
"""Of FLUSHED: number of the last record that is stored, and how many rows were refused since the start."""


class Kind(IntEnum):
    """Of a frame. Those from 128 on are the database's."""

    HELLO = 1
    """JSON `{"version", "ring_bytes"?}`: first of all."""
    DECLARE = 2
    """JSON `{"table", "columns": [{"name", "type", "role", "nullable", "decimals"?}], "options"?, "create"?}`."""
    FLUSH = 3
    """u64: answer once this record, and all before, are stored."""
    WAKE = 4
    """Nothing: look into the ring."""
    WELCOME = 128
    """JSON `{"version", "ring_bytes"}`, and the memory as SCM_RIGHTS."""
    DECLARED = 129
    """JSON `{"id"}`, the table's number on this connection, or `{"error"}`: in the order of the questions."""
    FLUSHED = 130
    """u64, u64, JSON: `STORED`, then nothing, or the last error for which rows were refused."""
    ROOM = 131
    """Nothing: there is room in the ring again."""
    FAREWELL = 132
    """JSON error: why the database hangs up."""


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """The frame's bytes."""
    return HEAD.pack(len(payload) + 1, kind) + payload


def message(kind: Kind, content: dict[str, Any]) -> bytes:
    """The frame's bytes, of a message in JSON."""
    return frame(kind, json.dumps(content, separators=(",", ":")).encode())


class Frames:
    """Bytes as they come from a socket, cut into frames."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Kind and payload of each frame that is whole by now.

        Raises:
            Invalid: a frame longer than there are any.
        """
        self._waiting += data
        while len(self._waiting) >= HEAD.size:
            length, kind = HEAD.unpack_from(self._waiting)
            if not 1 <= length <= FRAME_BYTES_MAX:
                raise Invalid(f"a frame of {length} bytes; there are 1 to {FRAME_BYTES_MAX}")
            end = HEAD.size - 1 + length
            if len(self._waiting) < end:
                return
            payload = bytes(self._waiting[HEAD.size : end])
            del self._waiting[:end]
            yield kind, payload


def content_of(payload: bytes) -> dict[str, Any]:
    """A message's JSON object.

    Raises:
        Invalid: it is none.
    """
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"a message that is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise Invalid("a message that is no JSON object")
    return content


_KINDS: dict[str, type[YunheError]] = {
    kind.__name__: kind
    for kind in (AlreadyExists, Corrupt, Fenced, Full, Internal, Invalid, NotFound, OutcomeUnknown, Unavailable)
}


def columns_content(columns: Iterable[Column]) -> list[dict[str, Any]]:
    """Columns as the messages carry them."""
    return [
        {"name": c.name, "type": c.type, "role": c.role, "nullable": c.nullable}
        | ({} if c.decimals is None else {"decimals": c.decimals})
        for c in columns
    ]


def error_content(error: YunheError) -> dict[str, Any]:
    """An error as the messages carry it."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}


def error_of(content: Any) -> YunheError:
    """The error in a message."""
    if not isinstance(content, dict):
        return Internal("the database sent an error that is none")
    kind = _KINDS.get(str(content.get("kind")), Internal)
    hint = content.get("hint")
    return kind(str(content.get("message")), hint=None if hint is None else str(hint))
