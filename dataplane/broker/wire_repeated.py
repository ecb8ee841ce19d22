"""Produce requests that are like the one before on their connection, which most are: a producer writes to one partition
again and again, and its request differs in the correlation id and the records alone.

What is alike is compared instead of read, and the answer is a copy of the last one with other numbers in it. Anything
else (several partitions, transactions, an error or another leader to be told, the oldest versions) goes the way of
`wire_produce.py`, and so does what is malformed.
"""

from __future__ import annotations

import struct

from dataplane.broker.wire_primitives import length, read_uvarint, string
from dataplane.broker.wire_produce import FLEXIBLE_FROM, Part, ProduceRequest, decode_produce, encode_produce

VERSION_MIN = 5
"""From here on an answer tells the log's start."""

PATTERNS_MAX = 64
"""Partitions of one connection; with more, all are learned anew."""
LEAST_BYTES = 8
"""Of a request from its records' length on. A batch's header alone is longer."""

_I32 = struct.Struct(">i")
_OFFSETS = struct.Struct(">qqq")
"""Base offset, append time (none), log start."""
_CORRELATION_AT, _REST_AT = 4, 8
_NO_TAGS = b"\0\0\0"
"""Of the partition, of the topic, of the request."""


class Pattern:
    """What requests to one partition have in common, and their answer."""

    __slots__ = ("_acks", "_answer", "_flexible", "_offsets_at", "_partition", "_timeout_ms", "_topic", "_version")

    def __init__(self, request: ProduceRequest) -> None:
        """`request`: one of them; nothing of its frame is kept."""
        [part] = request.parts
        self._version, self._acks, self._timeout_ms = request.version, request.acks, request.timeout_ms
        self._topic, self._partition = part.topic, part.partition
        self._flexible = flexible = request.version >= FLEXIBLE_FROM
        # size, correlation id, tags of the header, the topic, one partition: its number, no error.
        topics = len(length(1, flexible)) + len(string(part.topic, flexible))
        self._offsets_at = 8 + flexible + topics + len(length(1, flexible)) + 4 + 2
        told = Part(part.topic, part.partition, None)
        self._answer = bytearray(
            encode_produce(ProduceRequest(self._version, 0, None, self._acks, self._timeout_ms, [told]))
        )

    def request(self, frame: memoryview, records_at: int) -> ProduceRequest | None:
        """The request in `frame`, whose records' length stands at `records_at`; None if it is not that long."""
        [correlation_id, size] = (*_I32.unpack_from(frame, _CORRELATION_AT), *_I32.unpack_from(frame, records_at))
        begin = records_at + 4
        if self._flexible:
            size, begin = read_uvarint(frame, records_at)
            size -= 1
            if frame[begin + size :] != _NO_TAGS:
                return None
        elif begin + size != len(frame):
            return None
        if size < 0:
            return None
        parts = [Part(self._topic, self._partition, frame[begin : begin + size])]
        return ProduceRequest(self._version, correlation_id, None, self._acks, self._timeout_ms, parts, 0, self)

    def answer(self, correlation_id: int, base_offset: int, log_start_offset: int) -> bytes:
        """The whole response frame to a request whose records were taken."""
        answer = self._answer
        _I32.pack_into(answer, _CORRELATION_AT, correlation_id)
        _OFFSETS.pack_into(answer, self._offsets_at, base_offset, -1, log_start_offset)
        return bytes(answer)


class ProduceDecoder:
    """One connection's: knows the patterns of its requests."""

    __slots__ = ("_patterns", "_records_at", "producers")

    def __init__(self) -> None:
        self._patterns: dict[bytes, Pattern] = {}
        """By what is alike: all that stands before the records' length, but for the correlation id."""
        self._records_at = 0
        self.producers: set[int] = set()
        """Idempotent producers that have written over the connection."""

    def decode(self, frame: memoryview) -> ProduceRequest:
        """As `decode_produce`.

        Raises:
            Malformed: not a request.
        """
        at = self._records_at
        if at and len(frame) >= at + LEAST_BYTES:
            pattern = self._patterns.get(_alike(frame, at))
            if pattern is not None and (request := pattern.request(frame, at)) is not None:
                return request
        request = decode_produce(frame)
        self._learn(frame, request)
        return request

    def _learn(self, frame: memoryview, request: ProduceRequest) -> None:
        if request.version < VERSION_MIN or len(request.parts) != 1 or request.transactional_id is not None:
            return
        records = request.parts[0].records
        if records is None:
            return
        flexible = request.version >= FLEXIBLE_FROM
        behind = len(_NO_TAGS) if flexible else 0
        at = len(frame) - behind - len(records) - len(length(len(records), flexible))
        alike = _alike(frame, at)
        pattern = self._patterns.get(alike) or Pattern(request)
        if pattern.request(frame, at) is None:
            return  # there are tags, or bytes that belong to nothing
        if len(self._patterns) >= PATTERNS_MAX:
            self._patterns.clear()
        self._patterns[alike] = pattern
        self._records_at = at


def _alike(frame: memoryview, records_at: int) -> bytes:
    return bytes(frame[:_CORRELATION_AT]) + frame[_REST_AT:records_at]


def encode_answer(request: ProduceRequest) -> bytes:
    """As `encode_produce`."""
    pattern = request.pattern
    if pattern is not None and not request.throttle_ms:
        [part] = request.parts
        if not part.error_code and part.leader is None:
            return pattern.answer(request.correlation_id, part.base_offset, part.log_start_offset)
    return encode_produce(request)
