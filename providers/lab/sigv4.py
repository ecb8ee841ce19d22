"""AWS Signature Version 4 as a server checks it, for every emulated AWS service.

Source: the SigV4 signing process (AWS general reference), and botocore's signers.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from providers.lab.wire import Request

SKEW_MS_MAX = 15 * 60_000
"""A request dated further off is refused."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What the `Authorization` and `x-amz-date` headers say. `sent_ms`: milliseconds since the epoch."""

    access_key: str
    scope: str
    service: str
    headers: str
    """The names that are signed, joined by semicolons."""
    signature: str
    stamp: str
    sent_ms: float


def parse(headers: Mapping[str, str]) -> Signed | None:
    """None: no well-formed signature.

    Raises:
        ValueError: no valid x-amz-date.
    """
    header = headers.get("authorization", "")
    if not header.startswith("AWS4-HMAC-SHA256 "):
        return None
    fields = dict(part.strip().partition("=")[::2] for part in header[17:].split(","))
    access_key, _, scope = fields.get("Credential", "").partition("/")
    if scope.count("/") != 3:
        return None
    stamp = headers.get("x-amz-date", "")
    sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    signed, signature = fields.get("SignedHeaders", ""), fields.get("Signature", "")
    return Signed(access_key, scope, scope.split("/")[2], signed, signature, stamp, sent.timestamp() * 1000)


def matches(request: Request, signed: Signed, secret: str, payload_hash: str, *, quote_path: bool) -> bool:
    """Whether `secret` made the signature. `payload_hash`: the body's SHA-256 in hex, or what stands for it.
    `quote_path`: every service but S3 encodes the path once more."""
    path = quote(request.raw_path, safe="/~") if quote_path else request.raw_path
    pairs = (pair if "=" in pair else pair + "=" for pair in request.raw_query.split("&") if pair)
    canonical = "\n".join(
        [
            request.method,
            path,
            "&".join(sorted(pairs)),
            *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signed.headers.split(";")),
            "",
            signed.headers,
            payload_hash,
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{signed.stamp}\n{signed.scope}\n{digest}"
    expected = hmac.new(signing_key(secret, signed.scope), to_sign.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, signed.signature)


@functools.lru_cache(maxsize=256)
def signing_key(secret: str, scope: str) -> bytes:
    """The key that a secret gives in a scope (date/region/service/aws4_request)."""
    key = ("AWS4" + secret).encode()
    for step in scope.split("/"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return key
