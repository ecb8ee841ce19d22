"""What differs between two states of an object, field by field, and how that is said. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from controlplane.api.kinds import Resource
from controlplane.api.specs import to_plain
from controlplane.plan.model import Change


def changes_between(old: Resource, new: Resource) -> tuple[Change, ...]:
    """Fields that differ, dotted, in order; lists are compared whole."""
    before, after = dict(_flat(to_plain(old))), dict(_flat(to_plain(new)))
    names = dict.fromkeys([*before, *after])
    return tuple(Change(n, before.get(n), after.get(n)) for n in sorted(names) if before.get(n) != after.get(n))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def phrase(changes: Sequence[Change]) -> str:
    """The changes as one phrase."""
    return ", ".join(f"{c.field.removeprefix('spec.')} {_shown(c.old)} -> {_shown(c.new)}" for c in changes)


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, list):
        return f"[{', '.join(str(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
