"""Azure Resource Manager over the lab's cores: what azure-mgmt-compute and azure-mgmt-dns send.

Here are sign-in, the common checks, links and errors; disks and machines are in `control_azure_compute.py`, record sets
in `control_azure_dns.py`. Credentials file: `tenant`, `client_id`, `client_secret`, and where they differ from the
defaults below `subscription` and `group`.

Tokens come from `POST /<tenant>/oauth2/v2.0/token` (client-credentials grant, as Microsoft Entra's v2.0 endpoint). A
token is its expiry and a MAC over it, so that it outlives a restart of the server.

Sources: the SDKs' own requests; the Resource Manager reference (common errors, asynchronous operations); the Microsoft
identity platform's client-credentials flow.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from providers.lab.control import ControlPlane
from providers.lab.wire import Reply, Request

SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"
GROUP = "yunhe-lab"
"""What a lab has whose credentials name no other."""

TOKEN_LIFETIME_S = 3600

_NAMES = {
    "disks": "disks",
    "virtualmachines": "virtualMachines",
    "locations": "locations",
    "dnszones": "dnsZones",
    "networkinterfaces": "networkInterfaces",
    "attachdetachdatadisks": "attachDetachDataDisks",
    "instanceview": "instanceView",
    "operations": "operations",
    "diskoperations": "diskOperations",
}
"""Resource Manager's paths are matched whatever their case."""

_SCOPE = re.compile(r"/subscriptions/(?P<subscription>[^/]+)(/resourceGroups/(?P<group>[^/]+))?", re.IGNORECASE)

_VERBS = {"GET": "read", "HEAD": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete", "POST": "action"}


class Refused(Exception):
    """An error answer. `bare`: without the `error` envelope, as Azure DNS does."""

    def __init__(self, status: int, code: str, message: str, *, bare: bool = False) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.bare = status, code, message, bare


@dataclass(frozen=True, slots=True)
class Place:
    """A request's path taken apart: namespace in lower case, and what follows it, the words of `_NAMES` in their usual
    case."""

    subscription: str
    group: str
    namespace: str
    parts: tuple[str, ...]


class AzureControl:
    """See `providers.lab.control.ControlDialect`."""

    def __init__(self, plane: ControlPlane) -> None:
        # The parts import this module's errors.
        from providers.lab.control_azure_compute import AzureCompute
        from providers.lab.control_azure_dns import AzureDnsZones

        self._plane = plane
        credentials = plane.credentials
        self._tenant = str(credentials["tenant"])
        self._client = str(credentials["client_id"])
        self._secret = str(credentials["client_secret"])
        self._subscription = str(credentials.get("subscription", SUBSCRIPTION))
        self._group = str(credentials.get("group", GROUP))
        self._compute = AzureCompute(plane, self._subscription, self._group)
        self._dns = AzureDnsZones(plane, self._subscription, self._group)

    def error(self, status: int, code: str, message: str) -> Reply:
        return reply(status, {"error": {"code": code, "message": message}}, {"x-ms-failure-cause": "gateway"})

    def answer(self, request: Request) -> Reply:
        try:
            if request.path.endswith("/oauth2/v2.0/token"):
                return self._token(request)
            self._authenticate(request)
            return self._answer(request)
        except Refused as refused:
            about = {"code": refused.code, "message": refused.message}
            headers = {}
            if refused.status == 401:
                headers["WWW-Authenticate"] = f'Bearer authorization_uri="{self._plane.endpoint}/{self._tenant}"'
            return reply(refused.status, about if refused.bare else {"error": about}, headers)

    def verb(self, request: Request) -> str:
        """The role action that a request needs: Microsoft.Compute/disks/write …"""
        if request.path.endswith("/oauth2/v2.0/token"):
            return "token"
        try:
            place = self._place(request.path)
        except Refused:
            return ""
        types = place.parts[::2]
        namespace = {"microsoft.compute": "Microsoft.Compute", "microsoft.network": "Microsoft.Network"}
        if place.namespace not in namespace or not types:
            return ""
        return "/".join([namespace[place.namespace], *types, _VERBS.get(request.method, "")])

    def _answer(self, request: Request) -> Reply:
        place = self._place(request.path)
        if place.subscription.lower() != self._subscription.lower():
            raise Refused(404, "SubscriptionNotFound", f"The subscription '{place.subscription}' could not be found.")
        if place.group and place.group.lower() != self._group.lower():
            raise Refused(404, "ResourceGroupNotFound", f"Resource group '{place.group}' could not be found.")
        if place.namespace == "microsoft.compute":
            return self._compute.answer(request, place)
        if place.namespace == "microsoft.network" and place.parts[0] == "dnsZones":
            return self._dns.answer(request, place)
        if place.namespace == "microsoft.network" and place.parts[0] == "networkInterfaces":
            return self._compute.interfaces(request, place)
        raise Refused(404, "InvalidResourceNamespace", f"The resource namespace of {request.path} is not emulated.")

    def _place(self, path: str) -> Place:
        scope = _SCOPE.match(path)
        if scope is None:
            raise Refused(404, "InvalidRequestUri", f"{path} names no subscription.")
        head, provider, rest = path[scope.end() :].partition("/providers/")
        if head or not provider:
            raise Refused(404, "NotFound", f"{path} names no resource provider.")
        namespace, *parts = rest.strip("/").split("/")
        named = tuple(_NAMES.get(part.lower(), part) if at % 2 == 0 else part for at, part in enumerate(parts))
        return Place(scope["subscription"], scope["group"] or "", namespace.lower(), named)

    # ---- sign-in

    def _token(self, request: Request) -> Reply:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        tenant = request.path.strip("/").split("/")[0]
        if request.method != "POST" or form.get("grant_type") != "client_credentials":
            return _sign_in_error(400, "unsupported_grant_type", "AADSTS70003: only client_credentials is emulated.")
        if tenant != self._tenant:
            return _sign_in_error(400, "invalid_request", f"AADSTS90002: Tenant '{tenant}' not found.")
        if form.get("client_id") != self._client:
            said = f"AADSTS700016: Application '{form.get('client_id')}' was not found in the directory."
            return _sign_in_error(400, "unauthorized_client", said)
        if not hmac.compare_digest(form.get("client_secret", "").encode(), self._secret.encode()):
            return _sign_in_error(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        expires_s = self._plane.clock.wall_ms() // 1000 + TOKEN_LIFETIME_S
        plain = {
            "token_type": "Bearer",
            "expires_in": TOKEN_LIFETIME_S,
            "expires_on": expires_s,
            "access_token": f"{expires_s}.{self._mac(expires_s)}",
        }
        return reply(200, plain)

    def _mac(self, expires_s: int) -> str:
        return hmac.new(self._secret.encode(), f"{self._client} {expires_s}".encode(), hashlib.sha256).hexdigest()

    def _authenticate(self, request: Request) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or not token:
            raise Refused(401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
        expires, _, mac = token.partition(".")
        if not expires.isdigit() or not hmac.compare_digest(mac.encode(), self._mac(int(expires)).encode()):
            raise Refused(401, "InvalidAuthenticationToken", "The access token is invalid.")
        if int(expires) * 1000 <= self._plane.clock.wall_ms():
            raise Refused(401, "ExpiredAuthenticationToken", "The access token expired.")


def _sign_in_error(status: int, error: str, description: str) -> Reply:
    return reply(status, {"error": error, "error_description": description})


def reply(status: int, plain: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer; None: no body."""
    body = b"" if plain is None else json.dumps(plain, separators=(",", ":")).encode()
    kind = {"Content-Type": "application/json; charset=utf-8"} if body else {}
    return Reply(status, {**kind, "x-ms-request-id": "0", **(headers or {})}, body)


def check_version(request: Request, oldest: str, newest: str, kind: str) -> None:
    """
    Raises:
        Refused: no api-version, or one that the resource type is not known to have.
    """
    version = request.query.get("api-version", "")
    if not version:
        raise Refused(400, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required.")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(-preview)?", version):
        raise Refused(400, "InvalidApiVersionParameter", f"The api-version '{version}' is invalid.")
    if not oldest <= version[:10] <= newest:
        raise Refused(
            400,
            "NoRegisteredProviderFound",
            f"No registered resource provider found for API version '{version}' for type '{kind}'.",
        )


def page(plane: ControlPlane, request: Request, rows: Sequence[dict[str, Any]]) -> Reply:
    """A listing's page; the rest is behind its `nextLink`."""
    start = int(request.query.get("$skiptoken") or 0)
    shown: dict[str, Any] = {"value": list(rows[start : start + plane.page_max])}
    if start + plane.page_max < len(rows):
        query = re.sub(r"&?(\$|%24)skiptoken=[^&]*", "", request.raw_query)
        shown["nextLink"] = f"{plane.endpoint}{request.raw_path}?{query}&$skiptoken={start + plane.page_max}"
    return reply(200, shown)


def json_body(request: Request) -> dict[str, Any]:
    """
    Raises:
        Refused: no JSON object.
    """
    try:
        plain = json.loads(request.body)
    except ValueError as error:
        raise Refused(400, "InvalidRequestContent", f"The request content was invalid: {error}") from error
    if not isinstance(plain, dict):
        raise Refused(400, "InvalidRequestContent", "The request content is no object.")
    return plain
