"""OSS requests on objects: put, append, copy, get, head, delete. See `dialect_oss.py`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from providers.base.errors import NotFound, WrongOffset
from providers.lab.dialect_oss_auth import Refused
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Content, Reply, Request, byte_range, element, local, xml

PUT_BYTES_MAX = 5 << 30
"""Of one PutObject, and of an appended object altogether (OSS API reference)."""

DELETE_KEYS_MAX = 1000

_XML = {"Content-Type": "application/xml"}
_KEPT = frozenset(["content-type", "cache-control", "content-disposition", "content-encoding", "expires"])
_REPLACED_MAX = 3
"""Times that an object may be replaced between the look at its size and the read."""


class Objects:
    """`versioned`: whether a bucket is or was versioned, where forbid-overwrite counts for nothing."""

    def __init__(self, storage: Storage, versioned: Callable[[str], bool]) -> None:
        self._storage = storage
        self._versioned = versioned

    def answer(self, request: Request, bucket: str, key: str) -> Reply:
        match request.method:
            case "PUT" if not request.query and "x-oss-copy-source" in request.headers:
                return self._copy(request, bucket, key)
            case "PUT" if not request.query:
                return self._put(request, bucket, key)
            case "POST" if "append" in request.query:
                return self._append(request, bucket, key)
            case "GET" if "objectMeta" in request.query:
                return self._head(request, bucket, key)
            case "GET":
                return self._get(request, bucket, key)
            case "HEAD":
                return self._head(request, bucket, key)
            case "DELETE" if not request.query:
                self._storage.delete(bucket, [key])
                return Reply(204)
        raise Refused(501, "NotImplemented", f"{request.method} {request.raw_path}?{request.raw_query} is not emulated")

    # ---- writing

    def _put(self, request: Request, bucket: str, key: str) -> Reply:
        check_md5(request)
        meta = self._storage.put(
            bucket, key, request.payload, if_absent=self.if_absent(request, bucket), attributes=_attributes(request)
        )
        return Reply(200, {**headers_of(meta), **self.version(bucket)})

    def _append(self, request: Request, bucket: str, key: str) -> Reply:
        check_md5(request)
        position = int(request.query.get("position", ""))
        if position < 0 or position + request.payload.size > PUT_BYTES_MAX:
            raise Refused(400, "InvalidArgument", "The position or the resulting size is out of range.")
        try:
            meta = self._storage.head(bucket, key)
        except NotFound as error:
            if "bucket" in error.fields:
                raise
            meta = None
        if meta is None and position > 0:
            raise WrongOffset("there is no such object", actual=0)
        if meta is not None and meta.appendable and not request.payload.size:
            # Nothing to write: only whether it could be written.
            if meta.size != position:
                raise WrongOffset("the position is not the length", actual=meta.size)
        else:
            meta = self._storage.append(
                bucket, key, position, request.payload, only_appendable=True, attributes=_attributes(request)
            )
        headers = {**headers_of(meta), **self.version(bucket), "x-oss-next-append-position": str(meta.size)}
        return Reply(200, headers)

    def _copy(self, request: Request, bucket: str, key: str) -> Reply:
        source_bucket, source_key = source_of(request)
        self.check_source(request, source_bucket, source_key)
        replaced = request.headers.get("x-oss-metadata-directive", "COPY").upper() == "REPLACE"
        meta = self._storage.copy(
            bucket,
            key,
            source_bucket,
            source_key,
            if_absent=self.if_absent(request, bucket),
            attributes=_attributes(request) if replaced else None,
        )
        modified = iso(meta.modified_ms)
        result = element("CopyObjectResult", ("LastModified", modified), ("ETag", etag_of(meta)))
        headers = {**_XML, **self.version(bucket), "x-oss-hash-crc64ecma": str(meta.crc64)}
        return Reply(200, headers, xml(result))

    def check_source(self, request: Request, bucket: str, key: str) -> None:
        """The conditions on a copy's source."""
        wanted = request.headers.get("x-oss-copy-source-if-match")
        if wanted and wanted.strip('"') != etag_of(self._storage.head(bucket, key)).strip('"'):
            raise Refused(412, "PreconditionFailed", "At least one of the preconditions you specified did not hold.")

    def delete_many(self, request: Request, bucket: str) -> Reply:
        if "content-md5" not in request.headers:
            raise Refused(400, "MissingArgument", "Missing Some Required Arguments: Content-MD5")
        check_md5(request)
        root = ElementTree.fromstring(request.body)
        keys = [found.text or "" for found in root.iter() if local(found.tag) == "Key"]
        if not 0 < len(keys) <= DELETE_KEYS_MAX:
            raise Refused(400, "MalformedXML", f"The request names 1 to {DELETE_KEYS_MAX} keys.")
        self._storage.delete(bucket, keys)
        if any(local(found.tag) == "Quiet" and found.text == "true" for found in root.iter()):
            return Reply(200)
        encode = request.query.get("encoding-type") == "url"
        result = element("DeleteResult")
        if encode:
            result.append(_leaf("EncodingType", "url"))
        for key in keys:
            result.append(element("Deleted", ("Key", quote(key, safe="") if encode else key)))
        return Reply(200, _XML, xml(result))

    def if_absent(self, request: Request, bucket: str) -> bool:
        """Whether forbid-overwrite is asked for and counts."""
        asked = request.headers.get("x-oss-forbid-overwrite", "").lower() == "true"
        return asked and not self._versioned(bucket)

    def version(self, bucket: str) -> Mapping[str, str]:
        """What gives a versioned bucket away."""
        return {"x-oss-version-id": "null"} if self._versioned(bucket) else {}

    # ---- reading

    def _head(self, request: Request, bucket: str, key: str) -> Reply:
        meta = self._storage.head(bucket, key)
        status = _condition(request, meta)
        headers = {**headers_of(meta), **meta.attributes}
        return Reply(status or 200, headers if status == 304 else {**headers, "Content-Length": str(meta.size)})

    def _get(self, request: Request, bucket: str, key: str) -> Reply:
        for _ in range(_REPLACED_MAX):
            size = self._storage.size(bucket, key)
            span = _span(request, size)
            start, length = span or (0, None)
            meta, content = self._storage.open(bucket, key, start, length)
            if meta.size == size:
                return self._content(request, meta, content, span)
        raise Refused(500, "InternalError", "The object is being replaced.")

    def _content(self, request: Request, meta: Meta, content: Content, span: tuple[int, int | None] | None) -> Reply:
        status = _condition(request, meta)
        # As OSS does, the checksum in a range's answer is the whole object's.
        headers = {"content-type": "application/octet-stream", **headers_of(meta), **meta.attributes}
        for name, value in request.query.items():
            if name.startswith("response-"):
                headers[name.removeprefix("response-")] = value
        if status == 304:
            return Reply(304, headers)
        if span is None:
            return Reply(200, headers, content)
        start = span[0]
        headers["Content-Range"] = f"bytes {start}-{start + content.size - 1}/{meta.size}"
        return Reply(206, headers, content)


def _span(request: Request, size: int) -> tuple[int, int | None] | None:
    try:
        return byte_range(request.headers.get("range"), size)
    except ValueError as error:
        # Without `x-oss-range-behavior: standard` OSS ignores a range it cannot satisfy and sends the whole object.
        if request.headers.get("x-oss-range-behavior") != "standard":
            return None
        headers = {"Content-Range": f"bytes */{size}"}
        raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.", headers=headers) from error


def _condition(request: Request, meta: Meta) -> int | None:
    """304, or None to go on.

    Raises:
        Refused: 412.
    """
    etag = etag_of(meta).strip('"')
    wanted, unwanted = request.headers.get("if-match"), request.headers.get("if-none-match")
    since = request.headers.get("if-unmodified-since")
    if (wanted is not None and wanted.strip('"') not in (etag, "*")) or (
        since is not None and parsedate_to_datetime(since).timestamp() * 1000 + 999 < meta.modified_ms
    ):
        raise Refused(412, "PreconditionFailed", "At least one of the preconditions you specified did not hold.")
    if unwanted is not None and unwanted.strip('"') in (etag, "*"):
        return 304
    return None


def headers_of(meta: Meta) -> dict[str, str]:
    """What every answer about an object carries."""
    return {
        "ETag": etag_of(meta),
        "Last-Modified": formatdate(meta.modified_ms / 1000, usegmt=True),
        "Accept-Ranges": "bytes",
        "x-oss-object-type": "Appendable" if meta.appendable else "Normal",
        "x-oss-storage-class": "Standard",
        "x-oss-hash-crc64ecma": str(meta.crc64),
    }


def etag_of(meta: Meta) -> str:
    """As OSS writes ETags: upper case, in quotes."""
    return f'"{meta.etag.upper()}"'


def source_of(request: Request) -> tuple[str, str]:
    """Bucket and key of x-oss-copy-source."""
    bucket, _, key = unquote(request.headers["x-oss-copy-source"]).removeprefix("/").partition("/")
    return bucket, key.partition("?versionId=")[0]


def iso(wall_ms: int) -> str:
    """As OSS writes times in documents."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def check_md5(request: Request) -> None:
    """
    Raises:
        Refused: Content-MD5 is not the body's.
    """
    claimed = request.headers.get("content-md5")
    if claimed and claimed != base64.b64encode(request.payload.md5()).decode():
        raise Refused(400, "InvalidDigest", "The Content-MD5 you specified did not match what we received.")


def _attributes(request: Request) -> dict[str, str]:
    """Headers that are given back with the object."""
    return {name: value for name, value in request.headers.items() if name in _KEPT or name.startswith("x-oss-meta-")}


def _leaf(tag: str, text: str) -> ElementTree.Element:
    made = ElementTree.Element(tag)
    made.text = text
    return made
