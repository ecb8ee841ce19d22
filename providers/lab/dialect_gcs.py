"""Google Cloud Storage's JSON API over the storage core: what google-cloud-storage needs. Any bearer token, or none, is
accepted.

Sources: the JSON API reference (Objects: insert with `uploadType=multipart`, get, list, delete; Buckets: insert, get;
`ifGenerationMatch`). Left out: resumable uploads, generations other than the live one, batches, compose.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

import crc32c

from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Reply, Request, byte_range

_JSON = {"Content-Type": "application/json; charset=UTF-8"}


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class GcsDialect:
    """`credentials` are not looked at."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        self._clock = clock

    def error(self, status: int, code: str, message: str) -> Reply:
        errors = [{"message": message, "domain": "global", "reason": code}]
        return _json(status, {"error": {"code": status, "message": message, "errors": errors}})

    def answer(self, request: Request) -> Reply:
        try:
            reply = self._answer(request)
        except _Refused as refused:
            reply = self.error(refused.status, refused.code, refused.message)
        except AlreadyExists:
            reply = self.error(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        except NotFound as error:
            reply = self.error(404, "notFound", str(error))
        except Corrupt as error:
            reply = self.error(500, "backendError", str(error))
        except Full as error:
            reply = self.error(503, "backendError", str(error))
        except Invalid as error:
            reply = self.error(400, "invalid", str(error))
        return Reply(reply.status, reply.headers, b"" if request.method == "HEAD" else reply.body)

    def _answer(self, request: Request) -> Reply:
        # An object's name is one escaped path segment, so the path is split before it is unescaped.
        parts = [unquote(part) for part in request.raw_path.strip("/").split("/")]
        match request.method, parts:
            case "POST", ["upload", "storage", "v1", "b", bucket, "o"]:
                return self._insert(request, bucket)
            case "GET", ["download", "storage", "v1", "b", bucket, "o", key]:
                return self._download(request, bucket, key)
            case "GET", ["storage", "v1", "b", bucket, "o", key]:
                if request.query.get("alt") == "media":
                    return self._download(request, bucket, key)
                return _json(200, _resource(bucket, key, self._storage.head(bucket, key)))
            case "DELETE", ["storage", "v1", "b", bucket, "o", key]:
                if not self._storage.delete(bucket, [key])[0]:
                    raise _Refused(404, "notFound", f"No such object: {bucket}/{key}")
                return Reply(204)
            case "GET", ["storage", "v1", "b", bucket, "o"]:
                return self._list(request, bucket)
            case "POST", ["storage", "v1", "b"]:
                name = str(json.loads(request.body)["name"])
                if not self._storage.create_bucket(name):
                    raise _Refused(409, "conflict", "You already own this bucket. Please select another name.")
                return _json(200, {"kind": "storage#bucket", "id": name, "name": name})
            case "GET", ["storage", "v1", "b", bucket]:
                if not self._storage.has_bucket(bucket):
                    raise _Refused(404, "notFound", "The specified bucket does not exist.")
                return _json(200, {"kind": "storage#bucket", "id": bucket, "name": bucket})
        raise _Refused(501, "notImplemented", f"{request.method} {request.raw_path} is not emulated")

    def _insert(self, request: Request, bucket: str) -> Reply:
        if request.query.get("uploadType") != "multipart":
            raise _Refused(501, "notImplemented", "only single-request multipart uploads are emulated")
        condition = request.query.get("ifGenerationMatch")
        if condition not in (None, "0"):
            raise _Refused(501, "notImplemented", "of conditions only ifGenerationMatch=0 is emulated")
        wanted, data = _multipart_related(request)
        key = str(wanted.get("name") or request.query.get("name", ""))
        if not self._storage.has_bucket(bucket):
            raise _Refused(404, "notFound", "The specified bucket does not exist.")
        if wanted.get("crc32c") not in (None, base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()):
            raise _Refused(400, "invalid", "Provided CRC32C does not match what we received.")
        return _json(200, _resource(bucket, key, self._storage.put(bucket, key, data, if_absent=condition == "0")))

    def _download(self, request: Request, bucket: str, key: str) -> Reply:
        size = self._storage.size(bucket, key)
        try:
            wanted = byte_range(request.headers.get("range"), size)
        except ValueError as error:
            raise _Refused(416, "requestedRangeNotSatisfiable", "Request range not satisfiable") from error
        start, length = wanted or (0, None)
        meta, data = self._storage.read(bucket, key, start, length)
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{meta.etag}"',
            "Last-Modified": formatdate(meta.modified_ms / 1000, usegmt=True),
            "X-Goog-Generation": _generation(meta),
            "X-Goog-Stored-Content-Length": str(meta.size),
            "X-Goog-Stored-Content-Encoding": "identity",
            "X-Goog-Hash": f"crc32c={_crc32c(meta)}",
        }
        if wanted is None:
            return Reply(200, headers, data)
        return Reply(206, {**headers, "Content-Range": f"bytes {start}-{start + len(data) - 1}/{meta.size}"}, data)

    def _list(self, request: Request, bucket: str) -> Reply:
        query = request.query
        prefix = query.get("prefix", "")
        limit = min(int(query.get("maxResults") or "1000"), 1000)
        token = query.get("pageToken", "")
        after = base64.urlsafe_b64decode(token).decode() if token else ""
        # startOffset is inclusive (JSON API reference).
        start = query.get("startOffset", "")
        rows, more = self._storage.list(bucket, prefix, start_after=after, start_at=start, limit=limit)
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [{"kind": "storage#object", "bucket": bucket, "name": k, "size": str(size)} for k, size in rows],
        }
        if more:
            answer["nextPageToken"] = base64.urlsafe_b64encode(rows[-1][0].encode()).decode()
        return _json(200, answer)


def _multipart_related(request: Request) -> tuple[dict[str, Any], bytes]:
    """The JSON resource and the media of a `multipart/related` body."""
    content_type = request.headers.get("content-type", "")
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    if not boundary:
        raise _Refused(400, "badContent", "a multipart/related body with a boundary is needed")
    body, mark = request.body, b"--" + boundary
    first = body.find(mark)
    second = body.find(mark, first + len(mark))
    start = body.find(b"\r\n\r\n", second) + 4
    if first < 0 or second < 0 or start < 4:
        raise _Refused(400, "badContent", "two parts are needed")
    resource = json.loads(body[first:second].partition(b"\r\n\r\n")[2])
    end = body.rfind(b"\r\n" + mark + b"--")
    if end < start:
        raise _Refused(400, "badContent", "the body is cut off")
    data = body[start:end]
    return dict(resource), data


def _crc32c(meta: Meta) -> str:
    return base64.b64encode(meta.crc32c.to_bytes(4, "big")).decode()


def _generation(meta: Meta) -> str:
    return str(meta.modified_ms * 1000)


def _resource(bucket: str, key: str, meta: Meta) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": key,
        "size": str(meta.size),
        "etag": meta.etag,
        "generation": _generation(meta),
        "metageneration": "1",
        "crc32c": _crc32c(meta),
    }


def _json(status: int, value: Any) -> Reply:
    return Reply(status, _JSON, json.dumps(value).encode())
