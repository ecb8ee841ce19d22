"""The control plane's HTTP API as the CLI and the drills call it. Standard library only, so that it costs nothing to
import.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from controlplane.server.files import StateDir
from providers.base import errors
from providers.base.errors import Internal, Unavailable, YunheError
from providers.lab.processes import read_ready

REQUEST_TIMEOUT_S = 30.0
"""A plan of a large spec takes about a second; everything long is polled."""


class Client:
    """Talks to the control plane of one state directory. A connection a call: calls are few."""

    def __init__(self, state_dir: StateDir) -> None:
        self._state_dir = state_dir

    def healthz(self) -> Mapping[str, Any]:
        return self._call("GET", "/healthz")

    def status(self) -> dict[str, Any]:
        """`yunhe status -o json`, from the control plane's view."""
        return dict(self._call("GET", "/v1/status"))

    def plan(self, texts: Sequence[tuple[str, str]], *, prune: bool = False) -> dict[str, Any]:
        """Plan (file name, text) pairs: {"hash", "empty", "text", "plan"}."""
        return dict(self._call("POST", "/v1/plans", {"files": [list(pair) for pair in texts], "prune": prune}))

    def apply(self, hash_: str) -> dict[str, Any]:
        """Accept the plan with this hash, or a prefix of it: the operation, unfinished."""
        return dict(self._call("POST", "/v1/operations", {"plan": hash_}))

    def operation(self, id_: str) -> dict[str, Any]:
        return dict(self._call("GET", f"/v1/operations/{id_}"))

    def diff(self, texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """{"text", "changes"} between what is applied and these files."""
        return dict(self._call("POST", "/v1/diff", {"files": [list(pair) for pair in texts]}))

    def objects(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """Objects of a kind with their status, or the one of that name."""
        answer = self._call("GET", f"/v1/objects/{kind}" + (f"/{name}" if name else ""))
        return list(answer["items"])

    def trust(self, edge: str) -> dict[str, Any]:
        """Take over the key that the edge shows now."""
        return dict(self._call("POST", f"/v1/edges/{quote(edge, safe='')}/trust", {}))

    def _call(self, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
        ready = read_ready(self._state_dir.ready)
        if ready is None:
            raise _down("it is not running")
        headers = {"Authorization": f"Bearer {self._state_dir.read_token()}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", int(str(ready["port"])), timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            plain = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _down(f"no answer at 127.0.0.1:{ready['port']}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise _refusal(plain)
        return dict(plain)


def _down(why: str) -> Unavailable:
    return Unavailable(f"the control plane is down: {why}", hint="start it: yunhe up SPEC; the cells serve without it")


def _refusal(plain: Mapping[str, Any]) -> YunheError:
    """The server's error as it was raised there: same kind, sentence, hint and fields."""
    kind = getattr(errors, str(plain.get("kind")), Internal)
    if not (isinstance(kind, type) and issubclass(kind, YunheError)):
        kind = Internal
    raised = kind(str(plain.get("error")), hint=plain.get("hint"))
    raised.fields.update(plain.get("fields") or {})
    return raised
