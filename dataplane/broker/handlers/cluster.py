"""What admin tools ask about a cluster rather than of it: leaders to elect, log dirs, the quorum, partitions page by
page. Kafka's questions about replicas and disks get the answers that fit one owner over shared storage.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, TopicView
from dataplane.broker.handlers.metadata import NO_ID, partition_fields
from dataplane.broker.wire import UNKNOWN_OPERATIONS

PREFERRED = 0
"""Election type of ElectLeaders (Kafka's ElectionType); the other one is unclean."""
METADATA_TOPIC = "__cluster_metadata"
"""What Kafka calls the log of its decisions: here the ledger."""
PARTITIONS_A_PAGE_MAX = 2_000
"""Kafka's own default of `max.request.partition.size.limit`."""


class Cluster:
    """Handlers over an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def elect_leaders(self, request: Any) -> dict[str, Any]:
        """A partition has one owner, which leads it: there is never anything to elect. While an owner is lost, the
        cell's controller finds the next one without being asked."""
        asked = request.topic_partitions
        if asked is None:
            # Asked for all, Kafka leaves out those that need nothing.
            wanted = [(view.name, range(len(view.partitions))) for view in self._engine.topics().values()]
        else:
            wanted = [(one.topic, one.partitions) for one in asked]
        results = []
        for topic, partitions in wanted:
            found = [self._elect(topic, p, getattr(request, "election_type", PREFERRED)) for p in partitions]
            if asked is None:
                found = [one for one in found if one["error_code"] is not ErrorCode.election_not_needed]
            if found:
                results.append({"topic": topic, "partition_result": found})
        return {"error_code": ErrorCode.none, "replica_election_results": results}

    def _elect(self, topic: str, partition: int, election_type: int) -> dict[str, Any]:
        view = self._engine.topic(topic)
        if view is None or not 0 <= partition < len(view.partitions):
            code, message = ErrorCode.unknown_topic_or_partition, f"{topic}-{partition} does not exist"
        elif view.partitions[partition].leader is not None:
            code, message = ErrorCode.election_not_needed, "its one owner leads it"
        elif election_type == PREFERRED:
            code, message = ErrorCode.preferred_leader_not_available, "its owner is lost; a take-over is under way"
        else:
            code, message = ErrorCode.eligible_leaders_not_available, "its owner is lost; a take-over is under way"
        return {"partition_id": partition, "error_code": code, "error_message": message}

    async def describe_log_dirs(self, request: Any) -> dict[str, Any]:
        """Two places a broker: its WAL, and object storage for what it owns there."""
        wanted = None
        if request.topics is not None:
            wanted = {(one.topic, partition) for one in request.topics for partition in one.partitions}
        results = []
        for place in await self._engine.log_dirs(wanted):
            topics: dict[str, list[dict[str, Any]]] = {}
            for (topic, partition), size in sorted(place.sizes.items()):
                topics.setdefault(topic, []).append(
                    {"partition_index": partition, "partition_size": size, "offset_lag": 0, "is_future_key": False}
                )
            results.append(
                {
                    "error_code": ErrorCode.none,
                    "log_dir": place.path,
                    "topics": [{"name": name, "partitions": parts} for name, parts in topics.items()],
                    "total_bytes": place.total_bytes,
                    "usable_bytes": place.usable_bytes,
                }
            )
        return {"error_code": ErrorCode.none, "results": results}

    async def describe_quorum(self, request: Any) -> dict[str, Any]:
        """The ledger as Kafka's metadata log: the controller leads it, every live broker may be elected. All read the
        same log in object storage, so that nobody lags behind in writing it."""
        topics = [
            {"topic_name": topic.topic_name, "partitions": [self._quorum(topic, p) for p in topic.partitions]}
            for topic in request.topics
        ]
        nodes = [
            {"node_id": b.node_id, "listeners": [{"name": "PLAINTEXT", "host": b.host, "port": b.port}]}
            for b in self._engine.brokers()
        ]
        return {"error_code": ErrorCode.none, "error_message": None, "topics": topics, "nodes": nodes}

    def _quorum(self, topic: Any, part: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "partition_index": part.partition_index,
            "error_code": ErrorCode.none,
            "error_message": None,
            "leader_id": -1,
            "leader_epoch": -1,
            "high_watermark": -1,
            "current_voters": (),
            "observers": (),
        }
        if topic.topic_name != METADATA_TOPIC or part.partition_index != 0:
            return {**answer, "error_code": ErrorCode.unknown_topic_or_partition}
        quorum = self._engine.quorum()
        if self._engine.controller_id is None:
            return {**answer, "error_code": ErrorCode.leader_not_available}
        voters = [
            {"replica_id": b.node_id, "replica_directory_id": NO_ID, "log_end_offset": quorum.entries}
            for b in self._engine.brokers()
        ]
        return {
            **answer,
            "leader_id": self._engine.controller_id,
            "leader_epoch": quorum.term,
            "high_watermark": quorum.entries,
            "current_voters": voters,
        }

    async def describe_topic_partitions(self, request: Any) -> dict[str, Any]:
        """Topics in the order of their names, as many partitions as the client takes at once; the cursor says where the
        next page begins."""
        names = sorted({t.name for t in request.topics} or self._engine.topics())
        first = 0
        if request.cursor is not None:
            first = request.cursor.partition_index
            if names and request.cursor.topic_name not in names:
                first = 0
            names = [name for name in names if name >= request.cursor.topic_name]
        room = min(max(request.response_partition_limit, 1), PARTITIONS_A_PAGE_MAX)
        topics: list[dict[str, Any]] = []
        for name in names:
            view = self._engine.topic(name)
            if view is None:
                topics.append(_topic(name, ErrorCode.unknown_topic_or_partition, NO_ID, False, ()))
                continue
            if room == 0:
                return {"topics": topics, "next_cursor": {"topic_name": name, "partition_index": first}}
            page = view.partitions[first : first + room]
            topics.append(
                _topic(name, ErrorCode.none, uuid.UUID(hex=view.topic_id), view.internal, list(_parts(view, page)))
            )
            room -= len(page)
            if first + len(page) < len(view.partitions):
                cursor = {"topic_name": name, "partition_index": first + len(page)}
                return {"topics": topics, "next_cursor": cursor}
            first = 0
        return {"topics": topics, "next_cursor": None}


def _parts(view: TopicView, page: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for part in page:
        yield {**partition_fields(part), "eligible_leader_replicas": (), "last_known_elr": ()}


def _topic(
    name: str, code: ErrorCode, topic_id: uuid.UUID, internal: bool, partitions: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "error_code": code,
        "name": name,
        "topic_id": topic_id,
        "is_internal": internal,
        "partitions": partitions,
        "topic_authorized_operations": UNKNOWN_OPERATIONS,
    }
