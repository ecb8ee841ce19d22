"""The Produce request and response, versions 3 to 10, by hand: the one request that comes tens of thousands of times a
second, and whose records must not be copied on the way. Everything else is kio's (`wire.py`). Layout: Kafka protocol
guide, "Produce API"; flexible encoding (version 9): KIP-482; who leads instead (version 10): KIP-951.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.broker.wire_leaders import Leader, current_leader, endpoints
from dataplane.broker.wire_primitives import (
    Malformed,
    length,
    message,
    nullable_string,
    read_count,
    read_uvarint,
    skip_tags,
    string,
)

if TYPE_CHECKING:
    from dataplane.broker.wire_repeated import Pattern

VERSION_MIN, VERSION_MAX = 3, 10
FLEXIBLE_FROM, LEADER_FROM = 9, 10
LEADER_TAG = 0
PARTITIONS_MAX = 10_000
"""Partitions of one request: bounds what a hostile count makes the broker do."""

_REQUEST_HEAD = struct.Struct(">hhih")
_I32 = struct.Struct(">i")
_ACKS_TIMEOUT = struct.Struct(">hi")
_PARTITION_HEAD = struct.Struct(">ii")
_PARTITION_V3 = struct.Struct(">ihqq")
_PARTITION_V5 = struct.Struct(">ihqqq")


@dataclass(slots=True)
class Part:
    """One partition's records in a request, and their answer. `records` is a view of the frame."""

    topic: str
    partition: int
    records: memoryview | None
    error_code: int = 0
    error_message: str | None = None
    base_offset: int = -1
    log_start_offset: int = -1
    leader: Leader | None = None
    """Told with a refusal, and where another broker took the records, so that the client need not ask."""


@dataclass(slots=True)
class ProduceRequest:
    """`timeout_ms`: how long the client waits. Parts in the order of the request, those of a topic together."""

    version: int
    correlation_id: int
    transactional_id: str | None
    acks: int
    timeout_ms: int
    parts: list[Part]
    throttle_ms: int = 0
    """How long the client is asked to wait: part of the answer."""
    pattern: Pattern | None = None
    """What it has in common with others of its connection."""


def decode_produce(frame: memoryview) -> ProduceRequest:
    """Decode a request frame (without its length).

    Raises:
        Malformed: cut short, or lengths that contradict each other.
    """
    try:
        return _decode(frame)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def _decode(frame: memoryview) -> ProduceRequest:
    _, version, correlation_id, client_bytes = _REQUEST_HEAD.unpack_from(frame)
    at = _REQUEST_HEAD.size + max(client_bytes, 0)
    flexible = version >= FLEXIBLE_FROM
    if flexible:
        at = skip_tags(frame, at)
    transactional_id, at = nullable_string(frame, at, flexible)
    acks, timeout_ms = _ACKS_TIMEOUT.unpack_from(frame, at)
    at += _ACKS_TIMEOUT.size
    parts: list[Part] = []
    topics, at = read_count(frame, at, flexible)
    if topics > PARTITIONS_MAX:
        raise Malformed("too many topics")
    for _ in range(topics):
        topic, at = nullable_string(frame, at, flexible)
        partitions, at = read_count(frame, at, flexible)
        if topic is None or len(parts) + partitions > PARTITIONS_MAX:
            raise Malformed("no topic name, or too many partitions")
        for _ in range(partitions):
            if flexible:
                [index] = _I32.unpack_from(frame, at)
                size, at = read_uvarint(frame, at + 4)
                size -= 1
            else:
                index, size = _PARTITION_HEAD.unpack_from(frame, at)
                at += _PARTITION_HEAD.size
            if size < 0:
                parts.append(Part(topic, index, None))
            else:
                if at + size > len(frame):
                    raise Malformed("records are cut short")
                parts.append(Part(topic, index, frame[at : at + size]))
                at += size
            if flexible:
                at = skip_tags(frame, at)
        if flexible:
            at = skip_tags(frame, at)
    return ProduceRequest(version, correlation_id, transactional_id, acks, timeout_ms, parts)


def encode_produce(request: ProduceRequest) -> bytes:
    """The whole response frame, with its length."""
    version, parts = request.version, request.parts
    flexible = version >= FLEXIBLE_FROM
    out = [b"", _I32.pack(request.correlation_id)]
    topics = list(_by_topic(parts))
    if flexible:
        out.append(b"\0")
    out.append(length(len(topics), flexible))
    for name, of_topic in topics:
        out += (string(name, flexible), length(len(of_topic), flexible))
        for part in of_topic:
            if version >= 5:
                out.append(
                    _PARTITION_V5.pack(part.partition, part.error_code, part.base_offset, -1, part.log_start_offset)
                )
            else:
                out.append(_PARTITION_V3.pack(part.partition, part.error_code, part.base_offset, -1))
            if version >= 8:
                out += (length(0, flexible), message(part.error_message, flexible))  # no errors of single records
            if flexible:
                out.append(current_leader(part.leader if version >= LEADER_FROM else None, LEADER_TAG))
        if flexible:
            out.append(b"\0")
    out.append(_I32.pack(request.throttle_ms))
    if flexible:
        out.append(endpoints(p.leader for p in parts) if version >= LEADER_FROM else b"\0")
    out[0] = _I32.pack(sum(map(len, out)))
    return b"".join(out)


def _by_topic(parts: Sequence[Part]) -> Iterator[tuple[str, Sequence[Part]]]:
    start = 0
    for i in range(1, len(parts) + 1):
        if i == len(parts) or parts[i].topic != parts[start].topic:
            yield parts[start].topic, parts[start:i]
            start = i
