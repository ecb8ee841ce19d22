"""What Google's JSON APIs have in common: refusals, times, numbers for names, pages."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from providers.lab.wire import Reply, Request

T = TypeVar("T")

PAGE_MAX = 500
"""Rows a page, at most and by default (Compute Engine API reference, `maxResults`)."""


class Refusal(Exception):
    """An error as the API states it: HTTP status, `errors[].reason`, sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


def not_found(what: str) -> Refusal:
    return Refusal(404, "notFound", f"The resource '{what}' was not found")


def json_reply(status: int, value: Any) -> Reply:
    """An answer; None has no body (204)."""
    if value is None:
        return Reply(204)
    return Reply(status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(value).encode())


def timestamp(wall_ms: int) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds")


def number(*names: str) -> str:
    """A resource's unsigned 64-bit id as a decimal text, the same for the same names."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return str(int.from_bytes(digest[:8], "big") >> 1 | 1 << 60)


def page(rows: Sequence[T], request: Request, page_max: int) -> tuple[Sequence[T], dict[str, str]]:
    """One page of rows by `maxResults` and `pageToken`, of at most `page_max` (the lab's own limit), and the answer's
    `nextPageToken` if there are more."""
    limit = min(int(request.query.get("maxResults") or PAGE_MAX), PAGE_MAX, page_max)
    try:
        start = int(base64.urlsafe_b64decode(request.query.get("pageToken", "").encode()) or b"0")
    except ValueError as error:
        raise Refusal(400, "invalid", "Invalid value for field 'pageToken'") from error
    end = start + max(limit, 1)
    more = {"nextPageToken": base64.urlsafe_b64encode(str(end).encode()).decode()} if end < len(rows) else {}
    return rows[start:end], more
