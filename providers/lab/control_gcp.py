"""Google's control APIs over the lab's cores: Compute Engine v1 (`control_gcp_compute.py`) and Cloud DNS v1
(`control_gcp_dns.py`), as google-cloud-compute and google-cloud-dns call them, and of Cloud Monitoring v3 the one
metric that tells whether a regional disk is degraded, behind Google's tokens.

A credentials file without `service_account` needs `anonymous: true`.
"""

from __future__ import annotations

import re
from typing import Any

from providers.base.errors import Full, Unavailable
from providers.lab.control import ControlPlane
from providers.lab.control_gcp_compute import ComputeApi
from providers.lab.control_gcp_dns import DnsApi
from providers.lab.control_gcp_wire import Refusal, json_reply
from providers.lab.google_tokens import TOKEN_PATH, GoogleTokens
from providers.lab.wire import Reply, Request

_PATH = re.compile(r"/(compute|dns)/v1/projects/([^/]+)/(.+)")
_SERIES = re.compile(r"/v3/projects/([^/]+)/timeSeries")


class GcpControl:
    """See `providers.lab.control.ControlDialect`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._tokens = GoogleTokens(plane.credentials, plane.clock)
        self._compute = ComputeApi(plane)
        self._dns = DnsApi(plane)

    def answer(self, request: Request) -> Reply:
        token = self._tokens.answer(request)
        if token is not None:
            return token
        try:
            return json_reply(200, self._answer(request))
        except Refusal as refused:
            return self.error(refused.status, refused.reason, refused.message)
        except (Full, Unavailable) as error:
            # The host's own disk: for the client the service has a bad moment.
            return self.error(503, "backendError", str(error))

    def _answer(self, request: Request) -> Any:
        reason = self._tokens.refusal(request)
        if reason is not None:
            words = "Login Required." if reason == "required" else "Request had invalid authentication credentials."
            raise Refusal(401, reason, words)
        series = _SERIES.fullmatch(request.path)
        if series is not None:
            self._require_project(series[1])
            return self._compute.replica_states(request, series[1])
        found = _PATH.fullmatch(request.path)
        if found is None:
            raise Refusal(404, "notFound", f"{request.path} was not found")
        service, project, rest = found.groups()
        self._require_project(project)
        api = self._compute if service == "compute" else self._dns
        return api.answer(request, project, rest.split("/"))

    def _require_project(self, project: str) -> None:
        if self._tokens.project and project != self._tokens.project:
            raise Refusal(403, "forbidden", f"Required permission is missing for 'projects/{project}'")

    def error(self, status: int, code: str, message: str) -> Reply:
        error = {"message": message, "domain": "global", "reason": code}
        return json_reply(status, {"error": {"code": status, "message": message, "errors": [error]}})

    def verb(self, request: Request) -> str:
        if request.raw_path == TOKEN_PATH:
            return "oauth2.token"
        if _SERIES.fullmatch(request.path):
            return "timeSeries.list"
        found = _PATH.fullmatch(request.path)
        if found is None:
            return ""
        api = self._compute if found[1] == "compute" else self._dns
        return api.verb(request.method, found[3].split("/"))
