"""Amazon S3 over the storage core, path style: what boto3 needs, S3 Express directory buckets (`…--x-s3`) included.

Sources: the S3 API reference (PutObject, CreateSession, ListObjectsV2, DeleteObjects, error responses) and botocore's
own service model. Left out: versions, multipart, ACLs, tags, virtual-host style.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import crc32c

from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound, WrongOffset
from providers.lab.storage import PARTS_MAX, Meta, Storage
from providers.lab.storage_parts import KEY_BYTES_MAX
from providers.lab.wire import Reply, Request, byte_range, element, local, xml

SESSION_TTL_MS = 5 * 60_000
"""S3 Express session credentials live five minutes (API reference, CreateSession)."""

SKEW_MS_MAX = 15 * 60_000
"""A request dated further off is refused (SigV4)."""

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_UNSIGNED = "UNSIGNED-PAYLOAD"


class _Refused(Exception):
    """An error answer on its way out."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class S3Dialect:
    """`credentials`: `access_key`, `secret_key`."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        self._access_key = str(credentials["access_key"])
        self._secret_key = str(credentials["secret_key"])
        self._clock = clock

    def error(self, status: int, code: str, message: str) -> Reply:
        body = xml(element("Error", ("Code", code), ("Message", message), ("RequestId", "0")))
        return Reply(status, {"Content-Type": "application/xml", "x-amz-request-id": "0"}, body)

    def answer(self, request: Request) -> Reply:
        try:
            self._authenticate(request)
            return self._answer(request)
        except _Refused as refused:
            reply = self.error(refused.status, refused.code, refused.message)
        except AlreadyExists as error:
            reply = self.error(412, "PreconditionFailed", f"At least one of the pre-conditions did not hold: {error}")
        except WrongOffset as error:
            reply = self.error(400, "InvalidWriteOffset", str(error))
        except NotFound as error:
            reply = self.error(404, "NoSuchBucket" if "bucket" in error.fields else "NoSuchKey", str(error))
        except Corrupt as error:
            reply = self.error(500, "InternalError", str(error))
        except Full as error:
            reply = self.error(503, "ServiceUnavailable", str(error))
        except Invalid as error:
            reply = self.error(400, "InvalidArgument", str(error))
        return Reply(reply.status, reply.headers) if request.method == "HEAD" else reply

    def _answer(self, request: Request) -> Reply:
        bucket, _, key = request.path.removeprefix("/").partition("/")
        match request.method, bool(key):
            case "PUT", False:
                if not self._storage.create_bucket(bucket):
                    raise _Refused(409, "BucketAlreadyOwnedByYou", "The bucket is yours already.")
                return Reply(200, {"Location": f"/{bucket}"})
            case "HEAD", False:
                self._storage.list(bucket, "", start_after="", limit=1)
                return Reply(200)
            case "GET", False if "session" in request.query:
                return self._create_session(bucket)
            case "GET", False if request.query.get("list-type") == "2":
                return self._list(request, bucket)
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

    # -- objects

    def _put(self, request: Request, bucket: str, key: str) -> Reply:
        _check_digests(request)
        if len(key.encode()) > KEY_BYTES_MAX:
            raise _Refused(400, "KeyTooLongError", "Your key is too long")
        offset = request.headers.get("x-amz-write-offset-bytes")
        if offset is not None:
            if not is_directory_bucket(bucket):
                raise _Refused(501, "NotImplemented", "A header you provided implies functionality not implemented")
            try:
                meta = self._storage.append(bucket, key, int(offset), request.body)
            except Invalid as error:
                raise _Refused(400, "TooManyParts", f"an object takes at most {PARTS_MAX} parts") from error
            return Reply(200, {**_headers(meta), "x-amz-object-size": str(meta.size)})
        condition = request.headers.get("if-none-match")
        if condition not in (None, "*") or "if-match" in request.headers:
            raise _Refused(501, "NotImplemented", "of conditions only If-None-Match: * is emulated")
        meta = self._storage.put(bucket, key, request.body, if_absent=condition == "*")
        return Reply(200, _headers(meta))

    def _get(self, request: Request, bucket: str, key: str) -> Reply:
        if request.method == "HEAD":
            meta = self._storage.head(bucket, key)
            return Reply(200, {**_headers(meta), "Content-Length": str(meta.size)})
        size = self._storage.size(bucket, key)
        try:
            wanted = byte_range(request.headers.get("range"), size)
        except ValueError as error:
            raise _Refused(416, "InvalidRange", "The requested range is not satisfiable") from error
        if wanted is None:
            meta, data = self._storage.read(bucket, key, 0, None)
            return Reply(200, _headers(meta), data)
        start, length = wanted
        meta, data = self._storage.read(bucket, key, start, length)
        headers = _headers(meta)
        # A whole object's checksum says nothing about a part of it.
        del headers["x-amz-checksum-crc32"]
        return Reply(206, {**headers, "Content-Range": f"bytes {start}-{start + len(data) - 1}/{meta.size}"}, data)

    def _delete_many(self, request: Request, bucket: str) -> Reply:
        _check_digests(request)
        root = ElementTree.fromstring(request.body)
        keys = [found.text or "" for found in root.iter() if local(found.tag) == "Key"]
        quiet = any(local(found.tag) == "Quiet" and found.text == "true" for found in root.iter())
        if len(keys) > 1000:
            raise _Refused(400, "MalformedXML", "at most 1,000 keys")
        self._storage.delete(bucket, keys)
        result = element("DeleteResult", xmlns=_NAMESPACE)
        if not quiet:
            result.extend(element("Deleted", ("Key", key)) for key in keys)
        return Reply(200, {"Content-Type": "application/xml"}, xml(result))

    def _list(self, request: Request, bucket: str) -> Reply:
        query = request.query
        prefix = query.get("prefix", "")
        limit = min(int(query.get("max-keys", "1000")), 1000)
        token = query.get("continuation-token", "")
        after = base64.urlsafe_b64decode(token).decode() if token else query.get("start-after", "")
        if is_directory_bucket(bucket):
            if prefix and not prefix.endswith("/"):
                raise _Refused(400, "InvalidArgument", "a directory bucket lists only prefixes that end in /")
            if "start-after" in query:
                raise _Refused(501, "NotImplemented", "start-after is not supported for directory buckets")
            rows, more = self._list_unordered(bucket, prefix, after, limit)
        else:
            rows, more = self._storage.list(bucket, prefix, start_after=after, limit=limit)
        encode = query.get("encoding-type") == "url"
        result = element(
            "ListBucketResult",
            ("Name", bucket),
            ("Prefix", quote(prefix) if encode else prefix),
            ("KeyCount", len(rows)),
            ("MaxKeys", limit),
            ("IsTruncated", "true" if more else "false"),
            xmlns=_NAMESPACE,
        )
        if encode:
            result.append(_text("EncodingType", "url"))
        if more:
            result.append(_text("NextContinuationToken", base64.urlsafe_b64encode(rows[-1][0].encode()).decode()))
        result.extend(
            element("Contents", ("Key", quote(key) if encode else key), ("Size", size), ("StorageClass", "STANDARD"))
            for key, size in rows
        )
        return Reply(200, {"Content-Type": "application/xml"}, xml(result))

    def _list_unordered(
        self, bucket: str, prefix: str, after: str, limit: int
    ) -> tuple[Sequence[tuple[str, int]], bool]:
        """By a hash of the key: in no order that anybody could rely on, yet the same from page to page."""
        rows, _ = self._storage.list(bucket, prefix, start_after="", limit=1 << 30)
        ranked = sorted(rows, key=lambda row: _rank(row[0]))
        if after:
            ranked = [row for row in ranked if _rank(row[0]) > _rank(after)]
        return ranked[:limit], len(ranked) > limit

    # -- who is asking

    def _create_session(self, bucket: str) -> Reply:
        # boto3 asks for a session before CreateBucket too when it is given an endpoint, so the bucket need not exist
        # yet.
        expires_ms = self._clock.wall_ms() + SESSION_TTL_MS
        token = base64.urlsafe_b64encode(f"{expires_ms}/{bucket}".encode()).decode().rstrip("=")
        token += "." + self._seal(token)
        expiration = datetime.fromtimestamp(expires_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        credentials = element(
            "Credentials",
            ("SessionToken", token),
            ("SecretAccessKey", self._seal("secret " + token)),
            ("AccessKeyId", self._access_key),
            ("Expiration", expiration),
        )
        result = element("CreateSessionResult", credentials, xmlns=_NAMESPACE)
        return Reply(200, {"Content-Type": "application/xml"}, xml(result))

    def _seal(self, text: str) -> str:
        return hmac.new(self._secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()

    def _session_secret(self, token: str, bucket: str) -> str:
        """The secret that belongs to a session token. Stateless, so that sessions outlive a restart of the server."""
        payload, _, seal = token.partition(".")
        if not hmac.compare_digest(seal, self._seal(payload)):
            raise _Refused(403, "InvalidToken", "the session token is not one of ours")
        plain = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode()
        expires_ms, _, of = plain.partition("/")
        if int(expires_ms) < self._clock.wall_ms():
            raise _Refused(400, "ExpiredToken", "the session has expired")
        if of != bucket:
            raise _Refused(403, "AccessDenied", "the session is for another bucket")
        return self._seal("secret " + token)

    def _authenticate(self, request: Request) -> None:
        parsed = _authorization(request.headers.get("authorization", ""))
        if parsed is None:
            raise _Refused(403, "AccessDenied", "a SigV4 Authorization header is needed")
        access_key, date, region, service, signed, signature = parsed
        if access_key != self._access_key:
            raise _Refused(403, "InvalidAccessKeyId", "The access key you provided does not exist in our records.")
        stamp = request.headers.get("x-amz-date", "")
        try:
            sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise _Refused(403, "AccessDenied", "a valid x-amz-date header is needed") from error
        if abs(sent.timestamp() * 1000 - self._clock.wall_ms()) > SKEW_MS_MAX:
            raise _Refused(403, "RequestTimeTooSkewed", "the request's time is too far from the server's")
        bucket = request.path.removeprefix("/").partition("/")[0]
        secret = self._secret_key
        if is_directory_bucket(bucket) and "session" not in request.query:
            token = request.headers.get("x-amz-s3session-token")
            if token is None or service != "s3express":
                raise _Refused(403, "AccessDenied", "a directory bucket wants a session")
            secret = self._session_secret(token, bucket)
        payload_hash = request.headers.get("x-amz-content-sha256", "")
        if payload_hash != _UNSIGNED and payload_hash != hashlib.sha256(request.body).hexdigest():
            raise _Refused(400, "XAmzContentSHA256Mismatch", "x-amz-content-sha256 does not match the body")
        canonical = "\n".join(
            [
                request.method,
                request.raw_path,
                "&".join(sorted(_canonical_pair(pair) for pair in request.raw_query.split("&") if pair)),
                *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signed.split(";")),
                "",
                signed,
                payload_hash,
            ]
        )
        scope = f"{date}/{region}/{service}/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        expected = hmac.new(_signing_key(secret, scope), to_sign.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            raise _Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match yours.")


def is_directory_bucket(bucket: str) -> bool:
    """Directory buckets' names end in `--x-s3` (S3 user guide, directory bucket naming rules)."""
    return bucket.endswith("--x-s3")


@functools.lru_cache(maxsize=256)
def _signing_key(secret: str, scope: str) -> bytes:
    key = ("AWS4" + secret).encode()
    for step in scope.split("/"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return key


def _rank(key: str) -> tuple[int, str]:
    return zlib.crc32(key.encode()), key


def _text(tag: str, text: str) -> ElementTree.Element:
    made = ElementTree.Element(tag)
    made.text = text
    return made


def _canonical_pair(pair: str) -> str:
    return pair if "=" in pair else pair + "="


def _authorization(header: str) -> tuple[str, str, str, str, str, str] | None:
    """(access key, date, region, service, signed headers, signature)."""
    if not header.startswith("AWS4-HMAC-SHA256 "):
        return None
    fields = dict(part.strip().partition("=")[::2] for part in header[17:].split(","))
    scope = fields.get("Credential", "").split("/")
    if len(scope) != 5:
        return None
    return scope[0], scope[1], scope[2], scope[3], fields.get("SignedHeaders", ""), fields.get("Signature", "")


def _headers(meta: Meta) -> dict[str, str]:
    return {
        "ETag": f'"{meta.etag}"',
        "Last-Modified": formatdate(meta.modified_ms / 1000, usegmt=True),
        "Accept-Ranges": "bytes",
        "x-amz-checksum-crc32": base64.b64encode(meta.crc32.to_bytes(4, "big")).decode(),
        "x-amz-checksum-type": "FULL_OBJECT",
        "x-amz-request-id": "0",
    }


def _check_digests(request: Request) -> None:
    """Raises `_Refused` with BadDigest when a checksum that came along does not match the body."""
    claimed: dict[str, Callable[[bytes], bytes]] = {
        "content-md5": lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
        "x-amz-checksum-crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
        "x-amz-checksum-crc32c": lambda data: crc32c.crc32c(data).to_bytes(4, "big"),
        "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
    }
    for name, compute in claimed.items():
        value = request.headers.get(name)
        if value is None:
            continue
        try:
            right = base64.b64decode(value, validate=True) == compute(request.body)
        except binascii.Error:
            right = False
        if not right:
            raise _Refused(400, "BadDigest", f"the {name} you specified did not match what we received")
