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

import base64
import json
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from controlplane.api.kinds import KINDS
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
from controlplane.store.conditions import Notice, rendered
from controlplane.store.kube_api import Kube, core_path, resources_path
from dataplane.contract.assignment import Generation
from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Conflict, Corrupt, Fenced, Full, Invalid, NotFound

PART_BYTES = 600_000
"""Compressed bytes in one ConfigMap, which may have 1 MiB with base64 and all."""
PARTS_MAX = 64
GENERATIONS_AT_ONCE = 256
"""Reserved in the head with one write, handed out from memory; a restart skips the rest."""
PROGRESS_EVERY_MS = 200.0
"""How often an operation's progress is written; its end and its failures are at once."""
TERM = "yunhe.io/term"
LABELS = {"app.kubernetes.io/managed-by": "yunhe-operator", "yunhe.io/state": "store"}


class KubernetesStore:
    """`Store` over the Kubernetes API, for the one replica that leads: it alone writes, so it reads from memory. Calls
    come from any thread and take turns; each write is one to four requests of some milliseconds.
    """

    def __init__(self, kube: Kube, namespace: str, *, clock: Clock, lost: Callable[[], None] = lambda: None) -> None:
        """Open, or create, and shut out whoever led before. `lost`: called when another replica has taken over.

        Raises:
            Invalid: made by another version. Corrupt, Unavailable.
        """
        self._kube = kube
        self._namespace = namespace
        self._clock = clock
        self._lost = lost
        self._lock = threading.RLock()
        self._statuses: dict[Key, Plain] = {}
        self._orphans: dict[Key, Plain] = {}
        self._written: dict[Key, dict[str, Any]] = {}
        self._notices: dict[Key, Notice] = {}
        self._generations: dict[Key, int] = {}
        self._plans: dict[str, StoredPlan] = {}
        self._operations: dict[str, Operation] = {}
        self._versions: dict[str, str] = {}
        self._terms: dict[str, str | None] = {}
        self._fenced = False
        self._progress_ms = float("-inf")
        self._term = 0
        self._load_head()
        self._load_operations()
        self._load_statuses()

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load_head(self) -> None:
        found = self._read("yunhe-head")
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
        self._term = int(self._head["term"]) + 1
        self._put_head({"term": self._term})
        self._recorded: Plain | None = self._read_parts(self._head["recorded"]) if self._head["recorded"] else None
        for hash_, parts in self._head["plans"]:
            if (value := self._read_parts(parts, missing=None)) is not None:
                self._plans[hash_] = StoredPlan(hash_, value["base"], value["recorded"], value["shown"])
        self._sweep()

    def _load_operations(self) -> None:
        for id_ in self._head["operations"]:
            value = self._read(f"yunhe-operation-{id_}")
            if value is not None:
                steps = tuple(StepRecord(**{**step, "state": StepState(step["state"])}) for step in value["steps"])
                self._operations[id_] = Operation(**{**value, "steps": steps})
        if (running := self._running()) is not None:
            # Its record is replaced, so that another replica's late progress meets Conflict.
            self._write(f"yunhe-operation-{running.id}", asdict(running))

    def _load_statuses(self) -> None:
        orphans = self._read("yunhe-statuses") or {}
        self._orphans = {(kind, name): value for kind, name, value in orphans.get("statuses", [])}
        self._statuses = dict(self._orphans)
        for kind in KINDS:
            try:
                for resource in self._kube.listed(resources_path(self._namespace, kind)):
                    key, status = (kind, resource["metadata"]["name"]), resource.get("status") or {}
                    self._written[key] = status
                    if status.get("detail"):
                        self._statuses[key] = status["detail"]
                    if status.get("observedGeneration"):
                        self._generations[key] = status["observedGeneration"]
            except NotFound:
                continue  # its CRD is not installed: there are none

    def _sweep(self) -> None:
        """Remove what a crash left: parts that were written, and never became true."""
        known = {"yunhe-head", "yunhe-statuses", *self._head["recorded"]}
        known |= {f"yunhe-operation-{id_}" for id_ in self._head["operations"]}
        known |= {part for _hash, parts in self._head["plans"] for part in parts}
        selector = ",".join(f"{key}={value}" for key, value in LABELS.items())
        for found in self._kube.listed(core_path(self._namespace, "configmaps"), labelSelector=selector):
            if found["metadata"]["name"] not in known:
                self._kube.delete(core_path(self._namespace, "configmaps", found["metadata"]["name"]))

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
            parts = self._write_parts(f"yunhe-recorded-{revision + 1}", plan.recorded)
            self._write(f"yunhe-operation-{operation.id}", asdict(operation))
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
                self._remove(f"yunhe-operation-{id_}")
            for part in before:
                self._remove(part)

    def put_plan(self, plan: StoredPlan) -> None:
        with self._lock:
            value = {"base": plan.base, "recorded": plan.recorded, "shown": plan.shown}
            parts = self._write_parts(f"yunhe-plan-{plan.hash[:40]}", value)
            plans = [[hash_, old] for hash_, old in self._head["plans"] if hash_ != plan.hash]
            plans.append([plan.hash, parts])
            self._put_head({"plans": plans[-PLANS_KEPT_MAX:]})
            self._plans.pop(plan.hash, None)
            self._plans[plan.hash] = plan
            for hash_, old in plans[:-PLANS_KEPT_MAX]:
                self._plans.pop(hash_, None)
                for part in old:
                    self._remove(part)

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
            now_ms = self._clock.monotonic_ms()
            failed = any(step.state is StepState.FAILED for step in operation.steps)
            if operation.outcome is not None or failed or now_ms - self._progress_ms >= PROGRESS_EVERY_MS:
                self._write(f"yunhe-operation-{operation.id}", asdict(operation))
                self._progress_ms = now_ms
            self._operations[operation.id] = operation

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
        with self._lock:
            before = self._statuses.get(key)
            self._statuses[key] = json.loads(json.dumps(status))
            try:
                self._show(key)
            except BaseException:
                # What is in memory is what was written.
                self._restore(key, before)
                raise

    def status(self, key: Key) -> Plain:
        with self._lock:
            return self._statuses.get(key, {})

    def statuses(self) -> dict[Key, Plain]:
        with self._lock:
            return dict(sorted(self._statuses.items()))

    def forget_status(self, key: Key) -> None:
        with self._lock:
            self._statuses.pop(key, None)
            self._notices.pop(key, None)
            self._generations.pop(key, None)
            if self._orphans.pop(key, None) is not None:
                self._put_orphans()
            elif self._written.pop(key, None) is not None:
                try:
                    self._kube.patch(f"{self._path(key)}/status", {"status": None})
                except NotFound:
                    pass  # gone with its resource

    def note(self, key: Key, notice: Notice | None, generation: int | None = None) -> bool:
        """Say something in a resource's conditions beside its status document; None takes it back. `generation`: of the
        spec that is accepted now. True when that was news.
        """
        with self._lock:
            if self._notices.get(key) == notice and generation in (None, self._generations.get(key)):
                return False
            if notice is None:
                self._notices.pop(key, None)
            else:
                self._notices[key] = notice
            if generation is not None:
                self._generations[key] = generation
            if notice is not None or self._written.get(key):
                self._show(key)  # else its first status shows it
            return True

    def _show(self, key: Key) -> None:
        plain = self._statuses.get(key, {})
        before = self._written.get(key, {})
        conditions = before.get("conditions") or ()
        wanted = rendered(plain, self._notices.get(key), self._generations.get(key), conditions, self._clock.wall_ms())
        if key in self._written and before == wanted:
            return
        if key not in self._orphans:
            try:
                # A merge patch keeps a map's keys that it does not name: those that are gone are named with null.
                patch = {**wanted, "detail": _patch(before.get("detail"), wanted["detail"])}
                self._kube.patch(f"{self._path(key)}/status", {"status": patch})
            except NotFound:
                pass  # it has no resource, or no longer
            else:
                self._written[key] = wanted
                return
        self._written.pop(key, None)
        if plain and self._orphans.get(key) != plain:
            self._orphans[key] = plain
            self._put_orphans()

    def adopted(self, key: Key) -> None:
        """A resource exists now: its status is shown there."""
        with self._lock:
            if self._orphans.pop(key, None) is not None:
                self._show(key)
                self._put_orphans()

    def _restore(self, key: Key, before: Plain | None) -> None:
        if before is None:
            self._statuses.pop(key, None)
        else:
            self._statuses[key] = before

    def _put_orphans(self) -> None:
        self._write("yunhe-statuses", {"statuses": [[*key, value] for key, value in self._orphans.items()]})

    def _path(self, key: Key) -> str:
        return resources_path(self._namespace, *key)

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
        self._kube.close()

    # ── the edge ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _put_head(self, changes: dict[str, Any]) -> None:
        head = {**self._head, **changes}
        self._write("yunhe-head", head)
        self._head = head

    def _write(self, name: str, value: Any) -> None:
        """Create or replace a ConfigMap of one part, as this store knows it."""
        packed = _packed(value)
        if len(packed) > PART_BYTES:
            raise Full(f"{name} would have {len(packed)} compressed bytes, more than {PART_BYTES}")
        self._put(name, packed)

    def _put(self, name: str, packed: bytes) -> None:
        if self._fenced:
            raise Fenced(f"another replica of the operator leads: {name} is not written")
        # The term makes a replacement by the same content a change, so that it shuts out whoever led before.
        metadata: dict[str, Any] = {"name": name, "labels": LABELS, "annotations": {TERM: str(self._term)}}
        body = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
            "binaryData": {"z": base64.b64encode(packed).decode()},
        }  # fmt: skip
        version = self._versions.get(name)
        try:
            if version is None:
                answer = self._kube.create(core_path(self._namespace, "configmaps"), body)
            else:
                metadata["resourceVersion"] = version
                answer = self._kube.replace(core_path(self._namespace, "configmaps", name), body)
        except (AlreadyExists, Conflict, NotFound) as error:
            if self._find(name) == packed and self._terms.get(name) == str(self._term):
                return  # an earlier try of ours was carried out, and its answer was lost
            self._fenced = True
            self._lost()
            raise Fenced(f"another replica of the operator has written {name}: this one does not lead") from error
        self._versions[name] = answer["metadata"]["resourceVersion"]

    def _write_parts(self, name: str, value: Any) -> list[str]:
        packed = _packed(value)
        pieces = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
        if len(pieces) > PARTS_MAX:
            raise Full(f"{name} would have {len(packed)} compressed bytes, more than {PARTS_MAX * PART_BYTES}")
        names = [f"{name}-{number}" for number in range(len(pieces))]
        for part, piece in zip(names, pieces, strict=True):
            if part not in self._versions:
                self._find(part)  # left by a try that never became true
            self._put(part, piece)
        return names

    def _find(self, name: str) -> bytes | None:
        try:
            found = self._kube.get(core_path(self._namespace, "configmaps", name))
        except NotFound:
            self._versions.pop(name, None)
            return None
        self._versions[name] = found["metadata"]["resourceVersion"]
        self._terms[name] = found["metadata"].get("annotations", {}).get(TERM)
        return base64.b64decode(found.get("binaryData", {}).get("z", ""))

    def _read(self, name: str) -> Any:
        packed = self._find(name)
        return None if packed is None else _unpacked(name, packed)

    def _read_parts(self, names: Sequence[str], **missing: None) -> Any:
        pieces = [self._find(name) for name in names]
        if any(piece is None for piece in pieces):
            if "missing" in missing:
                return None
            raise Corrupt(f"a part of the recorded state is missing: {', '.join(names)}", hint="restore the ConfigMaps")
        return _unpacked(names[0], b"".join(piece for piece in pieces if piece is not None))

    def _remove(self, name: str) -> None:
        self._kube.delete(core_path(self._namespace, "configmaps", name))
        self._versions.pop(name, None)
        self._terms.pop(name, None)


def _superseded(operation: Operation) -> Operation:
    return Operation(**{**{f: getattr(operation, f) for f in operation.__slots__}, "outcome": "Superseded"})


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _unpacked(name: str, packed: bytes) -> Any:
    try:
        return json.loads(zlib.decompress(packed))
    except (zlib.error, ValueError) as error:
        raise Corrupt(f"ConfigMap {name} holds a value that cannot be read") from error


def _patch(before: Any, wanted: Any) -> Any:
    """The merge patch that makes `before` exactly `wanted`."""
    if not isinstance(before, dict) or not isinstance(wanted, dict):
        return wanted
    return {
        **{key: None for key in before if key not in wanted},
        **{k: _patch(before.get(k), v) for k, v in wanted.items()},
    }
