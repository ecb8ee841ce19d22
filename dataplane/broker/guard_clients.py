"""Rules of `guard.py` for what producers and consumers ask."""

from __future__ import annotations

import dataclasses
import datetime
import typing
import uuid
from collections.abc import Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.authorize import ANY_NAME, CLUSTER_NAME, Access, Operation, ResourceType
from dataplane.broker.guard_rules import (
    DENIED,
    Fields,
    Passage,
    Rule,
    Topics,
    all_topics,
    cluster,
    error_only,
    free,
    name_of_id,
    of_cluster,
    of_each,
    of_group,
    of_topics,
    of_transaction,
    only,
    partitions_of,
    refused,
    without,
)
from dataplane.broker.wire import UNKNOWN_OPERATIONS

TOPIC, GROUP, TXN = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
GROUP_KEY, TXN_KEY = 0, 1
NOT_ATTEMPTED = ErrorCode.operation_not_attempted
_NO_PRODUCER = {"producer_id": -1, "producer_epoch": -1}
_NO_TXN = {**_NO_PRODUCER, "ongoing_txn_producer_id": -1, "ongoing_txn_producer_epoch": -1}


def _no_topic(name: str | None, error: ErrorCode, topic_id: uuid.UUID | None = None) -> Fields:
    return {
        "error_code": error,
        "name": name,
        "topic_id": topic_id or uuid.UUID(int=0),
        "is_internal": False,
        "partitions": (),
        "topic_authorized_operations": UNKNOWN_OPERATIONS,
    }


def _metadata(body: Any, access: Access, topics: Topics) -> Passage:
    """What may not be described is denied where it was asked for by name, and is nowhere else: not among all topics,
    and not under its id."""

    def describable(answer: Mapping[str, Any]) -> bool:
        return answer["name"] is None or access.allowed(TOPIC, answer["name"], Operation.DESCRIBE)

    if body.topics is None:
        return Passage(body, lambda fields: only(fields, "topics", describable))
    creates = getattr(body, "allow_auto_topic_creation", True)

    def permitted(name: str) -> bool:
        if not access.allowed(TOPIC, name, Operation.DESCRIBE):
            return False
        return not creates or topics.topic(name) is not None or _may_create(name, access)

    denied = [topic for topic in body.topics if topic.name is not None and not permitted(topic.name)]
    by_name = without(
        body, "topics", denied, "topics", [_no_topic(t.name, ErrorCode.topic_authorization_failed) for t in denied]
    )

    def finish(fields: Fields) -> Fields:
        shown = [
            t if describable(t) else _no_topic(None, ErrorCode.unknown_topic_id, t["topic_id"])
            for t in fields["topics"]
        ]
        return by_name.finish({**fields, "topics": shown})

    return Passage(by_name.body, finish)


def _may_create(name: str, access: Access) -> bool:
    return cluster(access, Operation.CREATE) or access.allowed(TOPIC, name, Operation.CREATE)


def _described_partitions(body: Any, access: Access, topics: Topics) -> Passage:
    """DescribeTopicPartitions, where none asked for means all: what is asked for then is all that may be described, so
    that no page ends at the name of another."""

    def describable(name: str) -> bool:
        return access.allowed(TOPIC, name, Operation.DESCRIBE)

    asked, denied = body.topics, [topic for topic in body.topics if not describable(topic.name)]
    if not asked:
        [item, *_] = typing.get_args(typing.get_type_hints(type(body))["topics"])
        asked = tuple(item(name=name) for name in sorted(topics.topics()) if describable(name))
    left = tuple(topic for topic in asked if describable(topic.name))
    answers = [_no_topic(topic.name, ErrorCode.topic_authorization_failed) for topic in denied]
    if not left:
        return refused({"topics": answers, "next_cursor": None})
    return Passage(
        dataclasses.replace(body, topics=left),
        lambda fields: {**fields, "topics": [*fields["topics"], *answers]},
    )


def _by_name_or_id(body: Any, access: Access, topics: Topics, operation: Operation, answer: Any) -> Passage:
    """Topics of OffsetCommit, which later versions name by their ids."""

    def denied(topic: Any) -> bool:
        name = getattr(topic, "name", None) or name_of_id(getattr(topic, "topic_id", None), topics)
        return name is not None and not access.allowed(TOPIC, name, operation)

    bad = [topic for topic in body.topics if denied(topic)]
    return without(body, "topics", bad, "topics", [answer(t, ErrorCode.topic_authorization_failed) for t in bad])


def _topic_refused(topic: Any, error: ErrorCode) -> Fields:
    parts = [{"partition_index": p.partition_index, "error_code": error} for p in topic.partitions]
    return {"name": getattr(topic, "name", None), "topic_id": getattr(topic, "topic_id", None), "partitions": parts}


def _commit_topics(body: Any, access: Access, topics: Topics) -> Passage:
    return _by_name_or_id(body, access, topics, Operation.READ, _topic_refused)


def _offset_fetch(body: Any, access: Access, topics: Topics) -> Passage:
    """Offsets of a group: of topics that may not be described they are hidden, and denied where they were asked for."""
    if not hasattr(body, "groups"):
        if not access.allowed(GROUP, body.group_id, Operation.DESCRIBE):
            return refused(_group_offsets_refused(body, ErrorCode.group_authorization_failed))
        return Passage(body, lambda fields: _hide_offsets(fields, body.topics, access, topics))
    asked = {group.group_id: group for group in body.groups}
    denied = [group for group in body.groups if not access.allowed(GROUP, group.group_id, Operation.DESCRIBE)]
    answers = [_group_offsets_refused(group, ErrorCode.group_authorization_failed) for group in denied]
    passed = without(body, "groups", denied, "groups", answers)

    def finish(fields: Fields) -> Fields:
        shown = [_hide_offsets(g, asked[g["group_id"]].topics, access, topics) for g in fields.get("groups") or ()]
        return passed.finish({**fields, "groups": shown})

    return Passage(passed.body, finish)


def _group_offsets_refused(asked: Any, error: ErrorCode) -> Fields:
    answers = [_offsets_refused(topic, error) for topic in asked.topics or ()]
    return {"group_id": asked.group_id, "error_code": error, "topics": answers}


def _offsets_refused(topic: Any, error: ErrorCode) -> Fields:
    parts = [_no_offset(index, error) for index in topic.partition_indexes]
    return {"name": getattr(topic, "name", None), "topic_id": getattr(topic, "topic_id", None), "partitions": parts}


def _no_offset(index: int, error: ErrorCode) -> Fields:
    return {
        "partition_index": index,
        "committed_offset": -1,
        "committed_leader_epoch": -1,
        "metadata": "",
        "error_code": error,
    }


def _hide_offsets(fields: Fields, asked: Any, access: Access, topics: Topics) -> Fields:
    def describable(topic: Mapping[str, Any]) -> bool:
        name = topic.get("name") or name_of_id(topic.get("topic_id"), topics)
        return name is None or access.allowed(TOPIC, name, Operation.DESCRIBE)

    shown = []
    for topic in fields.get("topics") or ():
        if describable(topic):
            shown.append(topic)
        elif asked is not None:
            error = ErrorCode.topic_authorization_failed
            shown.append(
                {**topic, "partitions": [_no_offset(p["partition_index"], error) for p in topic["partitions"]]}
            )
    return {**fields, "topics": shown}


_KEY_KINDS = {GROUP_KEY: GROUP, TXN_KEY: TXN}


def _find_coordinator(body: Any, access: Access, topics: Topics) -> Passage:
    kind = _KEY_KINDS.get(getattr(body, "key_type", GROUP_KEY))
    if kind is None:
        return Passage(body)
    nobody = {"error_code": DENIED[kind], "error_message": None, "node_id": -1, "host": "", "port": -1}
    if hasattr(body, "key"):
        return Passage(body) if access.allowed(kind, body.key, Operation.DESCRIBE) else refused(nobody)
    denied = [key for key in body.coordinator_keys if not access.allowed(kind, key, Operation.DESCRIBE)]
    answers = [{**nobody, "key": key} for key in denied]
    return without(body, "coordinator_keys", denied, "coordinators", answers)


def _list_groups(body: Any, access: Access, topics: Topics) -> Passage:
    if cluster(access, Operation.DESCRIBE):
        return Passage(body)
    return Passage(
        body, lambda fields: only(fields, "groups", lambda g: access.allowed(GROUP, g["group_id"], Operation.DESCRIBE))
    )


def _join_refused(body: Any, error: ErrorCode) -> Fields:
    empty = {"protocol_type": None, "protocol_name": "", "leader": "", "member_id": "", "members": ()}
    return {"error_code": error, "generation_id": -1, **empty}


def _sync_refused(body: Any, error: ErrorCode) -> Fields:
    return {"error_code": error, "protocol_type": None, "protocol_name": None, "assignment": b""}


def _group_refused(group_id: Any, error: ErrorCode) -> Fields:
    classic = {"protocol_type": "", "protocol_data": ""}
    consumer = {"group_epoch": 0, "assignment_epoch": 0, "assignor_name": ""}
    common = {"group_state": "", "members": (), "authorized_operations": UNKNOWN_OPERATIONS}
    return {"error_code": error, "error_message": None, "group_id": group_id, **common, **classic, **consumer}


_describe_consumer_groups = of_each(
    GROUP, Operation.DESCRIBE, asked="group_ids", answered="groups", name=str, answer=_group_refused
)


def _consumer_groups(body: Any, access: Access, topics: Topics) -> Passage:
    """A group whose members have topics that may not be described would tell their names."""
    passed = _describe_consumer_groups(body, access, topics)

    def names(group: Mapping[str, Any]) -> set[str]:
        found: set[str] = set()
        for member in group["members"]:
            found.update(member["subscribed_topic_names"])
            for field in ("assignment", "target_assignment"):
                found.update(part["topic_name"] for part in member[field]["topic_partitions"])
        return found

    def finish(fields: Fields) -> Fields:
        shown = [
            group
            if all(access.allowed(TOPIC, name, Operation.DESCRIBE) for name in names(group))
            else _group_refused(group["group_id"], ErrorCode.topic_authorization_failed)
            for group in fields.get("groups") or ()
        ]
        return passed.finish({**fields, "groups": shown})

    return Passage(passed.body, finish)


def _beat_refused(body: Any, error: ErrorCode) -> Fields:
    nothing = {"member_id": body.member_id, "member_epoch": 0, "assignment": None}
    return {"error_code": error, "error_message": None, "heartbeat_interval": datetime.timedelta(0), **nothing}


def _subscribed(body: Any, access: Access, topics: Topics) -> Passage:
    names = [*(body.subscribed_topic_names or ())]
    if getattr(body, "subscribed_topic_regex", None):
        names.append(ANY_NAME)  # it is matched by the coordinator, which knows all topics
    if all(access.allowed(TOPIC, name, Operation.DESCRIBE) for name in names):
        return Passage(body)
    return refused(_beat_refused(body, ErrorCode.topic_authorization_failed))


# ── producers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _init_producer_id(body: Any, access: Access, topics: Topics) -> Passage:
    if body.transactional_id is not None:
        allowed = access.may_transact(body.transactional_id)
        error = DENIED[TXN]
    else:
        allowed = access.allowed(
            ResourceType.CLUSTER, CLUSTER_NAME, Operation.IDEMPOTENT_WRITE
        ) or access.allowed_somewhere(TOPIC, Operation.WRITE)
        error = DENIED[ResourceType.CLUSTER]
    return Passage(body) if allowed else refused({"error_code": error, **_NO_TXN})


def _add_partitions(body: Any, access: Access, topics: Topics) -> Passage:
    if not hasattr(body, "v3_and_below_topics"):  # later versions are for brokers, which do not come this way
        if cluster(access, Operation.CLUSTER_ACTION):
            return Passage(body)
        return refused({"error_code": ErrorCode.cluster_authorization_failed, "results_by_transaction": ()})
    asked = body.v3_and_below_topics
    if not access.may_transact(body.v3_and_below_transactional_id):
        return refused({"results_by_topic_v3_and_below": [_not_added(topic, DENIED[TXN]) for topic in asked]})
    denied = {topic.name for topic in asked if not access.may_write(topic.name)}
    if not denied:
        return Passage(body)
    # All or nothing, as in Kafka: a transaction is not begun on some of its partitions.
    answers = [_not_added(t, DENIED[TOPIC] if t.name in denied else NOT_ATTEMPTED) for t in asked]
    return refused({"results_by_topic_v3_and_below": answers})


def _not_added(topic: Any, error: ErrorCode) -> Fields:
    parts = [{"partition_index": index, "partition_error_code": error} for index in topic.partitions]
    return {"name": topic.name, "results_by_partition": parts}


def _markers_refused(body: Any, error: ErrorCode) -> Fields:
    answer = partitions_of(asked="partition_indexes")
    markers = [
        {"producer_id": marker.producer_id, "topics": [answer(topic, error) for topic in marker.topics]}
        for marker in body.markers
    ]
    return {"markers": markers}


_group_read = of_group(Operation.READ, all_topics(_topic_refused), then=_commit_topics)


CLIENT_RULES: Mapping[int, Rule] = {
    2: of_topics(Operation.DESCRIBE, partitions_of()),  # ListOffsets
    3: _metadata,
    8: _group_read,  # OffsetCommit
    9: _offset_fetch,
    10: _find_coordinator,
    11: of_group(Operation.READ, _join_refused),
    12: of_group(Operation.READ, error_only()),  # Heartbeat
    13: of_group(Operation.READ, error_only("members")),  # LeaveGroup
    14: of_group(Operation.READ, _sync_refused),
    15: of_each(GROUP, Operation.DESCRIBE, asked="groups", answered="groups", name=str, answer=_group_refused),
    16: _list_groups,
    22: _init_producer_id,
    23: of_topics(Operation.DESCRIBE, partitions_of(index="partition", name="topic"), name="topic"),
    24: _add_partitions,
    25: of_transaction(error_only(), then=of_group(Operation.READ, error_only())),  # AddOffsetsToTxn
    26: of_transaction(error_only(**_NO_PRODUCER)),  # EndTxn
    27: of_cluster(Operation.CLUSTER_ACTION, _markers_refused),
    28: of_transaction(all_topics(_topic_refused), then=_group_read),  # TxnOffsetCommit
    60: free,  # DescribeCluster says where the brokers are, as Metadata does
    68: of_group(Operation.READ, _beat_refused, then=_subscribed),  # ConsumerGroupHeartbeat
    69: _consumer_groups,
    75: _described_partitions,
}
