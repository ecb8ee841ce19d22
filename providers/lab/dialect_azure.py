"""Azure Blob Storage over the storage core, path style (`/account/container/blob`): what azure-storage-blob needs.
SharedKey signatures.

Sources: the Blob service REST reference (Put Blob, Get Blob, List Blobs, Authorize with Shared Key, error codes). Left
out: append and page blobs, staged blocks, leases, batches, SAS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Reply, Request, byte_range, element, xml

VERSION = "2026-06-06"

_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
"""In the order of "Authorize with Shared Key"."""

RANGE_MD5_BYTES_MAX = 4 << 20
"""`x-ms-range-get-content-md5` is for ranges up to 4 MiB."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class AzureDialect:
    """`credentials`: `account`, `account_key` (base64)."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        self._account = str(credentials["account"])
        self._key = base64.b64decode(str(credentials["account_key"]))
        self._clock = clock

    def error(self, status: int, code: str, message: str) -> Reply:
        body = xml(element("Error", ("Code", code), ("Message", message)))
        return Reply(status, {"Content-Type": "application/xml", "x-ms-error-code": code}, body)

    def answer(self, request: Request) -> Reply:
        try:
            self._authenticate(request)
            reply = self._answer(request)
        except _Refused as refused:
            reply = self.error(refused.status, refused.code, refused.message)
        except AlreadyExists:
            reply = self.error(409, "BlobAlreadyExists", "The specified blob already exists.")
        except NotFound as error:
            reply = self.error(404, "ContainerNotFound" if "bucket" in error.fields else "BlobNotFound", str(error))
        except Corrupt as error:
            reply = self.error(500, "InternalError", str(error))
        except Full as error:
            reply = self.error(503, "ServerBusy", str(error))
        except Invalid as error:
            reply = self.error(400, "InvalidInput", str(error))
        headers = {"x-ms-request-id": "0", "x-ms-version": VERSION, **reply.headers}
        return Reply(reply.status, headers, b"" if request.method == "HEAD" else reply.body)

    def _answer(self, request: Request) -> Reply:
        _, _, rest = request.path.removeprefix("/").partition("/")
        container, _, blob = rest.partition("/")
        if not blob and request.query.get("restype") == "container":
            return self._container(request, container)
        if blob and "comp" not in request.query:
            match request.method:
                case "PUT":
                    return self._put(request, container, blob)
                case "GET":
                    return self._get(request, container, blob)
                case "HEAD":
                    meta = self._storage.head(container, blob)
                    return Reply(200, {**_headers(meta), "Content-Length": str(meta.size)})
                case "DELETE":
                    if not self._storage.delete(container, [blob])[0]:
                        raise _Refused(404, "BlobNotFound", "The specified blob does not exist.")
                    return Reply(202)
        raise _Refused(501, "NotImplemented", f"{request.method} {request.raw_path} is not emulated")

    def _container(self, request: Request, container: str) -> Reply:
        match request.method, request.query.get("comp"):
            case "PUT", None:
                if not self._storage.create_bucket(container):
                    raise _Refused(409, "ContainerAlreadyExists", "The specified container already exists.")
                return Reply(201)
            case (("GET" | "HEAD"), None):
                self._storage.list(container, "", start_after="", limit=1)
                return Reply(200)
            case "GET", "list":
                return self._list(request, container)
        raise _Refused(501, "NotImplemented", f"{request.method} {request.raw_path} is not emulated")

    def _put(self, request: Request, container: str, blob: str) -> Reply:
        if request.headers.get("x-ms-blob-type") != "BlockBlob":
            raise _Refused(501, "NotImplemented", "only block blobs are emulated")
        md5 = base64.b64encode(hashlib.md5(request.body, usedforsecurity=False).digest()).decode()
        if request.headers.get("content-md5", md5) != md5:
            raise _Refused(400, "Md5Mismatch", "The MD5 value specified in the request did not match.")
        condition = request.headers.get("if-none-match")
        if condition not in (None, "*") or "if-match" in request.headers:
            raise _Refused(501, "NotImplemented", "of conditions only If-None-Match: * is emulated")
        meta = self._storage.put(container, blob, request.body, if_absent=condition == "*")
        return Reply(201, {**_headers(meta), "Content-MD5": md5})

    def _get(self, request: Request, container: str, blob: str) -> Reply:
        size = self._storage.size(container, blob)
        try:
            wanted = byte_range(request.headers.get("x-ms-range") or request.headers.get("range"), size)
        except ValueError as error:
            raise _Refused(416, "InvalidRange", "The range specified is invalid.") from error
        if wanted is None:
            meta, data = self._storage.read(container, blob, 0, None)
            return Reply(200, _headers(meta), data)
        start, length = wanted
        meta, data = self._storage.read(container, blob, start, length)
        headers = _headers(meta)
        headers["x-ms-blob-content-md5"] = headers.pop("Content-MD5")
        headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{meta.size}"
        if request.headers.get("x-ms-range-get-content-md5") == "true":
            if len(data) > RANGE_MD5_BYTES_MAX:
                raise _Refused(400, "OutOfRangeQueryParameterValue", "a checked range has at most 4 MiB")
            headers["Content-MD5"] = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        return Reply(206, headers, data)

    def _list(self, request: Request, container: str) -> Reply:
        query = request.query
        prefix = query.get("prefix", "")
        limit = min(int(query.get("maxresults") or "5000"), 5000)
        marker = query.get("marker", "")
        after = base64.urlsafe_b64decode(marker).decode() if marker else ""
        # startFrom is inclusive (List Blobs).
        start = query.get("startFrom", "")
        rows, more = self._storage.list(container, prefix, start_after=after, start_at=start, limit=limit)
        blobs = element("Blobs")
        blobs.extend(
            element(
                "Blob",
                ("Name", key),
                element("Properties", ("Content-Length", size), ("BlobType", "BlockBlob")),
            )
            for key, size in rows
        )
        next_marker = base64.urlsafe_b64encode(rows[-1][0].encode()).decode() if more else ""
        result = element(
            "EnumerationResults",
            ("Prefix", prefix),
            ("MaxResults", limit),
            blobs,
            ("NextMarker", next_marker),
            ContainerName=container,
        )
        return Reply(200, {"Content-Type": "application/xml"}, xml(result))

    def _authenticate(self, request: Request) -> None:
        account, _, signature = request.headers.get("authorization", "").removeprefix("SharedKey ").partition(":")
        if account != self._account:
            raise _Refused(403, "AuthenticationFailed", "Server failed to authenticate the request.")
        signed = [request.headers.get(name, "") for name in _SIGNED_HEADERS]
        if signed[2] == "0":
            signed[2] = ""
        own = sorted(
            ((name, value) for name, value in request.headers.items() if name.startswith("x-ms-")),
            # The service passes over hyphens when it sorts.
            key=lambda pair: (pair[0].replace("-", ""), pair[0]),
        )
        to_sign = "\n".join([request.method, *signed, *(f"{name}:{value}" for name, value in own), ""])
        to_sign += f"/{self._account}{request.raw_path}"
        to_sign += "".join(f"\n{name.lower()}:{unquote(value)}" for name, value in sorted(request.query.items()))
        expected = base64.b64encode(hmac.new(self._key, to_sign.encode(), hashlib.sha256).digest())
        if not hmac.compare_digest(expected, signature.encode()):
            raise _Refused(403, "AuthenticationFailed", "The MAC signature found in the request is not the same.")


def _headers(meta: Meta) -> dict[str, str]:
    headers = {
        "ETag": f'"{meta.etag}"',
        "Last-Modified": formatdate(meta.modified_ms / 1000, usegmt=True),
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": "BlockBlob",
        "Content-Type": "application/octet-stream",
    }
    headers["Content-MD5"] = base64.b64encode(bytes.fromhex(meta.etag)).decode()
    return headers
