"""Blob Batch: several deletions in one `multipart/mixed` request, each signed, answered one by one in the same order.

Source: the REST reference (Blob Batch).
"""

from __future__ import annotations

import email.message
import email.parser
import email.policy
from collections.abc import Callable
from http import HTTPStatus

from providers.lab.dialect_azure_wire import Refused
from providers.lab.wire import Reply, Request

REQUESTS_MAX = 256
BOUNDARY = "batchresponse_yunhe"


def answer_batch(request: Request, answer: Callable[[Request], Reply]) -> Reply:
    """`answer` gets each request inside.

    Raises:
        Refused: no batch, or too large a one.
    """
    head = f"Content-Type: {request.headers.get('content-type', '')}\r\n\r\n".encode()
    parsed = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    parts = list(parsed.iter_parts()) if isinstance(parsed, email.message.EmailMessage) else []
    if not parts:
        raise Refused(400, "InvalidInput", "The batch request has no parts.")
    if len(parts) > REQUESTS_MAX:
        raise Refused(400, "ExceedsMaxBatchRequestCount", f"The batch has more than {REQUESTS_MAX} requests.")
    lines = []
    for number, part in enumerate(parts):
        payload = part.get_payload(decode=True)
        reply = answer(_inner(payload if isinstance(payload, bytes) else b""))
        content_id = part.get("Content-ID", str(number))
        lines += [
            f"--{BOUNDARY}".encode(),
            b"Content-Type: application/http",
            f"Content-ID: {content_id}".encode(),
            b"",
            _rendered(reply),
        ]
    lines += [f"--{BOUNDARY}--".encode(), b""]
    return Reply(202, {"Content-Type": f"multipart/mixed; boundary={BOUNDARY}"}, b"\r\n".join(lines))


def _inner(payload: bytes) -> Request:
    first, _, rest = payload.lstrip(b"\r\n").partition(b"\r\n")
    try:
        method, target, _ = first.decode("ascii").split(" ")
    except ValueError as error:
        raise Refused(400, "InvalidInput", "A part of the batch is no request.") from error
    headers = email.parser.BytesHeaderParser(policy=email.policy.HTTP).parsebytes(rest)
    return Request.of(method, target, {name.lower(): str(value) for name, value in headers.items()}, b"")


def _rendered(reply: Reply) -> bytes:
    body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body.pieces())
    headers = {**reply.headers, **({"Content-Length": str(len(body))} if body else {})}
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
