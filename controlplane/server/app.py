"""The HTTP API: routes, the bearer token, and errors as JSON. What the routes do is `service.py`."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from controlplane.server.service import Service
from providers.base import errors
from providers.base.errors import YunheError

log = logging.getLogger(__name__)

FILES_MAX = 64
FILE_CHARS_MAX = 2 << 20
BODY_BYTES_MAX = 8 << 20

STATUS_OF: list[tuple[type[YunheError], int]] = [
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Invalid, 400),
    (errors.Full, 507),
    (errors.Unavailable, 503),
]


_bearer = HTTPBearer(auto_error=False)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Files(_Body):
    """YAML files as the caller has them."""

    files: Annotated[list[tuple[str, Annotated[str, Field(max_length=FILE_CHARS_MAX)]]], Field(max_length=FILES_MAX)]
    """(name, text) pairs; the names appear in errors."""
    prune: bool = False
    """Whether objects that the files do not name are to be removed."""


class Apply(_Body):
    """Which plan to carry out."""

    plan: Annotated[str, Field(min_length=4, max_length=128, pattern="^[0-9a-f]+$")]
    """The plan's hash, or the beginning of it."""


class ErrorAnswer(BaseModel):
    """Every refusal and failure."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    kind: str
    """One of the error kinds: Invalid, Conflict, NotFound, Unavailable, Full, Corrupt, Internal …"""
    error: str
    """One sentence."""
    hint: str | None = None
    """What to do about it."""
    fields: dict[str, Any] = {}
    """Values for programs."""


def create_app(service: Service, *, token: str) -> FastAPI:
    """The application. `token`: the bearer token that every route but /healthz asks for."""
    app = FastAPI(
        title="Yunhe control plane",
        version="v1",
        responses={code: {"model": ErrorAnswer} for code in (400, 401, 404, 409, 413, 503)},
        docs_url=None,
        redoc_url=None,
    )

    async def signed_in(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if credentials is None or not hmac.compare_digest(credentials.credentials.encode(), token.encode()):
            raise _Unauthorized()

    guarded = [Depends(signed_in)]

    @app.middleware("http")
    async def bounded(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "")
        if request.method == "POST" and (not length.isdigit() or int(length) > BODY_BYTES_MAX):
            return _answer(413, "Invalid", f"a body needs a length of at most {BODY_BYTES_MAX >> 20} MiB")
        return await go_on(request)

    @app.exception_handler(YunheError)
    async def expected(_: Request, error: YunheError) -> JSONResponse:
        code = next((code for kind, code in STATUS_OF if isinstance(error, kind)), 500)
        return _answer(code, type(error).__name__, error.message, error.hint, error.fields)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _answer(400, "Invalid", f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def unrouted(_: Request, error: HTTPException) -> JSONResponse:
        return _answer(error.status_code, "NotFound" if error.status_code == 404 else "Invalid", str(error.detail))

    @app.exception_handler(_Unauthorized)
    async def unauthorized(_: Request, __: _Unauthorized) -> JSONResponse:
        return _answer(
            401, "Invalid", "the token is missing or wrong", "it lies in the state directory, controlplane/token"
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.exception("a request failed with a bug", exc_info=error)
        return _answer(500, "Internal", f"a bug: {type(error).__name__}", "see the control plane's log")

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether this process answers, and which it is. Needs no token."""
        return service.healthz()

    @app.get("/v1/status", dependencies=guarded)
    async def status() -> dict[str, Any]:
        """All clouds with their brokers and agents, as last observed."""
        return service.status()

    @app.post("/v1/plans", dependencies=guarded)
    async def plan(body: Files) -> dict[str, Any]:
        """What applying these files would do. The plan is kept, and can be applied by its hash."""
        return await service.plan(body.files, prune=body.prune)

    @app.post("/v1/diff", dependencies=guarded)
    async def diff(body: Files) -> dict[str, Any]:
        """How these files differ from what was last applied, field by field."""
        return await service.diff(body.files)

    @app.post("/v1/operations", dependencies=guarded, status_code=202)
    async def apply(body: Apply) -> dict[str, Any]:
        """Carry out exactly that plan, or refuse it as stale. Answers at once; the operation is polled."""
        return await service.apply(body.plan)

    @app.get("/v1/operations/{id_}", dependencies=guarded)
    async def operation(id_: str) -> dict[str, Any]:
        """An operation and how far its steps are."""
        return service.operation(id_)

    @app.post("/v1/edges/{name}/trust", dependencies=guarded)
    async def trust(name: str) -> dict[str, Any]:
        """Take over the key that an edge shows now in place of the one that was pinned."""
        return service.trust(name)

    @app.get("/v1/objects/{kind}", dependencies=guarded)
    async def objects(kind: str) -> dict[str, Any]:
        """All objects of a kind, each with its status."""
        return {"items": service.objects(kind)}

    @app.get("/v1/objects/{kind}/{name}", dependencies=guarded)
    async def one(kind: str, name: str) -> dict[str, Any]:
        """One object with its status."""
        return {"items": service.objects(kind, name)}

    return app


class _Unauthorized(Exception):
    """The bearer token is missing or wrong."""


def _answer(
    code: int, kind: str, error: str, hint: str | None = None, fields: dict[str, Any] | None = None
) -> JSONResponse:
    shown = {name: value for name, value in (fields or {}).items() if _is_plain(value)}
    return JSONResponse({"kind": kind, "error": error, "hint": hint, "fields": shown}, status_code=code)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))
