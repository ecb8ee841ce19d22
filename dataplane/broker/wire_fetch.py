"""The Fetch response, versions 4 to 12, by hand: the record batches go to the socket from where they lie. Layout: Kafka
protocol guide, "Fetch API"; flexible encoding (version 12): KIP-482.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from dataplane.broker.wire_primitives import length, string
from dataplane.stream.batch import Buffer

FLEXIBLE_FROM = 12

_I32 = struct.Struct(">i")
_HEAD_V4 = struct.Struct(">i")
_HEAD_V7 = struct.Struct(">ihi")
_PARTITION_V4 = struct.Struct(">ihqq")
_PARTITION_V5 = struct.Struct(">ihqqq")


@dataclass(slots=True)
class FetchedPartition:
    """One partition's part of a response. `aborted`: (producer id, first offset) of aborted transactions; None when the
    client did not ask for committed records alone."""

    partition: int
    error_code: int = 0
    high_watermark: int = -1
    last_stable_offset: int = -1
    log_start_offset: int = -1
    records: Sequence[Buffer] = ()
    aborted: Sequence[tuple[int, int]] | None = None

    @property
    def size(self) -> int:
        """Bytes of the records."""
        return sum(map(len, self.records))


@dataclass(slots=True)
class FetchAnswer:
    """A whole response: partitions by topic, in the order of the request."""

    error_code: int = 0
    session_id: int = 0
    topics: list[tuple[str, list[FetchedPartition]]] = field(default_factory=list)
    throttle_ms: int = 0
    """How long the client is asked to wait."""


def encode_fetch(version: int, correlation_id: int, answer: FetchAnswer) -> list[Buffer]:
    """The whole response frame with its length, in pieces to be sent one after the other."""
    flexible = version >= FLEXIBLE_FROM
    pieces: list[Buffer] = []
    head = bytearray(4) + _I32.pack(correlation_id)
    if flexible:
        head += b"\0"
    throttle_ms = answer.throttle_ms
    if version >= 7:
        head += _HEAD_V7.pack(throttle_ms, answer.error_code, answer.session_id)
    else:
        head += _HEAD_V4.pack(throttle_ms)
    head += length(len(answer.topics), flexible)
    for name, partitions in answer.topics:
        head += string(name, flexible)
        head += length(len(partitions), flexible)
        for part in partitions:
            fields = (part.partition, part.error_code, part.high_watermark, part.last_stable_offset)
            if version >= 5:
                head += _PARTITION_V5.pack(*fields, part.log_start_offset)
            else:
                head += _PARTITION_V4.pack(*fields)
            head += _aborted(part.aborted, flexible)
            if version >= 11:
                head += b"\xff\xff\xff\xff"  # no preferred read replica
            size = part.size
            head += length(size, flexible)
            if size:
                pieces.append(head)
                pieces += part.records
                head = bytearray()
            if flexible:
                head += b"\0"
        if flexible:
            head += b"\0"
    if flexible:
        head += b"\0"
    pieces.append(head)
    first = pieces[0]
    assert isinstance(first, bytearray)
    _I32.pack_into(first, 0, sum(map(len, pieces)) - 4)
    return pieces


def _aborted(aborted: Sequence[tuple[int, int]] | None, flexible: bool) -> bytes:
    if aborted is None:
        return b"\0" if flexible else b"\xff\xff\xff\xff"
    tail = b"\0" if flexible else b""
    return length(len(aborted), flexible) + b"".join(struct.pack(">qq", *one) + tail for one in aborted)
