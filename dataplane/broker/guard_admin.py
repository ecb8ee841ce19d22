"""Rules of `guard.py` for what administrators ask."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.authorize import CLUSTER_NAME, Access, Operation, ResourceType
from dataplane.broker.guard_rules import (
    DENIED,
    Fields,
    Passage,
    Rule,
    Topics,
    cluster,
    error_only,
    every,
    name_of_id,
    of_cluster,
    of_each,
    of_group,
    of_topics,
    only,
    partitions_of,
    without,
)

TOPIC, GROUP, CLUSTER, TXN = (
    ResourceType.TOPIC,
    ResourceType.GROUP,
    ResourceType.CLUSTER,
    ResourceType.TRANSACTIONAL_ID,
)
_CONFIG_KINDS = {2: TOPIC, 32: GROUP}
"""Of Kafka's ConfigResource.Type; the others are the cluster's."""


def _create_topics(body: Any, access: Access, topics: Topics) -> Passage:
    if cluster(access, Operation.CREATE):
        return Passage(body)
    denied = [topic for topic in body.topics if not access.allowed(TOPIC, topic.name, Operation.CREATE)]
    return without(body, "topics", denied, "topics", [not_created(topic) for topic in denied])


def not_created(topic: Any, error: ErrorCode = DENIED[TOPIC]) -> Fields:
    """How CreateTopics refuses a topic."""
    nothing = {"topic_id": uuid.UUID(int=0), "configs": (), "topic_config_error_code": 0}
    return {"name": topic.name, "error_code": error, "error_message": None, **nothing}


def _delete_topics(body: Any, access: Access, topics: Topics) -> Passage:
    if hasattr(body, "topic_names"):
        return of_each(
            TOPIC, Operation.DELETE, asked="topic_names", answered="responses", name=str, answer=not_deleted
        )(body, access, topics)
    denied, answers = [], []
    for topic in body.topics:
        name = topic.name if topic.name is not None else name_of_id(topic.topic_id, topics)
        if name is None or access.allowed(TOPIC, name, Operation.DELETE):
            continue
        denied.append(topic)
        if topic.name is not None or access.allowed(TOPIC, name, Operation.DESCRIBE):
            answers.append({**not_deleted(name, DENIED[TOPIC]), "topic_id": topic.topic_id})
        else:
            answers.append({**not_deleted(None, ErrorCode.unknown_topic_id), "topic_id": topic.topic_id})
    return without(body, "topics", denied, "responses", answers)


def not_deleted(name: Any, error: ErrorCode) -> Fields:
    """How DeleteTopics refuses a topic."""
    return {"name": name, "topic_id": uuid.UUID(int=0), "error_code": error, "error_message": None}


def _configs(operation: Operation, answered: str) -> Rule:
    def rule(body: Any, access: Access, topics: Topics) -> Passage:
        denied, answers = [], []
        for resource in body.resources:
            kind = _CONFIG_KINDS.get(resource.resource_type, CLUSTER)
            name = CLUSTER_NAME if kind is CLUSTER else resource.resource_name
            if access.allowed(kind, name, operation):
                continue
            denied.append(resource)
            answers.append(
                {
                    "error_code": DENIED[kind],
                    "error_message": None,
                    "resource_type": resource.resource_type,
                    "resource_name": resource.resource_name,
                    "configs": (),
                }
            )
        return without(body, "resources", denied, answered, answers)

    return rule


def _not_elected(body: Any, error: ErrorCode) -> Fields:
    answer = partitions_of("partition_result", "partition_id", name="topic", error_message=None)
    return {"error_code": error, "replica_election_results": [answer(t, error) for t in body.topic_partitions or ()]}


_describe_transactions = of_each(
    TXN,
    Operation.DESCRIBE,
    asked="transactional_ids",
    answered="transaction_states",
    name=str,
    answer=lambda name, error: {
        "error_code": error,
        "transactional_id": name,
        "transaction_state": "",
        "transaction_timeout": datetime.timedelta(0),
        "transaction_start_time": datetime.datetime.fromtimestamp(0, datetime.UTC),
        "producer_id": -1,
        "producer_epoch": -1,
        "topics": (),
    },
)


def _transactions(body: Any, access: Access, topics: Topics) -> Passage:
    passed = _describe_transactions(body, access, topics)

    def finish(fields: Fields) -> Fields:
        shown = [
            only(state, "topics", lambda t: access.allowed(TOPIC, t["topic"], Operation.DESCRIBE))
            for state in fields.get("transaction_states") or ()
        ]
        return passed.finish({**fields, "transaction_states": shown})

    return Passage(passed.body, finish)


def _list_transactions(body: Any, access: Access, topics: Topics) -> Passage:
    def describable(state: Mapping[str, Any]) -> bool:
        return access.allowed(TXN, state["transactional_id"], Operation.DESCRIBE)

    return Passage(body, lambda fields: only(fields, "transaction_states", describable))


def _users_refused(body: Any, error: ErrorCode) -> Fields:
    names = dict.fromkeys(change.name for change in (*body.deletions, *body.upsertions))
    return {"results": [{"user": name, "error_code": error, "error_message": None} for name in names]}


def _quotas_refused(body: Any, error: ErrorCode) -> Fields:
    return {
        "entries": [
            {
                "error_code": error,
                "error_message": None,
                "entity": [{"entity_type": e.entity_type, "entity_name": e.entity_name} for e in entry.entity],
            }
            for entry in body.entries
        ]
    }


ADMIN_RULES: Mapping[int, Rule] = {
    19: _create_topics,
    20: _delete_topics,
    21: of_topics(Operation.DELETE, partitions_of(low_watermark=-1)),  # DeleteRecords
    29: of_cluster(Operation.DESCRIBE, error_only("resources")),  # DescribeAcls
    30: of_cluster(Operation.ALTER, lambda body, error: {"results": every(body.creations, error)}),
    31: of_cluster(
        Operation.ALTER, lambda body, error: {"filter_results": every(body.filters, error, matching_acls=())}
    ),
    32: _configs(Operation.DESCRIBE_CONFIGS, "results"),
    33: _configs(Operation.ALTER_CONFIGS, "responses"),
    35: of_cluster(Operation.DESCRIBE, error_only("results")),  # DescribeLogDirs
    37: of_topics(
        Operation.ALTER,
        lambda topic, error: {"name": topic.name, "error_code": error, "error_message": None},
        answered="results",
    ),
    42: of_each(
        GROUP,
        Operation.DELETE,
        asked="groups_names",
        answered="results",
        name=str,
        answer=lambda name, error: {"group_id": name, "error_code": error},
    ),
    43: of_cluster(Operation.ALTER, _not_elected),
    44: _configs(Operation.ALTER_CONFIGS, "responses"),
    45: of_cluster(Operation.ALTER, error_only("responses")),  # AlterPartitionReassignments
    46: of_cluster(Operation.DESCRIBE, error_only("topics")),  # ListPartitionReassignments
    47: of_group(Operation.DELETE, error_only("topics"), then=of_topics(Operation.READ, partitions_of())),
    48: of_cluster(Operation.DESCRIBE_CONFIGS, error_only("entries")),  # DescribeClientQuotas
    49: of_cluster(Operation.ALTER_CONFIGS, _quotas_refused),
    50: of_cluster(Operation.DESCRIBE, error_only("results")),  # DescribeUserScramCredentials
    51: of_cluster(Operation.ALTER, _users_refused),
    55: of_cluster(Operation.DESCRIBE, error_only("topics", "nodes")),  # DescribeQuorum
    61: of_topics(
        Operation.READ, partitions_of(asked="partition_indexes", error_message=None, active_producers=())
    ),  # DescribeProducers
    65: _transactions,
    66: _list_transactions,
}
