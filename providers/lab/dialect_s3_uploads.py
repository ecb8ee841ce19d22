"""Multipart uploads of S3: begun, sent in parts, listed, completed or aborted.

An upload's id says what S3 remembers of it besides its parts: which key it is for, and how its checksums are made. So
nothing is kept here, and uploads outlive a restart of the server as their parts do.
Sources: the S3 API reference (CreateMultipartUpload, UploadPart, UploadPartCopy, CompleteMultipartUpload,
AbortMultipartUpload, ListParts, ListMultipartUploads) and the user guide, multipart upload limits.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import quote
from xml.etree import ElementTree

import crc32c

from providers.lab.dialect_s3_auth import is_directory_bucket
from providers.lab.dialect_s3_wire import (
    CHECKSUM,
    NAMESPACE,
    Refused,
    attributes_of,
    check_digests,
    crc_of,
    document,
    etag_of,
    iso,
    text,
)
from providers.lab.storage import Meta, Storage
from providers.lab.storage_crc import CRC32, CRC32C, combine
from providers.lab.wire import Reply, Request, element, local

PART_BYTES_MIN = 5 << 20
"""Every part but the last."""
PART_BYTES_MAX = 5 << 30
PARTS_MAX = 10_000
PAGE_MAX = 1000

_TAGS = {"crc32": "ChecksumCRC32", "crc32c": "ChecksumCRC32C"}
_CODES = {"": "0", "crc32": "1", "crc32c": "2"}
_TYPES = {"COMPOSITE": "c", "FULL_OBJECT": "f"}


@dataclass(frozen=True, slots=True)
class _Upload:
    """An upload as its id names it."""

    inner: str
    algorithm: str
    whole: bool
    """Its checksum is of the whole object (FULL_OBJECT), not of its parts' checksums (COMPOSITE)."""

    def id_for(self, key: str) -> str:
        kind = _CODES[self.algorithm] + ("f" if self.whole else "c")
        return f"{self.inner}.{zlib.crc32(key.encode()):08x}{kind}"


def _parsed(key: str, given: str) -> _Upload:
    """
    Raises:
        Refused: no such upload, or not of this key.
    """
    inner, _, rest = given.rpartition(".")
    codes = {code: name for name, code in _CODES.items()}
    if len(rest) != 10 or rest[:8] != f"{zlib.crc32(key.encode()):08x}" or rest[8] not in codes:
        raise Refused(404, "NoSuchUpload", "The specified multipart upload does not exist.")
    return _Upload(inner, codes[rest[8]], rest[9] == "f")


class Uploads:
    """The verbs of one store's uploads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def begin(self, request: Request, bucket: str, key: str) -> Reply:
        algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower()
        if algorithm not in _CODES:
            raise Refused(501, "NotImplemented", f"multipart checksums by {algorithm} are not emulated")
        kind = request.headers.get("x-amz-checksum-type", "COMPOSITE").upper()
        if kind not in _TYPES:
            raise Refused(400, "InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
        attributes = attributes_of(request)
        if algorithm and kind == "FULL_OBJECT":
            attributes[CHECKSUM + algorithm] = ""
        inner = self._storage.begin_upload(bucket, key, attributes=attributes)
        upload = _Upload(inner, algorithm, kind == "FULL_OBJECT")
        result = element(
            "InitiateMultipartUploadResult",
            ("Bucket", bucket),
            ("Key", key),
            ("UploadId", upload.id_for(key)),
            xmlns=NAMESPACE,
        )
        headers = {CHECKSUM + "algorithm": algorithm.upper(), CHECKSUM + "type": kind} if algorithm else {}
        return document(result, headers)

    def part(self, request: Request, bucket: str, key: str) -> Reply:
        upload, number = self._addressed(request, key)
        check_digests(request)
        if request.payload.size > PART_BYTES_MAX:
            raise Refused(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        meta = self._storage.put_part(bucket, upload.inner, number, request.payload)
        headers = {"ETag": etag_of(meta), "x-amz-request-id": "0"}
        if upload.algorithm:
            headers[CHECKSUM + upload.algorithm] = crc_of(meta, upload.algorithm)
        return Reply(200, headers)

    def part_by_copy(
        self, request: Request, bucket: str, key: str, source: tuple[str, str], wanted: tuple[int, int | None]
    ) -> Reply:
        """A part from the bytes `wanted` of another object."""
        upload, number = self._addressed(request, key)
        start, length = wanted
        if length is not None and length > PART_BYTES_MAX:
            raise Refused(400, "InvalidRequest", "The specified copy range is too large.")
        _, content = self._storage.open(*source, start, length)
        # Never larger than PART_BYTES_MAX, but in memory: the lab's copies in parts are of a test's size.
        meta = self._storage.put_part(bucket, upload.inner, number, b"".join(content.pieces()))
        result = element("CopyPartResult", ("LastModified", iso(meta.modified_ms)), ("ETag", etag_of(meta)))
        result.set("xmlns", NAMESPACE)
        if upload.algorithm:
            result.append(text(_TAGS[upload.algorithm], crc_of(meta, upload.algorithm)))
        return document(result)

    def _addressed(self, request: Request, key: str) -> tuple[_Upload, int]:
        upload = _parsed(key, request.query["uploadId"])
        number = int(request.query["partNumber"])
        if not 1 <= number <= PARTS_MAX:
            raise Refused(
                400, "InvalidArgument", f"Part number must be an integer between 1 and {PARTS_MAX}, inclusive"
            )
        return upload, number

    def complete(self, request: Request, bucket: str, key: str, *, if_absent: bool) -> Reply:
        upload = _parsed(key, request.query["uploadId"])
        claims = _claims(request.body)
        there = dict(self._storage.parts(bucket, upload.inner))
        for at, claim in enumerate(claims):
            meta = there.get(claim.number)
            if meta is None or claim.etag.strip('"') != etag_of(meta).strip('"'):
                raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
            _check_part_checksum(upload, claim, meta)
            if meta.size < PART_BYTES_MIN and at < len(claims) - 1:
                said = "Your proposed upload is smaller than the minimum allowed size"
                raise Refused(400, "EntityTooSmall", said, ("PartNumber", str(claim.number)))
        size = request.headers.get("x-amz-mp-object-size")
        if size is not None and int(size) != sum(there[claim.number].size for claim in claims):
            raise Refused(400, "InvalidRequest", "The provided x-amz-mp-object-size does not match the parts' sizes.")
        metas = [there[claim.number] for claim in claims]
        whole_claim = request.headers.get(CHECKSUM + upload.algorithm) if upload.algorithm else None
        composite = _composite(upload.algorithm, metas) if upload.algorithm and not upload.whole else None
        if whole_claim is not None and whole_claim != (composite or _joined_crc(upload.algorithm, metas)):
            raise Refused(
                400, "BadDigest", f"The {upload.algorithm} you specified did not match the calculated checksum."
            )
        meta = self._storage.complete_upload(
            bucket, upload.inner, [claim.number for claim in claims], if_absent=if_absent
        )
        result = element(
            "CompleteMultipartUploadResult",
            ("Location", f"/{bucket}/{quote(key)}"),
            ("Bucket", bucket),
            ("Key", key),
            ("ETag", etag_of(meta)),
            xmlns=NAMESPACE,
        )
        if upload.algorithm:
            result.append(text(_TAGS[upload.algorithm], composite or crc_of(meta, upload.algorithm)))
            result.append(text("ChecksumType", "FULL_OBJECT" if upload.whole else "COMPOSITE"))
        return document(result)

    def abort(self, request: Request, bucket: str, key: str) -> Reply:
        self._storage.abort_upload(bucket, _parsed(key, request.query["uploadId"]).inner)
        return Reply(204, {"x-amz-request-id": "0"})

    def list_parts(self, request: Request, bucket: str, key: str) -> Reply:
        given = request.query["uploadId"]
        upload = _parsed(key, given)
        after = int(request.query.get("part-number-marker") or 0)
        limit = min(int(request.query.get("max-parts", PAGE_MAX)), PAGE_MAX)
        rows = [row for row in self._storage.parts(bucket, upload.inner) if row[0] > after]
        page = rows[:limit]
        result = element(
            "ListPartsResult",
            ("Bucket", bucket),
            ("Key", key),
            ("UploadId", given),
            ("PartNumberMarker", after),
            ("NextPartNumberMarker", page[-1][0] if page else after),
            ("MaxParts", limit),
            ("IsTruncated", "true" if len(rows) > limit else "false"),
            ("StorageClass", "STANDARD"),
            xmlns=NAMESPACE,
        )
        if upload.algorithm:
            result.append(text("ChecksumAlgorithm", upload.algorithm.upper()))
            result.append(text("ChecksumType", "FULL_OBJECT" if upload.whole else "COMPOSITE"))
        for number, meta in page:
            row = element(
                "Part",
                ("PartNumber", number),
                ("LastModified", iso(meta.modified_ms)),
                ("ETag", etag_of(meta)),
                ("Size", meta.size),
            )
            if upload.algorithm:
                row.append(text(_TAGS[upload.algorithm], crc_of(meta, upload.algorithm)))
            result.append(row)
        return document(result)

    def list(self, request: Request, bucket: str) -> Reply:
        """The id that a listing shows of an upload stands for it without its checksum's kind, which only its own
        caller needs: good for aborting it and listing its parts."""
        query = request.query
        prefix = query.get("prefix", "")
        if is_directory_bucket(bucket) and prefix and not prefix.endswith("/"):
            raise Refused(400, "InvalidArgument", "a directory bucket lists only prefixes that end in /")
        limit = min(int(query.get("max-uploads", PAGE_MAX)), PAGE_MAX)
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        rows = [
            (key, _Upload(inner, "", False).id_for(key), started_ms)
            for key, inner, started_ms in self._storage.uploads(bucket, prefix)
        ]
        # Without an upload's id the marker stands behind all uploads of its key.
        rows = [row for row in rows if (row[:2] > after if after[1] else row[0] > after[0])]
        page = rows[:limit]
        encode = query.get("encoding-type") == "url"
        result = element(
            "ListMultipartUploadsResult",
            ("Bucket", bucket),
            ("KeyMarker", quote(after[0]) if encode else after[0]),
            ("UploadIdMarker", after[1]),
            ("Prefix", quote(prefix) if encode else prefix),
            ("MaxUploads", limit),
            ("IsTruncated", "true" if len(rows) > limit else "false"),
            xmlns=NAMESPACE,
        )
        if encode:
            result.append(text("EncodingType", "url"))
        if len(rows) > limit and page:
            result.append(text("NextKeyMarker", quote(page[-1][0]) if encode else page[-1][0]))
            result.append(text("NextUploadIdMarker", page[-1][1]))
        for key, given, started_ms in page:
            result.append(
                element(
                    "Upload",
                    ("Key", quote(key) if encode else key),
                    ("UploadId", given),
                    ("Initiated", iso(started_ms)),
                    ("StorageClass", "STANDARD"),
                )
            )
        return document(result)


@dataclass(frozen=True, slots=True)
class _ClaimedPart:
    number: int
    etag: str
    checksums: Mapping[str, str]


def _claims(body: bytes) -> Sequence[_ClaimedPart]:
    """The parts that a CompleteMultipartUpload document names.

    Raises:
        Refused: none, or not in ascending order.
    """
    found = []
    try:
        for part in ElementTree.fromstring(body):
            if local(part.tag) != "Part":
                continue
            fields = {local(field.tag): field.text or "" for field in part}
            checksums = {name: fields[tag] for name, tag in _TAGS.items() if tag in fields}
            found.append(_ClaimedPart(int(fields["PartNumber"]), fields["ETag"], checksums))
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise Refused(400, "MalformedXML", "The XML you provided was not well-formed.") from error
    if not found or len(found) > PARTS_MAX:
        raise Refused(400, "MalformedXML", f"a completion names 1 to {PARTS_MAX} parts")
    if any(later.number <= earlier.number for earlier, later in pairwise(found)):
        raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
    return found


def _check_part_checksum(upload: _Upload, claim: _ClaimedPart, meta: Meta) -> None:
    if not upload.algorithm:
        return
    given = claim.checksums.get(upload.algorithm)
    if given is None and not upload.whole:
        said = (
            f"The upload was created using a {upload.algorithm} checksum. The complete request must include the "
            f"checksum for each part. It was missing for part {claim.number} in the request."
        )
        raise Refused(400, "InvalidRequest", said)
    if given is not None and given != crc_of(meta, upload.algorithm):
        raise Refused(400, "InvalidPart", f"The checksum of part {claim.number} is another one.")


def _composite(algorithm: str, parts: Sequence[Meta]) -> str:
    """The checksum of the parts' checksums, with their number (user guide, checking object integrity)."""
    joined = b"".join(base64.b64decode(crc_of(meta, algorithm)) for meta in parts)
    value = crc32c.crc32c(joined) if algorithm == "crc32c" else zlib.crc32(joined)
    return f"{base64.b64encode(value.to_bytes(4, 'big')).decode()}-{len(parts)}"


def _joined_crc(algorithm: str, parts: Sequence[Meta]) -> str:
    """The checksum that the parts' bytes have when joined."""
    kind = CRC32C if algorithm == "crc32c" else CRC32
    value = 0
    for meta in parts:
        value = combine(kind, value, meta.crc32c if algorithm == "crc32c" else meta.crc32, meta.size)
    return base64.b64encode(value.to_bytes(4, "big")).decode()
