"""Who leads a partition instead, as Produce and Fetch tell it beside a refusal (KIP-951): the client need not ask for
metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from dataplane.broker.wire_primitives import length, message, string
from dataplane.stream.records import uvarint

_I32 = struct.Struct(">i")
_ID_EPOCH = struct.Struct(">ii")


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads a partition, under which epoch, and where it listens."""

    node: int
    epoch: int
    host: str
    port: int
    rack: str


def current_leader(leader: Leader | None, tag: int) -> bytes:
    """A partition's tagged fields: who leads it, where that is to be told."""
    return b"\0" if leader is None else _tagged(tag, _ID_EPOCH.pack(leader.node, leader.epoch) + b"\0")


def endpoints(leaders: Iterable[Leader | None]) -> bytes:
    """The response's tagged fields: where the leaders that it names listen."""
    named = {leader.node: leader for leader in leaders if leader is not None}
    if not named:
        return b"\0"
    out = [length(len(named), True)]
    for leader in named.values():
        out += (_I32.pack(leader.node), string(leader.host, True), _I32.pack(leader.port))
        out += (message(leader.rack or None, True), b"\0")
    return _tagged(0, b"".join(out))


def _tagged(tag: int, field: bytes) -> bytes:
    """Tagged fields of which only this one is there."""
    return b"\1" + uvarint(tag) + uvarint(len(field)) + field
