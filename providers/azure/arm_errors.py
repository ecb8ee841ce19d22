"""Resource Manager's errors as ours, by code; and the hint that names the fix.

Sources: the Resource Manager and Compute error references; codes as users report them (kubernetes-sigs/
azuredisk-csi-driver and kubernetes/kubernetes issues: ConflictingUserInput, AttachDiskWhileBeingDetached).
"""

from __future__ import annotations

from typing import Any

from providers.base.errors import Conflict, Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError

_BUSY = frozenset(
    [
        # Something else is being done to the resource: it will pass.
        "AnotherOperationInProgress",
        "AttachDiskWhileBeingDetached",
        "Conflict",
        "OperationPreempted",
        "PropertyUpdateInProgress",
        "RetryableError",
        "TooManyRequests",
        "SubscriptionRequestsThrottled",
    ]
)
_NO_QUOTA = frozenset(["QuotaExceeded", "ResourceQuotaExceeded", "SubscriptionQuotaReached"])
_NOT_FOUND = frozenset(["NotFound", "ResourceNotFound", "ParentResourceNotFound"])
_SIGN_IN_HINT = "check the credentials (`tenant`, `client_id`, `client_secret`, or `az login`) and this machine's clock"
_ROLE_HINT = "give the identity of these credentials a role with the actions listed in providers/azure/volumes.py"
_REFUSED = {
    "InvalidAuthenticationToken": _SIGN_IN_HINT,
    "ExpiredAuthenticationToken": "check this machine's clock",
    "InvalidAuthenticationTokenTenant": "the credentials' `tenant` is not the one that the subscription belongs to",
    "AuthenticationFailed": _SIGN_IN_HINT,
    "AuthorizationFailed": _ROLE_HINT,
    "LinkedAuthorizationFailed": f"{_ROLE_HINT}, on the resource group, so that it covers disks and machines",
    "SubscriptionNotFound": "check the subscription id, and that the credentials' tenant is the subscription's",
    "InvalidSubscriptionId": "a subscription id is a GUID",
    "ResourceGroupNotFound": "check the resource group; `az group create` makes it",
    "MissingSubscriptionRegistration": "`az provider register --namespace Microsoft.Compute` (or Microsoft.Network)",
    "ZonesNotAvailableForSku": "choose a class that is offered in these zones: `az vm list-skus --zone`",
    "SkuNotAvailable": "choose a class that is offered in this region",
}
"""Codes that only a change of input, rights or set-up helps against, and the hint."""


def translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """By error code, never by status alone."""
    from azure.core import exceptions as sdk

    unknown = OutcomeUnknown if changes else Unavailable
    if isinstance(error, sdk.HttpResponseError) and (error.status_code or error.error):
        return _translate_answer(error, subject, unknown)
    if isinstance(error, sdk.ClientAuthenticationError):
        # From azure-identity: no request of ours was sent. Its message says which credential was tried.
        first = str(error.message).strip().splitlines()[0] if str(error.message).strip() else "no credential"
        return Invalid(f"{subject}: {first}", hint=_SIGN_IN_HINT)
    if isinstance(error, sdk.ServiceRequestError) and ("NewConnectionError" in repr(error) or "no token" in str(error)):
        return Unavailable(f"{subject}: {error.message}")
    return unknown(f"{subject}: {error}")


def code_of(error: Exception) -> str:
    """The service's error code, "" where there is none."""
    return str(getattr(getattr(error, "error", None), "code", None) or "")


def _translate_answer(error: Any, subject: str, unknown: type[Unavailable]) -> YunheError:
    code = code_of(error)
    words = str(getattr(error.error, "message", None) or error.reason or "")
    said = f"{subject}: {code or error.status_code}: {words}"
    if code in _REFUSED:
        return Invalid(said, hint=_REFUSED[code], code=code)
    if code in _NOT_FOUND:
        return NotFound(said, code=code)
    if code in _NO_QUOTA or (code == "OperationNotAllowed" and "quota" in words.lower()):
        hint = f"raise the quota that the message names: `az quota update`, or Usage + quotas in the portal ({code})"
        return Full(said, hint=hint, code=code)
    if code == "OperationNotAllowed" and "being used by another operation" in words.lower():
        return Unavailable(said, code=code)
    if code in _BUSY or error.status_code == 429:
        return Unavailable(said, code=code)
    if error.status_code == 412:
        return Conflict(said, code=code)
    if error.status_code in (401, 403):
        return Invalid(said, hint=f"{_SIGN_IN_HINT}; {_ROLE_HINT}", code=code)
    if error.status_code == 404:
        return NotFound(said, code=code)
    if error.status_code >= 500 or error.status_code == 408 or code in ("InternalServerError", "OperationTimedOut"):
        return unknown(said, code=code)
    return Invalid(said, code=code)
