"""OSS's answers as our errors: by error code, never by status alone (409 is `FileAlreadyExists` and others).

Sources: the OSS API reference (error responses; PutObject, AppendObject, CompleteMultipartUpload), its troubleshooting
pages on AccessDenied and endpoints.
"""

from __future__ import annotations

from typing import Any

from providers.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Full,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongOffset,
    YunheError,
)

_KEYS = frozenset(["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurityToken", "SecurityTokenExpired"])
_THROTTLED = frozenset(
    [
        "QpsLimitExceeded",
        "TotalQpsLimitExceeded",
        "UploadTrafficRateLimitExceeded",
        "DownloadTrafficRateLimitExceeded",
        "Throttling",
    ]
)
"""Refused before anything was done."""
_FULL = frozenset(["TooManyBuckets", "BucketCapacityExceeded", "UserCapacityExceeded"])


def cause_of(error: BaseException) -> BaseException:
    """What an SDK's `OperationError` is about."""
    unwrap = getattr(error, "unwrap", None)
    found = unwrap() if unwrap is not None else None
    return cause_of(found) if isinstance(found, BaseException) else error


def code_of(error: BaseException) -> str:
    """The OSS error code of an SDK exception, "" where there is none."""
    return str(getattr(cause_of(error), "code", None) or "")


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """See the module."""
    from alibabacloud_oss_v2 import exceptions as sdk
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    unknown = OutcomeUnknown if changes else Unavailable
    cause = cause_of(error)
    if isinstance(cause, sdk.ServiceError):
        return _answer(cause, subject, unknown)
    # A connection that was never made sent nothing.
    if isinstance(cause, NewConnectionError | ConnectTimeoutError):
        return Unavailable(f"{subject}: {cause}")
    if isinstance(cause, sdk.CredentialsBaseError):
        return Invalid(
            f"no OSS credentials: {cause}",
            hint="set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, or give a credentials file",
        )
    if isinstance(cause, sdk.BucketNameInvalidError):
        return Invalid(
            f"{subject}: {cause}",
            hint="3 to 63 lower-case letters, digits and hyphens, a letter or digit first and last",
        )
    if isinstance(cause, sdk.InconsistentError):
        return Corrupt(f"{subject}: {cause}")
    if isinstance(cause, sdk.BaseError):
        return Invalid(f"{subject}: {cause}")
    return unknown(f"{subject}: {cause}")


def _answer(error: Any, subject: str, unknown: type[Unavailable]) -> YunheError:
    code, status = str(error.code or ""), int(error.status_code or 0)
    said = f"{subject}: {code}: {error.message}"
    match code:
        case "NoSuchKey" | "SymlinkTargetNotExist":
            return NotFound(f"{subject} does not exist")
        case "FileAlreadyExists":
            return AlreadyExists(f"{subject} exists")
        case "PositionNotEqualToLength":
            actual = (error.headers or {}).get("x-oss-next-append-position")
            fields: dict[str, Any] = {"actual": int(actual)} if actual else {}
            return WrongOffset(said, **fields)
        case "NoSuchUpload":
            return Conflict(
                f"the upload of {subject} is gone", hint="it was completed, or collected as stale", code=code
            )
        case "PreconditionFailed":
            return Conflict(f"{subject} was replaced meanwhile", code=code)
        case "NoSuchBucket":
            return Invalid(said, hint="`yunhe apply` creates the bucket", code=code)
        case "ObjectNotAppendable":
            return Invalid(said, hint="OSS appends only to objects that were born appendable", code=code)
        case "InvalidBucketName":
            return Invalid(said, hint="3 to 63 lower-case letters, digits and hyphens", code=code)
        case "InvalidDigest":
            return unknown(said, code=code)  # the bytes were hurt on their way and not stored
        case "RequestTimeTooSkewed":
            return Unavailable(said, hint="this machine's clock is wrong: set it by NTP", code=code)
        case "BucketAlreadyExists":
            return Invalid(said, hint="somebody else has a bucket of this name, or yours is of another kind", code=code)
        case "UserDisable":
            return Invalid(said, hint="the account is disabled or has an overdue bill", code=code)
    if (code == "AccessDenied" and "endpoint" in str(error.message).lower()) or status in (301, 302, 307):
        endpoint = (error.error_fileds or {}).get("Endpoint") or (error.headers or {}).get("location") or "another one"
        return Invalid(said, hint=f"the bucket is in another region: its endpoint is {endpoint}", code=code)
    if code in _KEYS:
        return Invalid(said, hint="check the credentials: the access key is unknown, or its secret wrong", code=code)
    if code == "AccessDenied" or code.startswith("AccessForbidden"):
        return Invalid(said, hint="the credentials do not give access to this bucket", code=code)
    if code in _THROTTLED:
        return Unavailable(
            said, hint="the account's request limit is reached: spread the load, or ask for more", code=code
        )
    if code in _FULL or "Quota" in code:
        return Full(said, hint=f"quota {code}: delete what is unused, or ask for more in the Quota Center", code=code)
    if status == 404 and not code:
        return NotFound(f"{subject} does not exist")
    if status >= 500 or status == 429 or code == "RequestTimeout":
        return unknown(said, code=code)
    return Invalid(said, code=code)
