"""The store of an operator: the Kubernetes API. Statuses are the custom resources' own; everything else lies in
ConfigMaps of the operator's namespace:

    yunhe-head             incarnation, generations handed out, revision, names of the recorded parts, operations
    yunhe-recorded-<r>-<n> what revision r recorded, compressed, in parts
    yunhe-plan-<hash>-<n>  a plan that waits
    yunhe-operation-<id>   an operation's record
    yunhe-statuses         statuses of objects that have no custom resource (any more)

The head is replaced only while it is as this store read it last, so a change becomes true at once or not at all, and of
two replicas that believe to lead, one meets Conflict and stops.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from controlplane.store.base import (
    OPERATIONS_KEPT_MAX,
    PLANS_KEPT_MAX,
    STORE_VERSION,
    Key,
    Operation,
    Plain,
    StepRecord,
    StepState,
    StoredPlan,
)
from controlplane.store.behind import Behind
from controlplane.store.config_maps import ConfigMaps
from controlplane.store.kube_api import Kube
from controlplane.store.resource_status import ORPHANS, ResourceStatuses
from dataplane.contract.assignment import Generation
from providers.base.clock import Clock
from providers.base.errors import Conflict, Corrupt, Invalid

log = logging.getLogger(__name__)

HEAD = "yunhe-head"
GENERATIONS_AT_ONCE = 256
"""Reserved in the head with one write, handed out from memory; a restart skips the rest."""
PROGRESS_AFTER_MS = 200.0
"""How long progress of an operation is kept back; its end and its failures are written at once."""
DRAIN_MS = 5_000.0
"""How long the end of a store waits for what is written behind."""


class KubernetesStore:
    """`Store` over the Kubernetes API, for the one replica that leads: it alone writes, so it reads from memory. Calls
    come from any thread and take turns; each write is one to four requests of some milliseconds, but for statuses,
    progress and removals, which are written behind.
    """

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        *,
        clock: Clock,
        lost: Callable[[], None] = lambda: None,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Open, or create, and shut out whoever led before. `lost`: called when another replica has taken over.
        `leads`: whether no other replica can have taken over yet; what is written behind waits while that is not so,
        for statuses have no term that would shut a replica out which was only slow.

        Raises:
            Invalid: made by another version. Corrupt, Unavailable.
        """
        self._namespace = namespace
        self._clock = clock
        self._lock = threading.RLock()
        self._maps = ConfigMaps(kube, namespace, lost=lost)
        self.behind = Behind(clock=clock, allowed=lambda: leads() and not self._maps.fenced)
        """What nobody waits for."""
        self.resources = ResourceStatuses(kube, namespace, self._maps, self.behind, clock=clock)
        """Statuses, and what else is said of custom resources."""
        self._plans: dict[str, StoredPlan] = {}
        self._operations: dict[str, Operation] = {}
        self._load_head()
        self._load_operations()
        self.resources.load()

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load_head(self) -> None:
        found = self._maps.read(HEAD)
        if found is None:
            self._head: dict[str, Any] = {
                "version": STORE_VERSION, "incarnation": self._clock.wall_ms(), "reserved": 0, "revision": 0,
                "recorded": [], "operations": [], "plans": [], "term": 0,
            }  # fmt: skip
        else:
            self._head = found
            if found.get("version") != STORE_VERSION:
                raise Invalid(
                    f"namespace {self._namespace} holds the state of another version of yunhe "
                    f"(store version {found.get('version')}, here {STORE_VERSION})",
                    hint="use that version, or another namespace",
                )
        # A new term: what another replica read of the head is stale from here on.
        self._generation = int(self._head["reserved"])
        self._maps.term = int(self._head["term"]) + 1
        self._put_head({"term": self._maps.term})
        self._recorded: Plain | None = None
        if parts := self._head["recorded"]:
            self._recorded = self._maps.read_parts(parts)
            if self._recorded is None:
                raise Corrupt(
                    f"a part of the recorded state is missing: {', '.join(parts)}", hint="restore the ConfigMaps"
                )
        for hash_, parts in self._head["plans"]:
            if (value := self._maps.read_parts(parts)) is not None:
                self._plans[hash_] = StoredPlan(hash_, value["base"], value["recorded"], value["shown"])
        self._sweep()

    def _load_operations(self) -> None:
        for id_ in self._head["operations"]:
            value = self._maps.read(_record(id_))
            if value is not None:
                steps = tuple(StepRecord(**{**step, "state": StepState(step["state"])}) for step in value["steps"])
                self._operations[id_] = Operation(**{**value, "steps": steps})
        if (running := self._running()) is not None:
            # Its record is replaced, so that another replica's late progress meets Conflict.
            self._write_record(running)

    def _sweep(self) -> None:
        """Remove what a crash left: parts that were written, and never became true, or are so no more."""
        known = {HEAD, ORPHANS, *self._head["recorded"], *map(_record, self._head["operations"])}
        known |= {part for _hash, parts in self._head["plans"] for part in parts}
        for name in self._maps.names():
            if name not in known:
                self._maps.remove(name)

    # ── recorded, plans ──────────────────────────────────────────────────────────────────────────────────────────────

    def recorded(self) -> Plain | None:
        with self._lock:
            return self._recorded

    def revision(self) -> int:
        with self._lock:
            return int(self._head["revision"])

    def accept(self, plan: StoredPlan, operation: Operation) -> None:
        with self._lock:
            revision = int(self._head["revision"])
            if plan.base != revision:
                raise Conflict(
                    f"plan {plan.hash[:8]} is stale: made on revision {plan.base}, and revision {revision} is applied",
                    hint="run `yunhe plan` again and look at it",
                    expected=plan.base,
                    actual=revision,
                )
            # Both at once, for somebody waits for this; neither is true yet.
            with ThreadPoolExecutor(1) as thread:
                recording = thread.submit(self._write_record, operation)
                parts = self._maps.write_parts(f"yunhe-recorded-{revision + 1}", plan.recorded)
                recording.result()
            before, ids = self._head["recorded"], [*self._head["operations"], operation.id]
            # The moment of truth: the head names the new state and its operation; all others are superseded by that.
            kept = ids[-OPERATIONS_KEPT_MAX:]
            self._put_head({"revision": revision + 1, "recorded": parts, "operations": kept})
            self._recorded = plan.recorded
            for id_, other in self._operations.items():
                if other.outcome is None:
                    self._operations[id_] = _superseded(other)
            self._operations[operation.id] = operation
            for id_ in ids[:-OPERATIONS_KEPT_MAX]:
                self._operations.pop(id_, None)
            for name in (*before, *map(_record, ids[:-OPERATIONS_KEPT_MAX])):
                # No later revision or operation has that name, and what is not removed is swept when a store is opened.
                self.behind.put(name, partial(self._maps.remove, name))

    def put_plan(self, plan: StoredPlan) -> None:
        with self._lock:
            value = {"base": plan.base, "recorded": plan.recorded, "shown": plan.shown}
            parts = self._maps.write_parts(f"yunhe-plan-{plan.hash[:40]}", value)
            plans = [[hash_, old] for hash_, old in self._head["plans"] if hash_ != plan.hash]
            plans.append([plan.hash, parts])
            self._put_head({"plans": plans[-PLANS_KEPT_MAX:]})
            self._plans.pop(plan.hash, None)
            self._plans[plan.hash] = plan
            for hash_, old in plans[:-PLANS_KEPT_MAX]:
                self._plans.pop(hash_, None)
                for part in old:
                    self._maps.remove(part)

    def plan(self, hash_: str) -> StoredPlan | None:
        with self._lock:
            found = [plan for full, plan in self._plans.items() if full.startswith(hash_)]
        if len(found) > 1:
            raise Invalid(f"more than one plan begins with {hash_!r}", hint="give more of the hash")
        return found[0] if found else None

    # ── operations ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put_operation(self, operation: Operation) -> None:
        with self._lock:
            before = self._running()
            if before is None or before.id != operation.id:
                return  # it has its outcome already
            name, write = _record(operation.id), partial(self._write_record, operation)
            if operation.outcome is not None or _failures(operation) > _failures(before):
                self.behind.now(name, write)
            else:
                self.behind.put(name, write, after_ms=PROGRESS_AFTER_MS)
            self._operations[operation.id] = operation

    def _write_record(self, operation: Operation) -> None:
        self._maps.write(_record(operation.id), asdict(operation))

    def operation(self, id_: str) -> Operation | None:
        with self._lock:
            found = self._operations.get(id_)
            newest = self._head["operations"][-1:] == [id_]
        # Only the newest can be unfinished, whatever the record of an older one was left to say.
        return _superseded(found) if found is not None and found.outcome is None and not newest else found

    def newest(self) -> Operation | None:
        """The operation that was begun last."""
        with self._lock:
            return self._operations.get(next(reversed(self._head["operations"]), ""))

    def unfinished(self) -> Sequence[Operation]:
        with self._lock:
            running = self._running()
        return [running] if running is not None else []

    def _running(self) -> Operation | None:
        return newest if (newest := self.newest()) is not None and newest.outcome is None else None

    # ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def put_status(self, key: Key, status: Plain) -> None:
        """Durable on return only as far as `resource_status.py` says."""
        self.resources.put(key, status)

    def status(self, key: Key) -> Plain:
        return self.resources.get(key)

    def statuses(self) -> dict[Key, Plain]:
        return self.resources.all()

    def forget_status(self, key: Key) -> None:
        self.resources.forget(key)

    # ── generations ──────────────────────────────────────────────────────────────────────────────────────────────────

    def next_generation(self) -> Generation:
        with self._lock:
            if self._generation >= int(self._head["reserved"]):
                self._put_head({"reserved": self._generation + GENERATIONS_AT_ONCE})
            self._generation += 1
            return Generation(int(self._head["incarnation"]), self._generation)

    def outgrow(self, seen: Generation) -> None:
        with self._lock:
            if seen > Generation(int(self._head["incarnation"]), self._generation):
                self._put_head({"incarnation": seen.incarnation + 1, "reserved": 0})
                self._generation = 0

    def close(self) -> None:
        """Write what is still to be written, within `DRAIN_MS` and as long as this replica leads, and nothing after."""
        if left := self.behind.drain(DRAIN_MS):
            log.warning("%d statuses were not written; whoever leads next looks at their objects", left)
        self.behind.stop()

    def _put_head(self, changes: dict[str, Any]) -> None:
        head = {**self._head, **changes}
        self._maps.write(HEAD, head)
        self._head = head


def _record(id_: str) -> str:
    """The ConfigMap of an operation."""
    return f"yunhe-operation-{id_}"


def _failures(operation: Operation) -> int:
    return sum(step.state is StepState.FAILED for step in operation.steps)


def _superseded(operation: Operation) -> Operation:
    return Operation(**{**{f: getattr(operation, f) for f in operation.__slots__}, "outcome": "Superseded"})
