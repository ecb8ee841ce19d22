"""How many partitions a client may have made and deleted (KIP-599): what each request costs, and what becomes of the
topics that are too many.

Newer clients are refused with THROTTLING_QUOTA_EXCEEDED what they ask for while they owe something, and ask again;
older ones know no such refusal: what they ask for is done, and they wait afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kio.schema.errors import ErrorCode

from dataplane.broker.guard_admin import not_created, not_deleted
from dataplane.broker.guard_rules import Fields, Topics, name_of_id, without
from dataplane.broker.wire import Request

EXCEEDED = ErrorCode.throttling_quota_exceeded


class Budget(Protocol):
    """A client's."""

    def take(self, partitions: int, *, strict: bool) -> bool:
        """Count them; False when they must not be made or deleted now, which only `strict` ones hear."""
        ...


@dataclass(frozen=True, slots=True)
class _Rule:
    """Of one api: the version from which clients know the refusal, what is counted, and how it is refused."""

    strict_from: int
    asked: Callable[[Any], str]
    answered: str
    cost: Callable[[Any, Topics], int]
    refused: Callable[[Any], Fields]


def _made(topic: Any, topics: Topics) -> int:
    if topics.topic(topic.name) is not None:
        return 0
    return len(topic.assignments) or max(topic.num_partitions, 1)


def _added(topic: Any, topics: Topics) -> int:
    known = topics.topic(topic.name)
    return 0 if known is None else max(topic.count - len(known.partitions), 0)


def _deleted(topic: Any, topics: Topics) -> int:
    name = topic if isinstance(topic, str) else topic.name or name_of_id(topic.topic_id, topics)
    known = topics.topic(name) if name is not None else None
    return 0 if known is None else len(known.partitions)


def _delete_refused(topic: Any) -> Fields:
    if isinstance(topic, str):
        return not_deleted(topic, EXCEEDED)
    answer = not_deleted(topic.name, EXCEEDED)
    return {**answer, "topic_id": topic.topic_id} if topic.topic_id is not None else answer


_RULES: Mapping[int, _Rule] = {
    19: _Rule(6, lambda body: "topics", "topics", _made, lambda topic: not_created(topic, EXCEEDED)),
    20: _Rule(
        5,
        lambda body: "topic_names" if hasattr(body, "topic_names") else "topics",
        "responses",
        _deleted,
        _delete_refused,
    ),
    37: _Rule(
        3,
        lambda body: "topics",
        "results",
        _added,
        lambda topic: {"name": topic.name, "error_code": EXCEEDED, "error_message": None},
    ),
}


async def limited(
    request: Request, budget: Budget, topics: Topics, handle: Callable[[Request], Awaitable[Fields | None]]
) -> Fields | None:
    """The answer of `handle` to what the budget has room for, with refusals of the rest."""
    rule = _RULES.get(request.api_key)
    if rule is None or getattr(request.body, "validate_only", False):
        return await handle(request)
    strict, asked = request.version >= rule.strict_from, rule.asked(request.body)
    costs = [(item, rule.cost(item, topics)) for item in getattr(request.body, asked)]
    over = [item for item, cost in costs if cost and not budget.take(cost, strict=strict)]
    passage = without(request.body, asked, over, rule.answered, [rule.refused(item) for item in over])
    fields = await handle(dataclasses.replace(request, body=passage.body))
    return passage.finish(fields) if fields is not None else None
