"""Blocks: staged under a blob's name, seen by nobody, and made the blob by a block list.

The storage knows uploads with numbered parts; Azure knows one set of uncommitted blocks a blob, by id. So each blob
with uncommitted blocks has one upload, and an index beside it (an object of a hidden bucket) of which id is which part.
A commit, or a put of the whole blob, drops all of it, as the service does; the lab does not drop it after a week.

Sources: the REST reference (Put Block, Put Block From URL, Put Block List, Get Block List).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from providers.base.clock import Clock
from providers.base.errors import Invalid, NotFound
from providers.lab.dialect_azure_auth import AzureAuth
from providers.lab.dialect_azure_wire import (
    Refused,
    attributes_of,
    check_digests,
    check_source,
    check_write,
    document,
    etag_of,
    written_headers,
)
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Reply, Request, byte_range, element, local

HIDDEN = "$blocks"
"""No container has this name."""

BLOCK_BYTES_MAX = 4000 << 20
BLOCKS_MAX = 50_000
UNCOMMITTED_MAX = 100_000
BLOCK_ID_BYTES_MAX = 64

_COMMITTED = "blocks"
"""The attribute that tells a blob's committed blocks, where the list is not too long for one."""
_COMMITTED_CHARS_MAX = 8 << 10


@dataclass(slots=True)
class _Index:
    """A blob's uncommitted blocks: which part of the upload each id is, and its bytes."""

    upload: str
    numbers: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def plain(self) -> bytes:
        return json.dumps({"upload": self.upload, "numbers": self.numbers, "sizes": self.sizes}).encode()


class Blocks:
    """The block verbs of one store. Callers hold the blob's lock: changes of one blob come one after the other."""

    def __init__(self, storage: Storage, auth: AzureAuth, clock: Clock) -> None:
        self._storage = storage
        self._auth = auth
        self._clock = clock
        storage.create_bucket(HIDDEN)

    def stage(self, request: Request, container: str, blob: str) -> Reply:
        """Put Block."""
        sums = check_digests(request)
        if request.payload.size == 0:
            raise Refused(400, "InvalidHeaderValue", "A block has at least one byte.")
        if request.payload.size > BLOCK_BYTES_MAX:
            raise Refused(413, "RequestBodyTooLarge", "The request body is too large.")
        self._stage(container, blob, _block_id(request), request.payload)
        return Reply(201, {**sums, "x-ms-request-server-encrypted": "true"})

    def stage_from(self, request: Request, container: str, blob: str) -> Reply:
        """Put Block From URL."""
        source = self._auth.source(request, own_account=False)
        try:
            meta = self._storage.head(*source)
        except NotFound as error:
            raise Refused(404, "CannotVerifyCopySource", "The specified blob does not exist.") from error
        check_source(request.headers, meta)
        try:
            wanted = byte_range(request.headers.get("x-ms-source-range"), meta.size) or (0, None)
        except ValueError as error:
            raise Refused(416, "InvalidRange", "The range specified is invalid for the current size.") from error
        # In memory: a block of a copy has a test's size.
        data = self._storage.read(*source, *wanted)[1]
        self._stage(container, blob, _block_id(request), data)
        return Reply(201, {"x-ms-request-server-encrypted": "true"})

    def _stage(self, container: str, blob: str, block: str, data: Any) -> None:
        found = self._head(container, blob)
        if found is not None and found.appendable:
            raise _wrong_type()
        index = self._index(container, blob)
        if index is None:
            index = _Index(self._storage.begin_upload(container, blob))
        if index.numbers and len(next(iter(index.numbers))) != len(block):
            raise Refused(
                400, "InvalidBlobOrBlock", "The specified blob or block content is invalid: ids of one length only."
            )
        number = index.numbers.get(block, len(index.numbers))
        if number >= UNCOMMITTED_MAX:
            raise Refused(409, "BlockCountExceedsLimit", "The uncommitted block count exceeds 100,000.")
        meta = self._storage.put_part(container, index.upload, number, data)
        index.numbers[block], index.sizes[block] = number, meta.size
        self._storage.put(HIDDEN, f"{container}/{blob}", index.plain())

    def commit(self, request: Request, container: str, blob: str) -> Reply:
        """Put Block List."""
        sums = check_digests(request)
        found = self._head(container, blob)
        check_write(request.headers, found)
        if found is not None and found.appendable:
            raise _wrong_type()
        wanted = [(local(each.tag), each.text or "") for each in ElementTree.fromstring(request.body)]
        if len(wanted) > BLOCKS_MAX:
            raise Refused(400, "BlockListTooLong", "The block list may not contain more than 50,000 blocks.")
        index = self._index(container, blob)
        fresh = index is None
        if index is None:
            index = _Index(self._storage.begin_upload(container, blob))
        try:
            numbers, blocks = self._chosen(container, blob, wanted, index, found)
            meta = self._complete(request, container, index, numbers, blocks)
        except BaseException:
            if fresh:
                self._storage.abort_upload(container, index.upload)
            raise
        if not fresh:
            self._storage.delete(HIDDEN, [f"{container}/{blob}"])
        return Reply(201, {**written_headers(meta), **sums})

    def _complete(
        self,
        request: Request,
        container: str,
        index: _Index,
        numbers: Sequence[int],
        blocks: Sequence[tuple[str, int]],
    ) -> Meta:
        attributes = attributes_of(request, self._clock.wall_ms())
        told = json.dumps(blocks)
        if len(told) <= _COMMITTED_CHARS_MAX:
            attributes[_COMMITTED] = told
        try:
            return self._storage.complete_upload(container, index.upload, numbers, attributes=attributes)
        except Invalid as error:
            if error.fields.get("code") == "InvalidPart":
                raise _invalid_list() from error
            raise

    def _chosen(
        self, container: str, blob: str, wanted: Sequence[tuple[str, str]], index: _Index, found: Meta | None
    ) -> tuple[list[int], list[tuple[str, int]]]:
        """The parts that make the blob, and its committed blocks (id, bytes) then. Blocks that are committed already
        are copied into the upload."""
        committed = _committed(found)
        numbers, blocks = list[int](), list[tuple[str, int]]()
        for state, block in wanted:
            if state != "Committed" and block in index.numbers:
                numbers.append(index.numbers[block])
                blocks.append((block, index.sizes[block]))
            elif state != "Uncommitted" and block in committed:
                start, size = committed[block]
                number = UNCOMMITTED_MAX - 1 - len(numbers)
                data = self._storage.read(container, blob, start, size)[1]
                self._storage.put_part(container, index.upload, number, data)
                numbers.append(number)
                blocks.append((block, size))
            else:
                raise _invalid_list()
        return numbers, blocks

    def show(self, request: Request, container: str, blob: str) -> Reply:
        """Get Block List."""
        found, index = self._head(container, blob), self._index(container, blob)
        if found is None and (index is None or not index.numbers):
            raise Refused(404, "BlobNotFound", "The specified blob does not exist.")
        kind = request.query.get("blocklisttype", "committed").lower()
        result = element("BlockList")
        if kind in ("committed", "all"):
            rows = [(block, size) for block, (_, size) in _committed(found).items()]
            result.append(_listed("CommittedBlocks", rows))
        if kind in ("uncommitted", "all"):
            result.append(_listed("UncommittedBlocks", list(index.sizes.items()) if index else []))
        reply = document(result)
        size = found.size if found is not None else 0
        headers = {**reply.headers, "x-ms-blob-content-length": str(size)}
        if found is not None:
            headers["ETag"] = etag_of(found)
        return Reply(200, headers, reply.body)

    def drop(self, container: str, blob: str) -> bool:
        """The blob was put whole, or deleted: its uncommitted blocks are gone. Whether there were any."""
        index = self._index(container, blob)
        if index is None:
            return False
        self._storage.delete(HIDDEN, [f"{container}/{blob}"])
        self._storage.abort_upload(container, index.upload)
        return True

    def drop_all(self, container: str) -> None:
        """The container was deleted: the indexes of its uncommitted blocks go too."""
        rows, _ = self._storage.list(HIDDEN, f"{container}/", limit=UNCOMMITTED_MAX)
        self._storage.delete(HIDDEN, [key for key, _ in rows])

    def uncommitted(self, container: str, prefix: str) -> list[str]:
        """Names of blobs with uncommitted blocks and nothing else, in order."""
        rows, _ = self._storage.list(HIDDEN, f"{container}/{prefix}", limit=UNCOMMITTED_MAX)
        names = [key.partition("/")[2] for key, _ in rows]
        return [name for name in names if not self._storage.contains(container, name)]

    def _head(self, container: str, blob: str) -> Meta | None:
        try:
            return self._storage.head(container, blob)
        except NotFound as error:
            if "bucket" in error.fields:
                raise
            return None

    def _index(self, container: str, blob: str) -> _Index | None:
        key = f"{container}/{blob}"
        if not self._storage.contains(HIDDEN, key):
            return None
        index = _Index(**json.loads(self._storage.read(HIDDEN, key, 0, None)[1]))
        try:
            self._storage.upload_key(container, index.upload)
        except NotFound:
            # A crash came between a commit and the removal of its index.
            self._storage.delete(HIDDEN, [key])
            return None
        return index


def _committed(found: Meta | None) -> dict[str, tuple[int, int]]:
    """Where each committed block of the blob is: start and bytes."""
    at, places = 0, {}
    for block, size in json.loads(found.attributes.get(_COMMITTED, "[]")) if found is not None else ():
        places[block] = (at, size)
        at += size
    return places


def _listed(tag: str, rows: Sequence[tuple[str, int]]) -> ElementTree.Element:
    return element(tag, *(element("Block", ("Name", block), ("Size", size)) for block, size in rows))


def _block_id(request: Request) -> str:
    given = request.query.get("blockid", "")
    try:
        plain = base64.b64decode(given, validate=True)
    except binascii.Error as error:
        raise _bad_id() from error
    if not 1 <= len(plain) <= BLOCK_ID_BYTES_MAX:
        raise _bad_id()
    return given


def _bad_id() -> Refused:
    return Refused(400, "InvalidQueryParameterValue", "blockid is the base64 of 1 to 64 bytes.")


def _invalid_list() -> Refused:
    return Refused(400, "InvalidBlockList", "The specified block list is invalid.")


def _wrong_type() -> Refused:
    return Refused(409, "InvalidBlobType", "The blob type is invalid for this operation.")
