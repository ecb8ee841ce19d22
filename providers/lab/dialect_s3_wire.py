"""What the parts of the S3 dialect share: refusals, headers of an object, checksums that come with a body.

Sources: the S3 API reference (common request and response headers, error responses) and the user guide, checking object
integrity.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from xml.etree import ElementTree

from providers.base.errors import AlreadyExists, Conflict, Corrupt, Full, Invalid, NotFound, WrongOffset, YunheError
from providers.lab.storage import Meta
from providers.lab.storage_payload import Payload
from providers.lab.wire import Reply, Request, element, xml

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

XML_HEADERS = {"Content-Type": "application/xml"}

KEPT_HEADERS = (
    "content-type",
    "content-encoding",
    "content-disposition",
    "content-language",
    "cache-control",
    "expires",
)
"""Stored with an object and given back, as `x-amz-meta-…` are."""

CHECKSUM = "x-amz-checksum-"

_DIGESTS: Mapping[str, Callable[[Payload], bytes]] = {
    "crc32": lambda payload: payload.crc32.to_bytes(4, "big"),
    "crc32c": lambda payload: payload.crc32c.to_bytes(4, "big"),
    "sha1": lambda payload: payload.sha1(),
    "sha256": lambda payload: payload.sha256(),
}
"""Checksums that can be asked of a body. S3's others (crc64nvme, xxhash) are refused."""


class Refused(Exception):
    """An error answer on its way out; `extra` are further elements of its document."""

    def __init__(self, status: int, code: str, message: str, *extra: tuple[str, str]) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.extra = status, code, message, extra


def error_reply(status: int, code: str, message: str, extra: tuple[tuple[str, str], ...] = ()) -> Reply:
    """An error as S3 words it. A bucket's region also goes into the header that HEAD requests need."""
    body = xml(element("Error", ("Code", code), ("Message", message), *extra, ("RequestId", "0")))
    headers = {**XML_HEADERS, "x-amz-request-id": "0"}
    for name, value in extra:
        if name == "Region":
            headers["x-amz-bucket-region"] = value
    return Reply(status, headers, body)


def refusal_of(error: YunheError) -> Refused:
    """The storage's error in S3's words."""
    code = str(error.fields.get("code", ""))
    match error:
        case AlreadyExists():
            return Refused(412, "PreconditionFailed", f"At least one of the pre-conditions did not hold: {error}")
        case WrongOffset():
            return Refused(400, "InvalidWriteOffset", str(error))
        case NotFound() if "bucket" in error.fields:
            return Refused(404, "NoSuchBucket", "The specified bucket does not exist")
        case Conflict() if "bucket" in error.fields:
            return Refused(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
        case NotFound() if "upload" in error.fields:
            return Refused(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        case NotFound():
            return Refused(404, "NoSuchKey", "The specified key does not exist.")
        case Corrupt():
            return Refused(500, "InternalError", str(error))
        case Full():
            return Refused(503, "ServiceUnavailable", str(error))
        case Invalid() if code == "TooManyParts":
            return Refused(400, "TooManyParts", str(error))
        case Invalid() if code == "InvalidPart":
            return Refused(400, "InvalidPart", str(error))
    return Refused(400, "InvalidArgument", str(error))


def etag_of(meta: Meta) -> str:
    """With its quotes: an MD5 where the storage knows it, else something with a dash, which no client takes for one."""
    return f'"{meta.md5.hex() if meta.md5 is not None else meta.etag}"'


def iso(wall_ms: int) -> str:
    """A time as S3's documents write it."""
    moment = datetime.fromtimestamp(wall_ms / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ms % 1000:03}Z"


def object_headers(meta: Meta) -> dict[str, str]:
    """Headers that every answer about an object has."""
    headers = {
        "ETag": etag_of(meta),
        "content-type": "binary/octet-stream",
        "Last-Modified": formatdate(meta.modified_ms / 1000, usegmt=True),
        "Accept-Ranges": "bytes",
        "x-amz-request-id": "0",
    }
    headers.update((name, value) for name, value in meta.attributes.items() if not name.startswith(CHECKSUM))
    return headers


def checksum_headers(meta: Meta) -> dict[str, str]:
    """The checksum that the object was stored with, for a request that asks (x-amz-checksum-mode: ENABLED): crc32 where
    it came without one, as if the uploader had been an SDK of today."""
    for name, value in meta.attributes.items():
        if name.startswith(CHECKSUM):
            algorithm = name.removeprefix(CHECKSUM)
            if algorithm not in ("crc32", "crc32c"):
                return {name: value, "x-amz-checksum-type": "FULL_OBJECT"}
            return {name: crc_of(meta, algorithm), "x-amz-checksum-type": "FULL_OBJECT"}
    return {CHECKSUM + "crc32": crc_of(meta, "crc32"), "x-amz-checksum-type": "FULL_OBJECT"}


def crc_of(meta: Meta, algorithm: str) -> str:
    """The whole object's `crc32` or `crc32c` in base64."""
    value = meta.crc32c if algorithm == "crc32c" else meta.crc32
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def attributes_of(request: Request) -> dict[str, str]:
    """What is kept beside an object's bytes."""
    headers = request.headers
    kept = {name: headers[name] for name in KEPT_HEADERS if name in headers}
    kept.update((name, value) for name, value in headers.items() if name.startswith("x-amz-meta-"))
    if kept.get("content-encoding", "").startswith("aws-chunked"):
        rest = kept.pop("content-encoding").removeprefix("aws-chunked").lstrip(", ")
        if rest:
            kept["content-encoding"] = rest
    return kept


def check_digests(request: Request) -> dict[str, str]:
    """Compare what the body claims to be with what came. Returns its checksum, by header name; empty without one.

    Raises:
        Refused: BadDigest and its kin.
    """
    claimed = {**request.headers, **request.payload.trailers}
    md5 = claimed.get("content-md5")
    if md5 is not None:
        _compare("Content-MD5", md5, request.payload.md5(), "InvalidDigest")
    announced = request.headers.get("x-amz-trailer", "").lower()
    if announced.startswith(CHECKSUM) and announced not in request.payload.trailers:
        raise Refused(400, "MalformedTrailerError", "The request contained trailing data that was not well-formed.")
    asked = request.headers.get("x-amz-sdk-checksum-algorithm") or request.headers.get("x-amz-checksum-algorithm", "")
    algorithm = asked.lower()
    names = [name for name in claimed if name.startswith(CHECKSUM) and name.removeprefix(CHECKSUM) not in _ABOUT]
    if len(names) > 1:
        raise Refused(
            400, "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
        )
    if not names:
        return {}
    name = names[0]
    if algorithm and algorithm != name.removeprefix(CHECKSUM):
        raise Refused(400, "InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    digest = _DIGESTS.get(name.removeprefix(CHECKSUM))
    if digest is None:
        raise Refused(501, "NotImplemented", f"the checksum {name} is not emulated")
    _compare(name, claimed[name], digest(request.payload), "InvalidRequest")
    return {name: claimed[name]}


_ABOUT = ("algorithm", "type", "mode")
"""x-amz-checksum-… headers that are no checksums."""


def _compare(name: str, claimed: str, found: bytes, malformed: str) -> None:
    try:
        right = base64.b64decode(claimed, validate=True)
    except binascii.Error:
        right = b""
    if len(right) != len(found):
        raise Refused(400, malformed, f"Value for {name} header is invalid.")
    if right != found:
        said = f"The {name.removeprefix(CHECKSUM).upper()} you specified did not match the calculated checksum."
        raise Refused(400, "BadDigest", said)


def text(tag: str, value: str) -> ElementTree.Element:
    """One element with text."""
    made = ElementTree.Element(tag)
    made.text = value
    return made


def document(root: ElementTree.Element, headers: Mapping[str, str] | None = None) -> Reply:
    """A document that is the answer."""
    return Reply(200, {**XML_HEADERS, "x-amz-request-id": "0", **(headers or {})}, xml(root))
