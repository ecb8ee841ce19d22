"""A partition's reassignment as any Kafka client would ask for it, over one socket. librdkafka has no call for it; the
wire codec is a library's.

Imported only when a partition is moved: the codec costs a tenth of a second.
"""

from __future__ import annotations

import datetime
import io
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from kio.schema.alter_partition_reassignments.v0.request import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)
from kio.schema.alter_partition_reassignments.v0.response import AlterPartitionReassignmentsResponse
from kio.schema.errors import ErrorCode
from kio.schema.metadata.v12.request import MetadataRequest, MetadataRequestTopic
from kio.schema.metadata.v12.response import MetadataResponse
from kio.schema.request_header.v2.header import RequestHeader
from kio.schema.response_header.v1.header import ResponseHeader
from kio.schema.types import BrokerId, TopicName
from kio.serial import entity_reader, entity_writer
from kio.static.primitive import i32, i32Timedelta

from providers.base.errors import Corrupt, Invalid, NotFound, Unavailable

R = TypeVar("R")

CLIENT_ID = "yunhe-move"
ANSWER_BYTES_MAX = 16 << 20
CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Place:
    """Who leads a partition, and under which epoch. `leader` is None while nobody does."""

    leader: int | None
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """What metadata says. `brokers`: node id → (host, port)."""

    brokers: Mapping[int, tuple[str, int]]
    controller: int
    partitions: Mapping[int, Place]


def describe(address: tuple[str, int], topic: str, *, timeout_s: float) -> Cluster:
    """Ask a broker about a topic.

    Raises:
        NotFound: no such topic.
        Unavailable: no answer.
    """
    request = MetadataRequest(
        topics=(MetadataRequestTopic(topic_id=None, name=TopicName(topic)),),
        allow_auto_topic_creation=False,
        include_topic_authorized_operations=False,
    )
    answer = _call(address, request, MetadataResponse, timeout_s)
    [found] = answer.topics
    if found.error_code is ErrorCode.unknown_topic_or_partition:
        raise NotFound(f"no topic is named {topic}")
    _require(found.error_code, None)
    return Cluster(
        brokers={int(b.node_id): (b.host, int(b.port)) for b in answer.brokers},
        controller=int(answer.controller_id),
        partitions={
            int(p.partition_index): Place(int(p.leader_id) if p.leader_id >= 0 else None, int(p.leader_epoch))
            for p in found.partitions
        },
    )


def reassign(address: tuple[str, int], topic: str, partition: int, to: int, *, timeout_s: float) -> None:
    """Ask the broker at `address` (the controller) to give a partition to node `to`.

    Raises:
        Invalid, NotFound: refused.
        Unavailable: no answer; it may have been carried out.
    """
    request = AlterPartitionReassignmentsRequest(
        timeout=i32Timedelta.parse(datetime.timedelta(seconds=timeout_s)),
        topics=(
            ReassignableTopic(
                name=TopicName(topic),
                partitions=(ReassignablePartition(partition_index=i32(partition), replicas=(BrokerId(i32(to)),)),),
            ),
        ),
    )
    answer = _call(address, request, AlterPartitionReassignmentsResponse, timeout_s)
    _require(answer.error_code, answer.error_message)
    for one in answer.responses:
        for result in one.partitions:
            _require(result.error_code, result.error_message)


def _require(code: ErrorCode, message: str | None) -> None:
    if code is ErrorCode.none:
        return
    said = message or code.name.replace("_", " ")
    if code.retriable:
        raise Unavailable(f"the broker refused for now: {said}")
    raise Invalid(f"the broker refused: {said}")


def _call(address: tuple[str, int], request: Any, answer: type[R], timeout_s: float) -> R:
    kind = type(request)
    header = RequestHeader(
        request_api_key=kind.__api_key__,
        request_api_version=kind.__version__,
        correlation_id=i32(1),
        client_id=CLIENT_ID,
    )
    buffer = io.BytesIO()
    entity_writer(RequestHeader)(buffer, header)
    entity_writer(kind)(buffer, request)
    frame = buffer.getvalue()
    try:
        with socket.create_connection(address, timeout=CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(len(frame).to_bytes(4, "big") + frame)
            size = int.from_bytes(_read(connection, 4), "big")
            if size > ANSWER_BYTES_MAX:
                raise Corrupt(
                    f"the broker at {address[0]}:{address[1]} answers with {size} bytes: it does not speak Kafka"
                )
            body = _read(connection, size)
    except OSError as error:
        raise Unavailable(f"the broker at {address[0]}:{address[1]} does not answer: {error}") from error
    _, used = entity_reader(ResponseHeader)(body, 0)
    value, _ = entity_reader(answer)(body, used)  # type: ignore[type-var]
    return value


def _read(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("it closed the connection")
        parts += part
    return bytes(parts)
