"""Compute Engine's operations over the lab's core: a change answers with one, and its state is read from what it waits
for.

    PENDING (the first answer) ──► RUNNING ──► DONE, with or without errors

Operations and the request ids that name them are kept durably, so that a request repeated after a restart of the server
is still known. Source: Compute Engine API v1 reference (zoneOperations, regionOperations; `requestId`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from providers.base.errors import NotFound
from providers.lab.compute_state import DiskState, LinkState
from providers.lab.control import ControlPlane
from providers.lab.control_gcp_wire import number, timestamp

OPERATIONS_MAX = 1_000
"""Operations that can still be read; the oldest are forgotten."""
REQUEST_MS = 3_600_000
"""How long a request id is remembered (page: handling API responses)."""
NOTE = "gcp-operations"


@dataclass(frozen=True, slots=True)
class Operation:
    """One change. `waits`: `create`, `delete`, `attach`, `detach`, or "" when nothing is waited for."""

    name: str
    type: str
    place: str
    """`zones/Z` or `regions/R`."""
    target: str
    """The changed resource, from `projects/` on."""
    began_ms: int
    waits: str = ""
    disk: str = ""
    instance: str = ""
    request_id: str = ""
    parameters: str = ""
    done: bool = False
    error_code: str = ""
    error_message: str = ""


class Operations:
    """All operations of a lab."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._lock = threading.RLock()
        kept = plane.compute.noted(NOTE) or []
        self._rows = {row["name"]: Operation(**row) for row in kept}

    def begin(self, operation: Operation, act: Callable[[], tuple[str, str] | None]) -> Operation:
        """Carry out `act`, which may return an error (code, message) that the operation ends with, and keep the
        operation; or return the one that had this request id.

        Raises:
            What `act` raises: then there is no operation.
        """
        with self._lock:
            if operation.request_id:
                for row in self._rows.values():
                    fresh = operation.began_ms - row.began_ms < REQUEST_MS
                    if row.request_id == operation.request_id and row.type == operation.type and fresh:
                        return self.now(row)
            failed = act()
            if failed is not None:
                operation = replace(operation, done=True, error_code=failed[0], error_message=failed[1])
            self._keep(operation)
            return operation

    def find(self, name: str, place: str) -> Operation | None:
        """As it is now."""
        with self._lock:
            found = self._rows.get(name)
            return self.now(found) if found is not None and found.place == place else None

    def now(self, row: Operation) -> Operation:
        """Its state, read from what it waits for; once done it stays so."""
        if row.done:
            return row
        ended, failed = self._ended(row)
        if not ended:
            return row
        row = replace(row, done=True, error_code=failed[0], error_message=failed[1])
        self._keep(row)
        return row

    def _ended(self, row: Operation) -> tuple[bool, tuple[str, str]]:
        fine = ("", "")
        broken = ("INTERNAL_ERROR", "Internal error. Please try again or contact Google Support.")
        try:
            disk = self._plane.compute.disk(row.disk)
        except NotFound:
            return True, fine if row.waits in ("delete", "detach", "") else broken
        link = disk.link(row.instance) if row.instance else None
        match row.waits:
            case "create":
                return disk.state is not DiskState.CREATING, broken if disk.state is DiskState.ERROR else fine
            case "delete":
                return False, fine
            case "attach":
                return link is None or link.state is not LinkState.ATTACHING, broken if link is None else fine
            case "detach":
                return link is None or link.state in (LinkState.ATTACHING, LinkState.ATTACHED), fine
        return True, fine

    def _keep(self, row: Operation) -> None:
        rows = {**self._rows, row.name: row}
        while len(rows) > OPERATIONS_MAX:
            rows.pop(next(iter(rows)))
        self._plane.compute.note(NOTE, [asdict(each) for each in rows.values()])
        self._rows = rows


def operation_plain(row: Operation, project: str, endpoint: str, *, first: bool = False) -> Mapping[str, Any]:
    """As the API shows it."""
    root = f"{endpoint}/compute/v1/projects/{project}"
    scope, _, place = row.place.partition("/")
    status = "DONE" if row.done else "PENDING" if first else "RUNNING"
    plain: dict[str, Any] = {
        "kind": "compute#operation",
        "id": number(row.name),
        "name": row.name,
        "operationType": row.type,
        "targetLink": f"{endpoint}/compute/v1/{row.target}",
        "targetId": number(row.target),
        "status": status,
        "progress": {"PENDING": 0, "RUNNING": 50, "DONE": 100}[status],
        "insertTime": timestamp(row.began_ms),
        "user": "lab",
        "selfLink": f"{root}/{row.place}/operations/{row.name}",
        scope.removesuffix("s"): f"{root}/{scope}/{place}",
    }
    if row.error_code:
        plain["error"] = {"errors": [{"code": row.error_code, "message": row.error_message}]}
        plain["httpErrorStatusCode"] = 400
        plain["httpErrorMessage"] = "BAD REQUEST"
    return plain
