"""A partition's reassignment as any Kafka client would ask for it. librdkafka has no call for it; the wire codec is a
library's.

Imported only when a partition is moved: the codec costs a tenth of a second.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from kio.schema.alter_partition_reassignments.v0.request import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)
from kio.schema.alter_partition_reassignments.v0.response import AlterPartitionReassignmentsResponse
from kio.schema.errors import ErrorCode
from kio.schema.metadata.v12.request import MetadataRequest, MetadataRequestTopic
from kio.schema.metadata.v12.response import MetadataResponse
from kio.schema.types import BrokerId, TopicName
from kio.static.primitive import i32, i32Timedelta

from controlplane.cli.kafka_channel import Channel, connected
from controlplane.cli.kafka_login import OPEN, KafkaLogin
from providers.base.clock import SystemRng
from providers.base.errors import Invalid, NotFound, Unavailable


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
    """Ask a broker of an open cluster about a topic, once.

    Raises:
        As `connected` and `look`.
    """
    with connected(address, OPEN, SystemRng(), timeout_s) as channel:
        return look(channel, topic)


def look(channel: Channel, topic: str) -> Cluster:
    """Ask the broker at the other end about a topic.

    Raises:
        NotFound: no such topic.
        Unavailable: no answer.
    """
    request = MetadataRequest(
        topics=(MetadataRequestTopic(topic_id=None, name=TopicName(topic)),),
        allow_auto_topic_creation=False,
        include_topic_authorized_operations=False,
    )
    answer = channel.call(request, MetadataResponse)
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


def reassign(
    address: tuple[str, int], topic: str, partition: int, to: int, *, timeout_s: float, login: KafkaLogin = OPEN
) -> None:
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
    with connected(address, login, SystemRng(), timeout_s) as channel:
        answer = channel.call(request, AlterPartitionReassignmentsResponse)
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
