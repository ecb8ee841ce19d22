"""What the Blob service's requests and answers have in common: refusals, conditions, checksums, headers.

Sources: the Blob service REST reference (conditional headers, error codes, the headers of each operation).
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping
from email.utils import formatdate, parsedate_to_datetime
from xml.etree import ElementTree

from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound, Unavailable, YunheError
from providers.lab.storage import Meta
from providers.lab.wire import Reply, Request, element, xml

VERSION = "2026-10-06"
"""The newest version of the service that is spoken."""

BLOCK, APPEND = "BlockBlob", "AppendBlob"

CONTENT_MD5 = "content-md5"
CREATED = "created"
"""Attributes beside an object: the MD5 that its writer gave (base64), and when it was born (milliseconds)."""

_PROPERTIES = {
    "x-ms-blob-content-type": "content-type",
    "x-ms-blob-content-encoding": "content-encoding",
    "x-ms-blob-content-language": "content-language",
    "x-ms-blob-content-disposition": "content-disposition",
    "x-ms-blob-cache-control": "cache-control",
    "x-ms-blob-content-md5": CONTENT_MD5,
}
"""Request headers that are kept, and the answer's header that shows them."""

_META = "x-ms-meta-"


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str, *more: tuple[str, str]) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.more = status, code, message, more


def error_reply(status: int, code: str, message: str, more: Iterable[tuple[str, str]] = ()) -> Reply:
    """An error in the service's own shape."""
    body = xml(element("Error", ("Code", code), ("Message", message), *more))
    return Reply(status, {"Content-Type": "application/xml", "x-ms-error-code": code}, body)


def refusal_of(error: YunheError) -> Refused:
    """The storage's errors as the service words them."""
    match error:
        case AlreadyExists():
            return Refused(409, "BlobAlreadyExists", "The specified blob already exists.")
        case NotFound() if "bucket" in error.fields:
            return Refused(404, "ContainerNotFound", "The specified container does not exist.")
        case NotFound():
            return Refused(404, "BlobNotFound", "The specified blob does not exist.")
        case Corrupt():
            return Refused(500, "InternalError", str(error))
        case Full():
            return Refused(503, "ServerBusy", str(error))
        case Unavailable():
            return Refused(500, "OperationTimedOut", str(error))
        case Invalid():
            return Refused(400, "InvalidInput", str(error))
    return Refused(500, "InternalError", str(error))


def not_emulated(request: Request) -> Refused:
    return Refused(501, "NotImplemented", f"{request.method} {request.raw_path}?{request.raw_query} is not emulated")


def document(root: ElementTree.Element) -> Reply:
    return Reply(200, {"Content-Type": "application/xml"}, xml(root))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _crc64_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x9A6C9329AC4BC9B5 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC64 = _crc64_table()


def crc64_of(pieces: Iterable[bytes]) -> str:
    """The service's CRC-64 (as NVMe's), base64 of its bytes, the lowest first. Some MB/s: only for clients that send or
    ask for one, which azure-storage-blob does with an extension alone."""
    crc = (1 << 64) - 1
    for piece in pieces:
        for byte in piece:
            crc = _CRC64[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return encoded((crc ^ ((1 << 64) - 1)).to_bytes(8, "little"))


def check_digests(request: Request) -> dict[str, str]:
    """Compare the checksums that came with the body; those of the answer.

    Raises:
        Refused: it does not match, or there are two.
    """
    md5, crc = request.headers.get("content-md5"), request.headers.get("x-ms-content-crc64")
    if md5 is not None and crc is not None:
        raise Refused(400, "InvalidHeaderValue", "Content-MD5 and x-ms-content-crc64 exclude one another.")
    if "x-ms-structured-body" in request.headers:
        raise Refused(400, "UnsupportedHeader", "Structured bodies are not emulated.")
    if crc is not None:
        found = crc64_of(request.payload.pieces())
        if not hmac.compare_digest(found, crc):
            raise Refused(
                400,
                "Crc64Mismatch",
                "The CRC64 value specified in the request did not match with the calculated value.",
            )
        return {"x-ms-content-crc64": found}
    if md5 is None:
        return {}
    found = encoded(request.payload.md5())
    if not hmac.compare_digest(found, md5):
        raise Refused(
            400, "Md5Mismatch", "The MD5 value specified in the request did not match with the calculated value."
        )
    return {"Content-MD5": found}


def attributes_of(request: Request, now_ms: int) -> dict[str, str]:
    """What is kept beside a blob."""
    headers = request.headers
    kept = {name: headers[header] for header, name in _PROPERTIES.items() if header in headers}
    kept.update({name: value for name, value in headers.items() if name.startswith(_META)})
    return {**kept, CREATED: str(now_ms)}


def etag_of(meta: Meta) -> str:
    return f'"{meta.etag}"'


def md5_of(meta: Meta) -> str | None:
    """The MD5 that the blob has as a property."""
    given = meta.attributes.get(CONTENT_MD5)
    if given is not None:
        return given
    return None if meta.md5 is None or meta.appendable else encoded(meta.md5)


def blob_headers(meta: Meta) -> dict[str, str]:
    """Of a blob as Get Blob and Get Blob Properties show it, but for Content-Length and Content-MD5."""
    headers = {
        "ETag": etag_of(meta),
        "Last-Modified": http_date(meta.modified_ms),
        "x-ms-creation-time": http_date(created_ms(meta)),
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": APPEND if meta.appendable else BLOCK,
        "x-ms-lease-status": "unlocked",
        "x-ms-lease-state": "available",
        "x-ms-server-encrypted": "true",
        "Content-Type": meta.attributes.get("content-type", "application/octet-stream"),
    }
    if meta.appendable:
        headers["x-ms-blob-committed-block-count"] = str(meta.parts - 1)
    shown = [name for name in _PROPERTIES.values() if name not in (CONTENT_MD5, "content-type")]
    headers.update({n: v for n, v in meta.attributes.items() if n.startswith(_META) or n in shown})
    return headers


def written_headers(meta: Meta) -> dict[str, str]:
    """Of the answer to a write."""
    return {
        "ETag": etag_of(meta),
        "Last-Modified": http_date(meta.modified_ms),
        "x-ms-request-server-encrypted": "true",
    }


def created_ms(meta: Meta) -> int:
    return int(meta.attributes.get(CREATED, meta.modified_ms))


def http_date(ms: int) -> str:
    return formatdate(ms / 1000, usegmt=True)


def check_read(headers: Mapping[str, str], meta: Meta) -> None:
    """The conditions of a read.

    Raises:
        Refused: not met: 412, or 304 where the client has this version already.
    """
    if "if-match" in headers and not _matches(headers["if-match"], meta):
        raise _not_met()
    if "if-none-match" in headers and _matches(headers["if-none-match"], meta):
        raise Refused(304, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
    _check_dates(headers, meta, "if-modified-since", "if-unmodified-since", _not_met())


def check_write(headers: Mapping[str, str], meta: Meta | None) -> None:
    """The conditions of a write over what is there now. `If-None-Match: *` where nothing must be there is 409.

    Raises:
        Refused: not met.
    """
    none_match = headers.get("if-none-match")
    if none_match is not None and meta is not None and _matches(none_match, meta):
        if none_match == "*":
            raise Refused(409, "BlobAlreadyExists", "The specified blob already exists.")
        raise _not_met()
    if "if-match" in headers and (meta is None or not _matches(headers["if-match"], meta)):
        raise _not_met()
    if meta is not None:
        _check_dates(headers, meta, "if-modified-since", "if-unmodified-since", _not_met())


def check_source(headers: Mapping[str, str], meta: Meta) -> None:
    """The conditions of a copy on its source.

    Raises:
        Refused: not met.
    """
    refusal = Refused(
        412,
        "SourceConditionNotMet",
        "The source condition specified using HTTP conditional header(s) is not met.",
    )
    if "x-ms-source-if-match" in headers and not _matches(headers["x-ms-source-if-match"], meta):
        raise refusal
    if "x-ms-source-if-none-match" in headers and _matches(headers["x-ms-source-if-none-match"], meta):
        raise refusal
    _check_dates(headers, meta, "x-ms-source-if-modified-since", "x-ms-source-if-unmodified-since", refusal)


def _matches(header: str, meta: Meta) -> bool:
    return header == "*" or header.strip('"') == meta.etag


def _check_dates(headers: Mapping[str, str], meta: Meta, since: str, until: str, refusal: Refused) -> None:
    modified_s = meta.modified_ms // 1000
    if since in headers and modified_s <= parsedate_to_datetime(headers[since]).timestamp():
        raise refusal
    if until in headers and modified_s > parsedate_to_datetime(headers[until]).timestamp():
        raise refusal


def _not_met() -> Refused:
    return Refused(412, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
