"""What an error is over HTTP, in one place: status, GreptimeDB's code, InfluxDB's code; and bodies as each protocol's
clients read them.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aiohttp import web

from dataplane.tsdb.protocols.cursor import Unsupported
from providers.base.errors import (
    AlreadyExists,
    Conflict,
    Fenced,
    Full,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)

RETRY_AFTER_S = 1


class Dialect(StrEnum):
    """Whose clients read an answer."""

    GREPTIMEDB = "greptimedb"
    INFLUXDB = "influxdb"
    OPENTSDB = "opentsdb"


@dataclass(frozen=True, slots=True)
class Kind:
    """Of errors. `greptimedb`: its StatusCode; `influxdb`: version 2's code."""

    status: int
    greptimedb: int
    influxdb: str


UNAUTHORIZED = Kind(401, 7002, "unauthorized")
NO_CREDENTIALS = Kind(401, 7003, "unauthorized")
NO_DATABASE = Kind(404, 4004, "not found")
TOO_LARGE = Kind(413, 1004, "request too large")
NOT_THERE = Kind(501, 1001, "not implemented")
LATE = Kind(504, 1008, "unavailable")
BUSY = Kind(503, 6000, "unavailable")
BUG = Kind(500, 1003, "internal error")
REFUSED = Kind(400, 1004, "invalid")

_KINDS: tuple[tuple[type[BaseException], Kind], ...] = (
    (Unsupported, NOT_THERE),
    (AlreadyExists, Kind(400, 4000, "conflict")),
    (NotFound, Kind(400, 4001, "not found")),
    (Invalid, REFUSED),
    (Conflict, Kind(503, 4009, "conflict")),
    (Fenced, Kind(503, 4007, "unavailable")),
    (Full, BUSY),
    (OutcomeUnknown, Kind(503, 5000, "unavailable")),
    (Unavailable, Kind(503, 5000, "unavailable")),
    (TimeoutError, LATE),
    (asyncio.TimeoutError, LATE),
)
"""The first that an error is one of. NotFound and AlreadyExists are 400, as in GreptimeDB: 404 is a path's."""


def kind_of(error: BaseException) -> Kind:
    """What the error is over HTTP; one that nobody expected is a bug here."""
    return next((kind for what, kind in _KINDS if isinstance(error, what)), BUG)


def sentence(error: YunheError) -> str:
    """With what to do about it."""
    return f"{error.message} (hint: {error.hint})" if error.hint else error.message


def answer(kind: Kind, message: str, dialect: Dialect, *, took_ms: int = 0, **more: Any) -> web.Response:
    """The error as a response. `more`: further members of InfluxDB's body."""
    headers = {}
    if kind.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if kind.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="yunhe"'
    body: dict[str, Any]
    if dialect is Dialect.INFLUXDB:
        # `error` is read by version 1's and 3's clients, `code` and `message` by version 2's.
        body = {"code": kind.influxdb, "message": message, "error": message, **more}
        headers |= {"X-Influxdb-Error": _header(message), "X-Platform-Error-Code": kind.influxdb}
    elif dialect is Dialect.OPENTSDB:
        body = {"error": {"code": kind.status, "message": message, **more}}
    else:
        body = {"code": kind.greptimedb, "error": message, "execution_time_ms": took_ms}
        headers |= {"x-greptime-err-code": str(kind.greptimedb), "x-greptime-execution-time": str(took_ms)}
    return web.Response(
        status=kind.status, text=json.dumps(body, ensure_ascii=False), content_type="application/json", headers=headers
    )


def _header(message: str) -> str:
    return message.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")[:500]
