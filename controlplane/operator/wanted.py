"""What the custom resources say shall be, and what stands in the way of it. Pure.

    every resource ──► paused, leaving, unreadable, unchanged, changed
    what is recorded + as many of the changes as go together ──► a plan

A resource that is refused or paused counts as what was recorded of it, so that one mistake neither holds up the others
nor takes down what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from controlplane.api.check import problems_across
from controlplane.api.databases import Database
from controlplane.api.kinds import KINDS, Resource
from controlplane.api.load import refusal
from controlplane.api.source import Problem
from controlplane.api.specs import Key, Specs, key_of, to_plain
from controlplane.operator.admission import Custom, checked
from controlplane.plan.kubernetes_engines import render_engines
from controlplane.plan.model import Recorded
from controlplane.plan.plan import Plan, make_plan
from controlplane.store.conditions import Notice, rfc3339
from providers.base.errors import Invalid

PAUSED = "yunhe.io/paused-until"
"""Annotation: a time (RFC 3339), or `true` for as long as it is there."""
TRIES_MAX = 400
"""Plans that one look makes to find out which of the changes do not go; those beyond wait for the next look."""
SECOND_LOOKS_MAX = 100
"""Refused changes that one look tries once more, one by one."""

Change = tuple[Key, Resource | None]
"""None: it shall go."""
Parse = Callable[[Custom], Resource]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The verdict on all resources of a namespace."""

    specs: Specs
    """All that shall be."""
    plan: Plan
    """From what is recorded to `specs`."""
    notices: Mapping[Key, Notice]
    """What is said of resources that do not count as they are written."""
    accepted: Mapping[Key, int]
    """Resources that count as they are written, and the generation that does."""
    resume_ms: int | None = None
    """When the next pause ends (wall clock)."""


@dataclass(slots=True)
class Parser:
    """Reads resources, each generation once. A generation's spec never changes, so nothing else is asked."""

    _known: dict[tuple[str, int], Resource | Invalid] = field(default_factory=dict)

    def __call__(self, custom: Custom) -> Resource:
        """Raises Invalid: it is not as its kind shall be; one line a problem."""
        metadata = custom["metadata"]
        version = (str(metadata.get("uid")), int(metadata.get("generation", 0)))
        found = self._known.get(version)
        if found is None:
            try:
                found = checked(custom)
            except Invalid as error:
                found = error
            self._known[version] = found
        if isinstance(found, Invalid):
            raise found
        return found

    def forget_others(self, customs: Mapping[Key, Custom]) -> None:
        """Keep only what is there now."""
        there = {(str(c["metadata"].get("uid")), int(c["metadata"].get("generation", 0))) for c in customs.values()}
        self._known = {version: read for version, read in self._known.items() if version in there}


def wanted(
    customs: Mapping[Key, Custom], recorded: Recorded, now_ms: int, parse: Parse = checked, base: Specs | None = None
) -> Wanted:
    """The verdict. `customs`: every resource there is; what is recorded and is not among them shall go. `base`: the
    recorded objects, where the caller has read them already.

    Raises:
        Invalid: what is recorded cannot be planned by itself, and no change mends it.
        Corrupt: the recorded objects cannot be read.
    """
    present = base if base is not None else recorded.as_specs()
    before = recorded.specs
    notices: dict[Key, Notice] = {}
    accepted: dict[Key, int] = {}
    resume: list[int] = []
    changes: list[Change] = [(key, None) for key in before if key not in customs]
    for key, custom in customs.items():
        metadata = custom["metadata"]
        paused = _pause(metadata, now_ms)
        if isinstance(paused, int):
            resume.append(paused)
        if paused is not None:
            notices[key] = paused if isinstance(paused, Notice) else _paused_until(paused)
            continue
        if metadata.get("deletionTimestamp"):
            if key in before:
                changes.append((key, None))
            continue
        try:
            resource = parse(custom)
        except Invalid as error:
            notices[key] = _refused(error)
            continue
        accepted[key] = int(metadata.get("generation", 0))
        if before.get(key) != to_plain(resource):
            changes.append((key, resource))
    settled = _Settling(recorded, present).settle(changes)
    for key, notice in settled.refused.items():
        notices[key] = notice
        accepted.pop(key, None)
    return Wanted(settled.specs, settled.plan, notices, accepted, min(resume, default=None))


def _refused(error: Invalid) -> Notice:
    return Notice("Refused", error.message, error.hint)


def _pause(metadata: Mapping[str, Any], now_ms: int) -> Notice | int | None:
    """None: not paused; a number: when it ends."""
    text = (metadata.get("annotations") or {}).get(PAUSED)
    if text is None:
        return None
    if text == "true":
        return Notice("Paused", "its changes wait until the annotation goes", f"remove {PAUSED}", wrong=False)
    try:
        until = datetime.fromisoformat(str(text))
    except ValueError:
        until = None
    if until is None or until.tzinfo is None:
        sentence = f"{PAUSED} is {text!r}, neither true nor a time, so it counts as true"
        return Notice("Paused", sentence, "for example 2026-12-01T06:00:00Z")
    until_ms = int(until.timestamp() * 1000)
    return until_ms if until_ms > now_ms else None


def _paused_until(until_ms: int) -> Notice:
    return Notice("Paused", f"its changes wait until {rfc3339(until_ms)}", f"remove {PAUSED} to go on now", wrong=False)


@dataclass(frozen=True, slots=True)
class _Settled:
    specs: Specs
    plan: Plan
    refused: dict[Key, Notice]


class _Settling:
    """Takes as many changes as go together: all at once where that goes; else without those that problems name, and
    then by halves."""

    def __init__(self, recorded: Recorded, present: Specs) -> None:
        self._recorded = recorded
        self._present = present
        self._tries = 0

    def settle(self, changes: Sequence[Change]) -> _Settled:
        ordered = sorted(changes, key=_order)
        good, refused = self._without_named(ordered)
        for change in [change for change in ordered if change[0] in refused][:SECOND_LOOKS_MAX]:
            # Perhaps it was named for the sake of another that is refused.
            if not any(problems_across(_applied(self._present, [*good, change]))):
                good.append(change)
                del refused[change[0]]
        specs = _applied(self._present, good)
        try:
            return _Settled(specs, self._plan(specs), refused)
        except Invalid:
            if not good:
                raise
        specs, left = self._halves(self._present, good)
        if left:
            # What was refused for the sake of a change that came after it goes now.
            specs, left = self._halves(specs, [change for change, _ in left])
        for (key, resource), error in left:
            refused[key] = _in_use(error) if resource is None else _refused(error)
        return _Settled(specs, self._plan(specs), refused)

    def _without_named(self, changes: Sequence[Change]) -> tuple[list[Change], dict[Key, Notice]]:
        """Leave out what problems between objects name, until none is named any more."""
        good, refused = list(changes), dict[Key, Notice]()
        while True:
            problems: dict[str, list[Problem]] = {}
            for problem in problems_across(_applied(self._present, good)):
                problems.setdefault(problem.file, []).append(problem)
            # A problem names its object as kind and name where the object came from no file.
            bad = {key for key, resource in good if resource is not None and " ".join(key) in problems}
            if not bad:
                return good, refused
            for key in bad:
                refused[key] = _refused(refusal(problems[" ".join(key)]))
            good = [change for change in good if change[0] not in bad]

    def _halves(self, base: Specs, changes: Sequence[Change]) -> tuple[Specs, list[tuple[Change, Invalid]]]:
        specs = _applied(base, changes)
        try:
            self._plan(specs)
        except Invalid as error:
            if len(changes) <= 1 or self._tries > TRIES_MAX:
                return base, [(change, error) for change in changes]
        else:
            return specs, []
        middle = len(changes) // 2
        first, left = self._halves(base, changes[:middle])
        second, more = self._halves(first, changes[middle:])
        return second, left + more

    def _plan(self, specs: Specs) -> Plan:
        """Raises Invalid: these objects do not go together, or cannot be reached from what is recorded."""
        self._tries += 1
        if problems := list(problems_across(specs)):
            raise refusal(problems)
        plan = make_plan(specs, self._recorded, prune=True)
        render_engines(specs, plan.resolved)
        return plan


def _in_use(error: Invalid) -> Notice:
    return Notice("InUse", f"it cannot go yet: {error.message}", error.hint, wrong=False)


def _applied(base: Specs, changes: Sequence[Change]) -> Specs:
    objects: dict[Key, Resource] = {key_of(resource): resource for resource in base}
    for key, resource in changes:
        if resource is None:
            objects.pop(key, None)
        else:
            objects[key] = resource
    return Specs.of(objects.values())


def _order(change: Change) -> tuple[int, int, str]:
    """What others name comes first, and goes last."""
    (kind, name), resource = change
    rank = 2 * KINDS.index(kind)
    if isinstance(resource, Database) and resource.spec.role == "edge":
        rank += 1
    return (0, rank, name) if resource is not None else (1, -rank, name)
