"""Topics, partitions, records, configs and moves, as Kafka's admin clients ask for them."""

from __future__ import annotations

import uuid
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Engine, KafkaError
from dataplane.broker.handlers.metadata import NO_ID, valid_name
from dataplane.broker.handlers.topic_configs import TOPIC_CONFIGS, changed, check_config

DEFAULT_PARTITIONS = 1
TOPIC, BROKER = 2, 4
"""Config resource types (Kafka's ConfigResource.Type)."""
DEFAULT_CONFIG, DYNAMIC_TOPIC_CONFIG = 5, 1
"""Config sources (Kafka's ConfigSource)."""


class Admin:
    """Handlers over an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create_topics(self, request: Any) -> dict[str, Any]:
        return {"topics": [await self._create(topic, request.validate_only) for topic in request.topics]}

    async def _create(self, topic: Any, validate_only: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "name": topic.name,
            "topic_id": NO_ID,
            "error_code": ErrorCode.none,
            "error_message": None,
            "configs": (),
        }
        try:
            partitions, configs = self._checked(topic)
            if self._engine.topic(topic.name) is not None:
                raise KafkaError(ErrorCode.topic_already_exists.value, f"topic {topic.name} exists")
            if not validate_only:
                view = await self._engine.create_topic(topic.name, partitions, configs)
                answer |= {"topic_id": uuid.UUID(hex=view.topic_id)}
            return {**answer, "num_partitions": partitions, "replication_factor": 1}
        except KafkaError as error:
            return {**answer, "error_code": ErrorCode(error.code), "error_message": error.message}

    def _checked(self, topic: Any) -> tuple[int, dict[str, str]]:
        if not valid_name(topic.name):
            raise KafkaError(ErrorCode.invalid_topic_exception.value, f"{topic.name!r} is not a valid topic name")
        if topic.assignments:
            raise KafkaError(
                ErrorCode.invalid_replica_assignment.value, "placement is the cluster's; move partitions afterwards"
            )
        configs = {c.name: c.value or "" for c in topic.configs}
        for name, value in configs.items():
            check_config(name, value)
        partitions = DEFAULT_PARTITIONS if topic.num_partitions == -1 else topic.num_partitions
        # Any replication factor is taken: durability does not come from copies on brokers.
        return partitions, configs

    async def delete_topics(self, request: Any) -> dict[str, Any]:
        answers = []
        for name in request.topic_names:
            error = await _code(self._engine.delete_topic(name))
            answers.append({"name": name, "error_code": error[0], "error_message": error[1]})
        return {"responses": answers}

    async def create_partitions(self, request: Any) -> dict[str, Any]:
        answers = []
        for topic in request.topics:
            code, message = ErrorCode.none, None
            if topic.assignments:
                code, message = ErrorCode.invalid_replica_assignment, "placement is the cluster's"
            elif not request.validate_only:
                code, message = await _code(self._engine.add_partitions(topic.name, topic.count))
            answers.append({"name": topic.name, "error_code": code, "error_message": message})
        return {"results": answers}

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
        return {"results": [self._describe(resource) for resource in request.resources]}

    def _describe(self, resource: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "error_code": ErrorCode.none,
            "error_message": None,
            "resource_type": resource.resource_type,
            "resource_name": resource.resource_name,
            "configs": (),
        }
        if resource.resource_type == BROKER:
            return answer
        topic = self._engine.topic(resource.resource_name)
        if resource.resource_type != TOPIC or topic is None:
            return {**answer, "error_code": ErrorCode.unknown_topic_or_partition}
        wanted = resource.configuration_keys
        answer["configs"] = [
            {
                "name": name,
                "value": topic.configs.get(name, config.default),
                "read_only": config.what is None,
                "config_source": DYNAMIC_TOPIC_CONFIG if name in topic.configs else DEFAULT_CONFIG,
                "is_sensitive": False,
                "synonyms": (),
                "documentation": None,
            }
            for name, config in TOPIC_CONFIGS.items()
            if wanted is None or name in wanted
        ]
        return answer

    async def incremental_alter_configs(self, request: Any) -> dict[str, Any]:
        answers = []
        for resource in request.resources:
            code, message = await _code(self._alter(resource, request.validate_only))
            answers.append(
                {
                    "error_code": code,
                    "error_message": message,
                    "resource_type": resource.resource_type,
                    "resource_name": resource.resource_name,
                }
            )
        return {"responses": answers}

    async def _alter(self, resource: Any, validate_only: bool) -> None:
        topic = self._engine.topic(resource.resource_name) if resource.resource_type == TOPIC else None
        if topic is None:
            raise KafkaError(ErrorCode.unknown_topic_or_partition.value, "only configs of existing topics are altered")
        if topic.internal:
            raise KafkaError(ErrorCode.invalid_topic_exception.value, "an internal topic's configs stay as they are")
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
