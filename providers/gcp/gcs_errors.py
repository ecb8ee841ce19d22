"""What Cloud Storage's refusals mean, by the status and reason of its JSON API."""

from __future__ import annotations

from providers.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    YunheError,
)
from providers.gcp.account import reasons_of, said, status_of, translate

HINT_BUCKET = "`yunhe apply` creates the bucket"
HINT_NAME = (
    "3 to 63 lower-case letters, digits, hyphens, underscores and dots, a letter or digit at both ends, "
    "no `goog` in front, and no name that somebody else has"
)


def no_bucket(error: Exception) -> bool:
    """Whether a 404 is the bucket's. Cloud Storage has one reason, notFound, for both; its sentence tells them
    apart."""
    words = said(error)
    return "bucket" in words.lower() and "No such object" not in words


def translate_gcs(error: Exception, subject: str, changes: bool) -> YunheError:
    """For `SdkCalls`."""
    if type(error).__name__ == "DataCorruption":
        return Corrupt(f"{subject}: the bytes that came do not match their checksum")
    status, words = status_of(error), said(error)
    match status:
        case 404 if no_bucket(error):
            return Invalid(f"{subject}: {words}", hint=HINT_BUCKET)
        case 404:
            return NotFound(f"{subject} does not exist")
        case 410 if changes:
            # An upload's session ended while its last answer was lost.
            return OutcomeUnknown(f"{subject}: {words}")
        case 412 if changes:
            return AlreadyExists(f"{subject} exists")
        case 412 | 304:
            return Conflict(f"{subject} was replaced or removed meanwhile")
        case 409 if "conflict" in reasons_of(error):
            return Invalid(f"{subject}: {words}", hint=HINT_NAME)
        case 400 if "checksum" in words or "CRC32C" in words or "MD5" in words:
            return Unavailable(f"{subject}: the bytes were damaged on their way: {words}")
        case 400 if "bucket name" in words.lower():
            return Invalid(f"{subject}: {words}", hint=HINT_NAME)
    return translate(error, subject, changes)
