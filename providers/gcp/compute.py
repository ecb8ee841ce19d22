"""The Compute Engine API as volumes and instances use it: names, one client for all calls, and operations awaited.

A change at Compute Engine answers with an operation, which is read until it is done. A change carries a `requestId`:
repeated with the same one within an hour it is carried out once (API reference, `requestId`), so that a lost answer may
be asked for again.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar
from uuid import UUID

from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.registry import AccountAddress
from providers.base.waiting import WaitSettings, wait_for
from providers.gcp.account import (
    SignIn,
    authorized_session,
    reasons_of,
    said,
    sign_in,
    status_of,
    translate,
    tune,
)

T = TypeVar("T")

SETTINGS = StoreSettings(read_timeout_ms=15_000, call_timeout_ms=60_000)
"""Of one request with its repeats; an operation's wait has its own bound. Compute Engine answers a change with its
operation within a second or two."""

OPERATION = WaitSettings(wait_timeout_ms=300_000)
"""An attach takes some seconds, a regional disk's creation tens; what the guest holds may take minutes to detach."""

TOKENS_MAX = 1_000
"""Changes without a known outcome whose request ids are kept; beyond that the oldest is forgotten."""

_NAME = re.compile(r"projects/([^/]+)/(regions|zones)/([^/]+)/(disks|instances)/([^/]+)$")


@dataclass(frozen=True, slots=True)
class ResourceName:
    """A disk or an instance: `projects/P/zones/Z/disks/N`, `projects/P/regions/R/disks/N`,
    `projects/P/zones/Z/instances/N`."""

    project: str
    scope: str
    """`regions` or `zones`."""
    place: str
    """The region's or the zone's name."""
    collection: str
    name: str

    def __str__(self) -> str:
        return f"projects/{self.project}/{self.scope}/{self.place}/{self.collection}/{self.name}"

    @property
    def regional(self) -> bool:
        return self.scope == "regions"

    @staticmethod
    def parse(text: str, collection: str) -> ResourceName:
        """From a resource name or a URL that ends in one.

        Raises:
            Invalid: no such name.
        """
        found = _NAME.search(text)
        if found is None or found[4] != collection:
            raise Invalid(
                f"{text!r} is no name in {collection}",
                hint=f"as describe() gives them: projects/PROJECT/zones/ZONE/{collection}/NAME",
            )
        return ResourceName(*found.groups())


def last(url: str) -> str:
    """The last segment of a resource's URL: the zone of `…/zones/us-central1-a`."""
    return url.rpartition("/")[2]


class Compute:
    """One project's Compute Engine API, in one region. All methods may raise `Unavailable` and `Invalid`."""

    def __init__(
        self,
        address: AccountAddress,
        *,
        clock: Clock,
        rng: Rng,
        settings: StoreSettings | None = None,
        wait: WaitSettings | None = None,
    ) -> None:
        settings = settings or SETTINGS
        self.wait = wait or OPERATION
        self._connections = settings.threads
        self.bounds: dict[str, Any] = {"retry": None, "timeout": settings.read_timeout_ms / 1000}
        """What every call of the SDK is given: no repeats of its own, and a time-out."""
        signed = sign_in(address.credentials_file, address.endpoint)
        self.project = address.account or signed.project
        if not self.project:
            raise Invalid("no Google Cloud project is named", hint="set the account's `account` to the project's id")
        self.region = address.region
        self._endpoint = address.endpoint
        self._credentials = signed.credentials
        self._clients: dict[str, Any] = {}
        self._session: Any = None
        self._loaded = False
        self.clock = clock
        self._rng = rng
        self._building = threading.Lock()
        self._tokens: dict[tuple[str, ...], str] = {}
        self._calls = SdkCalls(f"gce {self.project}", settings, _translate, clock=clock, rng=rng)

    @cached_property
    def sdk(self) -> Any:
        """The generated SDK. Its import takes seconds, so that it is left to the first call."""
        from google.cloud import compute_v1

        return compute_v1

    def get_json(self, service: str, path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        """A reading call of another of Google's services, at `service` unless everything is at a given endpoint; from a
        call's thread only."""
        from google.api_core.exceptions import from_http_response

        with self._building:
            if self._session is None:
                own = self._endpoint is not None
                signed = SignIn(self._credentials, self.project)
                self._session = authorized_session(signed, own_endpoint=own, connections=self._connections)
        url = f"{self._endpoint or service}{path}"
        answer = self._session.get(url, params=query, timeout=self.bounds["timeout"])
        if answer.status_code >= 300:
            raise from_http_response(answer)  # type: ignore[no-untyped-call]
        return dict(answer.json())

    def client(self, kind: str) -> Any:
        """The SDK's client of that kind, as `Instances`; from a call's thread only."""
        with self._building:
            made = self._clients.get(kind)
            if made is None:
                made = self._clients[kind] = self._make(getattr(self.sdk, f"{kind}Client"))
            return made

    def _make(self, client: Any) -> Any:
        # The transport is made here so that an endpoint may be plain http, and tokens come from the key's token_uri.
        host = {"host": self._endpoint} if self._endpoint else {}
        transport = client.get_transport_class("rest")(credentials=self._credentials, **host)
        tune(transport._session, own_endpoint=self._endpoint is not None, connections=self._connections)
        return client(transport=transport)

    async def ask(self, subject: str, call: Callable[[], T]) -> T:
        """Run a reading call in a thread, repeated within its budget.

        Raises:
            NotFound: 404.
        """
        await self._load()
        return await self._calls.repeated(subject, call)

    async def _load(self) -> None:
        """Import the SDK outside the call's time: it is seconds of work, and no fault of the cloud's."""
        if not self._loaded:
            await asyncio.to_thread(lambda: self.sdk)
            self._loaded = True

    async def change(self, subject: str, identity: tuple[str, ...], call: Callable[[str], Any]) -> None:
        """Send a change and wait until its operation is done. `call(request_id)` gives the operation; `identity` says
        what it changes: while the outcome of a change is unknown, the same one is sent with the same request id.

        Raises:
            NotFound, Conflict, Full, Invalid: what the operation ended with.
            Unavailable: it has not ended in time, and may still.
        """
        await self._load()
        token = self._tokens.setdefault(identity, str(UUID(self._rng.token(), version=4)))
        while len(self._tokens) > TOKENS_MAX:
            self._tokens.pop(next(iter(self._tokens)))
        try:
            operation = await self._calls.repeated(subject, partial(call, token), changes=True)
            await self._done(subject, operation)
        except Unavailable:
            raise
        except YunheError:
            self._tokens.pop(identity, None)
            raise
        self._tokens.pop(identity, None)

    async def _done(self, subject: str, operation: Any) -> None:
        done = self.sdk.Operation.Status.DONE

        async def look() -> Any:
            try:
                now = await self._calls.repeated(subject, partial(self._read, operation))
            except NotFound as error:
                raise OutcomeUnknown(f"{subject}: operation {operation.name} is not known any more") from error
            return now if now.status == done else None

        if operation.status != done:
            hint = f"operation {operation.name} goes on; ask again"
            operation = await wait_for(subject, look, self.wait, self.clock, hint=hint)
        if operation.error.errors:
            first = operation.error.errors[0]
            raise operation_error(subject, first.code, first.message)
        if operation.http_error_status_code >= 400:
            raise operation_error(subject, operation.http_error_message, operation.http_error_message)

    def _read(self, operation: Any) -> Any:
        where = {"project": self.project, "operation": operation.name}
        if operation.zone:
            where["zone"] = last(operation.zone)
            return self.client("ZoneOperations").get(**where, **self.bounds)
        where["region"] = last(operation.region)
        return self.client("RegionOperations").get(**where, **self.bounds)

    async def close(self) -> None:
        self._calls.close()
        with self._building:
            for client in self._clients.values():
                client.transport.close()
            if self._session is not None:
                self._session.close()


_IN_USE = frozenset({"resourceInUseByAnotherResource", "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "resourceInUse"})
_NOT_READY = frozenset({"resourceNotReady", "RESOURCE_NOT_READY"})
_QUOTA = re.compile(r"[Qq]uota '?([A-Za-z0-9_.:/-]+)'? exceeded")


def _translate(error: Exception, subject: str, changes: bool) -> YunheError:
    status = status_of(error)
    if status in (400, 403, 409, 412):
        for reason in sorted(reasons_of(error)):
            told = _by_code(subject, reason, said(error))
            if told is not None:
                return told
    if status == 404:
        return NotFound(f"{subject} does not exist: {said(error)}")
    return translate(error, subject, changes)


def operation_error(subject: str, code: str, message: str) -> YunheError:
    """What an operation that ended with an error means. Codes are the API's error reasons in upper case."""
    told = _by_code(subject, code, message)
    if told is not None:
        return told
    if code in ("INTERNAL_ERROR", "SERVICE_UNAVAILABLE", "TIMEOUT", "OPERATION_CANCELED_BY_USER"):
        return OutcomeUnknown(f"{subject}: {message} ({code})")
    return Invalid(f"{subject}: {message} ({code})", code=code)


def _by_code(subject: str, code: str, message: str) -> YunheError | None:
    words = f"{subject}: {message}"
    if code in _IN_USE:
        return Conflict(words, code=code)
    if code in ("alreadyExists", "RESOURCE_ALREADY_EXISTS"):
        return Conflict(words, code="alreadyExists")
    if code in ("notFound", "RESOURCE_NOT_FOUND"):
        return NotFound(words)
    if code in _NOT_READY:
        return Unavailable(words, hint="another change of this resource is under way")
    if code in ("quotaExceeded", "QUOTA_EXCEEDED", "limitExceeded", "LIMIT_EXCEEDED"):
        quota = _QUOTA.search(message)
        return Full(words, hint=f"raise quota {quota[1]}" if quota else "raise the quota named here", code=code)
    if code.startswith("ZONE_RESOURCE_POOL_EXHAUSTED") or code == "RESOURCE_POOL_EXHAUSTED":
        return Unavailable(words, hint="the zone has no capacity now: another zone, another type, or later")
    return None
