"""Who is asking: AWS Signature Version 4 in a header or in the query (presigned), over the whole body, none of it, or
each of its chunks; and the five-minute sessions of S3 Express.

Sources: the S3 API reference, authenticating requests (AWS Signature Version 4), and CreateSession.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

from providers.base.clock import Clock
from providers.lab.dialect_s3_wire import NAMESPACE, Refused, document
from providers.lab.sigv4 import SKEW_MS_MAX, signing_key
from providers.lab.wire import Reply, Request, element

SESSION_TTL_MS = 5 * 60_000
"""S3 Express session credentials live five minutes (API reference, CreateSession)."""

PRESIGNED_S_MAX = 7 * 86_400
"""Seconds that a presigned request may be good for (S3 user guide)."""

_ALGORITHM = "AWS4-HMAC-SHA256"
_UNSIGNED = ("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
_CHUNKS = ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")
_EMPTY = hashlib.sha256(b"").hexdigest()


def is_directory_bucket(bucket: str) -> bool:
    """Directory buckets' names end in `--x-s3` (S3 user guide, directory bucket naming rules)."""
    return bucket.endswith("--x-s3")


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a request says of its signature."""

    access_key: str
    date: str
    region: str
    service: str
    signed: tuple[str, ...]
    signature: str
    stamp: str
    payload: str
    token: str | None

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


class S3Auth:
    """`credentials`: `access_key`, `secret_key`; `region`, where given, is the only one that signatures may name."""

    def __init__(self, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._access_key = str(credentials["access_key"])
        self._secret_key = str(credentials["secret_key"])
        self._region = str(credentials.get("region", ""))
        self._clock = clock

    def check(self, request: Request, bucket: str) -> None:
        """
        Raises:
            Refused: not signed, or not by whom and as it should be.
        """
        presigned = "X-Amz-Signature" in request.query
        claim = self._presigned(request) if presigned else self._header(request)
        if claim.access_key != self._access_key:
            raise Refused(
                403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
            )
        if self._region and claim.region != self._region:
            code = "AuthorizationQueryParametersError" if presigned else "AuthorizationHeaderMalformed"
            said = f"the region '{claim.region}' is wrong; expecting '{self._region}'"
            raise Refused(400, code, f"The authorization header is malformed; {said}", ("Region", self._region))
        _check_signed(request, claim, presigned)
        secret = self._secret_key
        if is_directory_bucket(bucket) and "session" not in request.query:
            if claim.token is not None and claim.service == "s3express":
                secret = self._session_secret(claim.token, bucket)
            elif not _without_session(request, bucket):
                raise Refused(403, "AccessDenied", "a directory bucket wants a session")
        pairs = [pair.partition("=") for pair in request.raw_query.split("&") if pair]
        query = sorted((_escaped(name), _escaped(value)) for name, _, value in pairs if name != "X-Amz-Signature")
        canonical = "\n".join(
            [
                request.method,
                quote(request.path, safe="/-_.~"),
                "&".join(f"{name}={value}" for name, value in query),
                *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in claim.signed),
                "",
                ";".join(claim.signed),
                claim.payload,
            ]
        )
        to_sign = f"{_ALGORITHM}\n{claim.stamp}\n{claim.scope}\n{_hex(canonical)}"
        key = signing_key(secret, claim.scope)
        if not hmac.compare_digest(_sign(key, to_sign), claim.signature):
            raise Refused(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. Check your key and "
                "signing method.",
            )
        self._check_payload(request, claim, key)

    def _check_payload(self, request: Request, claim: _Claim, key: bytes) -> None:
        if claim.payload in _UNSIGNED:
            return
        if claim.payload in _CHUNKS:
            self._check_chunks(request, claim, key)
        elif claim.payload != (request.payload.sha256().hex() if request.payload.size else _EMPTY):
            raise Refused(
                400,
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            )

    def _check_chunks(self, request: Request, claim: _Claim, key: bytes) -> None:
        before = claim.signature
        where = f"{claim.stamp}\n{claim.scope}"
        wrong = Refused(403, "SignatureDoesNotMatch", "The signature of a chunk does not match.")
        for chunk in request.payload.signed_chunks:
            expected = _sign(key, f"{_ALGORITHM}-PAYLOAD\n{where}\n{before}\n{_EMPTY}\n{chunk.sha256}")
            if not hmac.compare_digest(expected, chunk.signature):
                raise wrong
            before = expected
        if not request.payload.signed_chunks:
            raise wrong
        if claim.payload.endswith("-TRAILER"):
            trailers = dict(request.payload.trailers)
            signature = trailers.pop("x-amz-trailer-signature", "")
            lines = "".join(f"{name}:{value}\n" for name, value in sorted(trailers.items()))
            expected = _sign(key, f"{_ALGORITHM}-TRAILER\n{where}\n{before}\n{_hex(lines)}")
            if not hmac.compare_digest(expected, signature):
                raise wrong

    def _header(self, request: Request) -> _Claim:
        header = request.headers.get("authorization", "")
        if not header.startswith(_ALGORITHM + " "):
            raise Refused(403, "AccessDenied", "Access Denied: a SigV4 Authorization header is needed")
        fields = dict(part.strip().partition("=")[::2] for part in header[len(_ALGORITHM) + 1 :].split(","))
        stamp = request.headers.get("x-amz-date", "")
        self._check_age(stamp)
        return self._claim(
            fields.get("Credential", ""),
            fields.get("SignedHeaders", ""),
            fields.get("Signature", ""),
            stamp,
            request.headers.get("x-amz-content-sha256", ""),
            request.headers.get("x-amz-s3session-token"),
            presigned=False,
        )

    def _presigned(self, request: Request) -> _Claim:
        query = request.query
        stamp = query.get("X-Amz-Date", "")
        given = query.get("X-Amz-Expires", "")
        seconds = int(given) if given.isascii() and given.isdigit() else 0
        if query.get("X-Amz-Algorithm") != _ALGORITHM or not 0 < seconds <= PRESIGNED_S_MAX:
            raise Refused(400, "AuthorizationQueryParametersError", "the presigned query is malformed")
        age_ms = self._clock.wall_ms() - _moment_ms(stamp)
        if age_ms > seconds * 1000:
            raise Refused(403, "AccessDenied", "Request has expired")
        if age_ms < -SKEW_MS_MAX:
            raise Refused(403, "AccessDenied", "Request is not yet valid")
        return self._claim(
            query.get("X-Amz-Credential", ""),
            query.get("X-Amz-SignedHeaders", ""),
            query.get("X-Amz-Signature", ""),
            stamp,
            request.headers.get("x-amz-content-sha256", _UNSIGNED[0]),
            query.get("X-Amz-S3session-Token"),
            presigned=True,
        )

    def _claim(
        self,
        credential: str,
        signed: str,
        signature: str,
        stamp: str,
        payload: str,
        token: str | None,
        *,
        presigned: bool,
    ) -> _Claim:
        scope = credential.split("/")
        if len(scope) != 5 or scope[4] != "aws4_request" or not stamp.startswith(scope[1]):
            if presigned:
                raise Refused(400, "AuthorizationQueryParametersError", "Error parsing the X-Amz-Credential parameter.")
            raise Refused(400, "AuthorizationHeaderMalformed", "The authorization header is malformed.")
        names = tuple(signed.split(";"))
        return _Claim(scope[0], scope[1], scope[2], scope[3], names, signature, stamp, payload, token)

    def _check_age(self, stamp: str) -> None:
        if abs(_moment_ms(stamp) - self._clock.wall_ms()) > SKEW_MS_MAX:
            raise Refused(
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            )

    # -- sessions of S3 Express

    def create_session(self, bucket: str) -> Reply:
        """Session credentials. boto3 asks for them before CreateBucket too when it is given an endpoint, so the bucket
        need not exist yet."""
        expires_ms = self._clock.wall_ms() + SESSION_TTL_MS
        token = base64.urlsafe_b64encode(f"{expires_ms}/{bucket}".encode()).decode().rstrip("=")
        token += "." + self._seal(token)
        expiration = datetime.fromtimestamp(expires_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        credentials = element(
            "Credentials",
            ("SessionToken", token),
            ("SecretAccessKey", self._seal("secret " + token)),
            ("AccessKeyId", self._access_key),
            ("Expiration", expiration),
        )
        return document(element("CreateSessionResult", credentials, xmlns=NAMESPACE))

    def _seal(self, text: str) -> str:
        return hmac.new(self._secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()

    def _session_secret(self, token: str, bucket: str) -> str:
        """The secret that belongs to a session token. Stateless, so that sessions outlive a restart of the server."""
        payload, _, seal = token.partition(".")
        if not hmac.compare_digest(seal, self._seal(payload)):
            raise Refused(403, "InvalidToken", "the session token is not one of ours")
        plain = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode()
        expires_ms, _, of = plain.partition("/")
        if int(expires_ms) < self._clock.wall_ms():
            raise Refused(400, "ExpiredToken", "the session has expired")
        if of != bucket:
            raise Refused(403, "AccessDenied", "the session is for another bucket")
        return self._seal("secret " + token)


def _check_signed(request: Request, claim: _Claim, presigned: bool) -> None:
    """The host and every x-amz- header are part of what is signed (SigV4, canonical headers).

    Raises:
        Refused: one is not.
    """
    exempt = {"x-amz-content-sha256"} if presigned else set()
    wanted = {name for name in request.headers if name == "host" or name.startswith("x-amz-")} - exempt
    left_out = wanted.difference(claim.signed)
    if left_out:
        said = "There were headers present in the request which were not signed"
        raise Refused(403, "AccessDenied", said, ("HeadersNotSigned", ", ".join(sorted(left_out))))


def _without_session(request: Request, bucket: str) -> bool:
    """What a directory bucket takes with ordinary credentials: CreateBucket, DeleteBucket and HeadBucket, CopyObject
    and UploadPartCopy (API reference of each, permissions)."""
    of_bucket = request.path.strip("/") == bucket and request.method in ("PUT", "DELETE", "HEAD")
    return of_bucket or "x-amz-copy-source" in request.headers


def _moment_ms(stamp: str) -> float:
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() * 1000
    except ValueError as error:
        raise Refused(403, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header") from error


def _sign(key: bytes, to_sign: str) -> str:
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _escaped(text: str) -> str:
    return quote(unquote(text), safe="-_.~")
