"""OSS listings, versions 1 (by marker) and 2 (by token). See `dialect_oss.py`."""

from __future__ import annotations

import base64
from collections.abc import Callable
from urllib.parse import quote
from xml.etree import ElementTree

from providers.lab.dialect_oss_auth import Refused
from providers.lab.dialect_oss_objects import etag_of, iso
from providers.lab.storage import Meta, Storage
from providers.lab.wire import Request, element, xml

PAGE_MAX = 1000
_AFTER_ALL = "\U0010ffff"
"""Sorts behind every key that begins alike."""

V1_ARGUMENTS = frozenset(["prefix", "marker", "max-keys", "delimiter", "encoding-type"])


def page_v2(storage: Storage, request: Request, bucket: str) -> bytes:
    """ListObjectsV2."""
    query = request.query
    token = query.get("continuation-token", "")
    after = base64.urlsafe_b64decode(token).decode() if token else query.get("start-after", "")
    rows, prefixes, last = _rows(storage, request, bucket, after)
    shown = _shown(request)
    result = element(
        "ListBucketResult",
        ("Name", bucket),
        ("Prefix", shown(query.get("prefix", ""))),
        ("StartAfter", shown(query.get("start-after", ""))),
        ("Delimiter", shown(query.get("delimiter", ""))),
        ("MaxKeys", _limit(request)),
        ("KeyCount", len(rows) + len(prefixes)),
        ("IsTruncated", "true" if last else "false"),
    )
    if last:
        _add(result, "NextContinuationToken", base64.urlsafe_b64encode(last.encode()).decode())
    return _document(result, request, rows, prefixes)


def page_v1(storage: Storage, request: Request, bucket: str) -> bytes:
    """ListObjects."""
    query = request.query
    rows, prefixes, last = _rows(storage, request, bucket, query.get("marker", ""))
    shown = _shown(request)
    result = element(
        "ListBucketResult",
        ("Name", bucket),
        ("Prefix", shown(query.get("prefix", ""))),
        ("Marker", shown(query.get("marker", ""))),
        ("Delimiter", shown(query.get("delimiter", ""))),
        ("MaxKeys", _limit(request)),
        ("IsTruncated", "true" if last else "false"),
    )
    if last:
        _add(result, "NextMarker", shown(last))
    return _document(result, request, rows, prefixes)


def _rows(
    storage: Storage, request: Request, bucket: str, after: str
) -> tuple[list[ElementTree.Element], list[str], str]:
    """Entries of the page, common prefixes, and what the page ends with ("" when nothing follows)."""
    prefix, delimiter, limit = request.query.get("prefix", ""), request.query.get("delimiter", ""), _limit(request)
    shown = _shown(request)
    rows: list[ElementTree.Element] = []
    prefixes: list[str] = []
    while True:
        room = limit - len(rows) - len(prefixes)
        page, more = storage.list_metas(bucket, prefix, start_after=after, limit=max(room, 1))
        for key, meta in page:
            if len(rows) + len(prefixes) == limit:
                return rows, prefixes, after
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at >= 0:
                prefixes.append(key[: at + len(delimiter)])
                after = prefixes[-1] + _AFTER_ALL
                more = True
                break
            rows.append(_entry(key, meta, shown))
            after = key
        if not more or not page:
            return rows, prefixes, ""
        if not delimiter and len(rows) == limit:
            return rows, prefixes, after


def _entry(key: str, meta: Meta, shown: Callable[[str], str]) -> ElementTree.Element:
    return element(
        "Contents",
        ("Key", shown(key)),
        ("LastModified", iso(meta.modified_ms)),
        ("ETag", etag_of(meta)),
        ("Type", "Appendable" if meta.appendable else "Normal"),
        ("Size", meta.size),
        ("StorageClass", "Standard"),
    )


def _document(
    result: ElementTree.Element, request: Request, rows: list[ElementTree.Element], prefixes: list[str]
) -> bytes:
    if request.query.get("encoding-type") == "url":
        _add(result, "EncodingType", "url")
    result.extend(rows)
    shown = _shown(request)
    result.extend(element("CommonPrefixes", ("Prefix", shown(prefix))) for prefix in prefixes)
    return xml(result)


def _shown(request: Request) -> Callable[[str], str]:
    encode = request.query.get("encoding-type") == "url"
    return lambda text: quote(text, safe="") if encode else text


def _limit(request: Request) -> int:
    limit = int(request.query.get("max-keys") or "100")
    if not 1 <= limit <= PAGE_MAX:
        raise Refused(400, "InvalidArgument", f"max-keys is 1 to {PAGE_MAX}.")
    return limit


def _add(result: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(result, tag).text = text
