"""Resource Manager's long-running operations.

An operation's id says what is waited for, and its state is read off the disk: so operations survive a restart of the
server and need no memory of their own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from providers.lab.compute_state import DiskState, LinkState
from providers.lab.control import ControlPlane
from providers.lab.control_azure import Refused, reply
from providers.lab.control_azure_shapes import Shapes
from providers.lab.wire import Reply, Request

DISKS_VERSIONS = ("2019-07-01", "2026-03-02")
MACHINES_VERSIONS = ("2019-07-01", "2026-04-01")
"""Oldest (maxShares came then) and newest api-version."""

RETRY_AFTER_MS = 20
"""What an operation tells its client to wait; nothing here takes longer."""


class Operations:
    """`waited`: `do` (create, delete, attach, detach), `disk`, and for the latter two `instance` and `since`, the
    attachment's birth."""

    def __init__(self, plane: ControlPlane, subscription: str, shapes: Shapes) -> None:
        self._plane = plane
        self._compute = plane.compute
        self._subscription = subscription
        self._shapes = shapes

    def accepted(self, plain: Any, waited: Mapping[str, Any]) -> Reply:
        """202: begun."""
        operation = base64.urlsafe_b64encode(json.dumps(waited).encode()).decode().rstrip("=")
        kind = "diskOperations" if waited["do"] in ("create", "delete") else "operations"
        version = (DISKS_VERSIONS if kind == "diskOperations" else MACHINES_VERSIONS)[1]
        url = (
            f"{self._plane.endpoint}/subscriptions/{self._subscription}/providers/Microsoft.Compute"
            f"/locations/{self._plane.region}/{kind}/{operation}?api-version={version}"
        )
        links = {"Azure-AsyncOperation": url, "Location": f"{url}&monitor=true"}
        return reply(202, plain, {**links, "x-ms-retry-after-ms": str(RETRY_AFTER_MS)})

    def answer(self, request: Request, operation: str) -> Reply:
        """How it stands: by `Azure-AsyncOperation`, or by `Location` (`monitor=true`), which ends with the result.

        Raises:
            Refused: no such operation.
        """
        try:
            waited = json.loads(base64.urlsafe_b64decode(operation + "=" * (-len(operation) % 4)))
            status, error = self._state(waited)
        except (ValueError, KeyError, TypeError) as error_:
            raise Refused(404, "NotFound", f"There is no operation {operation}.") from error_
        later = {"x-ms-retry-after-ms": str(RETRY_AFTER_MS)} if status == "InProgress" else {}
        if request.query.get("monitor") == "true":
            if status == "InProgress":
                return reply(
                    202, None, {**later, "Location": f"{self._plane.endpoint}{request.raw_path}?{request.raw_query}"}
                )
            return self._result(waited, error)
        shown: dict[str, Any] = {"name": operation, "status": status}
        if error is not None:
            shown["error"] = error
        return reply(200, shown, later)

    def _state(self, waited: Mapping[str, Any]) -> tuple[str, dict[str, str] | None]:
        """Of what an operation waits for: InProgress, Succeeded or Failed, and the error."""
        disk = next((each for each in self._compute.disks() if each.id == waited["disk"]), None)
        link = disk.link(waited["instance"]) if disk is not None and "instance" in waited else None
        if link is not None and link.since_ms != waited["since"]:
            link = None  # detached, and attached anew since
        match waited["do"]:
            case "create" if disk is not None and disk.state is DiskState.CREATING:
                return "InProgress", None
            case "create" if disk is None or disk.state is DiskState.ERROR:
                return "Failed", {"code": "InternalServerError", "message": "The disk could not be created."}
            case "delete" | "detach" if (disk if waited["do"] == "delete" else link) is not None:
                return "InProgress", None
            case "attach" if link is None:
                return "Failed", {"code": "InternalServerError", "message": "The disk could not be attached."}
            case "attach" if link is not None and link.state is LinkState.ATTACHING:
                return "InProgress", None
        return "Succeeded", None

    def _result(self, waited: Mapping[str, Any], error: dict[str, str] | None) -> Reply:
        if error is not None:
            return reply(500, {"error": error})
        if waited["do"] == "create":
            return reply(200, self._shapes.disk(self._compute.disk(waited["disk"])))
        if waited["do"] == "delete":
            return reply(204, None)
        machine = self._shapes.machine(self._compute.machine(waited["instance"]), self._compute.disks(), False)
        return reply(200, machine["properties"]["storageProfile"])
