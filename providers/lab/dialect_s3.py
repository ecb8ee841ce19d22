"""Amazon S3 over the storage core, path style: objects, copies, multipart uploads and listings, S3 Express directory
buckets (`…--x-s3`) included.

Sources: the S3 API reference (PutObject, GetObject, CopyObject, CreateSession, ListObjectsV2, DeleteObjects, error
responses), the user guide (conditional requests, directory buckets) and botocore's own service model. Left out:
versions, ACLs, tags, renames, virtual-host style. With `region` in its credentials the store is in that region and
refuses signatures for another; `elsewhere`, a map of buckets to regions, names those that it redirects to.
"""

from __future__ import annotations

import base64
import re
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from providers.base.clock import Clock
from providers.base.errors import NotFound, YunheError
from providers.lab.dialect_s3_auth import S3Auth, is_directory_bucket
from providers.lab.dialect_s3_conditions import check_read, condition_failed
from providers.lab.dialect_s3_uploads import Uploads
from providers.lab.dialect_s3_wire import (
    NAMESPACE,
    Refused,
    attributes_of,
    check_digests,
    checksum_headers,
    document,
    error_reply,
    etag_of,
    iso,
    object_headers,
    refusal_of,
    text,
)
from providers.lab.storage import Meta, Storage
from providers.lab.storage_parts import KEY_BYTES_MAX
from providers.lab.wire import Reply, Request, byte_range, element, local

PUT_BYTES_MAX = 5 << 30
"""What a single PutObject takes, and a CopyObject copies (API reference)."""

DELETE_KEYS_MAX = 1000

_BUCKET = re.compile(r"(?!xn--|sthree-|.*\.\.|.*-s3alias$|\d+\.\d+\.\d+\.\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""General purpose buckets' names (user guide, bucket naming rules); directory buckets' are of the same letters."""

_LOCK_STRIPES = 256


class S3Dialect:
    """`credentials`: `access_key`, `secret_key`; optionally `region` and `elsewhere`."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        self._auth = S3Auth(credentials, clock)
        self._uploads = Uploads(storage)
        self._elsewhere: Mapping[str, str] = credentials.get("elsewhere", {})
        # What If-Match compares must not change before the write: writers of one name wait for each other.
        self._writing = [threading.Lock() for _ in range(_LOCK_STRIPES)]

    def error(self, status: int, code: str, message: str) -> Reply:
        return error_reply(status, code, message)

    def answer(self, request: Request) -> Reply:
        bucket, _, key = request.path.removeprefix("/").partition("/")
        try:
            self._auth.check(request, bucket)
            self._check_place(bucket)
            return self._answer(request, bucket, key)
        except Refused as refused:
            reply = error_reply(refused.status, refused.code, refused.message, refused.extra)
        except YunheError as error:
            told = refusal_of(error)
            reply = error_reply(told.status, told.code, told.message)
        bodiless = request.method == "HEAD" or reply.status == 304
        return Reply(reply.status, reply.headers) if bodiless else reply

    def _answer(self, request: Request, bucket: str, key: str) -> Reply:
        return self._answer_object(request, bucket, key) if key else self._answer_bucket(request, bucket)

    def _answer_bucket(self, request: Request, bucket: str) -> Reply:
        query = request.query
        if "versioning" in query:
            return self._versioning(request, bucket)
        match request.method:
            case "PUT" if not query:
                return self._create_bucket(bucket)
            case "DELETE" if not query:
                self._storage.remove_bucket(bucket)
                return Reply(204, {"x-amz-request-id": "0"})
            case "HEAD":
                self._check_bucket(bucket)
                return Reply(200, {"x-amz-request-id": "0"})
            case "GET" if "session" in query:
                return self._auth.create_session(bucket)
            case "GET" if "uploads" in query:
                return self._uploads.list(request, bucket)
            case "GET" if "location" in query:
                self._check_bucket(bucket)
                return document(element("LocationConstraint", xmlns=NAMESPACE))
            case "GET" if bucket and query.get("list-type", "1") in ("1", "2") and not query.keys() - _LISTING:
                return self._list(request, bucket)
            case "POST" if "delete" in query:
                return self._delete_many(request, bucket)
        raise _not_emulated(request)

    def _answer_object(self, request: Request, bucket: str, key: str) -> Reply:
        query, headers = request.query, request.headers
        copied = "x-amz-copy-source" in headers
        if len(key.encode()) > KEY_BYTES_MAX:
            raise Refused(400, "KeyTooLongError", "Your key is too long")
        match request.method:
            case "PUT" if "uploadId" in query and "partNumber" in query:
                return self._copy_part(request, bucket, key) if copied else self._uploads.part(request, bucket, key)
            case "POST" if "uploads" in query:
                return self._uploads.begin(request, bucket, key)
            case "POST" if "uploadId" in query:
                with self._condition(request, bucket, key) as if_absent:
                    return self._uploads.complete(request, bucket, key, if_absent=if_absent)
            case "GET" if "uploadId" in query:
                return self._uploads.list_parts(request, bucket, key)
            case "DELETE" if "uploadId" in query:
                return self._uploads.abort(request, bucket, key)
            case _ if query.keys() & _SUBRESOURCES:
                raise _not_emulated(request)
            case "PUT" if copied:
                return self._copy(request, bucket, key)
            case "PUT":
                return self._put(request, bucket, key)
            case "GET" | "HEAD":
                return self._get(request, bucket, key)
            case "DELETE":
                with self._condition(request, bucket, key):
                    self._storage.delete(bucket, [key])
                return Reply(204, {"x-amz-request-id": "0"})
        raise _not_emulated(request)

    # -- buckets

    def _check_place(self, bucket: str) -> None:
        region = self._elsewhere.get(bucket)
        if region is not None:
            said = (
                "The bucket you are attempting to access must be addressed using the specified endpoint. Please send "
                "all future requests to this endpoint."
            )
            raise Refused(301, "PermanentRedirect", said, ("Bucket", bucket), ("Region", region))

    def _check_bucket(self, bucket: str) -> None:
        if not self._storage.has_bucket(bucket):
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist")

    def _create_bucket(self, bucket: str) -> Reply:
        if not _BUCKET.fullmatch(bucket):
            raise Refused(400, "InvalidBucketName", "The specified bucket is not valid.")
        if not self._storage.create_bucket(bucket):
            raise Refused(409, "BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded.")
        return Reply(200, {"Location": f"/{bucket}", "x-amz-request-id": "0"})

    def _versioning(self, request: Request, bucket: str) -> Reply:
        self._check_bucket(bucket)
        if request.method == "GET":
            return document(element("VersioningConfiguration", xmlns=NAMESPACE))
        raise Refused(501, "NotImplemented", "versioned buckets are not emulated: conditional creates would not hold")

    # -- objects

    @contextmanager
    def _condition(self, request: Request, bucket: str, key: str) -> Iterator[bool]:
        """Holds the name for one write, and yields whether it must be absent. Conditions on the object that is there
        are checked here; absence is the storage's own business, which has the last word on it."""
        absent, match = request.headers.get("if-none-match"), request.headers.get("if-match")
        if absent not in (None, "*"):
            raise Refused(501, "NotImplemented", "A header you provided implies functionality that is not implemented.")
        with self._writing[zlib.crc32(f"{bucket}/{key}".encode()) % _LOCK_STRIPES]:
            if match is not None:
                found = etag_of(self._storage.head(bucket, key))
                if match not in ("*", found, found.strip('"')):
                    raise condition_failed("If-Match")
            yield absent == "*"

    def _put(self, request: Request, bucket: str, key: str) -> Reply:
        checksum = check_digests(request)
        if request.payload.size > PUT_BYTES_MAX:
            raise Refused(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        offset = request.headers.get("x-amz-write-offset-bytes")
        with self._condition(request, bucket, key) as if_absent:
            if offset is not None:
                if not is_directory_bucket(bucket):
                    said = "A header you provided implies functionality that is not implemented."
                    raise Refused(501, "NotImplemented", said)
                meta = self._storage.append(bucket, key, int(offset), request.payload)
                return Reply(200, {**object_headers(meta), **checksum, "x-amz-object-size": str(meta.size)})
            attributes = {**attributes_of(request), **checksum}
            meta = self._storage.put(bucket, key, request.payload, if_absent=if_absent, attributes=attributes)
        headers = {"ETag": etag_of(meta), "x-amz-request-id": "0", **checksum}
        return Reply(200, {**headers, "x-amz-checksum-type": "FULL_OBJECT"} if checksum else headers)

    def _get(self, request: Request, bucket: str, key: str) -> Reply:
        if "partNumber" in request.query:
            raise _not_emulated(request)
        size = self._storage.size(bucket, key)
        try:
            wanted = byte_range(request.headers.get("range"), size)
        except ValueError as error:
            raise Refused(416, "InvalidRange", "The requested range is not satisfiable") from error
        start, length = wanted or (0, None)
        if request.method == "HEAD":
            meta = self._storage.head(bucket, key)
            check_read(request, meta)
            headers = {**object_headers(meta), **_asked_checksum(request, meta)}
            return Reply(200, {**headers, "Content-Length": str(meta.size)})
        meta, content = self._storage.open(bucket, key, start, length)
        check_read(request, meta)
        headers = object_headers(meta)
        if wanted is None:
            return Reply(200, {**headers, **_asked_checksum(request, meta)}, content)
        # A whole object's checksum says nothing about a part of it.
        return Reply(
            206, {**headers, "Content-Range": f"bytes {start}-{start + content.size - 1}/{meta.size}"}, content
        )

    def _copy(self, request: Request, bucket: str, key: str) -> Reply:
        source = _source(request)
        replaced = request.headers.get("x-amz-metadata-directive", "COPY").upper() == "REPLACE"
        if source == (bucket, key) and not replaced:
            said = "This copy request is illegal because it is trying to copy an object to itself without changing it."
            raise Refused(400, "InvalidRequest", said)
        with self._condition(request, bucket, key) as if_absent:
            found = self._source_meta(request, source)
            if found.size > PUT_BYTES_MAX:
                raise Refused(
                    400, "InvalidRequest", "The specified copy source is larger than the maximum allowable size"
                )
            attributes = attributes_of(request) if replaced else None
            meta = self._storage.copy(bucket, key, *source, if_absent=if_absent, attributes=attributes)
        result = element("CopyObjectResult", ("LastModified", iso(meta.modified_ms)), ("ETag", etag_of(meta)))
        result.set("xmlns", NAMESPACE)
        for name, value in checksum_headers(meta).items():
            tag = {"x-amz-checksum-crc32": "ChecksumCRC32", "x-amz-checksum-crc32c": "ChecksumCRC32C"}.get(name)
            result.extend([text(tag, value)] if tag else [])
        return document(result)

    def _copy_part(self, request: Request, bucket: str, key: str) -> Reply:
        source = _source(request)
        meta = self._source_meta(request, source)
        span = request.headers.get("x-amz-copy-source-range")
        wanted: tuple[int, int | None] = (0, None)
        if span is not None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", span)
            if found is None or int(found[1]) > int(found[2]) or int(found[2]) >= meta.size:
                raise Refused(
                    400, "InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last"
                )
            wanted = (int(found[1]), int(found[2]) - int(found[1]) + 1)
        return self._uploads.part_by_copy(request, bucket, key, source, wanted)

    def _source_meta(self, request: Request, source: tuple[str, str]) -> Meta:
        try:
            meta = self._storage.head(*source)
        except NotFound as error:
            raise refusal_of(error) from error
        match, none = (request.headers.get(f"x-amz-copy-source-if-{name}") for name in ("match", "none-match"))
        found = etag_of(meta).strip('"')
        if (match is not None and match.strip('"') not in ("*", found)) or (
            none is not None and none.strip('"') == found
        ):
            raise condition_failed("x-amz-copy-source-If-Match" if match else "x-amz-copy-source-If-None-Match")
        return meta

    def _delete_many(self, request: Request, bucket: str) -> Reply:
        if not check_digests(request) and "content-md5" not in request.headers:
            raise Refused(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
        try:
            root = ElementTree.fromstring(request.body)
        except ElementTree.ParseError as error:
            raise Refused(400, "MalformedXML", "The XML you provided was not well-formed.") from error
        keys = [found.text or "" for found in root.iter() if local(found.tag) == "Key"]
        quiet = any(local(found.tag) == "Quiet" and found.text == "true" for found in root.iter())
        if not 1 <= len(keys) <= DELETE_KEYS_MAX:
            raise Refused(400, "MalformedXML", f"a request deletes 1 to {DELETE_KEYS_MAX} keys")
        self._check_bucket(bucket)
        result = element("DeleteResult", xmlns=NAMESPACE)
        good = [key for key in keys if 0 < len(key.encode()) <= KEY_BYTES_MAX]
        self._storage.delete(bucket, good)
        if not quiet:
            result.extend(element("Deleted", ("Key", key)) for key in good)
        for key in keys:
            if len(key.encode()) > KEY_BYTES_MAX:
                result.append(
                    element("Error", ("Key", key), ("Code", "KeyTooLongError"), ("Message", "Your key is too long"))
                )
        return document(result)

    # -- listings

    def _list(self, request: Request, bucket: str) -> Reply:
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("max-keys", "1000")), 1000)
        first_version = "list-type" not in query
        token = query.get("continuation-token", "")
        after = (
            query.get("marker", "")
            if first_version
            else base64.urlsafe_b64decode(token).decode()
            if token
            else query.get("start-after", "")
        )
        folders: list[str] = []
        if is_directory_bucket(bucket):
            if prefix and not prefix.endswith("/"):
                raise Refused(400, "InvalidArgument", "a directory bucket lists only prefixes that end in /")
            if "start-after" in query:
                raise Refused(501, "NotImplemented", "start-after is not supported for directory buckets")
            if delimiter:
                raise _not_emulated(request)
            rows, more = self._list_unordered(bucket, prefix, after, limit)
        elif delimiter:
            rows, folders, more = self._list_folders(bucket, prefix, delimiter, after, limit)
        else:
            rows, more = self._storage.list(bucket, prefix, start_after=after, limit=limit)
        encode = query.get("encoding-type") == "url"
        result = element(
            "ListBucketResult",
            ("Name", bucket),
            ("Prefix", quote(prefix) if encode else prefix),
            ("Marker", quote(after) if encode else after) if first_version else ("KeyCount", len(rows) + len(folders)),
            ("MaxKeys", limit),
            ("IsTruncated", "true" if more else "false"),
            xmlns=NAMESPACE,
        )
        if encode:
            result.append(text("EncodingType", "url"))
        if "start-after" in query:
            result.append(text("StartAfter", quote(query["start-after"]) if encode else query["start-after"]))
        if more:
            last = max([*(row[0] for row in rows[-1:]), *(folder + _HIGHEST for folder in folders[-1:])])
            if first_version:
                result.append(text("NextMarker", quote(last) if encode else last))
            else:
                result.append(text("NextContinuationToken", base64.urlsafe_b64encode(last.encode()).decode()))
        for key, size in rows:
            row = element("Contents", ("Key", quote(key) if encode else key), ("Size", size))
            try:
                meta = self._storage.head(bucket, key)
            except NotFound:
                continue  # deleted since the page was read
            row.extend([text("LastModified", iso(meta.modified_ms)), text("ETag", etag_of(meta))])
            row.append(text("StorageClass", "EXPRESS_ONEZONE" if is_directory_bucket(bucket) else "STANDARD"))
            result.append(row)
        for folder in folders:
            result.append(element("CommonPrefixes", ("Prefix", quote(folder) if encode else folder)))
        return document(result)

    def _list_folders(
        self, bucket: str, prefix: str, delimiter: str, after: str, limit: int
    ) -> tuple[list[tuple[str, int]], list[str], bool]:
        """Keys and, in place of those that go on beyond the delimiter, what comes before it, once each."""
        rows: list[tuple[str, int]] = []
        folders: list[str] = []
        while True:
            page, more = self._storage.list(bucket, prefix, start_after=after, limit=1000)
            for key, size in page:
                head, found, _ = key[len(prefix) :].partition(delimiter)
                folder = prefix + head + delimiter
                if found and folders and folders[-1] == folder:
                    continue
                if len(rows) + len(folders) == limit:
                    return rows, folders, True
                if found:
                    folders.append(folder)
                else:
                    rows.append((key, size))
            if not more:
                return rows, folders, False
            after = page[-1][0]

    def _list_unordered(
        self, bucket: str, prefix: str, after: str, limit: int
    ) -> tuple[Sequence[tuple[str, int]], bool]:
        """By a hash of the key: in no order that anybody could rely on, yet the same from page to page."""
        rows, _ = self._storage.list(bucket, prefix, start_after="", limit=1 << 30)
        ranked = sorted(rows, key=lambda row: _rank(row[0]))
        if after:
            ranked = [row for row in ranked if _rank(row[0]) > _rank(after)]
        return ranked[:limit], len(ranked) > limit


_HIGHEST = "\U0010ffff"
"""Behind every key of a folder."""

_LISTING = frozenset(
    (
        *("list-type", "prefix", "delimiter", "max-keys", "encoding-type", "marker", "start-after", "fetch-owner"),
        *("continuation-token", "x-id"),
    )
)
"""Arguments of the two listings (ListObjects, ListObjectsV2)."""

_SUBRESOURCES = frozenset(
    (
        *("acl", "attributes", "encryption", "legal-hold", "renameObject", "restore", "retention", "select"),
        *("tagging", "torrent", "versionId"),
    )
)


def _rank(key: str) -> tuple[int, str]:
    return zlib.crc32(key.encode()), key


def _not_emulated(request: Request) -> Refused:
    return Refused(501, "NotImplemented", f"{request.method} {request.raw_path}?{request.raw_query} is not emulated")


def _asked_checksum(request: Request, meta: Meta) -> Mapping[str, str]:
    return checksum_headers(meta) if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" else {}


def _source(request: Request) -> tuple[str, str]:
    """(bucket, key) of x-amz-copy-source."""
    given = unquote(request.headers["x-amz-copy-source"])
    if "?versionId=" in given:
        raise Refused(501, "NotImplemented", "versions are not emulated")
    bucket, _, key = given.removeprefix("/").partition("/")
    if not bucket or not key:
        raise Refused(400, "InvalidArgument", "The copy source must name a bucket and a key.")
    return bucket, key
