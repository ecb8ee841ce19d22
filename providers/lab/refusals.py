"""With which status and code each cloud says that it throttles, is overloaded, refuses or breaks: what injected faults
answer, so that a client sees what it would see there.

Sources: S3 and EC2 API references, error codes; Azure Blob and Resource Manager error codes; Cloud Storage JSON API and
Compute Engine error responses; OSS and ECS error centres.
"""

from __future__ import annotations

from collections.abc import Mapping

_S3 = {403: "AccessDenied", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
_CODES: Mapping[tuple[str, bool], Mapping[int, str]] = {
    ("aws", False): _S3,
    ("private", False): _S3,
    ("azure", False): {403: "AuthorizationFailure", 429: "TooManyRequests", 500: "InternalError", 503: "ServerBusy"},
    ("gcp", False): {403: "forbidden", 429: "rateLimitExceeded", 500: "backendError", 503: "backendError"},
    ("aliyun", False): {403: "AccessDenied", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"},
    ("aws", True): {403: "UnauthorizedOperation", 429: "Throttling", 500: "InternalError", 503: "Unavailable"},
    ("azure", True): {
        401: "InvalidAuthenticationToken",
        403: "AuthorizationFailed",
        429: "TooManyRequests",
        500: "InternalServerError",
        503: "ServiceUnavailable",
    },
    ("gcp", True): {403: "forbidden", 429: "rateLimitExceeded", 500: "internalError", 503: "backendError"},
    ("aliyun", True): {
        403: "Forbidden.AccessKeyDisabled",
        429: "Throttling.User",
        500: "InternalError",
        503: "ServiceUnavailable",
    },
}
_THROTTLED: Mapping[tuple[str, bool], tuple[int, str]] = {
    ("aws", False): (503, "SlowDown"),
    ("private", False): (503, "SlowDown"),
    ("azure", False): (503, "ServerBusy"),
    ("gcp", False): (429, "rateLimitExceeded"),
    ("aliyun", False): (503, "QpsLimitExceeded"),
    ("aws", True): (503, "RequestLimitExceeded"),
    ("azure", True): (429, "TooManyRequests"),
    ("gcp", True): (403, "rateLimitExceeded"),
    ("aliyun", True): (400, "Throttling.User"),
}


def code_of(provider: str, status: int, *, control: bool) -> str:
    """The provider's usual code for a status."""
    codes = _CODES.get((provider, control), _S3)
    return codes.get(status) or codes[500 if status >= 500 else 403]


def throttled(provider: str, *, control: bool) -> tuple[int, str]:
    """How the provider says that one asks too often."""
    return _THROTTLED.get((provider, control), (429, "TooManyRequests"))


def full(provider: str) -> tuple[int, str]:
    """What the emulated store answers when its disk has no room: no cloud admits to one, all say that they are
    busy."""
    return 503, code_of(provider, 503, control=False)
