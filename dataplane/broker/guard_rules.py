"""What the rules of `guard.py` are made of."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from kio.schema.errors import ErrorCode

from dataplane.broker.authorize import CLUSTER_NAME, Access, Operation, ResourceType
from dataplane.broker.engine import TopicView

Fields = dict[str, Any]
Finish = Callable[[Fields], Fields]

DENIED: Mapping[ResourceType, ErrorCode] = {
    ResourceType.TOPIC: ErrorCode.topic_authorization_failed,
    ResourceType.GROUP: ErrorCode.group_authorization_failed,
    ResourceType.CLUSTER: ErrorCode.cluster_authorization_failed,
    ResourceType.TRANSACTIONAL_ID: ErrorCode.transactional_id_authorization_failed,
}
"""The protocol's own code for a denial."""


class Topics(Protocol):
    """Of the engine, what rules ask: which topics there are."""

    def topics(self) -> Mapping[str, TopicView]: ...

    def topic(self, name: str) -> TopicView | None: ...

    def topic_name(self, topic_id: uuid.UUID) -> str | None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """What is left of a request for its handler (None: nothing, it is not called), and what is done to the answer."""

    body: Any
    finish: Finish = lambda fields: fields


Rule = Callable[[Any, Access, Topics], Passage]


def free(body: Any, access: Access, topics: Topics) -> Passage:
    """For everybody."""
    return Passage(body)


def refused(fields: Fields) -> Passage:
    """The answer without a handler."""
    return Passage(None, lambda _: fields)


def cluster(access: Access, operation: Operation) -> bool:
    return access.allowed(ResourceType.CLUSTER, CLUSTER_NAME, operation)


def of_cluster(operation: Operation, answer: Callable[[Any, ErrorCode], Fields]) -> Rule:
    """The whole request needs `operation` on the cluster."""

    def rule(body: Any, access: Access, topics: Topics) -> Passage:
        if cluster(access, operation):
            return Passage(body)
        return refused(answer(body, ErrorCode.cluster_authorization_failed))

    return rule


def of_group(operation: Operation, answer: Callable[[Any, ErrorCode], Fields], then: Rule = free) -> Rule:
    """The whole request needs `operation` on its group; `then` is asked when it has it."""
    return _of_one(ResourceType.GROUP, "group_id", operation, answer, then)


def of_transaction(answer: Callable[[Any, ErrorCode], Fields], then: Rule = free) -> Rule:
    """The whole request needs to be allowed to write under its transactional id."""
    return _of_one(ResourceType.TRANSACTIONAL_ID, "transactional_id", Operation.WRITE, answer, then)


def _of_one(
    kind: ResourceType, field: str, operation: Operation, answer: Callable[[Any, ErrorCode], Fields], then: Rule
) -> Rule:
    def rule(body: Any, access: Access, topics: Topics) -> Passage:
        if access.allowed(kind, getattr(body, field), operation):
            return then(body, access, topics)
        return refused(answer(body, DENIED[kind]))

    return rule


def of_each(
    kind: ResourceType,
    operation: Operation,
    *,
    asked: str,
    answered: str,
    name: Callable[[Any], str],
    answer: Callable[[Any, ErrorCode], Fields],
) -> Rule:
    """Each item of the list `asked` needs `operation` on what it names; denied ones are answered in the list
    `answered`."""

    def rule(body: Any, access: Access, topics: Topics) -> Passage:
        items = getattr(body, asked)
        if items is None:
            return Passage(body)
        denied = [item for item in items if not access.allowed(kind, name(item), operation)]
        return without(body, asked, denied, answered, [answer(item, DENIED[kind]) for item in denied])

    return rule


def of_topics(
    operation: Operation,
    answer: Callable[[Any, ErrorCode], Fields],
    *,
    asked: str = "topics",
    answered: str = "topics",
    name: str = "name",
) -> Rule:
    """`of_each` topic."""
    return of_each(
        ResourceType.TOPIC,
        operation,
        asked=asked,
        answered=answered,
        name=lambda item: str(getattr(item, name)),
        answer=answer,
    )


def without(body: Any, asked: str, denied: Sequence[Any], answered: str, answers: Sequence[Fields]) -> Passage:
    """The request without some items of a list, which are answered by `answers`."""
    if not denied:
        return Passage(body)
    ids = {id(item) for item in denied}
    left = tuple(item for item in getattr(body, asked) if id(item) not in ids)
    return Passage(
        dataclasses.replace(body, **{asked: left}),
        lambda fields: {**fields, answered: [*(fields.get(answered) or ()), *answers]},
    )


def partitions_of(
    field: str = "partitions",
    index: str = "partition_index",
    *,
    name: str = "name",
    code: str = "error_code",
    asked: str = "partitions",
    **more: Any,
) -> Callable[[Any, ErrorCode], Fields]:
    """How a topic is answered all whose partitions have the same error."""

    def answer(topic: Any, error: ErrorCode) -> Fields:
        parts = [{index: _index(p, index), code: error, **more} for p in getattr(topic, asked)]
        return {name: getattr(topic, name), field: parts}

    return answer


def all_topics(
    answer: Callable[[Any, ErrorCode], Fields], answered: str = "topics"
) -> Callable[[Any, ErrorCode], Fields]:
    """How a request is answered all whose topics have the same error."""
    return lambda body, error: {answered: [answer(topic, error) for topic in body.topics or ()], "error_code": error}


def name_of_id(topic_id: uuid.UUID | None, topics: Topics) -> str | None:
    """The topic with this id; None when there is none."""
    return None if topic_id is None else topics.topic_name(topic_id)


def only(fields: Fields, answered: str, keep: Callable[[Any], bool]) -> Fields:
    """The answer with some items of a list alone."""
    return {**fields, answered: [item for item in fields.get(answered) or () if keep(item)]}


def error_only(*names: str, **more: Any) -> Callable[[Any, ErrorCode], Fields]:
    """An answer that is an error, with empty lists of these names."""
    return lambda _, error: {"error_code": error, "error_message": None, **dict.fromkeys(names, ()), **more}


def _index(part: Any, field: str) -> int:
    return part if isinstance(part, int) else int(getattr(part, field))


def every(items: Iterable[Any], error: ErrorCode, **more: Any) -> list[Fields]:
    """An error for each of these."""
    return [{"error_code": error, "error_message": None, **more} for _ in items]
