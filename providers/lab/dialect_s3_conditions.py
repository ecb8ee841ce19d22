"""Conditions of S3 requests on what is there: If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from providers.lab.dialect_s3_wire import Refused, etag_of
from providers.lab.storage import Meta
from providers.lab.wire import Request


def condition_failed(name: str) -> Refused:
    """The answer to a request whose condition `name` does not hold."""
    said = "At least one of the pre-conditions you specified did not hold"
    return Refused(412, "PreconditionFailed", said, ("Condition", name))


def check_read(request: Request, meta: Meta) -> None:
    """Conditions of a read: If-Match over If-Unmodified-Since, If-None-Match over If-Modified-Since (RFC 9110, 13.2.2).

    Raises:
        Refused: 412, or 304 where the caller has it already.
    """
    headers = request.headers
    found = etag_of(meta).strip('"')
    match, none = headers.get("if-match"), headers.get("if-none-match")
    if match is not None:
        if match.strip('"') not in ("*", found):
            raise condition_failed("If-Match")
    elif "if-unmodified-since" in headers and _seconds(headers["if-unmodified-since"]) < meta.modified_ms // 1000:
        raise condition_failed("If-Unmodified-Since")
    if none is not None:
        if none.strip('"') in ("*", found):
            raise Refused(304, "NotModified", "Not Modified")
    elif "if-modified-since" in headers and _seconds(headers["if-modified-since"]) >= meta.modified_ms // 1000:
        raise Refused(304, "NotModified", "Not Modified")


def _seconds(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()
