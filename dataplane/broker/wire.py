"""The Kafka wire format: request frames into kio's entities, plain dicts into response frames. Of Produce and Fetch,
what carries records is in `wire_produce.py` and `wire_fetch.py`.

The codec is kio's. A response is written once, as a dict with all fields that any version has; each version's entity
takes those that it
knows. Only versions that are tested are advertised: everything that kio knows would make clients choose versions that
nobody has tried here.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import io
import struct
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kio import index
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from dataplane.broker import wire_fetch, wire_produce
from dataplane.broker.wire_lengths import check_lengths
from dataplane.broker.wire_primitives import Malformed, nullable_string

API_VERSIONS = 18
PRODUCE, FETCH = 0, 1

ADVERTISED: Mapping[int, tuple[int, int]] = {
    PRODUCE: (wire_produce.VERSION_MIN, wire_produce.VERSION_MAX),
    FETCH: (wire_fetch.VERSION_MIN, wire_fetch.VERSION_MAX),
    2: (1, 9),  # ListOffsets
    3: (1, 13),  # Metadata
    8: (2, 9),  # OffsetCommit
    9: (1, 9),  # OffsetFetch
    10: (0, 3),  # FindCoordinator
    11: (0, 9),  # JoinGroup
    12: (0, 4),  # Heartbeat
    13: (0, 5),  # LeaveGroup
    14: (0, 5),  # SyncGroup
    15: (0, 6),  # DescribeGroups
    16: (0, 5),  # ListGroups
    17: (0, 1),  # SaslHandshake
    API_VERSIONS: (0, 3),
    19: (2, 7),  # CreateTopics
    20: (1, 6),  # DeleteTopics
    21: (0, 2),  # DeleteRecords
    22: (0, 4),  # InitProducerId
    23: (2, 4),  # OffsetForLeaderEpoch
    24: (0, 3),  # AddPartitionsToTxn
    25: (0, 3),  # AddOffsetsToTxn
    26: (0, 3),  # EndTxn
    28: (0, 3),  # TxnOffsetCommit
    29: (1, 3),  # DescribeAcls
    30: (1, 3),  # CreateAcls
    31: (1, 3),  # DeleteAcls
    32: (1, 4),  # DescribeConfigs
    33: (0, 2),  # AlterConfigs
    35: (1, 4),  # DescribeLogDirs
    36: (0, 2),  # SaslAuthenticate
    37: (0, 3),  # CreatePartitions
    42: (0, 2),  # DeleteGroups
    43: (0, 2),  # ElectLeaders
    44: (0, 1),  # IncrementalAlterConfigs
    45: (0, 0),  # AlterPartitionReassignments
    46: (0, 0),  # ListPartitionReassignments
    47: (0, 0),  # OffsetDelete
    48: (0, 1),  # DescribeClientQuotas
    49: (0, 1),  # AlterClientQuotas
    50: (0, 0),  # DescribeUserScramCredentials
    51: (0, 0),  # AlterUserScramCredentials
    55: (0, 2),  # DescribeQuorum
    60: (0, 2),  # DescribeCluster
    61: (0, 0),  # DescribeProducers
    65: (0, 0),  # DescribeTransactions
    66: (0, 1),  # ListTransactions
    68: (0, 1),  # ConsumerGroupHeartbeat
    69: (0, 1),  # ConsumerGroupDescribe
    75: (0, 0),  # DescribeTopicPartitions
}
"""Api key → versions that are tested with the clients of `tests/e2e`."""

UNKNOWN_OPERATIONS = -(1 << 31)
"""What Kafka sends where authorized operations were not asked for."""

NO_THROTTLING = datetime.timedelta(0)
"""What a response says that leaves the field out."""

COUNTED_FROM_BYTES = 64 << 10
"""Smaller frames have no room for many items."""
ITEMS_MAX = 20_000
"""Items of one request, such as topics and partitions: each costs the loop tens of microseconds. A client of that many
partitions asks more than once."""

HEAD = struct.Struct(">hhi")
"""What every request begins with: api key, version, correlation id."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `body` is None when the version is not served: only ApiVersions has an answer to that."""

    api_key: int
    version: int
    correlation_id: int
    client_id: str
    body: Any


def decode(frame: bytes) -> Request:
    """Decode a request frame (without its length).

    Raises:
        Malformed: it is cut short, or not of the schema that it names.
    """
    try:
        api_key, version, correlation_id = HEAD.unpack_from(frame)
        low, high = ADVERTISED.get(api_key, (0, -1))
        if not low <= version <= high:
            return Request(api_key, version, correlation_id, "", None)
        read_header, read_body, schema = _readers(api_key, version)
        header, size = read_header(frame, 0)
        check_lengths(schema, frame, size)
        body, _ = read_body(frame, size)
        if len(frame) > COUNTED_FROM_BYTES and _items(body, ITEMS_MAX) > ITEMS_MAX:
            raise Malformed(f"more than {ITEMS_MAX} items")
        return Request(api_key, version, correlation_id, header.client_id or "", body)
    except Exception as error:  # kio's native reader raises many kinds for hostile bytes; all mean the same
        raise Malformed(f"{type(error).__name__}: {error}") from error


@functools.cache
def name_of(api_key: int) -> str:
    """Of an api, as Kafka's documents call it."""
    try:
        return index.load_request_schema(api_key, ADVERTISED[api_key][1]).__name__.removesuffix("Request")
    except KeyError:
        return str(api_key)


def client_id_of(frame: memoryview) -> str:
    """A request's client id, without decoding the rest.

    Raises:
        Malformed: it is cut short, or is no text.
    """
    try:
        return nullable_string(frame, HEAD.size, False)[0] or ""
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def _items(entity: Any, enough: int) -> int:
    """How many items the arrays of a decoded request hold, nested ones included; the count ends when it is above
    `enough`."""
    count = 0
    for name in entity.__dataclass_fields__:
        value = getattr(entity, name)
        if isinstance(value, tuple):
            count += len(value)
            for item in value if value and dataclasses.is_dataclass(value[0]) else ():
                if count > enough:
                    break
                count += _items(item, enough - count)
    return count


@functools.cache
def _readers(api_key: int, version: int) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    schema = index.load_request_schema(api_key, version)
    return entity_reader(schema.__header_schema__), entity_reader(schema), schema


def encode(request: Request, fields: Mapping[str, Any]) -> bytes:
    """The whole response frame, with its length."""
    schema = index.load_response_schema(request.api_key, request.version)
    header: Any = schema.__header_schema__
    out = io.BytesIO()
    out.write(bytes(4))
    entity_writer(header)(out, header(correlation_id=request.correlation_id))
    entity_writer(schema)(out, _build(schema, fields))
    size = out.tell() - 4
    out.seek(0)
    out.write(size.to_bytes(4, "big"))
    return out.getvalue()


def encode_unsupported(request: Request) -> bytes:
    """The answer to an ApiVersions request of an unknown version: version 0 of the response, error 35, with our ranges
    (KIP-511).
    """
    known = Request(API_VERSIONS, 0, request.correlation_id, "", None)
    return encode(known, api_versions(ErrorCode.unsupported_version))


def api_versions(error: ErrorCode = ErrorCode.none) -> dict[str, Any]:
    """ApiVersions' response."""
    keys = [{"api_key": k, "min_version": low, "max_version": high} for k, (low, high) in sorted(ADVERTISED.items())]
    return {"error_code": error, "api_keys": keys}


def _build(kind: Any, fields: Mapping[str, Any]) -> Any:
    known = {name: convert(fields[name]) for name, convert in _converters(kind) if name in fields}
    if "throttle_time" in kind.__dataclass_fields__:
        known.setdefault("throttle_time", NO_THROTTLING)
    return kind(**known)


@functools.cache
def _converters(kind: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((f.name, _converter(hints[f.name])) for f in dataclasses.fields(kind))


def _converter(hint: Any) -> Callable[[Any], Any]:
    """How a plain value becomes a field of this type."""
    for arm in typing.get_args(hint) if type(None) in typing.get_args(hint) else ():
        if arm is not type(None) and (typing.get_origin(arm) is tuple or dataclasses.is_dataclass(arm)):
            inner = _converter(arm)
            return lambda value: None if value is None else inner(value)
    if typing.get_origin(hint) is tuple:
        [item, *_] = typing.get_args(hint)
        if dataclasses.is_dataclass(item):
            return lambda values: tuple(_build(item, value) for value in values)
        return tuple
    if dataclasses.is_dataclass(hint):
        return lambda value: _build(hint, value)
    return lambda value: value
