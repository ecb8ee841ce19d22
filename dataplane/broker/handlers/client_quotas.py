"""Client quotas as Kafka's admin clients set and show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError
from dataplane.broker.quotas import CLIENT, HONOURED, USER
from dataplane.broker.security import Security
from dataplane.ledger.security import quotas_changed
from dataplane.ledger.security_state import entity_of

EXACT, DEFAULT, ANY = 0, 1, 2
"""How a component of a filter matches."""
NAME_CHARS_MAX = 1_000
ENTITIES_A_REQUEST_MAX = 1_000

Entity = dict[str, str | None]


class ClientQuotas:
    """Handlers over a cell's quotas."""

    def __init__(self, security: Security) -> None:
        self._security = security

    async def describe(self, request: Any) -> dict[str, Any]:
        for component in request.components:
            if component.entity_type not in (USER, CLIENT) or component.match_type not in (EXACT, DEFAULT, ANY):
                message = f"quotas are by {USER} and {CLIENT}, not by {component.entity_type}"
                return {"error_code": ErrorCode.invalid_request, "error_message": message, "entries": None}
        entries = []
        for key, values in sorted(self._security.store.state.quotas.items()):
            entity = entity_of(key)
            if _matches(entity, request.components, request.strict):
                shown = [{"key": name, "value": value} for name, value in sorted(values.items())]
                entries.append({"entity": _shown(entity), "values": shown})
        return {"error_code": ErrorCode.none, "error_message": None, "entries": entries}

    async def alter(self, request: Any) -> dict[str, Any]:
        """Entities without a mistake are changed in one step."""
        good: list[tuple[Entity, Mapping[str, float | None]]] = []
        answers: list[dict[str, Any]] = []
        for entry in request.entries:
            entity = {part.entity_type: part.entity_name for part in entry.entity}
            answer: dict[str, Any] = {
                "error_code": ErrorCode.none,
                "error_message": None,
                "entity": _shown(entity),
            }
            try:
                values = _checked(entry, entity)
                if len(good) == ENTITIES_A_REQUEST_MAX:
                    raise _invalid(f"more than {ENTITIES_A_REQUEST_MAX} entities in one request")
                good.append((entity, values))
            except KafkaError as error:
                answer |= {"error_code": ErrorCode(error.code), "error_message": error.message}
            answers.append(answer)
        if good and not request.validate_only:
            try:
                await self._security.store.change(lambda state: [quotas_changed(good)])
            except KafkaError as error:
                for answer in answers:
                    if answer["error_code"] is ErrorCode.none:
                        answer |= {"error_code": ErrorCode(error.code), "error_message": error.message}
        return {"entries": answers}


def _checked(entry: Any, entity: Entity) -> dict[str, float | None]:
    """
    Raises:
        KafkaError: INVALID_REQUEST, with what is wrong.
    """
    if not entity or len(entity) != len(entry.entity) or not set(entity) <= {USER, CLIENT}:
        raise _invalid(f"quotas are by {USER}, by {CLIENT}, or by both, each named once")
    if any(name is not None and not 0 < len(name) <= NAME_CHARS_MAX for name in entity.values()):
        raise _invalid(f"a name has 1 to {NAME_CHARS_MAX} characters")
    values: dict[str, float | None] = {}
    for op in entry.ops:
        kind = HONOURED.get(op.key)
        if kind is None:
            raise _invalid(f"quota {op.key} is not honoured here: {', '.join(HONOURED)} are")
        if not op.remove and not (math.isfinite(op.value) and op.value >= kind.least):
            raise _invalid(f"{op.key} is {kind.counts}, at least {kind.least:g}, not {op.value}")
        values[op.key] = None if op.remove else float(op.value)
    return values


def _matches(entity: Entity, components: Sequence[Any], strict: bool) -> bool:
    if strict and len(entity) != len(components):
        return False
    for component in components:
        if component.entity_type not in entity:
            return False
        name = entity[component.entity_type]
        if component.match_type == EXACT and (name is None or name != component.match):
            return False
        if component.match_type == DEFAULT and name is not None:
            return False
    return True


def _shown(entity: Entity) -> list[dict[str, Any]]:
    return [{"entity_type": kind, "entity_name": name} for kind, name in entity.items()]


def _invalid(message: str) -> KafkaError:
    return KafkaError(ErrorCode.invalid_request.value, message)
