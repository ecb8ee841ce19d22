"""Metadata, DescribeCluster, FindCoordinator: who serves what."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import BrokerView, Engine, KafkaError, PartitionView, TopicView
from dataplane.broker.groups import OFFSETS_TOPIC, OFFSETS_TOPIC_PARTITIONS, coordinator_partition
from dataplane.broker.transactions import TRANSACTIONS_TOPIC, TRANSACTIONS_TOPIC_PARTITIONS
from dataplane.broker.wire import UNKNOWN_OPERATIONS
from dataplane.broker.zones import ZoneReaders

NO_ID = uuid.UUID(int=0)
GROUP_KEY = 0
COORDINATORS = {
    GROUP_KEY: (OFFSETS_TOPIC, OFFSETS_TOPIC_PARTITIONS),
    1: (TRANSACTIONS_TOPIC, TRANSACTIONS_TOPIC_PARTITIONS),
}
"""FindCoordinator's key type → the topic whose partitions coordinate, and how many it is created with."""
NAMELESS_FROM = 12
"""Metadata version from which an answer's topic may have no name."""
BROKERS = 1
"""Endpoint type of DescribeCluster; the other one is controllers (KIP-919)."""


class Metadata:
    """Handlers over an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def metadata(self, request: Any) -> dict[str, Any]:
        brokers = self._engine.brokers()
        readers = ZoneReaders(brokers if self._engine.zone_reads else ())
        if request.topics is None:
            topics = [_topic(view, readers) for view in self._engine.topics().values()]
        else:
            topics = [await self._asked(topic, request, readers) for topic in request.topics]
        return {
            "error_code": ErrorCode.none,
            "brokers": [_broker(b, "node_id") for b in brokers],
            "cluster_id": self._engine.cluster_id,
            "controller_id": _or_none(self._engine.controller_id),
            "topics": topics,
        }

    async def _asked(self, asked: Any, request: Any, readers: ZoneReaders) -> dict[str, Any]:
        name = asked.name
        if name is None:
            found = self._engine.topic_name(asked.topic_id or NO_ID)
            by_id = self._engine.topic(found) if found is not None else None
            if by_id is not None:
                return _topic(by_id, readers)
            nameless = None if request.__version__ >= NAMELESS_FROM else ""
            return _no_topic(nameless, ErrorCode.unknown_topic_id, asked.topic_id or NO_ID)
        known = self._engine.topic(name)
        if known is not None:
            return _topic(known, readers)
        if not getattr(request, "allow_auto_topic_creation", True):
            return _no_topic(name, ErrorCode.unknown_topic_or_partition)
        if not valid_name(name):
            return _no_topic(name, ErrorCode.invalid_topic_exception)
        try:
            return _topic(await self._engine.create_topic(name, 1, {}), readers)
        except KafkaError as error:
            code = ErrorCode(error.code)
            retriable = code in (ErrorCode.topic_already_exists, ErrorCode.request_timed_out)
            return _no_topic(name, ErrorCode.leader_not_available if retriable else code)

    async def describe_cluster(self, request: Any) -> dict[str, Any]:
        endpoint_type = getattr(request, "endpoint_type", BROKERS)
        answer = {
            "endpoint_type": endpoint_type,
            "cluster_id": self._engine.cluster_id,
            "controller_id": _or_none(self._engine.controller_id),
            # A fenced broker has no address: what is known of it is that nobody must connect there.
            "brokers": [{**_broker(b, "broker_id"), "is_fenced": False} for b in self._engine.brokers()],
            "cluster_authorized_operations": UNKNOWN_OPERATIONS,
        }
        if endpoint_type == BROKERS:
            return {**answer, "error_code": ErrorCode.none, "error_message": None}
        message = "this is a broker's listener; controllers have none of their own"
        return {**answer, "error_code": ErrorCode.mismatched_endpoint_type, "error_message": message, "brokers": ()}

    async def find_coordinator(self, request: Any) -> dict[str, Any]:
        """The owner of the partition of an internal topic that a group, or a transactional id, belongs to. The topic is
        created when it is first needed."""
        nobody = {"error_message": None, "node_id": -1, "host": "", "port": -1}
        kind = getattr(request, "key_type", GROUP_KEY)
        if kind not in COORDINATORS:
            return {**nobody, "error_code": ErrorCode.invalid_request, "error_message": f"no key type {kind}"}
        name, partitions = COORDINATORS[kind]
        if self._engine.topic(name) is None:
            try:
                await self._engine.create_topic(name, partitions, {}, internal=True)
            except KafkaError:
                pass  # somebody else was first, or the bucket is slow: the client asks again
        topic = self._engine.topic(name)
        if topic is not None:
            leader = topic.partitions[coordinator_partition(request.key, len(topic.partitions))].leader
            for broker in self._engine.brokers():
                if broker.node_id == leader:
                    return {"error_code": ErrorCode.none, "error_message": None, **_broker(broker, "node_id")}
        return {**nobody, "error_code": ErrorCode.coordinator_not_available}


def _topic(view: TopicView, readers: ZoneReaders) -> dict[str, Any]:
    """A topic as clients see it. Its replicas are who may be read from (KIP-392): a leader's advice is followed only to
    one of those."""
    parts = view.partitions
    return {
        "error_code": ErrorCode.none,
        "name": view.name,
        "topic_id": uuid.UUID(hex=view.topic_id),
        "is_internal": view.internal,
        "partitions": [partition_fields(p, None if view.internal else readers.replicas(p)) for p in parts],
        "topic_authorized_operations": UNKNOWN_OPERATIONS,
    }


def partition_fields(part: PartitionView, replicas: Sequence[int] | None = None) -> dict[str, Any]:
    """A partition as Metadata and, to administrators, DescribeTopicPartitions show it. Left out, there is one replica:
    the durability is the WAL's and the object store's, not other brokers'."""
    if replicas is None:
        replicas = () if part.leader is None else (part.leader,)
    return {
        "error_code": ErrorCode.none if part.leader is not None else ErrorCode.leader_not_available,
        "partition_index": part.partition,
        "leader_id": _or_none(part.leader),
        "leader_epoch": part.leader_epoch,
        "replica_nodes": replicas,
        "isr_nodes": replicas,
        "offline_replicas": (),
    }


def valid_name(name: str) -> bool:
    """Kafka's rule for topic names: letters, digits, dot, underscore, hyphen; 249 at most; not . or .."""
    return (
        0 < len(name) <= 249
        and name not in (".", "..")
        and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    )


def _broker(broker: BrokerView, id_field: str) -> dict[str, Any]:
    return {id_field: broker.node_id, "host": broker.host, "port": broker.port, "rack": broker.rack}


def _or_none(node: int | None) -> int:
    return -1 if node is None else node


def _no_topic(name: str | None, error: ErrorCode, topic_id: uuid.UUID = NO_ID) -> dict[str, Any]:
    return {
        "error_code": error,
        "name": name,
        "topic_id": topic_id,
        "is_internal": False,
        "partitions": (),
        "topic_authorized_operations": UNKNOWN_OPERATIONS,
    }
