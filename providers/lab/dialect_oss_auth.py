"""Who signed an OSS request: versions 1 and 4, in the Authorization header or, for presigned URLs, in the query.

    V1   HMAC-SHA1 over method, MD5, type, date, x-oss-* headers, and the resource with the arguments that name one
    V4   HMAC-SHA256 over the canonical request, with a key derived from date, region and product (`aliyun_v4`)

Sources: the OSS API reference (signature pages V1 and V4) and what both SDKs send (oss2 2.19, alibabacloud-oss-v2 1.4).
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from hashlib import sha256
from urllib.parse import quote, unquote, unquote_plus

from providers.base.clock import Clock
from providers.lab.wire import Request

SKEW_MS_MAX = 15 * 60_000
"""A request dated further off is refused (OSS API reference, RequestTimeTooSkewed)."""

PRESIGNED_S_MAX = 7 * 86_400
"""A V4 URL is valid for at most seven days."""

_ALGORITHM = "OSS4-HMAC-SHA256"
_SIGNING = frozenset(
    """OSSAccessKeyId Expires Signature x-oss-signature-version x-oss-date x-oss-expires x-oss-credential
    x-oss-signature x-oss-additional-headers x-oss-security-token""".split()  # noqa: SIM905 -- a list of names
)
_QUERY_SIGNATURE = frozenset(["x-oss-signature"])

# fmt: off
_V1_ARGUMENTS = frozenset([
    "acl", "append", "bucketInfo", "cname", "comp", "continuation-token", "cors", "delete", "encryption",
    "endTime", "img", "inventory", "inventoryId", "lifecycle", "live", "location", "logging", "objectMeta",
    "partNumber", "policy", "position", "qos", "qosInfo", "referer", "replication", "replicationLocation",
    "replicationProgress", "requestPayment", "response-cache-control", "response-content-disposition",
    "response-content-encoding", "response-content-language", "response-content-type", "response-expires",
    "restore", "security-token", "sequential", "startTime", "stat", "status", "style", "styleName", "symlink",
    "tagging", "uploadId", "uploads", "versionId", "versioning", "versions", "vod", "website", "worm",
    "wormExtend", "wormId", "x-oss-process", "x-oss-traffic-limit",
])
# fmt: on
"""Query arguments that are part of V1's signed resource (signature page, and oss2's own list)."""


class Refused(Exception):
    """An answer in OSS's own words; `headers` beside the usual ones, `fields` more elements of the error's document."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}
        self.fields = fields or {}


class OssAuth:
    """Checks signatures of the one account that is let in."""

    def __init__(self, access_key: str, secret_key: str, region: str | None, clock: Clock) -> None:
        self._access_key = access_key
        self._secret_key = secret_key
        self._region = region
        self._clock = clock

    def check(self, request: Request) -> Request:
        """The request, without what signed it where that was the query.

        Raises:
            Refused: unsigned, wrongly signed, or dated too far off.
        """
        shown = request.headers.get("authorization", "")
        if shown.startswith(_ALGORITHM):
            self._check_v4(request, shown)
        elif shown.startswith("OSS "):
            self._check_v1(request, shown)
        elif request.query.get("x-oss-signature-version") == _ALGORITHM:
            self._check_v4_query(request)
        elif "Signature" in request.query and "Expires" in request.query:
            self._check_v1_query(request)
        else:
            raise Refused(403, "AccessDenied", "You have no right to access this object because of bucket acl.")
        if request.query and not shown:
            rest = {name: value for name, value in request.query.items() if name not in _SIGNING}
            return replace(request, query=rest)
        return request

    # ---- version 1

    def _check_v1(self, request: Request, shown: str) -> None:
        access_key, _, signature = shown.removeprefix("OSS ").partition(":")
        self._check_key(access_key)
        date = request.headers.get("x-oss-date") or request.headers.get("date", "")
        try:
            sent_ms = parsedate_to_datetime(date).timestamp() * 1000
        except (ValueError, TypeError) as error:
            raise Refused(403, "AccessDenied", "OSS authentication requires a valid Date.") from error
        self._check_date(sent_ms)
        self._compare(self._sign_v1(request, date), signature)

    def _check_v1_query(self, request: Request) -> None:
        query = request.query
        self._check_key(query.get("OSSAccessKeyId", ""))
        if int(query["Expires"]) * 1000 < self._clock.wall_ms():
            raise Refused(403, "AccessDenied", "Request has expired.")
        self._compare(self._sign_v1(request, query["Expires"]), query["Signature"])

    def _sign_v1(self, request: Request, date: str) -> str:
        headers = sorted((name, value) for name, value in request.headers.items() if name.startswith("x-oss-"))
        arguments = sorted((name, value) for name, value in request.query.items() if name in _V1_ARGUMENTS)
        resource = request.path
        if resource.count("/") == 1 and resource != "/":
            resource += "/"
        if arguments:
            resource += "?" + "&".join(f"{name}={value}" if value else name for name, value in arguments)
        text = "\n".join(
            [
                request.method,
                request.headers.get("content-md5", ""),
                request.headers.get("content-type", ""),
                date,
                *(f"{name}:{value}" for name, value in headers),
                resource,
            ]
        )
        return base64.b64encode(hmac.digest(self._secret_key.encode(), text.encode(), "sha1")).decode()

    # ---- version 4

    def _check_v4(self, request: Request, shown: str) -> None:
        parts = dict(part.strip().partition("=")[::2] for part in shown.removeprefix(_ALGORITHM).split(","))
        stamp = request.headers.get("x-oss-date", "")
        payload = request.headers.get("x-oss-content-sha256", "")
        if payload != "UNSIGNED-PAYLOAD":
            raise Refused(400, "InvalidArgument", "x-oss-content-sha256 must be UNSIGNED-PAYLOAD.")
        self._check_date(_stamp_ms(stamp))
        additional = [name for name in parts.get("AdditionalHeaders", "").split(";") if name]
        self._check_signature(request, parts.get("Credential", ""), stamp, additional, parts.get("Signature", ""))

    def _check_v4_query(self, request: Request) -> None:
        query = request.query
        stamp, expires_s = query.get("x-oss-date", ""), int(query.get("x-oss-expires", "0"))
        sent_ms = _stamp_ms(stamp)
        if not 0 < expires_s <= PRESIGNED_S_MAX:
            raise Refused(400, "InvalidArgument", f"x-oss-expires is 1 to {PRESIGNED_S_MAX} seconds.")
        now_ms = self._clock.wall_ms()
        if now_ms > sent_ms + expires_s * 1000 or sent_ms > now_ms + SKEW_MS_MAX:
            raise Refused(403, "AccessDenied", "Request has expired.")
        additional = [name for name in query.get("x-oss-additional-headers", "").split(";") if name]
        credential = query.get("x-oss-credential", "")
        self._check_signature(request, credential, stamp, additional, query.get("x-oss-signature", ""))

    def _check_signature(
        self, request: Request, credential: str, stamp: str, additional: list[str], signature: str
    ) -> None:
        access_key, _, scope = credential.partition("/")
        self._check_key(access_key)
        date, region, product, last = [*scope.split("/"), "", "", "", ""][:4]
        if date != stamp[:8] or last != "aliyun_v4_request":
            raise Refused(400, "InvalidArgument", "Invalid signing date or scope in Authorization header.")
        if self._region is not None and region != self._region:
            raise Refused(400, "InvalidArgument", f"Invalid signing region in Authorization header: {region}.")
        canonical = _canonical(request, additional)
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        key = _signing_key(self._secret_key, date, region, product)
        self._compare(hmac.digest(key, text.encode(), "sha256").hex(), signature)

    # ---- what both have

    def _check_key(self, access_key: str) -> None:
        if access_key != self._access_key:
            raise Refused(403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist.")

    def _check_date(self, sent_ms: float) -> None:
        if abs(sent_ms - self._clock.wall_ms()) > SKEW_MS_MAX:
            message = "The difference between the request time and the current time is too large."
            raise Refused(403, "RequestTimeTooSkewed", message)

    def _compare(self, expected: str, shown: str) -> None:
        if not hmac.compare_digest(expected.encode(), shown.encode()):
            message = "The request signature we calculated does not match the signature you provided."
            raise Refused(403, "SignatureDoesNotMatch", message)


@lru_cache(maxsize=64)
def _stamp_ms(stamp: str) -> float:
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() * 1000
    except ValueError as error:
        raise Refused(403, "AccessDenied", "OSS authentication requires a valid Date.") from error


@lru_cache(maxsize=64)
def _signing_key(secret: str, date: str, region: str, product: str) -> bytes:
    key = f"aliyun_v4{secret}".encode()
    for part in (date, region, product, "aliyun_v4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _canonical(request: Request, additional: list[str]) -> str:
    path = unquote(request.raw_path)
    if path.count("/") == 1 and path != "/":
        path += "/"
    pairs = []
    for pair in request.raw_query.split("&") if request.raw_query else ():
        name, _, value = pair.partition("=")
        name = quote(unquote_plus(name), safe="")
        if name not in _QUERY_SIGNATURE:
            pairs.append((name, quote(unquote_plus(value), safe="")))
    pairs.sort()
    signed = [
        (name, value.strip())
        for name, value in sorted(request.headers.items())
        if name.startswith("x-oss-") or name in ("content-type", "content-md5") or name in additional
    ]
    return "\n".join(
        [
            request.method,
            quote(path, safe="/"),
            "&".join(f"{name}={value}" if value else name for name, value in pairs),
            "".join(f"{name}:{value}\n" for name, value in signed),
            ";".join(sorted(additional)),
            request.headers.get("x-oss-content-sha256", "UNSIGNED-PAYLOAD"),
        ]
    )
