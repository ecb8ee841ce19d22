"""Which verb, bucket and key a request is about, told from its first line alone: for fault rules, the meter and logs.

A dialect decides for itself what a request means; this is only the common vocabulary that its requests are counted in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, unquote

from providers.lab.wire import Exchange

VERBS = ("put", "append", "copy", "get", "head", "list", "delete", "upload", "part", "bucket", "session", "other")
"""`upload`: begin, complete, abort or list multipart uploads; `part`: one part (block, chunk) of one."""

Named = tuple[str, str, str]
"""Verb, bucket, key."""


def _plain(method: str) -> str:
    return {"PUT": "put", "GET": "get", "HEAD": "head", "DELETE": "delete"}.get(method, "other")


def _s3(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Named:
    bucket, _, key = unquote(path).removeprefix("/").partition("/")
    if not key:
        if "session" in query:
            return "session", bucket, ""
        if method == "POST" and "delete" in query:
            return "delete", bucket, ""
        if "uploads" in query:
            return "upload", bucket, ""
        if method == "GET" and bucket and ("list-type" in query or "prefix" in query or not query):
            return "list", bucket, ""
        return "bucket", bucket, ""
    if method == "PUT" and "uploadId" in query and "partNumber" in query:
        return "part", bucket, key
    if "uploadId" in query or "uploads" in query:
        return "upload", bucket, key
    if method == "PUT" and ("x-amz-copy-source" in headers or "x-oss-copy-source" in headers):
        return "copy", bucket, key
    if "append" in query or "x-amz-write-offset-bytes" in headers:
        return "append", bucket, key
    return _plain(method), bucket, key


def _azure(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Named:
    container, _, blob = unquote(path).removeprefix("/").partition("/")[2].partition("/")
    comp = query.get("comp", "")
    if not blob:
        return ("list" if comp == "list" else "delete" if comp == "batch" else "bucket"), container, ""
    verbs = {"block": "part", "blocklist": "upload", "appendblock": "append"}
    if method == "PUT" and comp:
        return verbs.get(comp, "other"), container, blob
    if method == "PUT" and "x-ms-copy-source" in headers:
        return "copy", container, blob
    return ("other" if comp else _plain(method)), container, blob


def _gcs(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Named:
    parts = [unquote(part) for part in path.strip("/").split("/")]
    uploading = parts[0] == "upload"
    if parts[0] in ("upload", "download", "resumable"):
        parts = parts[1:]
    if parts[:2] == ["batch", "storage"]:
        return "delete", "", ""
    if parts[:3] != ["storage", "v1", "b"]:
        return "other", "", ""
    match parts[3:]:
        case [bucket, "o"] if uploading:
            if "upload_id" in query:
                # A chunk, or the question how far the session is; the last chunk says how many bytes there are.
                more = method == "PUT" and headers.get("content-range", "").endswith("/*")
                return ("part" if more else "upload"), bucket, query.get("name", "")
            return ("upload" if query.get("uploadType") == "resumable" else "put"), bucket, query.get("name", "")
        case [bucket, "o"]:
            return ("list" if method == "GET" else "other"), bucket, ""
        case [_, "o", _, "copyTo" | "rewriteTo", "b", bucket, "o", key]:
            return "copy", bucket, key
        case [bucket, "o", key, "compose"]:
            return "copy", bucket, key
        case [bucket, "o", key]:
            if method == "GET" and query.get("alt") != "media" and not path.startswith("/download"):
                return "head", bucket, key
            return _plain(method), bucket, key
        case [bucket, *_]:
            return "bucket", bucket, ""
    return "bucket", "", ""


_NAMES: Mapping[str, Callable[[str, str, Mapping[str, str], Mapping[str, str]], Named]] = {
    "aliyun": _s3,
    "azure": _azure,
    "gcp": _gcs,
    "s3": _s3,
}


def exchange_of(dialect: str, method: str, target: str, headers: Mapping[str, str], bytes_in: int) -> Exchange:
    """The exchange that a request begins."""
    path, _, raw_query = target.partition("?")
    query = dict(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else {}
    verb, bucket, key = _NAMES[dialect](method, path, query, headers)
    return Exchange(method, target, verb, bucket, key, bytes_in, caller_zone=headers.get("x-yunhe-zone", "")[:32])
