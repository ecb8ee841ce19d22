"""Aliyun's control APIs over the lab's cores: RPC style with ACS3-HMAC-SHA256 signatures, as the Tea SDKs send it.

A request is `POST /?<parameters>` with the action and the API's version in headers; an answer is JSON. Lists come
flattened (`Tag.1.Key`). The ECS actions are in `control_aliyun_ecs.py`, the DNS ones in `control_aliyun_dns.py`.

Sources: the V3 request structure and signature page of the OpenAPI documentation, alibabacloud-tea-openapi 0.4.6
(what is signed and how), the common error codes of ECS. Left out: the older V1 (query) signature, STS sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote

from providers.base.errors import YunheError
from providers.lab.control import ControlPlane
from providers.lab.control_aliyun_dns import DNS_ACTIONS, AliDnsActions
from providers.lab.control_aliyun_ecs import ECS_ACTIONS, EcsActions
from providers.lab.control_aliyun_errors import Refused
from providers.lab.wire import Reply, Request

SKEW_MS_MAX = 15 * 60_000
"""A request dated further off is refused (InvalidTimeStamp.Expired)."""

NONCES_MAX = 20_000
"""Nonces remembered, so that a request that is sent again word by word is refused; the oldest go first."""

_ALGORITHM = "ACS3-HMAC-SHA256"
_SIGNED_ALWAYS = frozenset(["host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce"])


class AliyunControl:
    """`plane.credentials`: `access_key`, `secret_key`, and `cross_zone_sharing`: whether a regional disk may be
    attached in two zones at once (default true; the documents disagree)."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._access_key = str(plane.credentials["access_key"])
        self._secret_key = str(plane.credentials["secret_key"])
        self._nonces: OrderedDict[str, None] = OrderedDict()
        self._nonces_lock = threading.Lock()
        ecs, dns = EcsActions(plane), AliDnsActions(plane)
        self._actions: dict[tuple[str, str], Callable[[Mapping[str, str]], dict[str, Any]]] = {
            **{("2014-05-26", name): getattr(ecs, method) for name, method in ECS_ACTIONS.items()},
            **{("2015-01-09", name): getattr(dns, method) for name, method in DNS_ACTIONS.items()},
        }

    def verb(self, request: Request) -> str:
        return request.headers.get("x-acs-action", "") or request.query.get("Action", "")

    def error(self, status: int, code: str, message: str) -> Reply:
        return self._json(status, {"Code": code, "Message": message, "HostId": "lab", "Recommend": ""})

    def answer(self, request: Request) -> Reply:
        try:
            arguments = self._authenticated(request)
            action = self._actions.get((request.headers.get("x-acs-version", ""), self.verb(request)))
            if action is None:
                raise Refused(404, "InvalidAction.NotFound", "Specified api is not found, please check your url.")
            return self._json(200, action(arguments))
        except Refused as refused:
            return self.error(refused.status, refused.code, refused.message)
        except (ValueError, KeyError, TypeError) as error:
            return self.error(400, "InvalidParameter", f"a parameter is malformed: {error!r}")
        except (YunheError, OSError) as error:
            return self.error(500, "InternalError", str(error))

    def _json(self, status: int, plain: dict[str, Any]) -> Reply:
        token = self._plane.rng.token().upper()
        request_id = "-".join((token[:8], token[8:12], token[12:16], token[16:20], token[20:]))
        body = json.dumps({**plain, "RequestId": request_id}).encode()
        return Reply(status, {"Content-Type": "application/json;charset=utf-8", "x-acs-request-id": request_id}, body)

    def _authenticated(self, request: Request) -> Mapping[str, str]:
        """The action's parameters.

        Raises:
            Refused: unsigned, wrongly signed, too old, or sent before.
        """
        headers = request.headers
        algorithm, _, rest = headers.get("authorization", "").partition(" ")
        if algorithm != _ALGORITHM:
            raise Refused(400, "IncompleteSignature", f"an Authorization header of {_ALGORITHM} is needed")
        parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        if parts.get("Credential") != self._access_key:
            raise Refused(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        signed = parts.get("SignedHeaders", "").split(";")
        if not set(signed) >= _SIGNED_ALWAYS:
            raise Refused(400, "IncompleteSignature", f"signed headers lack {sorted(_SIGNED_ALWAYS - set(signed))}")
        digest = hashlib.sha256(request.body).hexdigest()
        if headers.get("x-acs-content-sha256") != digest:
            raise Refused(400, "SignatureDoesNotMatch", "x-acs-content-sha256 is not the body's")
        pairs = sorted(parse_qsl(request.raw_query, keep_blank_values=True))
        canonical = "\n".join(
            [
                request.method,
                request.raw_path or "/",
                "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in pairs),
                *(f"{name}:{headers.get(name, '').strip()}" for name in signed),
                "",
                ";".join(signed),
                digest,
            ]
        )
        to_sign = f"{_ALGORITHM}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        expected = hmac.new(self._secret_key.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, parts.get("Signature", "")):
            raise Refused(400, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation.")
        self._check_fresh(headers.get("x-acs-date", ""), headers.get("x-acs-signature-nonce", ""))
        form = request.body.decode() if "form-urlencoded" in headers.get("content-type", "") else ""
        return {**dict(pairs), **dict(parse_qsl(form, keep_blank_values=True))}

    def _check_fresh(self, date: str, nonce: str) -> None:
        try:
            sent_ms = datetime.strptime(date, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp() * 1000
        except ValueError as error:
            raise Refused(400, "InvalidTimeStamp.Format", "Specified time stamp or date value is malformed.") from error
        if abs(sent_ms - self._plane.clock.wall_ms()) > SKEW_MS_MAX:
            raise Refused(400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
        with self._nonces_lock:
            if nonce in self._nonces:
                raise Refused(400, "SignatureNonceUsed", "Specified signature nonce was used already.")
            self._nonces[nonce] = None
            while len(self._nonces) > NONCES_MAX:
                self._nonces.popitem(last=False)
