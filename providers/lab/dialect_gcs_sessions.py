"""Resumable uploads of the GCS dialect: a session to which an object's bytes come in order.

    POST uploadType=resumable ─► Location ─► PUT bytes a-b/* (308, Range) … ─► PUT bytes a-b/total (200, the object)
                                        └──► DELETE (499)

Preconditions hold when the object is made, whatever came between (what real GCS does). The session's state is in its
address, the storage's upload and, once it is over, the object that it made: so it survives a restart of the server.
Source: guide "Perform resumable uploads"; JSON API reference, objects.insert.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import quote

from providers.base.clock import Clock
from providers.base.errors import NotFound
from providers.lab.dialect_gcs_wire import (
    PRIVATE,
    Refused,
    attributes_of,
    check_hashes,
    conditions_of,
    hashes_of,
)
from providers.lab.storage import Meta, Storage
from providers.lab.storage_crc import Sums
from providers.lab.storage_payload import Payload
from providers.lab.wire import Reply, Request

CHUNK_BYTES = 256 << 10
WEEK_MS = 7 * 86_400_000
"""A session that is not ended is dropped after it."""
SWEEP_MS = 3_600_000
CANCELLED = 499
TAG = f"{PRIVATE}session"

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")

Complete = Callable[[str, str, Mapping[str, int], Callable[[bool], Meta]], Meta]
"""Makes the object under its preconditions: (bucket, key, conditions, make(if_absent))."""


@dataclass(frozen=True, slots=True)
class _Session:
    bucket: str
    key: str
    upload: str
    tag: str
    conditions: Mapping[str, int]
    stated: Mapping[str, str]
    """Hashes of the whole object that the beginning stated."""


class Sessions:
    """`complete` makes an object under its preconditions."""

    def __init__(self, storage: Storage, clock: Clock, complete: Complete) -> None:
        self._storage = storage
        self._clock = clock
        self._complete = complete
        self._numbers = count()
        self._swept_ms = clock.monotonic_ms()

    def begin(self, request: Request, bucket: str, resource: Mapping[str, Any], endpoint: str) -> Reply:
        """The answer with the session's address."""
        self._sweep()
        key = str(resource.get("name") or request.query.get("name", ""))
        if not key:
            raise Refused(400, "required", "Required parameter: name")
        content_type = request.headers.get("x-upload-content-type")
        kept = attributes_of({**({"contentType": content_type} if content_type else {}), **resource})
        tag = f"{self._clock.wall_ms()}-{next(self._numbers)}"
        upload = self._storage.begin_upload(bucket, key, attributes={**kept, TAG: tag})
        state = {"u": upload, "k": key, "t": tag, "c": conditions_of(request.query), "h": hashes_of(request, resource)}
        token = base64.urlsafe_b64encode(json.dumps(state).encode()).decode()
        query = f"uploadType=resumable&name={quote(key, safe='')}&upload_id={token}"
        location = f"{endpoint}/upload/storage/v1/b/{quote(bucket, safe='')}/o?{query}"
        return Reply(200, {"Location": location, "X-GUploader-UploadID": token})

    def put(self, request: Request, bucket: str, show: Callable[[str, Meta], Reply]) -> Reply:
        """A chunk, the last one, or the question how far it is; `show` makes the answer once the object is there."""
        session = _parse(request, bucket)
        try:
            parts = self._storage.parts(bucket, session.upload)
        except NotFound as error:
            if "upload" not in error.fields:
                raise
            return self._over(session, show)
        held = sum(meta.size for _, meta in parts)
        start, length, total = _content_range(request)
        if length and start > held:
            raise Refused(400, "invalid", f"The chunk begins at byte {start}, but only {held} bytes have come.")
        fresh = max(start + length - held, 0)
        last = total is not None and start + length == total if length else total == held
        if length and fresh:
            if not last and fresh % CHUNK_BYTES:
                raise Refused(400, "invalid", "Chunks but the last have multiples of 262144 bytes.")
            self._store(session, request.payload, len(parts) + 1, length - fresh, fresh)
            held += fresh
        if not last:
            return Reply(308, {"Range": f"bytes=0-{held - 1}"} if held else {})
        numbers = list(range(1, len(parts) + (2 if fresh else 1)))
        return show(session.key, self._finish(session, numbers, hashes_of(request, {})))

    def _store(self, session: _Session, payload: Payload, number: int, skip: int, length: int) -> None:
        if not skip:
            self._storage.put_part(session.bucket, session.upload, number, payload)
            return
        fresh = payload.slice(skip, length)
        try:
            self._storage.put_part(session.bucket, session.upload, number, fresh)
        finally:
            fresh.close()

    def _finish(self, session: _Session, numbers: list[int], stated: Mapping[str, str]) -> Meta:
        def make(if_absent: bool) -> Meta:
            return self._storage.complete_upload(session.bucket, session.upload, numbers, if_absent=if_absent)

        # The checksum is compared before anything is shown: what does not match is no object, and the session ends.
        wanted = {**session.stated, **stated}
        if wanted:
            self._check(session, wanted)
        return self._complete(session.bucket, session.key, session.conditions, make)

    def _check(self, session: _Session, wanted: Mapping[str, str]) -> None:
        sums = Sums()
        for _, meta in self._storage.parts(session.bucket, session.upload):
            sums = sums.join(meta.sums, meta.size)
        try:
            check_hashes(wanted, sums.crc32c, lambda: None)
        except Refused:
            self._storage.abort_upload(session.bucket, session.upload)
            raise

    def _over(self, session: _Session, show: Callable[[str, Meta], Reply]) -> Reply:
        try:
            meta = self._storage.head(session.bucket, session.key)
        except NotFound:
            meta = None
        if meta is None or meta.attributes.get(TAG) != session.tag:
            raise Refused(410, "uploadSessionOver", "The upload session is over.")
        return show(session.key, meta)

    def cancel(self, request: Request, bucket: str) -> Reply:
        """Drop the session."""
        session = _parse(request, bucket)
        try:
            self._storage.abort_upload(bucket, session.upload)
        except NotFound as error:
            raise Refused(404, "notFound", "No such upload session") from error
        return Reply(CANCELLED)

    def _sweep(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._swept_ms > SWEEP_MS:
            self._swept_ms = now_ms
            self._storage.collect_uploads(WEEK_MS)


def _parse(request: Request, bucket: str) -> _Session:
    try:
        state = json.loads(base64.urlsafe_b64decode(request.query["upload_id"]))
        return _Session(bucket, state["k"], state["u"], state["t"], state["c"], state["h"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(404, "notFound", "No such upload session") from error


def _content_range(request: Request) -> tuple[int, int, int | None]:
    """(start, length, total); length 0: no bytes are sent; total None: not known yet."""
    stated = request.headers.get("content-range")
    size = request.payload.size
    if stated is None:
        return 0, size, size
    found = _RANGE.fullmatch(stated)
    if found is None:
        raise Refused(400, "invalid", f"Invalid Content-Range: {stated}")
    total = None if found[3] == "*" else int(found[3])
    if found[1] is None:
        return 0, 0, total
    start, end = int(found[1]), int(found[2]) + 1
    if end - start != size or (total is not None and end > total):
        raise Refused(400, "invalid", f"Content-Range {stated} does not fit the body of {size} bytes")
    return start, size, total
