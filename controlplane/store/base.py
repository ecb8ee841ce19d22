"""The store's contract.

Values are JSON (dicts, lists, scalars). A store serves one control plane: the HTTP API, the reconcilers and the
executor of one replica.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from dataplane.contract.assignment import Generation

Key = tuple[str, str]
"""(kind, name)."""
Plain = Mapping[str, Any]

STORE_VERSION = 1
PLANS_KEPT_MAX = 100
"""Plans that wait to be applied; the oldest go first."""
OPERATIONS_KEPT_MAX = 200
"""Operations kept in the journal after they have ended; the oldest go first."""


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan as it was shown. `base`: the revision that it was computed from; `recorded`: what the store holds once it
    is accepted.
    """

    hash: str
    base: int
    recorded: Plain
    shown: Plain


class StepState(StrEnum):
    """Pending -> Running -> Done ; Running -> Failed (the operation stops there and may be applied again)."""

    PENDING = "Pending"
    RUNNING = "Running"
    DONE = "Done"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step in the journal. `sentence`: what it did or waits for, and why; `error` and `hint` only when Failed."""

    id: str
    cloud: str
    title: str
    state: StepState = StepState.PENDING
    sentence: str = ""
    error: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """An apply. It is unfinished while `outcome` is None, and is taken up again when the control plane starts."""

    id: str
    plan: str
    started_ms: int
    steps: tuple[StepRecord, ...]
    outcome: str | None = None
    """`Done`, `Failed`, or `Superseded` by a later apply."""
    version: int = 0
    """Grows with each change of the record, for those who poll."""
    ended_ms: int | None = None


class Store(Protocol):
    """Obligations:

    1. *Durable on return.* What a method wrote is there after a power cut; of statuses and of progress, what could not
       be found out anew.
    2. *One transaction a method.* A crash leaves all of its changes or none.
    3. *Generations only grow*, and none is handed out twice, not even by a store that was restored from a backup (see
       `outgrow`).

    Every method may raise `Full` (disk), `Corrupt` or `Unavailable`.
    """

    def recorded(self) -> Plain | None:
        """What shall be, as the last accepted plan left it (`Recorded` of the plan package, as JSON); None before the
        first.
        """
        ...

    def revision(self) -> int:
        """Plans accepted so far."""
        ...

    def accept(self, plan: StoredPlan, operation: Operation) -> None:
        """Make what the plan records the desired state, and journal the operation that brings it about. Unfinished
        operations become Superseded.

        Raises:
            Conflict: another plan has been accepted since this one was made: it is stale.
        """
        ...

    def put_plan(self, plan: StoredPlan) -> None: ...

    def plan(self, hash_: str) -> StoredPlan | None:
        """The plan whose hash begins with `hash_`, None when there is none.

        Raises:
            Invalid: more than one does.
        """
        ...

    def put_operation(self, operation: Operation) -> None:
        """Replace the record of a journaled operation. A record that has an outcome keeps it: late progress of a
        superseded operation is dropped. Progress may be kept back for a moment, for a step that was done may be done
        again; an outcome or a failure may not.
        """
        ...

    def operation(self, id_: str) -> Operation | None: ...

    def unfinished(self) -> Sequence[Operation]:
        """Operations without an outcome, oldest first."""
        ...

    def put_status(self, key: Key, status: Plain) -> None:
        """Replace the status of one object. It is what `status` gives at once; the newest may be kept back for a moment
        where the next look at the object gives it again.
        """
        ...

    def status(self, key: Key) -> Plain:
        """The status of one object, empty when there is none."""
        ...

    def statuses(self) -> dict[Key, Plain]: ...

    def forget_status(self, key: Key) -> None: ...

    def next_generation(self) -> Generation:
        """A generation greater than all before."""
        ...

    def outgrow(self, seen: Generation) -> None:
        """A generation was met that this store has not handed out: it is older than what it speaks for (restored, or
        begun anew). Begin an incarnation above it.
        """
        ...

    def close(self) -> None: ...
