"""S3's errors in our words: by code, never by status alone, and each that a user can mend with what mends it.

Source: the S3 API reference, error responses; for stores that are S3-compatible, the codes that MinIO and Ceph add.
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

_MISSING = frozenset(["NoSuchKey", "404", "NotFound"])

_LATER = frozenset(
    [
        *("ConditionalRequestConflict", "ExpiredToken", "OperationAborted", "InvalidToken", "TokenRefreshRequired"),
        # An upload that was aborted, by whoever collects old ones, while its parts were still coming.
        "NoSuchUpload",
    ]
)
"""Definite answers that nothing was done, and that may be otherwise next time. S3's 409 means again."""

_ELSEWHERE = frozenset(
    [
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "301",
    ]
)

_QUOTA = frozenset(
    ["TooManyBuckets", "QuotaExceeded", "QuotaExceededException", "ServiceQuotaExceededException", "XMinioStorageFull"]
)

_CREDENTIALS = "check the credentials: for this store they are wrong, expired or another account's"

_HINTS = {
    "NoSuchBucket": "create the bucket, as `yunhe apply` does, or correct its name",
    "AccessDenied": "the credentials are known but may not do this: give them access to this bucket and prefix",
    "AllAccessDisabled": "the owner has closed this bucket: ask the account's administrator",
    "403": "the credentials are wrong, or may not do this: check them, and their access to this bucket",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS + "; the access key exists, so it is the secret key that differs",
    "InvalidBucketName": "a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens; choose another",
    "BucketAlreadyExists": "another account has a bucket of this name: choose another",
    "KeyTooLongError": "an object's key has at most 1,024 bytes: choose a shorter prefix",
    "NotImplemented": "this store lacks the operation: use another, or a mode that does not need it",
    "EntityTooLarge": "a single put takes at most 5 GiB: use a stream",
}


def code_of(error: object) -> str:
    """The service's error code; empty when it is no answer of a service."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """Any exception of the SDK or of its connections. `changes`: the request may have changed something."""
    from botocore import exceptions as sdk
    from urllib3.exceptions import ConnectTimeoutError
    from urllib3.exceptions import NewConnectionError as ConnectError

    if isinstance(error, sdk.ClientError):
        if error.operation_name == "CreateSession":
            # Asked for before the request proper, which was not sent.
            changes = False
        return _translate_answer(error, subject, changes)
    if isinstance(error, sdk.FlexibleChecksumError):
        return Corrupt(f"{subject}: the bytes that came do not match their checksum")
    if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError | sdk.CredentialRetrievalError):
        return Invalid(
            f"no AWS credentials: {error}",
            hint="name a credentials file, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
        )
    if isinstance(error, sdk.ParamValidationError | sdk.UnknownEndpointError | sdk.NoRegionError):
        return Invalid(f"{subject}: {error}")
    if isinstance(error, sdk.EndpointConnectionError | sdk.ConnectTimeoutError | ConnectError | ConnectTimeoutError):
        return Unavailable(f"{subject}: {error}", hint="is the endpoint right, and reachable from here?")
    return (OutcomeUnknown if changes else Unavailable)(f"{subject}: {error}")


def _translate_answer(error: Any, subject: str, changes: bool) -> YunheError:
    code = code_of(error)
    about = error.response.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    said = f"{subject}: {code}: {error.response.get('Error', {}).get('Message', '')}"
    region = _region(error.response)
    if code in _MISSING:
        return NotFound(f"{subject} does not exist")
    if code in ("PreconditionFailed", "412"):
        # Of a read, whose condition is the version that it began with; of a write, that there is none yet.
        if error.operation_name in ("GetObject", "UploadPartCopy"):
            return Conflict(f"{subject} was replaced while it was read")
        return AlreadyExists(f"{subject} exists")
    if code == "InvalidWriteOffset":
        return WrongOffset(said)
    if code in _ELSEWHERE or (region and status in (301, 307, 400) and code in ("400", "307")):
        where = (
            f"the bucket is in {region}: set that region in its address" if region else "set the bucket's own region"
        )
        return Invalid(said, hint=where, region=region)
    if code == "RequestTimeTooSkewed":
        return Unavailable(said, hint="this machine's clock is more than 15 minutes off: set it, by NTP for good")
    if code in _QUOTA or status == 507:
        return Full(said, hint="the store's quota is used up: have it raised, or remove what is not needed")
    if code in _LATER:
        return Unavailable(said)
    if (status >= 500 and status != 501) or status == 429 or code in ("SlowDown", "Throttling", "RequestTimeout"):
        return (OutcomeUnknown if changes else Unavailable)(said)
    return Invalid(said, hint=_HINTS.get(code))


def _region(response: dict[str, Any]) -> str:
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    named = {str(name).lower(): value for name, value in headers.items()}
    return str(response.get("Error", {}).get("Region") or named.get("x-amz-bucket-region", ""))
