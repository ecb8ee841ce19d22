"""Whether a change of a custom resource is admitted, in the CLI's words: its own fields, it together with all others,
and what the planner refuses or finds risky. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from controlplane.api.check import problems_across
from controlplane.api.complaints import problems_of
from controlplane.api.crds import from_custom_object
from controlplane.api.kinds import Resource, type_of_kind
from controlplane.api.load import refusal
from controlplane.api.source import Document
from controlplane.api.specs import Specs, key_of
from controlplane.plan.model import Action, Recorded, Verb
from controlplane.plan.plan import make_plan
from providers.base.errors import Invalid, YunheError

Custom = Mapping[str, Any]

WARNINGS_MAX = 8
WARNING_CHARS_MAX = 240
"""What kubectl shows whole: 256 bytes a warning."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`refused`: the sentence and its hint, None when admitted. `warnings`: what is admitted and yet risky."""

    refused: str | None = None
    warnings: tuple[str, ...] = ()


def judge(operation: str, new: Custom | None, old: Custom | None, present: Sequence[Custom]) -> Verdict:
    """The verdict on one request; `present`: the objects of the same namespace as they are.

    A deletion is never refused, only warned of: what is deleted together goes in any order, and namespaces go whole.
    """
    if not changes_what_shall_be(operation, new, old):
        return Verdict()
    before = [r for r in map(_readable, present) if r is not None]
    modes = _wal_modes(present)
    if operation == "DELETE":
        gone = _readable(old or {})
        rest = [r for r in before if gone is None or key_of(r) != key_of(gone)]
        return Verdict(warnings=_risks(Specs.of(before), Specs.of(rest), modes, refusing=False))
    try:
        resource = checked(new or {})
        old_specs = Specs.of(before)
        new_specs = Specs.of([resource]).merged_over(old_specs)
        # What was wrong before this change is not its fault.
        known = set(problems_across(old_specs))
        fresh = [problem for problem in problems_across(new_specs) if problem not in known]
        if fresh:
            raise refusal(fresh)
        return Verdict(warnings=_risks(old_specs, new_specs, modes, refusing=True))
    except Invalid as error:
        return Verdict(refused=f"{error.message} ({error.hint})" if error.hint else error.message)


def changes_what_shall_be(operation: str, new: Custom | None, old: Custom | None) -> bool:
    """Whether there is anything to judge: finalizers and annotations are no change of what shall be."""
    if operation == "UPDATE" and new is not None and old is not None:
        return new.get("spec") != old.get("spec")
    return operation in ("CREATE", "UPDATE", "DELETE")


def checked(custom: Custom) -> Resource:
    """The object as the CLI's validator reads it.

    Raises:
        Invalid: it does not; one line a problem.
    """
    plain = from_custom_object(custom)
    kind = type_of_kind.get(str(plain["kind"]))
    if kind is None:
        raise Invalid(f"{plain['kind']!r} is not one of {', '.join(type_of_kind)}")
    document = Document(f"{plain['kind']} {plain['metadata'].get('name', '')}".strip(), 0, plain)
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise refusal(problems_of(error, kind, document)) from error


def _readable(custom: Custom) -> Resource | None:
    """An object that is there; None when it is none of ours, or older than today's rules."""
    try:
        return checked(custom)
    except Invalid:
        return None


def _wal_modes(present: Sequence[Custom]) -> dict[str, str]:
    """The mode that each cluster got when it was first applied, as its status says."""
    modes = {}
    for custom in present:
        wal = ((custom.get("status") or {}).get("detail") or {}).get("wal")
        if custom.get("kind") == "BrokerCluster" and isinstance(wal, Mapping) and isinstance(wal.get("mode"), str):
            modes[str(custom["metadata"]["name"])] = wal["mode"]
    return modes


def _risks(old: Specs, new: Specs, modes: Mapping[str, str], *, refusing: bool) -> tuple[str, ...]:
    """What the planner says of the change from `old` to `new`.

    Raises:
        Invalid: the change is not possible, and `refusing`.
    """
    recorded = Recorded(old.plain(), wal_modes=modes)
    try:
        make_plan(old, recorded, prune=True)
    except (YunheError, KeyError, ValueError):
        recorded = Recorded()  # what is there cannot be planned by itself, so nothing follows from it
    try:
        plan = make_plan(new, recorded, prune=True)
    except Invalid:
        if refusing:
            raise
        return ()
    except (KeyError, YunheError):
        return ()  # a reference that a deletion leaves open; the operator says so in the object's conditions
    said = [sentence for action in plan.actions if (sentence := _risk(action))]
    if len(said) > WARNINGS_MAX:
        said = [*said[: WARNINGS_MAX - 1], f"and {len(said) - WARNINGS_MAX + 1} more; see the plan"]
    return tuple(s if len(s) <= WARNING_CHARS_MAX else f"{s[: WARNING_CHARS_MAX - 1]}…" for s in said)


def _risk(action: Action) -> str | None:
    parts = []
    if action.downtime_ms and action.verb is not Verb.CREATE:
        parts.append(f"up to {action.downtime_ms / 1000:g} s without service")
    if action.data_at_risk:
        parts.append(f"at risk: {action.data_at_risk}")
    return f"{action.verb.value} {action.kind} {action.name}: {'; '.join(parts)}" if parts else None
