"""The validating webhook: HTTPS, AdmissionReview v1. It answers within its time or not at all, and the configuration's
failurePolicy then decides.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from controlplane.operator.admission import Custom, Verdict, changes_what_shall_be, judge
from providers.base.errors import YunheError

PATH = "/validate"
HEALTH_PATH = "/healthz"
ANSWER_WITHIN_S = 4.0
"""Below the configuration's timeoutSeconds of 5, so that the API server hears why."""
BODY_BYTES_MAX = 8 << 20
"""An object and its old self, each at most what etcd holds, with room for JSON."""
AT_ONCE_MAX = 8
"""Judged together; more wait, each within its time."""
CODE_INVALID = 422

Present = Callable[[str], Awaitable[Sequence[Custom]]]
"""namespace → the custom resources in it, as they are now."""


class Webhook:
    """Serves `judge`; `present` gives the other objects."""

    def __init__(self, present: Present) -> None:
        self._present = present
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address cannot be bound.
        """
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes([web.post(PATH, self._validate), web.get(HEALTH_PATH, self._healthy)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=tls)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Answer what was asked, and close."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _validate(self, http: web.Request) -> web.Response:
        try:
            request = _request_of(json.loads(await http.read()))
        except (ValueError, UnicodeDecodeError) as error:
            return web.Response(status=400, text=f"not an AdmissionReview: {error}\n")
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S), self._slots:
                verdict = await self._judged(request)
        except TimeoutError:
            return web.Response(status=504, text=f"not judged within {ANSWER_WITHIN_S:g} s\n")
        except YunheError as error:
            return web.Response(status=503, text=f"{error.message}\n")
        return web.json_response(response_of(str(request["uid"]), verdict))

    async def _judged(self, request: Mapping[str, Any]) -> Verdict:
        change = str(request.get("operation")), request.get("object"), request.get("oldObject")
        if not changes_what_shall_be(*change):
            return Verdict()  # known without the others
        present = await self._present(str(request.get("namespace") or ""))
        # Planning a thousand objects takes longer than the loop may be held.
        return await asyncio.to_thread(judge, *change, present)


def _request_of(review: Any) -> Mapping[str, Any]:
    """
    Raises:
        ValueError: it is no AdmissionReview of admission.k8s.io/v1.
    """
    if not isinstance(review, dict) or review.get("apiVersion") != "admission.k8s.io/v1":
        raise ValueError("apiVersion must be admission.k8s.io/v1")
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise ValueError("request.uid is needed")
    return request


def response_of(uid: str, verdict: Verdict) -> dict[str, Any]:
    """The AdmissionReview that answers request `uid`."""
    response: dict[str, Any] = {"uid": uid, "allowed": verdict.refused is None}
    if verdict.refused is not None:
        response["status"] = {"code": CODE_INVALID, "reason": "Invalid", "message": verdict.refused}
    if verdict.warnings:
        response["warnings"] = list(verdict.warnings)
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
