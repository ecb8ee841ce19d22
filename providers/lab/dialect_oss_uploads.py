"""OSS uploads in parts: InitiateMultipartUpload, UploadPart, UploadPartCopy, ListParts, CompleteMultipartUpload,
AbortMultipartUpload, ListMultipartUploads. See `dialect_oss.py`."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote
from xml.etree import ElementTree

from providers.base.errors import AlreadyExists
from providers.lab.dialect_oss_auth import Refused
from providers.lab.dialect_oss_objects import Objects, check_md5, etag_of, headers_of, iso, source_of
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Reply, Request, byte_range, element, local, xml

PARTS_MAX = 10_000
PART_BYTES_MIN = 100 << 10
"""Of every part but the last (OSS API reference, UploadPart)."""
PAGE_MAX = 1000

_XML = {"Content-Type": "application/xml"}


class Uploads:
    """See the module."""

    def __init__(self, storage: Storage, versioned: Callable[[str], bool]) -> None:
        self._storage = storage
        self._objects = Objects(storage, versioned)

    def answer(self, request: Request, bucket: str, key: str) -> Reply:
        query = request.query
        if request.method == "POST" and "uploads" in query:
            return self._begin(request, bucket, key)
        upload = query.get("uploadId", "")
        match request.method:
            case "PUT" if "partNumber" in query:
                return self._part(request, bucket, upload)
            case "GET":
                return self._list_parts(request, bucket, key, upload)
            case "POST":
                return self._complete(request, bucket, key, upload)
            case "DELETE":
                self._storage.abort_upload(bucket, upload)
                return Reply(204)
        raise Refused(501, "NotImplemented", f"{request.method} {request.raw_path}?{request.raw_query} is not emulated")

    def _begin(self, request: Request, bucket: str, key: str) -> Reply:
        if self._objects.if_absent(request, bucket) and self._storage.contains(bucket, key):
            raise AlreadyExists(f"{bucket}/{key} exists")
        kind = request.headers.get("content-type")
        upload = self._storage.begin_upload(bucket, key, attributes={"content-type": kind} if kind else {})
        shown = quote(key, safe="") if request.query.get("encoding-type") == "url" else key
        rows: list[tuple[str, object]] = [("Bucket", bucket), ("Key", shown), ("UploadId", upload)]
        if shown != key or request.query.get("encoding-type") == "url":
            rows.append(("EncodingType", "url"))
        return Reply(200, _XML, xml(element("InitiateMultipartUploadResult", *rows)))

    def _part(self, request: Request, bucket: str, upload: str) -> Reply:
        number = int(request.query["partNumber"])
        if not 1 <= number <= PARTS_MAX:
            raise Refused(400, "InvalidArgument", f"Part number must be an integer between 1 and {PARTS_MAX}.")
        if "x-oss-copy-source" in request.headers:
            return self._part_copy(request, bucket, upload, number)
        check_md5(request)
        meta = self._storage.put_part(bucket, upload, number, request.payload)
        return Reply(200, {"ETag": etag_of(meta), "x-oss-hash-crc64ecma": str(meta.crc64)})

    def _part_copy(self, request: Request, bucket: str, upload: str, number: int) -> Reply:
        source_bucket, source_key = source_of(request)
        self._objects.check_source(request, source_bucket, source_key)
        size = self._storage.size(source_bucket, source_key)
        try:
            span = byte_range(request.headers.get("x-oss-copy-source-range"), size)
        except ValueError as error:
            raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.") from error
        start, length = span or (0, None)
        _, content = self._storage.open(source_bucket, source_key, start, length)
        meta = self._storage.put_part(bucket, upload, number, b"".join(content.pieces()))
        result = element("CopyPartResult", ("LastModified", iso(meta.modified_ms)), ("ETag", etag_of(meta)))
        return Reply(200, _XML, xml(result))

    def _list_parts(self, request: Request, bucket: str, key: str, upload: str) -> Reply:
        query = request.query
        limit = min(int(query.get("max-parts") or PAGE_MAX), PAGE_MAX)
        after = int(query.get("part-number-marker") or 0)
        parts = [(number, meta) for number, meta in self._storage.parts(bucket, upload) if number > after]
        page = parts[:limit]
        encode = query.get("encoding-type") == "url"
        result = element(
            "ListPartsResult",
            ("Bucket", bucket),
            ("Key", quote(key, safe="") if encode else key),
            ("UploadId", upload),
            ("PartNumberMarker", after),
            ("NextPartNumberMarker", page[-1][0] if page else after),
            ("MaxParts", limit),
            ("IsTruncated", "true" if len(parts) > limit else "false"),
        )
        if encode:
            result.insert(0, element("EncodingType"))
            result[0].text = "url"
        result.extend(_part_row(number, meta) for number, meta in page)
        return Reply(200, _XML, xml(result))

    def _complete(self, request: Request, bucket: str, key: str, upload: str) -> Reply:
        there = dict(self._storage.parts(bucket, upload))
        if request.headers.get("x-oss-complete-all", "").lower() == "yes":
            numbers = sorted(there)
        else:
            numbers = _asked_for(request, there)
        if not numbers:
            raise Refused(400, "InvalidArgument", "An upload is completed with at least one part.")
        if any(there[number].size < PART_BYTES_MIN for number in numbers[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload smaller than the minimum allowed size.")
        if_absent = self._objects.if_absent(request, bucket)
        meta = self._storage.complete_upload(bucket, upload, numbers, if_absent=if_absent)
        result = element(
            "CompleteMultipartUploadResult",
            ("Location", f"/{bucket}/{quote(key)}"),
            ("Bucket", bucket),
            ("Key", quote(key, safe="") if request.query.get("encoding-type") == "url" else key),
            ("ETag", etag_of(meta)),
        )
        if request.query.get("encoding-type") == "url":
            result.append(element("EncodingType"))
            result[-1].text = "url"
        headers = {**headers_of(meta), **self._objects.version(bucket), **_XML}
        return Reply(200, headers, xml(result))

    def list(self, request: Request, bucket: str) -> Reply:
        """ListMultipartUploads."""
        query = request.query
        prefix = query.get("prefix", "")
        limit = min(int(query.get("max-uploads") or PAGE_MAX), PAGE_MAX)
        marker = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        encode = query.get("encoding-type") == "url"
        rows = sorted(self._storage.uploads(bucket, prefix))
        # Without an upload-id-marker, uploads of the marked key itself are left out (ListMultipartUploads).
        rows = [row for row in rows if (row[:2] > marker if marker[1] else row[0] > marker[0])]
        page = rows[:limit]
        last = page[-1] if len(rows) > limit else ("", "", 0)

        def shown(text: str) -> str:
            return quote(text, safe="") if encode else text

        result = element(
            "ListMultipartUploadsResult",
            ("Bucket", bucket),
            ("Prefix", shown(prefix)),
            ("KeyMarker", shown(marker[0])),
            ("UploadIdMarker", marker[1]),
            ("NextKeyMarker", shown(last[0])),
            ("NextUploadIdMarker", last[1]),
            ("MaxUploads", limit),
            ("IsTruncated", "true" if len(rows) > limit else "false"),
        )
        if encode:
            result.insert(0, element("EncodingType"))
            result[0].text = "url"
        result.extend(
            element("Upload", ("Key", shown(key)), ("UploadId", upload), ("Initiated", iso(started_ms)))
            for key, upload, started_ms in page
        )
        return Reply(200, _XML, xml(result))


def _part_row(number: int, meta: Meta) -> ElementTree.Element:
    return element(
        "Part",
        ("PartNumber", number),
        ("LastModified", iso(meta.modified_ms)),
        ("ETag", etag_of(meta)),
        ("HashCrc64ecma", meta.crc64),
        ("Size", meta.size),
    )


def _asked_for(request: Request, there: dict[int, Meta]) -> list[int]:
    numbers: list[int] = []
    for part in ElementTree.fromstring(request.body):
        fields = {local(child.tag): child.text or "" for child in part}
        if "PartNumber" not in fields:
            continue
        number = int(fields["PartNumber"])
        if numbers and number <= numbers[-1]:
            raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        if number not in there or fields.get("ETag", "").strip('"') != etag_of(there[number]).strip('"'):
            raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
        numbers.append(number)
    return numbers
