"""Azure Blob Storage over the storage core, path style (`/account/container/blob`): block blobs, append blobs, copies,
batches and listings, as azure-storage-blob asks for them.

Sources: the Blob service REST reference (one page an operation, conditional headers, error codes). Left out: page
blobs, leases, snapshots and versions, tags, metadata changed by itself, structured bodies, Entra tokens, removing
containers.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from xml.etree import ElementTree

from providers.base.clock import Clock
from providers.base.errors import Invalid, NotFound, WrongOffset, YunheError
from providers.lab.dialect_azure_auth import AzureAuth
from providers.lab.dialect_azure_batch import answer_batch
from providers.lab.dialect_azure_blocks import Blocks
from providers.lab.dialect_azure_wire import (
    APPEND,
    BLOCK,
    VERSION,
    Refused,
    attributes_of,
    blob_headers,
    check_digests,
    check_read,
    check_source,
    check_write,
    crc64_of,
    created_ms,
    document,
    encoded,
    error_reply,
    etag_of,
    http_date,
    md5_of,
    not_emulated,
    refusal_of,
    written_headers,
)
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Reply, Request, byte_range, element

PUT_BYTES_MAX = 5000 << 20
APPEND_BYTES_MAX = 100 << 20
APPENDS_MAX = 50_000
CHECKED_BYTES_MAX = 4 << 20
"""The longest range that is answered with a checksum."""
PAGE_MAX = 5000
KEY_CHARS_MAX = 1024

_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")
_LOCK_STRIPES = 256


class AzureDialect:
    """`credentials`: `account`, `account_key` (base64)."""

    def __init__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._auth = AzureAuth(credentials, clock)
        self._blocks = Blocks(storage, self._auth, clock)
        # The storage counts the empty blob that appends begin with.
        storage.parts_max = APPENDS_MAX + 1
        # What a condition compares must not change before the write: writers of one name wait for each other.
        self._writing = [threading.Lock() for _ in range(_LOCK_STRIPES)]

    def error(self, status: int, code: str, message: str) -> Reply:
        return error_reply(status, code, message)

    def answer(self, request: Request) -> Reply:
        reply = self._refusing(request, batched=False)
        headers = {"x-ms-request-id": "0", "x-ms-version": VERSION, **reply.headers}
        if "x-ms-client-request-id" in request.headers:
            headers["x-ms-client-request-id"] = request.headers["x-ms-client-request-id"]
        bodiless = request.method == "HEAD" or reply.status == 304
        return Reply(reply.status, headers, b"" if bodiless else reply.body)

    def _refusing(self, request: Request, *, batched: bool) -> Reply:
        try:
            self._auth.check(request, batched=batched)
            return self._answer(request)
        except Refused as refused:
            return error_reply(refused.status, refused.code, refused.message, refused.more)
        except YunheError as error:
            meant = refusal_of(error)
            return error_reply(meant.status, meant.code, meant.message, meant.more)

    def _answer(self, request: Request) -> Reply:
        account, _, rest = request.path.removeprefix("/").partition("/")
        container, _, blob = rest.partition("/")
        if account != self._auth.account:
            raise Refused(403, "AuthenticationFailed", "Server failed to authenticate the request: no such account.")
        if not _CONTAINER.fullmatch(container):
            raise Refused(400, "InvalidResourceName", "The specified resource name contains invalid characters.")
        if not blob:
            return self._container(request, container)
        if len(blob) > KEY_CHARS_MAX:
            raise Refused(400, "InvalidResourceName", "The specified resource name is too long.")
        return self._blob(request, container, blob)

    # ---- containers

    def _container(self, request: Request, container: str) -> Reply:
        if request.query.get("restype") != "container":
            raise not_emulated(request)
        match request.method, request.query.get("comp"):
            case "PUT", None:
                if not self._storage.create_bucket(container):
                    raise Refused(409, "ContainerAlreadyExists", "The specified container already exists.")
                return Reply(201)
            case "DELETE", None:
                # What it holds goes with it (Delete Container).
                self._storage.remove_bucket(container, with_objects=True)
                self._blocks.drop_all(container)
                return Reply(202)
            case (("GET" | "HEAD"), None):
                self._storage.list(container, "", limit=1)
                return Reply(200, {"x-ms-lease-status": "unlocked", "x-ms-lease-state": "available"})
            case "GET", "list":
                return self._list(request, container)
            case "POST", "batch":
                return answer_batch(request, self._batched)
        raise not_emulated(request)

    def _batched(self, request: Request) -> Reply:
        if request.method != "DELETE":
            return error_reply(400, "InvalidInput", "Only deletions are emulated in a batch.")
        return self._refusing(request, batched=True)

    def _list(self, request: Request, container: str) -> Reply:
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("maxresults") or PAGE_MAX), PAGE_MAX)
        marker = base64.urlsafe_b64decode(query.get("marker", "")).decode()
        include = query.get("include", "").split(",")
        # startFrom is inclusive (List Blobs); so is what a marker says.
        start = max(marker, query.get("startFrom", ""))
        rows, folders, after = self._page(container, prefix, delimiter, start, limit, "uncommittedblobs" in include)
        blobs = element("Blobs")
        blobs.extend(_shown(name, meta, "metadata" in include) for name, meta in rows)
        blobs.extend(element("BlobPrefix", ("Name", folder)) for folder in folders)
        result = element(
            "EnumerationResults",
            ("Prefix", prefix),
            ("MaxResults", limit),
            blobs,
            ("NextMarker", base64.urlsafe_b64encode(after.encode()).decode()),
            ContainerName=container,
        )
        return document(result)

    def _page(
        self, container: str, prefix: str, delimiter: str, start: str, limit: int, uncommitted: bool
    ) -> tuple[list[tuple[str, Meta | None]], list[str], str]:
        """Blobs and folders of a page, and the name that the next one begins with, "" at the end."""
        rows, folders = list[tuple[str, Meta | None]](), list[str]()
        pending = self._blocks.uncommitted(container, prefix) if uncommitted else []
        for name, meta in self._every(container, prefix, start, limit, pending):
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            folder = prefix + head + delimiter
            if found and folders[-1:] == [folder]:
                continue
            if len(rows) + len(folders) == limit:
                return rows, folders, name
            if found:
                folders.append(folder)
            else:
                rows.append((name, meta))
        return rows, folders, ""

    def _every(
        self, container: str, prefix: str, start: str, page: int, pending: list[str]
    ) -> Iterator[tuple[str, Meta | None]]:
        """Blobs in order; those in `pending` without properties."""
        waiting = [name for name in pending if name >= start]
        after, more = "", True
        while more:
            found, more = self._storage.list_metas(container, prefix, start_after=after, start_at=start, limit=page + 1)
            for name, meta in found:
                while waiting and waiting[0] < name:
                    yield waiting.pop(0), None
                yield name, meta
                after = name
        for name in waiting:
            yield name, None

    # ---- blobs

    def _blob(self, request: Request, container: str, blob: str) -> Reply:
        copied = "x-ms-copy-source" in request.headers
        match request.method, request.query.get("comp"):
            case "GET", None:
                return self._get(request, container, blob)
            case "HEAD", None:
                meta = self._storage.head(container, blob)
                check_read(request.headers, meta)
                return Reply(200, {**_whole_headers(meta), "Content-Length": str(meta.size)})
            case "GET", "blocklist":
                return self._blocks.show(request, container, blob)
        with self._lock(container, blob):
            match request.method, request.query.get("comp"):
                case "PUT", None:
                    return self._copy(request, container, blob) if copied else self._put(request, container, blob)
                case "PUT", "block":
                    return (self._blocks.stage_from if copied else self._blocks.stage)(request, container, blob)
                case "PUT", "blocklist":
                    return self._blocks.commit(request, container, blob)
                case "PUT", "appendblock":
                    return self._append(request, container, blob)
                case "DELETE", None:
                    return self._delete(request, container, blob)
        raise not_emulated(request)

    @contextmanager
    def _lock(self, container: str, blob: str) -> Iterator[None]:
        with self._writing[hash((container, blob)) % _LOCK_STRIPES]:
            yield

    def _head(self, container: str, blob: str) -> Meta | None:
        try:
            return self._storage.head(container, blob)
        except NotFound as error:
            if "bucket" in error.fields:
                raise
            return None

    def _put(self, request: Request, container: str, blob: str) -> Reply:
        kind = request.headers.get("x-ms-blob-type", "")
        if kind not in (BLOCK, APPEND):
            raise Refused(400, "InvalidHeaderValue", f"x-ms-blob-type: {kind or 'none'} is not emulated.")
        if request.payload.size > (PUT_BYTES_MAX if kind == BLOCK else 0):
            raise Refused(413, "RequestBodyTooLarge", "The request body is too large.")
        sums = check_digests(request)
        check_write(request.headers, self._head(container, blob))
        attributes = attributes_of(request, self._clock.wall_ms())
        meta = self._storage.put(container, blob, request.payload, appendable=kind == APPEND, attributes=attributes)
        self._blocks.drop(container, blob)
        md5 = md5_of(meta)
        return Reply(201, {**written_headers(meta), **({"Content-MD5": md5} if md5 else {}), **sums})

    def _append(self, request: Request, container: str, blob: str) -> Reply:
        sums = check_digests(request)
        size = request.payload.size
        if size == 0:
            raise Refused(400, "InvalidHeaderValue", "An append has at least one byte.")
        if size > APPEND_BYTES_MAX:
            raise Refused(413, "RequestBodyTooLarge", "The request body is too large.")
        found = self._storage.head(container, blob)
        check_write(request.headers, found)
        offset = int(request.headers.get("x-ms-blob-condition-appendpos", found.size))
        if found.size + size > int(request.headers.get("x-ms-blob-condition-maxsize", found.size + size)):
            raise Refused(412, "MaxBlobSizeConditionNotMet", "The max blob size condition specified was not met.")
        try:
            meta = self._storage.append(container, blob, offset, request.payload, create=False, only_appendable=True)
        except WrongOffset as error:
            said = "The append position condition specified was not met."
            raise Refused(412, "AppendPositionConditionNotMet", said) from error
        except Invalid as error:
            if error.fields.get("code") == "TooManyParts":
                said = "The committed block count cannot exceed the maximum limit of 50,000 blocks."
                raise Refused(409, "BlockCountExceedsLimit", said) from error
            raise Refused(409, "InvalidBlobType", "The blob type is invalid for this operation.") from error
        about = {"x-ms-blob-append-offset": str(offset), "x-ms-blob-committed-block-count": str(meta.parts - 1)}
        return Reply(201, {**written_headers(meta), **about, **sums})

    def _copy(self, request: Request, container: str, blob: str) -> Reply:
        """Copy Blob, Copy Blob From URL (`x-ms-requires-sync`) and Put Blob From URL (`x-ms-blob-type`). All are done
        when they answer; only the first takes the request's own signature for the right to read the source."""
        headers = request.headers
        from_url = "x-ms-blob-type" in headers
        waits = headers.get("x-ms-requires-sync", "").lower() == "true" or from_url
        source = self._auth.source(request, own_account=not waits)
        check_write(headers, self._head(container, blob))
        try:
            found = self._storage.head(*source)
        except NotFound as error:
            if "bucket" not in error.fields and not waits:
                raise
            raise Refused(404, "CannotVerifyCopySource", "The specified resource does not exist.") from error
        check_source(headers, found)
        given = attributes_of(request, self._clock.wall_ms())
        # Properties come with the bytes, metadata unless the request has its own.
        own_meta = any(name.startswith("x-ms-meta-") for name in given)
        came = {n: v for n, v in found.attributes.items() if not (own_meta and n.startswith("x-ms-meta-"))}
        meta = self._storage.copy(container, blob, *source, attributes={**came, **given})
        self._blocks.drop(container, blob)
        if from_url:
            return Reply(201, written_headers(meta))
        about = {"x-ms-copy-id": f"{meta.generation:032x}", "x-ms-copy-status": "success"}
        return Reply(202, {**written_headers(meta), **about})

    def _delete(self, request: Request, container: str, blob: str) -> Reply:
        found = self._head(container, blob)
        if found is None and "if-match" not in request.headers and self._blocks.drop(container, blob):
            # What is nothing but blocks can be deleted too (azure-storage-node issue 350; so does azurite).
            return Reply(202)
        if found is None:
            raise Refused(404, "BlobNotFound", "The specified blob does not exist.")
        check_write({k: v for k, v in request.headers.items() if k != "if-none-match"}, found)
        self._storage.delete(container, [blob])
        return Reply(202, {"x-ms-delete-type-permanent": "true"})

    def _get(self, request: Request, container: str, blob: str) -> Reply:
        meta = self._storage.head(container, blob)
        check_read(request.headers, meta)
        try:
            wanted = byte_range(request.headers.get("x-ms-range") or request.headers.get("range"), meta.size)
        except ValueError as error:
            raise Refused(416, "InvalidRange", "The range specified is invalid for the current size.") from error
        start, length = wanted or (0, None)
        # The blob may have been replaced since: what is sent is all of one version, the one that is opened.
        meta, content = self._storage.open(container, blob, start, length)
        if wanted is None:
            return Reply(200, _whole_headers(meta), content)
        headers = blob_headers(meta)
        if md5_of(meta) is not None:
            headers["x-ms-blob-content-md5"] = md5_of(meta) or ""
        headers["Content-Range"] = f"bytes {start}-{start + content.size - 1}/{meta.size}"
        asked = [n for n in ("md5", "crc64") if request.headers.get(f"x-ms-range-get-content-{n}") == "true"]
        if not asked:
            return Reply(206, headers, content)
        with closing(content):
            if content.size > CHECKED_BYTES_MAX:
                raise Refused(400, "OutOfRangeQueryParameterValue", "A checked range has at most 4 MiB.")
            return self._checked(headers, b"".join(content.pieces()), asked)

    def _checked(self, headers: dict[str, str], data: bytes, asked: list[str]) -> Reply:
        if "md5" in asked:
            headers["Content-MD5"] = encoded(hashlib.md5(data, usedforsecurity=False).digest())
        if "crc64" in asked:
            headers["x-ms-content-crc64"] = crc64_of([data])
        return Reply(206, headers, data)


def _whole_headers(meta: Meta) -> dict[str, str]:
    md5 = md5_of(meta)
    return {**blob_headers(meta), **({"Content-MD5": md5} if md5 else {})}


def _shown(name: str, meta: Meta | None, metadata: bool) -> ElementTree.Element:
    if meta is None:
        return element("Blob", ("Name", name), element("Properties", ("Content-Length", 0), ("BlobType", BLOCK)))
    md5 = md5_of(meta)
    properties = element(
        "Properties",
        ("Creation-Time", http_date(created_ms(meta))),
        ("Last-Modified", http_date(meta.modified_ms)),
        ("Etag", etag_of(meta).strip('"')),
        ("Content-Length", meta.size),
        ("Content-Type", meta.attributes.get("content-type", "application/octet-stream")),
        *((("Content-MD5", md5),) if md5 else ()),
        ("BlobType", APPEND if meta.appendable else BLOCK),
        ("LeaseStatus", "unlocked"),
        ("LeaseState", "available"),
    )
    shown = element("Blob", ("Name", name), properties)
    if metadata:
        own = [(n.removeprefix("x-ms-meta-"), v) for n, v in meta.attributes.items() if n.startswith("x-ms-meta-")]
        shown.append(element("Metadata", *own))
    return shown
