"""Topics, partitions, records, configs and moves, as Kafka's admin clients ask for them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError, TopicView
from dataplane.broker.handlers.config_entries import (
    BOOLEAN,
    INT,
    LONG,
    STRING,
    BrokerConfigEntry,
    broker_entries,
    topic_entries,
)
from dataplane.broker.handlers.metadata import NO_ID, valid_name
from dataplane.broker.handlers.produce import BATCH_BYTES_MAX
from dataplane.broker.handlers.topic_configs import CHANGEABLE, TOPIC_DEFAULTS, UNSET, changed, check_config

DEFAULT_PARTITIONS = 1
PARTITIONS_MAX = 1_000
"""Partitions one request may create: they travel in one ledger entry."""
TOPIC, BROKER = 2, 4
"""Config resource types (Kafka's ConfigResource.Type)."""


class Admin:
    """Handlers over an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create_topics(self, request: Any) -> dict[str, Any]:
        named = Counter(topic.name for topic in request.topics)
        answers = [await self._create(t, request.validate_only, named[t.name] > 1) for t in request.topics]
        return {"topics": answers}

    async def _create(self, topic: Any, validate_only: bool, repeated: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "name": topic.name,
            "topic_id": NO_ID,
            "error_code": ErrorCode.none,
            "error_message": None,
            "configs": None,
        }
        try:
            if repeated:
                raise KafkaError(ErrorCode.invalid_request.value, f"topic {topic.name} is named more than once")
            partitions, configs, owners = self._checked(topic)
            if self._engine.topic(topic.name) is not None:
                raise KafkaError(ErrorCode.topic_already_exists.value, f"topic {topic.name} exists")
            if not validate_only:
                view = await self._engine.create_topic(topic.name, partitions, configs, owners=owners)
                answer |= {"topic_id": uuid.UUID(hex=view.topic_id)}
            entries = topic_entries(configs, TOPIC_DEFAULTS, CHANGEABLE)
            return {**answer, "num_partitions": partitions, "replication_factor": 1, "configs": entries}
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code), "error_message": error.message}

    def _checked(self, topic: Any) -> tuple[int, dict[str, str], list[int] | None]:
        """Partitions, configs, and owners where the client names them."""
        if not valid_name(topic.name):
            raise KafkaError(ErrorCode.invalid_topic_exception.value, f"{topic.name!r} is not a valid topic name")
        configs = {c.name: c.value or "" for c in topic.configs}
        for name, value in configs.items():
            check_config(name, value)
        partitions = DEFAULT_PARTITIONS if topic.num_partitions == -1 else topic.num_partitions
        # Any replication factor is taken: durability does not come from copies on brokers.
        if topic.replication_factor < 1 and topic.replication_factor != -1:
            raise KafkaError(ErrorCode.invalid_replication_factor.value, "a replication factor is at least 1")
        if not topic.assignments:
            if not 1 <= partitions <= PARTITIONS_MAX:
                raise KafkaError(ErrorCode.invalid_partitions.value, f"a topic has 1 to {PARTITIONS_MAX} partitions")
            return partitions, configs, None
        if (topic.num_partitions, topic.replication_factor) != (-1, -1):
            raise KafkaError(ErrorCode.invalid_request.value, "name either owners, or how many partitions")
        placed = {a.partition_index: a.broker_ids for a in topic.assignments}
        if set(placed) != set(range(len(topic.assignments))):
            raise KafkaError(ErrorCode.invalid_replica_assignment.value, "partitions are numbered from 0, each once")
        owners = self._owners([placed[i] for i in range(len(placed))])
        return len(owners), configs, owners

    def _owners(self, assignments: Sequence[Sequence[int]]) -> list[int]:
        """The one broker that each names.

        Raises:
            KafkaError: INVALID_REPLICA_ASSIGNMENT.
        """
        live = {broker.node_id for broker in self._engine.brokers()}
        for replicas in assignments:
            if len(replicas) != 1:
                raise KafkaError(
                    ErrorCode.invalid_replica_assignment.value, "name one broker: a partition has one owner"
                )
            if replicas[0] not in live:
                raise KafkaError(ErrorCode.invalid_replica_assignment.value, f"broker {replicas[0]} is not live")
        return [int(replicas[0]) for replicas in assignments]

    async def delete_topics(self, request: Any) -> dict[str, Any]:
        if hasattr(request, "topic_names"):
            return {"responses": [await self._delete(name, None) for name in request.topic_names]}
        return {"responses": [await self._delete(topic.name, topic.topic_id) for topic in request.topics]}

    async def _delete(self, name: str | None, topic_id: uuid.UUID | None) -> dict[str, Any]:
        """By its name, or by its id."""
        answer = {"name": name, "topic_id": topic_id or NO_ID, "error_code": ErrorCode.none, "error_message": None}
        if name is None:
            name = self._engine.topic_name(topic_id or NO_ID)
            if name is None:
                return {**answer, "error_code": ErrorCode.unknown_topic_id}
        elif topic_id is not None and topic_id != NO_ID:
            return {**answer, "error_code": ErrorCode.invalid_request, "error_message": "name a topic, or its id"}
        code, message = await _code(self._engine.delete_topic(name))
        return {**answer, "name": name, "error_code": code, "error_message": message}

    async def create_partitions(self, request: Any) -> dict[str, Any]:
        answers = []
        for topic in request.topics:
            code, message = await _code(self._grow(topic, request.validate_only))
            answers.append({"name": topic.name, "error_code": code, "error_message": message})
        return {"results": answers}

    async def _grow(self, topic: Any, validate_only: bool) -> None:
        known = self._engine.topic(topic.name)
        if known is None:
            raise KafkaError(ErrorCode.unknown_topic_or_partition.value, f"topic {topic.name} does not exist")
        present = len(known.partitions)
        if not present < topic.count <= PARTITIONS_MAX:
            raise KafkaError(
                ErrorCode.invalid_partitions.value,
                f"{topic.name} has {present} partitions; ask for more, {PARTITIONS_MAX} at most",
            )
        owners = None
        if topic.assignments is not None:
            owners = self._owners([a.broker_ids for a in topic.assignments])
            if len(owners) != topic.count - present:
                raise KafkaError(
                    ErrorCode.invalid_replica_assignment.value, f"{topic.count - present} partitions are new"
                )
        if not validate_only:
            await self._engine.add_partitions(topic.name, topic.count, owners)

    async def delete_records(self, request: Any) -> dict[str, Any]:
        topics = []
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                answer = {"partition_index": part.partition_index, "low_watermark": -1, "error_code": ErrorCode.none}
                try:
                    answer["low_watermark"] = await self._engine.delete_records(
                        topic.name, part.partition_index, part.offset
                    )
                except KafkaError as error:
                    answer["error_code"] = ErrorCode(error.code)
                parts.append(answer)
            topics.append({"name": topic.name, "partitions": parts})
        return {"topics": topics}

    async def describe_configs(self, request: Any) -> dict[str, Any]:
        shown = {
            "synonyms": getattr(request, "include_synonyms", False),
            "documentation": getattr(request, "include_documentation", False),
        }
        return {"results": [self._describe(resource, shown) for resource in request.resources]}

    def _describe(self, resource: Any, shown: Mapping[str, bool]) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "error_code": ErrorCode.none,
            "error_message": None,
            "resource_type": resource.resource_type,
            "resource_name": resource.resource_name,
            "configs": (),
        }
        name, wanted = resource.resource_name, resource.configuration_keys
        if resource.resource_type == BROKER:
            if name not in ("", str(self._engine.node_id)):
                message = f"this is broker {self._engine.node_id}"
                return {**answer, "error_code": ErrorCode.invalid_request, "error_message": message}
            # Without a name: what was set for all brokers at once, which nothing is.
            answer["configs"] = broker_entries(self._broker_configs(), wanted, **shown) if name else ()
            return answer
        if resource.resource_type != TOPIC:
            message = "only topics and brokers have configs here"
            return {**answer, "error_code": ErrorCode.invalid_request, "error_message": message}
        topic = self._engine.topic(name)
        if topic is None:
            return {**answer, "error_code": ErrorCode.unknown_topic_or_partition}
        answer["configs"] = topic_entries(topic.configs, TOPIC_DEFAULTS, CHANGEABLE, wanted, **shown)
        return answer

    def _broker_configs(self) -> list[BrokerConfigEntry]:
        """What holds for this broker, under Kafka's names."""
        me = next((b for b in self._engine.brokers() if b.node_id == self._engine.node_id), None)
        node = str(self._engine.node_id)
        entries = [BrokerConfigEntry(name, node, INT, "This broker's id.", True) for name in ("broker.id", "node.id")]
        if me is not None:
            listener = f"PLAINTEXT://{me.host}:{me.port}"
            entries.append(BrokerConfigEntry("advertised.listeners", listener, STRING, "Where clients connect.", True))
            entries.append(BrokerConfigEntry("broker.rack", me.rack, STRING, "The zone it runs in.", True))
        entries += [
            BrokerConfigEntry("auto.create.topics.enable", "true", BOOLEAN, "Whether asking for a topic makes it."),
            BrokerConfigEntry("default.replication.factor", "1", INT, "One owner; durability is the WAL's."),
            BrokerConfigEntry("delete.topic.enable", "true", BOOLEAN, "Whether topics can be deleted."),
            BrokerConfigEntry("log.cleanup.policy", TOPIC_DEFAULTS["cleanup.policy"], STRING, "Of new topics."),
            BrokerConfigEntry("log.retention.bytes", TOPIC_DEFAULTS["retention.bytes"], LONG, "Of new topics."),
            BrokerConfigEntry("log.retention.ms", TOPIC_DEFAULTS["retention.ms"], LONG, "Of new topics."),
            BrokerConfigEntry("message.max.bytes", str(BATCH_BYTES_MAX), INT, "Of one record batch."),
            BrokerConfigEntry("min.insync.replicas", "1", INT, "One owner; durability is the WAL's."),
            BrokerConfigEntry("num.partitions", str(DEFAULT_PARTITIONS), INT, "Of topics that name no number."),
        ]
        return entries

    async def alter_configs(self, request: Any) -> dict[str, Any]:
        """The older way: what is named is set, and what is not named goes back to its default."""
        return {
            "responses": [await self._altered(r, self._replace(r, request.validate_only)) for r in request.resources]
        }

    async def _replace(self, resource: Any, validate_only: bool) -> None:
        topic = self._alterable(resource)
        configs = {change.name: change.value or "" for change in resource.configs}
        for name, value in configs.items():
            check_config(name, value)
        if not validate_only and configs != topic.configs:
            await self._engine.configure_topic(topic.name, configs)

    async def incremental_alter_configs(self, request: Any) -> dict[str, Any]:
        return {"responses": [await self._altered(r, self._alter(r, request.validate_only)) for r in request.resources]}

    async def _altered(self, resource: Any, work: Any) -> dict[str, Any]:
        code, message = await _code(work)
        return {
            "error_code": code,
            "error_message": message,
            "resource_type": resource.resource_type,
            "resource_name": resource.resource_name,
        }

    def _alterable(self, resource: Any) -> TopicView:
        """
        Raises:
            KafkaError: it has no configs that can be altered.
        """
        if resource.resource_type != TOPIC:
            raise KafkaError(ErrorCode.invalid_request.value, "only topics have configs that can be altered")
        topic = self._engine.topic(resource.resource_name)
        if topic is None:
            raise KafkaError(ErrorCode.unknown_topic_or_partition.value, "only configs of existing topics are altered")
        if topic.internal:
            raise KafkaError(ErrorCode.invalid_topic_exception.value, "an internal topic's configs stay as they are")
        return topic

    async def _alter(self, resource: Any, validate_only: bool) -> None:
        if resource.resource_type == BROKER and all(c.config_operation == UNSET for c in resource.configs):
            return  # nothing is ever set there: kafka-reassign-partitions takes its throttles back in any case
        topic = self._alterable(resource)
        configs = dict(topic.configs)
        for change in resource.configs:
            configs = changed(configs, change.name, change.config_operation, change.value)
        if not validate_only and configs != topic.configs:
            await self._engine.configure_topic(topic.name, configs)

    async def alter_reassignments(self, request: Any) -> dict[str, Any]:
        """A move: the one replica named is the new owner. It is over when this answers."""
        topics = []
        for topic in request.topics:
            parts = []
            for part in topic.partitions:
                code, message = await self._reassign(topic.name, part)
                parts.append({"partition_index": part.partition_index, "error_code": code, "error_message": message})
            topics.append({"name": topic.name, "partitions": parts})
        return {"error_code": ErrorCode.none, "error_message": None, "responses": topics}

    async def _reassign(self, topic: str, part: Any) -> tuple[ErrorCode, str | None]:
        if part.replicas is None:
            return ErrorCode.no_reassignment_in_progress, "a move is over at once: there is nothing to cancel"
        if len(part.replicas) != 1:
            return ErrorCode.invalid_replica_assignment, "name one broker: a partition has one owner"
        return await _code(self._engine.move_partition(topic, part.partition_index, part.replicas[0]))

    async def list_reassignments(self, request: Any) -> dict[str, Any]:
        return {"error_code": ErrorCode.none, "error_message": None, "topics": ()}


async def _code(work: Any) -> tuple[ErrorCode, str | None]:
    try:
        await work
        return ErrorCode.none, None
    except KafkaError as error:
        return ErrorCode(error.code), error.message
