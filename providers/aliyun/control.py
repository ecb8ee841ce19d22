"""What the three adapters of Alibaba Cloud's control APIs share: signing in, bounded calls, errors by code.

The SDKs (alibabacloud-ecs20140526, alibabacloud-alidns20150109) sign with ACS3-HMAC-SHA256 and repeat nothing unless
asked to; they are not asked. Their import takes more than a second, so a client is made by its first call, in that
call's thread.

Credentials: the JSON file of the address (`access_key`, `secret_key`, `security_token` if temporary), else the default
chain of alibabacloud-credentials: ALIBABA_CLOUD_ACCESS_KEY_ID and _SECRET, an OIDC role, the CLI's profile, the
instance's RAM role.

Sources of error codes: the ECS API reference (AttachDisk, DetachDisk, CreateDisk, DeleteDisk and common errors), the
Alibaba Cloud DNS error list (document 2355841), and the SDK's own exceptions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from providers.base.blocking import SdkCalls, StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.credentials import Secrets, read_credentials
from providers.base.errors import (
    Conflict,
    Full,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)
from providers.base.registry import AccountAddress

SETTINGS = StoreSettings(threads=4, call_timeout_ms=30_000, retry_max=3, retry_pause_ms=200)
"""Control calls are few and slow (hundreds of milliseconds), and limited to hundreds a minute and action."""

_CONFLICTS = frozenset(
    [
        "InvalidDisk.InUse",
        "InvalidDisk.AlreadyAttached",
        "DiskAttachedNumberExceeded",
        "DomainRecordDuplicate",
        "DomainRecordConflict",
        "DependencyViolation",
    ]
)
_CHANGING = frozenset(
    ["IncorrectDiskStatus", "DiskError", "DiskId.StatusNotSupported", "IncorrectInstanceStatus", "IdempotentProcessing"]
)
"""Refused for the state that something is in just now; nothing was changed."""

_CLOCK = frozenset(["InvalidTimeStamp.Expired", "IllegalTimestamp", "InvalidTimeStamp.Format"])

_HINTS = {
    "ResourcesNotInSameZone": "the volume does not reach the instance's zone: choose an instance of its zone",
    "InvalidOperation.InstanceTypeNotSupport": "choose an instance family with NVMe support (DescribeInstanceTypes)",
    "InstanceDiskLimitExceeded": "the instance has as many disks as its type takes: detach one, or use a larger type",
    "InvalidDiskCategory.NotSupported": "this region or zone does not offer the disk category",
    "InvalidDiskCategory.ValueNotSupported": "this region or zone does not offer the disk category",
    "InvalidAccountStatus.NotEnoughBalance": "top up the account",
    "QuotaExceeded.TTL": "this edition of Alibaba Cloud DNS takes no TTL below 600 s",
    "IdempotentParameterMismatch": "the same volume was asked for with other properties: give it another name",
    "UserNotInTheWhiteList": "the account may not use this kind of disk: ask Alibaba Cloud to enable it",
}


def open_calls(name: str, settings: StoreSettings, *, clock: Clock, rng: Rng) -> SdkCalls:
    """Bounded calls whose errors are translated here."""
    return SdkCalls(name, settings, translate, clock=clock, rng=rng)


class LazyClient:
    """An SDK client made at its first use, in whatever thread that is."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._client: Any = None

    def __call__(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._make()
            return self._client


def check_account(address: AccountAddress) -> Secrets:
    """The credentials that `address` names; empty for the default chain.

    Raises:
        Invalid: no region, an unreadable credentials file, a malformed endpoint.
    """
    if not address.region:
        raise Invalid("an Aliyun account is addressed by region", hint="for example cn-hangzhou", field="region")
    if address.endpoint is not None:
        parts = urlsplit(address.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
            raise Invalid(f"endpoint {address.endpoint!r} is not http(s)://host:port", field="endpoint")
    return read_credentials(address.credentials_file, "access_key", "secret_key")


def sdk_config(address: AccountAddress, secrets: Secrets, settings: StoreSettings) -> Any:
    """The SDKs' `Config`. A given endpoint is reached without the environment's proxies."""
    from alibabacloud_tea_openapi.utils_models import Config

    config = Config(
        region_id=address.region,
        connect_timeout=settings.connect_timeout_ms,
        read_timeout=settings.read_timeout_ms,
    )
    if secrets:
        config.access_key_id = secrets["access_key"]
        config.access_key_secret = secrets["secret_key"]
        config.security_token = secrets.get("security_token")
    else:
        from alibabacloud_credentials.client import Client as DefaultChain

        config.credential = DefaultChain()
    if address.endpoint is not None:
        parts = urlsplit(address.endpoint)
        config.endpoint = parts.netloc
        config.protocol = parts.scheme
        _without_proxies(parts.scheme, parts.netloc)
    return config


def _without_proxies(scheme: str, host: str) -> None:
    """The SDK's transport takes HTTP_PROXY for any host and knows no NO_PROXY; its sessions are kept by URL, so that
    one for `host` can be given an adapter that passes the proxies over."""
    from darabonba import core
    from requests.adapters import HTTPAdapter

    class Direct(HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["proxies"] = {}
            return super().send(*args, **kwargs)

    pool = core.DEFAULT_POOL_MAXSIZE
    session = core.DaraCore._get_session(f"{scheme}://{host}:80:pool={pool}", protocol=scheme, pool_size=pool)
    if not any(isinstance(adapter, HTTPAdapter) and host in prefix for prefix, adapter in session.adapters.items()):
        session.mount(f"{scheme}://{host}", Direct(pool_maxsize=pool))


def code_of(error: BaseException) -> str:
    """The error code of an SDK exception, "" where there is none."""
    return str(getattr(error, "code", "") or "")


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """By error code; the HTTP status decides only where the code is not known."""
    from alibabacloud_credentials.exceptions import CredentialException

    unknown = OutcomeUnknown if changes else Unavailable
    cause = getattr(error, "inner_exception", None) or error
    if isinstance(cause, CredentialException):
        return Invalid(
            f"no Aliyun credentials: {cause}",
            hint="set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or give a credentials file",
        )
    status = getattr(cause, "status_code", None)
    if status is None:
        said = str(getattr(cause, "message", "") or cause)
        # A connection that was never made sent nothing; the SDK keeps only requests' words.
        if "NewConnectionError" in said or "ConnectTimeoutError" in said or "NameResolutionError" in said:
            return Unavailable(f"{subject}: {said}")
        return unknown(f"{subject}: {said}")
    return _answer(code_of(cause), int(status), f"{subject}: {code_of(cause)}: {_words(cause)}", unknown)


def _words(error: Any) -> str:
    return str((getattr(error, "data", None) or {}).get("Message") or error.message)


def _answer(code: str, status: int, said: str, unknown: type[Unavailable]) -> YunheError:
    family = code.partition(".")[0]
    if family in ("Throttling", "FlowControl") or code.endswith("TooOfen") or status == 429:
        return Unavailable(said, hint="too many calls a minute for this account: they are repeated later", code=code)
    if code in _CLOCK:
        return Unavailable(said, hint="this machine's clock is wrong: set it by NTP", code=code)
    if family in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "IncompleteSignature", "InvalidSecurityToken"):
        return Invalid(said, hint="check the credentials: the access key is unknown, or its secret wrong", code=code)
    if family in ("Forbidden", "NoPermission", "Unauthorized") or code.startswith("Forbidden"):
        return Invalid(said, hint="these credentials lack a right: see the RAM actions in the adapter", code=code)
    if family.startswith("Quota") and code not in _HINTS:
        return Full(said, hint=f"quota {code}: delete what is unused, or ask for more in the Quota Center", code=code)
    if code in _CONFLICTS:
        return Conflict(said, code=code)
    if family in _CHANGING:
        return Unavailable(said, code=code)
    if family == "InvalidRegionId":
        return Invalid(
            said, hint="the region is written as in cn-hangzhou, and the endpoint is that region's", code=code
        )
    if code.endswith((".NotFound", ".NoExist", ".NotExist")) and family != "InvalidParameter":
        return NotFound(said, code=code)
    if status >= 500:
        return unknown(said, code=code)
    return Invalid(said, hint=_HINTS.get(code), code=code)
