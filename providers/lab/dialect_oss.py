"""Aliyun OSS over the storage core, path style: what oss2 needs. Signature version 1.

Sources: the OSS API reference (PutObject and its `x-oss-forbid-overwrite`, GetObject, ListObjectsV2,
DeleteMultipleObjects, error codes) and oss2's own parsing. Left out: append, versions, multipart, ACLs, virtual-host
style.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Reply, Request, byte_range, element, local, xml

SKEW_MS_MAX = 15 * 60_000
"""A request dated further off is refused (OSS API reference, RequestTimeTooSkewed)."""

_SIGNED_ARGUMENTS = frozenset(
    ["acl", "append", "bucketInfo", "continuation-token", "delete", "location", "objectMeta", "position", "stat"]
)
"""Query arguments that are part of the signed resource, of those that are emulated or asked for by oss2."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class OssDialect:
    """`credentials`: `access_key`, `secret_key`."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        self._access_key = str(credentials["access_key"])
        self._secret_key = str(credentials["secret_key"])
        self._clock = clock

    def error(self, status: int, code: str, message: str) -> Reply:
        body = xml(element("Error", ("Code", code), ("Message", message), ("RequestId", "0"), ("HostId", "oss.lab")))
        encoded = base64.b64encode(body).decode()
        # HEAD answers have no body: OSS repeats the error in a header, which oss2 reads.
        return Reply(status, {"Content-Type": "application/xml", "x-oss-request-id": "0", "x-oss-err": encoded}, body)

    def answer(self, request: Request) -> Reply:
        try:
            self._authenticate(request)
            reply = self._answer(request)
        except _Refused as refused:
            reply = self.error(refused.status, refused.code, refused.message)
        except AlreadyExists as error:
            reply = self.error(409, "FileAlreadyExists", f"The object you specified already exists: {error}")
        except NotFound as error:
            reply = self.error(404, "NoSuchBucket" if "bucket" in error.fields else "NoSuchKey", str(error))
        except Corrupt as error:
            reply = self.error(500, "InternalError", str(error))
        except Full as error:
            reply = self.error(503, "ServiceUnavailable", str(error))
        except Invalid as error:
            reply = self.error(400, "InvalidArgument", str(error))
        headers = {"x-oss-request-id": "0", **reply.headers}
        return Reply(reply.status, headers, b"" if request.method == "HEAD" else reply.body)

    def _answer(self, request: Request) -> Reply:
        bucket, _, key = request.path.removeprefix("/").partition("/")
        match request.method, bool(key):
            case "PUT", False:
                # Creating one's own bucket again is no error (OSS API reference, PutBucket).
                self._storage.create_bucket(bucket)
                return Reply(200, {"Location": f"/{bucket}"})
            case "GET", False if request.query.get("list-type") == "2":
                return self._list(request, bucket)
            case "GET", False if "bucketInfo" in request.query:
                self._storage.list(bucket, "", start_after="", limit=1)
                info = element("BucketInfo", element("Bucket", ("Name", bucket)))
                return Reply(200, {"Content-Type": "application/xml"}, xml(info))
            case "POST", False if "delete" in request.query:
                return self._delete_many(request, bucket)
            case "PUT", True:
                return self._put(request, bucket, key)
            case (("GET" | "HEAD"), True):
                return self._get(request, bucket, key)
            case "DELETE", True:
                self._storage.delete(bucket, [key])
                return Reply(204)
        raise _Refused(501, "NotImplemented", f"{request.method} {request.raw_path} is not emulated")

    def _put(self, request: Request, bucket: str, key: str) -> Reply:
        _check_md5(request)
        if_absent = request.headers.get("x-oss-forbid-overwrite", "").lower() == "true"
        return Reply(200, _headers(self._storage.put(bucket, key, request.body, if_absent=if_absent)))

    def _get(self, request: Request, bucket: str, key: str) -> Reply:
        if request.method == "HEAD" or "objectMeta" in request.query:
            meta = self._storage.head(bucket, key)
            return Reply(200, {**_headers(meta), "Content-Length": str(meta.size)})
        size = self._storage.size(bucket, key)
        try:
            wanted = byte_range(request.headers.get("range"), size)
        except ValueError as error:
            # Without `x-oss-range-behavior: standard` OSS ignores a range it cannot satisfy and sends the whole object.
            if request.headers.get("x-oss-range-behavior") == "standard":
                raise _Refused(416, "InvalidRange", "The requested range cannot be satisfied") from error
            wanted = None
        if wanted is None:
            meta, data = self._storage.read(bucket, key, 0, None)
            return Reply(200, _headers(meta), data)
        start, length = wanted
        meta, data = self._storage.read(bucket, key, start, length)
        # As OSS does, the checksum in a range's answer is the whole object's.
        headers = {**_headers(meta), "Content-Range": f"bytes {start}-{start + len(data) - 1}/{meta.size}"}
        return Reply(206, headers, data)

    def _delete_many(self, request: Request, bucket: str) -> Reply:
        _check_md5(request)
        root = ElementTree.fromstring(request.body)
        keys = [found.text or "" for found in root.iter() if local(found.tag) == "Key"]
        if len(keys) > 1000:
            raise _Refused(400, "MalformedXML", "at most 1,000 keys")
        self._storage.delete(bucket, keys)
        result = element("DeleteResult")
        if not any(local(found.tag) == "Quiet" and found.text == "true" for found in root.iter()):
            result.extend(element("Deleted", ("Key", quote(key, safe=""))) for key in keys)
            result.append(_text("EncodingType", "url"))
        return Reply(200, {"Content-Type": "application/xml"}, xml(result))

    def _list(self, request: Request, bucket: str) -> Reply:
        query = request.query
        prefix = query.get("prefix", "")
        limit = min(int(query.get("max-keys") or "100"), 1000)
        token = query.get("continuation-token", "")
        after = base64.urlsafe_b64decode(token).decode() if token else query.get("start-after", "")
        rows, more = self._storage.list(bucket, prefix, start_after=after, limit=limit)
        encode = query.get("encoding-type") == "url"
        result = element(
            "ListBucketResult",
            ("Name", bucket),
            ("Prefix", quote(prefix, safe="") if encode else prefix),
            ("MaxKeys", limit),
            ("KeyCount", len(rows)),
            ("IsTruncated", "true" if more else "false"),
        )
        if encode:
            result.append(_text("EncodingType", "url"))
        if more:
            next_token = base64.urlsafe_b64encode(rows[-1][0].encode()).decode()
            result.append(_text("NextContinuationToken", quote(next_token, safe="") if encode else next_token))
        now = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        result.extend(
            element(
                "Contents",
                ("Key", quote(key, safe="") if encode else key),
                ("LastModified", now),
                ("ETag", '""'),
                ("Type", "Normal"),
                ("Size", size),
                ("StorageClass", "Standard"),
            )
            for key, size in rows
        )
        return Reply(200, {"Content-Type": "application/xml"}, xml(result))

    def _authenticate(self, request: Request) -> None:
        access_key, _, signature = request.headers.get("authorization", "").removeprefix("OSS ").partition(":")
        if access_key != self._access_key:
            raise _Refused(403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist.")
        date = request.headers.get("x-oss-date") or request.headers.get("date", "")
        try:
            sent_ms = parsedate_to_datetime(date).timestamp() * 1000
        except ValueError as error:
            raise _Refused(403, "AccessDenied", "a valid date header is needed") from error
        if abs(sent_ms - self._clock.wall_ms()) > SKEW_MS_MAX:
            raise _Refused(403, "RequestTimeTooSkewed", "the request's time is too far from the server's")
        headers = sorted((name, value) for name, value in request.headers.items() if name.startswith("x-oss-"))
        arguments = sorted((name, value) for name, value in request.query.items() if name in _SIGNED_ARGUMENTS)
        resource = request.path
        if resource.count("/") == 1:
            resource += "/"
        if arguments:
            resource += "?" + "&".join(f"{name}={value}" if value else name for name, value in arguments)
        to_sign = "\n".join(
            [
                request.method,
                request.headers.get("content-md5", ""),
                request.headers.get("content-type", ""),
                date,
                *(f"{name}:{value}" for name, value in headers),
                resource,
            ]
        )
        expected = base64.b64encode(hmac.new(self._secret_key.encode(), to_sign.encode(), hashlib.sha1).digest())
        if not hmac.compare_digest(expected, signature.encode()):
            raise _Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match yours.")


def _text(tag: str, text: str) -> ElementTree.Element:
    made = ElementTree.Element(tag)
    made.text = text
    return made


def _headers(meta: Meta) -> dict[str, str]:
    return {
        "ETag": f'"{meta.etag.upper()}"',
        "Last-Modified": formatdate(meta.modified_ms / 1000, usegmt=True),
        "Accept-Ranges": "bytes",
        "x-oss-object-type": "Normal",
        "x-oss-hash-crc64ecma": str(meta.crc64),
    }


def _check_md5(request: Request) -> None:
    claimed = request.headers.get("content-md5")
    if claimed and claimed != base64.b64encode(hashlib.md5(request.body, usedforsecurity=False).digest()).decode():
        raise _Refused(400, "InvalidDigest", "The Content-MD5 you specified did not match what we received.")
