"""What stands before every HTTP request: who asks, how many at once, how long, how much; and what was counted.

Begin at `Guard.middleware`. It turns every error into an answer of the route's dialect (`http_errors.py`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from dataplane.tsdb.protocols.http_errors import (
    BUG,
    BUSY,
    LATE,
    NO_CREDENTIALS,
    REFUSED,
    TOO_LARGE,
    UNAUTHORIZED,
    Dialect,
    Kind,
    answer,
    kind_of,
    sentence,
)
from providers.base.clock import Clock
from providers.base.errors import Internal, YunheError

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Of the HTTP side."""

    body_bytes_max: int = 16 << 20
    """Of one request, after decompression."""
    requests_max: int = 32
    """Under way at once; more are told to come again. With `body_bytes_max` it bounds memory. Health and metrics are
    not counted."""
    request_ms_max: int = 30_000
    """How long one may take, its body included: a writer that sends slowly does not hold a place for ever."""


@dataclass(frozen=True, slots=True)
class Route:
    """How one is treated. `name`: its label in metrics; `open`: without credentials, and never turned away."""

    name: str
    dialect: Dialect = Dialect.GREPTIMEDB
    open: bool = False


@dataclass(slots=True)
class Counters:
    """Since the start."""

    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    """By route and status: routes are a fixed list, statuses few."""
    rows: int = 0
    refused: int = 0
    busy: int = 0
    under_way: int = 0
    milliseconds: float = 0.0


class Guard:
    """See the module. `users`: passwords by name; without any, everybody may do everything."""

    def __init__(self, *, clock: Clock, settings: HttpSettings, users: Mapping[str, str]) -> None:
        self._clock = clock
        self._settings = settings
        self._users = {name: _digest(password) for name, password in users.items()}
        self.routes: dict[object, Route] = {}
        """By aiohttp's resource."""
        self.counters = Counters()
        self.closing = False

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Admit, time, translate errors, count."""
        route = self.routes.get(request.match_info.route.resource) or Route("unknown", open=True)
        began_ms = self._clock.monotonic_ms()
        if route.open:
            response = await self._answered(request, handler, route, began_ms)
        elif (refused := self._refused(request, route)) is not None:
            response = refused
        elif self.closing or self.counters.under_way >= self._settings.requests_max:
            self.counters.busy += 1
            why = "the database closes" if self.closing else f"{self.counters.under_way} requests are under way"
            response = answer(BUSY, why, route.dialect)
        else:
            self.counters.under_way += 1
            try:
                response = await self._answered(request, handler, route, began_ms)
            finally:
                self.counters.under_way -= 1
        self.counters.milliseconds += self._clock.monotonic_ms() - began_ms
        key = (route.name, response.status)
        self.counters.requests[key] = self.counters.requests.get(key, 0) + 1
        return response

    async def _answered(
        self, request: web.Request, handler: Handler, route: Route, began_ms: float
    ) -> web.StreamResponse:
        kind, message, whole = BUG, "", True
        try:
            async with asyncio.timeout(self._settings.request_ms_max / 1_000):
                return await handler(request)
        except TimeoutError:
            kind = LATE
            message = (
                f"not done within {self._settings.request_ms_max} ms: a write may or may not be stored, "
                "and may be sent again"
            )
        except YunheError as error:
            kind, message = kind_of(error), sentence(error)
            if isinstance(error, Internal):
                log.exception("http-error route=%s", route.name)
        except web.HTTPRequestEntityTooLarge:
            kind, message = TOO_LARGE, f"the body is larger than {self._settings.body_bytes_max} bytes"
        except web.HTTPException as error:
            kind = Kind(
                error.status, 1004 if error.status < 500 else 1003, "not found" if error.status == 404 else "invalid"
            )
            message = f"{request.method} {request.path}: {error.reason}"
        except web.RequestPayloadError as error:
            kind, message, whole = REFUSED, f"the body cannot be read: {error}", False
        except Exception:  # a bug is answered, and seen in the log
            log.exception("http-bug route=%s", route.name)
            message = "an error here: see the database's log"
        response = answer(kind, message, route.dialect, took_ms=round(self._clock.monotonic_ms() - began_ms))
        if not whole or kind in (LATE, TOO_LARGE):
            response.force_close()  # nobody knows where the next request would begin
        return response

    def _refused(self, request: web.Request, route: Route) -> web.Response | None:
        if not self._users:
            return None
        try:
            given = credentials(request.headers, request.query)
        except ValueError:
            given = None
        if given is None:
            return answer(NO_CREDENTIALS, "this database asks who you are: user and password", route.dialect)
        user, password = given
        known = self._users.get(user, _NOBODY)
        if not hmac.compare_digest(known, _digest(password)):
            return answer(UNAUTHORIZED, "user and password do not match", route.dialect)
        return None


def credentials(headers: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password, as any of the clients gives them: Basic (in `authorization` or GreptimeDB's own header),
    `Token user:password` or `Bearer user:password` (InfluxDB 2 and 3), `u` and `p` (InfluxDB 1); None: none.

    Raises:
        ValueError: they cannot be understood.
    """
    header = headers.get("x-greptime-auth") or headers.get("Authorization")
    if header is None:
        return (query["u"], query.get("p", "")) if "u" in query else None
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode()
        except binascii.Error as error:
            raise ValueError("no base64") from error
    elif scheme.lower() not in ("token", "bearer"):
        raise ValueError(f"scheme {scheme!r}")
    user, colon, password = value.partition(":")
    if not colon:
        raise ValueError("no colon between user and password")
    return user, password


def _digest(password: str) -> bytes:
    """Of one length, so that comparing tells nothing of another."""
    return hashlib.sha256(password.encode()).digest()


_NOBODY = b"\0" * 32
"""No password's digest that anybody knows."""
