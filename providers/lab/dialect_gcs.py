"""Google Cloud Storage's JSON API over the storage core: objects with their preconditions, uploads in one request and
resumable ones, rewrites, compositions, batches and listings, behind Google's tokens (`google_tokens.py`).

Sources: the JSON API reference (Objects: insert, get, list, delete, rewrite, compose; Buckets: insert, get), the guides
to request preconditions, resumable uploads and batch requests. Left out: object versions (a generation but the live one
is not found), ACLs, metadata updates, the XML API, gRPC and with it Rapid buckets.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from email.message import Message
from email.parser import BytesParser
from typing import Any
from urllib.parse import unquote, urlsplit

from providers.base.clock import Clock
from providers.base.errors import NotFound, YunheError
from providers.lab.dialect_gcs_sessions import Sessions
from providers.lab.dialect_gcs_wire import (
    CONDITION_FAILED,
    NO_BUCKET,
    PRIVATE,
    Refused,
    attributes_of,
    body_json,
    check_bucket_name,
    check_conditions,
    check_hashes,
    conditions_of,
    error_reply,
    generation_of,
    hashes_of,
    json_reply,
    media_headers,
    multipart_related,
    no_object,
    refusal_of,
    resource_of,
)
from providers.lab.google_tokens import GoogleTokens
from providers.lab.storage import Meta, Storage
from providers.lab.storage_parts import KEY_BYTES_MAX
from providers.lab.storage_payload import Payload
from providers.lab.wire import Reply, Request, byte_range

PAGE_MAX = 1000
BATCH_CALLS_MAX = 100
COMPONENTS_MAX = 32
"""Sources of one composition."""
BATCH_BOUNDARY = "batch_lab"

_LOCK_STRIPES = 256


class GcsDialect:
    """`credentials`: `service_account` (a key file's content), or `anonymous: true`, which lets everybody in."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        self._tokens = GoogleTokens(credentials, clock)
        self._sessions = Sessions(storage, clock, self._written)
        # What a precondition compares must not change before the write: writers of one name wait for each other.
        self._writing = [threading.Lock() for _ in range(_LOCK_STRIPES)]

    def error(self, status: int, code: str, message: str) -> Reply:
        return error_reply(status, code, message)

    def answer(self, request: Request) -> Reply:
        token = self._tokens.answer(request)
        if token is not None:
            return token
        reason = self._tokens.refusal(request)
        if reason is not None:
            words = (
                "Anonymous caller does not have access to the bucket."
                if reason == "required"
                else "Invalid Credentials"
            )
            return error_reply(401, reason, words)
        parts = [unquote(part) for part in request.raw_path.strip("/").split("/")]
        reply = self._batch(request) if parts == ["batch", "storage", "v1"] else self._reply(request, parts)
        bodiless = request.method == "HEAD" or reply.status in (204, 304)
        return Reply(reply.status, reply.headers) if bodiless else reply

    def _reply(self, request: Request, parts: list[str]) -> Reply:
        try:
            return self._answer(request, parts)
        except Refused as refused:
            return error_reply(refused.status, refused.reason, refused.message)
        except YunheError as error:
            known = refusal_of(error)
            return error_reply(known.status, known.reason, known.message)

    def _answer(self, request: Request, parts: list[str]) -> Reply:
        # An object's name is one escaped path segment, so the path was split before it was unescaped.
        match request.method, parts:
            case _, ["upload", "storage", "v1", "b", bucket, "o"]:
                return self._upload(request, bucket)
            case "GET", ["download", "storage", "v1", "b", bucket, "o", key]:
                return self._media(request, bucket, key)
            case "GET", ["storage", "v1", "b", bucket, "o", key]:
                if request.query.get("alt") == "media":
                    return self._media(request, bucket, key)
                return self._show(request, bucket)(key, self._head(request, bucket, key))
            case "DELETE", ["storage", "v1", "b", bucket, "o", key]:
                return self._delete(request, bucket, key)
            case "POST", ["storage", "v1", "b", source, "o", source_key, "rewriteTo", "b", bucket, "o", key]:
                return self._rewrite(request, (source, source_key), bucket, key)
            case "POST", ["storage", "v1", "b", source, "o", source_key, "copyTo", "b", bucket, "o", key]:
                made = self._copied(request, (source, source_key), bucket, key)
                return self._show(request, bucket)(key, made)
            case "POST", ["storage", "v1", "b", bucket, "o", key, "compose"]:
                return self._compose(request, bucket, key)
            case "GET", ["storage", "v1", "b", bucket, "o"]:
                return self._list(request, bucket)
            case "POST", ["storage", "v1", "b"]:
                name = str(body_json(request).get("name", ""))
                check_bucket_name(name)
                if not self._storage.create_bucket(name):
                    words = "Your previous request to create the named bucket succeeded and you already own it."
                    raise Refused(409, "conflict", words)
                return json_reply(200, _bucket_plain(name))
            case "DELETE", ["storage", "v1", "b", bucket]:
                self._storage.remove_bucket(bucket)
                return Reply(204)
            case "GET", ["storage", "v1", "b", bucket]:
                self._check_bucket(bucket)
                return json_reply(200, _bucket_plain(bucket))
        raise Refused(501, "notImplemented", f"{request.method} {request.raw_path} is not emulated")

    def _check_bucket(self, bucket: str) -> None:
        if not self._storage.has_bucket(bucket):
            raise Refused(404, "notFound", NO_BUCKET)

    def _show(self, request: Request, bucket: str) -> Callable[[str, Meta], Reply]:
        endpoint = _endpoint(request)
        return lambda key, meta: json_reply(200, resource_of(bucket, key, meta, endpoint))

    # ---- writing

    def _upload(self, request: Request, bucket: str) -> Reply:
        self._check_bucket(bucket)
        if "upload_id" in request.query:
            match request.method:
                case "PUT" | "POST":
                    return self._sessions.put(request, bucket, self._show(request, bucket))
                case "DELETE":
                    return self._sessions.cancel(request, bucket)
        if request.method != "POST":
            raise Refused(405, "methodNotAllowed", f"{request.method} is not for uploads")
        match request.query.get("uploadType"):
            case "resumable":
                return self._sessions.begin(request, bucket, body_json(request), _endpoint(request))
            case "media":
                kind = request.headers.get("content-type")
                return self._insert(request, bucket, {"contentType": kind} if kind else {}, request.payload)
            case "multipart":
                resource, media = multipart_related(request)
                try:
                    return self._insert(request, bucket, resource, media)
                finally:
                    media.close()
        raise Refused(400, "invalid", "uploadType is media, multipart or resumable")

    def _insert(self, request: Request, bucket: str, resource: Mapping[str, Any], media: Payload) -> Reply:
        key = str(resource.get("name") or request.query.get("name", ""))
        _check_key(key)
        check_hashes(hashes_of(request, resource), media.crc32c, media.md5)
        attributes = attributes_of(resource)

        def make(if_absent: bool) -> Meta:
            return self._storage.put(bucket, key, media, if_absent=if_absent, attributes=attributes)

        return self._show(request, bucket)(key, self._written(bucket, key, conditions_of(request.query), make))

    def _written(self, bucket: str, key: str, conditions: Mapping[str, int], make: Callable[[bool], Meta]) -> Meta:
        """Makes an object under its preconditions. Absence is the storage's own business, which has the last word."""
        with self._writing[zlib.crc32(f"{bucket}/{key}".encode()) % _LOCK_STRIPES]:
            if conditions.get("GenerationMatch") == 0:
                return make(True)
            if conditions:
                check_conditions(conditions, self._found(bucket, key))
            return make(False)

    def _found(self, bucket: str, key: str) -> Meta | None:
        self._check_bucket(bucket)
        return self._storage.head(bucket, key) if self._storage.contains(bucket, key) else None

    def _delete(self, request: Request, bucket: str, key: str) -> Reply:
        with self._writing[zlib.crc32(f"{bucket}/{key}".encode()) % _LOCK_STRIPES]:
            self._head(request, bucket, key, reading=False)
            if not self._storage.delete(bucket, [key])[0]:
                raise no_object(bucket, key)
        return Reply(204)

    def _copied(self, request: Request, source: tuple[str, str], bucket: str, key: str) -> Meta:
        meta = self._source(request, source)
        given = body_json(request)
        attributes = attributes_of(given) or {k: v for k, v in meta.attributes.items() if not k.startswith(PRIVATE)}

        def make(if_absent: bool) -> Meta:
            return self._storage.copy(bucket, key, *source, if_absent=if_absent, attributes=attributes)

        self._check_bucket(bucket)
        _check_key(key)
        return self._written(bucket, key, conditions_of(request.query), make)

    def _source(self, request: Request, source: tuple[str, str]) -> Meta:
        meta = self._found(*source)
        wanted = request.query.get("sourceGeneration")
        if meta is None or (wanted is not None and wanted != str(generation_of(meta))):
            raise no_object(*source)
        check_conditions(conditions_of(request.query, "ifSource"), meta)
        return meta

    def _rewrite(self, request: Request, source: tuple[str, str], bucket: str, key: str) -> Reply:
        """In as many calls as `maxBytesRewrittenPerCall` makes of it; the token is bound to the source's generation."""
        meta = self._source(request, source)
        step = int(request.query.get("maxBytesRewrittenPerCall") or meta.size or 1)
        token = request.query.get("rewriteToken")
        done = 0
        if token:
            try:
                kept = json.loads(base64.urlsafe_b64decode(token))
            except ValueError as error:
                raise Refused(400, "invalid", "Invalid rewrite token") from error
            if kept["g"] != generation_of(meta):
                raise Refused(400, "invalid", "The source was changed since the rewrite began")
            done = int(kept["d"])
        done = min(done + step, meta.size)
        plain: dict[str, Any] = {
            "kind": "storage#rewriteResponse",
            "totalBytesRewritten": str(done),
            "objectSize": str(meta.size),
            "done": done == meta.size,
        }
        if done < meta.size:
            state = json.dumps({"g": generation_of(meta), "d": done}).encode()
            plain["rewriteToken"] = base64.urlsafe_b64encode(state).decode()
        else:
            made = self._copied(request, source, bucket, key)
            plain["resource"] = resource_of(bucket, key, made, _endpoint(request))
        return json_reply(200, plain)

    def _compose(self, request: Request, bucket: str, key: str) -> Reply:
        asked = body_json(request)
        sources = asked.get("sourceObjects") or []
        if not 1 <= len(sources) <= COMPONENTS_MAX:
            raise Refused(400, "invalid", f"The number of source components must be between 1 and {COMPONENTS_MAX}")
        _check_key(key)
        components = 0
        for row in sources:
            meta = self._found(bucket, str(row["name"]))
            if meta is None or ("generation" in row and str(row["generation"]) != str(generation_of(meta))):
                raise no_object(bucket, str(row["name"]))
            check_conditions(conditions_of(row.get("objectPreconditions") or {}), meta)
            components += int(meta.attributes.get(f"{PRIVATE}components", "1"))
        attributes = {**attributes_of(asked.get("destination") or {}), f"{PRIVATE}components": str(components)}
        upload = self._storage.begin_upload(bucket, key, attributes=attributes)

        def make(if_absent: bool) -> Meta:
            for number, row in enumerate(sources, start=1):
                self._storage.put_part(bucket, upload, number, self._storage.read(bucket, str(row["name"]), 0, None)[1])
            return self._storage.complete_upload(bucket, upload, range(1, len(sources) + 1), if_absent=if_absent)

        try:
            made = self._written(bucket, key, conditions_of(request.query), make)
        except (Refused, YunheError):
            self._storage.abort_upload(bucket, upload)
            raise
        return self._show(request, bucket)(key, made)

    # ---- reading

    def _head(self, request: Request, bucket: str, key: str, *, reading: bool = True) -> Meta:
        """The object, under the request's preconditions.

        Raises:
            Refused
        """
        meta, conditions = self._found(bucket, key), conditions_of(request.query)
        wanted = request.query.get("generation")
        if meta is None or (wanted is not None and wanted != str(generation_of(meta))):
            if meta is None and conditions.get("GenerationMatch", 0) != 0:
                raise Refused(412, "conditionNotMet", CONDITION_FAILED)
            raise no_object(bucket, key)
        check_conditions(conditions, meta, reading=reading)
        return meta

    def _media(self, request: Request, bucket: str, key: str) -> Reply:
        size = self._head(request, bucket, key).size
        try:
            wanted = byte_range(request.headers.get("range"), size)
        except ValueError:
            refused = error_reply(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
            return Reply(416, {**refused.headers, "Content-Range": f"bytes */{size}"}, refused.body)
        start, length = wanted or (0, None)
        try:
            meta, content = self._storage.open(bucket, key, start, length)
        except NotFound as error:
            raise no_object(bucket, key) from error
        headers = media_headers(meta)
        generation = conditions_of(request.query).get("GenerationMatch")
        if generation is not None and generation != generation_of(meta):
            # Replaced between the look and the opening.
            content.close()
            raise Refused(412, "conditionNotMet", CONDITION_FAILED)
        if wanted is None:
            return Reply(200, headers, content)
        span = f"bytes {start}-{start + content.size - 1}/{meta.size}"
        return Reply(206, {**headers, "Content-Range": span}, content)

    def _list(self, request: Request, bucket: str) -> Reply:
        query = request.query
        prefix, delimiter, end = query.get("prefix", ""), query.get("delimiter", ""), query.get("endOffset", "")
        limit = min(int(query.get("maxResults") or PAGE_MAX), PAGE_MAX)
        token = query.get("pageToken", "")
        after = base64.urlsafe_b64decode(token).decode() if token else ""
        # startOffset is inclusive, endOffset is not (JSON API reference).
        start = query.get("startOffset", "")
        self._check_bucket(bucket)
        rows, more = self._storage.list_metas(bucket, prefix, start_after=after, start_at=start, limit=max(limit, 1))
        shown = [(key, meta) for key, meta in rows if not end or key < end]
        answer: dict[str, Any] = {"kind": "storage#objects"}
        items, prefixes = [], {}
        for key, meta in shown:
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at < 0:
                items.append(resource_of(bucket, key, meta, _endpoint(request)))
            else:
                prefixes[key[: at + len(delimiter)]] = True
        if items:
            answer["items"] = items
        if prefixes:
            answer["prefixes"] = list(prefixes)
        if more and len(shown) == len(rows):
            answer["nextPageToken"] = base64.urlsafe_b64encode(rows[-1][0].encode()).decode()
        return json_reply(200, answer)

    # ---- batches

    def _batch(self, request: Request) -> Reply:
        """Up to 100 calls in one `multipart/mixed` request, each answered in order."""
        head = f"Content-Type: {request.headers.get('content-type', '')}\r\n\r\n".encode()
        message = BytesParser().parsebytes(head + request.body)
        calls = message.get_payload()
        if not message.is_multipart() or not isinstance(calls, list):
            return error_reply(400, "badRequest", "Failed to parse batch request")
        if len(calls) > BATCH_CALLS_MAX:
            return error_reply(400, "badRequest", f"Batch size {len(calls)} is over {BATCH_CALLS_MAX}")
        out = []
        for call in calls:
            assert isinstance(call, Message)
            name = str(call.get("Content-ID", "")).strip("<>")
            reply = self._call(bytes(call.get_payload(decode=True) or b""))
            body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body.pieces())
            fields = {**reply.headers, "Content-Length": str(len(body))}
            lines = [f"--{BATCH_BOUNDARY}", "Content-Type: application/http"]
            lines += [f"Content-ID: <response-{name}>"] if name else []
            lines += ["", f"HTTP/1.1 {reply.status} -", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
            out.append("\r\n".join(lines).encode() + body + b"\r\n")
        out.append(f"--{BATCH_BOUNDARY}--\r\n".encode())
        return Reply(200, {"Content-Type": f'multipart/mixed; boundary="{BATCH_BOUNDARY}"'}, b"".join(out))

    def _call(self, raw: bytes) -> Reply:
        head, _, body = raw.replace(b"\r\n", b"\n").partition(b"\n\n")
        line, *rest = head.decode("utf-8", "replace").split("\n")
        found = re.fullmatch(r"([A-Z]+) (\S+)( HTTP/[\d.]+)?", line.strip())
        if found is None:
            return error_reply(400, "badRequest", "Failed to parse batch request")
        url = urlsplit(found[2])
        target = url.path + (f"?{url.query}" if url.query else "")
        headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
        inner = Request.of(found[1], target, headers, body)
        parts = [unquote(part) for part in inner.raw_path.strip("/").split("/")]
        if parts[:1] != ["storage"] or inner.query.get("alt") == "media":
            return error_reply(400, "badRequest", "Batches do not carry media")
        return self._reply(inner, parts)


def _check_key(key: str) -> None:
    if not key:
        raise Refused(400, "required", "Required parameter: name")
    if len(key.encode()) > KEY_BYTES_MAX or "\r" in key or "\n" in key or key in (".", ".."):
        raise Refused(400, "invalid", f"Invalid object name: '{key}'")


def _endpoint(request: Request) -> str:
    return f"http://{request.headers.get('host', '')}"


def _bucket_plain(name: str) -> dict[str, Any]:
    return {"kind": "storage#bucket", "id": name, "name": name, "storageClass": "STANDARD", "metageneration": "1"}
