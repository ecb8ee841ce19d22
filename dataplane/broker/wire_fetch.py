"""The Fetch response, versions 4 to 18, by hand: the record batches go to the socket from where they lie. Layout: Kafka
protocol guide, "Fetch API"; flexible encoding (version 12): KIP-482; topic ids (version 13): KIP-516; who leads instead
(versions 12 and 16): KIP-951.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from dataplane.broker.wire_leaders import Leader, current_leader, endpoints
from dataplane.broker.wire_primitives import length, string
from dataplane.stream.batch import Buffer

VERSION_MIN, VERSION_MAX = 4, 18
FLEXIBLE_FROM = LEADER_FROM = 12
IDS_FROM = 13
ENDPOINTS_FROM = 16
LEADER_TAG = 1

NO_REPLICA = -1
"""Read on where you are."""

TopicKey = str | uuid.UUID
"""How a request names a topic: up to version 12 by its name, from then on by its id."""

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
    read_replica: int = NO_REPLICA
    """The broker to read from next (KIP-392); then there are no records."""
    leader: Leader | None = None
    """Who leads it, told with a refusal."""

    @property
    def size(self) -> int:
        """Bytes of the records."""
        return sum(map(len, self.records))


@dataclass(slots=True)
class FetchAnswer:
    """A whole response: partitions by topic, in the order of the request."""

    error_code: int = 0
    session_id: int = 0
    topics: list[tuple[TopicKey, list[FetchedPartition]]] = field(default_factory=list)
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
        head += name.bytes if isinstance(name, uuid.UUID) else string(name, flexible)
        head += length(len(partitions), flexible)
        for part in partitions:
            fields = (part.partition, part.error_code, part.high_watermark, part.last_stable_offset)
            if version >= 5:
                head += _PARTITION_V5.pack(*fields, part.log_start_offset)
            else:
                head += _PARTITION_V4.pack(*fields)
            head += _aborted(part.aborted, flexible)
            if version >= 11:
                head += _I32.pack(part.read_replica)
            size = part.size
            head += length(size, flexible)
            if size:
                pieces.append(head)
                pieces += part.records
                head = bytearray()
            if flexible:
                head += current_leader(part.leader, LEADER_TAG)
        if flexible:
            head += b"\0"
    if version >= ENDPOINTS_FROM:
        head += endpoints(part.leader for _, parts in answer.topics for part in parts)
    elif flexible:
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
