"""The Blob service's errors as ours, by code; and the hint that names the fix.

Source: the Blob service's and the common storage error codes (REST reference); `StorageErrorCode` of azure-storage-blob
12.31.
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

_CLOCK_HINT = "check this machine's clock: Azure refuses requests that are dated more than 15 minutes off"

_INVALID = {
    "AuthenticationFailed": "check `account` and `account_key`, or the identity that the credentials name",
    "InvalidAuthenticationInfo": "check the credentials: `account` and `account_key`, or `tenant` and the like",
    "AuthorizationFailure": "the credentials or the account's network rules do not let this machine in",
    "AuthorizationPermissionMismatch": "give the identity the role Storage Blob Data Contributor on the container",
    "InsufficientAccountPermissions": "the credentials do not give access to this container",
    "KeyBasedAuthenticationNotPermitted": "the account allows no keys: leave `account_key` out, and sign in by Entra",
    "AccountIsDisabled": "the storage account is disabled: see the subscription's state in the portal",
    "ContainerNotFound": "`yunhe apply` creates the container",
    "InvalidResourceName": "a container has 3 to 63 lower-case letters, digits and single hyphens",
    "InvalidUri": "check the container's name and the endpoint",
    "InvalidBlobType": "appends need an object made by `create_appendable`, and puts one that is not",
    "BlockCountExceedsLimit": "an append blob takes 50,000 appends: go on in a new object",
    "BlobImmutableDueToPolicy": "the container has an immutability policy: use one without",
    "InvalidHeaderValue": "the service may not know the SDK's API version: is the endpoint an emulator?",
}

_FULL = {
    "QuotaExceeded": "raise the storage account's capacity quota",
    "AccountLimitExceeded": "raise the storage account's capacity quota",
}

_LATER = frozenset(["ContainerBeingDeleted", "AccountBeingCreated", "PendingCopyOperation"])
"""Definite answers that nothing was done, and that may be otherwise next time."""

_NOT_MET = frozenset(["ConditionNotMet", "TargetConditionNotMet", "SourceConditionNotMet"])


def code_of(error: Any) -> str:
    """The service's error code, "" where there is none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """By error code, never by status alone: 409 is `BlobAlreadyExists` and a dozen others."""
    from azure.core import exceptions as sdk

    unknown = OutcomeUnknown if changes else Unavailable
    if isinstance(error, sdk.HttpResponseError) and error.status_code:
        return _translate_answer(error, subject, unknown)
    if isinstance(error, sdk.ClientAuthenticationError):
        # From azure-identity, before anything was sent.
        first = (str(error.message).strip().splitlines() or ["no credentials"])[0]
        return Invalid(f"{subject}: {first}", hint="check `tenant`, `client_id`, `client_secret`, or run `az login`")
    if isinstance(error, sdk.AzureError) and str(error.message).startswith("MD5 mismatch"):
        # Of what came: of what was sent, the service compares it, and answers Md5Mismatch.
        return Corrupt(f"{subject}: the bytes that came do not match their checksum")
    if isinstance(error, sdk.ServiceRequestError) and "NameResolutionError" in repr(error):
        return Unavailable(f"{subject}: {error.message}", hint="check the storage account's name, and DNS")
    if isinstance(error, sdk.ServiceRequestError) and "NewConnectionError" in repr(error):
        return Unavailable(f"{subject}: {error.message}")
    return unknown(f"{subject}: {error}")


def _translate_answer(error: Any, subject: str, unknown: type[Unavailable]) -> YunheError:
    return translate_answer(
        error.status_code, code_of(error), str(error.message or error.reason or ""), subject, unknown
    )


def translate_answer(
    status: int, code: str, message: str, subject: str, unknown: type[Unavailable] = Unavailable
) -> YunheError:
    """An answer that says no: `unknown` is what a failure of the service itself means."""
    said = f"{subject}: {code or status}: {(message.splitlines() or [''])[0]}".rstrip(": ")
    found = _by_code(code, said, subject, message)
    if found is not None:
        return found
    if status == 404 and not code:
        return NotFound(f"{subject} does not exist")
    if status >= 500 or status in (408, 429):
        return unknown(said, code=code)
    if status in (401, 403):
        return Invalid(said, hint="the credentials do not give access to this container", code=code)
    return Invalid(said, code=code)


def _by_code(code: str, said: str, subject: str, message: str) -> YunheError | None:
    if code in ("BlobNotFound", "ResourceNotFound"):
        return NotFound(f"{subject} does not exist", code=code)
    if code == "BlobAlreadyExists":
        return AlreadyExists(f"{subject} exists", code=code)
    if code == "AppendPositionConditionNotMet":
        return WrongOffset(said, code=code)
    if code in _NOT_MET or code == "InvalidBlockList":
        return Conflict(said, code=code)
    if code in ("Md5Mismatch", "Crc64Mismatch"):
        # What arrived there was not what was sent: nothing was stored.
        return Unavailable(said, code=code)
    if code in _LATER:
        return Unavailable(said, code=code)
    if code in _FULL:
        return Full(said, hint=_FULL[code], code=code)
    if code == "AuthenticationFailed" and "date" in message.lower():
        return Invalid(said, hint=_CLOCK_HINT, code=code)
    if code in _INVALID:
        return Invalid(said, hint=_INVALID[code], code=code)
    return None
